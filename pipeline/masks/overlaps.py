"""Pixel counts, and the metrics that are computed from them.

Most metrics need three counts per image and class: pixels in both masks, predicted pixels and true pixels. Ignored
pixels are in none of them. Counts can have any shape, and scores have the same shape, so that one call scores an image,
a data set, or a data set at every threshold. The mean IoU over classes needs a confusion matrix.
"""

from typing import Literal

import numpy as np

from pipeline.masks.geometry import IGNORE

IgnoredPrediction = Literal["leave_out", "zero"]


def dice(intersection: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Returns 2·|A∩B| / (|A| + |B|); 1 if both masks are empty, as in Ultrasound Nerve Segmentation."""
    total = np.add(predicted, true, dtype=np.float64)
    return np.where(total == 0, 1.0, 2.0 * intersection / np.maximum(total, 1))


def iou_precision(intersection: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Returns the share of the thresholds 0.50, 0.55, …, 0.95 that the IoU exceeds; 1 if both masks are empty.

    This is the metric of TGS Salt Identification, with one mask per image. Products of integers are compared, which
    float64 holds exactly, so that rounding has no effect.
    """
    union = np.add(predicted, true, dtype=np.float64) - intersection
    hits = sum((20 * np.asarray(intersection, np.float64) > union * step).astype(np.int64) for step in range(10, 20))
    return np.where(union == 0, 1.0, np.asarray(hits) / 10.0)


def iou(intersection: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Returns |A∩B| / |A∪B|; 1 if both masks are empty."""
    union = np.add(predicted, true, dtype=np.float64) - intersection
    return np.where(union == 0, 1.0, intersection / np.maximum(union, 1))


def f_beta(intersection: np.ndarray, predicted: np.ndarray, true: np.ndarray, beta: float = 1.0) -> np.ndarray:
    """Returns (1 + β²)·|A∩B| / (|A| + β²·|B|), where A is the predicted and B the true mask; 1 if both are empty.

    With β below 1, precision has more weight than recall, as in the F0.5 of the Vesuvius Challenge.
    """
    total = np.asarray(predicted, np.float64) + beta**2 * np.asarray(true, np.float64)
    return np.where(total == 0, 1.0, (1 + beta**2) * intersection / np.where(total == 0, 1.0, total))


def counts(predicted: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns intersection, predicted and true pixel counts, each (C,) int64, of masks (C, h, w).

    `predicted` holds 0 and 1; `true` holds 0, 1 and 255 (ignored).
    """
    valid, positive = true != IGNORE, predicted.astype(bool)
    axes = (1, 2)
    return (positive & (true == 1)).sum(axes), (positive & valid).sum(axes), (true == 1).sum(axes)


def confusion(predicted: np.ndarray, true: np.ndarray, classes: int) -> np.ndarray:
    """Returns pixel counts (classes, classes) int64: rows are true classes, columns predicted ones.

    Both class maps are uint8 and have the same shape, which can be any. Pixels whose true class is 255 are left out.

    Raises:
        ValueError: a map holds a class number of `classes` or more.
    """
    ignored = true == IGNORE
    largest = max(predicted.max(initial=0), true.max(initial=0, where=~ignored))
    if largest >= classes:
        raise ValueError(f"a class map holds class {largest}; expected 0 to {classes - 1}")
    # ignored pixels are counted in an additional row that is dropped below, which is faster than selecting the others
    rows = np.where(ignored, np.uint8(classes), true)
    pairs = np.multiply(rows, classes, dtype=np.uint16) + predicted
    counts = np.bincount(pairs.ravel(), minlength=(classes + 1) * classes)
    return counts.reshape(classes + 1, classes)[:classes].astype(np.int64)


def class_iou(confusion: np.ndarray, ignore_class: int | None = None) -> np.ndarray:
    """Returns the IoU of each class (…, C) float64 over all pixels of confusion matrices (…, C, C).

    Pixels whose true class is `ignore_class` are left out. For all other pixels, predicting it is an error of the true
    class. The IoU is NaN for classes that are neither true nor predicted, and for `ignore_class` itself.
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
    """Returns the mean IoU (…) float64 over the classes that are true or predicted; 0 if there are none.

    Args:
        confusion: pixel counts (…, C, C); rows are true classes.
        ignore_class: the class whose true pixels are left out.
        ignored_prediction: how predictions of `ignore_class` for the remaining pixels count. `leave_out`: as an error
            of the true class, as in MulticlassJaccardIndex(ignore_index) of torchmetrics. `zero`: in addition,
            `ignore_class` enters the mean with an IoU of 0 if it is predicted for at least one pixel, as in
            MeanIoU(ignore_class=0) of Keras, the metric of the Mars terrain homework (Politecnico di Milano, 2024).
    """
    scores = class_iou(confusion, ignore_class)
    if ignore_class is not None and ignored_prediction == "zero":
        predicted = without_ignored(confusion, ignore_class)[..., ignore_class].sum(-1) > 0
        scores[..., ignore_class] = np.where(predicted, 0.0, np.nan)
    occurs = ~np.isnan(scores)
    return np.where(occurs, scores, 0.0).sum(-1) / np.maximum(occurs.sum(-1), 1)


def without_ignored(confusion: np.ndarray, ignore_class: int | None) -> np.ndarray:
    """Returns confusion matrices (…, C, C) float64 without the pixels whose true class is `ignore_class`."""
    counted = confusion.astype(np.float64)
    if ignore_class is not None:
        counted[..., ignore_class, :] = 0
    return counted
