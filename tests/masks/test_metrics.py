"""Metrics and geometry, against results worked out by hand or by slow, plain loops."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.core.config.metric_text import parse, written
from pipeline.core.errors import PipelineError
from pipeline.masks import surfaces
from pipeline.masks.geometry import IGNORE, Geometry, image_to_network, mask_to_network, to_native
from pipeline.masks.instances import instance_f_beta, instance_precision, matches
from pipeline.masks.metrics import METRICS, named
from pipeline.masks.overlaps import counts, dice, iou_precision

OF_PIXELS = [name for name, metric in METRICS.items() if metric.counted == "pixels"]


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


@pytest.mark.parametrize("metric", OF_PIXELS)
def test_metrics_keep_the_shape_of_their_counts(metric: str) -> None:
    intersection = np.arange(24).reshape(2, 3, 4)
    predicted, true = intersection + 1, intersection + 2
    together = METRICS[metric](intersection, predicted, true)
    assert together.shape == (2, 3, 4)
    for place in np.ndindex(2, 3, 4):
        assert together[place] == METRICS[metric](intersection[place], predicted[place], true[place])


@pytest.mark.parametrize("metric", OF_PIXELS)
def test_metrics_survive_small_unsigned_counts(metric: str) -> None:
    values = [np.array([60000], np.uint16)] * 3
    assert METRICS[metric](*values) == 1.0


def test_f_beta_by_hand() -> None:
    """Three pixels in both, two predicted only, one true only: precision 3/5, recall 3/4."""
    assert named("f_beta(beta=0.5)")(number(3), number(5), number(4)) == pytest.approx(1.25 * 3 / (5 + 0.25 * 4))
    assert named("f_beta(beta=2)")(number(3), number(5), number(4)) == pytest.approx(5 * 0.6 * 0.75 / (4 * 0.6 + 0.75))
    assert named("f_beta")(number(3), number(5), number(4)) == dice(number(3), number(5), number(4))


@pytest.mark.parametrize(
    ("text", "written_as"),
    [
        ("dice", "dice"),
        ("dice ( over = data_set )", "dice(over=data_set)"),
        ("f_beta(over='group', beta=.5)", "f_beta(beta=0.5, over=group)"),
        ("0.4*dice + iou * 0.6", "0.4 * dice + 0.6 * iou"),
        ("2 * (0.5 * dice + iou)", "1 * dice + 2 * iou"),
    ],
)
def test_a_metric_is_always_written_alike(text: str, written_as: str) -> None:
    assert written(parse(text)) == written_as == written(parse(written_as))
    assert named(text).name == written_as


def test_a_sum_of_metrics() -> None:
    one = np.array([3]), np.array([5]), np.array([4])
    assert named("0.4 * dice + 0.6 * iou")(*one) == pytest.approx(0.4 * dice(*one) + 0.6 * 3 / 6)
    pooled = named("0.5 * dice(over=data_set) + 0.5 * iou(over=data_set)")
    assert (pooled.unit, pooled.counted) == ("data_set", "pixels")
    measured = np.array([[[3], [5], [4]], [[0], [2], [0]]])
    assert pooled.score_of(measured) == pytest.approx(0.5 * 6 / 11 + 0.5 * 3 / 8)
    with pytest.raises(PipelineError, match="distances cannot be summed"):
        named("dice + hausdorff(over=data_set)")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("dise", "there is no metric `dise`; did you mean `dice`"),
        ("dice(over=data)", "metric dice: over is data; expected image, group, data_set"),
        ("dice(beta=2)", "metric dice has no setting 'beta'; it has over"),
        ("mean_iou(over=group)", "metric mean_iou has no setting 'over'; it has none"),
        ("f_beta(beta=-1)", "metric f_beta: beta is -1; expected a number above 0"),
        ("dice +", "is not a metric; expected for instance dice"),
        ("dice - iou", "`dice - iou` is not a metric"),
        ("0 * dice", "expected a number above 0 times"),
        ("1e400 * dice", "expected a number above 0 times"),
        ("f_beta(beta=1e400)", "expected a number above 0"),
        ("f_beta(beta=1, beta=2)", "`f_beta(beta=1, beta=2)` gives a setting twice"),
        ("dice + mean_iou", "adds metrics of masks and metrics of class maps"),
        ("__import__('os')", "is not a metric; expected for instance dice"),
    ],
)
def test_what_is_no_metric(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=re.escape(fault)):
        parse(text)


def test_a_sum_over_different_units() -> None:
    """Of two volumes of two slices, two classes: the terms' own scores, weighed."""
    rng = np.random.default_rng(0)
    predicted, true = rng.integers(0, 2, (2, 4, 2, 8, 9)).astype(np.uint8)
    true[..., :2] = IGNORE
    groups = np.array(["a", "a", "b", "b"])
    parts = ("dice", "hausdorff(over=group)", "instance_precision", "iou(over=data_set)")
    weights = (0.4, 0.6, 1.5, 2)
    total = named(" + ".join(f"{weight} * {part}" for weight, part in zip(weights, parts, strict=True)))
    each = [named(part) for part in parts]
    alone = [one.score_of(one.measured_all(list(predicted), list(true), groups), groups) for one in each]
    measured = total.measured_all(list(predicted), list(true), groups)
    assert total.score_of(measured, groups) == pytest.approx(np.dot(weights, alone))
    rows = total.rows(measured, None, groups)
    assert total.objective(np.stack([rows.sum(0), rows[:2].sum(0)])).shape == (2,)
    one_class = total.rows(measured[..., [1]], None, groups)
    again = [
        one.score_of(one.measured_all(list(predicted[:, [1]]), list(true[:, [1]]), groups), groups) for one in each
    ]
    assert float(total.score(one_class.sum(0))) == pytest.approx(np.dot(weights, again))


# --- surfaces --------------------------------------------------------------------------------------------------------


def test_surfaces_by_hand() -> None:
    """A square of 4 by 4 moved down by one: its sides lie half on each other; 4 of 4 of all within a pixel."""
    true = np.zeros((1, 12, 12), np.uint8)
    true[0, 3:7, 3:7] = 1
    moved = np.roll(true, 1, 1)
    exact, near = named("surface_dice(tolerance=0)"), named("surface_dice(tolerance=1)")
    assert exact.by_class(exact.measured([true], [true]))[0] == 1.0
    assert exact.by_class(exact.measured([moved], [true]))[0] == pytest.approx(0.5, abs=0.15)
    assert near.by_class(near.measured([moved], [true]))[0] == 1.0
    farthest = named("hausdorff")
    assert farthest.by_class(farthest.measured([moved], [true]))[0] == pytest.approx(1 - 1 / 12 / 2**0.5)
    nothing = np.zeros_like(true)
    for metric in (exact, farthest):
        scores = [metric.by_class(metric.measured([one], [other]))[0, 0] for one, other in
                  ((nothing, nothing), (true, nothing), (nothing, true))]  # fmt: skip
        assert scores == [1.0, 0.0, 0.0]
    ignored = true.copy()
    ignored[ignored == 0] = IGNORE
    assert farthest.by_class(farthest.measured([np.ones_like(true)], [ignored]))[0] == 1.0


def test_slices_of_a_group_are_one_volume() -> None:
    """A cube that is found two slices too high; slice by slice, two slices would be missed altogether."""
    true, predicted = np.zeros((2, 10, 1, 16, 16), np.uint8)
    true[2:6, 0, 4:8, 4:8], predicted[4:8, 0, 4:8, 4:8] = 1, 1
    groups, metric = np.array(["a"] * 10), named("hausdorff(over=group)")
    measured = metric.measured_all(list(predicted), list(true), groups)
    assert metric.score_of(measured, groups) == pytest.approx(1 - 2 / 10 / 3**0.5)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PipelineError, match="pip install surface-distance"):
        surfaces.surface_counts(np.ones((1, 4, 4), np.uint8), np.ones((1, 4, 4), np.uint8))


# --- instances -------------------------------------------------------------------------------------------------------


def test_instances_by_hand() -> None:
    """Three true objects: one found whole, one by 7 of its 10 pixels, one missed; and one that is not there."""
    true, predicted = np.zeros((1, 5, 12), np.int32), np.zeros((1, 5, 12), np.int32)
    true[0, 0, :10], true[0, 1, :10], true[0, 2, :4] = 1, 2, 3  # the first two touch
    predicted[0, 0, :10], predicted[0, 1, :7], predicted[0, 4, 8:] = 7, 4, 5
    found = matches(predicted, true)[:, 0]
    # IoU 0.7 exceeds 0.50 to 0.65: two match below 0.7, one from there on
    assert found.tolist() == [2] * 4 + [1] * 6 + [1] * 4 + [2] * 6 + [1] * 4 + [2] * 6
    assert instance_precision(*found) == pytest.approx((4 * 2 / 4 + 6 * 1 / 5) / 10)
    assert instance_f_beta(*found, beta=2.0) == pytest.approx((4 * 10 / (10 + 4 + 1) + 6 * 5 / (5 + 8 + 2)) / 10)
    nothing = np.zeros_like(true)
    assert instance_precision(*matches(nothing, nothing)[:, 0]) == 1.0
    assert (
        instance_precision(*matches(predicted, nothing)[:, 0]) == instance_precision(*matches(nothing, true)[:, 0]) == 0
    )


def drawn_labels(instances: list[tuple[slice, slice]], shape: tuple[int, int] = (12, 14)) -> np.ndarray:
    labels = np.zeros((1, *shape), np.int32)
    for number, place in enumerate(instances, 1):
        labels[0][place] = number
    return labels


@pytest.mark.parametrize(
    ("predicted", "true", "expected"),
    [
        ([], [], 1.0),  # authentic, and said to be
        ([np.s_[0:2, 0:5]], [], 0.0),  # authentic, and said to be forged
        ([], [np.s_[0:2, 0:5]], 0.0),
        ([np.s_[0:2, 0:5]], [np.s_[0:2, 0:5]], 1.0),
        ([np.s_[0:2, 0:5]], [np.s_[0:2, 0:10]], 2 * 10 / 30),
        ([np.s_[0:2, 0:5]], [np.s_[0:2, 0:5], np.s_[8:10, 0:5]], 0.5),  # one missed
        ([np.s_[0:2, 0:5], np.s_[8:10, 0:5]], [np.s_[0:2, 0:5]], 0.5),  # one too many
        ([np.s_[0:2, 0:5], np.s_[0:2, 5:9]], [np.s_[0:2, 0:5], np.s_[0:2, 7:12]], (1 + 2 * 4 / 18) / 2),
    ],
)
def test_pairs_of_instances_by_hand(predicted: list, true: list, expected: float) -> None:
    metric = named("instance_f1")
    ((score,),) = metric.by_class(metric.measured([drawn_labels(predicted)], [drawn_labels(true)]))
    assert score == pytest.approx(expected)


def test_pairs_are_the_best_altogether() -> None:
    """One predicted strip covers the whole of a small object and half of a large one: greedy pairs would be worse."""
    true = drawn_labels([np.s_[0, 0:6], np.s_[0, 6:12]])
    predicted = drawn_labels([np.s_[0, 2:9], np.s_[0, 0:2]])  # F1 with the first 8/13, with the second 6/13; 4/8 and 0
    metric = named("instance_f1")
    ((score,),) = metric.by_class(metric.measured([predicted], [true]))
    assert score == pytest.approx((6 / 13 + 4 / 8) / 2)  # greedy: 8/13 and 0
    pooled = named("instance_f1(over=data_set)")
    measured = pooled.measured_all([predicted, true], [true, true], np.array(["a", "b"]))
    assert pooled.score_of(measured) == pytest.approx((6 / 13 + 4 / 8 + 2) / 4)


def test_masks_are_scored_by_their_regions_and_ignored_pixels_by_nothing() -> None:
    metric, mask = named("instance_precision"), np.zeros((1, 6, 8), np.uint8)
    mask[0, :2, :2] = mask[0, 2:4, 2:4] = mask[0, 4:, 6:] = 1  # the first two touch by a corner
    truth = mask.copy()
    truth[0, 4:, 6:] = IGNORE
    (counts_of,) = metric.measured([mask], [truth])
    assert counts_of[:, 0].tolist() == [1] * 10 + [0] * 20


def test_touching_objects_cost_what_they_cost() -> None:
    """As one region, two equal neighbours match none of them."""
    true = np.zeros((1, 4, 8), np.int32)
    true[0, :, :4], true[0, :, 4:] = 1, 2
    metric = named("instance_precision")
    (apart,), (merged,) = metric.measured([true], [true]), metric.measured([(true > 0).astype(np.uint8)], [true])
    assert metric.by_class(apart).tolist() == [1.0] and metric.by_class(merged).tolist() == [0.0]


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


@pytest.mark.parametrize("metric", OF_PIXELS)
def test_ignored_pixels_count_nowhere(metric: str) -> None:
    true = np.array([[[1, 1, 0, IGNORE, IGNORE]], [[0, 0, 0, 0, IGNORE]]], np.uint8)
    full, part = np.ones_like(true), np.array([[[1, 1, 1, 0, 0]], [[1, 1, 1, 1, 0]]], np.uint8)
    np.testing.assert_array_equal(counts(full, true), counts(part, true))
    expected = {"dice": 0.8, "f_beta": 0.8, "iou": 2 / 3, "iou_precision": 0.4}[
        metric
    ]  # 2 of 3 pixels: dice 4/5, IoU 2/3
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
        with pytest.raises(PipelineError, match=rf"{shape[0]}×{shape[1]} is larger than 16×24.*stretch"):
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
