"""Rules for masks under a metric that needs whole masks, as a problem for selection.py.

Scores of boundaries or instances cannot be tabulated over thresholds, because a mask must be drawn to be scored. The
threshold and the minimum area are therefore tried on small grids. Each candidate is drawn once per image, and the
metric's measurements are cached. For metrics of instances, ways to separate touching objects are tried in the same way,
and then the threshold again, because a high threshold that separates objects is no longer needed with a watershed. The
other steps of tune (triplet, presence, expected, rank) are not tried.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from pipeline.core.config.raw_layouts import RleCsv
from pipeline.core.run import Run
from pipeline.masks.bootstrap import Score
from pipeline.masks.decision import Rule, Rules, decide, objects
from pipeline.masks.metric import Metric
from pipeline.masks.metrics import metric_of
from pipeline.masks.regions import SHORTLIST, RegionRule
from pipeline.masks.separation import SEPARATORS, WATERSHEDS, Separation
from pipeline.predictions.blends import separator_of
from pipeline.tune.evidence import Evidence
from pipeline.tune.held_out import HeldOut, Weighting
from pipeline.tune.mask_rules import MaskProblem, farthest_area, region_counter, with_regions
from pipeline.tune.rule_search import LARGEST_AREA, UNTUNED

THRESHOLDS = tuple(range(32, 256, 32))
"""The thresholds that are tried, out of 255."""
AREAS = (0, 16, 64, 256, 1024, 4096, 16384)
"""The minimum areas that are tried, in native pixels, up to the tenth percentile of the areas of true masks."""

APART = ("watershed", "separator")
"""The steps that separate objects."""


def separating(run: Run) -> list[str]:
    """Returns the steps for separating touching objects that the metric and the predictions of a run allow.

    Raises:
        PipelineError: some runs of an ensemble predict borders and others distances.
    """
    windows = isinstance(run.competition, RleCsv) and run.competition.windows
    if not metric_of(run.competition).instances or windows:  # a window's edges cut objects
        return []
    return list(APART) if separator_of(run) else ["watershed"]


class DrawnProblem:
    """The choice of rules for binary and multilabel masks, on drawn masks."""

    def __init__(self, held: HeldOut, weighting: Weighting, evidence: Evidence, weights: np.ndarray) -> None:
        """Takes the evidence and the weights (N, C) of the out-of-fold images under a weighting."""
        self.metric: Metric = metric_of(held.run.competition)
        self.score: Score = self.metric.objective
        self.evidence, self.weights, self.groups = evidence, weights, held.images["group"].to_numpy()
        self.untuned = Rules((UNTUNED,) * evidence.true.shape[1])
        self._held, self._weighting = held, weighting
        self._separator = separator_of(held.run)
        self._measured: dict[Rule, np.ndarray] = {}

    def prepare(self, step: str, decisions: Sequence[Rules]) -> None:
        """Draws the candidates of a step."""
        rules = dict.fromkeys(rule for decision in decisions for rule in decision.rules)
        self._draw(candidate for rule in rules for candidate in self._candidates(step, rule))

    def fit(self, step: str, decision: Rules, rows: np.ndarray, final: bool) -> Rules:
        """Returns the decision with the best candidate of a step for every class.

        Of equal candidates, the one with the smallest area is taken, then the plainest change of regions, then the
        threshold nearest 0.5.
        """
        return Rules(tuple(self._fit(step, index, rule, rows) for index, rule in enumerate(decision.rules)))

    def evidence_of(self, decision: Rules) -> Evidence:
        """Returns the evidence, with regions counted at the thresholds of a decision that cleans masks."""
        if all(rule.components == RegionRule() for rule in decision.rules):
            return self.evidence
        return with_regions(self.evidence, [decision], region_counter(self._held, self._weighting))

    def measured(self, decision: Rules, rows: np.ndarray) -> np.ndarray:
        """Returns the metric's measurements of the images' masks (n, K, C)."""
        self._draw(decision.rules)
        planes = [self._measured[rule][rows, :, index] for index, rule in enumerate(decision.rules)]
        return np.stack(planes, axis=2)

    def counts(self, decision: Rules, rows: np.ndarray) -> np.ndarray:
        """Returns the counts that the metric's score sums over images, one row per image (n, …)."""
        return self.metric.rows(self.measured(decision, rows), self.weights[rows], self.groups[rows])

    def curve_values(self, rule: Rule) -> tuple[Sequence[int], Sequence[int]]:
        """Returns the thresholds and the minimum areas of a curve around a rule."""
        self._draw([replace(rule, threshold=threshold) for threshold in THRESHOLDS])
        areas = [area for area in AREAS if area <= farthest_area(rule, self.evidence.true)]
        self._draw([replace(rule, min_area=area) for area in areas])
        return THRESHOLDS, areas

    def _candidates(self, step: str, rule: Rule) -> list[Rule]:
        """Returns the candidates of a step for a rule, the plainest first."""
        if step == "components":
            return [replace(rule, components=variant) for variant in (RegionRule(), *SHORTLIST)]
        if step in APART:
            ways = WATERSHEDS if step == "watershed" else SEPARATORS[self._separator or "border"]
            return [rule, *(replace(rule, separation=way) for way in ways)]
        areas = AREAS if step == "area" else (rule.min_area,)
        return [replace(rule, threshold=threshold, min_area=area) for area in areas for threshold in THRESHOLDS]

    def _fit(self, step: str, index: int, rule: Rule, rows: np.ndarray) -> Rule:
        """Returns the best candidate of a step for one class; a step that separates objects also chooses a new
        threshold. Without images the rule is unchanged."""
        if not len(rows):
            return rule
        best = self._best(step, index, rule, rows)
        return self._best("threshold", index, best, rows) if step in APART and best != rule else best

    def _best(self, step: str, index: int, rule: Rule, rows: np.ndarray) -> Rule:
        true = self.evidence.true[rows, index]
        largest = np.quantile(true[true > 0], LARGEST_AREA) if true.any() else 0
        candidates = self._candidates(step, rule)
        if step == "area":
            candidates = [candidate for candidate in candidates if candidate.min_area <= max(0, largest)]
        self._draw(candidates)
        scores = [self._worth(candidate, index, rows) for candidate in candidates]
        tied = [place for place, value in enumerate(scores) if value >= max(scores) - 1e-9]
        order = [(candidates[place].min_area, abs(candidates[place].threshold - UNTUNED.threshold)) for place in tied]
        return candidates[tied[order.index(min(order))]]

    def _worth(self, candidate: Rule, index: int, rows: np.ndarray) -> float:
        """Returns the score of one class under a candidate; larger is better."""
        measured, weights = self._measured[candidate][rows][..., [index]], self.weights[rows][:, [index]]
        return float(self.score(self.metric.rows(measured, weights, self.groups[rows]).sum(0)))

    def _draw(self, candidates: Iterable[Rule]) -> None:
        """Draws and measures the candidates that are not cached, in one pass over the images."""
        missing = [candidate for candidate in dict.fromkeys(candidates) if candidate not in self._measured]
        if not missing:
            return
        classes = self.evidence.true.shape[1]

        def measure(probabilities: Sequence[Sequence[np.ndarray]], true: Sequence[np.ndarray]) -> np.ndarray:
            known: dict[tuple[int, RegionRule, Separation | None, bytes], np.ndarray] = {}
            counts = []
            for rule in missing:
                rules = Rules((rule,) * classes)
                masks = [decide(planes[:classes], rules) for planes in probabilities[0]]
                # most minimum areas change nothing; candidates differ only in the masks that become empty
                empty = np.array([mask.any((1, 2)) for mask in masks]).tobytes()
                drawn = rule.threshold, rule.components, rule.separation, empty
                if drawn not in known:
                    known[drawn] = self.metric.measured(
                        [_objects(mask, planes, rules) for mask, planes in zip(masks, probabilities[0], strict=True)],
                        true,
                    )
                counts.append(known[drawn])
            return np.stack(counts, axis=1)

        batches = self.metric.batches(self.groups)
        separators = any(rule.separation for rule in missing)
        measured = self._held.each_batch([self._weighting], batches, measure, "draw masks", separators)
        self._measured |= {candidate: measured[:, place] for place, candidate in enumerate(missing)}


def _objects(masks: np.ndarray, planes: np.ndarray, rules: Rules) -> np.ndarray:
    """Returns the objects of masks (C, h, w), from planes of probabilities and, optionally, of separators (C or 2·C, h,
    w)."""
    classes = len(masks)
    return objects(masks, planes[:classes], planes[classes:] if len(planes) > classes else None, rules)


def problem_of(
    held: HeldOut, weighting: Weighting, evidence: Evidence, weights: np.ndarray
) -> MaskProblem | DrawnProblem:
    """Returns the problem of choosing rules with the competition's metric, on the evidence under a weighting."""
    metric = metric_of(held.run.competition)
    if metric.counted == "masks":
        return DrawnProblem(held, weighting, evidence, weights)
    groups = held.images["group"].to_numpy()
    return MaskProblem(evidence, metric.name, weights, region_counter(held, weighting), groups)
