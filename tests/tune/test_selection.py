"""Parts to leave out, images for fitting and judging, false acceptance of noise, and the nested estimate."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from evidence import Images, few_partitions, random_images

from pipeline.core.config.recipe import TuneSettings
from pipeline.masks.bootstrap import Score, mean_counts, mean_score
from pipeline.masks.decision import Presence, Rule, Rules
from pipeline.masks.regions import SHORTLIST, shortlist_counts
from pipeline.tune.mask_rules import COUNTED, CountRegions, MaskProblem
from pipeline.tune.procedure import ONE_ERROR, Chosen, Parts, choose_steps
from pipeline.tune.rule_search import RuleSearch
from pipeline.tune.selection import (
    CELLS,
    PARTITIONS,
    PARTS,
    Cells,
    Choice,
    Fits,
    Nested,
    Partition,
    deal,
    partitions_of,
    select,
)


def opened(problem: Any, rows: np.ndarray | None = None, folds: np.ndarray | None = None,
           groups: np.ndarray | None = None, images: int = 60, count: int = PARTITIONS) -> Choice:  # fmt: skip
    """A choice on some of the images, in ascending order, of three folds and each alone by default."""
    rows = np.arange(images) if rows is None else rows
    folds = np.arange(images) % 3 if folds is None else folds
    groups = np.arange(images) if groups is None else groups
    cells = np.full(images, -1)
    cells[rows] = deal(folds[rows], groups[rows])
    return Choice(Fits(problem, rows, cells), groups, partitions_of(cells[rows], folds[rows], count=count))


def chosen(problem: Any, steps: Sequence[str], confidence: float = 0.9, **told: Any) -> Choice:
    """What `opened` becomes by these steps."""
    choice = opened(problem, **told)
    select([choice], [[step] for step in steps], confidence, lambda: None)
    return choice


def without(choice: Choice, folds: np.ndarray, part: Cells, inner: int = 2) -> Choice:
    """The choice that is made without a part, by the same fits."""
    cells = choice.fits._cells
    return Choice(choice.fits, choice.groups, partitions_of(cells, folds[choice.fits.rows], part, inner), part)


# --- what is left out ------------------------------------------------------------------------------------------------


def test_groups_are_dealt_into_cells() -> None:
    groups = np.arange(240) // 2
    folds = groups % 4
    cells = deal(folds, groups)
    assert all(len(set(cells[groups == one])) == 1 for one in range(120))
    assert np.bincount(cells).tolist() == [24] * CELLS
    for fold in range(4):  # thirty groups of each: three a cell
        assert np.bincount(cells[folds == fold]).tolist() == [6] * CELLS
    np.testing.assert_array_equal(cells, deal(folds, groups))
    assert (np.diff(cells.reshape(120, 2)[:, 0]) % CELLS != 1).sum() > 60  # not one after the other


def test_small_folds_take_turns() -> None:
    """Three groups of each of four folds: twelve groups fill ten cells, and no cell has a fold's alone."""
    folds = np.arange(12) % 4
    cells = deal(folds, np.array(list("abcdefghijkl")))
    assert sorted(np.bincount(cells)) == [1] * 8 + [2] * 2
    assert all(len(set(cells[folds == fold])) == 3 for fold in range(4))


def test_a_group_in_several_folds_is_in_one_cell() -> None:
    """As random folds of near-duplicates have it."""
    folds, groups = np.arange(60) % 3, np.arange(60) // 4
    cells = deal(folds, groups)
    assert all(len(set(cells[groups == one])) == 1 for one in range(15))
    assert sorted(np.bincount([cells[groups == one][0] for one in range(15)])) == [1] * 5 + [2] * 5


def test_names_of_groups_may_be_anything() -> None:
    assert sorted(deal(np.zeros(3, int), np.array(["b", "a", "c"]))) == [0, 1, 2]
    assert set(deal(np.zeros(9, int), np.full(9, "one"))) == {0}
    assert deal(np.zeros(0, int), np.zeros(0, str)).shape == (0,)


def folds_taken_away(partitions: Sequence[Partition], cells: np.ndarray, folds: np.ndarray, more: Cells) -> int:
    """How often a part, with the cells that are left out already, is all of a fold."""
    return sum(
        set(cells[folds == fold].tolist()) <= part | more
        for partition in partitions
        for part in partition
        for fold in np.unique(folds)
    )


@pytest.mark.parametrize(
    ("numbers", "parts"),
    [([12] * 5, 5), ([3] * 4, 5), ([2] * 3, 6), ([7], 7), ([8], 4), ([3], 3), ([1, 1], 2), ([1], 1)], ids=str,
)  # fmt: skip
def test_partitions_hold_every_image_once(numbers: list[int], parts: int) -> None:
    folds = np.repeat(np.arange(len(numbers)), numbers)
    cells = deal(folds, np.arange(len(folds)))
    found = partitions_of(cells, folds)
    assert len(found) == (PARTITIONS if len(set(cells.tolist())) > parts else 1)
    for partition in found:
        assert len(partition) == parts and all(partition)
        assert sorted(cell for part in partition for cell in part) == sorted(set(cells.tolist()))
        assert max(map(len, partition)) - min(map(len, partition)) <= 1
    assert found == partitions_of(cells, folds)
    distinct = {part for partition in found for part in partition}
    assert len(distinct) <= CELLS * (CELLS - 1) // 2
    if sum(numbers) >= CELLS:
        assert {len(part) for part in distinct} == {CELLS // PARTS}
        assert len(distinct) > 30
    whole = [fold for fold, number in enumerate(numbers) if number > 1]
    assert folds_taken_away(found, *(one[np.isin(folds, whole)] for one in (cells, folds)), Cells()) == 0


@pytest.mark.parametrize("numbers", [[12] * 5, [3] * 4, [20]], ids=str)
def test_partitions_without_a_part_hold_the_others(numbers: list[int]) -> None:
    """Also with what is left out already, no part takes a fold away, but for its last cell, which must go in turn."""
    folds = np.repeat(np.arange(len(numbers)), numbers)
    cells = deal(folds, np.arange(len(folds)))
    for part in {part for partition in partitions_of(cells, folds) for part in partition}:
        inner = partitions_of(cells, folds, part, 4)
        assert len(inner) == 4
        for partition in inner:
            assert [len(one) for one in partition] == [2] * 4
            assert sorted(cell for one in partition for cell in one) == sorted(set(range(CELLS)) - part)
        last = sum(len(set(cells[folds == fold]) - part) == 1 for fold in range(len(numbers)))
        assert folds_taken_away(inner, cells, folds, part) == last * len(inner)
        assert last == 0 or numbers == [3] * 4


def test_a_fold_is_taken_away_only_where_that_cannot_be_avoided() -> None:
    """Two groups of each of three folds: with one of a fold gone, its other must go in turn."""
    folds = np.repeat(np.arange(3), 2)
    cells = deal(folds, np.arange(6))
    assert cells.tolist() in (
        [[0, 1][::a] + [2, 3][::b] + [4, 5][::c] for a in (1, -1) for b in (1, -1) for c in (1, -1)]
    )
    assert folds_taken_away(partitions_of(cells, folds), cells, folds, Cells()) == 0
    first = Cells([0])
    inner = partitions_of(cells, folds, first, 4)
    assert folds_taken_away(inner, cells, folds, first) == len(inner) == 1  # one of the five that remain, each alone


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
    spy, rows = Spy({"good": 1.0, "bad": -1.0}), np.setdiff1d(np.arange(60), [3, 17, 18])
    folds, groups = (np.zeros(60, int) if one_fold else np.arange(60) // 2 % 3), np.arange(60) // 2
    choice = chosen(spy, ["good", "bad", "nothing", "good"], rows=rows, folds=folds, groups=groups)
    assert [one.kept for one in choice.tried] == [True, False, False, True]
    assert [one.decision.steps for one in choice.tried] == [("good",), ("good", "bad"), ("good",), ("good", "good")]
    everything, parts = set(rows.tolist()), {part for partition in choice.partitions for part in partition}
    images = {part: frozenset(choice.fits.inside(part).tolist()) for part in parts}
    assert all(frozenset.union(*map(images.get, one)) == everything for one in choice.partitions)  # type: ignore[arg-type]
    judged: dict[tuple[str, ...], set[frozenset[int]]] = {}
    for decision, some in spy.judged:
        part = frozenset(some)
        judged.setdefault(decision.steps, set()).add(part)
        if decision.steps:
            assert decision.rows == everything - part
        assert not {row // 2 for row in part} & {row // 2 for row in decision.rows}  # groups stay whole
    # what nothing changes is not judged; all else by every part of every partition, each once
    assert set(judged) == {(), ("good",), ("good", "bad"), ("good", "good")}
    assert all(found == set(images.values()) for found in judged.values())
    assert len(spy.judged) == len(parts) * 4 and len(parts) <= 45
    assert choice.decision == Seen(("good", "good"), frozenset(everything))
    fitted_to = [(step, decision.steps, fitted) for step, decision, fitted, _ in spy.fits]
    assert len(fitted_to) == len(set(fitted_to))  # nothing is fitted twice
    for _, decision, fitted, final in spy.fits:
        assert fitted <= everything
        assert final == (fitted == everything)
        assert decision.rows in (fitted, frozenset())  # a part's own decision goes on, never the one that saw the part


def test_a_judge_that_peeks_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above fails, and a mirage is kept, if decisions are fitted to the images that are left out too."""
    monkeypatch.setattr(Fits, "outside", lambda fits, cells: fits.rows)
    with pytest.raises(AssertionError):
        test_a_step_is_judged_on_images_it_was_not_fitted_to(False)
    assert chosen(Spy({"mirage": -0.5}, seems=2.0), ["mirage"]).tried[0].kept


def test_an_image_counts_by_its_mean_over_partitions() -> None:
    spy = Spy({"step": 0.1})
    choice = chosen(spy, ["step"], count=3)
    (path, fits) = (("step",), choice.fits)
    found = fits.averaged(path, Cells(), choice.partitions)
    for row in (0, 17, 59):
        own = [next(part for part in partition if row in fits.inside(part)) for partition in choice.partitions]
        rows = [spy.counts(fits.decision(path, part), np.array([row]))[0] for part in own]
        np.testing.assert_allclose(found[row], np.mean(rows, axis=0))
    gain = (found - fits.averaged((), Cells(), choice.partitions))[:, 0].mean()
    assert choice.tried[0].gain.value == pytest.approx(gain)


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
    folds = np.arange(60) % 3
    first, second = (opened(Spy({"a": 1.0}), folds=folds, count=1) for _ in range(2))
    choices = [first, without(first, folds, first.partitions[0][0], 1), without(second, folds, Cells([0, 1]), 1)]
    steps_done: list[int] = []
    select(choices, [["a"], ["b"]], 0.9, lambda: steps_done.append(1))
    assert len(steps_done) == 6
    one, other = first.fits.problem, second.fits.problem
    # what is known of each choice: its own decision, and those of the parts that judge it, five, or four without one
    assert [(step, len(decisions)) for step, decisions in one.prepared] == [("a", 11), ("b", 11)]
    assert [(step, len(decisions)) for step, decisions in other.prepared] == [("a", 5), ("b", 5)]
    assert {decision.steps for decision in one.prepared[1][1]} == {("a",)}


def alternatives(brings: dict[str, float], confidence: float = 0.9) -> dict[str, bool]:
    """Which of them is kept, the first being the plainest."""
    choice = opened(Spy(brings))
    select([choice], [list(brings)], confidence, lambda: None)
    assert [one.step for one in choice.tried] == list(brings)
    kept = [one for one in choice.tried if one.kept]
    assert choice.decision == (kept[0].decision if kept else Seen()) and len(kept) <= 1
    return {one.step: one.kept for one in choice.tried}


def test_of_alternatives_the_best_is_kept() -> None:
    assert alternatives({"a": 1.0, "b": 2.0}) == {"a": False, "b": True}
    assert alternatives({"a": 2.0, "b": 1.0}) == {"a": True, "b": False}


def test_of_alternatives_as_good_the_plainest_is_kept() -> None:
    """Paired differences of two steps have a standard error of √(2 / 60), 0.18."""
    assert alternatives({"a": 1.0, "b": 1.1, "c": 1.12}) == {"a": True, "b": False, "c": False}
    assert alternatives({"a": 1.0, "b": 1.4, "c": 1.5}) == {"a": False, "b": True, "c": False}
    assert alternatives({"a": 1.0, "b": 1.3, "c": 1.9}) == {"a": False, "b": False, "c": True}
    # the plainest must itself be better than nothing
    assert alternatives({"a": -0.1, "b": 0.05, "c": 1.0}) == {"a": False, "b": False, "c": True}
    assert alternatives({"a": 0.1, "b": 0.25}, confidence=0.95) == {"a": False, "b": True}
    assert not any(alternatives({"a": -0.1, "b": -0.2}).values())


# --- what a choice is worth ------------------------------------------------------------------------------------------


def test_the_nested_estimate_is_of_choices_made_without_each_part() -> None:
    spy, folds = Spy({"good": 1.0, "mirage": -0.5}, seems=2.0), np.arange(60) % 3
    choice = opened(spy, folds=folds, count=3)
    parts = {part: without(choice, folds, part) for partition in choice.partitions for part in partition}
    select([choice, *parts.values()], [["mirage"], ["good"]], 0.9, lambda: None)
    found = Nested.of(parts, choice.partitions)
    assert {one.path for one in parts.values()} == {("good",)}
    rows, scores = np.zeros((3, 60, 2)), []
    for place, partition in enumerate(choice.partitions):
        for part in partition:
            own, decision = choice.fits.inside(part), parts[part].decision
            assert not decision.rows & set(own.tolist())
            rows[place, own] = spy.counts(decision, own)
        scores.append(spy.score(rows[place].sum(0)))
    np.testing.assert_allclose(found.rows, rows.mean(0))
    np.testing.assert_allclose(found.scores, scores)
    for one in parts.values():  # nor did what the choice was made by
        left_out = set(choice.fits.inside(one.without).tolist())
        for part in (part for partition in one.partitions for part in partition):
            decision = choice.fits.decision(one.path, one.without | part)
            assert not decision.rows & (left_out | set(choice.fits.inside(part).tolist()))


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


def test_noise_passes_about_as_seldom_as_the_confidence_says() -> None:
    """Of 200 choices among 20 arms of noise, a confidence of 0.9 keeps 33, and 0.99 keeps 6.

    More than 20 and 2, as the parts that judge an arm share four fifths of the images that chose it.
    """
    draws = [np.random.default_rng(seed).standard_normal((60, 20)) for seed in range(200)]
    tried = [chosen(Arms(scores), ["best"], 0.9).tried[0] for scores in draws]
    sure = [one.gain.value > 0 and one.gain.confidence >= 0.99 for one in tried]
    assert 0 < np.mean([one.kept for one in tried]) < 0.2
    assert 0 < np.mean(sure) < 0.04
    assert all(one.kept == (one.gain.value > 0 and one.gain.confidence >= 0.9) for one in tried)
    apparent = [scores.mean(0).max() - scores[:, 0].mean() for scores in draws]
    assert np.mean(apparent) > 0.2  # nearly two standard errors, to the images that chose it


def procedure(problem: Any, monkeypatch: pytest.MonkeyPatch, images: int = 60) -> Chosen:
    """What ships, of steps that are chosen with and without each part."""
    few_partitions(monkeypatch, 4, 2)
    rows, folds = np.arange(images), np.arange(images) % 3
    cells = deal(folds, rows)
    parts = Parts(rows, cells, folds, rows, partitions_of(cells, folds, count=4))
    fits = [Fits(problem, rows, cells)] * len(parts.left_out)
    return choose_steps(parts, fits, [["best"]], TuneSettings())


def test_noise_hardly_ships(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the whole procedure brings without each part decides in the end: of 150 choices, 26 keep noise, and 6 ship
    it (by all partitions)."""
    draws = [np.random.default_rng(seed).standard_normal((60, 20)) for seed in range(40)]
    kept, shipped = 0, 0
    for scores in draws:
        found = procedure(Arms(scores), monkeypatch)
        kept += any(one.kept for one in chosen(Arms(scores), ["best"], count=4).tried)
        shipped += bool(found.choice.path)
        if not found.choice.path:
            assert found.choice.decision == 0
            assert not any(one.kept for one in found.choice.tried)
    assert shipped <= 0.1 * len(draws) < kept


def test_untuned_ships_unless_the_whole_procedure_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that is chosen on all images, but rarely on four fifths of them, scores lower in the nested estimate."""
    scores = np.random.default_rng(1).standard_normal((60, 20))
    scores[:, 7] += 1
    found = procedure(Arms(scores), monkeypatch)
    assert found.choice.path == ("best",) and found.choice.decision == 7
    assert found.gain.value == pytest.approx((scores[:, 7] - scores[:, 0]).mean(), abs=0.1)
    assert found.gain.confidence >= 0.9
    assert {choice.path for choice in found.without.values()} == {("best",)}
    # the same choice on all images, but those without a part all keep what is worse there
    monkeypatch.setattr(Choice, "consider", lambda choice, *_: setattr(choice, "path", ("best",)))
    noise = np.random.default_rng(3).standard_normal((60, 20)) * np.array([1e-3, *[1] * 19])
    found = procedure(Arms(noise), monkeypatch)
    assert found.gain.value < 0 or found.gain.confidence < ONE_ERROR
    assert (found.choice.path, found.choice.decision) == ((), 0)
    assert {choice.path for choice in found.without.values()} == {()}
    np.testing.assert_allclose(found.nested.rows[:, 0], noise[:, 0])  # of the untuned decision, as that ships
    np.testing.assert_allclose(found.nested.scores, noise[:, 0].mean())


def test_a_better_arm_is_found() -> None:
    draws = [np.random.default_rng(seed).standard_normal((60, 20)) for seed in range(100)]
    for scores in draws:
        scores[:, 7] += 1
    tried = [chosen(Arms(scores), ["best"]).tried[0] for scores in draws]
    assert np.mean([one.kept for one in tried]) > 0.95
    assert np.mean([one.gain.value for one in tried]) == pytest.approx(1, abs=0.1)


# --- rules of masks --------------------------------------------------------------------------------------------------

STEPS = ("threshold", "area", "triplet", "presence", "expected", "rank", "components")


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
    problem, folds = problem_of(random_images(4, number=12)), np.zeros(12, int)
    alone = opened(problem, folds=folds, groups=np.full(12, "one"), images=12)
    assert alone.partitions == [[Cells([0])]]
    nobody = without(alone, folds, Cells([0]))
    assert alone.fits.outside(nobody.without).size == 0
    select([nobody, alone], [[step] for step in STEPS], 0.5, lambda: None)
    for choice in (nobody, alone):
        assert [one.step for one in choice.tried] == list(STEPS)
    assert nobody.decision == problem.untuned
    assert not any(one.kept for one in nobody.tried + alone.tried)
