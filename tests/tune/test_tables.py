"""The exact tables of metrics that are no mean over images, held against the score of what every candidate draws."""

from dataclasses import replace

import numpy as np
import pytest
from evidence import Images, random_images
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.masks.bootstrap import presence_weights
from pipeline.masks.decision import Presence, Rule, Rules
from pipeline.masks.metric import Metric
from pipeline.masks.metrics import METRICS
from pipeline.masks.overlaps import counts, dice, iou_precision
from pipeline.tune.mask_rules import MaskProblem, steps_of
from pipeline.tune.rule_search import AREAS, CUTS, RuleSearch
from pipeline.tune.selection import Choice, Fits, deal, partitions_of, select

METRICS_HERE = {
    "pooled_dice": Metric("pooled_dice", dice, unit="data_set"),
    "group_dice": Metric("group_dice", dice, unit="group"),
    "weighed_dice": Metric("weighed_dice", dice, unit="group", weigh="images"),
    "group_precision": Metric("group_precision", iou_precision, unit="group"),
}
NUMBER = 24
GROUPS = np.array([f"patient {number // 3 if number < 15 else 5}" for number in range(NUMBER)])
"""Five of three images, and one of nine."""


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, metric in METRICS_HERE.items():
        monkeypatch.setitem(METRICS, name, metric)


def images_of(seed: int, classes: int = 1) -> Images:
    return random_images(seed, classes=classes, number=NUMBER, shape=(14, 18))


def problem_of(images: Images, metric: str, prior: float | None = None) -> MaskProblem:
    evidence = images.evidence()
    weights = presence_weights(evidence.true, prior)
    return MaskProblem(evidence, metric, weights, lambda _: (np.zeros(0), np.zeros(0)), GROUPS)


def score(problem: MaskProblem, rule: Rule, rows: np.ndarray) -> float:
    """By the counts of the masks that a rule draws, times the units, as a table sums over them."""
    units = len(np.unique(GROUPS[rows])) if problem.metric.unit == "group" else 1
    units = len(rows) if problem.metric.weigh == "images" else units
    return units * float(problem.score(problem.counts(Rules((rule,)), rows).sum(0)))


@pytest.mark.parametrize("prior", [None, 0.3])
@pytest.mark.parametrize("metric", ["pooled_dice", "group_dice", "weighed_dice"])
def test_every_cell_is_the_score_of_its_rule(metric: str, prior: float | None) -> None:
    problem, rows = problem_of(images_of(1), metric, prior), np.random.default_rng(0).permutation(NUMBER)[:15]
    search: RuleSearch = problem._searches[0]
    sums, worth = search.area_sums(rows, np.arange(256)), search.table.worth(rows)
    low = search.area_sums(rows, np.arange(90, 256, 8), 90)
    for threshold in (1, 40, 128, 129, 250):
        assert worth[threshold] == pytest.approx(score(problem, Rule(threshold), rows))
        for area in range(0, len(sums), 3):
            rule = Rule(threshold, int(AREAS[area]))
            assert sums[area, threshold] == pytest.approx(score(problem, rule, rows)), rule
    for place, top in enumerate(range(90, 256, 8)):
        for area in range(0, len(low), 4):
            rule = Rule(90, int(AREAS[area]), top)
            assert low[area, place] == pytest.approx(score(problem, rule, rows)), rule


@pytest.mark.parametrize("metric", list(METRICS_HERE))
def test_what_a_step_chooses_is_the_best_that_it_tries(metric: str) -> None:
    problem, rows = problem_of(images_of(2), metric), np.arange(NUMBER)
    thresholds = range(1, 256)
    for step in ("threshold", "area", "triplet", "presence"):
        (rule,) = problem.fit(step, problem.untuned, rows, True).rules
        reached = score(problem, rule, rows)
        areas = AREAS[: problem._searches[0].areas(rows)] if step != "threshold" else [0]
        best = max(score(problem, Rule(one, int(area)), rows) for one in thresholds for area in areas)
        if step in ("threshold", "area"):
            assert reached == pytest.approx(best)
        if step == "presence":
            others = [replace(rule, presence=Presence(cut=float(cut)) if cut else None) for cut in CUTS]
            assert reached >= max(score(problem, other, rows) for other in others) - 1e-9


def test_a_large_group_weighs_more_where_images_are_weighed() -> None:
    images, rows = images_of(5), np.arange(NUMBER)
    scores = {name: problem_of(images, name) for name in ("group_dice", "weighed_dice")}
    by_group = []
    for name in np.unique(GROUPS):
        i, p, t = scores["group_dice"].measured(Rules((Rule(),)), rows[name == GROUPS]).sum(0)[:, 0]
        by_group.append((1.0 if p + t == 0 else 2 * i / (p + t), (name == GROUPS).sum()))
    values, sizes = np.array(by_group).T
    for name, expected in (("group_dice", values.mean()), ("weighed_dice", np.average(values, weights=sizes))):
        problem = scores[name]
        assert float(problem.score(problem.counts(problem.untuned, rows).sum(0))) == pytest.approx(expected)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000))
def test_counts_are_those_of_the_drawn_masks(seed: int) -> None:
    images, decision = images_of(seed, 2), Rules((Rule(100, 9), Rule(150)))
    found = MaskProblem(images.evidence(), "dice", np.ones((NUMBER, 2)), lambda _: (np.zeros(0), np.zeros(0)))
    drawn = [np.stack(counts(mask, true)) for mask, true in zip(images.masks(decision), images.truths, strict=True)]
    np.testing.assert_array_equal(found.measured(decision, np.arange(NUMBER)), drawn)


def test_an_expectation_of_one_image_is_not_tried() -> None:
    from pipeline.core.config.recipe import TuneSettings

    evidence = images_of(3).evidence()
    tried = {name: [*sum(steps_of(TuneSettings(), evidence, METRICS[name]), [])] for name in ("dice", "group_dice")}
    assert set(tried["dice"]) - set(tried["group_dice"]) == {"expected", "rank"}


@pytest.mark.parametrize("metric", ["pooled_dice", "group_dice"])
def test_steps_are_judged_on_images_they_were_not_fitted_to(metric: str) -> None:
    problem = problem_of(images_of(4), metric)
    everyone, folds = np.arange(NUMBER), np.arange(NUMBER) // 3 % 3
    cells = deal(folds, GROUPS)
    choice = Choice(Fits(problem, everyone, cells), GROUPS, partitions_of(cells, folds, count=3))
    assert len(np.unique(cells)) == len(np.unique(choice.groups)) == 6
    select([choice], [["threshold"], ["area", "triplet"]], 0.5, lambda: None)
    assert [tried.step for tried in choice.tried] == ["threshold", "area", "triplet"]
    assert all(np.isfinite(tried.gain.value) for tried in choice.tried)
    assert any(tried.kept for tried in choice.tried)
    for part in (part for partition in choice.partitions for part in partition):
        others, expected = choice.fits.outside(part), problem.untuned
        assert not set(GROUPS[others]) & set(GROUPS[choice.fits.inside(part)])
        for step in choice.path:
            expected = problem.fit(step, expected, others, False)
        assert choice.fits.decision(choice.path, part) == expected
    final = problem.counts(choice.decision, everyone).sum(0)
    assert problem.score(final) > problem.score(problem.counts(problem.untuned, everyone).sum(0))
