"""The mean IoU over classes and the biases searched for it, against hand-worked cases, packages and slow loops."""

import math
from collections.abc import Sequence
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torchmetrics.classification import MulticlassJaccardIndex

from pipeline.masks.class_bias import labels
from pipeline.masks.geometry import IGNORE
from pipeline.masks.overlaps import IgnoredPrediction, class_iou, confusion, iou, mean_iou
from pipeline.tune import class_biases
from pipeline.tune.class_biases import search

pytestmark = pytest.mark.filterwarnings("error")

CLASSES = 5
GRID = [round(-3 + 0.05 * place, 2) for place in range(121)]


def maps(values: Sequence[int]) -> st.SearchStrategy[np.ndarray]:
    return arrays.arrays(np.uint8, (2, 3, 4), elements=st.sampled_from(values))


# --- counts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("intersection", "predicted", "true", "expected"),
    [(0, 0, 0, 1.0), (0, 5, 0, 0.0), (0, 0, 5, 0.0), (5, 5, 5, 1.0), (2, 4, 4, 1 / 3), (1, 2, 1, 0.5)],
)
def test_iou_by_hand(intersection: int, predicted: int, true: int, expected: float) -> None:
    assert iou(np.array(intersection), np.array(predicted), np.array(true)) == expected


def test_confusion_by_hand() -> None:
    true = np.array([[0, 0, 1], [2, 2, IGNORE]], np.uint8)
    predicted = np.array([[0, 1, 1], [0, 2, 2]], np.uint8)
    found = confusion(predicted, true, 4)
    assert found.dtype == np.int64
    assert found.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]


@settings(max_examples=40, deadline=None)
@given(maps([0, 1, 2, 3, 4]), maps([0, 1, 2, 3, 4, IGNORE]))
def test_confusion_is_that_of_a_slow_loop(predicted: np.ndarray, true: np.ndarray) -> None:
    expected = np.zeros((CLASSES, CLASSES), int)
    for row, column in zip(true.ravel(), predicted.ravel(), strict=True):
        if row != IGNORE:
            expected[row, column] += 1
    np.testing.assert_array_equal(confusion(predicted, true, CLASSES), expected)
    np.testing.assert_array_equal(confusion(predicted.T, true.T, CLASSES), expected)


@pytest.mark.parametrize("classes", [16, 17, 255])
def test_confusion_of_many_classes(classes: int) -> None:
    true = np.arange(classes, dtype=np.uint8)
    np.testing.assert_array_equal(confusion(true, true, classes), np.eye(classes))
    np.testing.assert_array_equal(confusion(true[::-1], true, classes), np.eye(classes)[::-1])
    assert confusion(true, np.full_like(true, IGNORE), classes).sum() == 0
    assert confusion(true[:0], true[:0], classes).sum() == 0


def test_confusion_refuses_classes_it_has_no_room_for() -> None:
    small, large = np.array([0, 1], np.uint8), np.array([0, 3], np.uint8)
    for predicted, true in ((small, large), (large, small)):
        with pytest.raises(ValueError, match="holds class 3; expected 0 to 2"):
            confusion(predicted, true, 3)


# --- mean IoU --------------------------------------------------------------------------------------------------------


def test_both_readings_by_hand() -> None:
    true = np.array([[0, 0, 1, 1, 1], [2, 2, 2, 2, IGNORE]], np.uint8)
    predicted = np.array([[1, 0, 1, 1, 0], [2, 2, 2, 1, 2]], np.uint8)
    matrix = confusion(predicted, true, 4)
    # nothing ignored: class 0 1/(2+2-1), class 1 2/(3+4-2), class 2 3/(4+3-3), class 3 absent
    np.testing.assert_allclose(class_iou(matrix), [1 / 3, 2 / 5, 3 / 4, np.nan])
    assert mean_iou(matrix) == pytest.approx((1 / 3 + 2 / 5 + 3 / 4) / 3)
    # without the two pixels of truth 0: class 1 2/(3+3-2), its third pixel, predicted 0, is missed
    np.testing.assert_allclose(class_iou(matrix, 0), [np.nan, 2 / 4, 3 / 4, np.nan])
    assert mean_iou(matrix, 0) == pytest.approx((2 / 4 + 3 / 4) / 2)
    assert mean_iou(matrix, 0, "zero") == pytest.approx((0 + 2 / 4 + 3 / 4) / 3)
    # class 2 ignored, and not predicted elsewhere: class 0 1/(2+2-1), class 1 2/(3+3-2), under both readings
    for reading in ("leave_out", "zero"):
        assert mean_iou(matrix, 2, reading) == pytest.approx((1 / 3 + 2 / 4) / 2)
    # class 3 ignored, neither true nor predicted: as if nothing were
    assert mean_iou(matrix, 3, "zero") == mean_iou(matrix)


@pytest.mark.parametrize(
    ("matrix", "leave_out", "zero"),
    [
        ([[7, 2, 1], [0, 4, 0], [0, 0, 5]], 1.0, 1.0),  # every remaining pixel is right
        ([[0, 0, 0], [4, 0, 0], [0, 0, 0]], 0.0, 0.0),  # one class, all of it predicted as the ignored one
        ([[0, 0, 0], [2, 2, 0], [0, 0, 0]], 0.5, 0.25),  # 2/4; and a zero beside it
        ([[9, 0, 0], [0, 0, 3], [0, 0, 0]], 0.0, 0.0),  # class 2 is predicted, never true: it counts, with 0
        ([[9, 8, 7], [0, 0, 0], [0, 0, 0]], 0.0, 0.0),  # nothing is left
        ([[0, 0, 0], [0, 0, 0], [0, 0, 0]], 0.0, 0.0),
    ],
)
def test_ignored_class_by_hand(matrix: list[list[int]], leave_out: float, zero: float) -> None:
    assert mean_iou(np.array(matrix), 0) == leave_out
    assert mean_iou(np.array(matrix), 0, "zero") == zero


@settings(max_examples=40, deadline=None)
@given(maps([1, 2, 3, 4]), maps([0, 1, 2, 3, 4, IGNORE]))
def test_readings_agree_where_the_ignored_class_is_not_predicted(predicted: np.ndarray, true: np.ndarray) -> None:
    matrix = confusion(predicted, true, CLASSES)
    assert mean_iou(matrix, 0) == mean_iou(matrix, 0, "zero")


@settings(max_examples=40, deadline=None)
@given(maps([0, 1, 2, 3, 4]), maps([0, 1, 2, 4]), st.sampled_from([None, 0, 2]))
def test_leave_out_is_torchmetrics(predicted: np.ndarray, true: np.ndarray, ignore_class: int | None) -> None:
    """Agrees everywhere, also where the ignored class is predicted, but for NaN where no pixel is left.

    Its macro mean has weight 0 for the ignored class and for classes that are neither true nor predicted, and drops
    the pixels whose truth is ignored before it counts.
    """
    theirs = MulticlassJaccardIndex(num_classes=CLASSES, ignore_index=ignore_class, average="macro")
    expected = float(theirs(torch.from_numpy(predicted), torch.from_numpy(true).long()))
    ours = mean_iou(confusion(predicted, true, CLASSES), ignore_class)
    assert ours == pytest.approx(0.0 if math.isnan(expected) else expected, abs=1e-6)
    assert math.isnan(expected) == bool((true == ignore_class).all())


def keras_mean_iou(predicted: np.ndarray, true: np.ndarray, ignore_class: int) -> float:
    """What keras.metrics.MeanIoU(CLASSES, ignore_class=ignore_class) computes, less its epsilon of 1e-7.

    A pixel whose truth is ignored gets weight 0. A class counts when its denominator is above 0, the ignored one too.
    """
    matrix = [[0.0] * CLASSES for _ in range(CLASSES)]
    for row, column in zip(true.ravel().tolist(), predicted.ravel().tolist(), strict=True):
        matrix[row][column] += row != ignore_class
    total, valid = 0.0, 0
    for index in range(CLASSES):
        hit = matrix[index][index]
        denominator = sum(matrix[index]) + sum(row[index] for row in matrix) - hit
        total += hit / denominator if denominator else 0.0
        valid += denominator > 0
    return total / valid if valid else 0.0


@settings(max_examples=60, deadline=None)
@given(maps([0, 1, 2, 3, 4]), maps([0, 1, 2, 4]), st.sampled_from([0, 2]))
def test_zero_is_keras(predicted: np.ndarray, true: np.ndarray, ignore_class: int) -> None:
    ours = mean_iou(confusion(predicted, true, CLASSES), ignore_class, "zero")
    assert ours == pytest.approx(keras_mean_iou(predicted, true, ignore_class), abs=1e-12)


@pytest.mark.parametrize("ignore_class", [None, 0, 3])
@pytest.mark.parametrize("reading", ["leave_out", "zero"])
def test_many_matrices_score_like_each_alone(ignore_class: int | None, reading: IgnoredPrediction) -> None:
    rng = np.random.default_rng(0)
    matrices = rng.integers(0, 9, (2, 30, CLASSES, CLASSES)) * (rng.random((2, 30, CLASSES, CLASSES)) < 0.2)
    unchanged = matrices.copy()
    scores, by_class = mean_iou(matrices, ignore_class, reading), class_iou(matrices, ignore_class)
    assert (scores.shape, by_class.shape) == ((2, 30), (2, 30, CLASSES))
    for place in np.ndindex(2, 30):
        assert scores[place] == mean_iou(matrices[place], ignore_class, reading)
        np.testing.assert_array_equal(by_class[place], class_iou(matrices[place], ignore_class))
    np.testing.assert_array_equal(matrices, unchanged)


def test_pooled_images_are_one_large_image() -> None:
    rng = np.random.default_rng(1)
    predicted = rng.integers(0, CLASSES, (6, 8, 9), np.uint8)
    true = rng.choice(np.array([0, 1, 2, 3, 4, IGNORE], np.uint8), (6, 8, 9))
    pooled = sum(confusion(*pair, CLASSES) for pair in zip(predicted, true, strict=True))
    np.testing.assert_array_equal(pooled, confusion(np.concatenate(predicted), np.concatenate(true), CLASSES))


# --- biases ----------------------------------------------------------------------------------------------------------


def awkward_pixels(seed: int, number: int = 1500, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (M, C) float32 rounded to float16, with zeros and ties of every kind; truths with 255 (M,)."""
    rng = np.random.default_rng(seed)
    values = rng.dirichlet([0.5] * classes, number).astype(np.float16)
    values[rng.random(values.shape) < 0.2] = 0
    values[:50] = 0
    values[50:150] = values[50:150, :1]
    values[150:300, 1] = values[150:300, 2]
    values[300:340] = np.float16(6e-8)  # the smallest above 0
    probability = values.astype(np.float32)
    # ties that only a bias makes: one class is another one times a candidate's factor, in float32
    steps = np.array([math.exp(bias) for bias in rng.choice(GRID, 400)], np.float32)
    one, other = rng.permuted(np.tile(np.arange(classes), (400, 1)), axis=1)[:, :2].T
    rows = np.arange(400, 800)
    probability[rows, one] = probability[rows, other] * steps
    return probability, rng.choice(np.array([*range(classes), IGNORE], np.uint8), number)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("never", [(), (0,), (1, 3)])
def test_candidates_equal_brute_force(seed: int, never: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_biases, "CHUNK", 700)
    probability, true = awkward_pixels(seed)
    allowed = [index for index in range(4) if index not in never]
    bias = [0.0] * 4 if seed == 0 else np.random.default_rng(seed).choice(GRID, 4).tolist()
    for index in allowed:
        found = class_biases._candidates(probability, true, bias, index, allowed)
        assert found.shape == (121, 4, 4)
        for candidate, matrix in zip(GRID, found, strict=True):
            tried = [*bias[:index], candidate, *bias[index + 1 :]]
            np.testing.assert_array_equal(matrix, confusion(labels(probability.T, tried, never), true, 4))


def test_awkward_pixels_tie_where_it_matters() -> None:
    probability, _ = awkward_pixels(0)
    at_any = np.zeros(len(probability), bool)
    for candidate in GRID:
        products = np.sort(probability * np.array([1, math.exp(candidate), 1, 1], np.float32), axis=1)
        at_any |= products[:, -1] == products[:, -2]
    assert at_any[:300].mean() > 0.5
    assert at_any[400:800].sum() > 50
    assert at_any[800:].mean() < 0.1


def test_labels_by_hand() -> None:
    probability = np.array([[[0.5, 0.2, 0.0]], [[0.3, 0.4, 0.0]], [[0.2, 0.4, 0.0]]], np.float16)
    assert labels(probability, [0, 0, 0]).tolist() == [[0, 1, 0]]  # ties go to the lowest class
    assert labels(probability, [0, 0, 0]).dtype == np.uint8
    assert labels(probability, [0, 0, 0], never=[0]).tolist() == [[1, 1, 1]]
    assert labels(probability, [0, 0, 0], never=[0, 1]).tolist() == [[2, 2, 2]]
    assert labels(probability, [0, 0.55, 0]).tolist() == [[1, 1, 0]]  # 0.3 · e^0.55 = 0.52
    assert labels(probability, [0, -0.05, 0]).tolist() == [[0, 2, 0]]
    assert labels(probability, [3, 0, 0], never=[0]).tolist() == [[1, 1, 1]]
    assert labels(probability[:, 0, 0], [0, 0, 1]).tolist() == 2  # 0.2 · e = 0.54
    with pytest.raises(ValueError, match="never names all 3 classes"):
        labels(probability, [0, 0, 0], never=[0, 1, 2])


def noisy_pixels(seed: int, number: int, shares: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated probabilities (M, C) float32 and truths (M,) uint8 with these shares, noise that treats all alike."""
    rng = np.random.default_rng(seed)
    true = np.repeat(np.arange(len(shares), dtype=np.uint8), np.rint(np.multiply(shares, number)).astype(int))
    logits = rng.normal(0, 1.5, (len(true), len(shares)))
    logits[np.arange(len(true)), true] += (
        1.5**2
    )  # normal densities 1.5² apart: their log ratio is the logits' difference
    values = np.exp(logits) * shares
    return (values / values.sum(1, keepdims=True)).astype(np.float16).astype(np.float32), true


@pytest.mark.parametrize("ignore_class", [None, 0])
@pytest.mark.parametrize("seed", range(4))
def test_search_never_scores_below_no_bias(seed: int, ignore_class: int | None) -> None:
    probability, true = noisy_pixels(seed, 3000, np.random.default_rng(seed).dirichlet([2.0] * CLASSES).tolist())
    never = () if ignore_class is None else (ignore_class,)
    score = partial(mean_iou, ignore_class=ignore_class)
    chosen = search(probability, true, score, never)
    reached, before = (score(confusion(labels(probability.T, b, never), true, CLASSES)) for b in (chosen, [0] * 5))
    assert reached >= before
    assert all(bias in GRID for bias in chosen)
    assert chosen[int(np.bincount(true)[len(never) :].argmax()) + len(never)] == 0.0


def test_search_undoes_a_planted_factor() -> None:
    probability, true = noisy_pixels(0, 40_000, [0.24, 0.28, 0.24, 0.24])
    probability[:, 2] *= math.exp(-1)
    chosen = search(probability, true, mean_iou)
    assert chosen[2] == pytest.approx(1, abs=0.15)
    assert chosen[1] == 0.0
    assert np.abs(np.array(chosen)[[0, 3]]).max() <= 0.15


@pytest.mark.parametrize("never", [(0,), (1, 2)])
def test_search_leaves_out_the_classes_that_are_never_chosen(never: tuple[int, ...]) -> None:
    probability, true = noisy_pixels(1, 4000, [0.4, 0.3, 0.2, 0.1])
    probability[:, 3] *= 0.2
    seen: list[np.ndarray] = []

    def score(matrices: np.ndarray) -> np.ndarray:
        seen.append(matrices)
        return mean_iou(matrices)

    chosen = search(probability, true, score, never)
    assert [chosen[index] for index in never] == [0.0] * len(never)
    assert any(chosen)
    assert all((matrices[..., list(never)] == 0).all() for matrices in seen)
    assert all((matrices.sum((1, 2)) == len(true)).all() for matrices in seen)


@pytest.mark.parametrize("seed", range(2))
def test_search_is_about_as_good_as_trying_everything(seed: int) -> None:
    """About: fewer pixels make a rougher score, and coordinate ascent stops on one of its many small peaks."""
    probability, true = noisy_pixels(seed, 10_000, [0.6, 0.3, 0.1])
    true[::20] = IGNORE
    columns, coarse = np.ascontiguousarray(probability.T), GRID[::2]
    tried = [confusion(labels(columns, (0.0, *pair)), true, 3) for pair in product(coarse, coarse)]
    reached = mean_iou(confusion(labels(columns, search(probability, true, mean_iou)), true, 3))
    assert reached > mean_iou(confusion(labels(columns, [0, 0, 0]), true, 3)) + 0.005
    assert reached == pytest.approx(mean_iou(np.stack(tried)).max(), abs=0.003)


def test_of_equal_candidates_the_one_nearest_zero_wins() -> None:
    scores = np.zeros(121)
    scores[[10, 50, 80]] = 1.0
    assert class_biases._nearest_to_zero(scores) == 50
    # every bias from log(0.5 / 0.2) = 0.92 to log(0.9 / 0.1) = 2.20 is right everywhere
    probability = np.array([[0.5, 0.2], [0.9, 0.1], [0.9, 0.1]], np.float32)
    assert search(probability, np.array([1, 0, 0], np.uint8), mean_iou) == (0.0, 0.95)


@pytest.mark.parametrize(("gain", "expected"), [(1e-7, 0.0), (1e-5, 0.5)])
def test_moves_must_gain(gain: float, expected: float) -> None:
    probability, true = awkward_pixels(0)

    def score(matrices: np.ndarray) -> np.ndarray:
        return gain * (np.arange(len(matrices)) == 70)

    assert set(search(probability, true, score)) == {0.0, expected}


def test_the_search_ends_when_nothing_changes_or_after_the_maximum_of_rounds() -> None:
    probability, true = noisy_pixels(0, 300, [0.5, 0.3, 0.2])
    visits: list[int] = []

    def restless(matrices: np.ndarray) -> np.ndarray:
        visits.append(len(visits))
        return (np.arange(121) == 50 + 20 * (len(visits) % 4 < 2)).astype(float)

    search(probability, true, restless, rounds=5)
    assert len(visits) == 10
    visits.clear()
    search(probability, true, lambda matrices: restless(matrices) * 0, rounds=5)
    assert len(visits) == 2


@pytest.mark.parametrize("true", [np.full(5, IGNORE, np.uint8), np.zeros(5, np.uint8)])
def test_search_with_nothing_to_gain(true: np.ndarray) -> None:
    probability = np.tile(np.array([0.6, 0.4, 0.0], np.float32), (5, 1))
    assert search(probability, true, mean_iou) == (0.0, 0.0, 0.0)
    assert search(probability[:0], true[:0], mean_iou) == (0.0, 0.0, 0.0)
    assert search(probability, true, mean_iou, never=[0, 1]) == (0.0, 0.0, 0.0)


def test_search_refuses_classes_without_a_probability() -> None:
    with pytest.raises(ValueError, match="a true class is 3; expected 0 to 2, or 255"):
        search(np.ones((4, 3), np.float32), np.array([0, 1, 3, IGNORE], np.uint8), mean_iou)
    with pytest.raises(ValueError, match="never names all 3 classes"):
        search(np.ones((4, 3), np.float32), np.zeros(4, np.uint8), mean_iou, never=[0, 1, 2])
