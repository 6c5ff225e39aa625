"""Metrics, geometry, post-processing and tuning, against results worked out by hand or by slow, plain loops."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline import thresholds as searching
from pipeline.errors import PipelineError
from pipeline.geometry import IGNORE, Geometry, image_to_network, mask_to_network, to_native
from pipeline.metrics import METRICS, counts, dice, iou_precision
from pipeline.postprocess import Thresholds, decide, native_probability
from pipeline.recipe import TuneSettings
from pipeline.stages import tune as tuning
from pipeline.stages.tune import bootstrap_interval, tune
from pipeline.thresholds import Evidence, histogram_counts, image_scores, search

GEOMETRIES = [Geometry((16, 24), "stretch", 1), Geometry((16, 24), "pad", 1)]


def number(value: int) -> np.ndarray:
    return np.array(value)


# --- metrics ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("intersection", "predicted", "true", "expected"),
    [
        (0, 0, 0, 1.0),
        (0, 5, 0, 0.0),
        (0, 0, 5, 0.0),
        (0, 3, 4, 0.0),
        (5, 5, 5, 1.0),
        (2, 4, 4, 0.5),
        (3, 5, 7, 0.5),
        (1, 2, 1, 2 / 3),
    ],
)
def test_dice_by_hand(intersection: int, predicted: int, true: int, expected: float) -> None:
    assert dice(number(intersection), number(predicted), number(true)) == expected


@pytest.mark.parametrize(
    ("intersection", "predicted", "true", "expected"),
    [
        (0, 0, 0, 1.0),
        (0, 5, 0, 0.0),
        (0, 0, 5, 0.0),
        (5, 5, 5, 1.0),
        (1, 1, 2, 0.0),  # IoU 0.5 does not exceed 0.5
        (501, 501, 1000, 0.1),
        (11, 11, 20, 0.1),  # 0.55 exceeds 0.50 alone
        (111, 111, 200, 0.2),
        (3, 3, 4, 0.5),  # 0.75 exceeds 0.50 … 0.70
        (15, 15, 20, 0.5),
        (19, 19, 20, 0.9),  # 0.95 does not exceed itself
        (96, 96, 100, 1.0),
        (7, 7, 10, 0.4),  # 0.7: in floating point, 0.5 + 4 · 0.05 is not it
        (49, 49, 100, 0.0),
    ],
)
def test_iou_precision_by_hand(intersection: int, predicted: int, true: int, expected: float) -> None:
    assert iou_precision(number(intersection), number(predicted), number(true)) == expected


@pytest.mark.parametrize("metric", METRICS)
def test_metrics_keep_the_shape_of_their_counts(metric: str) -> None:
    intersection = np.arange(24).reshape(2, 3, 4)
    predicted, true = intersection + 1, intersection + 2
    together = METRICS[metric](intersection, predicted, true)
    assert together.shape == (2, 3, 4)
    for place in np.ndindex(2, 3, 4):
        assert together[place] == METRICS[metric](intersection[place], predicted[place], true[place])


@pytest.mark.parametrize("metric", METRICS)
def test_metrics_survive_small_unsigned_counts(metric: str) -> None:
    values = [np.array([60000], np.uint16)] * 3
    assert METRICS[metric](*values) == 1.0


masks_strategy = arrays.array_shapes(min_dims=3, max_dims=3, max_side=6).flatmap(
    lambda shape: st.tuples(
        arrays.arrays(np.uint8, shape, elements=st.sampled_from([0, 1])),
        arrays.arrays(np.uint8, shape, elements=st.sampled_from([0, 1, IGNORE])),
    )
)


@settings(max_examples=40, deadline=None)
@given(masks_strategy)
def test_counts_are_those_of_a_slow_loop(masks: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, true = masks
    expected = np.zeros((3, len(true)), int)
    for plane, row, column in np.ndindex(true.shape):
        value, guess = true[plane, row, column], predicted[plane, row, column]
        if value == IGNORE:
            continue
        expected[:, plane] += [bool(value and guess), bool(guess), bool(value)]
    np.testing.assert_array_equal(counts(predicted, true), expected)


@pytest.mark.parametrize("metric", METRICS)
def test_ignored_pixels_count_nowhere(metric: str) -> None:
    true = np.array([[[1, 1, 0, IGNORE, IGNORE]], [[0, 0, 0, 0, IGNORE]]], np.uint8)
    full, part = np.ones_like(true), np.array([[[1, 1, 1, 0, 0]], [[1, 1, 1, 1, 0]]], np.uint8)
    np.testing.assert_array_equal(counts(full, true), counts(part, true))
    expected = {"dice": 0.8, "iou": 2 / 3, "iou_precision": 0.4}[metric]  # 2 of 3 pixels: dice 4/5, IoU 2/3
    np.testing.assert_array_equal(METRICS[metric](*counts(full, true)), [expected, 0.0])
    nothing = np.full((1, 2, 2), IGNORE, np.uint8)
    assert METRICS[metric](*counts(np.ones_like(nothing), nothing)) == 1.0


# --- geometry --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(16, 24), (15, 21), (1, 1), (16, 3), (2, 24)])
@pytest.mark.parametrize("classes", [1, 3])
def test_to_native_undoes_pad_exactly(shape: tuple[int, int], classes: int) -> None:
    masks = np.random.default_rng(0).choice(np.array([0, 1, IGNORE], np.uint8), (classes, *shape))
    geometry = Geometry((16, 24), "pad", 1)
    fitted = mask_to_network(masks, geometry)
    assert fitted.shape == (classes, 16, 24)
    assert fitted.dtype == np.uint8
    np.testing.assert_array_equal(to_native(fitted.astype(np.float32), geometry, shape), masks)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fit", ["pad", "stretch"])
def test_images_keep_type_and_range(dtype: type, channels: int, fit: str) -> None:
    image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (13, 22, channels), endpoint=True).astype(dtype)
    geometry = Geometry((16, 24), fit, channels)  # type: ignore[arg-type]
    fitted = image_to_network(image, geometry)
    assert fitted.shape == (16, 24, channels)
    assert fitted.dtype == dtype
    assert image.min() <= fitted.min() <= fitted.max() <= image.max()
    if fit == "pad":
        planes = fitted.transpose(2, 0, 1).astype(np.float32)
        np.testing.assert_array_equal(to_native(planes, geometry, (13, 22)).transpose(1, 2, 0), image)


def test_pad_reflects_the_border() -> None:
    image = np.array([[1, 2, 3]], np.uint8)[..., None].repeat(3, axis=0)
    fitted = image_to_network(image, Geometry((3, 7), "pad", 1))
    np.testing.assert_array_equal(fitted[0, :, 0], [3, 2, 1, 2, 3, 2, 1])


@pytest.mark.parametrize(("have", "want"), [(1, 3), (3, 1), (4, 3), (4, 1)])
@pytest.mark.parametrize("fit", ["pad", "stretch"])
def test_channels_become_the_networks(have: int, want: int, fit: str) -> None:
    image = np.full((10, 12, have), 77, np.uint8)
    image[..., 3:] = 255
    fitted = image_to_network(image, Geometry((16, 24), fit, want))  # type: ignore[arg-type]
    np.testing.assert_array_equal(fitted, np.full((16, 24, want), 77))


def test_rgb_becomes_grey_by_luminance() -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    image[..., 0] = 200
    assert image_to_network(image, Geometry((2, 2), "pad", 1)).max() == round(0.299 * 200)


@pytest.mark.parametrize("shape", [(17, 24), (16, 25), (40, 40)])
def test_pad_refuses_larger_images(shape: tuple[int, int]) -> None:
    geometry = Geometry((16, 24), "pad", 1)
    for call in (
        lambda: image_to_network(np.zeros((*shape, 1), np.uint8), geometry),
        lambda: mask_to_network(np.zeros((1, *shape), np.uint8), geometry),
        lambda: to_native(np.zeros((1, 16, 24), np.float32), geometry, shape),
    ):
        with pytest.raises(PipelineError, match=rf"{shape[0]}×{shape[1]} is larger than image.size 16×24.*stretch"):
            call()


@pytest.mark.parametrize("size", [(16, 24), (64, 80), (33, 33)])
def test_stretched_masks_hold_no_new_values(size: tuple[int, int]) -> None:
    masks = np.zeros((2, 40, 50), np.uint8)
    masks[0, 10:30, 10:40] = 1
    masks[1, 5:20, 5:20] = 1
    masks[:, 32:, :] = IGNORE
    fitted = mask_to_network(masks, Geometry(size, "stretch", 1))
    assert fitted.shape == (2, *size)
    for before, after in zip(masks, fitted, strict=True):
        assert set(np.unique(after)) == {0, 1, IGNORE}
        for value in (0, 1, IGNORE):
            assert (after == value).mean() == pytest.approx((before == value).mean(), abs=0.04)


@pytest.mark.parametrize("size", [(64, 80), (101, 101), (20, 25)])
def test_stretched_masks_come_back(size: tuple[int, int]) -> None:
    rows, columns = np.mgrid[:50, :60]
    masks = np.stack([(rows - 25) ** 2 + (columns - 30) ** 2 < 300, (rows > 20) & (columns < 30)]).astype(np.uint8)
    geometry = Geometry(size, "stretch", 1)
    back = to_native(mask_to_network(masks, geometry).astype(np.float32), geometry, (50, 60)) >= 0.5
    assert back.shape == masks.shape
    assert dice(*counts(back, masks)).min() > 0.95


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_members_are_averaged_before_rounding(geometry: Geometry) -> None:
    members = [np.full((2, 16, 24), value, np.uint8) for value in (100, 101, 103)]  # mean 101.33
    np.testing.assert_array_equal(native_probability(members, geometry, (10, 12)), np.full((2, 10, 12), 101))
    members.append(np.full((2, 16, 24), 255, np.uint8))
    assert native_probability(members, geometry, (10, 12)).dtype == np.uint8
    assert native_probability(members, geometry, (10, 12)).max() == 140  # 139.75


def test_decide_by_hand() -> None:
    probability = np.array([[[10, 128, 127, 200]], [[255, 255, 255, 0]], [[9, 9, 9, 9]]], np.uint8)
    decision = Thresholds(threshold=(128, 255, 10), min_area=(2, 4, 0))
    np.testing.assert_array_equal(decide(probability, decision), [[[0, 1, 0, 1]], [[0, 0, 0, 0]], [[0, 0, 0, 0]]])
    assert decide(probability, Thresholds((128, 255, 10), (3, 3, 0))).sum(axis=(1, 2)).tolist() == [0, 3, 0]


# --- tune ------------------------------------------------------------------------------------------------------------


def random_data(seed: int, classes: int, number: int = 8) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Network outputs (C, H, W) and native truths (C, h, w): small and large masks, empty ones, ignored pixels."""
    rng = np.random.default_rng(seed)
    outputs, truths = [], []
    for index in range(number):
        shape = (int(rng.integers(8, 17)), int(rng.integers(10, 25)))
        true = (rng.random((classes, *shape)) < rng.choice([0.4, 0.7])).astype(np.uint8)
        true[rng.random(classes) < 0.4] = 0
        if index % 2:
            true[:, rng.random(shape) < 0.2] = IGNORE
        noise = rng.integers(0, 256, (classes, 16, 24))
        noise[rng.random(noise.shape) < rng.choice([0.3, 0.9])] = 0
        near = rng.random((classes, 16, 24)) < 0.8
        fitted = mask_to_network(true, Geometry((16, 24), "stretch", 1))
        outputs.append(np.where((fitted == 1) & near, 180, noise).astype(np.uint8))
        truths.append(true)
    return outputs, truths


def evidence_of(probabilities: list[np.ndarray], truths: list[np.ndarray], folds: int = 3) -> Evidence:
    ids = [f"image{index}" for index in range(len(truths))]
    images = pd.DataFrame({"image_id": ids, "fold": np.arange(len(ids)) % folds, "group": ids, "use": "train"})
    counted = [histogram_counts(*pair) for pair in zip(probabilities, truths, strict=True)]
    return Evidence(images, *(np.stack(part) for part in zip(*counted, strict=True)))


def scores_of(
    probabilities: list[np.ndarray], truths: list[np.ndarray], decision: Thresholds, metric: str
) -> np.ndarray:
    pairs = zip(probabilities, truths, strict=True)
    return np.stack([METRICS[metric](*counts(decide(probability, decision), true)) for probability, true in pairs])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("classes", [1, 2])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=["stretch", "pad"])
def test_search_equals_brute_force(seed: int, classes: int, metric: str, geometry: Geometry) -> None:
    outputs, truths = random_data(seed, classes)
    pairs = zip(outputs, truths, strict=True)
    probabilities = [native_probability([output], geometry, true.shape[1:]) for output, true in pairs]
    evidence, options = evidence_of(probabilities, truths), TuneSettings(min_areas=3)
    best = np.full(classes, -1.0)
    areas = [searching._candidate_areas(evidence, options, index).tolist() for index in range(classes)]
    for threshold in range(1, 256):
        for area in sorted({area for found in areas for area in found}):
            decision = Thresholds((threshold,) * classes, (area,) * classes)
            means = scores_of(probabilities, truths, decision, metric).mean(0)
            np.testing.assert_array_equal(means, image_scores(evidence, decision, metric).mean(0))
            for index in range(classes):
                if area in areas[index]:
                    best[index] = max(best[index], means[index])
    result = tune(evidence, options, metric)
    chosen = tuning.decision_of(result)
    assert result["score"] == scores_of(probabilities, truths, chosen, metric).mean(1).mean()
    np.testing.assert_allclose(image_scores(evidence, chosen, metric).mean(0), best, rtol=0, atol=1e-12)
    untuned = Thresholds((128,) * classes, (0,) * classes)
    assert result["untuned"] == scores_of(probabilities, truths, untuned, metric).mean(1).mean()
    assert result["untuned"] <= result["score"]


@pytest.mark.parametrize("seed", range(3))
def test_random_data_is_worth_searching(seed: int) -> None:
    outputs, truths = random_data(seed, 1)
    probabilities = [native_probability([o], GEOMETRIES[0], t.shape[1:]) for o, t in zip(outputs, truths, strict=True)]
    evidence = evidence_of(probabilities, truths)
    assert len(searching._candidate_areas(evidence, TuneSettings(min_areas=3), 0)) > 1
    assert any((true == IGNORE).any() for true in truths)
    assert any(not (true == 1).any() for true in truths)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("area", [0, 1, 20, 60, 10_000])
def test_image_scores_equal_decide_with_ignored_pixels(metric: str, area: int) -> None:
    """A minimum area is held against the whole mask, as on test images, where nothing is ignored."""
    outputs, truths = random_data(5, 2)
    probabilities = [native_probability([o], GEOMETRIES[1], t.shape[1:]) for o, t in zip(outputs, truths, strict=True)]
    evidence = evidence_of(probabilities, truths)
    for thresholds in ((1, 255), (128, 60), (181, 180)):
        decision = Thresholds(thresholds, (area, area // 2))
        expected = scores_of(probabilities, truths, decision, metric)
        np.testing.assert_array_equal(image_scores(evidence, decision, metric), expected)


def test_ties_take_the_smallest_area_then_the_threshold_nearest_a_half() -> None:
    sums = np.zeros((3, 256))
    sums[1, 50], sums[2, 128], sums[1, 200] = 1.0, 1.0, 1.0
    assert searching._choose(sums, np.array([0, 7, 9])) == (200, 7)
    sums[:] = 1.0
    assert searching._choose(sums, np.array([0, 7, 9])) == (128, 0)
    sums[2, 3] = 2.0
    assert searching._choose(sums, np.array([0, 7, 9])) == (3, 9)
    sums[0, 0] = 9.0  # threshold 0 would fill every image
    assert searching._choose(sums, np.array([0, 7, 9])) == (3, 9)


def test_perfect_predictions_keep_every_mask() -> None:
    truths = [np.zeros((1, 6, 6), np.uint8) for _ in range(6)]
    for index, true in enumerate(truths[1:]):
        true[0, : index + 1] = 1
    result = tune(evidence_of([true * 255 for true in truths], truths), TuneSettings(), "dice")
    assert (result["threshold"], result["min_area"]) == ([128], [0])
    assert result["score"] == result["nested"] == result["untuned"] == 1.0
    assert result["interval_95"] == (1.0, 1.0)
    assert result["share_empty_true"] == pytest.approx(1 / 6)
    assert result["mean_true_area"] == 90 / 6


@pytest.mark.parametrize(("threshold", "expected"), [(0.5, 128), (1.0, 255), (0.001, 1), (0.25, 64)])
def test_fixed_takes_the_recipes_numbers(threshold: float, expected: int) -> None:
    outputs, truths = random_data(1, 2)
    probabilities = [native_probability([o], GEOMETRIES[0], t.shape[1:]) for o, t in zip(outputs, truths, strict=True)]
    fixed = TuneSettings(method="fixed", threshold=threshold, min_area=11)
    result = tune(evidence_of(probabilities, truths), fixed, "dice")
    assert (result["threshold"], result["min_area"]) == ([expected] * 2, [11] * 2)
    assert result["nested"] == pytest.approx(result["score"], abs=1e-12)
    decision = Thresholds((expected,) * 2, (11, 11))
    assert result["score"] == scores_of(probabilities, truths, decision, "dice").mean(1).mean()


@pytest.mark.parametrize("classes", [1, 2])
def test_everything_empty_or_nothing_predicted(classes: int) -> None:
    empty = [np.zeros((classes, 4, 4), np.uint8) for _ in range(4)]
    result = tune(evidence_of(empty, empty), TuneSettings(), "iou_precision")
    assert (result["score"], result["nested"], result["threshold"]) == (1.0, 1.0, [128] * classes)
    full = [np.ones((classes, 4, 4), np.uint8) for _ in range(4)]
    result = tune(evidence_of(empty, full), TuneSettings(), "iou_precision")
    assert (result["score"], result["min_area"]) == (0.0, [0] * classes)


def two_folds() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Fold 0 is right from threshold 201 on, fold 1 from 1 to 100; both have two images."""
    true = np.array([[[1, 1, 0, 0]]], np.uint8)
    first, second = np.array([[[255, 255, 200, 200]]], np.uint8), np.array([[[100, 100, 0, 0]]], np.uint8)
    return [first, second, first, second], [true] * 4


def test_nested_estimate_by_hand() -> None:
    evidence = evidence_of(*two_folds(), folds=2)
    # chosen on fold 1: 100, the nearest to 128 of 1 … 100; fold 0 is then full: dice 2·2/(4+2) = 2/3
    # chosen on fold 0: 201, the nearest of 201 … 255; fold 1 is then empty: dice 0
    np.testing.assert_allclose(tuning.nested_scores(evidence, TuneSettings(), "dice"), [2 / 3, 0, 2 / 3, 0])
    result = tune(evidence, TuneSettings(), "dice")
    assert result["nested"] == pytest.approx(1 / 3)
    assert result["score"] == pytest.approx((2 / 3 + 1) / 2)  # at 100: fold 0 full, fold 1 right
    assert result["threshold"] == [100]
    assert result["score_by_fold"] == {"0": pytest.approx(2 / 3), "1": 1.0}


@pytest.mark.parametrize("metric", METRICS)
def test_the_choice_for_a_part_does_not_see_it(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs, truths = random_data(2, 1, number=12)
    probabilities = [native_probability([o], GEOMETRIES[0], t.shape[1:]) for o, t in zip(outputs, truths, strict=True)]
    evidence = evidence_of(probabilities, truths)
    changed = [np.full_like(true, index % 2) if index % 3 == 0 else true for index, true in enumerate(truths)]
    choices: list[Thresholds] = []

    def remember(*arguments: object) -> Thresholds:
        choices.append(search(*arguments))  # type: ignore[arg-type]
        return choices[-1]

    monkeypatch.setattr(tuning, "search", remember)
    before = tuning.nested_scores(evidence, TuneSettings(), metric)
    after = tuning.nested_scores(evidence_of(probabilities, changed), TuneSettings(), metric)
    assert len(choices) == 6
    assert choices[0] == choices[3]  # fold 0's own truth is another, its choice is not
    assert choices[1:3] != choices[4:]  # the others were chosen on fold 0 too
    held_out = evidence.images["fold"] == 0
    expected = scores_of(probabilities[::3], changed[::3], choices[0], metric).mean(1)
    np.testing.assert_array_equal(after[held_out], expected)
    assert (before[held_out] != after[held_out]).any()


def test_nested_is_below_optimistic_where_there_is_nothing_to_learn() -> None:
    outputs, truths = random_data(3, 1, number=12)
    shape = (1, 12, 16)
    geometry = GEOMETRIES[0]
    probabilities = [native_probability([output], geometry, shape[1:]) for output in outputs]
    truths = [mask_to_network(true, Geometry(shape[1:], "stretch", 1)) for true in truths]
    gaps = []
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(len(truths))
        result = tune(evidence_of(probabilities, [truths[index] for index in order]), TuneSettings(), "dice")
        gaps.append(result["score"] - result["nested"])
    assert np.mean(gaps) > 0.01


def test_one_fold_is_left_out_in_groups() -> None:
    outputs, truths = random_data(4, 1, number=12)
    probabilities = [native_probability([o], GEOMETRIES[0], t.shape[1:]) for o, t in zip(outputs, truths, strict=True)]
    evidence = evidence_of(probabilities, truths, folds=1)
    group = np.arange(12) // 2
    grouped = replace(evidence, images=evidence.images.assign(group=group.astype(str)))
    parts = tuning.parts_of(grouped.images)
    assert set(parts) == set(range(tuning.PARTS_OF_ONE_FOLD))
    assert all(len(set(parts[group == one])) == 1 for one in range(6))
    assert tune(grouped, TuneSettings(), "dice")["nested"] <= tune(grouped, TuneSettings(), "dice")["score"] + 0.05
    single = replace(evidence, images=evidence.images.assign(group="one"))
    result = tune(single, TuneSettings(), "dice")
    assert result["nested"] == pytest.approx(result["untuned"])  # nothing is left to choose on


def test_bootstrap_interval_holds_the_mean_and_narrows() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for number in (40, 4000):
        scores = rng.random(number)
        low, high = bootstrap_interval(scores, np.arange(number))
        assert low < scores.mean() < high
        widths.append(high - low)
        assert high - low == pytest.approx(2 * 1.96 * scores.std() / np.sqrt(number), rel=0.15)
    assert bootstrap_interval(scores, np.arange(number)) == bootstrap_interval(scores, np.arange(number))
    assert widths[1] < widths[0] / 5


def test_bootstrap_resamples_whole_groups() -> None:
    scores = np.tile([0.0, 1.0], 500)
    alone = bootstrap_interval(scores, np.arange(1000))
    assert alone[1] - alone[0] < 0.1
    # ten groups of one value each: as uncertain as ten images
    together = bootstrap_interval(scores, np.arange(1000) % 10)
    assert together[1] - together[0] > 0.5
    # one group holds nearly everything: drawn or not, it decides
    scores, groups = np.r_[np.ones(1000), np.zeros(9)], np.r_[np.zeros(1000), np.arange(1, 10)]
    low, high = bootstrap_interval(scores, groups)
    assert (low, high > 0.98) == (0.0, True)
    assert bootstrap_interval(np.array([0.25, 0.75]), np.array(["a", "a"])) == (0.5, 0.5)
