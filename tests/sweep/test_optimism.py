"""The optimism of the best of several trials, compared with simulated trials whose true scores are known."""

import numpy as np
import pytest

from pipeline.sweep.optimism import leave_folds_out, leave_groups_out

TRIALS, IMAGES = 12, 120
FOLDS, GROUPS = np.arange(IMAGES) % 4, np.arange(IMAGES) // 3
WEIGHTS = np.ones(IMAGES)


def simulated(seed: int, better: float = 0.0) -> np.ndarray:
    """Scores of equal trials on images of different difficulty; the first may be better."""
    rng = np.random.default_rng(seed)
    scores = 0.8 + rng.normal(0, 0.2, IMAGES) + rng.normal(0, 0.1, (TRIALS, IMAGES))
    scores[0] += better
    return scores


@pytest.mark.parametrize("how", ["folds", "groups"])
def test_the_optimism_of_equal_trials_is_what_choosing_adds(how: str) -> None:
    found, truth = [], []
    for seed in range(200):
        scores = simulated(seed)
        optimism = (
            leave_folds_out(scores, WEIGHTS, FOLDS)
            if how == "folds"
            else leave_groups_out(scores, WEIGHTS, GROUPS, draws=200)
        )
        assert optimism and optimism.winner == pytest.approx(scores.mean(1).max())
        found.append(optimism.value)
        truth.append(scores.mean(1).max() - scores.mean())  # every trial is worth the mean over trials
    assert np.mean(truth) > 0.01
    assert np.mean(found) == pytest.approx(np.mean(truth), abs=3 * np.std(found) / len(found) ** 0.5)
    assert np.mean(found) == pytest.approx(np.mean(truth), rel=0.1)


def test_a_winner_that_is_clearly_better_flatters_by_nothing() -> None:
    scores = simulated(0, better=0.2)
    assert leave_folds_out(scores, WEIGHTS, FOLDS).value == pytest.approx(0, abs=1e-12)  # type: ignore[union-attr]
    assert abs(leave_groups_out(scores, WEIGHTS, GROUPS).value) < 0.002  # type: ignore[union-attr]


def test_folds_by_hand() -> None:
    scores = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.4], [0.5, 0.5, 0.5]])
    weights = np.array([1.0, 1.0, 2.0])
    optimism = leave_folds_out(scores, weights, np.array([0, 1, 2]))
    # without fold 0 the second is best (1 + 2 · 0.4), without 1 the first, without 2 the first of three equal ones
    assert optimism and optimism.elsewhere == pytest.approx((0.0 + 0.0 + 2 * 0.5) / 4)
    assert optimism.winner == pytest.approx(0.5)  # the first and the third
    assert leave_folds_out(scores, weights, np.zeros(3)) is None
    assert leave_groups_out(scores, weights, np.arange(3)) is None
