"""The competitions' scores, computed from pixel counts.

Every metric here needs three counts of an image and class: pixels in both masks, pixels predicted, pixels true.
Ignored pixels are in none of them. Counts of any leading shape go in, scores of that shape come out, so one call scores
an image, a data set, or a data set under every threshold.
"""

from collections.abc import Callable

import numpy as np

from pipeline.geometry import IGNORE

Metric = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def dice(intersection: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Returns 2·|A∩B| / (|A| + |B|), and 1 where both masks are empty (Ultrasound Nerve Segmentation's rule)."""
    total = np.add(predicted, true, dtype=np.float64)
    return np.where(total == 0, 1.0, 2.0 * intersection / np.maximum(total, 1))


def iou_precision(intersection: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Returns the share of the thresholds 0.50, 0.55, …, 0.95 that the IoU exceeds; 1 where both masks are empty.

    The metric of TGS Salt Identification, one mask an image. Whole numbers are compared, so no rounding decides.
    """
    union = np.add(predicted, true, dtype=np.int64) - intersection
    hits = sum((20 * np.asarray(intersection, np.int64) > union * step).astype(np.int64) for step in range(10, 20))
    return np.where(union == 0, 1.0, np.asarray(hits) / 10.0)


METRICS: dict[str, Metric] = {"dice": dice, "iou_precision": iou_precision}


def counts(predicted: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns intersection, predicted and true pixel counts, each (C,) int64, of masks (C, h, w).

    `predicted` is 0/1; `true` is 0/1, or 255 where a pixel is ignored.
    """
    valid, positive = true != IGNORE, predicted.astype(bool)
    axes = (1, 2)
    return (positive & (true == 1)).sum(axes), (positive & valid).sum(axes), (true == 1).sum(axes)
