"""Searches the rule for one class of binary or multilabel masks, on out-of-fold evidence.

Tables hold the gain of every threshold, per image or over all pixels of a group. The gain of every minimum area follows
from them, so that no search reads a pixel.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import numpy as np

from pipeline.masks.decision import LEVELS, Linear, Presence, Rule, Rules
from pipeline.masks.metric import Metric, sums_by
from pipeline.masks.metrics import named
from pipeline.masks.ranking import Rank
from pipeline.masks.regions import SHORTLIST
from pipeline.tune.calibration import Levels, calibrate
from pipeline.tune.evidence import Evidence, features_at, image_counts, keeps, rank_levels
from pipeline.tune.regression import linear, logistic

AREAS = np.unique([0, *(1.2 ** np.arange(90)).astype(np.int64)])
"""The minimum areas that are tried, in native pixels: 0, 1, 2, 3, … each about 20 % larger than the previous one."""
CUTS = np.linspace(0, 1, 65)[:-1]
"""The presence probabilities that are tried as the lower limit."""
LARGEST_AREA = 0.1
"""The quantile of the areas of true masks up to which minimum areas are tried; larger ones would overfit."""
CLOSEST = 8
"""The number of best thresholds with which steps continue that search more than threshold and area."""
FEWEST = 10
"""The smallest number of images with and without a class for a regression."""
HELD = np.array([0.01, 0.01, 0.01, 0.01, 0.0])
"""The ridge penalties of the coefficients of a presence regression; the intercept has none."""
UNTUNED = Rule()

Add = Callable[[np.ndarray], np.ndarray]
"""Takes sums (cells,) over the images of each cell; returns sums over the images that each candidate keeps."""


class ImageTable:
    """The worth of every threshold under a metric that is a mean over images.

    It is the gain in score over an empty mask, per image. Only worths of the same images can be compared.
    """

    def __init__(self, evidence: Evidence, index: int, metric: Metric, weights: np.ndarray) -> None:
        """Takes the weights (N,) of the images for the class `index`."""
        self.metric, self.weights, self.true = metric, weights, evidence.true[:, index]
        true, nothing = self.true[:, None], np.zeros((len(self.true), 1), np.int64)
        self.kept = metric(evidence.intersection[:, index], evidence.predicted[:, index], true)
        self.gain = metric.sign * (self.kept - metric(nothing, nothing, true)) * weights[:, None]

    def worth(self, rows: np.ndarray, keep: np.ndarray | None = None) -> np.ndarray:
        """Returns the worth (256,) of every threshold on the images at `rows`; masks outside `keep` (n,) are empty."""
        return (self.gain[rows] if keep is None else self.gain[rows] * keep[:, None]).sum(0)

    def worth_by_cell(
        self, rows: np.ndarray, thresholds: np.ndarray, cells: np.ndarray, size: int, add: Add
    ) -> np.ndarray:
        """Returns the worth of every candidate, with the shape that `add` returns.

        Args:
            rows: the positions of the images (n,).
            thresholds: the thresholds at which masks are drawn, (T,), or (1,) for all cells.
            cells: the cell (n, T) of each image and threshold, below `size`; it tells which candidates keep the mask.
            size: the number of cells.
            add: turns sums per cell into sums per candidate.
        """
        weights = np.broadcast_to(self.gain[np.ix_(rows, thresholds)], cells.shape)
        return add(np.bincount(cells.ravel(), weights.ravel(), minlength=size))

    def worth_of(self, rows: np.ndarray, intersection: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """Returns the worth (V,) of masks with these pixels (n, V), up to a constant."""
        scores = self.metric(intersection, predicted, self.true[rows][:, None])
        return self.metric.sign * (scores * self.weights[rows][:, None]).sum(0)


class UnitTable:
    """The worth of every threshold under a metric over all pixels of a group or of the data set: the sum of the scores
    of these units."""

    def __init__(self, evidence: Evidence, index: int, metric: Metric, weights: np.ndarray, groups: np.ndarray) -> None:
        """Takes the weights and groups (N,) of the images for the class `index`."""
        self.metric, self.true = metric, evidence.true[:, index]
        self.counts = evidence.intersection[:, index], evidence.predicted[:, index]
        self.weights = None if (weights == 1).all() else weights
        units = np.zeros(len(groups), np.int64) if metric.unit == "data_set" else groups
        self.units = np.unique(units.astype(str), return_inverse=True)[1]

    def worth(self, rows: np.ndarray, keep: np.ndarray | None = None) -> np.ndarray:
        """See ImageTable."""
        kept = np.ones(len(rows), bool) if keep is None else keep
        return self.worth_of(rows, *(counts[rows] * kept[:, None] for counts in self.counts))

    def worth_by_cell(
        self, rows: np.ndarray, thresholds: np.ndarray, cells: np.ndarray, size: int, add: Add
    ) -> np.ndarray:
        """See ImageTable."""
        total = np.zeros(np.shape(add(np.zeros(size))))
        for unit in np.unique(self.units[rows]):
            mine = self.units[rows] == unit
            sums = []
            for counts in self.counts:
                values = self._weighed(rows[mine], counts[np.ix_(rows[mine], thresholds)])
                values = np.broadcast_to(values, cells[mine].shape)
                sums.append(self._whole(add(np.bincount(cells[mine].ravel(), values.ravel(), minlength=size))))
            score = self.metric(*sums, self._weighed(rows[mine], self.true[rows[mine]][:, None]).sum())
            total = total + score * (mine.sum() if self.metric.weigh == "images" else 1)
        return self.metric.sign * np.asarray(total)

    def worth_of(self, rows: np.ndarray, intersection: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """See ImageTable."""
        _, number, sizes = np.unique(self.units[rows], return_inverse=True, return_counts=True)
        counts = (intersection, predicted, self.true[rows][:, None])
        whole = [pixels.astype(np.int64) for pixels in counts]
        sums = [sums_by(self._weighed(rows, pixels), number, len(sizes)) for pixels in whole]
        scores = self.metric(*sums)
        return self.metric.sign * (scores * sizes[:, None] if self.metric.weigh == "images" else scores).sum(0)

    def _weighed(self, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
        return counts if self.weights is None else counts * self.weights[rows][:, None]

    def _whole(self, sums: np.ndarray) -> np.ndarray:
        """Returns sums as integers if images have no weights, as in the score itself."""
        return sums if self.weights is not None else np.rint(sums).astype(np.int64)


class RuleSearch:
    """The search for the rule of one class, on a table with the worth of every threshold."""

    def __init__(
        self, evidence: Evidence, index: int, metric: str, weights: np.ndarray, groups: np.ndarray | None = None
    ) -> None:
        """Takes the weights (N,) and groups (N,) of the images; by default each image is its own group."""
        self.evidence, self.index, self.weights = evidence, index, weights
        groups = np.arange(len(evidence.true)) if groups is None else groups
        self.table: ImageTable | UnitTable = (
            ImageTable(evidence, index, named(metric), weights)
            if named(metric).by_image
            else UnitTable(evidence, index, named(metric), weights, groups)
        )
        self.bins = (np.searchsorted(AREAS, evidence.area[:, index], side="right") - 1).astype(np.uint8)
        """The index of the largest of AREAS that the mask of each image reaches at every threshold (N, 256)."""

    def areas(self, rows: np.ndarray) -> int:
        """Returns the number of AREAS that are tried on these images."""
        true = self.evidence.true[rows, self.index]
        largest = np.quantile(true[true > 0], LARGEST_AREA) if true.any() else 0
        return int(np.searchsorted(AREAS, largest, side="right"))

    def area_sums(self, rows: np.ndarray, tops: np.ndarray, low: int | None = None) -> np.ndarray:
        """Returns the worth (areas, T) of every minimum area that masks must reach at each of the thresholds `tops`
        (T,). Masks are drawn at the same threshold, or at `low`."""
        areas = self.areas(rows)

        def add(sums: np.ndarray) -> np.ndarray:
            return np.cumsum(sums.reshape(len(AREAS), -1)[::-1], axis=0)[::-1][:areas]

        cells = self.bins[np.ix_(rows, tops)].astype(np.int64)
        cells *= len(tops)  # in place, because these arrays are as large as the whole table
        cells += np.arange(len(tops))
        drawn = tops if low is None else np.array([low])
        return self.table.worth_by_cell(rows, drawn, cells, len(AREAS) * len(tops), add)

    def best_thresholds(self, sums: np.ndarray) -> list[int]:
        """Returns the thresholds with the CLOSEST highest sums (256,), without 0, the best first; equal ones are
        ordered by their distance from 0.5."""
        thresholds = np.arange(1, LEVELS)
        order = np.lexsort((np.abs(thresholds - LEVELS // 2), -sums[1:].round(9)))
        return [int(threshold) for threshold in thresholds[order[:CLOSEST]]]

    def threshold(self, rule: Rule, rows: np.ndarray) -> Rule:
        """Returns the rule with the best threshold; of equal ones, the one nearest 0.5."""
        return replace(rule, threshold=_nearest_half(self.table.worth(rows)))

    def area(self, rule: Rule, rows: np.ndarray) -> Rule:
        """Returns the rule with the best pair of threshold and minimum area; of equal ones, the smallest area."""
        sums = self.area_sums(rows, np.arange(LEVELS))
        area = int(np.argmax(sums[:, 1:].max(1) >= sums[:, 1:].max() - 1e-9))
        return replace(rule, threshold=_nearest_half(sums[area]), min_area=int(AREAS[area]))

    def triplet(self, rule: Rule, rows: np.ndarray) -> Rule:
        """Returns the rule with the best minimum area at a second, higher threshold, tried for each of the best
        thresholds. Of equal ones, the smallest area is taken, then the lowest second threshold.

        This is the “triplet” of the winners of SIIM-ACR Pneumothorax Segmentation (2019).
        """
        best, chosen = -np.inf, rule
        for low in self.best_thresholds(self.area_sums(rows, np.arange(LEVELS)).max(0)):
            tops = np.arange(low, LEVELS, 8)
            sums = self.area_sums(rows, tops, low)
            if sums.max() > best + 1e-9:
                best = sums.max()
                area, top = _first_best(sums)
                chosen = replace(rule, threshold=low, min_area=int(AREAS[area]), top=int(tops[top]) if top else None)
        return chosen

    def presence(self, rule: Rule, rows: np.ndarray) -> Rule:
        """Returns the rule with the best lower limit for the presence head's probability, together with area and
        threshold. Of equal ones, the lowest probability is taken, then the smallest area."""
        features = features_at(self.evidence, self.index, rule.threshold)[rows]
        passed = np.stack([Presence(cut=float(cut)).keeps(features) for cut in CUTS])  # compares as a rule does
        reached = passed.sum(0)  # the j-th cut keeps a mask if more than j cuts are passed
        areas = self.areas(rows)

        def add(sums: np.ndarray) -> np.ndarray:
            sums = np.cumsum(np.cumsum(sums.reshape(-1, len(AREAS))[::-1], axis=0)[::-1][:, ::-1], axis=1)[:, ::-1]
            return sums[1:, :areas]

        best, chosen = -np.inf, rule
        for low in self.best_thresholds(self.area_sums(rows, np.arange(LEVELS)).max(0)):
            level = low if rule.top is None else max(low, rule.top)
            cells = (reached * len(AREAS) + self.bins[rows, level])[:, None]
            sums = self.table.worth_by_cell(rows, np.array([low]), cells, (len(CUTS) + 1) * len(AREAS), add)
            if sums.max() > best + 1e-9:
                best = sums.max()
                cut, area = _first_best(sums)
                top = None if rule.top is None else level
                presence = Presence(cut=float(CUTS[cut])) if cut else None
                chosen = replace(rule, threshold=low, min_area=int(AREAS[area]), top=top, presence=presence)
        return chosen

    def expected(self, rule: Rule, rows: np.ndarray) -> Rule:
        """Returns a rule that keeps a mask if this has the better expected score, that is if p·d > 1 - p.

        With probability p the class is present and the mask scores d; otherwise only an empty mask scores, namely 1.
        Both are regressions on the output of the presence head, the area, the highest and the mean probability: p is a
        logistic regression on all these images, d a linear one on those with the class. This calibrates the presence
        head and weights the four features.
        """
        assert isinstance(self.table, ImageTable)  # steps_of leaves this step out for other metrics
        threshold, chosen = rule.threshold, rule
        for _ in range(2):
            features = features_at(self.evidence, self.index, threshold)[rows]
            presence = self._presence(rows, threshold, features, self.table.kept[rows, threshold])
            if presence is None:
                return rule
            chosen = Rule(threshold=threshold, presence=presence)
            threshold = _nearest_half(self.table.worth(rows, presence.keeps(features)))
        return chosen

    def rank(self, rule: Rule, rows: np.ndarray) -> Rule:
        """Returns a rule that draws each mask at the image's own best threshold; see masks/ranking.py.

        Probabilities are calibrated per fold. A mask is kept as in `expected`, with features of the mask at threshold
        0.5. If too few images are empty to learn from, a mask is kept if it has a pixel of at least 0.5. A class with
        too few images gets a threshold and a minimum area instead.
        """
        assert isinstance(self.table, ImageTable)  # steps_of leaves this step out for other metrics
        present, selected = self.evidence.true[rows, self.index] > 0, self.evidence.only(rows)
        if present.sum() < FEWEST:
            return self.area(rule, rows)
        folds, groups = (selected.images[name].to_numpy() for name in ("fold", "group"))
        levels = Levels(self._levels.pixels[rows], self._levels.inside[rows])
        rank = Rank(self.table.metric.name, *calibrate(levels, present, folds, groups))
        drawn_at = rank_levels(selected, self.index, rank)
        features = features_at(selected, self.index, UNTUNED.threshold)
        presence = self._presence(rows, UNTUNED.threshold, features, self.table.kept[rows, drawn_at])
        needs_pixel = presence is None and not present.all()
        return Rule(threshold=UNTUNED.threshold, min_area=int(needs_pixel), presence=presence, rank=rank)

    @cached_property
    def _levels(self) -> Levels:
        """The histograms to which calibrations are fitted."""
        return Levels.of(self.evidence, self.index)

    def _presence(self, rows: np.ndarray, threshold: int, features: np.ndarray, worth: np.ndarray) -> Presence | None:
        """Returns the regressions of `expected`, from the features (n, 4) and the scores (n,) of the masks of the
        images at `rows`; None if too few images have the class, or too few do not."""
        present = self.evidence.true[rows, self.index] > 0
        drawn = present & (self.evidence.area[rows, self.index, threshold] > 0)
        if present.all() or drawn.sum() < FEWEST or (~present).sum() < FEWEST:
            return None
        weights, design = self.weights[rows], np.column_stack([features, np.ones(len(rows))])
        probability = logistic(design, weights * present, weights, HELD)
        score = linear(design[drawn], worth[drawn], weights[drawn])
        return Presence(probability=Linear(*map(float, probability)), worth=Linear(*map(float, score)))

    def components(self, rule: Rule, rows: np.ndarray) -> Rule:
        """Returns the rule with the best region rule of SHORTLIST, at the counted threshold nearest to the rule's
        own."""
        if rule.rank:  # each image has its own threshold, but regions are counted at few
            return rule
        regions = self.evidence.regions
        assert regions is not None  # Evidence.regions is filled before this step
        counted = regions.thresholds[self.index]
        threshold = min(counted, key=lambda level: abs(level - rule.threshold))
        place = counted.index(threshold)
        moved = replace(rule, threshold=threshold, top=rule.top if (rule.top or 0) > threshold else None)
        selected = self.evidence.only(rows)
        keep = keeps(selected, self.index, moved)[:, None]
        assert selected.regions is not None
        intersection = selected.regions.intersection[:, self.index, place]
        predicted = selected.regions.predicted[:, self.index, place]
        sums = self.table.worth_of(rows, intersection * keep, predicted * keep)
        before = image_counts(selected, _only_class(selected, self.index, rule))[:, :2, [self.index]]
        plain = self.table.worth_of(rows, before[:, 0], before[:, 1])[0]
        best = int(sums.argmax())
        return replace(moved, components=SHORTLIST[best]) if sums[best] > plain + 1e-9 else rule


def _nearest_half(sums: np.ndarray) -> int:
    """Returns the threshold of the best of sums (256,), never 0; of equal ones, the one nearest 0.5."""
    tied = np.flatnonzero(sums[1:] >= sums[1:].max() - 1e-9) + 1
    return int(min(tied, key=lambda threshold: abs(int(threshold) - LEVELS // 2)))


def _first_best(sums: np.ndarray) -> tuple[int, int]:
    """Returns the position of the best of sums (A, B), row by row the first of equal ones within rounding errors."""
    row, column = np.unravel_index(int(np.argmax(sums >= sums.max() - 1e-9)), sums.shape)
    return int(row), int(column)


def _only_class(evidence: Evidence, index: int, rule: Rule) -> Rules:
    return Rules(tuple(rule if other == index else UNTUNED for other in range(evidence.true.shape[1])))
