"""The threshold per image that maximises the image's expected score, from calibrated probabilities.

If a pixel's probability is calibrated, it says how often such pixels belong to the mask. The score of a predicted mask
can then be estimated: the expected intersection is the sum of the probabilities of its pixels, and the expected true
area is the sum over all pixels. Among the masks at all thresholds, the one with the best score from these expected
counts is chosen. This is RankSEG (Dai & Li, “RankSEG: A Consistent Ranking-based Framework for Segmentation”, JMLR
2023) with the reciprocal of the area replaced by that of its mean, which their paper shows to be exact for all but the
smallest masks.

Probabilities are integers up to 65535, so that their sums are exact and do not depend on the order. Therefore tune,
which uses histograms, and encode, which uses pixels, find the same threshold.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.masks.metrics import named

FINEST = 65535
"""The integer that stands for a probability of 1."""
LEVELS = 256
SMOOTH = {"iou_precision": "iou"}
"""Metrics that are step functions, and the metric that is maximised instead, because steps are not informative for
expected counts."""


@dataclass(frozen=True)
class Calibration:
    """The calibration of a network's probability p: a pixel belongs to the mask with probability σ(slope · logit p +
    intercept)."""

    slope: float = 1.0
    intercept: float = 0.0

    def table(self) -> np.ndarray:
        """Returns the calibrated probability of each of the 256 levels (256,) uint16, in units of 1/65535. The values
        never decrease, and the last one is at least 1."""
        probabilities = np.rint(FINEST / (1 + np.exp(-(self.slope * logits() + self.intercept)))).astype(np.uint16)
        probabilities[-1] = max(probabilities[-1], 1)
        return probabilities


@dataclass(frozen=True)
class Rank:
    """The rule that each image gets the threshold with the highest expected score, with the calibrations that it
    needs."""

    metric: str
    pooled: Calibration
    """The calibration of the networks of all folds together, for other networks."""
    folds: dict[str, Calibration]
    """The calibration of each fold's network, by the fold's number as a text."""

    def of(self, fold: str | None) -> Calibration:
        """Returns the calibration of a fold's network."""
        return self.pooled if fold is None else self.folds.get(fold, self.pooled)

    def mask(self, planes: Sequence[np.ndarray], folds: Sequence[str | None]) -> np.ndarray:
        """Returns an image's mask (h, w) uint8 of 0 and 1.

        The probabilities (h, w) uint8 of each network are calibrated by its fold and then averaged. The mask is empty
        if all averaged probabilities are 0.
        """
        tables = [self.of(fold).table() for fold in folds]
        values = tables[0][planes[0]]
        if len(planes) > 1:
            total = np.sum([table[plane] for table, plane in zip(tables, planes, strict=True)], axis=0, dtype=np.uint64)
            values = np.rint(total / len(planes)).astype(np.uint16)
        if not values.any():
            return np.zeros(values.shape, np.uint8)
        present, pixels = np.unique(values, return_counts=True)
        best = best_levels(self.metric, pixels[None], present.astype(np.int64))[0]
        return (values >= present[best]).view(np.uint8)


def logits() -> np.ndarray:
    """Returns the logit of each of the 256 levels (256,) float64. The lowest and highest are moved inwards by half a
    level, because their logits would be infinite."""
    p = np.clip(np.arange(LEVELS), 0.5, LEVELS - 1.5) / (LEVELS - 1)
    return np.log(p / (1 - p))


def best_levels(metric: str, pixels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns, per image, the index (n,) of the threshold with the highest expected score; the last index if all
    probabilities are 0.

    Args:
        metric: the name of a metric of pixel counts.
        pixels: number of pixels of each image with each value (n, V).
        values: probabilities (V,) in units of 1/65535, ascending. Of equal values, the first one is used.
    """
    area = _from_above(pixels)
    mass = _from_above(pixels * values)
    score = named(SMOOTH.get(metric, metric))
    expected = score.sign * score(mass / FINEST, area, mass[:, :1] / FINEST)
    expected[:, np.flatnonzero(np.diff(values) == 0) + 1] = -np.inf
    expected[area == 0] = -np.inf
    return np.where(mass[:, 0] > 0, expected.argmax(1), len(values) - 1)


def _from_above(counts: np.ndarray) -> np.ndarray:
    """Returns sums (n, V) int64 over each value and all higher ones."""
    return np.cumsum(counts[:, ::-1], axis=1, dtype=np.int64)[:, ::-1]
