"""Chooses the images that a fold trains on, and their target masks: their own, a partner's, or a mean mask.

A mask that contradicts those of the image's near-duplicates is replaced, only in training. `relabel` takes the mask of
the partner that outliers.csv names; `soft` takes the mean over all images that its rows connect. Such images are not
part of the score during training, and no held-out mask is part of a target.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipeline.clean.duplicates import connected_groups
from pipeline.core.errors import PipelineError
from pipeline.masks.geometry import IGNORE


@dataclass(frozen=True)
class Chosen:
    """The training and held-out images of one fold, as rows of the training table."""

    train: np.ndarray
    """Training images (M,) int64, ascending."""
    valid: np.ndarray
    """Held-out images (K,) int64, ascending."""
    targets: dict[int, np.ndarray]
    """For each row of `train` whose target is not its own mask, the rows whose mean mask is the target."""
    note: str
    """A description of the numbers of images, for the console."""


def mask_origins(findings: pd.DataFrame, image_ids: pd.Series, use: np.ndarray) -> dict[int, list[int]]:
    """Returns, for each row with the use relabel or soft, the rows whose masks may form its target.

    For relabel these are its partners in the order of outliers.csv. For soft these are all images connected to it,
    including itself, in ascending order.

    Args:
        findings: the table of outliers.csv.
        image_ids: the ids of the training table (N,).
        use: the use of each image in training (N,): train, drop, relabel or soft.

    Raises:
        PipelineError: outliers.csv names no partner for such an image.
    """
    pairs = {action: _pairs(findings[findings["action"] == action], image_ids) for action in ("relabel", "soft")}
    group = connected_groups(len(image_ids), *pairs["soft"].T)
    made_from = {int(row): np.flatnonzero(group == group[row]).tolist() for row in np.flatnonzero(use == "soft")}
    left, right = pairs["relabel"].T
    made_from |= {int(row): right[left == row].tolist() for row in np.flatnonzero(use == "relabel")}
    alone = [row for row, rows in made_from.items() if not set(rows) - {row}]
    if alone:
        raise PipelineError(
            f"{len(alone)} images have the use relabel or soft, but outliers.csv has no row for them with this action "
            f"and a training image as partner_id: {_some(image_ids, use, alone)}; change their `use` in the folds file "
            "to train or drop, or add the rows to outliers.csv."
        )
    return made_from


def restrict(made_from: dict[int, list[int]], available: np.ndarray, use: np.ndarray) -> dict[int, np.ndarray]:
    """Returns, for each row, the `available` (N,) bool rows whose mean mask is its target.

    For relabel this is only the first available partner. Rows without an available source are left out.
    """
    usable = {row: [source for source in rows if available[source]] for row, rows in made_from.items()}
    return {row: np.array(rows[:1] if use[row] == "relabel" else rows) for row, rows in usable.items() if rows}


def assign_rows(fold: int | None, folds: pd.DataFrame, excluded: np.ndarray, made_from: dict[int, list[int]]) -> Chosen:
    """Returns the training and held-out images of a fold, with their targets.

    Args:
        fold: the held-out fold; None if nothing is held out.
        folds: the split in the order of the training table, with the columns fold and use.
        excluded: images to leave out in addition to the dropped ones (N,) bool.
        made_from: the result of `mask_origins`.
    """
    use, inside = folds["use"].to_numpy(), (folds["fold"] != fold).to_numpy()
    kept = ~excluded & (use != "drop")
    # held-out and excluded masks may not enter through another image's target, nor may masks that are to be relabelled
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
        "left out because no partner is available": lost,
    }
    words = ", ".join(f"{which.sum()} {name}" for name, which in counts.items() if which.any())
    training = f"{len(train)} images to train on{f' ({words})' if words else ''}"
    return Chosen(train, valid, targets, f"{training}, {len(valid)} held out")


def mean_mask(masks: np.ndarray) -> np.ndarray:
    """Returns the mean (C, H, W) float32 of masks (S, C, H, W) uint8 of 0 and 1; 255 where one of them is 255."""
    ignored = (masks == IGNORE).any(0)
    return np.where(ignored, np.float32(IGNORE), masks.mean(0, dtype=np.float32))


def _pairs(findings: pd.DataFrame, image_ids: pd.Series) -> np.ndarray:
    """Returns the rows (P, 2) int64 of both images of each finding, without findings about other than training
    images."""
    index = pd.Index(image_ids)
    pairs = np.stack([index.get_indexer(findings[name]) for name in ("image_id", "partner_id")], axis=1)
    return pairs[(pairs >= 0).all(1)].astype(np.int64)


def _some(image_ids: pd.Series, use: np.ndarray, rows: list[int]) -> str:
    return ", ".join(f"{image_ids.iloc[row]} ({use[row]})" for row in sorted(rows)[:3])
