"""Scores of single objects: predicted and true instances are matched by their IoU at several thresholds, or by their F1
in the pairs that are best altogether.

Instances are label maps (h, w) int32: 0 is background, every other number an instance. Instances that share pixels are
in layers (L, h, w), each a label map, and a number is in one layer only. Where a mask tells none apart, its connected
regions (touching by side or corner) are its instances.
"""

from itertools import product

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


def layers_from_texts(
    texts: list[str], shape: tuple[int, int], convention: rle.Convention = rle.INTERNAL
) -> np.ndarray:
    """Returns layers (L, h, w) int32 of instances given as run lengths, each of which keeps all of its pixels: one
    layer, where no two share any.

    Raises:
        RleError: a text is no mask of this shape.
    """
    layers = [np.zeros(shape, np.int32)]
    for number, text in enumerate(texts, 1):
        inside = rle.decode(text, shape, convention) == 1
        layer = next((one for one in layers if not one[inside].any()), None)
        if layer is None:
            layers.append(layer := np.zeros(shape, np.int32))
        layer[inside] = number
    return np.stack(layers)


def labelled(masks: np.ndarray) -> np.ndarray:
    """Returns label maps (C, h, w) int32 of masks (C, h, w) uint8, whose ignored pixels (255) become -1; what are label
    maps stay."""
    if masks.dtype != np.uint8:
        return masks
    labels = np.stack([regions_of((plane == 1).view(np.uint8)) for plane in masks])
    labels[masks == IGNORE] = -1
    return labels


def mask_of(labels: np.ndarray) -> np.ndarray:
    """Returns masks (C, h, w) uint8 of 0, 1 and 255 (ignored) of label maps (C, h, w) or layers of them (C, L, h, w);
    what are masks stay."""
    if labels.dtype == np.uint8:
        return labels
    layers = labels.reshape(len(labels), -1, *labels.shape[-2:])
    return np.where((layers < 0).any(1), IGNORE, (layers > 0).any(1)).astype(np.uint8)


def matches(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Returns, for each of the STEPS, how many instances match, are predicted only, and are true only (30, C) int64.

    Two instances match where their IoU exceeds the threshold; from 0.5 on each has one partner at most, and where
    instances share pixels, as many as possible have one. Pixels that are ignored (-1 in the truth) belong to no
    instance.

    Args:
        predicted: label maps (C, h, w) int32, or layers of them (C, L, h, w).
        true: label maps or layers, likewise.
    """
    return np.stack([_matches(*pair) for pair in zip(predicted, true, strict=True)], axis=1)


def _matches(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    both, mine, theirs = _overlaps(predicted, true)
    union = mine[:, None] + theirs - both
    near = 20 * both > union * STEPS[:, None, None]
    hits = near.sum((1, 2))
    if (near[0].sum(0) > 1).any() or (near[0].sum(1) > 1).any():  # of instances that share pixels alone
        hits = np.array([_most_pairs(one) for one in near])
    return np.concatenate([hits, both.shape[0] - hits, both.shape[1] - hits])


def _most_pairs(near: np.ndarray) -> int:
    """How many pairs there are at most in which every instance occurs once; `near` (P, T) says which may be one."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    return int((maximum_bipartite_matching(csr_array(near)) >= 0).sum())


def _overlaps(predicted: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pixels that each predicted instance shares with each true one (P, T), and those of each (P,) and (T,)."""
    predicted, true = (one.reshape(-1, *one.shape[-2:]) for one in (predicted, true))
    counted = (true >= 0).all(0)
    mine, theirs = predicted[:, counted], true[:, counted]
    shape = int(mine.max(initial=0)) + 1, int(theirs.max(initial=0)) + 1
    overlap = np.zeros(shape, np.int64)
    for first, second in product(mine, theirs):
        overlap += np.bincount(first * shape[1] + second, minlength=shape[0] * shape[1]).reshape(shape)
    # in layers a number occurs once, and is met once for each layer of the others
    areas = overlap.sum(1)[1:] // len(theirs), overlap.sum(0)[1:] // len(mine)
    objects = [area > 0 for area in areas]  # another instance may cover one, or ignored pixels
    return overlap[1:, 1:][np.ix_(*objects)], areas[0][objects[0]], areas[1][objects[1]]


def optimal_pairs(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Returns the sum of the pixel F1 (Dice) of the pairs of instances that make it largest, and the number of
    predicted or of true instances, whichever is larger (2, C) float64.

    Every instance is in one pair at most (Hungarian algorithm). Pixels that are ignored (-1 in the truth) belong to no
    instance.

    Args:
        predicted: label maps (C, h, w) int32, or layers of them (C, L, h, w).
        true: label maps or layers, likewise.
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
