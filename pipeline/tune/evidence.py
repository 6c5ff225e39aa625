"""Reduces out-of-fold images to pixel counts at all 256 thresholds, and scores decisions on these counts.

Every image is reduced to two histograms over the 256 levels of probability: of all its pixels, and of the pixels of its
true mask. Their cumulative sums give the exact metric at every threshold, so no search reads a pixel again. Regions
depend on the pixels themselves; they are counted at a few thresholds (masks/regions.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numpy as np
import pandas as pd

from pipeline.masks.decision import LEVELS, Rule, Rules, mask_features
from pipeline.masks.geometry import IGNORE
from pipeline.masks.metrics import named
from pipeline.masks.ranking import Rank, best_levels
from pipeline.masks.regions import SHORTLIST, RegionRule


@dataclass(frozen=True)
class Regions:
    """Pixel counts of masks cleaned by each of the V rules in SHORTLIST, at a few thresholds."""

    thresholds: tuple[tuple[int, ...], ...]
    """One list per class, ascending, all with the same length T."""
    predicted: np.ndarray
    """Predicted pixels that are not ignored (N, C, T, V) int32."""
    intersection: np.ndarray
    """Predicted pixels inside the true mask (N, C, T, V) int32."""


@dataclass(frozen=True)
class Evidence:
    """Out-of-fold images, reduced to pixel counts at every threshold."""

    images: pd.DataFrame
    """Columns image_id, fold, group and use, with one row per image."""
    area: np.ndarray
    """Pixels with probability >= t, including ignored ones, for comparison with minimum areas (N, C, 256) int32."""
    predicted: np.ndarray
    """The same without ignored pixels (N, C, 256) int32."""
    intersection: np.ndarray
    """Pixels with probability >= t inside the true mask (N, C, 256) int32."""
    true: np.ndarray
    """Pixels of the true mask (N, C) int64."""
    presence: np.ndarray | None = None
    """The output of the presence head (N, C), from 0 to 1."""
    regions: Regions | None = None
    """Counts of regions, once they were made."""

    def only(self, rows: np.ndarray) -> "Evidence":
        """Returns the evidence of the images at `rows`, given as positions or as (N,) bool."""
        counts = (self.area[rows], self.predicted[rows], self.intersection[rows], self.true[rows])
        regions, presence = self.regions, self.presence
        if regions is not None:
            regions = replace(regions, predicted=regions.predicted[rows], intersection=regions.intersection[rows])
        return Evidence(self.images[rows] if rows.dtype == bool else self.images.iloc[rows], *counts,
                        None if presence is None else presence[rows], regions)  # fmt: skip

    @property
    def heads(self) -> np.ndarray:
        """The output of the presence head (N, C), or 0.5 if there is none."""
        return np.full(self.true.shape, 0.5) if self.presence is None else self.presence

    @cached_property
    def highest(self) -> np.ndarray:
        """The highest probability of each image (N, C), 0 to 255."""
        return (self.area > 0).sum(-1) - 1


# --- effects of a decision -------------------------------------------------------------------------------------------


def image_counts(evidence: Evidence, decision: Rules) -> np.ndarray:
    """Returns the pixel counts (N, 3, C) int64 of the decision's masks: intersection, predicted and true pixels."""
    counts = []
    for index, rule in enumerate(decision.rules):
        keep = keeps(evidence, index, rule)
        predicted, intersection = _drawn(evidence, index, rule)
        counts.append(np.stack([intersection * keep, predicted * keep, evidence.true[:, index]], axis=1))
    return np.stack(counts, axis=2).astype(np.int64)


def image_scores(evidence: Evidence, decision: Rules, metric: str) -> np.ndarray:
    """Returns the metric of every single image and class (N, C) under a decision."""
    return named(metric).by_class(image_counts(evidence, decision))


def predicted_area(evidence: Evidence, decision: Rules) -> np.ndarray:
    """Returns the pixels (N, C) int64 of the decision's masks, without ignored ones."""
    areas = [_drawn(evidence, index, rule)[0] * keeps(evidence, index, rule)
             for index, rule in enumerate(decision.rules)]  # fmt: skip
    return np.stack(areas, axis=1).astype(np.int64)


def keeps(evidence: Evidence, index: int, rule: Rule) -> np.ndarray:
    """Returns for which images (N,) bool a rule does not empty the mask of class `index`."""
    keep = evidence.area[:, index, rule.level] >= rule.min_area
    if rule.presence:
        keep &= rule.presence.keeps(features_at(evidence, index, rule.threshold))
    return keep


def features_at(evidence: Evidence, index: int, threshold: int) -> np.ndarray:
    """Returns features (N, 4) of the images' masks of class `index`; see mask_features."""
    area = evidence.area[:, index]
    total = threshold * area[:, threshold].astype(np.int64) + area[:, threshold + 1 :].sum(1)
    return mask_features(evidence.heads[:, index], area[:, threshold], evidence.highest[:, index], total)


def rank_levels(evidence: Evidence, index: int, rank: Rank) -> np.ndarray:
    """Returns the threshold (N,) of class `index` with the best expected score in each image; see Rank."""
    levels, folds = np.zeros(len(evidence.true), np.int64), evidence.images["fold"].to_numpy()
    for fold in np.unique(folds):
        rows = folds == fold
        at_least = evidence.area[rows, index]
        pixels = at_least.copy()
        pixels[:, :-1] -= at_least[:, 1:]
        levels[rows] = best_levels(rank.metric, pixels, rank.of(str(fold)).table().astype(np.int64))
    return levels


def _drawn(evidence: Evidence, index: int, rule: Rule) -> tuple[np.ndarray, np.ndarray]:
    """Returns the predicted and intersection pixels (N,) of a rule's masks, before any are emptied."""
    if rule.rank:
        places = np.arange(len(evidence.true)), index, rank_levels(evidence, index, rule.rank)
        return evidence.predicted[places], evidence.intersection[places]
    if rule.components == RegionRule():
        return evidence.predicted[:, index, rule.threshold], evidence.intersection[:, index, rule.threshold]
    assert evidence.regions is not None  # a rule with components was chosen on counted regions
    place = evidence.regions.thresholds[index].index(rule.threshold), SHORTLIST.index(rule.components)
    return evidence.regions.predicted[:, index, *place], evidence.regions.intersection[:, index, *place]


# --- counting pixels -------------------------------------------------------------------------------------------------


def histogram_counts(probability: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns area, predicted and intersection pixels (C, 256) at every threshold, and true pixels (C,); see Evidence.

    Args:
        probability: (C, h, w) uint8.
        true: (C, h, w) uint8 of 0, 1 and 255 (ignored).
    """
    everything = _at_least([_histogram(plane) for plane in probability])
    counted = everything
    if (true == IGNORE).any():
        counted = _at_least(_histograms(probability, true != IGNORE))
    inside = _at_least(_histograms(probability, true == 1))
    return everything, counted, inside, inside[:, 0].astype(np.int64)


def _at_least(histograms: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the pixels (C, 256) int32 with probability >= t."""
    return np.cumsum(np.stack(histograms)[:, ::-1], axis=1)[:, ::-1].astype(np.int32)


def _histogram(plane: np.ndarray) -> np.ndarray:
    """Returns the histogram (256,) int64 of a plane (h, w) uint8."""
    # with the plane as its own mask, OpenCV skips the background; its float32 counts are exact up to 2**24 pixels
    rows = max(1, 2**24 // plane.shape[1])
    strips = [plane[top : top + rows] for top in range(0, len(plane), rows)]
    counts = [cv2.calcHist([strip], [0], strip, [LEVELS], [0, LEVELS]) for strip in strips]
    histogram = np.sum(counts, axis=0, dtype=np.int64).ravel()
    histogram[0] = plane.size - histogram.sum()
    return histogram


def _histograms(probability: np.ndarray, where: np.ndarray) -> list[np.ndarray]:
    """Returns the histograms (256,) of the pixels at `where` (C, h, w) bool."""
    # transposed, because decoded run lengths are in memory column by column
    return [np.bincount(plane.T[inside.T], minlength=LEVELS) for plane, inside in zip(probability, where, strict=True)]
