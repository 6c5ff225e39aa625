"""Which images a fold trains on, and the masks they learn: their own, their partner's, or a mean mask.

A mask that contradicts those of the image's near-duplicates is replaced in training alone: `relabel` takes the mask of
the partner that outliers.csv names, `soft` the mean over all images that its rows connect. Nobody is scored on such an
image while training, and no held-out mask is part of a target.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipeline.clean.duplicates import connected_groups
from pipeline.core.errors import PipelineError
from pipeline.masks.geometry import IGNORE


@dataclass(frozen=True)
class Chosen:
    """What one fold trains on and is held against, as rows of the training table."""

    train: np.ndarray
    """(M,) int64, ascending."""
    valid: np.ndarray
    """Held-out images (K,) int64, ascending."""
    targets: dict[int, np.ndarray]
    """Rows of `train` that do not learn their own mask, and the rows whose mean mask they learn."""
    note: str
    """The numbers of images, in words."""


def mask_origins(found: pd.DataFrame, image_ids: pd.Series, use: np.ndarray) -> dict[int, list[int]]:
    """Returns the rows whose masks may make the target of each row to relabel or to soften.

    Of an image to relabel they are its partners in the order of outliers.csv; of a soft one, all that are connected to
    it, itself too, in ascending order.

    Args:
        found: outliers.csv.
        image_ids: of the training table (N,).
        use: what training does with each image (N,): train, drop, relabel or soft.

    Raises:
        PipelineError: outliers.csv names no partner for such an image.
    """
    pairs = {action: _pairs(found[found["action"] == action], image_ids) for action in ("relabel", "soft")}
    group = connected_groups(len(image_ids), *pairs["soft"].T)
    made_from = {int(row): np.flatnonzero(group == group[row]).tolist() for row in np.flatnonzero(use == "soft")}
    left, right = pairs["relabel"].T
    made_from |= {int(row): right[left == row].tolist() for row in np.flatnonzero(use == "relabel")}
    alone = [row for row, rows in made_from.items() if not set(rows) - {row}]
    if alone:
        raise PipelineError(
            f"{len(alone)} images are to be trained on other masks than their own, and outliers.csv has no row of them "
            f"with this action and a training image as partner_id: {_some(image_ids, use, alone)}; change their `use` "
            "in the folds file to train or drop, or add the rows to outliers.csv."
        )
    return made_from


def restrict(made_from: dict[int, list[int]], available: np.ndarray, use: np.ndarray) -> dict[int, np.ndarray]:
    """Returns the rows whose mean mask is the target of each row, of those that are `available` (N,) bool.

    One partner for an image to relabel, the first; a row of which no source is left is not in the result.
    """
    left = {row: [source for source in rows if available[source]] for row, rows in made_from.items()}
    return {row: np.array(rows[:1] if use[row] == "relabel" else rows) for row, rows in left.items() if rows}


def assign_rows(fold: int | None, folds: pd.DataFrame, excluded: np.ndarray, made_from: dict[int, list[int]]) -> Chosen:
    """Returns what a fold trains on.

    Args:
        fold: the held-out fold; None holds nothing out.
        folds: the split in the order of the training table: fold and use.
        excluded: images to leave out besides the dropped ones (N,) bool.
        made_from: see `mask_origins`.
    """
    use, inside = folds["use"].to_numpy(), (folds["fold"] != fold).to_numpy()
    kept = ~excluded & (use != "drop")
    # what is held out or left out may not come in by another image's target, and a doubtful mask is no better elsewhere
    targets = restrict(made_from, inside & kept & (use != "relabel"), use)
    targets = {row: rows for row, rows in targets.items() if inside[row] and kept[row]}
    changed = np.isin(np.arange(len(use)), list(targets))
    train = np.flatnonzero(inside & kept & ((use == "train") | changed))
    valid = np.flatnonzero(~inside & kept & (use == "train"))
    lost = inside & kept & (use == "relabel") & ~changed
    counts = {
        "dropped": inside & (use == "drop"),
        "excluded": inside & excluded & (use != "drop"),
        "relabelled": changed & (use == "relabel"),
        "soft": changed & (use == "soft"),
        "left out for want of a partner": lost,
    }
    words = ", ".join(f"{which.sum()} {name}" for name, which in counts.items() if which.any())
    learned = f"{len(train)} images to train on{f' ({words})' if words else ''}"
    return Chosen(train, valid, targets, f"{learned}, {len(valid)} held out")


def mean_mask(masks: np.ndarray) -> np.ndarray:
    """Returns the mean (C, H, W) float32 of masks (S, C, H, W) uint8 of 0 and 1; 255 where one of them is 255."""
    ignored = (masks == IGNORE).any(0)
    return np.where(ignored, np.float32(IGNORE), masks.mean(0, dtype=np.float32))


def _pairs(found: pd.DataFrame, image_ids: pd.Series) -> np.ndarray:
    """The rows (P, 2) int64 of both images of each finding; findings about others than training images are left out."""
    index = pd.Index(image_ids)
    pairs = np.stack([index.get_indexer(found[name]) for name in ("image_id", "partner_id")], axis=1)
    return pairs[(pairs >= 0).all(1)].astype(np.int64)


def _some(image_ids: pd.Series, use: np.ndarray, rows: list[int]) -> str:
    return ", ".join(f"{image_ids.iloc[row]} ({use[row]})" for row in sorted(rows)[:3])
