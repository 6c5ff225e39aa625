"""The search for the rule of one class of binary or multilabel masks, on out-of-fold evidence.

Tables hold what every threshold is worth, of each image or of all pixels of a group together; from these follows what
every minimum area is worth, so that no search touches a pixel.
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
HELD = np.array([0.01, 0.01, 0.01, 0.01, 0.0])
"""How strongly the coefficients of a presence are held at 0; not its intercept."""
UNTUNED = Rule()

Add = Callable[[np.ndarray], np.ndarray]
"""From sums (cells,) over the images of each cell to sums of the images that each candidate keeps."""


class ImageTable:
    """What every threshold is worth under a metric that is a mean over images: the score gained over an empty mask,
    image by image. Worths of the same images are compared only with each other."""

    def __init__(self, evidence: Evidence, index: int, metric: Metric, weights: np.ndarray) -> None:
        """Weights (N,) of the images for the class `index`."""
        self.metric, self.weights, self.true = metric, weights, evidence.true[:, index]
        true, nothing = self.true[:, None], np.zeros((len(self.true), 1), np.int64)
        self.kept = metric(evidence.intersection[:, index], evidence.predicted[:, index], true)
        self.gain = metric.sign * (self.kept - metric(nothing, nothing, true)) * weights[:, None]

    def worth(self, rows: np.ndarray, keep: np.ndarray | None = None) -> np.ndarray:
        """Returns the worth (256,) of every threshold, of the images at `rows`; all but `keep` (n,) have no mask."""
        return (self.gain[rows] if keep is None else self.gain[rows] * keep[:, None]).sum(0)

    def worth_by_cell(
        self, rows: np.ndarray, thresholds: np.ndarray, cells: np.ndarray, size: int, add: Add
    ) -> np.ndarray:
        """Returns the worth of every candidate, shaped as `add` shapes it.

        Args:
            rows: positions of the images (n,).
            thresholds: that a mask is drawn at, (T,), or (1,) for all cells alike.
            cells: the candidates that keep an image's mask, as the number (n, T) of a cell, below `size`.
            size: how many cells there are.
            add: from sums by cell to those of candidates.
        """
        weights = np.broadcast_to(self.gain[np.ix_(rows, thresholds)], cells.shape)
        return add(np.bincount(cells.ravel(), weights.ravel(), minlength=size))

    def worth_of(self, rows: np.ndarray, intersection: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """Returns the worth (V,) of masks with these pixels (n, V), up to a constant."""
        scores = self.metric(intersection, predicted, self.true[rows][:, None])
        return self.metric.sign * (scores * self.weights[rows][:, None]).sum(0)


class UnitTable:
    """The same under a metric of the pixels of a group, or of the data set, together: the score, summed over units."""

    def __init__(self, evidence: Evidence, index: int, metric: Metric, weights: np.ndarray, groups: np.ndarray) -> None:
        """Weights and groups (N,) of the images for the class `index`."""
        self.metric, self.true = metric, evidence.true[:, index]
        self.counts = evidence.intersection[:, index], evidence.predicted[:, index]
        self.weights = None if (weights == 1).all() else weights
        units = np.zeros(len(groups), np.int64) if metric.unit == "data_set" else groups
        self.units = np.unique(units.astype(str), return_inverse=True)[1]

    def worth(self, rows: np.ndarray, keep: np.ndarray | None = None) -> np.ndarray:
        """As ImageTable."""
        kept = np.ones(len(rows), bool) if keep is None else keep
        return self.worth_of(rows, *(counts[rows] * kept[:, None] for counts in self.counts))

    def worth_by_cell(
        self, rows: np.ndarray, thresholds: np.ndarray, cells: np.ndarray, size: int, add: Add
    ) -> np.ndarray:
        """As ImageTable."""
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
        """As ImageTable."""
        _, number, sizes = np.unique(self.units[rows], return_inverse=True, return_counts=True)
        counts = (intersection, predicted, self.true[rows][:, None])
        whole = [pixels.astype(np.int64) for pixels in counts]
        sums = [sums_by(self._weighed(rows, pixels), number, len(sizes)) for pixels in whole]
        scores = self.metric(*sums)
        return self.metric.sign * (scores * sizes[:, None] if self.metric.weigh == "images" else scores).sum(0)

    def _weighed(self, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
        return counts if self.weights is None else counts * self.weights[rows][:, None]

    def _whole(self, sums: np.ndarray) -> np.ndarray:
        """Sums as whole numbers where no image is weighed, as in the score itself."""
        return sums if self.weights is not None else np.rint(sums).astype(np.int64)


class RuleSearch:
    """The search for the rule of one class, on a table of what every threshold is worth."""

    def __init__(
        self, evidence: Evidence, index: int, metric: str, weights: np.ndarray, groups: np.ndarray | None = None
    ) -> None:
        """Weights (N,) and groups (N,) of the images; by default each image is a group."""
        self.evidence, self.index, self.weights = evidence, index, weights
        groups = np.arange(len(evidence.true)) if groups is None else groups
        self.table: ImageTable | UnitTable = (
            ImageTable(evidence, index, named(metric), weights)
            if named(metric).by_image
            else UnitTable(evidence, index, named(metric), weights, groups)
        )
        self.bins = (np.searchsorted(AREAS, evidence.area[:, index], side="right") - 1).astype(np.uint8)
        """The largest of AREAS that each image's area reaches at every threshold (N, 256); there are 86."""

    def areas(self, rows: np.ndarray) -> int:
        """Returns how many of AREAS are tried on these images."""
        true = self.evidence.true[rows, self.index]
        largest = np.quantile(true[true > 0], LARGEST_AREA) if true.any() else 0
        return int(np.searchsorted(AREAS, largest, side="right"))

    def area_sums(self, rows: np.ndarray, tops: np.ndarray, low: int | None = None) -> np.ndarray:
        """Returns the worth (areas, T) of every minimum area at each of the `tops` (T,), of masks drawn at that
        threshold, or at `low`."""
        areas = self.areas(rows)

        def add(sums: np.ndarray) -> np.ndarray:
            return np.cumsum(sums.reshape(len(AREAS), -1)[::-1], axis=0)[::-1][:areas]

        cells = self.bins[np.ix_(rows, tops)].astype(np.int64)
        cells *= len(tops)  # in place: these arrays are as large as the whole table
        cells += np.arange(len(tops))
        drawn = tops if low is None else np.array([low])
        return self.table.worth_by_cell(rows, drawn, cells, len(AREAS) * len(tops), add)

    def best_thresholds(self, sums: np.ndarray) -> list[int]:
        """Returns the thresholds of the CLOSEST highest sums (256,), the best first, of equal ones that nearest 0.5
        first; 0 is none."""
        thresholds = np.arange(1, LEVELS)
        order = np.lexsort((np.abs(thresholds - LEVELS // 2), -sums[1:].round(9)))
        return [int(one) for one in thresholds[order[:CLOSEST]]]

    def threshold(self, rule: Rule, rows: np.ndarray) -> Rule:
        """Returns the rule with the best threshold; of equal ones that nearest 0.5."""
        return replace(rule, threshold=_nearest_half(self.table.worth(rows)))

    def area(self, rule: Rule, rows: np.ndarray) -> Rule:
        """Returns the rule with the best threshold and minimum area together; of equal ones the smallest area."""
        sums = self.area_sums(rows, np.arange(LEVELS))
        area = int(np.argmax(sums[:, 1:].max(1) >= sums[:, 1:].max() - 1e-9))
        return replace(rule, threshold=_nearest_half(sums[area]), min_area=int(AREAS[area]))

    def triplet(self, rule: Rule, rows: np.ndarray) -> Rule:
        """Returns the rule with the best area at a higher threshold, for each of the best thresholds; of equal ones the
        smallest area, then the lowest.

        The “triplet” of the winners of SIIM-ACR Pneumothorax Segmentation (2019).
        """
        best, found = -np.inf, rule
        for low in self.best_thresholds(self.area_sums(rows, np.arange(LEVELS)).max(0)):
            tops = np.arange(low, LEVELS, 8)
            sums = self.area_sums(rows, tops, low)
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
        areas = self.areas(rows)

        def add(sums: np.ndarray) -> np.ndarray:
            sums = np.cumsum(np.cumsum(sums.reshape(-1, len(AREAS))[::-1], axis=0)[::-1][:, ::-1], axis=1)[:, ::-1]
            return sums[1:, :areas]

        best, found = -np.inf, rule
        for low in self.best_thresholds(self.area_sums(rows, np.arange(LEVELS)).max(0)):
            level = low if rule.top is None else max(low, rule.top)
            cells = (reached * len(AREAS) + self.bins[rows, level])[:, None]
            sums = self.table.worth_by_cell(rows, np.array([low]), cells, (len(CUTS) + 1) * len(AREAS), add)
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
        assert isinstance(self.table, ImageTable)  # steps_of leaves this step out for other metrics
        threshold, found = rule.threshold, rule
        for _ in range(2):
            features = features_at(self.evidence, self.index, threshold)[rows]
            presence = self._presence(rows, threshold, features, self.table.kept[rows, threshold])
            if presence is None:
                return rule
            found = Rule(threshold=threshold, presence=presence)
            threshold = _nearest_half(self.table.worth(rows, presence.keeps(features)))
        return found

    def rank(self, rule: Rule, rows: np.ndarray) -> Rule:
        """Returns a rule that keeps a mask where that pays, as `expected` does from what reaches a fixed 0.5, and draws
        it at the image's own best threshold, from probabilities that are calibrated fold by fold; see masks/ranking.py.

        Where too few images are empty to learn from, a mask stays that has a pixel of 0.5 or more. A class of few
        images has a threshold and a minimum area.
        """
        assert isinstance(self.table, ImageTable)  # steps_of leaves this step out for other metrics
        present, some = self.evidence.true[rows, self.index] > 0, self.evidence.only(rows)
        if present.sum() < FEWEST:
            return self.area(rule, rows)
        folds, groups = (some.images[name].to_numpy() for name in ("fold", "group"))
        levels = Levels(self._levels.pixels[rows], self._levels.inside[rows])
        rank = Rank(self.table.metric.name, *calibrate(levels, present, folds, groups))
        drawn_at, features = rank_levels(some, self.index, rank), features_at(some, self.index, UNTUNED.threshold)
        presence = self._presence(rows, UNTUNED.threshold, features, self.table.kept[rows, drawn_at])
        needs_pixel = presence is None and not present.all()
        return Rule(threshold=UNTUNED.threshold, min_area=int(needs_pixel), presence=presence, rank=rank)

    @cached_property
    def _levels(self) -> Levels:
        """What calibrations are fitted to."""
        return Levels.of(self.evidence, self.index)

    def _presence(self, rows: np.ndarray, threshold: int, features: np.ndarray, worth: np.ndarray) -> Presence | None:
        """The regressions of `expected`, from the features (n, 4) and the scores (n,) of the masks of the images at
        `rows`; None where too few of them have the class, or too few have not."""
        present = self.evidence.true[rows, self.index] > 0
        drawn = present & (self.evidence.area[rows, self.index, threshold] > 0)
        if present.all() or drawn.sum() < FEWEST or (~present).sum() < FEWEST:
            return None
        weights, design = self.weights[rows], np.column_stack([features, np.ones(len(rows))])
        probability = logistic(design, weights * present, weights, HELD)
        score = linear(design[drawn], worth[drawn], weights[drawn])
        return Presence(probability=Linear(*map(float, probability)), worth=Linear(*map(float, score)))

    def components(self, rule: Rule, rows: np.ndarray) -> Rule:
        """Returns the rule with the best of the SHORTLIST, at the threshold of those counted that is nearest to its."""
        if rule.rank:  # regions are counted at few thresholds, and every image has its own
            return rule
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
        sums = self.table.worth_of(rows, found[0] * keep, found[1] * keep)
        before = image_counts(some, _one(some, self.index, rule))[:, :2, [self.index]]
        plain = self.table.worth_of(rows, before[:, 0], before[:, 1])[0]
        best = int(sums.argmax())
        return replace(moved, components=SHORTLIST[best]) if sums[best] > plain + 1e-9 else rule


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
