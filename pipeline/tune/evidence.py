"""Out-of-fold images as pixel counts under all 256 thresholds, and what a decision scores on these.

Every image is reduced to two histograms over the 256 probabilities: all of its pixels, and those of its true mask. From
their cumulative sums the metric of every threshold follows exactly, so no search touches a pixel again. Connected
regions need the pixels: they are counted at a few thresholds (masks/regions.py).
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
    """Pixel counts of masks cleaned by each of the SHORTLIST, at a few thresholds."""

    thresholds: tuple[tuple[int, ...], ...]
    """One list a class, ascending, all of one length T."""
    predicted: np.ndarray
    """Pixels that are not ignored (N, C, T, V) int32."""
    intersection: np.ndarray
    """Those of them inside the true mask (N, C, T, V) int32."""


@dataclass(frozen=True)
class Evidence:
    """Out-of-fold images, reduced to pixel counts under every threshold."""

    images: pd.DataFrame
    """image_id, fold, group, use, one row per image."""
    area: np.ndarray
    """Pixels with probability >= t, ignored ones too: what a minimum area is held against (N, C, 256) int32."""
    predicted: np.ndarray
    """Those of them that are not ignored (N, C, 256) int32."""
    intersection: np.ndarray
    """Those of them inside the true mask (N, C, 256) int32."""
    true: np.ndarray
    """Pixels of the true mask (N, C) int64."""
    presence: np.ndarray | None = None
    """What the presence head says (N, C), 0 to 1."""
    regions: Regions | None = None
    """Once they were counted."""

    def only(self, rows: np.ndarray) -> "Evidence":
        """Returns the evidence of the images at `rows`: positions, or (N,) bool."""
        counts = (self.area[rows], self.predicted[rows], self.intersection[rows], self.true[rows])
        regions, presence = self.regions, self.presence
        if regions is not None:
            regions = replace(regions, predicted=regions.predicted[rows], intersection=regions.intersection[rows])
        return Evidence(self.images[rows] if rows.dtype == bool else self.images.iloc[rows], *counts,
                        None if presence is None else presence[rows], regions)  # fmt: skip

    @property
    def heads(self) -> np.ndarray:
        """What the presence head says (N, C), or one half where there is none."""
        return np.full(self.true.shape, 0.5) if self.presence is None else self.presence

    @cached_property
    def highest(self) -> np.ndarray:
        """The highest probability of each image (N, C), 0 to 255."""
        return (self.area > 0).sum(-1) - 1


# --- what a decision does --------------------------------------------------------------------------------------------


def image_counts(evidence: Evidence, decision: Rules) -> np.ndarray:
    """Returns the pixel counts (N, 3, C) int64 of the decision's masks: intersection, predicted and true pixels."""
    counts = []
    for index, rule in enumerate(decision.rules):
        keep = keeps(evidence, index, rule)
        predicted, intersection = _drawn(evidence, index, rule)
        counts.append(np.stack([intersection * keep, predicted * keep, evidence.true[:, index]], axis=1))
    return np.stack(counts, axis=2).astype(np.int64)


def image_scores(evidence: Evidence, decision: Rules, metric: str) -> np.ndarray:
    """Returns the metric of every image and class (N, C) under a decision, each image alone."""
    return named(metric).by_class(image_counts(evidence, decision))


def predicted_area(evidence: Evidence, decision: Rules) -> np.ndarray:
    """Returns the pixels (N, C) int64 of the decision's masks, ignored ones left out."""
    areas = [_drawn(evidence, index, rule)[0] * keeps(evidence, index, rule)
             for index, rule in enumerate(decision.rules)]  # fmt: skip
    return np.stack(areas, axis=1).astype(np.int64)


def keeps(evidence: Evidence, index: int, rule: Rule) -> np.ndarray:
    """Returns which images' masks (N,) bool of class `index` a rule does not make empty."""
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
    """Returns the threshold (N,) of each image's mask of class `index` that is best in expectation; see Rank."""
    levels, folds = np.zeros(len(evidence.true), np.int64), evidence.images["fold"].to_numpy()
    for fold in np.unique(folds):
        rows = folds == fold
        at_least = evidence.area[rows, index]
        pixels = at_least.copy()
        pixels[:, :-1] -= at_least[:, 1:]
        levels[rows] = best_levels(rank.metric, pixels, rank.of(str(fold)).table().astype(np.int64))
    return levels


def _drawn(evidence: Evidence, index: int, rule: Rule) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and intersection pixels (N,) of masks that are kept."""
    if rule.rank:
        places = np.arange(len(evidence.true)), index, rank_levels(evidence, index, rule.rank)
        return evidence.predicted[places], evidence.intersection[places]
    if rule.components == RegionRule():
        return evidence.predicted[:, index, rule.threshold], evidence.intersection[:, index, rule.threshold]
    assert evidence.regions is not None  # a rule with components was chosen on them
    place = evidence.regions.thresholds[index].index(rule.threshold), SHORTLIST.index(rule.components)
    return evidence.regions.predicted[:, index, *place], evidence.regions.intersection[:, index, *place]


# --- counting pixels -------------------------------------------------------------------------------------------------


def histogram_counts(probability: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns the area, predicted and intersection pixels (C, 256) of every threshold, and the true pixels (C,).

    `probability` (C, h, w) uint8; `true` (C, h, w) uint8 of 0, 1 and 255 (ignored).
    See Evidence.
    """
    everything = _at_least([_histogram(plane) for plane in probability])
    counted = everything
    if (true == IGNORE).any():
        counted = _at_least(_histograms(probability, true != IGNORE))
    inside = _at_least(_histograms(probability, true == 1))
    return everything, counted, inside, inside[:, 0].astype(np.int64)


def _at_least(histograms: Sequence[np.ndarray]) -> np.ndarray:
    """Pixels (C, 256) int32 with probability >= t."""
    return np.cumsum(np.stack(histograms)[:, ::-1], axis=1)[:, ::-1].astype(np.int32)


def _histogram(plane: np.ndarray) -> np.ndarray:
    """The histogram (256,) int64 of a plane (h, w) uint8."""
    # OpenCV skips most of the background where the plane is its own mask; it returns float32, exact up to 2**24 pixels
    rows = max(1, 2**24 // plane.shape[1])
    strips = [plane[top : top + rows] for top in range(0, len(plane), rows)]
    found = [cv2.calcHist([strip], [0], strip, [LEVELS], [0, LEVELS]) for strip in strips]
    histogram = np.sum(found, axis=0, dtype=np.int64).ravel()
    histogram[0] = plane.size - histogram.sum()
    return histogram


def _histograms(probability: np.ndarray, where: np.ndarray) -> list[np.ndarray]:
    """Those (256,) of the pixels at `where` (C, h, w) bool."""
    # decoded run lengths lie in memory column by column
    return [np.bincount(plane.T[own.T], minlength=LEVELS) for plane, own in zip(probability, where, strict=True)]
