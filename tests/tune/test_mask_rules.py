"""Every step of the search against slow, plain loops over images, thresholds, areas and cuts; ties; counts."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
from evidence import Images, random_images
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.masks.decision import Linear, Presence, Rule, Rules
from pipeline.masks.geometry import IGNORE
from pipeline.masks.metrics import METRICS
from pipeline.masks.ranking import Calibration, Rank
from pipeline.masks.regions import SHORTLIST, RegionRule
from pipeline.tune.calibration import Levels, calibrate
from pipeline.tune.evidence import Evidence, histogram_counts, image_scores, keeps, predicted_area
from pipeline.tune.rule_search import AREAS, CUTS, RuleSearch

# --- counts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ignored", [False, True])
def test_histogram_counts_are_those_of_a_slow_loop(ignored: bool) -> None:
    images = random_images(2, classes=2, number=4, ignored=ignored)
    for probability, true in zip(images.probabilities, images.truths, strict=True):
        area, predicted, intersection, total = histogram_counts(probability, true)
        np.testing.assert_array_equal(total, (true == 1).sum((1, 2)))
        for threshold in (0, 1, 2, 77, 128, 254, 255):
            mask = probability >= threshold
            np.testing.assert_array_equal(area[:, threshold], mask.sum((1, 2)))
            np.testing.assert_array_equal(predicted[:, threshold], (mask & (true != IGNORE)).sum((1, 2)))
            np.testing.assert_array_equal(intersection[:, threshold], (mask & (true == 1)).sum((1, 2)))
    assert any((true == IGNORE).any() for true in images.truths) == ignored


def test_counts_of_very_large_images_are_exact() -> None:
    probability, true = np.full((1, 5000, 4000), 7, np.uint8), np.zeros((1, 5000, 4000), np.uint8)
    probability[0, 4999, 3999], probability[0, :2, 0], true[0, 4998:, 3998:] = 9, 0, 1
    area, predicted, intersection, total = (one[0] for one in histogram_counts(probability, true))
    assert total == 4
    assert area[[0, 1, 7, 8, 9, 10]].tolist() == [20_000_000, 19_999_998, 19_999_998, 1, 1, 0]
    assert intersection[[0, 7, 8, 10]].tolist() == [4, 4, 1, 0]
    np.testing.assert_array_equal(predicted, area)


def test_some_of_the_images() -> None:
    images = random_images(3, classes=2)
    evidence = images.evidence(((60, 128), (90, 200)))
    rows = np.array([7, 2, 5])
    some, marked = evidence.only(rows), evidence.only(np.isin(np.arange(12), rows))
    assert some.images["image_id"].tolist() == ["image7", "image2", "image5"]
    assert marked.images["image_id"].tolist() == ["image2", "image5", "image7"]
    decision = Rules((Rule(128, 3, 200, Presence(cut=0.4), components=SHORTLIST[1]), Rule(90, components=SHORTLIST[0])))
    everything = image_scores(evidence, decision, "dice")
    np.testing.assert_array_equal(image_scores(some, decision, "dice"), everything[rows])
    np.testing.assert_array_equal(image_scores(marked, decision, "dice"), everything[sorted(rows)])


def test_evidence_does_not_grow_with_the_pixels() -> None:
    counted = ((9, 90), (9, 90))
    small, large = (random_images(0, classes=2, number=6, side=side).evidence(counted) for side in (8, 90))

    def size(evidence: Evidence) -> int:
        assert evidence.regions is not None and evidence.presence is not None
        arrays = [evidence.area, evidence.predicted, evidence.intersection, evidence.true, evidence.presence]
        arrays += [evidence.regions.predicted, evidence.regions.intersection]
        assert all(len(one) == 6 for one in arrays)
        return sum((one if one.base is None else one.base).nbytes for one in arrays)

    of_a_class = 3 * 256 * 4 + 8 + 8 + 2 * 2 * len(SHORTLIST) * 4
    assert size(small) == size(large) == 6 * 2 * of_a_class


# --- what a decision does --------------------------------------------------------------------------------------------


@cache
def two_classes(head: bool) -> Images:
    """Sixteen images; what the head says, where there is one, is often exactly one of the cuts."""
    images = random_images(11, classes=2, number=16, head=head, side=16)
    if images.presence is not None:
        rng = np.random.default_rng(0)
        exact = rng.choice(CUTS[::2], images.presence.shape)
        images.presence = np.where(rng.random(exact.shape) < 0.5, exact, images.presence)
    return images


WEIGHTS = st.floats(-3, 3, allow_nan=False)
LINEARS = st.builds(Linear, WEIGHTS, WEIGHTS, WEIGHTS, WEIGHTS, WEIGHTS)
PRESENCES = st.one_of(
    st.builds(lambda cut: Presence(cut=cut), st.sampled_from(CUTS.tolist())),
    st.builds(Presence, LINEARS, st.floats(0, 1)),
    st.builds(lambda probability, worth: Presence(probability, worth=worth), LINEARS, LINEARS),
)
LEVELS = st.integers(1, 255)
CALIBRATIONS = st.builds(Calibration, st.floats(0.05, 8), st.floats(-12, 6))
RANKS = st.builds(lambda pooled, folds: Rank("iou", pooled, folds), CALIBRATIONS,
                  st.dictionaries(st.sampled_from(["0", "1", "2"]), CALIBRATIONS))  # fmt: skip
RULES = st.builds(
    lambda low, top, area, presence, rank, components: Rule(
        low, area, top and max(low, top), presence, rank, RegionRule() if rank else components
    ),
    LEVELS,
    st.none() | LEVELS,
    st.sampled_from([0, 1, 7, 30, 31, 90, 10_000]),
    st.none() | PRESENCES,
    st.none() | RANKS,
    st.sampled_from([RegionRule(), *SHORTLIST]),
)


@settings(max_examples=150, deadline=None)
@given(pair=st.tuples(RULES, RULES), metric=st.sampled_from(["dice", "iou", "iou_precision"]), head=st.booleans())
def test_image_scores_are_those_of_the_masks_that_decide_draws(
    pair: tuple[Rule, Rule], metric: str, head: bool
) -> None:
    images, decision = two_classes(head), Rules(pair)
    evidence = images.evidence(tuple((rule.threshold,) for rule in pair))
    np.testing.assert_array_equal(image_scores(evidence, decision, metric), images.scores(decision, metric))


def test_predicted_area_leaves_ignored_pixels_out() -> None:
    images = two_classes(True)
    decision = Rules((Rule(100, 20, 180, Presence(cut=0.5), components=SHORTLIST[2]), Rule(60, 9)))
    pairs = zip(images.masks(decision), images.truths, strict=True)
    expected = np.array([((mask == 1) & (true != IGNORE)).sum((1, 2)) for mask, true in pairs])
    found = predicted_area(images.evidence(((100,), (60,))), decision)
    np.testing.assert_array_equal(found, expected)
    assert (expected == 0).any() and not (expected == [mask.sum((1, 2)) for mask in images.masks(decision)]).all()


# --- the search ------------------------------------------------------------------------------------------------------


@dataclass
class Slow:
    """One class of some images: its masks counted pixel by pixel, every rule tried alone."""

    images: Images
    metric: str
    weights: np.ndarray
    rows: np.ndarray

    def __post_init__(self) -> None:
        pairs = [(self.images.probabilities[row][0], self.images.truths[row][0]) for row in self.rows]
        score, nothing = METRICS[self.metric], np.array(0)
        sizes = [(true == 1).sum() for _, true in pairs]
        largest = np.quantile([size for size in sizes if size], 0.1)  # a tenth of the true masks is smaller
        self.areas = [int(area) for area in AREAS if area <= largest]
        self.emptied = np.array([score(nothing, nothing, size) for size in sizes])
        self.area, self.kept = np.zeros((2, 256, len(pairs)))
        for level, (place, (probability, true)) in product(range(256), enumerate(pairs)):
            mask, size = probability >= level, sizes[place]
            self.area[level, place] = mask.sum()
            self.kept[level, place] = score((mask & (true == 1)).sum(), (mask & (true != IGNORE)).sum(), size)

    def sum(self, low: int, area: int = 0, top: int | None = None, cut: float = 0.0) -> float:
        """The weighted sum of the scores where masks of fewer than `area` pixels at `top`, or that the head does not
        give more than `cut`, are empty."""
        keep = self.area[top or low] >= area
        if cut:
            keep &= self.images.presence[self.rows, 0] > cut  # type: ignore[index]
        return float(np.where(keep, self.kept[low], self.emptied) @ self.weights[self.rows])

    def lows(self) -> list[int]:
        """The eight thresholds that score best with an area of their own, of equal ones those nearest 0.5."""
        best = {low: max(self.sum(low, area) for area in self.areas) for low in range(1, 256)}
        return sorted(best, key=lambda low: (-round(best[low], 9), abs(low - 128), low))[:8]


def first_best(found: Mapping[Any, float]) -> Any:
    """The first key of the best value, rounding errors aside."""
    best = max(found.values())
    return next(key for key, value in found.items() if value >= best - 1e-9)


CASES = [
    (0, "dice", False),
    (1, "dice", True),
    (2, "iou_precision", False),
    (3, "iou_precision", True),
    (5, "iou", True),
]


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> tuple[Slow, RuleSearch]:
    """Nine of twelve images, in any order."""
    return slow_case(*request.param)


@cache
def slow_case(seed: int, metric: str, weighted: bool) -> tuple[Slow, RuleSearch]:
    images, rng = random_images(seed), np.random.default_rng(seed)
    weights = rng.uniform(0.2, 3, 12) if weighted else np.ones(12)
    slow = Slow(images, metric, weights, rng.permutation(12)[:9])
    return slow, RuleSearch(images.evidence(), 0, metric, weights)


def test_the_cases_need_every_step() -> None:
    cases = [slow_case(*one) for one in CASES]
    for slow, _ in cases:
        truths = [slow.images.truths[row] for row in slow.rows]
        assert any((true == IGNORE).any() for true in truths)
        assert any(not (true == 1).any() for true in truths)
    areas = [search.area(Rule(), slow.rows).min_area for slow, search in cases]
    tops = [search.triplet(Rule(), slow.rows).top for slow, search in cases]
    cuts = [search.presence(Rule(), slow.rows).presence for slow, search in cases]
    for chosen in (areas, tops, cuts):
        assert any(chosen) and not all(chosen)


def test_threshold(case: tuple[Slow, RuleSearch]) -> None:
    slow, search = case
    order = sorted(range(1, 256), key=lambda low: (abs(low - 128), low))
    best = first_best({(low,): slow.sum(low) for low in order})
    assert search.threshold(Rule(), slow.rows) == Rule(threshold=int(best[0]))


def test_threshold_and_area(case: tuple[Slow, RuleSearch]) -> None:
    slow, search = case
    order = [(area, low) for area in slow.areas for low in sorted(range(1, 256), key=lambda low: (abs(low - 128), low))]
    area, low = map(int, first_best({(area, low): slow.sum(low, area) for area, low in order}))
    assert search.area(Rule(), slow.rows) == Rule(low, area)


def test_triplet(case: tuple[Slow, RuleSearch]) -> None:
    slow, search = case
    found = {
        (low, area, top): slow.sum(low, area, top)
        for low in slow.lows()
        for area in slow.areas
        for top in range(low, 256, 8)
    }
    low, area, top = map(int, first_best(found))
    assert search.triplet(Rule(), slow.rows) == Rule(low, area, None if top == low else top)


@pytest.mark.parametrize("top", [None, 180])
def test_presence_and_area(case: tuple[Slow, RuleSearch], top: int | None) -> None:
    slow, search = case
    found = {
        (low, cut, area): slow.sum(low, area, top and max(low, top), cut)
        for low in slow.lows()
        for cut in CUTS
        for area in slow.areas
    }
    low, cut, area = first_best(found)
    presence = Presence(cut=float(cut)) if cut else None
    expected = Rule(int(low), int(area), top and max(int(low), top), presence)
    assert search.presence(Rule(top=top), slow.rows) == expected


def test_components(case: tuple[Slow, RuleSearch]) -> None:
    slow, plain = case
    counted = (70, 128, 150, 200)
    search = RuleSearch(slow.images.evidence((counted,)), 0, slow.metric, slow.weights)
    for rule in (Rule(), Rule(137, 12, 170), Rule(164, 5, presence=Presence(cut=0.3)), Rule(190, 7, 195), Rule(1)):
        near = min(counted, key=lambda level: abs(level - rule.threshold))
        moved = replace(rule, threshold=near, top=rule.top if rule.top and rule.top > near else None)

        def total(rule: Rule) -> float:
            return float(
                (slow.images.scores(Rules((rule,)), slow.metric)[slow.rows, 0] * slow.weights[slow.rows]).sum()
            )

        found = {variant: total(replace(moved, components=variant)) for variant in SHORTLIST}
        best = max(found, key=lambda variant: round(found[variant], 9))
        expected = replace(moved, components=best) if found[best] > total(rule) + 1e-9 else rule
        assert search.components(rule, slow.rows) == expected
    assert plain.evidence.regions is None


# --- the emptiness that pays -----------------------------------------------------------------------------------------


def features_by_hand(images: Images, rows: np.ndarray, threshold: int) -> np.ndarray:
    """The logit of the head, log(1 + area), the highest probability, and the mean one of the mask."""
    found = []
    for row in rows:
        plane = images.probabilities[row][0].astype(float) / 255
        mask = plane >= threshold / 255 - 1e-9
        said = np.clip(0.5 if images.presence is None else images.presence[row, 0], 1e-5, 1 - 1e-5)
        mean = plane[mask].mean() if mask.any() else 0
        found.append([np.log(said / (1 - said)), np.log(1 + mask.sum()), plane.max(), mean])
    return np.array(found)


def sigmoid(logit: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit))


@cache
def many(weighted: bool, head: bool) -> tuple[Slow, RuleSearch]:
    images, rng = random_images(21, number=80, head=head), np.random.default_rng(0)
    weights = rng.uniform(0.2, 3, 80) if weighted else np.ones(80)
    return Slow(images, "dice", weights, rng.permutation(80)[:70]), RuleSearch(images.evidence(), 0, "dice", weights)


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("weighted", [False, True])
def test_expected_keeps_a_mask_where_that_pays(weighted: bool, head: bool) -> None:
    slow, search = many(weighted, head)
    rule = search.expected(Rule(120, 9, 200), slow.rows)
    assert rule.presence is not None and rule.presence.worth is not None
    assert rule == Rule(rule.threshold, presence=rule.presence)  # the rest starts anew
    features = features_by_hand(slow.images, slow.rows, rule.threshold)
    probability, worth = rule.presence.probability, rule.presence.worth
    p, d = (
        features @ [one.head, one.area, one.highest, one.confidence] + one.intercept for one in (probability, worth)
    )
    p, d = sigmoid(p), np.clip(d, 0, 1)
    expected = p * d > 1 - p
    assert 0.2 < expected.mean() < 0.9
    np.testing.assert_array_equal(keeps(search.evidence, 0, rule)[slow.rows], expected)
    assert (probability.head != 0) == head


@pytest.mark.parametrize("weighted", [False, True])
def test_both_regressions_are_the_best_ones(weighted: bool) -> None:
    """Where a regression fits best, its weighted errors are orthogonal to the features, the penalty aside."""
    slow, search = many(weighted, True)
    rule, weights = search.expected(Rule(), slow.rows), slow.weights[slow.rows]
    assert rule.presence is not None and rule.presence.worth is not None
    features = features_by_hand(slow.images, slow.rows, rule.threshold)
    with_one = np.column_stack([features, np.ones(len(features))])
    coefficients = np.array([*vars(rule.presence.probability).values()])
    present = np.array([(slow.images.truths[row] == 1).any() for row in slow.rows])
    gradient = (weights * (sigmoid(with_one @ coefficients) - present)) @ with_one
    penalty = np.append(coefficients[:4], 0) / 100
    np.testing.assert_allclose(gradient + penalty, 0, atol=0.02)
    drawn = present & (slow.area[rule.threshold] > 0)
    errors = with_one @ [*vars(rule.presence.worth).values()] - slow.kept[rule.threshold]
    np.testing.assert_allclose((weights * errors)[drawn] @ with_one[drawn], 0, atol=1e-6)


def test_expected_moves_the_threshold_to_the_best_of_what_it_keeps() -> None:
    from sklearn.linear_model import LinearRegression, LogisticRegression

    slow, search = many(False, True)
    start = 30
    present = np.array([(slow.images.truths[row] == 1).any() for row in slow.rows])
    features, drawn = features_by_hand(slow.images, slow.rows, start), present & (slow.area[start] > 0)
    p = LogisticRegression(C=100, max_iter=1000).fit(features, present).predict_proba(features)[:, 1]
    d = LinearRegression().fit(features[drawn], slow.kept[start][drawn]).predict(features).clip(0, 1)
    keep = p * d > 1 - p
    sums = {level: np.where(keep, slow.kept[level], slow.emptied).sum() for level in range(1, 256)}
    order = sorted(sums, key=lambda level: (abs(level - 128), level))
    best = first_best({(level,): float(sums[level]) for level in order})
    assert search.expected(Rule(start), slow.rows).threshold == best[0] != start


def test_expected_beats_a_threshold_where_the_head_knows() -> None:
    images = random_images(5, number=80)
    there = np.array([(true == 1).any((1, 2)) for true in images.truths])
    images.presence = np.where(there, 0.7, 0.6)  # known, but badly calibrated
    search, rows = RuleSearch(images.evidence(), 0, "dice", np.ones(80)), np.arange(80)
    rule = search.expected(search.threshold(Rule(), rows), rows)
    np.testing.assert_array_equal(keeps(search.evidence, 0, rule), there[:, 0])


def test_expected_needs_images_of_both_kinds() -> None:
    slow, search = many(False, True)
    present = np.array([(slow.images.truths[row] == 1).any() for row in range(80)])
    rule = Rule(77, 3)
    for few, others in ((present, ~present), (~present, present)):
        rows = np.concatenate([np.flatnonzero(few)[:9], np.flatnonzero(others)])
        assert search.expected(rule, rows) == rule
        rows = np.concatenate([np.flatnonzero(few)[:14], np.flatnonzero(others)])
        assert search.expected(rule, rows) != rule


# --- a threshold for each image --------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
def test_rank_calibrates_by_fold_and_keeps_a_mask_where_that_pays(weighted: bool) -> None:
    slow, search = many(weighted, True)
    rule, table = search.rank(Rule(77, 3, 200), slow.rows), slow.images.table
    assert rule.rank is not None and rule.presence is not None and rule.presence.worth is not None
    assert rule == Rule(128, presence=rule.presence, rank=rule.rank)  # the rest starts anew
    present = np.array([(slow.images.truths[row] == 1).any() for row in slow.rows])
    some = search.evidence.only(slow.rows)
    folds, groups = (table[name].to_numpy()[slow.rows] for name in ("fold", "group"))
    expected = calibrate(Levels.of(some, 0), present, folds, groups)
    assert rule.rank == Rank("dice", *expected) and set(rule.rank.folds) == {"0", "1", "2"}
    # what a mask is worth, is what the image's own threshold draws
    drawn = present & (slow.area[128] > 0)
    worth = slow.images.scores(Rules((Rule(rank=rule.rank),)), "dice")[slow.rows, 0]
    with_one = np.column_stack([features_by_hand(slow.images, slow.rows, 128), np.ones(len(slow.rows))])
    errors = with_one @ [*vars(rule.presence.worth).values()] - worth
    np.testing.assert_allclose((slow.weights[slow.rows] * errors)[drawn] @ with_one[drawn], 0, atol=1e-6)
    kept = keeps(search.evidence, 0, rule)[slow.rows]
    np.testing.assert_array_equal([mask.any() for mask in slow.images.masks(Rules((rule,)))],
                                  keeps(search.evidence, 0, rule))  # fmt: skip
    assert 0.2 < kept.mean() < 0.9 and kept[present].mean() > kept[~present].mean() + 0.5


def test_rank_sees_its_rows_only() -> None:
    slow, search = many(False, True)
    hidden = np.setdiff1d(np.arange(80), slow.rows)
    truths = [true if row not in hidden else true[:, ::-1, ::-1].copy() for row, true in enumerate(slow.images.truths)]
    other = RuleSearch(replace(slow.images, truths=truths).evidence(), 0, "dice", np.ones(80))
    assert search.rank(Rule(), slow.rows) == other.rank(Rule(), slow.rows)
    assert search.rank(Rule(), np.arange(80)) != other.rank(Rule(), np.arange(80))


def test_rank_with_few_images_of_a_kind() -> None:
    """Nothing to calibrate on: threshold and area. Nothing to learn emptiness from: a mask needs a pixel of 0.5."""
    slow, search = many(False, True)
    present = np.array([(slow.images.truths[row] == 1).any() for row in range(80)])
    rule, (some, others) = Rule(77, 3), (np.flatnonzero(present), np.flatnonzero(~present))
    few = np.concatenate([some[:9], others])
    assert search.rank(rule, few) == search.area(rule, few) != rule
    found = search.rank(rule, np.concatenate([some, others[:9]]))
    assert found == Rule(128, 1, rank=found.rank) and found.rank
    alone = search.rank(rule, some)  # where every image has the class, none is made empty
    assert alone == Rule(128, rank=alone.rank) and alone.rank
    assert search.components(found, some) == found  # which are counted at few thresholds


# --- ties ------------------------------------------------------------------------------------------------------------

STEPS = ("threshold", "area", "triplet", "presence", "expected", "rank", "components")


def after_every_step(images: Images, metric: str = "dice") -> list[Rule]:
    rows = np.arange(len(images.truths))
    search = RuleSearch(images.evidence(((128,),)), 0, metric, np.ones(len(rows)))
    return [getattr(search, step)(Rule(), rows) for step in STEPS]


@pytest.mark.parametrize("kind", ["perfect", "all empty", "nothing predicted", "full", "no images"])
def test_where_nothing_is_better_the_untuned_rule_stays(kind: str) -> None:
    truths = [np.zeros((1, 6, 6), np.uint8) for _ in range(9)]
    for size, true in enumerate(truths):
        true.ravel()[: 3 * size] = 0 if kind == "all empty" else 1
    values = {"perfect": 255, "all empty": 0, "nothing predicted": 0, "full": 255, "no images": 0}
    if kind == "full":
        truths = [np.ones_like(true) for true in truths]
    images = Images([true * values[kind] for true in truths], truths, np.full((9, 1), 0.3))
    if kind == "no images":
        for metric, steps in (("dice", STEPS), ("dice(over=data_set)", ("threshold", "area", "triplet", "components"))):
            search = RuleSearch(images.evidence(((128,),)), 0, metric, np.ones(9))
            assert {getattr(search, step)(Rule(), np.zeros(0, np.int64)) for step in steps} == {Rule()}
    else:
        assert set(after_every_step(images)) == {Rule()}


def test_of_equal_thresholds_the_one_nearest_a_half() -> None:
    true = np.array([[[1, 1, 0, 0]]], np.uint8)
    for low, high, best in ((10, 100, 100), (150, 250, 151), (100, 150, 128), (0, 3, 3), (126, 129, 128)):
        images = Images([np.array([[[high, high, low, low]]], np.uint8)] * 3, [true] * 3)
        assert [rule.threshold for rule in after_every_step(images)[:3]] == [best] * 3


def test_of_equal_areas_and_cuts_the_smallest() -> None:
    """Specks of 3 pixels where nothing is, masks of 20: every area from 4 on, and every cut from 0.25 on, is right."""
    empty, true = np.zeros((1, 6, 6), np.uint8), np.zeros((1, 6, 6), np.uint8)
    true[0, :4, :5] = 1
    speck = empty.copy()
    speck[0, 5, :3] = 200
    images = Images([speck, true * 200] * 5, [empty, true] * 5, np.array([[0.245], [0.8]] * 5))
    search, rows = RuleSearch(images.evidence(), 0, "dice", np.ones(10)), np.arange(10)
    assert search.area(Rule(), rows) == search.triplet(Rule(), rows) == Rule(128, 4)
    # the lowest cut that does without an area is no better than an area without a cut
    assert search.presence(Rule(), rows) == Rule(128, 4)
    speck[0, 3:] = 200  # as large as some masks
    images = Images([speck, true * 200] * 5, [empty, true] * 5, images.presence)
    search = RuleSearch(images.evidence(), 0, "dice", np.ones(10))
    assert search.presence(Rule(), rows) == Rule(128, presence=Presence(cut=0.25))


def test_rounding_errors_decide_nothing() -> None:
    """Specks of 3 pixels, of which two are right and one is wrong, and large masks that nothing predicts.

    Without the specks, by an area of 4 or a threshold above them, 0.7 and 0.1 are lost and 0.8 is won: in floating
    point a gain.
    """
    speck, empty, large = np.zeros((3, 1, 6, 6), np.uint8)
    speck[0, 0, :3], large[0, :4, :5] = 1, 1
    truths, weights = [speck, speck, empty] + [large] * 30, np.array([0.7, 0.1, 0.8] + [1] * 30)
    assert 0.7 + 0.1 - 0.8 < 0
    for value, steps in ((255, ("area", "triplet", "presence")), (150, ("threshold", "area"))):
        images = Images([value * speck] * 3 + [empty] * 30, truths, np.full((33, 1), 0.5))
        search = RuleSearch(images.evidence(), 0, "dice", weights)
        for step in steps:
            assert getattr(search, step)(Rule(), np.arange(33)) == Rule(), step
    alike = 1 + 1e-13 * np.random.default_rng(0).standard_normal(256)
    assert sorted(search.best_thresholds(alike)) == list(range(124, 132))


def test_tried_areas_are_dense_where_they_are_small() -> None:
    assert AREAS[:9].tolist() == list(range(9))
    assert (np.diff(AREAS) > 0).all() and AREAS[-1] > 2000 * 2000
    assert (AREAS[2:] / AREAS[1:-1] <= 2).all() and (AREAS[9:] / AREAS[8:-1] < 1.3).all()
