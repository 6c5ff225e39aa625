"""Uncertainty of scores: bootstrap intervals, paired differences, and the optimism from choosing the best epoch.

Each score of this project is a function of a sum over images, either of their scores and weights (for a mean) or of
their confusion matrices (for a mean IoU). The functions here therefore take counts (N, …), one entry per image, and a
function `score` from sums (…) to scores. Bootstrap samples always contain whole groups of images.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

Score = Callable[[np.ndarray], np.ndarray]
BLOCK = 100
"""Number of bootstrap samples that are drawn at a time. With many groups, all of them together would take gigabytes."""
BOOTSTRAPS = 2000
HALVINGS = 200
FEWEST_GROUPS = 4
"""Minimum number of groups for an estimate of the optimism from choosing the best epoch."""
COMPARISONS = 500
"""Number of bootstrap samples for a paired difference."""


@dataclass(frozen=True)
class Gain:
    """The paired difference between the scores of two decisions on the same images."""

    value: float
    standard_error: float
    confidence: float
    """Share of the bootstrap samples in which the decision is better. Ties count half."""


def mean_counts(scores: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Returns counts (N, 2) for `mean_score`, which gives the (weighted) mean of scores (N,) or (N, C). Weights have
    the shape of the scores."""
    scores = scores.reshape(len(scores), math.prod(scores.shape[1:]))
    weights = np.ones_like(scores) if weights is None else weights.reshape(scores.shape)
    return np.stack([(scores * weights).sum(1), weights.sum(1)], axis=1)


def presence_weights(true: np.ndarray, prior: float | None) -> np.ndarray:
    """Returns weights (N, C) of images and classes, under which a share `prior` of the images has each class; ones if
    `prior` is None.

    Args:
        true: number of pixels of the true masks (N, C).
        prior: the share of test images that have a non-empty mask. This is importance weighting: among images with a
            mask, and among images without one, the training images represent the test images.
    """
    weights = np.ones(true.shape)
    if prior is None:
        return weights
    for column, present in zip(weights.T, (true > 0).T, strict=True):
        share = present.mean()
        if 0 < share < 1:
            column[:] = np.where(present, prior / share, (1 - prior) / (1 - share))
    return weights


def mean_score(total: np.ndarray) -> np.ndarray:
    """Returns the mean (…) for sums (…, 2) of `mean_counts`."""
    return total[..., 0] / total[..., 1]


def bootstrap(
    counts: np.ndarray, score: Score, groups: np.ndarray, draws: int = BOOTSTRAPS, seed: int = 0
) -> np.ndarray:
    """Returns the scores (draws,) of bootstrap samples, in which whole groups are drawn with replacement; `groups` (N,)
    names the group of each image.

    The same groups, draws and seed give the same samples, so that the results of two calls can be compared sample by
    sample.
    """
    total = group_sums(counts, groups)
    drawn = _drawn(len(total), draws, seed)
    blocks = (drawn[start : start + BLOCK] for start in range(0, draws, BLOCK))
    return score(np.concatenate([np.tensordot(block, total, 1) for block in blocks]))


@lru_cache(maxsize=8)
def _drawn(groups: int, draws: int, seed: int) -> np.ndarray:
    """Returns how often each group occurs in each sample (draws, groups) int16. The result is cached, because drawing
    is slow and often repeated."""
    rng, chances = np.random.default_rng(seed), np.full(groups, 1 / groups)
    blocks = (min(BLOCK, draws - start) for start in range(0, draws, BLOCK))
    return np.concatenate([rng.multinomial(groups, chances, block).astype(np.int16) for block in blocks])


def group_sums(counts: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Returns the sums (G, …) float64 of counts (N, …) over each group, in the order of the groups' names."""
    _, group = np.unique(groups.astype(str), return_inverse=True)
    total = np.zeros((group.max() + 1, *counts.shape[1:]))
    np.add.at(total, group, counts)
    return total


def interval(counts: np.ndarray, score: Score, groups: np.ndarray) -> tuple[float, float] | None:
    """Returns the 95 % bootstrap interval of the score of counts (N, …); None if there is only one group."""
    if len(np.unique(groups)) < 2:
        return None
    low, high = np.quantile(bootstrap(counts, score, groups), [0.025, 0.975])
    return float(low), float(high)


def gain(before: np.ndarray, after: np.ndarray, score: Score, groups: np.ndarray) -> Gain:
    """Returns how much better `after` is than `before`, both counts (N, …), on the same bootstrap samples."""
    differences = bootstrap(after, score, groups, COMPARISONS) - bootstrap(before, score, groups, COMPARISONS)
    value = float(score(after.sum(0)) - score(before.sum(0)))
    confidence = float((differences > 1e-12).mean() + (np.abs(differences) <= 1e-12).mean() / 2)
    confidence = 0.5 if len(np.unique(groups)) < 2 else confidence  # all samples are the same
    return Gain(value, float(differences.std()), confidence)


def epoch_optimism(
    counts: np.ndarray, score: Score, groups: np.ndarray, halvings: int = HALVINGS, seed: int = 0
) -> float:
    """Returns by how much the score of the best epoch is too high because it was chosen and scored on the same N
    images; at least 0.

    The groups are split into halves many times. On each half, the score of the epoch that is best on the other half is
    subtracted from the score of its own best epoch. The mean of these differences is the optimism at N/2 images. It is
    divided by √2, because the gain of choosing among similar epochs is proportional to the noise of a score, 1/√N. If
    one epoch is clearly the best, the optimism falls faster with N, and the estimate, which is small then, is too large
    (measured by benchmarks/epoch_optimism.py).

    Args:
        counts: the counts for `score` after each epoch (E, N, …).
        score: the function from sums (…) to scores.
        groups: names of the groups (N,), which are not divided between halves. With fewer than FEWEST_GROUPS the result
            is 0.
        halvings: number of random splits into halves.
        seed: random seed of the splits.
    """
    total = group_sums(counts.swapaxes(0, 1), groups)
    if len(counts) < 2 or len(total) < FEWEST_GROUPS:
        return 0.0
    side = np.random.default_rng(seed).random((halvings, len(total))).argsort(axis=1) < len(total) // 2
    half, other = score(np.tensordot(side, total, 1)), score(np.tensordot(~side, total, 1))
    lost = [
        chosen.max(axis=1) - np.take_along_axis(chosen, best.argmax(axis=1, keepdims=True), axis=1)[:, 0]
        for chosen, best in ((half, other), (other, half))
    ]
    return float(np.mean(lost)) / 2**0.5


def shares_of_empty(scores: np.ndarray, empty: np.ndarray, shares: Sequence[float]) -> list[tuple[float, float | None]]:
    """Returns, for each share from 0 to 1, the share and the mean score if that share of the images had an empty true
    mask.

    The mean of the scores (N,) is taken separately over images whose true mask is `empty` (N,) bool and over all
    others. A mean score is None if there is no image of a kind that it needs.
    """
    means = [float(scores[rows].mean()) if rows.any() else None for rows in (empty, ~empty)]
    results: list[tuple[float, float | None]] = []
    for share in shares:
        parts = [(part, mean) for part, mean in zip((share, 1 - share), means, strict=True) if part > 0]
        known = [part * mean for part, mean in parts if mean is not None]
        results.append((share, sum(known) if len(known) == len(parts) else None))
    return results
