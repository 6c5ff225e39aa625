"""Counts of pixels and the scores of such counts.

Most metrics need three counts of an image and class: pixels in both masks, pixels predicted, pixels true. Ignored
pixels are in none of them. Counts of any leading shape go in, scores of that shape come out, so one call scores an
image, a data set, or a data set under every threshold. The mean IoU over classes needs a confusion matrix.
"""

from typing import Literal

import numpy as np

from pipeline.masks.geometry import IGNORE

IgnoredPrediction = Literal["leave_out", "zero"]


def dice(intersection: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Returns 2·|A∩B| / (|A| + |B|), and 1 where both masks are empty (Ultrasound Nerve Segmentation's rule)."""
    total = np.add(predicted, true, dtype=np.float64)
    return np.where(total == 0, 1.0, 2.0 * intersection / np.maximum(total, 1))


def iou_precision(intersection: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Returns the share of the thresholds 0.50, 0.55, …, 0.95 that the IoU exceeds; 1 where both masks are empty.

    The metric of TGS Salt Identification, one mask an image. Products of whole numbers are compared, which float64
    holds exactly, so no rounding decides.
    """
    union = np.add(predicted, true, dtype=np.float64) - intersection
    hits = sum((20 * np.asarray(intersection, np.float64) > union * step).astype(np.int64) for step in range(10, 20))
    return np.where(union == 0, 1.0, np.asarray(hits) / 10.0)


def iou(intersection: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Returns |A∩B| / |A∪B|, and 1 where both masks are empty."""
    union = np.add(predicted, true, dtype=np.float64) - intersection
    return np.where(union == 0, 1.0, intersection / np.maximum(union, 1))


def f_beta(intersection: np.ndarray, predicted: np.ndarray, true: np.ndarray, beta: float = 1.0) -> np.ndarray:
    """Returns (1 + β²)·|A∩B| / (|A| + β²·|B|), A being the predicted and B the true mask, and 1 where both are empty.

    With β below 1 precision counts more than recall: Vesuvius Challenge's F0.5.
    """
    total = np.asarray(predicted, np.float64) + beta**2 * np.asarray(true, np.float64)
    return np.where(total == 0, 1.0, (1 + beta**2) * intersection / np.where(total == 0, 1.0, total))


def counts(predicted: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns intersection, predicted and true pixel counts, each (C,) int64, of masks (C, h, w).

    `predicted` is 0/1; `true` is 0/1, or 255 where a pixel is ignored.
    """
    valid, positive = true != IGNORE, predicted.astype(bool)
    axes = (1, 2)
    return (positive & (true == 1)).sum(axes), (positive & valid).sum(axes), (true == 1).sum(axes)


def confusion(predicted: np.ndarray, true: np.ndarray, classes: int) -> np.ndarray:
    """Returns pixel counts (classes, classes) int64: rows are true classes, columns predicted ones.

    Both class maps are uint8 of the same shape, any shape; pixels whose truth is 255 are left out.

    Raises:
        ValueError: a map holds a class that is not below `classes`.
    """
    ignored = true == IGNORE
    largest = max(predicted.max(initial=0), true.max(initial=0, where=~ignored))
    if largest >= classes:
        raise ValueError(f"a class map holds class {largest}; expected 0 to {classes - 1}")
    # ignored pixels fill a row of their own, dropped below: cheaper than selecting the others
    rows = np.where(ignored, np.uint8(classes), true)
    pairs = np.multiply(rows, classes, dtype=np.uint16) + predicted
    found = np.bincount(pairs.ravel(), minlength=(classes + 1) * classes)
    return found.reshape(classes + 1, classes)[:classes].astype(np.int64)


def class_iou(confusion: np.ndarray, ignore_class: int | None = None) -> np.ndarray:
    """Returns the IoU of every class (…, C) float64 over all pixels of confusion matrices (…, C, C).

    Pixels whose truth is `ignore_class` are left out; elsewhere, a prediction of it is a miss of the true class. NaN
    where a class is neither true nor predicted, and for `ignore_class` itself.
    """
    counted = without_ignored(confusion, ignore_class)
    intersection = np.diagonal(counted, axis1=-2, axis2=-1)
    union = counted.sum(-1) + counted.sum(-2) - intersection
    scores = np.divide(intersection, union, out=np.full(union.shape, np.nan), where=union > 0)
    if ignore_class is not None:
        scores[..., ignore_class] = np.nan
    return scores


def mean_iou(
    confusion: np.ndarray, ignore_class: int | None = None, ignored_prediction: IgnoredPrediction = "leave_out"
) -> np.ndarray:
    """Returns the mean IoU (…) float64 over the classes that are true or predicted, and 0 where there are none.

    Args:
        confusion: pixel counts (…, C, C), rows are true classes.
        ignore_class: the class whose true pixels are left out.
        ignored_prediction: what a prediction of `ignore_class` on the remaining pixels costs. `leave_out`: a miss of
            the true class, as in torchmetrics' MulticlassJaccardIndex(ignore_index). `zero`: also, `ignore_class` joins
            the mean with an IoU of 0 as soon as one pixel is predicted as it, as in Keras' MeanIoU(ignore_class=0),
            the metric of the Mars terrain homework (Politecnico di Milano, 2024).
    """
    scores = class_iou(confusion, ignore_class)
    if ignore_class is not None and ignored_prediction == "zero":
        found = without_ignored(confusion, ignore_class)[..., ignore_class].sum(-1) > 0
        scores[..., ignore_class] = np.where(found, 0.0, np.nan)
    occurs = ~np.isnan(scores)
    return np.where(occurs, scores, 0.0).sum(-1) / np.maximum(occurs.sum(-1), 1)


def without_ignored(confusion: np.ndarray, ignore_class: int | None) -> np.ndarray:
    """Returns confusion matrices (…, C, C) float64 without the pixels whose truth is `ignore_class`."""
    counted = confusion.astype(np.float64)
    if ignore_class is not None:
        counted[..., ignore_class, :] = 0
    return counted
