"""Batches: draws that belong to seed, epoch and image."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.augment import Augmentation
from pipeline.geometry import IGNORE
from pipeline.loader import EpochSampler, PlainDataset, TrainDataset, derive_seed, plain_loader, train_loader
from pipeline.recipe import ModelSettings

SMALL = ModelSettings(encoder="mobilenet_v2", options={"decoder_channels": [32, 16, 8, 8, 8]})
MIXED = [
    {"HorizontalFlip": {"p": 0.5}},
    {"RandomBrightnessContrast": {"p": 0.5}},
    {"Affine": {"scale": [0.9, 1.1], "rotate": [-10, 10], "p": 0.7}},
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On a busy machine, threads that wait for each other make small networks many times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def picture(rows: int = 12, columns: int = 16, channels: int = 1, classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (rows, columns, channels), dtype=np.uint8)
    return image, rng.choice(np.array([0, 1, IGNORE], np.uint8), (classes, rows, columns))


@pytest.fixture
def pixels(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "train_images.npy", rng.integers(0, 256, (11, 12, 16, 1), dtype=np.uint8))
    np.save(tmp_path / "train_masks.npy", rng.choice(np.array([0, 1, IGNORE], np.uint8), (11, 2, 12, 16)))
    np.save(tmp_path / "test_images.npy", rng.integers(0, 60000, (5, 12, 16, 3), dtype=np.uint16))
    return tmp_path


def test_seeds_depend_on_every_part() -> None:
    seeds = {derive_seed(a, b, c) for a in range(5) for b in range(5) for c in range(5)} | {derive_seed(0, 0)}
    assert len(seeds) >= 125
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert derive_seed(1, 2) == derive_seed(1, 2)


def test_the_order_belongs_to_the_epoch() -> None:
    first, second = EpochSampler(20, seed=1), EpochSampler(20, seed=1)
    orders = []
    for epoch in range(3):
        first.set_epoch(epoch)
        orders.append(list(first))
        assert {one for one, _ in orders[-1]} == {epoch}
        assert sorted(position for _, position in orders[-1]) == list(range(20))
    second.set_epoch(2)
    assert list(second) == orders[2]
    assert len({tuple(position for _, position in order) for order in orders}) == 3
    assert list(EpochSampler(20, seed=2)) != orders[0]


def batches_of(pixels: Path, workers: int, epochs: range) -> list[list[torch.Tensor]]:
    rows = np.array([1, 2, 3, 5, 7, 8, 10])
    loader = train_loader(TrainDataset(pixels, rows, Augmentation(MIXED), seed=4), 3, workers)
    found = []
    for epoch in epochs:
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        found += [list(batch) for batch in loader]
    return found


def test_samples_do_not_depend_on_workers_or_on_earlier_epochs(pixels: Path) -> None:
    alone = batches_of(pixels, 0, range(2))
    assert len(alone) == 4  # two whole batches an epoch, the seventh image is left out
    for others, expected in ((batches_of(pixels, 2, range(2)), alone), (batches_of(pixels, 0, range(1, 2)), alone[2:])):
        assert len(others) == len(expected)
        for batch, other in zip(expected, others, strict=True):
            assert torch.equal(batch[0], other[0])
            assert torch.equal(batch[1], other[1])
    images, masks = alone[0]
    assert (images.shape, images.dtype) == ((3, 1, 12, 16), torch.uint8)
    assert (masks.shape, masks.dtype) == ((3, 2, 12, 16), torch.uint8)


def test_the_draw_belongs_to_the_image_not_to_its_place(pixels: Path) -> None:
    whole = TrainDataset(pixels, np.arange(11), Augmentation(MIXED), seed=4)
    part = TrainDataset(pixels, np.array([9, 4]), Augmentation(MIXED), seed=4)
    for one, other in zip(whole[(3, 4)], part[(3, 1)], strict=True):
        assert torch.equal(one, other)
    assert any(not torch.equal(whole[(epoch, 4)][0], whole[(0, 4)][0]) for epoch in range(1, 5))


def test_a_lone_small_batch_is_not_left_out(pixels: Path) -> None:
    dataset = TrainDataset(pixels, np.arange(3), Augmentation([]), seed=0)
    assert [len(batch[0]) for batch in train_loader(dataset, 8, 0)] == [3]


def test_plain_batches_come_in_order_as_stored(pixels: Path) -> None:
    rows = np.array([4, 0, 9])
    images = np.load(pixels / "train_images.npy")
    batches = list(plain_loader(PlainDataset(pixels, "train", rows, with_masks=True), 2, 0))
    assert [len(batch[0]) for batch in batches] == [2, 1]
    np.testing.assert_array_equal(torch.cat([batch[0] for batch in batches]), images[rows].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(torch.cat([batch[1] for batch in batches]), np.load(pixels / "train_masks.npy")[rows])
    ((test,),) = list(plain_loader(PlainDataset(pixels, "test", np.arange(5), with_masks=False), 8, 0))
    assert test.dtype == torch.int32  # uint16 pixels, all values kept
    np.testing.assert_array_equal(test, np.load(pixels / "test_images.npy").transpose(0, 3, 1, 2))
