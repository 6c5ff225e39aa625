"""Instance metrics: predicted and true instances are matched by their IoU at several thresholds, or in pairs that
maximise the sum of their F1.

Instances are given as label maps (h, w) int32: 0 is background, and each other number is an instance. Overlapping
instances are given as layers (L, h, w), each of which is a label map; a number occurs in one layer only. If a mask does
not distinguish instances, its connected regions (pixels touch by a side or corner) are the instances.
"""

from itertools import product

import cv2
import numpy as np

from pipeline.masks import rle
from pipeline.masks.geometry import IGNORE

STEPS = np.arange(10, 20)
"""The IoU thresholds 0.50, 0.55, …, 0.95, in twentieths."""
COUNTS = 3 * len(STEPS)


def regions_of(mask: np.ndarray) -> np.ndarray:
    """Returns the connected regions of a mask (h, w) uint8 of 0 and 1 as a label map (h, w) int32."""
    return cv2.connectedComponents(mask, connectivity=8)[1]


def from_texts(texts: list[str], shape: tuple[int, int], convention: rle.Convention = rle.INTERNAL) -> np.ndarray:
    """Returns a label map (h, w) int32 of instances given as run lengths. Pixels of several instances get the number of
    the last one.

    Raises:
        RleError: a text is not a mask of this shape.
    """
    labels = np.zeros(shape, np.int32)
    for number, text in enumerate(texts, 1):
        labels[rle.decode(text, shape, convention) == 1] = number
    return labels


def layers_from_texts(
    texts: list[str], shape: tuple[int, int], convention: rle.Convention = rle.INTERNAL
) -> np.ndarray:
    """Returns layers (L, h, w) int32 of instances given as run lengths, each of which keeps all of its pixels. There is
    only one layer if no two instances overlap.

    Raises:
        RleError: a text is not a mask of this shape.
    """
    layers = [np.zeros(shape, np.int32)]
    for number, text in enumerate(texts, 1):
        inside = rle.decode(text, shape, convention) == 1
        layer = next((candidate for candidate in layers if not candidate[inside].any()), None)
        if layer is None:
            layers.append(layer := np.zeros(shape, np.int32))
        layer[inside] = number
    return np.stack(layers)


def labelled(masks: np.ndarray) -> np.ndarray:
    """Returns label maps (C, h, w) int32 of the connected regions of masks (C, h, w) uint8. Ignored pixels (255) become
    -1. Label maps are returned unchanged."""
    if masks.dtype != np.uint8:
        return masks
    labels = np.stack([regions_of((plane == 1).view(np.uint8)) for plane in masks])
    labels[masks == IGNORE] = -1
    return labels


def mask_of(labels: np.ndarray) -> np.ndarray:
    """Returns masks (C, h, w) uint8 of 0, 1 and 255 (ignored) of label maps (C, h, w) or layers of them (C, L, h, w).
    Masks are returned unchanged."""
    if labels.dtype == np.uint8:
        return labels
    layers = labels.reshape(len(labels), -1, *labels.shape[-2:])
    return np.where((layers < 0).any(1), IGNORE, (layers > 0).any(1)).astype(np.uint8)


def matches(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Returns, for each threshold in STEPS, the numbers of matched instances, of predicted instances without a match,
    and of true instances without a match (30, C) int64.

    Two instances match if their IoU exceeds the threshold. From 0.5 on, each instance has at most one possible partner,
    unless instances overlap; then the largest possible number of pairs is counted. Ignored pixels (-1 in the truth)
    belong to no instance.

    Args:
        predicted: label maps (C, h, w) int32, or layers of them (C, L, h, w).
        true: label maps or layers in the same format.
    """
    return np.stack([_matches(*pair) for pair in zip(predicted, true, strict=True)], axis=1)


def _matches(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    shared, predicted_areas, true_areas = _overlaps(predicted, true)
    union = predicted_areas[:, None] + true_areas - shared
    near = 20 * shared > union * STEPS[:, None, None]
    hits = near.sum((1, 2))
    if (near[0].sum(0) > 1).any() or (near[0].sum(1) > 1).any():  # only possible if instances overlap
        hits = np.array([_most_pairs(possible) for possible in near])
    return np.concatenate([hits, shared.shape[0] - hits, shared.shape[1] - hits])


def _most_pairs(near: np.ndarray) -> int:
    """Returns the largest number of pairs in which each instance occurs at most once; `near` (P, T) holds the possible
    pairs."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    return int((maximum_bipartite_matching(csr_array(near)) >= 0).sum())


def _overlaps(predicted: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the number of pixels that each predicted instance shares with each true one (P, T), and the areas of the
    predicted (P,) and true (T,) instances."""
    predicted, true = (labels.reshape(-1, *labels.shape[-2:]) for labels in (predicted, true))
    counted = (true >= 0).all(0)
    predicted_pixels, true_pixels = predicted[:, counted], true[:, counted]
    shape = int(predicted_pixels.max(initial=0)) + 1, int(true_pixels.max(initial=0)) + 1
    overlap = np.zeros(shape, np.int64)
    for first, second in product(predicted_pixels, true_pixels):
        overlap += np.bincount(first * shape[1] + second, minlength=shape[0] * shape[1]).reshape(shape)
    # a number occurs in one layer, and is counted once per layer of the other array
    areas = overlap.sum(1)[1:] // len(true_pixels), overlap.sum(0)[1:] // len(predicted_pixels)
    objects = [area > 0 for area in areas]  # an instance may be covered by another one, or by ignored pixels
    return overlap[1:, 1:][np.ix_(*objects)], areas[0][objects[0]], areas[1][objects[1]]


def optimal_pairs(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Returns the sum of the F1 (Dice) over the pairs of instances that maximise it, and the larger of the numbers of
    predicted and of true instances (2, C) float64.

    Each instance is in at most one pair (Hungarian algorithm). Ignored pixels (-1 in the truth) belong to no instance.

    Args:
        predicted: label maps (C, h, w) int32, or layers of them (C, L, h, w).
        true: label maps or layers in the same format.
    """
    return np.stack([_optimal_pairs(*pair) for pair in zip(predicted, true, strict=True)], axis=1)


def _optimal_pairs(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    from scipy.optimize import linear_sum_assignment  # takes 0.1 s to import, and only one metric needs it

    shared, predicted_areas, true_areas = _overlaps(predicted, true)
    f1 = 2 * shared / (predicted_areas[:, None] + true_areas)
    return np.array([f1[linear_sum_assignment(f1, maximize=True)].sum(), max(shared.shape)])


def instance_f1(paired: np.ndarray, instances: np.ndarray) -> np.ndarray:
    """Returns the summed F1 of the best pairs, divided by the larger of the numbers of predicted and of true instances;
    1 if there are no instances. This is the oF1 of Recod.ai/LUC Scientific Image Forgery Detection.

    An image without true instances scores 1 if none is predicted, otherwise 0. In other images, missed and superfluous
    instances count as 0 in the mean.
    """
    return np.where(instances == 0, 1.0, paired / np.where(instances == 0, 1.0, instances))


def instance_precision(*counts: np.ndarray) -> np.ndarray:
    """Returns matches / (matches + predicted only + true only), averaged over the IoU thresholds 0.50, 0.55, …, 0.95; 1
    if there are no instances. This is the metric of Data Science Bowl 2018 and Sartorius Cell Instance Segmentation.

    Args:
        counts: 30 arrays; see matches.
    """
    return instance_f_beta(*counts, beta=None)


def instance_f_beta(*counts: np.ndarray, beta: float | None = 1.0) -> np.ndarray:
    """Returns (1 + β²)·matches / ((1 + β²)·matches + β²·true only + predicted only), averaged over the thresholds.

    The score is 1 if there are no instances. β = 2 gives the metric of Airbus Ship Detection. With None, all three
    counts have the same weight.

    Args:
        counts: 30 arrays; see matches.
        beta: weight of recall relative to precision.
    """
    matched, predicted_only, true_only = np.split(np.asarray(counts, np.float64), 3)
    hit, missed = (1.0, 1.0) if beta is None else (1 + beta**2, beta**2)
    total = hit * matched + missed * true_only + predicted_only
    return np.where(total == 0, 1.0, hit * matched / np.where(total == 0, 1.0, total)).mean(0)
