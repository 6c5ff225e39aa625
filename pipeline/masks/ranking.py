"""The threshold of each image that maximises the score to expect of it, from calibrated probabilities.

Where a pixel's probability says how often such pixels belong to the mask, the score of the mask of the k most probable
pixels can be foreseen: with P of them predicted, the expected intersection is the sum of their probabilities, and the
expected true area that of all. Of the masks of every threshold the one with the best score of these expected counts is
taken. That is RankSEG (Dai & Li, “RankSEG: A Consistent Ranking-based Framework for Segmentation”, JMLR 2023) with the
reciprocal of the area taken at its mean, which their paper shows to be exact for all but the smallest masks.

Probabilities are whole numbers, up to 65535, so that their sums are exact and do not depend on their order: tune, which
sees histograms, and encode, which sees pixels, find the same threshold.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.masks.metrics import named

FINEST = 65535
"""The whole number that stands for a probability of 1."""
LEVELS = 256
SMOOTH = {"iou_precision": "iou"}
"""A metric in steps says little of expected counts: what is maximised in its place."""


@dataclass(frozen=True)
class Calibration:
    """What a network's probability p means: a pixel belongs to the mask with probability σ(slope · logit p +
    intercept)."""

    slope: float = 1.0
    intercept: float = 0.0

    def table(self) -> np.ndarray:
        """Returns the calibrated probability, of 65535, of each of the 256 levels (256,) uint16, never falling, and of
        the highest never 0."""
        found = np.rint(FINEST / (1 + np.exp(-(self.slope * logits() + self.intercept)))).astype(np.uint16)
        found[-1] = max(found[-1], 1)
        return found


@dataclass(frozen=True)
class Rank:
    """That each image's threshold maximises its expected score, and the calibrations that this takes."""

    metric: str
    pooled: Calibration
    """Of all folds' networks together: for a network that is none of them."""
    folds: dict[str, Calibration]
    """Of each fold's network, by the fold's number as a text."""

    def of(self, fold: str | None) -> Calibration:
        """Returns the calibration of a fold's network."""
        return self.pooled if fold is None else self.folds.get(fold, self.pooled)

    def mask(self, planes: Sequence[np.ndarray], folds: Sequence[str | None]) -> np.ndarray:
        """Returns an image's mask (h, w) uint8 of 0 and 1, from each network's probabilities (h, w) uint8 and the fold
        of each: calibrated, then averaged. It is empty where every pixel's probability is nothing."""
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
    """Returns the logit of each of the 256 levels (256,) float64; the lowest and highest as of half a level."""
    p = np.clip(np.arange(LEVELS), 0.5, LEVELS - 1.5) / (LEVELS - 1)
    return np.log(p / (1 - p))


def best_levels(metric: str, pixels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns the place (n,) of the lowest value of the mask that scores best in expectation; the last where no pixel
    has any probability.

    Args:
        metric: a metric of pixel counts.
        pixels: how many pixels (n, V) of each image have each value.
        values: probabilities (V,) of 65535, ascending; of equal ones the first stands for all.
    """
    area = _from_above(pixels)
    mass = _from_above(pixels * values)
    score = named(SMOOTH.get(metric, metric))
    worth = score.sign * score(mass / FINEST, area, mass[:, :1] / FINEST)
    worth[:, np.flatnonzero(np.diff(values) == 0) + 1] = -np.inf
    worth[area == 0] = -np.inf
    return np.where(mass[:, 0] > 0, worth.argmax(1), len(values) - 1)


def _from_above(counts: np.ndarray) -> np.ndarray:
    """Sums (n, V) int64 over this value and all higher ones."""
    return np.cumsum(counts[:, ::-1], axis=1, dtype=np.int64)[:, ::-1]
