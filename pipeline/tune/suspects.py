"""Images whose out-of-fold prediction disagrees most with their mask: one of the two is wrong, so look at them first.

Pure functions from what tune counted to rows, the highest score first, from 0.5 on, without the images that clean has
dropped. A list may be copied, shortened to the images whose mask is wrong, and named in `train.exclude`.
"""

from typing import Any

import numpy as np
import pandas as pd

from pipeline.core.config.competition import Competition
from pipeline.masks.decision import LEVELS, Rules
from pipeline.masks.metrics import metric_of
from pipeline.masks.overlaps import dice
from pipeline.tune.evidence import Evidence, predicted_area

LOWEST = 0.5
"""The score from which an image is listed."""
HALF = LEVELS // 2
"""Probability 0.5."""


def of_masks(evidence: Evidence, decision: Rules, classes: list[str]) -> pd.DataFrame:
    """Returns the suspects of a binary or multilabel competition: image_id, reason, score, fold, true_area,
    predicted_area, best_dice (NaN where the mask is empty) and note.

    The score of an image with a mask is 1 - the Dice of the best threshold, its mean over the classes in the image.
    That of an image without one is the area predicted with 0.5 or more, weighted by probability, as a part of the
    median mask's; 1 at most.
    """
    present, typical, best = evidence.true > 0, _typical_areas(evidence.true), _best_dice(evidence)
    expected, predicted = _confident_area(evidence) / typical, predicted_area(evidence, decision)
    masked = evidence.true.sum(1) > 0
    mean = np.where(present, best, 0).sum(1) / np.maximum(present.sum(1), 1)
    reasons, notes = [], []
    for index in range(len(masked)):
        true, found = evidence.true[index], evidence.predicted[index, :, HALF]
        if masked[index]:
            worst = int(np.argmin(np.where(present[index], best[index], np.inf)))
            reasons.append(_reason(found[present[index]], mean[index]))
            shown = f"{true[worst]:,} px true, {predicted[index, worst]:,} px predicted"
            note = f"{shown}, Dice {best[index, worst]:.2f} at the best threshold"
        else:
            worst = int(np.argmax(expected[index]))
            reasons.append("predicted where empty")
            note = f"{found[worst]:,} px at 0.5 or more, true masks have {typical[worst]:,.0f} px (median)"
        notes.append(f"{classes[worst]}: {note}" if len(classes) > 1 else note)
    return _ranked(evidence.images, "best_dice", {
        "reason": reasons,
        "score": np.where(masked, 1 - mean, np.minimum(expected.max(1), 1)),
        "true_area": evidence.true.sum(1),
        "predicted_area": predicted.sum(1),
        "best_dice": np.where(masked, mean, np.nan),
        "note": notes,
    })  # fmt: skip


def of_labels(images: pd.DataFrame, counts: np.ndarray, competition: Competition) -> pd.DataFrame:
    """Returns the suspects of a multiclass competition: image_id, reason, score, fold, true_area, predicted_area,
    the competition's metric and note.

    The score is 1 - the competition's metric of the image alone, or the metric itself, 1 at most, where lower is
    better. An image whose pixels are all ignored has none.

    Args:
        images: image_id, fold and use, one row per image.
        counts: confusion matrices (N, C, C) int64, rows are true classes.
        competition: gives the metric and the classes; the areas are those of all but the first.
    """
    counted = counts.copy()
    if competition.ignored is not None:
        counted[:, competition.ignored] = 0
    metric = metric_of(competition)
    scores = metric.by_class(counts)
    doubt = 1 - scores if metric.higher_is_better else np.minimum(scores, 1)
    return _ranked(images, metric.name, {
        "reason": "poor overlap",
        "score": np.where(counted.any((1, 2)), doubt, 0),
        "true_area": counted[:, 1:].sum((1, 2)),
        "predicted_area": counted[:, :, 1:].sum((1, 2)),
        metric.name: scores,
        "note": [_confusion_in_words(matrix, competition.classes) for matrix in counted],
    })  # fmt: skip


def _ranked(images: pd.DataFrame, measure: str, values: dict[str, Any]) -> pd.DataFrame:
    """The images with these values whose score is high enough, the highest first; none that clean has dropped."""
    found = images[["image_id", "fold"]].reset_index(drop=True).assign(**values).round({"score": 4, measure: 4})
    if "use" in images:
        found = found[(images["use"] != "drop").to_numpy()]
    found = found[found["score"] >= LOWEST].sort_values("score", ascending=False, kind="stable", ignore_index=True)
    columns = ["image_id", "reason", "score", "fold", "true_area", "predicted_area", measure, "note"]
    return found[columns]


def _typical_areas(true: np.ndarray) -> np.ndarray:
    """The median area (C,) float64 of the masks of each class that are not empty; 1 where all are."""
    return np.array([np.median(column[column > 0]) if column.any() else 1.0 for column in true.T])


def _best_dice(evidence: Evidence) -> np.ndarray:
    """The Dice (N, C) float64 of the threshold that suits each image best, of those above 0."""
    planes = (
        dice(evidence.intersection[:, index, 1:], evidence.predicted[:, index, 1:], evidence.true[:, index, None])
        for index in range(evidence.true.shape[1])
    )
    return np.stack([plane.max(1) for plane in planes], axis=1)


def _confident_area(evidence: Evidence) -> np.ndarray:
    """The sum (N, C) float64 of the probabilities that are 0.5 or more."""
    at_least = evidence.predicted[:, :, HALF:]
    pixels = at_least - np.pad(at_least[:, :, 1:], ((0, 0), (0, 0), (0, 1)))
    return pixels @ np.arange(HALF, LEVELS) / (LEVELS - 1)


def _reason(found: np.ndarray, best: float) -> str:
    """Why an image with a mask is a suspect, from the pixels at 0.5 or more of the classes in it, and the best Dice."""
    if not found.any():
        return "predicted empty"
    return "predicted elsewhere" if best < 0.1 else "poor overlap"


def _confusion_in_words(counts: np.ndarray, classes: list[str]) -> str:
    wrong = counts * ~np.eye(len(classes), dtype=bool)
    true, taken = np.unravel_index(wrong.argmax(), wrong.shape)
    if not wrong.any():
        return ""
    share = wrong[true, taken] / counts[true].sum()
    return f"{classes[true]} taken for {classes[taken]}: {100 * share:.0f} % of its pixels"
