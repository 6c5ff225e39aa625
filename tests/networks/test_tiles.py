"""Images larger than what the network sees: overlapping tiles in prediction, random crops in training."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from pipeline.core.config.recipe import ImageSettings
from pipeline.networks.models import SegmentationNetwork
from pipeline.networks.output import Output
from pipeline.networks.tiles import predict_tiled, starts, window
from pipeline.train.batches.augment import Augmentation
from pipeline.train.batches.dataset import TrainDataset, train_loader

Network = Callable[[torch.Tensor], torch.Tensor]


def convolutions(kernel: int, layers: int, channels: int = 1, classes: int = 1) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    widths = [channels, *[4] * (layers - 1), classes]
    found: list[torch.nn.Module] = []
    for before, after in zip(widths[:-1], widths[1:], strict=True):
        found += [torch.nn.Conv2d(before, after, kernel, padding="same"), torch.nn.Tanh()]
    network = torch.nn.Sequential(*found[:-1]).requires_grad_(False)
    for parameter in network.parameters():
        parameter.normal_(generator=generator)
    return network


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def tiled(network: Network, pixels: torch.Tensor, size: tuple[int, int], overlap: float) -> torch.Tensor:
    """The mask logits of a network that gives nothing else."""
    found = predict_tiled(lambda tile: Output(network(tile)), pixels, size, overlap)
    assert (found.presence, found.deep) == (None, ())
    return found.mask


class Witness:
    """Passes tiles on to a network and notes their shapes."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(pixels.shape))
        return self.network(pixels)


# --- where tiles start -----------------------------------------------------------------------------------------------


@given(st.integers(1, 5000), st.integers(1, 600), st.floats(0, 0.99))
def test_tiles_cover_a_side_and_overlap_enough(length: int, tile: int, overlap: float) -> None:
    found = starts(length, tile, overlap)
    if length <= tile:
        assert found == [0]
        return
    steps = np.diff(found)
    assert (found[0], found[-1]) == (0, length - tile)
    assert steps.min() > 0
    assert steps.max() - steps.min() <= 1
    assert tile - steps.max() >= min(overlap * tile, tile - 1)
    one_fewer = math.ceil((length - tile) / max(len(steps) - 1, 1))
    assert len(steps) == 1 or tile - one_fewer < min(overlap * tile, tile - 1)  # no more tiles than it takes


def test_starts_by_hand() -> None:
    assert starts(100, 40, 0) == [0, 30, 60]
    assert starts(120, 40, 0) == [0, 40, 80]
    assert starts(100, 40, 0.5) == [0, 20, 40, 60]
    assert starts(101, 100, 0.25) == [0, 1]
    assert starts(100, 100, 0.25) == starts(99, 100, 0.25) == [0]


@pytest.mark.parametrize("overlap", [-0.1, 1, 1.5, float("nan")])
def test_an_overlap_is_a_part_of_the_tile(overlap: float) -> None:
    with pytest.raises(ValueError, match=f"less than 1 of their length, but this overlap is {overlap}"):
        starts(100, 40, overlap)


# --- how tiles are blended -------------------------------------------------------------------------------------------


@given(st.tuples(st.integers(1, 70), st.integers(1, 70)), st.floats(0, 0.99))
def test_every_pixel_of_a_tile_has_weight(tile: tuple[int, int], overlap: float) -> None:
    weight = window(tile, overlap)
    assert (weight.shape, weight.dtype) == (tile, torch.float32)
    assert weight.min() > 0
    assert weight.max() <= 1
    assert torch.equal(weight, weight.flip(0))
    assert torch.equal(weight, weight.flip(1))
    for axis, length in enumerate(tile):
        slopes = weight.narrow(axis, 0, (length + 1) // 2).diff(dim=axis)
        assert (slopes >= 0).all()


def test_weight_falls_to_nearly_nothing_over_the_overlap() -> None:
    weight = window((256, 512), 0.25)
    assert (weight[64:-64, 128:-128] == 1).all()
    assert weight[0].max() < 2e-4
    assert weight[:, 0].max() < 5e-5
    assert window((1024, 1024), 0.99).min() > 0
    torch.testing.assert_close(window((256, 512), 0.9), window((256, 512), 0.5))
    torch.testing.assert_close(weight[32, 256].item(), 0.5, atol=0.02, rtol=0)


@pytest.mark.parametrize("overlap", [0, 0.25, 0.6])
def test_a_pointwise_network_gives_what_it_gives_the_whole(overlap: float) -> None:
    network, pixels = convolutions(1, 1, 1, 2), noise(1, 1, 1024, 1600)
    found, expected = tiled(network, pixels, (256, 320), overlap), network(pixels)
    assert (found.shape, found.dtype) == (expected.shape, torch.float32)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    for border in (np.s_[..., 0, :], np.s_[..., -1, :], np.s_[..., 0], np.s_[..., -1]):
        torch.testing.assert_close(found[border], expected[border], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "size"),
    [((97, 131), (31, 45)), ((45, 300), (64, 128)), ((300, 45), (128, 64)), ((65, 64), (64, 64)), ((64, 1), (9, 9))],
)
def test_odd_sizes_and_sides_smaller_than_the_tile(shape: tuple[int, int], size: tuple[int, int]) -> None:
    witness, pixels = Witness(convolutions(1, 2, 3, 2)), noise(2, 3, *shape)
    found = tiled(witness, pixels, size, 0.25)
    torch.testing.assert_close(found, witness.network(pixels), atol=1e-5, rtol=0)
    assert set(witness.shapes) == {(2, 3, min(shape[0], size[0]), min(shape[1], size[1]))}
    assert len(witness.shapes) == len(starts(shape[0], size[0], 0.25)) * len(starts(shape[1], size[1], 0.25)) > 1


@pytest.mark.parametrize("shape", [(64, 96), (64, 50), (30, 96), (7, 5)])
def test_an_image_that_is_not_larger_is_seen_once_and_whole(shape: tuple[int, int]) -> None:
    witness, pixels = Witness(lambda pixels: convolutions(3, 2)(pixels).to(torch.bfloat16)), noise(3, 1, *shape)
    found = tiled(witness, pixels, (64, 96), 0.25)
    assert witness.shapes == [(3, 1, *shape)]
    assert found.dtype == torch.float32
    assert torch.equal(found, witness.network(pixels).float())


def test_seams_are_continuous() -> None:
    def position(pixels: torch.Tensor) -> torch.Tensor:
        height, width = pixels.shape[2:]
        return (torch.linspace(-1, 1, height)[:, None] + torch.linspace(-1, 1, width)).expand(len(pixels), 1, -1, -1)

    blended = tiled(position, noise(1, 1, 300, 400), (96, 128), 0.25)[0, 0]
    # a slope of sin² over 24 rows or 32 columns is nowhere steeper than π/2 of an even one, between values 2 apart
    assert blended.diff(dim=0).abs().max() < 2 * np.pi / 2 / 24 + 2 / 95
    assert blended.diff(dim=1).abs().max() < 2 * np.pi / 2 / 32 + 2 / 127
    assert tiled(position, noise(1, 1, 288, 384), (96, 128), 0)[0, 0].diff(dim=0).abs().max() == 2


def test_far_from_tile_edges_a_real_network_gives_what_it_gives_the_whole() -> None:
    network, pixels, size, reach = convolutions(3, 3), noise(2, 1, 150, 211), (64, 80), 3
    difference = (tiled(network, pixels, size, 0.25) - network(pixels)).abs().amax((0, 1))
    near = torch.zeros((150, 211), dtype=torch.bool)
    for axis, (length, tile) in enumerate(zip((150, 211), size, strict=True)):
        # the image's own edges do not count: there the network pads the whole as it pads the tile
        first = starts(length, tile, 0.25)
        for edge in [*first[1:], *(start + tile for start in first[:-1])]:
            near.narrow(axis, edge - reach, 2 * reach)[:] = True
    assert 0.2 < near.float().mean() < 0.4
    assert difference[~near].max() < 1e-5
    assert difference[near].max() > 1e-3


def test_images_of_a_batch_do_not_mix() -> None:
    network, pixels = convolutions(3, 2), noise(3, 1, 70, 90)
    together = tiled(network, pixels, (32, 32), 0.25)
    for alone, image in zip(together, pixels, strict=True):
        torch.testing.assert_close(tiled(network, image[None], (32, 32), 0.25)[0], alone, atol=1e-5, rtol=0)


def test_sums_are_float32_under_autocast() -> None:
    network, pixels = convolutions(1, 1), noise(1, 1, 100, 120)
    with torch.autocast("cpu", torch.bfloat16):
        whole = network(pixels)
        found = tiled(network, pixels, (32, 48), 0.5)
    assert (whole.dtype, found.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(found, whole.float(), atol=1e-6, rtol=1e-6)


def test_raw_pixels_are_tiled_too() -> None:
    network = SegmentationNetwork(convolutions(1, 1, 3, 2), 3, "imagenet", 255)
    pixels = torch.randint(0, 256, (1, 3, 101, 77), dtype=torch.uint8)
    found = predict_tiled(network, pixels, (48, 50), 0.3)
    torch.testing.assert_close(found.mask, network(pixels).mask, atol=1e-5, rtol=0)
    assert (found.presence, found.deep) == (None, ())


def test_no_gradients_are_kept() -> None:
    network = convolutions(3, 1).requires_grad_()
    assert not tiled(network, noise(1, 1, 40, 40), (32, 32), 0.25).requires_grad


def test_flipping_the_image_flips_the_logits() -> None:
    def symmetric(pixels: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool2d(pixels, 5, stride=1, padding=2)

    pixels = noise(1, 1, 64, 100)  # tiles at 0, 16, 32 and at 0, 17, 34, …, 68, as they are from the other end
    for axis in (2, 3):
        flipped = tiled(symmetric, pixels.flip(axis), (32, 32), 0.4).flip(axis)
        torch.testing.assert_close(flipped, tiled(symmetric, pixels, (32, 32), 0.4), atol=1e-5, rtol=0)


# --- presence --------------------------------------------------------------------------------------------------------


def brightest(pixels: torch.Tensor) -> Output:
    """Logits of presence are the brightest pixels; a training network's further outputs come along."""
    return Output(pixels, pixels.amax((2, 3)), (pixels,))


@pytest.mark.parametrize("size", [(31, 45), (97, 45), (31, 131), (97, 131), (200, 200)])
@pytest.mark.parametrize("overlap", [0, 0.4])
def test_presence_is_the_maximum_over_tiles(size: tuple[int, int], overlap: float) -> None:
    pixels = noise(3, 2, 97, 131) - 10  # all far below 0
    found = predict_tiled(brightest, pixels, size, overlap)
    assert found.presence is not None
    assert torch.equal(found.presence, pixels.amax((2, 3)))
    assert (found.mask.shape, found.deep) == (pixels.shape, ())


def test_the_presence_of_a_class_is_the_maximum_over_tiles() -> None:
    def mean(pixels: torch.Tensor) -> Output:
        return Output(pixels, pixels.mean((2, 3)))

    pixels = torch.zeros(2, 2, 20, 30)
    pixels[0, 0, 10:, 20:] = 1  # half of one of the four tiles
    pixels[1, 1, :10, :] = -3
    found = predict_tiled(mean, pixels, (10, 20), 0)
    assert found.presence is not None
    torch.testing.assert_close(found.presence, torch.tensor([[0.5, 0.0], [0.0, 0.0]]))
    whole = predict_tiled(mean, pixels, (20, 30), 0)
    assert whole.presence is not None
    torch.testing.assert_close(whole.presence, pixels.mean((2, 3)))


@pytest.mark.parametrize("size", [(16, 16), (40, 40)])
def test_presence_is_float32_and_keeps_no_gradients(size: tuple[int, int]) -> None:
    def half(pixels: torch.Tensor) -> Output:
        return Output(*(one.to(torch.bfloat16) for one in brightest(pixels)[:2]))

    pixels = noise(1, 2, 40, 40).requires_grad_()
    found = predict_tiled(half, pixels, size, 0.25)
    assert found.presence is not None
    assert (found.mask.dtype, found.presence.dtype) == (torch.float32, torch.float32)
    assert torch.equal(found.presence, pixels.amax((2, 3)).to(torch.bfloat16).float())
    assert not found.mask.requires_grad and not found.presence.requires_grad


# --- random crops ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images of 12×16 whose pixels, and those of their two masks, number their places."""
    places = np.arange(12 * 16, dtype=np.uint8).reshape(12, 16)
    np.save(tmp_path / "train_images.npy", np.tile(places[None, ..., None], (6, 1, 1, 3)))
    np.save(tmp_path / "train_masks.npy", np.tile(places, (6, 2, 1, 1)))
    return tmp_path


def cropped(
    folder: Path, crop: tuple[int, int] | None, seed: int = 4, rows: tuple[int, ...] = (0, 2, 5)
) -> TrainDataset:
    return TrainDataset(folder, np.array(rows), Augmentation([]), seed, crop)


def corner(dataset: TrainDataset, epoch: int, position: int) -> tuple[int, int]:
    """The row and column of the first pixel of a sample, after a look at all others."""
    image, masks, *_ = dataset[(epoch, position)]
    row, column = divmod(int(image[0, 0, 0]), 16)
    expected = torch.arange(12 * 16).reshape(12, 16)[row : row + image.shape[1], column : column + image.shape[2]]
    for plane in (*image, *masks):
        assert torch.equal(plane.long(), expected)
    return row, column


def test_crops_are_the_same_part_of_image_and_masks_and_reach_all_corners(folder: Path) -> None:
    dataset = cropped(folder, (7, 13))
    image, masks, *_ = dataset[(0, 1)]
    assert (image.shape, masks.shape) == ((3, 7, 13), (2, 7, 13))
    found = {corner(dataset, epoch, position) for epoch in range(100) for position in range(3)}
    assert found == {(row, column) for row in range(6) for column in range(4)}


def test_a_crop_belongs_to_seed_epoch_and_image(folder: Path) -> None:
    first = [corner(cropped(folder, (4, 4)), 3, position) for position in range(3)]
    assert first == [corner(cropped(folder, (4, 4)), 3, position) for position in range(3)]
    assert len(set(first)) == 3
    assert first != [corner(cropped(folder, (4, 4)), 4, position) for position in range(3)]
    assert first != [corner(cropped(folder, (4, 4), seed=5), 3, position) for position in range(3)]
    assert first[::-1] == [corner(cropped(folder, (4, 4), rows=(5, 2, 0)), 3, position) for position in range(3)]


@pytest.mark.parametrize(
    ("crop", "shape"),
    [(None, (12, 16)), ((12, 16), (12, 16)), ((20, 8), (12, 8)), ((5, 16), (5, 16)), ((1, 1), (1, 1))],
)
def test_sides_that_are_not_larger_stay_whole(folder: Path, crop: tuple[int, int], shape: tuple[int, int]) -> None:
    for epoch in range(5):
        assert cropped(folder, crop)[(epoch, 0)].pixels.shape[1:] == shape
        corner(cropped(folder, crop), epoch, 0)


def test_crops_come_before_augmentation(folder: Path) -> None:
    flip = TrainDataset(folder, np.array([0, 2, 5]), Augmentation([{"HorizontalFlip": {"p": 1}}]), 4, (6, 7))
    for flipped, plain in zip(flip[(1, 1)][:2], cropped(folder, (6, 7))[(1, 1)][:2], strict=True):
        assert torch.equal(flipped.flip(2), plain)


def test_several_crops_of_every_image_in_an_epoch(folder: Path) -> None:
    once = cropped(folder, (4, 4))
    often = TrainDataset(folder, np.array((0, 2, 5)), Augmentation([]), 4, (4, 4), 3)
    assert len(often) == 9
    corners = [corner(often, 1, position) for position in range(9)]
    assert corners[:3] == [corner(once, 1, position) for position in range(3)]
    assert len({corners[0], corners[3], corners[6]}) == 3
    assert len(list(train_loader(often, 3, 0))) == 3
    assert ImageSettings(size=(256, 320), store=(1024, 1600)).crops_to_cover == 20
    assert ImageSettings(size=(256, 320)).crops_to_cover == 1


def test_crops_make_batches(folder: Path) -> None:
    (batch,) = list(train_loader(cropped(folder, (8, 10)), 3, 0))
    assert (batch.pixels.shape, batch.masks.shape) == ((3, 3, 8, 10), (3, 2, 8, 10))
