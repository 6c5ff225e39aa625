"""The best threshold of an image: against brute force, against PyPI's rankseg, and against exact expected scores."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.masks.metrics import METRICS
from pipeline.masks.ranking import FINEST, LEVELS, Calibration, Rank, best_levels, logits

# --- calibrations ----------------------------------------------------------------------------------------------------


def test_calibrations_by_hand() -> None:
    np.testing.assert_allclose(logits()[[0, 51, 204, 255]], [-np.log(509), -np.log(4), np.log(4), np.log(509)])
    plain = Calibration().table()
    assert (plain.dtype, len(plain)) == (np.uint16, LEVELS)
    np.testing.assert_allclose(plain[1:-1] / FINEST, np.arange(1, 255) / 255, atol=0.5 / FINEST)
    np.testing.assert_allclose(plain[[0, 255]] / FINEST, [1 / 510, 509 / 510], atol=0.51 / FINEST)
    steep = Calibration(2.0, np.log(3)).table()
    assert steep[51] == round(FINEST * 3 / (16 + 3))  # odds of 1 to 4, squared and times 3
    for one in (plain, steep, Calibration(0.05, -14).table(), Calibration(8, 30).table()):
        assert (np.diff(one.astype(int)) >= 0).all() and one[-1] > 0


def test_an_unknown_fold_takes_the_pooled_calibration() -> None:
    rank = Rank("dice", Calibration(2.0), {"0": Calibration(3.0)})
    assert [rank.of(fold).slope for fold in ("0", "1", None)] == [3.0, 2.0, 2.0]


# --- thresholds ------------------------------------------------------------------------------------------------------


def expected_by_hand(metric: str, pixels: np.ndarray, values: np.ndarray, level: int) -> float:
    """The score of expected counts, of the mask of all pixels at least as probable as that level's."""
    chosen = values >= values[level]
    predicted = int(pixels[chosen].sum())
    intersection = (pixels * values)[chosen].sum() / FINEST
    true = (pixels * values).sum() / FINEST
    if metric == "dice":
        return float(2 * intersection / (predicted + true))
    return float(intersection / (predicted + true - intersection))


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), metric=st.sampled_from(["dice", "iou", "iou_precision"]))
def test_thresholds_are_those_of_brute_force(seed: int, metric: str) -> None:
    rng = np.random.default_rng(seed)
    values = np.sort(rng.choice(np.array([0, 1, *rng.integers(0, FINEST + 1, 6)]), 12))  # some are equal
    pixels = rng.integers(0, 30, (5, 12)) * (rng.random((5, 12)) < 0.6)
    pixels[:, rng.integers(1, 12)] += 1
    found = best_levels(metric, pixels, values)
    for own, place in zip(pixels, found, strict=True):
        if not (own * values).any():
            assert place == 11
            continue
        scores = [expected_by_hand(metric, own, values, level) if own[level:].any() else -1.0 for level in range(12)]
        assert scores[place] == pytest.approx(max(scores), rel=1e-12)
        assert place == next(level for level in range(12) if scores[level] >= max(scores) - 1e-12)


def test_what_is_maximised_in_place_of_a_metric_in_steps() -> None:
    rng = np.random.default_rng(0)
    pixels, values = rng.integers(0, 9, (20, LEVELS)), Calibration(2.0).table().astype(np.int64)
    np.testing.assert_array_equal(best_levels("iou_precision", pixels, values), best_levels("iou", pixels, values))


def test_a_metric_that_is_better_when_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.masks.metric import Metric
    from pipeline.masks.overlaps import dice

    monkeypatch.setitem(METRICS, "lost_dice", Metric("lost_dice", lambda *own: 1 - dice(*own), higher_is_better=False))
    rng = np.random.default_rng(0)
    pixels, values = rng.integers(0, 9, (20, LEVELS)), Calibration(2.0).table().astype(np.int64)
    np.testing.assert_array_equal(best_levels("lost_dice", pixels, values), best_levels("dice", pixels, values))


# --- a reference -----------------------------------------------------------------------------------------------------


def maps(number: int, shape: tuple[int, int] = (18, 24)) -> list[np.ndarray]:
    """Smooth probabilities (h, w) uint8, from nearly empty to nearly full, from doubtful to sure."""
    rng, found = np.random.default_rng(0), []
    for _ in range(number):
        signal = cv2.GaussianBlur(rng.standard_normal(shape), (0, 0), 2.5)
        logit = rng.uniform(0.5, 4) * signal / signal.std() - rng.uniform(-1, 4)
        found.append(np.rint(255 / (1 + np.exp(-logit))).astype(np.uint8))
    return found


def number_of(p: np.ndarray) -> np.ndarray:
    """The distribution (n + 1,) of how many of independent pixels (n,) belong to the mask."""
    found = np.ones(1)
    for one in p:
        found = np.convolve(found, [1 - one, one])
    return found


def expected(metric: str, p: np.ndarray, mask: np.ndarray) -> float:
    """The exact expected score of a mask (h, w), every pixel drawn for itself."""
    inside, outside = number_of(p[mask == 1]), number_of(p[mask == 0])
    hit, missed = np.arange(len(inside))[:, None], np.arange(len(outside))[None]
    size = int(mask.sum())
    with np.errstate(invalid="ignore"):
        score = 2 * hit / (size + hit + missed) if metric == "dice" else hit / (size + missed)
    return float(inside @ np.nan_to_num(score, nan=1.0) @ outside)


@pytest.mark.parametrize(("metric", "solver"), [("dice", "RMA"), ("dice", "BA"), ("iou", "RMA")])
def test_masks_are_those_of_rankseg(metric: str, solver: str) -> None:
    """Their solvers differ in how they take the reciprocal of the area, which moves a threshold by a level at times."""
    import torch
    from rankseg import RankSEG

    solve = RankSEG(metric, output_mode="multilabel", solver=solver, pruning_prob=0.0)
    rank, equal = Rank(metric, Calibration(), {}), 0
    for plane in maps(20):
        p = Calibration().table()[plane] / FINEST
        mask = rank.mask([plane], [None])
        theirs = solve.predict(torch.from_numpy(p)[None, None])[0, 0].numpy().astype(np.uint8)
        # rankseg may cut among pixels that are equally probable; a threshold takes them all
        level = plane[theirs == 1].min()
        assert (plane[theirs == 1] >= level).all()
        equal += bool((mask == theirs).all() or (mask == (plane >= level)).all())
        scores = [expected(metric, p, one) for one in (mask, theirs)]
        assert scores[0] > scores[1] - 1e-3
        assert scores[0] > expected(metric, p, plane >= 128) - 1e-3
    assert equal >= (14 if metric == "dice" else 20)


@pytest.mark.parametrize("metric", ["dice", "iou"])
def test_no_threshold_is_much_better_in_exact_expectation(metric: str) -> None:
    for plane in maps(6, (10, 12)):
        p = Calibration().table()[plane] / FINEST
        best = max(expected(metric, p, plane >= level) for level in np.unique(plane))
        assert expected(metric, p, Rank(metric, Calibration(), {}).mask([plane], [None])) > best - 1e-3
