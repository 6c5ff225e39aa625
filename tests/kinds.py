"""A competition's submissions without its raw files: what must be in them, and masks that were drawn."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.core.config.raw_layouts import RleCsv
from pipeline.encode import submission
from pipeline.encode.submission import Expected

SHAPES = {"t1": (12, 17), "t2": (20, 9), "t3": (5, 5)}
BASE: dict[str, Any] = {
    "name": "kinds", "title": "Kinds", "reader": "rle_csv", "classes": ["thing"], "metric": "dice",
    "train": {"images": "train/{id}.png", "masks": "train.csv"}, "test": {"images": "test/{id}.png"},
}  # fmt: skip


def competition(**settings: Any) -> RleCsv:
    """The competition with these settings."""
    return RleCsv.model_validate(BASE | settings)


def images(shapes: dict[str, tuple[int, int]] | None = None, **columns: list[str]) -> pd.DataFrame:
    """The table of the test images."""
    shapes = shapes or SHAPES
    rows = [
        {"image_id": name, "subset": "test", "group": "", "height": h, "width": w} for name, (h, w) in shapes.items()
    ]
    return pd.DataFrame(rows).assign(**columns)


def wanted(folder: Path, table: pd.DataFrame | None = None, **settings: Any) -> tuple[RleCsv, Expected]:
    """The competition, and what a submission to it must hold."""
    made = competition(**settings)
    return made, submission.expected_of(made, folder, images() if table is None else table)


def drawn(classes: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    """Masks (C, h, w) of the test images; one class of two is empty in t2, and t3 has none at all."""
    rng = np.random.default_rng(seed)
    found = {name: (rng.random((classes, *shape)) > 0.6).astype(np.uint8) for name, shape in SHAPES.items()}
    found["t2"][1:] = 0
    found["t3"][:] = 0
    return found


def write(path: Path, want: Expected, masks: dict[str, np.ndarray], scores: submission.Scores | None = None) -> Path:
    """Writes masks as a submission, and returns its path."""
    texts: submission.Texts = {}
    for name, planes in masks.items():
        texts |= submission.texts_of(name, planes, want)
    submission.write(path, texts, want, scores)
    return path
