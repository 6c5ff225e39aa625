"""Binary and multilabel competitions: the rules of every class, as a problem that selection.py chooses steps for."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.components import Components, shortlist_counts
from pipeline.estimates import Score, mean_counts, mean_score
from pipeline.held_out import HeldOut, Mix
from pipeline.histograms import histogram_counts
from pipeline.postprocess import LEVELS, Rule, Rules
from pipeline.recipe import TuneSettings
from pipeline.thresholds import AREAS, UNTUNED, Evidence, Regions, Tables, image_scores, predicted_area

STEPS = (("threshold",), ("area", "triplet", "presence", "expected"), ("components",))
"""In this order; of the second, which say when a mask becomes empty, one at most."""
COUNTED = 6
"""Thresholds at which connected regions are counted, at most."""

CountRegions = Callable[[Sequence[Sequence[int]]], tuple[np.ndarray, np.ndarray]]
"""From thresholds, a list a class, to predicted and intersection pixels (N, C, T, V); see Regions."""


class MaskProblem:
    """Rules of binary and multilabel masks, on the evidence of out-of-fold images."""

    def __init__(self, evidence: Evidence, metric: str, weights: np.ndarray, count_regions: CountRegions) -> None:
        """Weights (N, C) of the images; `count_regions` passes over the pixels once."""
        self.score: Score = mean_score
        self.evidence, self.metric, self.weights, self._count_regions = evidence, metric, weights, count_regions
        classes = evidence.true.shape[1]
        self.untuned = Rules((UNTUNED,) * classes)
        self._tables = [Tables(evidence, index, metric, weights[:, index]) for index in range(classes)]

    def prepare(self, step: str, decisions: Sequence[Rules]) -> None:
        """Counts connected regions at the thresholds of the decisions, before `components`."""
        if step != "components":
            return
        chosen = [_shortlist([decision.rules[index].threshold for decision in decisions])
                  for index in range(len(self._tables))]  # fmt: skip
        length = max(map(len, chosen))
        thresholds = tuple(_lengthened(one, length) for one in chosen)
        self.evidence = replace(self.evidence, regions=Regions(thresholds, *self._count_regions(thresholds)))
        for table in self._tables:
            table.evidence = self.evidence

    def fit(self, step: str, decision: Rules, rows: np.ndarray, final: bool) -> Rules:
        """Returns the decision with the step taken for every class."""
        pairs = zip(self._tables, decision.rules, strict=True)
        return Rules(tuple(getattr(table, step)(rule, rows) for table, rule in pairs))

    def counts(self, decision: Rules, rows: np.ndarray) -> np.ndarray:
        """Returns the images' weighted scores and weights (n, 2)."""
        return mean_counts(image_scores(self.evidence.only(rows), decision, self.metric), self.weights[rows])


def steps_of(settings: TuneSettings, evidence: Evidence, single: bool = True) -> list[list[str]]:
    """Returns the steps that a search tries, alternatives together: those of the settings that the evidence allows.

    Unless `single` models can be asked of a test image, `expected` is not tried: it goes by how sure a model is, and a
    mean of models is less sure than any, so that it would empty masks that all of them agree on.
    """
    lacking: set[str] = set() if evidence.presence is not None else {"presence"}
    wanted = set[str](settings.steps) - lacking - (set() if single else {"expected"})
    found = [[one for one in group if one in wanted] for group in STEPS]
    return [group for group in found if group]


def fixed(settings: TuneSettings, classes: int) -> Rules:
    """Returns the rules that the settings tell."""
    threshold = max(1, round(settings.threshold * (LEVELS - 1)))
    return Rules((replace(UNTUNED, threshold=threshold, min_area=settings.min_area),) * classes)


def collect(held: HeldOut, mixes: Sequence[Mix]) -> list[Evidence]:
    """Returns the counts of all out-of-fold images under each of the mixes, in one pass."""

    def count(number: int, probabilities: list[np.ndarray], true: np.ndarray) -> list[tuple[np.ndarray, ...]]:
        return [histogram_counts(one, true) for one in probabilities]

    found = held.each(mixes, count, "tune")
    evidences = []
    for mix, counts in zip(mixes, zip(*found, strict=True), strict=True):
        area, predicted, intersection, true = (np.stack(part) for part in zip(*counts, strict=True))
        evidences.append(Evidence(held.images, area, predicted, intersection, true, held.presence(mix)))
    return evidences


def curves(problem: MaskProblem, decision: Rules, rows: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Returns how the score of the images at `rows` falls around the decision: by class and parameter, [value, score].

    One parameter of one class moves, everything else stays. Regions are counted at few thresholds, so they are left out
    of the threshold's curve.
    """
    levels = range(8, LEVELS, 8)

    def curve(place: int, moved: Sequence[Rule], values: Sequence[int]) -> list[list[float]]:
        found = []
        for rule, value in zip(moved, values, strict=True):
            rules = tuple(rule if other == place else one for other, one in enumerate(decision.rules))
            found.append([value, float(problem.score(problem.counts(Rules(rules), rows).sum(0)))])
        return found

    result = {}
    for place, (name, rule) in enumerate(zip(classes, decision.rules, strict=True)):
        bare = replace(rule, components=Components())
        at_levels = [replace(bare, threshold=level, top=rule.top and max(rule.top, level)) for level in levels]
        areas = [int(area) for area in AREAS if area <= max(64, 4 * rule.min_area)]
        at_areas = [replace(rule, min_area=area) for area in areas]
        result[name] = {"threshold": curve(place, at_levels, levels), "min_area": curve(place, at_areas, areas)}
    return result


def summary(evidence: Evidence, decision: Rules) -> dict[str, float]:
    """Returns what the predicted masks look like as a whole: share of images without any, mean area in pixels, and the
    mean of the images' highest probabilities, 0 to 1."""
    areas = predicted_area(evidence, decision).sum(1)
    highest = evidence.highest.max(1).mean() / (LEVELS - 1)
    return {"share_empty": float((areas == 0).mean()), "mean_area": float(areas.mean()), "highest": float(highest)}


def region_counter(held: HeldOut, mix: Mix) -> CountRegions:
    """Returns the function that counts connected regions of all images under a mix."""

    def count_regions(thresholds: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        def count(number: int, probabilities: list[np.ndarray], true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return shortlist_counts(probabilities[0], true, thresholds)

        found = held.each([mix], count, "count regions")
        predicted, intersection = zip(*found, strict=True)
        return np.stack(predicted), np.stack(intersection)

    return count_regions


def _shortlist(thresholds: list[int]) -> list[int]:
    """The first, and of the others those spread evenly over their order, ascending."""
    distinct = sorted(set(thresholds))
    if len(distinct) > COUNTED:
        places = np.linspace(0, len(distinct) - 1, COUNTED - 1).round().astype(int)
        distinct = sorted({thresholds[0], *(distinct[place] for place in places)})
    return distinct


def _lengthened(thresholds: list[int], length: int) -> tuple[int, ...]:
    """As many thresholds as every class has, with further ones where a class has fewer."""
    spare = (level for level in range(1, LEVELS) if level not in thresholds)
    return tuple(sorted([*thresholds, *(next(spare) for _ in range(length - len(thresholds)))]))
