"""Scores of single objects: predicted and true instances are matched by their IoU at several thresholds, or by their F1
in the pairs that are best altogether.

Instances are label maps (h, w) int32: 0 is background, every other number an instance. Where a mask tells none apart,
its connected regions (touching by side or corner) are its instances.
"""

import cv2
import numpy as np

from pipeline.masks import rle
from pipeline.masks.geometry import IGNORE

STEPS = np.arange(10, 20)
"""The thresholds 0.50, 0.55, …, 0.95 of the IoU, in twentieths."""
COUNTS = 3 * len(STEPS)


def regions_of(mask: np.ndarray) -> np.ndarray:
    """Returns the connected regions of a mask (h, w) uint8 of 0 and 1 as a label map (h, w) int32."""
    return cv2.connectedComponents(mask, connectivity=8)[1]


def from_texts(texts: list[str], shape: tuple[int, int], convention: rle.Convention = rle.INTERNAL) -> np.ndarray:
    """Returns a label map (h, w) int32 of instances given as run lengths; of two that overlap, the later one has the
    pixels that they share.

    Raises:
        RleError: a text is no mask of this shape.
    """
    labels = np.zeros(shape, np.int32)
    for number, text in enumerate(texts, 1):
        labels[rle.decode(text, shape, convention) == 1] = number
    return labels


def labelled(masks: np.ndarray) -> np.ndarray:
    """Returns label maps (C, h, w) int32 of masks (C, h, w) uint8, whose ignored pixels (255) become -1; what are label
    maps stay."""
    if masks.dtype != np.uint8:
        return masks
    labels = np.stack([regions_of((plane == 1).view(np.uint8)) for plane in masks])
    labels[masks == IGNORE] = -1
    return labels


def matches(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Returns, for each of the STEPS, how many instances match, are predicted only, and are true only (30, C) int64.

    Two instances match where their IoU exceeds the threshold; from 0.5 on each has one partner at most. Pixels that
    are ignored (-1 in the truth) belong to no instance.

    Args:
        predicted: label maps (C, h, w) int32.
        true: label maps (C, h, w) int32.
    """
    return np.stack([_matches(*pair) for pair in zip(predicted, true, strict=True)], axis=1)


def _matches(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    both, mine, theirs = _overlaps(predicted, true)
    union = mine[:, None] + theirs - both
    hits = (20 * both > union * STEPS[:, None, None]).sum((1, 2))
    return np.concatenate([hits, both.shape[0] - hits, both.shape[1] - hits])


def _overlaps(predicted: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pixels that each predicted instance shares with each true one (P, T), and those of each (P,) and (T,)."""
    counted = true >= 0
    mine, theirs = predicted[counted], true[counted]
    shape = int(mine.max(initial=0)) + 1, int(theirs.max(initial=0)) + 1
    overlap = np.bincount(mine * shape[1] + theirs, minlength=shape[0] * shape[1]).reshape(shape)
    areas = overlap.sum(1)[1:], overlap.sum(0)[1:]
    objects = [area > 0 for area in areas]  # another instance may cover one, or ignored pixels
    return overlap[1:, 1:][np.ix_(*objects)], areas[0][objects[0]], areas[1][objects[1]]


def optimal_pairs(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Returns the sum of the pixel F1 (Dice) of the pairs of instances that make it largest, and the number of
    predicted or of true instances, whichever is larger (2, C) float64.

    Every instance is in one pair at most (Hungarian algorithm). Pixels that are ignored (-1 in the truth) belong to no
    instance.

    Args:
        predicted: label maps (C, h, w) int32.
        true: label maps (C, h, w) int32.
    """
    return np.stack([_optimal_pairs(*pair) for pair in zip(predicted, true, strict=True)], axis=1)


def _optimal_pairs(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    from scipy.optimize import linear_sum_assignment  # a tenth of a second to import, for one metric

    both, mine, theirs = _overlaps(predicted, true)
    f1 = 2 * both / (mine[:, None] + theirs)
    return np.array([f1[linear_sum_assignment(f1, maximize=True)].sum(), max(both.shape)])


def instance_f1(paired: np.ndarray, instances: np.ndarray) -> np.ndarray:
    """Returns the F1 of the best pairs, summed, by the number of predicted or true instances, whichever is larger; 1
    where there is no instance: the oF1 of Recod.ai/LUC Scientific Image Forgery Detection.

    So an image without instances scores 1 where none is predicted, else 0; elsewhere missed instances and instances too
    many count 0 in the mean.
    """
    return np.where(instances == 0, 1.0, paired / np.where(instances == 0, 1.0, instances))


def instance_precision(*counts: np.ndarray) -> np.ndarray:
    """Returns matches / (matches + predicted only + true only), the mean over the thresholds 0.50, 0.55, …, 0.95 of the
    IoU, and 1 where there is no instance: Data Science Bowl 2018, Sartorius Cell Instance Segmentation.

    Args:
        counts: 30 arrays, see matches.
    """
    return instance_f_beta(*counts, beta=None)


def instance_f_beta(*counts: np.ndarray, beta: float | None = 1.0) -> np.ndarray:
    """Returns (1 + β²)·matches / ((1 + β²)·matches + β²·true only + predicted only), the mean over the thresholds.

    It is 1 where there is no instance. With β = 2 it is the metric of Airbus Ship Detection; without β all three counts
    weigh the same.

    Args:
        counts: 30 arrays, see matches.
        beta: how much finding every instance weighs against predicting no other.
    """
    both, mine, theirs = np.split(np.asarray(counts, np.float64), 3)
    hit, missed = (1.0, 1.0) if beta is None else (1 + beta**2, beta**2)
    total = hit * both + missed * theirs + mine
    return np.where(total == 0, 1.0, hit * both / np.where(total == 0, 1.0, total)).mean(0)
