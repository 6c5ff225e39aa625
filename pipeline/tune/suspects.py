"""Lists the images whose out-of-fold prediction disagrees most with their mask, because one of the two is wrong.

The functions turn the counts of tune into rows, the highest score first, down to 0.5. Images that clean has dropped are
left out. A copy of the list, reduced to the images whose mask is wrong, can be used as `train.exclude`.
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
"""The smallest score of a listed image."""
HALF = LEVELS // 2
"""Probability 0.5."""


def of_masks(evidence: Evidence, decision: Rules, classes: list[str]) -> pd.DataFrame:
    """Returns the suspects of a binary or multilabel competition: image_id, reason, score, fold, true_area,
    predicted_area, best_dice (NaN if the mask is empty) and note.

    The score of an image with a mask is 1 minus the Dice at the best threshold, averaged over the classes in the image.
    The score of an image without a mask is the area predicted with at least 0.5, weighted by probability, relative to
    the median area of masks, and at most 1.
    """
    present, typical, best = evidence.true > 0, _typical_areas(evidence.true), _best_dice(evidence)
    expected, predicted = _confident_area(evidence) / typical, predicted_area(evidence, decision)
    masked = evidence.true.sum(1) > 0
    mean = np.where(present, best, 0).sum(1) / np.maximum(present.sum(1), 1)
    reasons, notes = [], []
    for index in range(len(masked)):
        true, at_half = evidence.true[index], evidence.predicted[index, :, HALF]
        if masked[index]:
            worst = int(np.argmin(np.where(present[index], best[index], np.inf)))
            reasons.append(_reason(at_half[present[index]], mean[index]))
            shown = f"{true[worst]:,} px true, {predicted[index, worst]:,} px predicted"
            note = f"{shown}, Dice {best[index, worst]:.2f} at the best threshold"
        else:
            worst = int(np.argmax(expected[index]))
            reasons.append("predicted where empty")
            note = f"{at_half[worst]:,} px at 0.5 or more, true masks have {typical[worst]:,.0f} px (median)"
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

    The score is 1 minus the competition's metric of the image, or the metric itself, at most 1, if lower is better.
    An image whose pixels are all ignored has the score 0.

    Args:
        images: image_id, fold and use, one row per image.
        counts: confusion matrices (N, C, C) int64, whose rows are true classes.
        competition: the competition, for its metric and classes; areas are those of all classes but the first.
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
    """Returns the images with these values whose score is high enough, the highest first, without dropped images."""
    table = images[["image_id", "fold"]].reset_index(drop=True).assign(**values).round({"score": 4, measure: 4})
    if "use" in images:
        table = table[(images["use"] != "drop").to_numpy()]
    table = table[table["score"] >= LOWEST].sort_values("score", ascending=False, kind="stable", ignore_index=True)
    columns = ["image_id", "reason", "score", "fold", "true_area", "predicted_area", measure, "note"]
    return table[columns]


def _typical_areas(true: np.ndarray) -> np.ndarray:
    """Returns the median area (C,) float64 of the non-empty masks of each class; 1 if all are empty."""
    return np.array([np.median(column[column > 0]) if column.any() else 1.0 for column in true.T])


def _best_dice(evidence: Evidence) -> np.ndarray:
    """Returns the Dice (N, C) float64 at the best threshold above 0 of each image."""
    planes = (
        dice(evidence.intersection[:, index, 1:], evidence.predicted[:, index, 1:], evidence.true[:, index, None])
        for index in range(evidence.true.shape[1])
    )
    return np.stack([plane.max(1) for plane in planes], axis=1)


def _confident_area(evidence: Evidence) -> np.ndarray:
    """Returns the sum (N, C) float64 of the probabilities that are at least 0.5."""
    at_least = evidence.predicted[:, :, HALF:]
    pixels = at_least - np.pad(at_least[:, :, 1:], ((0, 0), (0, 0), (0, 1)))
    return pixels @ np.arange(HALF, LEVELS) / (LEVELS - 1)


def _reason(predicted: np.ndarray, best: float) -> str:
    """Returns why an image with a mask is a suspect, from the pixels with at least 0.5 of its classes and the best
    Dice."""
    if not predicted.any():
        return "predicted empty"
    return "predicted elsewhere" if best < 0.1 else "poor overlap"


def _confusion_in_words(counts: np.ndarray, classes: list[str]) -> str:
    wrong = counts * ~np.eye(len(classes), dtype=bool)
    true, taken = np.unravel_index(wrong.argmax(), wrong.shape)
    if not wrong.any():
        return ""
    share = wrong[true, taken] / counts[true].sum()
    return f"{classes[true]} taken for {classes[taken]}: {100 * share:.0f} % of its pixels"
