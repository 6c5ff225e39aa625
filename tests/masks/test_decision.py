"""The decision map by hand: averages, rules, presence, ties of class maps; and what postprocess.json makes of it."""

import json
from dataclasses import asdict

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.masks.decision import (  # fmt: skip
    Biases,
    Linear,
    Presence,
    Rule,
    Rules,
    decide,
    decision_of,
    described,
    in_words,
    mask_features,
    native_probability,
)
from pipeline.masks.geometry import Geometry
from pipeline.masks.ranking import FINEST, Calibration, Rank
from pipeline.masks.regions import SHORTLIST, RegionRule
from pipeline.masks.scale import HALVES
from pipeline.predictions.blends import Blend, RunPredictions

GEOMETRIES = [Geometry((16, 24), "stretch", 1), Geometry((16, 24), "pad", 1)]

# --- probabilities ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=["stretch", "pad"])
def test_members_are_averaged_before_rounding(geometry: Geometry) -> None:
    members = [np.full((2, 16, 24), value, np.uint8) for value in (100, 101, 103)]
    mean = native_probability(members, geometry, (10, 12))
    assert (mean.shape, mean.dtype) == ((2, 10, 12), np.float32)
    np.testing.assert_allclose(mean, 304 / 3, rtol=1e-6)
    for more, expected in (([], 101), ([np.full((2, 16, 24), 255, np.uint8)], 140)):  # 101.33, 139.75
        arrays = tuple(one[None] for one in [*members, *more])
        rounded = Blend(["a"], (RunPredictions(arrays, geometry, None),), (1.0,)).native(0, (10, 12))
        assert rounded.dtype == np.uint8
        np.testing.assert_array_equal(rounded, np.full((2, 10, 12), expected))


def test_runs_are_weighted_before_rounding() -> None:
    geometry = GEOMETRIES[0]
    first, second = (
        RunPredictions((np.full((3, 1, 16, 24), value, np.uint8),), geometry, (np.full((3, 1), head, np.float32),))
        for value, head in ((100, 0.2), (102, 0.6))
    )
    for weights, expected, head in (((0.75, 0.25), 100, 0.3), ((0.5, 0.5), 101, 0.4), ((0.2, 0.8), 102, 0.52)):
        blend = Blend(list("abc"), (first, second), weights)
        np.testing.assert_array_equal(blend.native(1, (5, 6)), np.full((1, 5, 6), expected))
        assert blend.presence == pytest.approx(np.full((3, 1), head), rel=1e-6)
    without = RunPredictions(second.arrays, geometry, None)
    assert Blend(list("abc"), (first, without), (0.5, 0.5)).presence == pytest.approx(np.full((3, 1), 0.2), rel=1e-6)
    assert Blend(list("abc"), (without, without), (0.5, 0.5)).presence is None


def test_class_maps_keep_their_precision() -> None:
    members = [np.full((1, 3, 16, 24), value, np.float16) for value in (0.1, 0.2)]
    blend = Blend(["a"], (RunPredictions(tuple(members), GEOMETRIES[0], None),), (1.0,), scale=HALVES)
    found = blend.native(0, (16, 24))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.mean([np.float32(one[0]) for one in members], axis=0))


# --- masks -----------------------------------------------------------------------------------------------------------


def test_thresholds_and_areas_by_hand() -> None:
    probability = np.array([[[10, 128, 127, 200]], [[255, 255, 255, 0]], [[9, 9, 9, 9]]], np.uint8)
    masks = decide(probability, Rules((Rule(128, 2), Rule(255, 4), Rule(10))))
    assert masks.dtype == np.uint8
    np.testing.assert_array_equal(masks, [[[0, 1, 0, 1]], [[0, 0, 0, 0]], [[0, 0, 0, 0]]])
    assert decide(probability, Rules((Rule(128, 3), Rule(255, 3), Rule(10)))).sum(axis=(1, 2)).tolist() == [0, 3, 0]


def test_a_triplet_counts_above_and_draws_below() -> None:
    probability = np.array([[[90, 120, 200, 210, 40]]], np.uint8)
    for area, drawn in ((0, 4), (2, 4), (3, 0)):
        assert decide(probability, Rules((Rule(80, area, top=200),))).sum() == drawn
    assert decide(probability, Rules((Rule(80, 1, top=211),))).sum() == 0


def test_the_area_is_that_of_the_whole_mask_and_not_of_what_is_left_of_it() -> None:
    probability = np.zeros((1, 5, 9), np.uint8)
    probability[0, 0:4, 0:4], probability[0, 0, 6:9] = 200, 200  # 16 and 3
    largest = RegionRule(largest=True)
    assert decide(probability, Rules((Rule(128, 19, components=largest),))).sum() == 16
    assert decide(probability, Rules((Rule(128, 20, components=largest),))).sum() == 0


@pytest.mark.parametrize(
    ("head", "cut", "stays"), [(0.3, 0.25, True), (0.3, 0.3125, False), (0.5, 0.5, False), (1.0, 0.99, True)]
)
def test_presence_cuts(head: float, cut: float, stays: bool) -> None:
    probability = np.full((2, 4, 4), 255, np.uint8)
    masks = decide(probability, Rules((Rule(presence=Presence(cut=cut)), Rule())), np.array([head, 0.0]))
    assert [mask.any() for mask in masks] == [stays, True]


def test_without_a_presence_head_the_probability_is_a_half() -> None:
    probability = np.full((1, 4, 4), 255, np.uint8)
    for cut, stays in ((0.4, True), (0.6, False)):
        assert decide(probability, Rules((Rule(presence=Presence(cut=cut)),))).any() == stays


@pytest.mark.parametrize(
    ("p", "d", "stays"),
    [(0.5, 1.0, False), (0.6, 0.7, True), (0.6, 0.66, False), (0.9, 0.2, True), (0.9, 0.1, False), (0.4, 9, False),
     (0.99, -1, False)],
)  # fmt: skip
def test_a_mask_stays_where_that_pays(p: float, d: float, stays: bool) -> None:
    """It scores p·d if it stays, and 1 - p if not."""
    presence = Presence(Linear(intercept=float(np.log(p / (1 - p)))), worth=Linear(intercept=d))
    assert decide(np.full((1, 4, 4), 255, np.uint8), Rules((Rule(presence=presence),))).any() == stays


def test_features_by_hand() -> None:
    head, area, highest, total = np.array([0.5, 0.8, 0.0]), np.array([0, 9, 4]), np.array([3, 255, 51]), [0, 1836, 204]
    features = mask_features(head, area, highest, np.array(total))
    expected = [[0, 0, 3 / 255, 0], [np.log(4), np.log(10), 1, 0.8], [np.log(1e-5 / (1 - 1e-5)), np.log(5), 0.2, 0.2]]
    np.testing.assert_allclose(features, expected, rtol=1e-12, atol=1e-12)
    linear = Linear(head=2, area=3, highest=5, confidence=7, intercept=11)
    np.testing.assert_allclose(linear.of(features)[1], 2 * np.log(4) + 3 * np.log(10) + 5 + 7 * 0.8 + 11)


def test_a_mask_has_the_features_of_its_pixels() -> None:
    """Four pixels of 153 and above, whose mean is 0.8."""
    probability = np.array([[[255, 204, 204, 153, 100, 3]]], np.uint8)
    for linear, value in ((Linear(area=1), np.log(5)), (Linear(highest=1), 1.0), (Linear(confidence=1), 0.8)):
        for shift, stays in ((1e-6, True), (-1e-6, False)):
            logit = Linear(**{**asdict(linear), "intercept": -value + shift})  # p is 0.5 at logit 0
            assert decide(probability, Rules((Rule(153, presence=Presence(logit, cut=0.5)),))).any() == stays


def test_class_maps_by_hand() -> None:
    probability = np.array([[[0.5, 0.4, 0.3]], [[0.3, 0.4, 0.3]], [[0.2, 0.2, 0.4]]], np.float32)
    for decision, labels in (
        (Biases((0, 0, 0)), [0, 0, 2]),
        (Biases((0, 0.1, 0)), [0, 1, 2]),
        (Biases((0, 1, 0)), [1, 1, 1]),
        (Biases((0, 0, 0), never=(0,)), [1, 1, 2]),
        (Biases((0, 0, 0), never=(0, 2)), [1, 1, 1]),
    ):
        masks = decide(probability, decision)
        assert masks.dtype == np.uint8
        np.testing.assert_array_equal(masks.sum(0), np.ones((1, 3)))
        assert masks.argmax(0).tolist() == [labels]


# --- postprocess.json ------------------------------------------------------------------------------------------------

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)
LINEARS = st.builds(Linear, NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS)
PRESENCES = st.builds(Presence, LINEARS, st.none() | st.floats(0, 1), st.none() | LINEARS)
CALIBRATIONS = st.builds(Calibration, st.floats(0.05, 10), NUMBERS)
RANKS = st.builds(Rank, st.sampled_from(["dice", "iou"]), CALIBRATIONS,
                  st.dictionaries(st.sampled_from(["0", "1", "4"]), CALIBRATIONS))  # fmt: skip
RULES = st.builds(
    Rule,
    st.integers(1, 255),
    st.integers(0, 10**6),
    st.none() | st.integers(1, 255),
    st.none() | PRESENCES,
    st.none() | RANKS,
    st.sampled_from([RegionRule(), *SHORTLIST]),
)


@given(st.lists(RULES, min_size=1, max_size=3))
def test_rules_come_back_from_json(rules: list[Rule]) -> None:
    decision = Rules(tuple(rules))
    names = [f"class {number}" for number in range(len(rules))]
    text = json.dumps({"rules": described(decision, names)})
    assert list(json.loads(text)["rules"]) == names
    assert decision_of(json.loads(text)) == decision


def test_rules_from_before_a_threshold_for_each_image_still_load() -> None:
    rule = Rule(100, 30, 200, Presence(cut=0.25), components=RegionRule(fill=True))
    found = described(Rules((rule,)), ["thing"])
    assert found["thing"].pop("rank") is None
    assert decision_of({"rules": json.loads(json.dumps(found))}) == Rules((rule,))
    assert in_words(found["thing"]).startswith("threshold 100 of 255, at least 30 px at 200")


def test_a_threshold_for_each_image_in_words() -> None:
    rank = Rank("dice", Calibration(2.0), {"0": Calibration(0.5), "1": Calibration(4.0, 1.0)})
    (found,) = described(Rules((Rule(min_area=1, rank=rank),)), ["thing"]).values()
    expected = (
        "the best threshold for each image, from probabilities calibrated per fold (slopes 0.50, 4.00), at least 1 px"
    )
    assert in_words(found) == expected


@given(st.lists(NUMBERS, min_size=2, max_size=5), st.sets(st.integers(0, 4)))
def test_biases_come_back_from_json(bias: list[float], never: set[int]) -> None:
    decision = Biases(tuple(bias), tuple(sorted(never)))
    names = [f"class {number}" for number in range(len(bias))]
    found = {"bias": dict(zip(names, decision.bias, strict=True)), "never": list(decision.never)}
    assert decision_of(json.loads(json.dumps(found))) == decision


# --- the mean of several models --------------------------------------------------------------------------------------


def test_the_presence_of_a_class_is_computed_per_model() -> None:
    """A mean of models has less extreme probabilities than each of them. A mask that each model would keep is kept."""
    rule = Rule(100, presence=Presence(Linear(highest=40.0, intercept=-28.0), cut=0.5))  # from 0.7 on
    left, right = np.zeros((2, 1, 8, 8), np.uint8)
    left[0, 2:4, 2:4] = right[0, 3:5, 2:4] = 200
    mean = np.rint(left / 2 + right / 2).astype(np.uint8)
    mean[0, 3, 2:4] = 150  # both at once, and still below 0.7
    assert not decide(mean, Rules((rule,))).any()
    np.testing.assert_array_equal(decide(mean, Rules((rule,)), models=[left, right]), (mean >= 100).astype(np.uint8))
    unsure = np.full_like(left, 20)
    assert not decide(mean, Rules((rule,)), models=[left, unsure, unsure]).any()
    np.testing.assert_array_equal(decide(left, Rules((rule,)), models=[left]), decide(left, Rules((rule,))))


def test_test_images_ask_the_models_of_the_folds() -> None:
    rule = Rule(100, presence=Presence(Linear(head=1.0), cut=0.5))
    arrays = tuple(np.full((2, 1, 4, 4), value, np.uint8) for value in (90, 130))
    heads = (np.array([[0.2], [0.9]], np.float32), np.array([[0.6], [0.9]], np.float32))
    source = RunPredictions(arrays, Geometry((4, 4), "stretch", 1), heads)
    blend = Blend(["a", "b"], (source,), (1.0,), folds=True, names=("0", "1"))
    assert [one.names for one in blend.models] == [("0",), ("1",)]
    masks = [blend.decide(row, blend.native(row, (4, 4)), Rules((rule,))) for row in (0, 1)]
    assert [mask.sum() for mask in masks] == [0, 16]
    pays = Rule(100, presence=Presence(Linear(head=1.0), worth=Linear(intercept=0.5)))  # 0.9 · 0.5 > 0.1
    assert blend.decide(1, blend.native(1, (4, 4)), Rules((pays,))).sum() == 16


# --- a threshold for each image --------------------------------------------------------------------------------------

SHARP, BLUNT = Calibration(3.0, -1.0), Calibration(0.5, 0.3)
RANK = Rank("dice", Calibration(1.5, 0.2), {"0": SHARP, "1": BLUNT})


def best_of(p: np.ndarray) -> np.ndarray:
    """The mask of calibrated probabilities (h, w) with the best expected Dice, every threshold tried."""
    masks = [p >= value for value in np.unique(p)]
    return max(masks, key=lambda mask: (2 * p[mask].sum() / (mask.sum() + p.sum()), mask.sum())).astype(np.uint8)


def calibrated(plane: np.ndarray, by: Calibration) -> np.ndarray:
    p = np.clip(plane / 255, 0.5 / 255, 1 - 0.5 / 255)
    return np.rint(FINEST / (1 + np.exp(-(by.slope * np.log(p / (1 - p)) + by.intercept)))) / FINEST


def planes_of(seed: int, number: int) -> list[np.ndarray]:
    """Probabilities (1, 12, 15) of an image by several models."""
    rng = np.random.default_rng(seed)
    signal = cv2.GaussianBlur(rng.standard_normal((12, 15)), (0, 0), 2)
    fields = [signal / signal.std() + 0.4 * rng.standard_normal(signal.shape) for _ in range(number)]
    return [np.rint(255 / (1 + np.exp(1 - one)))[None].astype(np.uint8) for one in fields]


@pytest.mark.parametrize(("fold", "by"), [("0", SHARP), ("1", BLUNT), ("7", RANK.pooled), (None, RANK.pooled)])
def test_each_image_has_its_best_threshold(fold: str | None, by: Calibration) -> None:
    for seed in range(8):
        (plane,) = planes_of(seed, 1)
        mask = decide(plane, Rules((Rule(rank=RANK),)), folds=[fold])
        np.testing.assert_array_equal(mask[0], best_of(calibrated(plane[0], by)))
        if fold is None:
            np.testing.assert_array_equal(mask, decide(plane, Rules((Rule(rank=RANK),))))


def test_models_are_averaged_after_each_was_calibrated() -> None:
    found = []
    for seed in range(8):
        planes = planes_of(seed, 3)
        mean = np.rint(np.mean(planes, axis=0)).astype(np.uint8)
        rules, folds = Rules((Rule(rank=RANK),)), ["1", "0", "9"]
        mask = decide(mean, rules, models=planes, folds=folds)[0]
        each = [calibrated(one[0], by) for one, by in zip(planes, (BLUNT, SHARP, RANK.pooled), strict=True)]
        np.testing.assert_array_equal(mask, best_of(np.rint(np.mean(each, axis=0) * FINEST) / FINEST))
        found.append((mask, decide(mean, rules, models=planes, folds=["0", "1", "9"])[0]))
        np.testing.assert_array_equal(decide(planes[1], rules, models=planes[1:2], folds=["0"]),
                                      decide(planes[1], rules, folds=["0"]))  # fmt: skip
    assert any((one != other).any() for one, other in found)  # which fold a model is of, matters


def test_presence_and_area_are_computed_at_threshold_one_half() -> None:
    """The rules that empty a mask use the threshold 0.5, regardless of the calibration."""
    plane = np.array([[[200, 130, 100, 60, 1, 1]]], np.uint8)
    generous = Rank("dice", Calibration(1.0, 3.0), {})
    assert decide(plane, Rules((Rule(rank=generous),))).sum() == 4
    for area, drawn in ((2, 4), (3, 0)):
        assert decide(plane, Rules((Rule(min_area=area, rank=generous),))).sum() == drawn
    for intercept, drawn in ((-np.log(3) + 1e-6, 4), (-np.log(3) - 1e-6, 0)):
        presence = Presence(Linear(area=1, intercept=intercept), cut=0.5)
        assert decide(plane, Rules((Rule(presence=presence, rank=generous),))).sum() == drawn


def test_an_image_without_any_probability_is_empty() -> None:
    nothing = np.zeros((1, 4, 4), np.uint8)
    for by in (Calibration(4.0), Calibration(0.05, -14.0)):  # which round to 0 of 65535
        assert by.table()[0] == 0 < by.table()[-1]
        assert not decide(nothing, Rules((Rule(rank=Rank("dice", by, {})),))).any()


def test_test_images_are_calibrated_model_by_model() -> None:
    first, second = planes_of(3, 2)
    source = RunPredictions((first[None], second[None]), Geometry((12, 15), "stretch", 1), None)
    rules = Rules((Rule(rank=RANK),))
    for names, folds in ((("0", "1"), ["0", "1"]), (("1", "5"), ["1", None])):
        blend = Blend(["a"], (source,), (1.0,), folds=True, names=names)
        mean = blend.native(0, (12, 15))
        np.testing.assert_array_equal(blend.decide(0, mean, rules), decide(mean, rules, None, [first, second], folds))
    alone = Blend(["a"], (source.only(0),), (1.0,), names=("1",))
    np.testing.assert_array_equal(alone.decide(0, first, rules), decide(first, rules, folds=["1"]))
    together = Blend(["a"], (source,), (1.0,), names=("1",))  # two seeds of one fold
    mean = together.native(0, (12, 15))
    np.testing.assert_array_equal(together.decide(0, mean, rules), decide(mean, rules, folds=["1"]))
