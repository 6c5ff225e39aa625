"""Rules of binary and multilabel masks, chosen exactly on out-of-fold probabilities.

Every image is reduced to two histograms over the 256 probabilities: all of its pixels, and those of its true mask. From
their cumulative sums the metric of every threshold follows exactly, and from these the metric of every minimum area, so
the search over all thresholds and areas touches no pixel again. Connected regions need the pixels: they are counted at
a few thresholds, the shortlist (components.py).
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from pipeline.components import SHORTLIST, Components
from pipeline.metrics import METRICS
from pipeline.postprocess import LEVELS, Linear, Presence, Rule, Rules, mask_features

AREAS = np.unique([0, *(1.2 ** np.arange(90)).astype(np.int64)])
"""Minimum areas that are tried, in native pixels: 0, 1, 2, 3, … each about a fifth more than the one before."""
CUTS = np.linspace(0, 1, 65)[:-1]
"""Presence probabilities that are tried as the least."""
LARGEST_AREA = 0.1
"""Minimum areas are tried up to the area that this share of the true masks stays below: larger ones would be fitted to
these images alone."""
CLOSEST = 8
"""How many of the best thresholds the steps go on with that search more than threshold and area."""
FEWEST = 10
"""Images with and without a class that a regression needs at least."""
UNTUNED = Rule()


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
    """image_id, fold, group, use, one row an image."""
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


def image_scores(evidence: Evidence, decision: Rules, metric: str) -> np.ndarray:
    """Returns the metric of every image and class (N, C) under a decision."""
    scores = []
    for index, rule in enumerate(decision.rules):
        keep = keeps(evidence, index, rule)
        predicted, intersection = _drawn(evidence, index, rule)
        scores.append(METRICS[metric](intersection * keep, predicted * keep, evidence.true[:, index]))
    return np.stack(scores, axis=1)


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


def _drawn(evidence: Evidence, index: int, rule: Rule) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and intersection pixels (N,) of masks that are kept."""
    if rule.components == Components():
        return evidence.predicted[:, index, rule.threshold], evidence.intersection[:, index, rule.threshold]
    assert evidence.regions is not None  # a rule with components was chosen on them
    place = evidence.regions.thresholds[index].index(rule.threshold), SHORTLIST.index(rule.components)
    return evidence.regions.predicted[:, index, *place], evidence.regions.intersection[:, index, *place]


# --- choosing --------------------------------------------------------------------------------------------------------


class Tables:
    """One class of the evidence: what each image's mask is worth at every threshold, beside an empty one."""

    def __init__(self, evidence: Evidence, index: int, metric: str, weights: np.ndarray) -> None:
        self.evidence, self.index, self.metric, self.weights = evidence, index, metric, weights
        true, nothing = evidence.true[:, index, None], np.zeros((len(evidence.true), 1), np.int64)
        self.kept = METRICS[metric](evidence.intersection[:, index], evidence.predicted[:, index], true)
        self.gain = (self.kept - METRICS[metric](nothing, nothing, true)) * weights[:, None]
        self.bins = np.searchsorted(AREAS, evidence.area[:, index], side="right") - 1
        """The largest of AREAS that each image's area reaches at every threshold (N, 256)."""

    def areas(self, rows: np.ndarray) -> int:
        """Returns how many of AREAS are tried on these images."""
        true = self.evidence.true[rows, self.index]
        largest = np.quantile(true[true > 0], LARGEST_AREA) if true.any() else 0
        return int(np.searchsorted(AREAS, largest, side="right"))

    def area_sums(self, rows: np.ndarray, tops: np.ndarray, gain: np.ndarray) -> np.ndarray:
        """Returns the summed gain (areas, T) of masks that reach every minimum area at each of the `tops` (T,).

        `gain` is what keeping an image's mask is worth (n, T), or (n, 1).
        """
        cells = self.bins[np.ix_(rows, tops)] * len(tops) + np.arange(len(tops))
        weights = np.broadcast_to(gain, cells.shape)
        sums = np.bincount(cells.ravel(), weights.ravel(), minlength=len(AREAS) * len(tops))
        return np.cumsum(sums.reshape(len(AREAS), -1)[::-1], axis=0)[::-1][: self.areas(rows)]

    def best_thresholds(self, sums: np.ndarray) -> list[int]:
        """Returns the thresholds of the CLOSEST highest sums (256,), the best first, of equal ones that nearest 0.5
        first; 0 is none."""
        thresholds = np.arange(1, LEVELS)
        order = np.lexsort((np.abs(thresholds - LEVELS // 2), -sums[1:].round(9)))
        return [int(one) for one in thresholds[order[:CLOSEST]]]

    def threshold(self, rule: Rule, rows: np.ndarray) -> Rule:
        """Returns the rule with the best threshold; of equal ones that nearest 0.5."""
        return replace(rule, threshold=_nearest_half(self.gain[rows].sum(0)))

    def area(self, rule: Rule, rows: np.ndarray) -> Rule:
        """Returns the rule with the best threshold and minimum area together; of equal ones the smallest area."""
        sums = self.area_sums(rows, np.arange(LEVELS), self.gain[rows])
        area = int(np.argmax(sums[:, 1:].max(1) >= sums[:, 1:].max() - 1e-9))
        return replace(rule, threshold=_nearest_half(sums[area]), min_area=int(AREAS[area]))

    def triplet(self, rule: Rule, rows: np.ndarray) -> Rule:
        """Returns the rule with the best area at a higher threshold, for each of the best thresholds; of equal ones the
        smallest area, then the lowest.

        The “triplet” of the winners of SIIM-ACR Pneumothorax Segmentation (2019).
        """
        best, found = -np.inf, rule
        for low in self.best_thresholds(self.area_sums(rows, np.arange(LEVELS), self.gain[rows]).max(0)):
            tops = np.arange(low, LEVELS, 8)
            sums = self.area_sums(rows, tops, self.gain[rows, low][:, None])
            if sums.max() > best + 1e-9:
                best = sums.max()
                area, top = _first_best(sums)
                found = replace(rule, threshold=low, min_area=int(AREAS[area]), top=int(tops[top]) if top else None)
        return found

    def presence(self, rule: Rule, rows: np.ndarray) -> Rule:
        """Returns the rule with the best least probability of the presence head, area and threshold together; of equal
        ones the lowest probability, then the smallest area."""
        features = features_at(self.evidence, self.index, rule.threshold)[rows]
        passed = np.stack([Presence(cut=float(cut)).keeps(features) for cut in CUTS])  # as a mask's rule compares
        reached = passed.sum(0)  # the j-th cut keeps a mask where more than j are passed
        best, found = -np.inf, rule
        for low in self.best_thresholds(self.area_sums(rows, np.arange(LEVELS), self.gain[rows]).max(0)):
            level = low if rule.top is None else max(low, rule.top)
            cells = reached * len(AREAS) + self.bins[rows, level]
            sums = np.bincount(cells, self.gain[rows, low], minlength=(len(CUTS) + 1) * len(AREAS))
            sums = np.cumsum(np.cumsum(sums.reshape(-1, len(AREAS))[::-1], axis=0)[::-1][:, ::-1], axis=1)[:, ::-1]
            sums = sums[1:, : self.areas(rows)]
            if sums.max() > best + 1e-9:
                best = sums.max()
                cut, area = _first_best(sums)
                top = None if rule.top is None else level
                presence = Presence(cut=float(CUTS[cut])) if cut else None
                found = replace(rule, threshold=low, min_area=int(AREAS[area]), top=top, presence=presence)
        return found

    def expected(self, rule: Rule, rows: np.ndarray) -> Rule:
        """Returns a rule that keeps a mask where that pays in expectation: where p·d > 1 - p.

        With probability p the class is there, and the mask scores d; with 1 - p it is not, and only an empty mask
        scores, 1. Both are regressions on the presence head, the area, the highest probability and the mean one, p a
        logistic one on all these images, d a linear one on those with the class; that calibrates the head, and weighs
        all four against each other.
        """
        from sklearn.linear_model import LinearRegression, LogisticRegression

        present = self.evidence.true[rows, self.index] > 0
        threshold, found = rule.threshold, rule
        for _ in range(2):
            features = features_at(self.evidence, self.index, threshold)[rows]
            drawn = present & (self.evidence.area[rows, self.index, threshold] > 0)
            if present.all() or drawn.sum() < FEWEST or (~present).sum() < FEWEST:
                return rule
            weights = self.weights[rows]
            # with few features, a handful of exact steps; the default solver wakes every core for each of its dozens
            logistic = LogisticRegression(C=100.0, solver="newton-cholesky", tol=1e-8).fit(features, present, weights)
            linear = LinearRegression().fit(features[drawn], self.kept[rows[drawn], threshold], weights[drawn])
            presence = Presence(probability=_linear(logistic), worth=_linear(linear))
            found = Rule(threshold=threshold, presence=presence)
            threshold = _nearest_half((self.gain[rows] * presence.keeps(features)[:, None]).sum(0))
        return found

    def components(self, rule: Rule, rows: np.ndarray) -> Rule:
        """Returns the rule with the best of the SHORTLIST, at the threshold of those counted that is nearest to its."""
        regions = self.evidence.regions
        assert regions is not None  # Evidence.regions is filled before this step
        counted = regions.thresholds[self.index]
        threshold = min(counted, key=lambda one: abs(one - rule.threshold))
        place = counted.index(threshold)
        moved = replace(rule, threshold=threshold, top=rule.top if (rule.top or 0) > threshold else None)
        some = self.evidence.only(rows)
        keep = keeps(some, self.index, moved)[:, None]
        assert some.regions is not None
        found = some.regions.intersection[:, self.index, place], some.regions.predicted[:, self.index, place]
        scores = METRICS[self.metric](found[0] * keep, found[1] * keep, some.true[:, self.index, None])
        sums = (scores * self.weights[rows][:, None]).sum(0)
        own = image_scores(some, _one(some, self.index, rule), self.metric)[:, self.index]
        plain = (own * self.weights[rows]).sum()
        best = int(sums.argmax())
        return replace(moved, components=SHORTLIST[best]) if sums[best] > plain + 1e-9 else rule


def _linear(model: Any) -> Linear:
    """The coefficients of scikit-learn's model."""
    head, area, highest, confidence = map(float, np.ravel(model.coef_))
    return Linear(head, area, highest, confidence, float(np.ravel(model.intercept_)[0]))


def _nearest_half(sums: np.ndarray) -> int:
    """The threshold of the best of sums (256,); of equal ones that nearest 0.5; never 0."""
    tied = np.flatnonzero(sums[1:] >= sums[1:].max() - 1e-9) + 1
    return int(min(tied, key=lambda threshold: abs(int(threshold) - LEVELS // 2)))


def _first_best(sums: np.ndarray) -> tuple[int, int]:
    """The place of the best of sums (A, B), row by row the first of equal ones: cumulative sums differ by rounding."""
    row, column = np.unravel_index(int(np.argmax(sums >= sums.max() - 1e-9)), sums.shape)
    return int(row), int(column)


def _one(evidence: Evidence, index: int, rule: Rule) -> Rules:
    return Rules(tuple(rule if other == index else UNTUNED for other in range(evidence.true.shape[1])))
