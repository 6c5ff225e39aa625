"""Rules for binary and multilabel masks, chosen on out-of-fold evidence, as a problem for selection.py.

The counts of an image give the exact metric at every threshold and for every minimum area, so the search over all
thresholds and areas reads no pixel again. Regions are counted at a few thresholds for the rules in the shortlist
(masks/regions.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import pandas as pd

from pipeline.core.config.recipe import TuneSettings
from pipeline.masks.bootstrap import Score
from pipeline.masks.decision import LEVELS, Rule, Rules
from pipeline.masks.metric import Metric
from pipeline.masks.metrics import named
from pipeline.masks.regions import RegionRule, shortlist_counts
from pipeline.masks.separation import Separation
from pipeline.masks.separators import Separator
from pipeline.tune.evidence import Evidence, Regions, histogram_counts, image_counts, predicted_area
from pipeline.tune.held_out import HeldOut, Weighting
from pipeline.tune.rule_search import AREAS, LARGEST_AREA, UNTUNED, RuleSearch

STEPS = (
    ("threshold",),
    ("area", "triplet", "presence", "expected", "rank"),
    ("watershed", "separator"),
    ("components",),
)
"""The steps in order. The steps of a group are alternatives, the plainest first: those of the second group decide when
a mask becomes empty, and those of the third separate objects."""
COUNTED = 6
"""The largest number of thresholds at which regions are counted."""

CountRegions = Callable[[Sequence[Sequence[int]]], tuple[np.ndarray, np.ndarray]]
"""Takes thresholds, one list per class; returns predicted and intersection pixels (N, C, T, V); see Regions."""


class CurveProblem(Protocol):
    """A problem that can be scored around a decision, for curves."""

    metric: Metric

    def counts(self, decision: Rules, rows: np.ndarray) -> np.ndarray:
        """Returns the counts that the metric's score sums over images, one row per image (n, …)."""

    def curve_values(self, rule: Rule) -> tuple[Sequence[int], Sequence[int]]:
        """Returns the thresholds and the minimum areas of a curve around a rule."""


# --- the problem -----------------------------------------------------------------------------------------------------


def farthest_area(rule: Rule, true: np.ndarray) -> float:
    """Returns the largest minimum area of a curve: beyond the chosen areas of masks and regions, and up to the small
    ones among the true masks (N, C), in pixels."""
    small = float(np.quantile(true[true > 0], LARGEST_AREA)) if (true > 0).any() else 0.0
    return max(64.0, 4.0 * rule.min_area, 4.0 * rule.components.min_size, small)


class MaskProblem:
    """The choice of rules for binary and multilabel masks, on the evidence of out-of-fold images."""

    def __init__(self, evidence: Evidence, metric: str, weights: np.ndarray, count_regions: CountRegions,
                 groups: np.ndarray | None = None) -> None:  # fmt: skip
        """Takes the evidence, and the weights (N, C) and groups (N,) of the images; `count_regions` reads all
        pixels."""
        self.metric = named(metric)
        self.score: Score = self.metric.objective
        self.evidence, self.weights, self._count_regions = evidence, weights, count_regions
        self.groups = np.arange(len(evidence.true)) if groups is None else groups
        classes = evidence.true.shape[1]
        self.untuned = Rules((UNTUNED,) * classes)
        self._searches = [
            RuleSearch(evidence, index, metric, weights[:, index], self.groups) for index in range(classes)
        ]

    def prepare(self, step: str, decisions: Sequence[Rules]) -> None:
        """Counts regions at the thresholds of the decisions, for the step `components`."""
        if step != "components":
            return
        self.evidence = with_regions(self.evidence, decisions, self._count_regions)
        for search in self._searches:
            search.evidence = self.evidence

    def fit(self, step: str, decision: Rules, rows: np.ndarray, final: bool) -> Rules:
        """Returns the decision with the step applied to every class."""
        pairs = zip(self._searches, decision.rules, strict=True)
        return Rules(tuple(getattr(search, step)(rule, rows) for search, rule in pairs))

    def curve_values(self, rule: Rule) -> tuple[Sequence[int], Sequence[int]]:
        """Returns the thresholds and the minimum areas of a curve around a rule."""
        areas = [int(area) for area in AREAS if area <= farthest_area(rule, self.evidence.true)]
        return range(8, LEVELS, 8), areas

    def evidence_of(self, decision: Rules) -> Evidence:
        """Returns the evidence, which contains the regions at the thresholds of a decision that was chosen on it."""
        return self.evidence

    def measured(self, decision: Rules, rows: np.ndarray) -> np.ndarray:
        """Returns the images' pixel counts (n, 3, C)."""
        return image_counts(self.evidence.only(rows), decision)

    def counts(self, decision: Rules, rows: np.ndarray) -> np.ndarray:
        """Returns the counts that the metric's score sums over images, one row per image (n, …)."""
        return self.metric.rows(self.measured(decision, rows), self.weights[rows], self.groups[rows])


def steps_of(
    settings: TuneSettings,
    evidence: Evidence,
    metric: Metric,
    single: bool = True,
    separating: Sequence[str] = (),
) -> list[list[str]]:
    """Returns the steps of the settings that a search can try, as groups of alternatives.

    `expected` and `rank` depend on the confidence of a model. A mean of models is less confident than each of them, and
    `expected` would empty masks on which all models agree, so both steps are tried only if the `single` models of test
    images are known. They also compare scores of different images, so they need a metric that is a mean over images.
    With a metric that needs whole masks, only the steps of drawn_masks.py are tried, including `separating`.
    """
    lacking: set[str] = set() if evidence.presence is not None else {"presence"}
    wanted = set[str](settings.steps) - lacking - (set() if single and metric.by_image else {"expected", "rank"})
    if metric.counted == "masks":
        wanted &= {"threshold", "area", "components", *separating}
    else:
        wanted -= {"watershed", "separator"}
    groups = [[step for step in group if step in wanted] for group in STEPS]
    return [group for group in groups if group]


def fixed(settings: TuneSettings, classes: int, separator: Separator | None = None) -> Rules:
    """Returns the fixed rules of the settings. Separators, if the network predicts them, are used with threshold
    0.5."""
    apart = Separation(separator, LEVELS // 2) if separator else None
    threshold = max(1, round(settings.threshold * (LEVELS - 1)))
    return Rules((replace(UNTUNED, threshold=threshold, min_area=settings.min_area, separation=apart),) * classes)


def collect(held: HeldOut, weightings: Sequence[Weighting]) -> list[Evidence]:
    """Returns the counts of all out-of-fold images under each of the weightings, in one pass."""
    images = held.images.astype(object)  # rows of Arrow's strings are slow to select
    evidences = [_uncounted(held, weighting, images) for weighting in weightings]

    def count(number: int, probabilities: list[np.ndarray], true: np.ndarray) -> None:
        # written into place directly, because lists of small arrays would double the memory
        for evidence, planes in zip(evidences, probabilities, strict=True):
            tables = evidence.area, evidence.predicted, evidence.intersection, evidence.true
            for counts, of_image in zip(tables, histogram_counts(planes, true), strict=True):
                counts[number] = of_image

    held.each(weightings, count, "tune")
    return evidences


def _uncounted(held: HeldOut, weighting: Weighting, images: pd.DataFrame) -> Evidence:
    """Returns evidence with uninitialised counts."""
    shape = len(held.rows), len(held.run.competition.classes)
    area, predicted, intersection = (np.empty((*shape, LEVELS), np.int32) for _ in range(3))
    return Evidence(images, area, predicted, intersection, np.empty(shape, np.int64), held.presence(weighting))


def curves(problem: CurveProblem, decision: Rules, rows: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Returns the score of the images at `rows` around the decision, as [value, score] by class and parameter.

    One parameter of one class is varied at a time. The rules for regions are left out of the threshold's curve, because
    regions are counted at few thresholds.
    """

    def curve(place: int, moved: Sequence[Rule], values: Sequence[int]) -> list[list[float]]:
        points = []
        for rule, value in zip(moved, values, strict=True):
            rules = tuple(rule if other == place else unchanged for other, unchanged in enumerate(decision.rules))
            points.append([value, float(problem.metric.score(problem.counts(Rules(rules), rows).sum(0)))])
        return points

    result = {}
    for place, (name, rule) in enumerate(zip(classes, decision.rules, strict=True)):
        bare = replace(rule, components=RegionRule(), rank=None)
        levels, areas = problem.curve_values(rule)
        at_levels = [replace(bare, threshold=level, top=rule.top and max(rule.top, level)) for level in levels]
        at_areas = [replace(rule, min_area=area) for area in areas]
        result[name] = {"threshold": curve(place, at_levels, levels), "min_area": curve(place, at_areas, areas)}
    return result


def summary(evidence: Evidence, decision: Rules) -> dict[str, float]:
    """Returns statistics of the predicted masks: the share of images with an empty mask, the mean area in pixels, and
    the mean of the highest probability of each image, from 0 to 1."""
    areas = predicted_area(evidence, decision).sum(1)
    highest = evidence.highest.max(1).mean() / (LEVELS - 1)
    return {"share_empty": float((areas == 0).mean()), "mean_area": float(areas.mean()), "highest": float(highest)}


def region_counter(held: HeldOut, weighting: Weighting) -> CountRegions:
    """Returns a function that counts the regions of all images under a weighting."""

    def count_regions(thresholds: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        def count(number: int, probabilities: list[np.ndarray], true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return shortlist_counts(probabilities[0], true, thresholds)

        counts = held.each([weighting], count, "count regions")
        predicted, intersection = zip(*counts, strict=True)
        return np.stack(predicted), np.stack(intersection)

    return count_regions


def with_regions(evidence: Evidence, decisions: Sequence[Rules], count_regions: CountRegions) -> Evidence:
    """Returns the evidence with regions counted at the thresholds of the decisions, or at some of them if there are too
    many."""
    classes = range(evidence.true.shape[1])
    chosen = [_shortlist([decision.rules[index].threshold for decision in decisions]) for index in classes]
    length = max(map(len, chosen))
    thresholds = tuple(_lengthened(of_class, length) for of_class in chosen)
    return replace(evidence, regions=Regions(thresholds, *count_regions(thresholds)))


def _shortlist(thresholds: list[int]) -> list[int]:
    """Returns at most COUNTED thresholds, ascending: the first one, and others spread evenly over the sorted list."""
    distinct = sorted(set(thresholds))
    if len(distinct) > COUNTED:
        places = np.linspace(0, len(distinct) - 1, COUNTED - 1).round().astype(int)
        distinct = sorted({thresholds[0], *(distinct[place] for place in places)})
    return distinct


def _lengthened(thresholds: list[int], length: int) -> tuple[int, ...]:
    """Returns `length` thresholds: the given ones, filled up with others."""
    spare = (level for level in range(1, LEVELS) if level not in thresholds)
    return tuple(sorted([*thresholds, *(next(spare) for _ in range(length - len(thresholds)))]))
