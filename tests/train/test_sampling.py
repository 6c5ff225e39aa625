"""Which images an epoch holds, and which stand together in a batch."""

import numpy as np
import pytest

from pipeline.core.config.training import SamplerSettings
from pipeline.core.errors import PipelineError
from pipeline.train.batches.sampling import EpochSampler, one_per_group, resample, weights_of


def positions(sampler: EpochSampler, epoch: int = 0) -> np.ndarray:
    sampler.set_epoch(epoch)
    drawn = np.array([position for _, position in sampler])
    assert len(set(drawn.tolist())) == len(drawn)  # a repetition has a number of its own, and so other augmentation
    return drawn % sampler.length


def test_resampling_follows_the_weights_to_the_last_image() -> None:
    weights = np.array([0.0, 1, 1, 2, 0.5])
    for seed in range(20):
        drawn = np.bincount(resample(weights, 90, np.random.default_rng(seed)), minlength=5)
        assert (np.abs(drawn - 90 * weights / weights.sum()) < 1).all()
        assert drawn.sum() == 90
        assert drawn[0] == 0


def test_one_of_a_group_although_the_draw_holds_too_few() -> None:
    groups = np.repeat(np.array(list("abcd")), [40, 40, 4, 4])
    weights = np.where(groups <= "b", 1.0, 0.01)  # of c and d next to nothing is drawn
    sampler = EpochSampler(len(groups), 0, weights, groups, batch_size=4)
    for epoch in range(6):
        drawn = positions(sampler, epoch)
        assert len(drawn) == len(sampler)
        for batch in drawn.reshape(-1, 4):
            assert set(groups[batch]) == set("abcd")


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_share_of_positive_images(share: float) -> None:
    foreground = np.arange(100) < 30
    weights = weights_of(SamplerSettings(positive_share=share), foreground[:, None], foreground)
    sampler = EpochSampler(100, 3, weights)
    for epoch in range(5):
        drawn = positions(sampler, epoch)
        assert len(drawn) == len(sampler) == 100
        assert abs(foreground[drawn].sum() - 100 * share) <= 1
    assert set(positions(sampler, 0)) != set(positions(sampler, 1)) or share == 0.9


def test_share_of_positive_images_needs_both_kinds() -> None:
    every = np.ones((4, 1), bool)
    with pytest.raises(PipelineError, match="4 of 4 training images have a mask"):
        weights_of(SamplerSettings(positive_share=0.5), every, every[:, 0])


@pytest.mark.parametrize(("power", "expected"), [(0.5, [1, 2]), (1.0, [1, 4])])
def test_rare_classes_are_drawn_more_often(power: float, expected: list[float]) -> None:
    presence = np.column_stack([np.ones(8, bool), np.arange(8) < 2])  # every image has the first, a quarter the second
    weights = weights_of(SamplerSettings(rare_classes=power), presence, presence.any(1))
    assert weights is not None
    np.testing.assert_allclose(weights[[7, 0]] / weights[7], expected)
    assert weights_of(SamplerSettings(), presence, presence.any(1)) is None


def test_one_image_of_a_group_in_a_batch() -> None:
    groups = np.repeat(["a", "b", "c", "d", "e"], [40, 10, 10, 20, 3])
    sampler = EpochSampler(83, 0, groups=groups, batch_size=4)
    assert len(sampler) == 80
    seen: set[int] = set()
    for epoch in range(25):
        batches = positions(sampler, epoch).reshape(-1, 4)
        assert all(len(set(groups[batch])) == 4 for batch in batches)
        seen |= set(batches.ravel().tolist())
    assert seen == set(range(83))  # what is left over of the large group waits for another epoch


def test_groups_that_are_all_alike_lose_nothing() -> None:
    groups = np.repeat(np.arange(10), 6)
    drawn = one_per_group(np.random.default_rng(0).permutation(60), groups, 5, np.random.default_rng(1))
    assert sorted(drawn) == list(range(60))


def test_fewer_groups_than_a_batch() -> None:
    with pytest.raises(PipelineError, match="a batch has 4 images, but there are only 2 groups .*set train.batch_size"):
        EpochSampler(10, 0, groups=np.arange(10) % 2, batch_size=4)


def test_the_order_belongs_to_seed_and_epoch() -> None:
    weights, groups = np.linspace(1, 3, 40), np.arange(40) % 8
    for options in ({"weights": weights}, {"groups": groups, "batch_size": 4}, {"weights": weights, "groups": groups}):
        one, other = EpochSampler(40, 1, **options), EpochSampler(40, 1, **options)  # type: ignore[arg-type]
        positions(other, 0)
        np.testing.assert_array_equal(positions(one, 2), positions(other, 2))
        assert (positions(one, 1) != positions(one, 2)).any()
