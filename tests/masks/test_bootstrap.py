"""Intervals, gains, the optimism of a chosen epoch, other shares of empty images: on data whose truth is known."""

import numpy as np
import pytest

from pipeline.masks.bootstrap import (
    FEWEST_GROUPS,
    bootstrap,
    epoch_optimism,
    gain,
    group_sums,
    interval,
    mean_counts,
    mean_score,
    shares_of_empty,
)
from pipeline.masks.overlaps import mean_iou

GROUPS, EACH = 40, 4


def clustered(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Scores (160,) of mean 0.5, alike within their 40 groups, and the groups."""
    scores = 0.5 + np.repeat(random.normal(0, 0.2, GROUPS), EACH) + random.normal(0, 0.1, GROUPS * EACH)
    return scores, np.repeat(np.arange(GROUPS), EACH)


# --- counts ----------------------------------------------------------------------------------------------------------


def test_mean_counts_weigh_images_and_classes() -> None:
    random = np.random.default_rng(0)
    scores, weights = random.random((2, 30, 3))
    assert mean_score(mean_counts(scores).sum(0)) == pytest.approx(scores.mean())
    assert mean_score(mean_counts(scores, weights).sum(0)) == pytest.approx(np.average(scores, weights=weights))
    assert mean_score(mean_counts(scores[:, 0], weights[:, 0]).sum(0)) == pytest.approx(
        np.average(scores[:, 0], weights=weights[:, 0])
    )


def test_images_of_weight_zero_do_not_count() -> None:
    scores, weights = np.array([0.2, 0.4, 1.0]), np.array([1.0, 1.0, 0.0])
    assert mean_score(mean_counts(scores, weights).sum(0)) == pytest.approx(0.3)


def test_group_sums_of_any_counts() -> None:
    counts = np.arange(12).reshape(4, 3)
    np.testing.assert_array_equal(group_sums(counts, np.array(["b", "a", "b", "a"])), [[12, 14, 16], [6, 8, 10]])


# --- bootstrap -------------------------------------------------------------------------------------------------------


def test_groups_are_drawn_whole() -> None:
    # every group has the mean 1/2, single images have not
    counts = mean_counts(np.tile([0.0, 1.0], 30))
    np.testing.assert_allclose(bootstrap(counts, mean_score, np.repeat(np.arange(30), 2)), 0.5)
    assert bootstrap(counts, mean_score, np.arange(60)).std() == pytest.approx(0.5 / 60**0.5, rel=0.1)


def test_equal_seeds_give_equal_draws_and_others_do_not() -> None:
    scores, groups = clustered(np.random.default_rng(1))
    counts, shuffled = mean_counts(scores), np.random.default_rng(2).permutation(len(scores))
    drawn = bootstrap(counts, mean_score, groups)
    np.testing.assert_array_equal(drawn, bootstrap(counts, mean_score, groups))
    np.testing.assert_allclose(drawn, bootstrap(counts[shuffled], mean_score, groups[shuffled]))
    np.testing.assert_allclose(bootstrap(mean_counts(2 * scores), mean_score, groups), 2 * drawn)
    assert not np.array_equal(drawn, bootstrap(counts, mean_score, groups, seed=1))


def test_the_interval_covers_the_truth_at_its_nominal_rate() -> None:
    random, held, held_by_images = np.random.default_rng(3), [], []
    for _ in range(300):
        scores, groups = clustered(random)
        counts = mean_counts(scores)
        for found, by in ((held, groups), (held_by_images, np.arange(len(scores)))):
            low, high = interval(counts, mean_score, by)
            found.append(low <= 0.5 <= high)
    assert 0.90 < np.mean(held) < 0.98
    assert np.mean(held_by_images) < 0.85  # images drawn one by one hide that they are alike


def test_one_group_has_no_interval() -> None:
    counts = mean_counts(np.arange(6.0))
    assert interval(counts, mean_score, np.zeros(6)) is None
    assert interval(counts, mean_score, np.repeat([0, 1], 3)) == (1.0, 4.0)


def test_the_interval_of_a_pooled_score() -> None:
    random = np.random.default_rng(4)
    images = random.multinomial(500, [0.4, 0.1, 0.1, 0.4], 80).reshape(-1, 2, 2)
    low, high = interval(images, mean_iou, np.arange(len(images)))
    assert low < mean_iou(images.sum(0)) < high
    assert 0 < high - low < 0.05


# --- gain ------------------------------------------------------------------------------------------------------------


def test_a_gain_is_a_loss_the_other_way_round() -> None:
    random = np.random.default_rng(5)
    scores, groups = clustered(random)
    before, after = mean_counts(scores), mean_counts(scores + random.normal(0.005, 0.05, len(scores)))
    there, back = gain(before, after, mean_score, groups), gain(after, before, mean_score, groups)
    assert there.value == pytest.approx(-back.value)
    assert there.standard_error == pytest.approx(back.standard_error)
    assert there.confidence + back.confidence == pytest.approx(1)
    assert 0.5 < there.confidence < 1


def test_a_gain_is_paired() -> None:
    scores, groups = clustered(np.random.default_rng(6))
    wobble = np.random.default_rng(7).normal(0, 0.01, len(scores))
    found = gain(mean_counts(scores), mean_counts(scores + 0.005 + wobble), mean_score, groups)
    alone = bootstrap(mean_counts(scores), mean_score, groups).std()
    assert found.standard_error < alone / 10
    assert found.confidence > 0.99


def test_no_gain_of_a_decision_over_itself() -> None:
    scores, groups = clustered(np.random.default_rng(8))
    found = gain(mean_counts(scores), mean_counts(scores), mean_score, groups)
    assert (found.value, found.standard_error, found.confidence) == (0.0, 0.0, 0.5)


# --- the choice of an epoch ------------------------------------------------------------------------------------------


def epochs(random: np.random.Generator, means: np.ndarray, images: int) -> np.ndarray:
    """Counts (E, images, 2) of scores with these true means, half of whose luck is common to all epochs."""
    luck = random.normal(0, 0.15, images) + random.normal(0, 0.15, (len(means), images))
    return np.stack([mean_counts(one) for one in means[:, None] + luck])


@pytest.mark.parametrize("means", [np.full(10, 0.8), 0.8 - 0.5 * np.exp(-np.arange(20))], ids=["flat", "plateau"])
def test_the_optimism_is_the_gain_from_choosing_the_epoch(means: np.ndarray) -> None:
    random, true, said = np.random.default_rng(9), [], []
    for _ in range(150):
        counts = epochs(random, means, 80)
        scores = mean_score(counts.sum(1))
        best = scores.argmax()
        true.append(scores[best] - means[best])
        said.append(epoch_optimism(counts, mean_score, np.arange(80), halvings=50))
    error = np.hypot(np.std(true), np.std(said)) / 150**0.5
    assert np.mean(said) == pytest.approx(np.mean(true), abs=3 * error)
    assert error < 0.1 * np.mean(true)  # so that an estimate without the factor would fail


def test_a_clear_choice_is_not_optimistic() -> None:
    means = np.linspace(0.2, 0.8, 8)
    assert epoch_optimism(epochs(np.random.default_rng(10), means, 200), mean_score, np.arange(200)) < 1e-3


def test_groups_are_halved_whole() -> None:
    counts = epochs(np.random.default_rng(11), np.full(10, 0.8), 30)
    copied, groups = np.repeat(counts, 8, axis=1), np.repeat(np.arange(30), 8)
    alone = epoch_optimism(counts, mean_score, np.arange(30))
    assert epoch_optimism(copied, mean_score, groups) == pytest.approx(alone)
    assert epoch_optimism(copied, mean_score, np.arange(240)) < alone / 2


def test_optimism_of_a_pooled_score() -> None:
    random, above, said = np.random.default_rng(12), [], []
    for _ in range(40):
        counts = random.multinomial(100, [0.4, 0.1, 0.1, 0.4], (12, 50)).reshape(12, 50, 2, 2)
        scores = mean_iou(counts.sum(1))
        above.append(scores.max() - scores.mean())  # all epochs are equal but for luck
        said.append(epoch_optimism(counts, mean_iou, np.arange(50)))
    assert said[-1] == epoch_optimism(counts, mean_iou, np.arange(50))
    assert np.mean(said) == pytest.approx(np.mean(above), rel=0.15)


@pytest.mark.parametrize(("count", "groups"), [(1, 20), (5, FEWEST_GROUPS - 1), (5, 1)])
def test_nothing_to_say_without_a_choice_or_groups_to_halve(count: int, groups: int) -> None:
    counts = epochs(np.random.default_rng(13), np.full(count, 0.5), 40)
    assert epoch_optimism(counts, mean_score, np.arange(40) % groups) == 0.0


# --- shares of empty images ------------------------------------------------------------------------------------------


def test_other_shares_of_empty_images() -> None:
    scores, empty = np.array([1.0, 0.0, 1.0, 1.0, 0.6, 0.8]), np.array([True, True, True, True, False, False])
    shares = [0.0, 0.5, empty.mean(), 1.0]
    found = shares_of_empty(scores, empty, shares)
    assert [share for share, _ in found] == shares
    assert [score for _, score in found] == pytest.approx([0.7, 0.725, scores.mean(), 0.75])


def test_shares_that_need_images_which_are_not_there() -> None:
    scores = np.array([0.4, 0.6])
    assert shares_of_empty(scores, np.array([False, False]), [0.0, 0.3, 1.0]) == [(0.0, 0.5), (0.3, None), (1.0, None)]
    assert shares_of_empty(scores, np.array([True, True]), [0.0, 0.3, 1.0]) == [(0.0, None), (0.3, None), (1.0, 0.5)]


def test_a_single_group_gives_no_confidence_in_a_gain() -> None:
    before, after = mean_counts(np.array([0.5, 0.6])), mean_counts(np.array([0.6, 0.6]))
    assert gain(before, after, mean_score, np.array(["a", "a"])).confidence == 0.5
    assert gain(before, after, mean_score, np.array(["a", "b"])).confidence > 0.7
