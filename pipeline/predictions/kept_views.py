"""With which test-time augmentation a run's predictions are taken: what tune decided, as postprocess.json says it.

Apart from blends.py, so that predict does not depend on the code that turns probabilities into masks.
"""

from typing import Any

from pipeline.core.files import read_record
from pipeline.core.run import Run


def decided_views(run: Run) -> dict[str, Any] | None:
    """Returns what postprocess.json says of the recipe's test-time augmentation (views.decide of tune); None where tune
    has not decided on these views."""
    decided = read_record(run.postprocess).get("tta")
    if not isinstance(decided, dict) or not decided.keys() >= {"views", "kept"}:  # damaged, which read_tuned says
        return None
    return decided if decided["views"] == run.recipe.predict.tta else None


def views_of(run: Run) -> str:
    """Returns the test-time augmentation that a run's predictions are taken with, as in `predict.tta`: the recipe's,
    unless tune found that it brings too little on the out-of-fold images."""
    decided = decided_views(run)
    return run.recipe.predict.tta if decided is None or decided["kept"] else "none"
