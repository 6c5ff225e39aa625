"""What a score is worth: intervals, whether a difference is more than noise, and how much a choice of epoch flatters.

Every score of this project is a function of a sum over images: of their scores and weights (a mean), or of their
confusion matrices (a mean IoU). So counts (N, …), one entry an image, and a function `score` from sums (…) to scores
are all that is needed; groups of images are always drawn whole.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

Score = Callable[[np.ndarray], np.ndarray]
BLOCK = 100
"""Draws at a time: as int64 and float64 all of them would take gigabytes where there are many groups."""
BOOTSTRAPS = 2000
HALVINGS = 200
FEWEST_GROUPS = 4
"""With fewer, halving them says nothing of a choice of epoch."""
COMPARISONS = 500
"""Draws that decide whether a difference is more than noise."""


@dataclass(frozen=True)
class Gain:
    """How much better one decision is than another on the same images."""

    value: float
    standard_error: float
    confidence: float
    """Share of the bootstrap draws in which it is better, half of the ties included."""


def mean_counts(scores: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Returns counts (N, 2) of which `mean_score` is the (weighted) mean of scores (N,) or (N, C), weights alike."""
    scores = scores.reshape(len(scores), math.prod(scores.shape[1:]))
    weights = np.ones_like(scores) if weights is None else weights.reshape(scores.shape)
    return np.stack([(scores * weights).sum(1), weights.sum(1)], axis=1)


def presence_weights(true: np.ndarray, prior: float | None) -> np.ndarray:
    """Returns weights (N, C) of images with which a share `prior` of the images has each class; ones without a prior.

    Args:
        true: pixels of the true masks (N, C).
        prior: the share of the test images that have a mask. Importance weighting: within the images with and without
            a mask, the training images stand for the test images.
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
    """Returns the mean (…) of sums (…, 2) of `mean_counts`."""
    return total[..., 0] / total[..., 1]


def bootstrap(
    counts: np.ndarray, score: Score, groups: np.ndarray, draws: int = BOOTSTRAPS, seed: int = 0
) -> np.ndarray:
    """Returns scores (draws,) of resampled data: whole groups (N,) are drawn with replacement.

    Equal groups, draws and seed give equal draws, so two calls may be compared draw by draw.
    """
    total = group_sums(counts, groups)
    drawn = _drawn(len(total), draws, seed)
    blocks = (drawn[start : start + BLOCK] for start in range(0, draws, BLOCK))
    return score(np.concatenate([np.tensordot(block, total, 1) for block in blocks]))


@lru_cache(maxsize=8)
def _drawn(groups: int, draws: int, seed: int) -> np.ndarray:
    """How often each group is in each draw (draws, groups) int16: slow to draw, and wanted again and again."""
    rng, chances = np.random.default_rng(seed), np.full(groups, 1 / groups)
    blocks = (min(BLOCK, draws - start) for start in range(0, draws, BLOCK))
    return np.concatenate([rng.multinomial(groups, chances, block).astype(np.int16) for block in blocks])


def group_sums(counts: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Returns the sums (G, …) float64 of counts (N, …) over each group, by its name's order."""
    _, group = np.unique(groups.astype(str), return_inverse=True)
    total = np.zeros((group.max() + 1, *counts.shape[1:]))
    np.add.at(total, group, counts)
    return total


def interval(counts: np.ndarray, score: Score, groups: np.ndarray) -> tuple[float, float] | None:
    """Returns the 95 % bootstrap interval of the score of counts (N, …); None where all are of one group."""
    if len(np.unique(groups)) < 2:
        return None
    low, high = np.quantile(bootstrap(counts, score, groups), [0.025, 0.975])
    return float(low), float(high)


def gain(before: np.ndarray, after: np.ndarray, score: Score, groups: np.ndarray) -> Gain:
    """Returns how much better `after` is than `before`, counts (N, …) each, drawn together."""
    differences = bootstrap(after, score, groups, COMPARISONS) - bootstrap(before, score, groups, COMPARISONS)
    value = float(score(after.sum(0)) - score(before.sum(0)))
    confidence = float((differences > 1e-12).mean() + (np.abs(differences) <= 1e-12).mean() / 2)
    confidence = 0.5 if len(np.unique(groups)) < 2 else confidence  # every draw is the same
    return Gain(value, float(differences.std()), confidence)


def epoch_optimism(
    counts: np.ndarray, score: Score, groups: np.ndarray, halvings: int = HALVINGS, seed: int = 0
) -> float:
    """Returns how much too high the score of the best epoch is, chosen and scored on the same N images; at least 0.

    The groups are halved many times. How much less a half gives the epoch that is best on the other half than its own
    best one is the optimism at N/2 images. It is divided by √2: while several epochs compete, choosing among them gains
    in proportion to the noise of a score, 1/√N. Where one epoch is clearly the best, optimism falls faster with N; the
    estimate, itself small by then, is too large (measured by benchmarks/epoch_optimism.py).

    Args:
        counts: (E, N, …), the counts of `score` after every epoch.
        score: from sums (…) to scores.
        groups: (N,) names; each group is on one side. With fewer than FEWEST_GROUPS nothing can be said: 0.
        halvings: how many.
        seed: of the halvings.
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
    """Returns each share, 0 to 1, and what the mean score would be if that share of the images had an empty true mask.

    The scores (N,) of the images whose true mask is `empty` (N,) bool, and those of the others, keep their means. None
    stands where there is no image of a kind that is needed.
    """
    means = [float(scores[rows].mean()) if rows.any() else None for rows in (empty, ~empty)]
    found: list[tuple[float, float | None]] = []
    for share in shares:
        parts = [(part, mean) for part, mean in zip((share, 1 - share), means, strict=True) if part > 0]
        known = [part * mean for part, mean in parts if mean is not None]
        found.append((share, sum(known) if len(known) == len(parts) else None))
    return found
