"""Draws the figures of the documentation again.

    python docs/figures/make.py              # all of them
    python docs/figures/make.py fold nested  # these alone

Everything is drawn from formulas and from frames of the sample competition, with fixed seeds; no data is read.
`contradictions` is the exception: it shrinks a picture that `python -m pipeline run sample --to split` leaves in work/.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import explanations
import of_data
import of_models
from PIL import Image

REPOSITORY = Path(__file__).parents[2]


def contradictions() -> None:
    """Writes docs/contradictions.jpg from clean's picture of the sample."""
    source = REPOSITORY / "work" / "sample" / "outliers" / "contradiction.png"
    if not source.exists():
        raise SystemExit(f"{source} is missing: run `python -m pipeline run sample --to split` first.")
    with Image.open(source) as image:
        half = image.convert("RGB").resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
    half.save(REPOSITORY / "docs" / "contradictions.jpg", quality=88, optimize=True)


def main(names: list[str]) -> None:
    """Draws the named figures, or all but `contradictions`."""
    known = {draw.__name__: draw for draw in (*of_data.FIGURES, *of_models.FIGURES, *explanations.FIGURES)}
    for name in names or known:
        {**known, "contradictions": contradictions}[name.replace("-", "_")]()


if __name__ == "__main__":
    main(sys.argv[1:])
