"""Which steps earn their place: on which images each is fitted and judged, and how often noise passes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from evidence import Images, random_images

from pipeline.masks.bootstrap import Score, mean_counts, mean_score
from pipeline.masks.decision import Presence, Rule, Rules
from pipeline.masks.regions import SHORTLIST, shortlist_counts
from pipeline.tune.mask_rules import COUNTED, CountRegions, MaskProblem, RuleSearch
from pipeline.tune.selection import PARTS, Choice, open_choice, parts_of, select


def chosen(problem: Any, steps: Sequence[str], confidence: float = 0.9, rows: np.ndarray | None = None,
           folds: np.ndarray | None = None, groups: np.ndarray | None = None, images: int = 60) -> Choice:  # fmt: skip
    """The choice on some of the images, of three folds and each alone by default."""
    rows = np.arange(images) if rows is None else rows
    folds = np.arange(images) % 3 if folds is None else folds
    choice = open_choice(problem, rows, folds, np.arange(images) if groups is None else groups)
    select([choice], [[step] for step in steps], confidence, lambda: None)
    return choice


# --- parts -----------------------------------------------------------------------------------------------------------


def test_parts_are_folds_or_sets_of_groups() -> None:
    folds = np.array([4, 1, 4, 0, 1])
    np.testing.assert_array_equal(parts_of(folds, np.arange(5)), [2, 1, 2, 0, 1])
    groups = np.arange(120) // 3
    parts = parts_of(np.full(120, 2), groups)
    assert np.bincount(parts).tolist() == [24] * PARTS
    assert all(len(set(parts[groups == one])) == 1 for one in range(40))
    assert (np.diff(parts.reshape(40, 3)[:, 0]) != 0).sum() > 10  # not one stretch after the other
    np.testing.assert_array_equal(parts, parts_of(np.full(120, 2), groups))
    assert sorted(parts_of(np.zeros(3, int), np.array(["b", "a", "c"]))) == [0, 1, 2]
    assert set(parts_of(np.zeros(9, int), np.full(9, "one"))) == {0}
    assert parts_of(np.zeros(0, int), np.zeros(0, str)).shape == (0,)


# --- what a step is fitted to and judged on --------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """A decision that remembers its steps and the images it was fitted to."""

    steps: tuple[str, ...] = ()
    rows: frozenset[int] = frozenset()


@dataclass
class Spy:
    """Scores of 60 images: noise, plus what each step brings, and what it seems to bring to images it was fitted to."""

    brings: dict[str, float] = field(default_factory=dict)
    seems: float = 0.0
    fits: list[tuple[str, Seen, frozenset[int], bool]] = field(default_factory=list)
    judged: list[tuple[Seen, list[int]]] = field(default_factory=list)
    prepared: list[tuple[str, list[Seen]]] = field(default_factory=list)
    untuned: Seen = Seen()
    score: Score = mean_score

    def prepare(self, step: str, decisions: Sequence[Seen]) -> None:
        self.prepared.append((step, list(decisions)))

    def fit(self, step: str, decision: Seen, rows: np.ndarray, final: bool) -> Seen:
        self.fits.append((step, decision, frozenset(rows.tolist()), final))
        return decision if step == "nothing" else Seen((*decision.steps, step), frozenset(rows.tolist()))

    def counts(self, decision: Seen, rows: np.ndarray) -> np.ndarray:
        self.judged.append((decision, rows.tolist()))
        scores = np.random.default_rng(0).standard_normal(60)
        for step in decision.steps:
            change = np.random.default_rng([len(step), ord(step[0])]).standard_normal(60)
            scores += self.brings.get(step, 0.0) + change - change.mean()  # the noise of the difference is one
        known = np.isin(rows, list(decision.rows))
        return mean_counts(scores[rows] + self.seems * known)


@pytest.mark.parametrize("one_fold", [False, True])
def test_a_step_is_judged_on_images_it_was_not_fitted_to(one_fold: bool) -> None:
    spy, rows = Spy({"good": 1.0, "bad": -1.0}), np.setdiff1d(np.arange(60), [3, 17, 18])[::-1]
    folds, groups = (np.zeros(60, int) if one_fold else np.arange(60) % 3), np.arange(60) // 2
    choice = chosen(spy, ["good", "bad", "nothing", "good"], rows=rows, folds=folds, groups=groups)
    assert [one.kept for one in choice.tried] == [True, False, False, True]
    assert [one.decision.steps for one in choice.tried] == [("good",), ("good", "bad"), ("good",), ("good", "good")]
    everything, parts = set(rows.tolist()), PARTS if one_fold else 3
    assert len(spy.judged) == 3 * 2 * parts  # three steps changed something: before and after, each part
    for start in range(0, len(spy.judged), parts):
        together = spy.judged[start : start + parts]
        assert sorted(row for _, part in together for row in part) == sorted(everything)
        for decision, part in together:
            assert not decision.rows & set(part)
            if decision.steps:
                assert decision.rows == everything - set(part)
            if one_fold:
                assert not {row // 2 for row in part} & {row // 2 for row in decision.rows}  # groups stay whole
    assert choice.decision == Seen(("good", "good"), frozenset(everything))
    for _, decision, fitted, final in spy.fits:
        assert fitted <= everything
        assert final == (fitted == everything)
        assert decision.rows in (fitted, frozenset())  # a part's own decision goes on, never the one that saw the part


def test_a_step_that_only_fits_what_it_sees_is_refused() -> None:
    spy = Spy({"mirage": -0.5}, seems=2.0)
    choice = chosen(spy, ["mirage"])
    assert (
        spy.counts(Seen(("mirage",), frozenset(range(60))), np.arange(60))[:, 0].sum() > 60
    )  # to itself it looks good
    assert [(one.kept, one.gain.confidence) for one in choice.tried] == [(False, 0.0)]
    assert choice.tried[0].gain.value == pytest.approx(-0.5)
    assert choice.decision == Seen()


def test_confidence_decides_where_a_gain_is_weak() -> None:
    brings = {"step": 1 / 60**0.5}  # one standard error: seen in about 84 % of the draws
    tried = chosen(Spy(brings), ["step"]).tried[0]
    assert tried.gain.standard_error == pytest.approx(1 / 60**0.5, rel=0.25)
    assert 0.75 < tried.gain.confidence < 0.9
    assert not tried.kept
    assert chosen(Spy(brings), ["step"], confidence=0.7).tried[0].kept
    # without any gain, a confidence of a half is no reason
    assert not chosen(Spy({"step": 0.0}), ["nothing"], confidence=0.5).tried[0].kept
    assert not chosen(Spy({"step": -0.001}), ["step"], confidence=0.5).tried[0].kept


def test_what_changes_nothing_is_not_judged() -> None:
    spy = Spy()
    tried = chosen(spy, ["nothing"]).tried[0]
    assert (tried.kept, tried.gain.value, tried.gain.confidence, tried.decision) == (False, 0.0, 0.5, Seen())
    assert spy.judged == []


def test_all_choices_take_a_step_before_any_takes_the_next() -> None:
    first, second = Spy({"a": 1.0}), Spy({"a": 1.0})
    folds, groups = np.arange(60) % 3, np.arange(60)
    choices = [
        open_choice(one, np.flatnonzero(folds != part), folds, groups)
        for part, one in enumerate([first, first, second])
    ]
    steps_done: list[int] = []
    select(choices, [["a"], ["b"]], 0.9, lambda: steps_done.append(1))
    assert len(steps_done) == 6
    assert [(step, len(decisions)) for step, decisions in first.prepared] == [
        ("a", 6),
        ("b", 6),
    ]
    assert [(step, len(decisions)) for step, decisions in second.prepared] == [("a", 3), ("b", 3)]
    assert {one.steps for one in first.prepared[1][1]} == {("a",)}


def test_of_alternatives_the_best_is_kept() -> None:
    worse, better = Spy({"a": 1.0, "b": 2.0}), Spy({"a": 2.0, "b": 1.0})
    for problem, name in ((worse, "b"), (better, "a")):
        choice = open_choice(problem, np.arange(60), np.arange(60) % 3, np.arange(60))
        select([choice], [["a", "b"]], 0.9, lambda: None)
        assert [(one.step, one.kept) for one in choice.tried] == [("a", name == "a"), ("b", name == "b")]
        assert choice.decision == next(one.decision for one in choice.tried if one.kept)


# --- how often noise passes ------------------------------------------------------------------------------------------


@dataclass
class Arms:
    """A step that takes the best of many arms, of which none is better than doing nothing."""

    scores: np.ndarray
    """(N, arms)."""
    untuned: int = 0
    score: Score = mean_score

    def prepare(self, step: str, decisions: Sequence[int]) -> None:
        pass

    def fit(self, step: str, decision: int, rows: np.ndarray, final: bool) -> int:
        return int(self.scores[rows].mean(0).argmax())

    def counts(self, decision: int, rows: np.ndarray) -> np.ndarray:
        return mean_counts(self.scores[rows, decision])


@pytest.mark.parametrize(("confidence", "most"), [(0.9, 0.15), (0.99, 0.04)])
def test_noise_passes_about_as_seldom_as_the_confidence_says(confidence: float, most: float) -> None:
    """Of 600 choices among 20 arms of noise, a confidence of 0.9 keeps 82, and 0.99 keeps 20.

    More than 60 and 6, as the parts that judge an arm share most of the images that chose it.
    """
    draws = [np.random.default_rng(seed).standard_normal((60, 20)) for seed in range(600)]
    kept = [chosen(Arms(scores), ["best"], confidence).tried[0].kept for scores in draws]
    assert 0 < np.mean(kept) < most
    apparent = [scores.mean(0).max() - scores[:, 0].mean() for scores in draws]
    assert np.mean(apparent) > 0.2  # nearly two standard errors, to the images that chose it


def test_a_better_arm_is_found() -> None:
    draws = [np.random.default_rng(seed).standard_normal((60, 20)) for seed in range(100)]
    for scores in draws:
        scores[:, 7] += 1
    tried = [chosen(Arms(scores), ["best"]).tried[0] for scores in draws]
    assert np.mean([one.kept for one in tried]) > 0.95
    assert np.mean([one.gain.value for one in tried]) == pytest.approx(1, abs=0.1)


# --- rules of masks --------------------------------------------------------------------------------------------------

STEPS = ("threshold", "area", "triplet", "presence", "expected", "components")


def counter(images: Images, asked: list[Sequence[Sequence[int]]]) -> CountRegions:
    """Counts regions of these images, and notes at which thresholds."""

    def count(thresholds: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        asked.append(thresholds)
        pairs = zip(images.probabilities, images.truths, strict=True)
        predicted, intersection = zip(*(shortlist_counts(*pair, thresholds) for pair in pairs), strict=True)
        return np.stack(predicted), np.stack(intersection)

    return count


def problem_of(images: Images, weights: np.ndarray | None = None, metric: str = "dice") -> MaskProblem:
    weights = np.ones((len(images.truths), images.truths[0].shape[0])) if weights is None else weights
    return MaskProblem(images.evidence(), metric, weights, counter(images, []))


@pytest.fixture(scope="module")
def two_classes() -> Images:
    return random_images(31, classes=2, number=60)


def test_every_class_has_its_own_rule(two_classes: Images) -> None:
    weights, rows = np.random.default_rng(0).uniform(0.2, 3, (60, 2)), np.random.default_rng(1).permutation(60)[:50]
    problem = problem_of(two_classes, weights)
    start = Rules((Rule(100), Rule(150, 3)))
    problem.prepare("components", [start])
    counted = problem.evidence.regions.thresholds  # type: ignore[union-attr]
    for step in STEPS:
        found = problem.fit(step, start, rows, True)
        for index, rule in enumerate(start.rules):
            alone = RuleSearch(two_classes.of_class(index).evidence((counted[index],)), 0, "dice", weights[:, index])
            assert found.rules[index] == getattr(alone, step)(rule, rows), step
        assert found != start


def test_counts_are_weighted_scores_of_masks(two_classes: Images) -> None:
    weights = np.random.default_rng(0).uniform(0.2, 3, (60, 2))
    problem = problem_of(two_classes, weights, "iou")
    rows, decision = np.array([50, 3, 4, 17]), Rules((Rule(90, 12, 200), Rule(160, presence=Presence(cut=0.5))))
    counts, scores = problem.counts(decision, rows), two_classes.scores(decision, "iou")[rows]
    np.testing.assert_allclose(counts, np.stack([(scores * weights[rows]).sum(1), weights[rows].sum(1)], 1), rtol=1e-12)
    mean = (scores * weights[rows]).sum() / weights[rows].sum()
    assert problem.score(counts.sum(0)) == pytest.approx(mean, rel=1e-12)


def test_regions_are_counted_once_at_the_thresholds_of_the_decisions(two_classes: Images) -> None:
    asked: list[Sequence[Sequence[int]]] = []
    problem = MaskProblem(two_classes.evidence(), "dice", np.ones((60, 2)), counter(two_classes, asked))
    decisions = [Rules((Rule(200 - 3 * place), Rule(70 + place // 8))) for place in (2, *range(18))]
    for step in STEPS[:-1]:
        problem.prepare(step, decisions)
    assert asked == []
    problem.prepare("components", decisions)
    first, second = asked[0]
    assert len(asked) == 1 and len(first) == len(second) == COUNTED
    assert 194 in first and (first[0], first[-1]) == (149, 200)  # the final decision's, and those at both ends
    assert set(first) <= {200 - 3 * place for place in range(18)} and sorted(set(first)) == list(first)
    assert {70, 71, 72} < set(second) and sorted(set(second)) == list(second)
    decision = problem.fit("components", decisions[0], np.arange(60), True)
    assert decision.rules[0].components in SHORTLIST and decision.rules[0].threshold == 194
    expected = two_classes.scores(decision, "dice")
    np.testing.assert_allclose(problem.counts(decision, np.arange(60))[:, 0], expected.sum(1), rtol=1e-12)


def test_an_area_that_helps_is_kept_and_another_class_stays() -> None:
    """Specks on every image without a mask; they go with an area of 4."""
    rng, truths, probabilities = np.random.default_rng(0), [], []
    for place in range(60):
        true = np.zeros((2, 12, 12), np.uint8)
        true[1, :6] = 1
        true[0, :, : rng.integers(4, 9)] = place % 2
        probability = np.clip(true * 200.0 + rng.integers(0, 50, true.shape), 0, 255).astype(np.uint8)
        probability[0, 11, -3:] = 255
        truths.append(true)
        probabilities.append(probability)
    problem = problem_of(Images(probabilities, truths))
    choice = chosen(problem, ["threshold", "area", "triplet"])
    assert [(one.step, one.kept) for one in choice.tried] == [("threshold", False), ("area", True), ("triplet", False)]
    assert choice.decision == Rules((Rule(128, 4), Rule(128)))
    assert choice.tried[1].gain.value == pytest.approx(0.25)  # half of the images of one of two classes


def test_one_group_alone_leaves_nothing_to_choose_on() -> None:
    problem, everything = problem_of(random_images(4, number=12)), np.arange(12)
    without = open_choice(problem, everything[:0], np.zeros(12), np.full(12, "one"))
    alone = open_choice(problem, everything, np.zeros(12), np.full(12, "one"))
    select([without, alone], [[step] for step in STEPS], 0.5, lambda: None)
    for choice in (without, alone):
        assert [one.step for one in choice.tried] == list(STEPS)
    assert without.decision == problem.untuned
    assert not any(one.kept for one in without.tried)
