"""Batches: what they hold, and draws that belong to seed, epoch and image."""

import pickle
from itertools import product
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from pipeline.core.config.competition import Kind
from pipeline.core.config.training import MixSettings
from pipeline.masks.geometry import IGNORE
from pipeline.masks.scale import BYTES, HALVES, Scale
from pipeline.networks.loader import PlainDataset, plain_loader
from pipeline.networks.transforms import Preprocess
from pipeline.train.batches.augment import Augmentation
from pipeline.train.batches.dataset import Batch, Placing, PseudoLabels, TrainDataset, train_loader
from pipeline.train.batches.mix import Mixer
from pipeline.train.batches.sampling import EpochSampler, derive_seed

MIXED = [
    {"HorizontalFlip": {"p": 0.5}},
    {"RandomBrightnessContrast": {"p": 0.5}},
    {"Affine": {"scale": [0.9, 1.1], "rotate": [-10, 10], "p": 0.7}},
]
STRONG = [
    {"Affine": {"scale": [0.7, 1.3], "rotate": [-40, 40], "p": 1}},
    {"RandomBrightnessContrast": {"p": 1}},
    {"GaussNoise": {"p": 1}},
]
ROWS = np.array([1, 2, 3, 5, 7, 8, 10])
WHOLE = slice(None), slice(None)
BOXES = np.tile([1, 2, 9, 11], (11, 1))
"""Nine rows and eleven columns of every image are content; 4 × 6 places hold as much."""
PLACES = [(top, left) for top in range(4) for left in range(6)]


def test_a_process_of_its_own_opens_the_arrays_itself(tmp_path: Path) -> None:
    """And is not sent them: processes that are not forked would each hold all pixels."""
    rng = np.random.default_rng(0)
    for name, shape in (("images", (60, 64, 64, 1)), ("masks", (60, 1, 64, 64))):
        np.save(tmp_path / f"train_{name}.npy", rng.integers(0, 2, shape, dtype=np.uint8))
    dataset = PlainDataset(tmp_path, "train", np.arange(60), with_masks=True)
    sent = bytes(ForkingPickler.dumps(dataset))
    assert len(sent) < 4000
    again = pickle.loads(sent)
    np.testing.assert_array_equal(again.images, dataset.images)
    part = dataset.images[3:5]  # another start than the file's
    np.testing.assert_array_equal(pickle.loads(bytes(ForkingPickler.dumps(part))), part)


@pytest.fixture
def pixels(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "train_images.npy", rng.integers(0, 256, (11, 12, 16, 1), dtype=np.uint8))
    np.save(tmp_path / "train_masks.npy", rng.choice(np.array([0, 1, IGNORE], np.uint8), (11, 2, 12, 16)))
    np.save(tmp_path / "test_images.npy", rng.integers(0, 60000, (5, 12, 16, 3), dtype=np.uint16))
    return tmp_path


@pytest.fixture
def labelled(pixels: Path) -> Path:
    """As pixels, with test images like those to train on, for which `pseudo` gives labels."""
    rng = np.random.default_rng(1)
    np.save(pixels / "test_images.npy", rng.integers(0, 256, (5, 12, 16, 1), dtype=np.uint8))
    return pixels


MASKS: tuple[Kind, Scale] = ("multilabel", BYTES)
MAPS: tuple[Kind, Scale] = ("multiclass", HALVES)


def pseudo(weight: float = 0.25, min_confidence: float = 0.6, sources: int = 1) -> PseudoLabels:
    rng = np.random.default_rng(2)
    return PseudoLabels(
        list(rng.integers(0, 256, (sources, 5, 2, 12, 16), dtype=np.uint8)), weight, min_confidence, *MASKS
    )


def multiclass(min_confidence: float = 0.0) -> PseudoLabels:
    values = np.random.default_rng(3).dirichlet(np.ones(3), (5, 12, 16)).transpose(0, 3, 1, 2)
    return PseudoLabels([values.astype(np.float16)], 1.0, min_confidence, *MAPS)


def mixer(**settings: Any) -> Mixer:
    return Mixer(MixSettings(**settings), "multilabel", 2, [0, 1], np.arange(4))


def all_alike(folder: Path, image: np.ndarray) -> None:
    for subset, count in (("train", 11), ("test", 5)):
        np.save(folder / f"{subset}_images.npy", np.repeat(image[None], count, axis=0))


def samples(dataset: TrainDataset, epochs: range = range(1)) -> list[Batch]:
    return [dataset[(epoch, position)] for epoch in epochs for position in range(len(dataset))]


# --- draws -----------------------------------------------------------------------------------------------------------


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


def batches_of(dataset: TrainDataset, workers: int, epochs: range, size: int = 3) -> list[Batch]:
    loader = train_loader(dataset, size, workers)
    found = []
    for epoch in epochs:
        loader.batch_sampler.sampler.set_epoch(epoch)  # type: ignore[union-attr]
        found += list(loader)
    return found


def everything(**options: Any) -> dict[str, Any]:
    """Options of a dataset that draws wherever it can."""
    mixed, smooth = mixer(cutmix=0.3, mixup=0.3, paste=0.3), Preprocess([{"GaussianBlur": {}}])
    return {"mixer": mixed, "pseudo": pseudo(), "preprocess": smooth, **options}


@pytest.mark.parametrize(
    ("options", "shape", "dtype"),
    [
        ({}, (12, 16), torch.uint8),
        (everything(placing=Placing(BOXES, "constant")), (12, 16), torch.float32),
        (everything(crop=(8, 9), crops=2), (8, 9), torch.float32),
    ],
    ids=["plain", "placing", "crops"],
)
def test_samples_do_not_depend_on_workers_or_on_earlier_epochs(
    labelled: Path, options: dict[str, Any], shape: tuple[int, int], dtype: torch.dtype
) -> None:
    def batches(workers: int, epochs: range) -> list[Batch]:
        return batches_of(TrainDataset(labelled, ROWS, Augmentation(MIXED), seed=4, **options), workers, epochs)

    alone, each = batches(0, range(2)), 8 if "crop" in options else 4 if options else 2
    assert len(alone) == 2 * each  # whole batches of three; of 7 images the seventh is left out
    for others, expected in ((batches(2, range(2)), alone), (batches(0, range(1, 2)), alone[each:])):
        assert len(others) == len(expected)
        for batch, other in zip(expected, others, strict=True):
            for one, same in zip(batch, other, strict=True):
                assert torch.equal(one, same)
    assert all(isinstance(batch, Batch) for batch in alone)
    images, masks, rows, weights = alone[0]
    assert (images.shape, images.dtype) == ((3, 1, *shape), torch.uint8)
    assert (masks.shape, masks.dtype) == ((3, 2, *shape), dtype)
    assert (rows.shape, rows.dtype, weights.shape, weights.dtype) == ((3,), torch.int64, (3,), torch.float32)


@pytest.mark.parametrize("options", [{}, {"placing": Placing(BOXES, "reflect")}, {"crop": (8, 9)}])
def test_the_draw_belongs_to_the_image_not_to_its_place(pixels: Path, options: dict[str, Any]) -> None:
    whole = TrainDataset(pixels, np.arange(11), Augmentation(MIXED), seed=4, **options)
    part = TrainDataset(pixels, np.array([9, 4]), Augmentation(MIXED), seed=4, **options)
    for one, other in zip(whole[(3, 4)], part[(3, 1)], strict=True):
        assert torch.equal(one, other)
    assert any(not torch.equal(whole[(epoch, 4)].pixels, whole[(0, 4)].pixels) for epoch in range(1, 5))
    other_seed = TrainDataset(pixels, np.arange(11), Augmentation(MIXED), seed=5, **options)
    assert any(not torch.equal(whole[(epoch, 4)].pixels, other_seed[(epoch, 4)].pixels) for epoch in range(5))


def test_no_two_workers_and_no_two_epochs_draw_alike(labelled: Path) -> None:
    all_alike(labelled, np.load(labelled / "train_images.npy")[0])  # nothing but their draws can tell them apart
    for options in ({}, {"pseudo": pseudo()}, {"pseudo": pseudo(), "crop": (12, 16), "crops": 2}):
        dataset = TrainDataset(labelled, np.arange(11), Augmentation(STRONG), seed=4, **options)  # type: ignore[arg-type]
        found = batches_of(dataset, 2, range(3), size=1)
        assert len({batch.pixels.numpy().tobytes() for batch in found}) == len(found) == 3 * len(dataset)


# --- what a batch holds ----------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("crops", [1, 3])
def test_rows_and_weights_name_the_images(labelled: Path, crops: int) -> None:
    labels = pseudo(0.25, 0.0)
    dataset = TrainDataset(labelled, ROWS, Augmentation([]), 4, None, crops, pseudo=labels)
    expected = [*ROWS, -1, -2, -3, -4, -5] * crops
    assert (len(dataset), dataset.samples.tolist()) == (12 * crops, expected)
    images = {name: np.load(labelled / f"{name}_images.npy").transpose(0, 3, 1, 2) for name in ("train", "test")}
    masks = np.load(labelled / "train_masks.npy")
    for row, batch in zip(expected, samples(dataset), strict=True):
        assert int(batch.rows) == row
        assert float(batch.weights) == (1 if row >= 0 else 0.25)
        np.testing.assert_array_equal(batch.pixels, images["train"][row] if row >= 0 else images["test"][-1 - row])
        np.testing.assert_array_equal(batch.masks, masks[row] if row >= 0 else labels.masks(-1 - row, WHOLE))
    (batch,) = batches_of(dataset, 0, range(1, 2), size=12 * crops)
    assert sorted(batch.rows.tolist()) == sorted(expected)  # every image once an epoch, or once per crop
    np.testing.assert_array_equal(batch.weights, np.where(batch.rows < 0, 0.25, 1).astype(np.float32), strict=True)


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"mixer": mixer(mixup=0.3)}, torch.float32),
        ({"pseudo": pseudo()}, torch.float32),
        ({"targets": {3: np.array([3, 4])}}, torch.float32),
        ({"pseudo": pseudo(), "mixer": mixer(cutmix=0.5)}, torch.float32),
        ({"mixer": mixer(cutmix=0.5, paste=0.5)}, torch.uint8),
    ],
)
def test_where_one_mask_is_soft_all_are(labelled: Path, options: dict[str, Any], dtype: torch.dtype) -> None:
    found = samples(TrainDataset(labelled, ROWS, Augmentation(MIXED), 4, **options), range(3))
    assert {batch.masks.dtype for batch in found} == {dtype}
    values = torch.cat([batch.masks.ravel() for batch in found]).float()
    assert ((values == IGNORE) | ((values >= 0) & (values <= 1))).all()


# --- labels of test images -------------------------------------------------------------------------------------------


def test_pseudo_labels_by_hand() -> None:
    values = np.array([0, 51, 63, 64, 127, 128, 191, 192, 204, 255], np.uint8).reshape(1, 1, 2, 5)
    found = PseudoLabels([values], 1, 0.75, *MASKS).masks(0, WHOLE)
    assert (found.shape, found.dtype) == ((1, 2, 5), np.float32)
    kept = np.array([0, 51, 63, 192, 204, 255], np.float32) / 255
    np.testing.assert_array_equal(found.ravel(), [*kept[:3], *[IGNORE] * 4, *kept[3:]])
    np.testing.assert_array_equal(PseudoLabels([values], 1, 0.0, *MASKS).masks(0, WHOLE), values[0] / np.float32(255))


def test_the_mean_of_two_sources_counts() -> None:
    sources = [np.array([[[[0, 200, 255, 100]]]], np.uint8), np.array([[[[255, 220, 254, 20]]]], np.uint8)]
    labels = PseudoLabels(sources, 1, 0.8, *MASKS)
    expected = np.array([[[IGNORE, 210 / 255, 254.5 / 255, IGNORE]]], np.float32)
    np.testing.assert_array_equal(labels.masks(0, WHOLE), expected, strict=True)  # 60 / 255 is 0.24: unsure
    maps = [np.array([[[[0.9]], [[0.1]]]], np.float16), np.array([[[[0.2]], [[0.8]]]], np.float16)]
    assert PseudoLabels(maps, 1, 0.5, *MAPS).masks(0, WHOLE).tolist() == [[[0]]]
    assert PseudoLabels(maps, 1, 0.6, *MAPS).masks(0, WHOLE).tolist() == [[[IGNORE]]]
    assert PseudoLabels([maps[1]], 1, 0.6, *MAPS).masks(0, WHOLE).tolist() == [[[1]]]


def test_class_maps_of_test_images() -> None:
    values, sure = multiclass().predictions[0], 0
    for row in range(5):
        found, strict = multiclass().masks(row, WHOLE), multiclass(0.7).masks(row, WHOLE)
        assert (found.shape, found.dtype, strict.dtype) == ((1, 12, 16), np.uint8, np.uint8)
        np.testing.assert_array_equal(found[0], values[row].argmax(0))
        confident = values[row].astype(np.float32).max(0) >= np.float32(0.7)
        np.testing.assert_array_equal(strict[0], np.where(confident, found[0], IGNORE))
        sure += int(confident.sum())
    assert 0.1 < sure / values[:, 0].size < 0.9
    assert not multiclass().soft and pseudo().soft


@pytest.mark.parametrize("labels", [pseudo(sources=2), multiclass(0.5)], ids=["binary", "multiclass"])
def test_a_part_has_the_labels_of_the_whole(labels: PseudoLabels) -> None:
    for part in ((slice(2, 9), slice(5, 16)), (slice(0, 1), slice(3, 4))):
        np.testing.assert_array_equal(labels.masks(3, part), labels.masks(3, WHOLE)[:, *part], strict=True)


def test_labels_are_cut_where_the_test_image_is(labelled: Path) -> None:
    places = np.tile(np.arange(12 * 16, dtype=np.uint8).reshape(1, 12, 16, 1), (5, 1, 1, 1))
    np.save(labelled / "test_images.npy", places)
    labels = PseudoLabels([places.transpose(0, 3, 1, 2).repeat(2, 1)], 1, 0.0, *MASKS)
    flip = Augmentation([{"HorizontalFlip": {"p": 0.5}}])
    found = samples(TrainDataset(labelled, ROWS, flip, 4, (7, 9), 2, pseudo=labels), range(6))
    tests = [batch for batch in found if batch.rows < 0]
    assert len(tests) == 60
    for batch in tests:
        np.testing.assert_array_equal(batch.masks, batch.pixels.numpy().repeat(2, 0).astype(np.float32) / 255)
    assert len({int(batch.pixels[0, 0, 0]) for batch in tests}) > 20


# --- where images lie ------------------------------------------------------------------------------------------------


def placed(channels: int) -> tuple[np.ndarray, np.ndarray]:
    """An image whose pixels number the places of its content, inside a border of 200, and masks that do so too."""
    numbers = np.full((12, 16), 200, np.uint8)
    numbers[1:10, 2:13] = np.arange(1, 100).reshape(9, 11)
    return numbers[..., None].repeat(channels, 2), np.stack([numbers, numbers])


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("masks_dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("border", ["reflect", "constant"])
def test_content_moves_intact_to_all_places(border: str, channels: int, masks_dtype: type) -> None:
    image, masks = placed(channels)
    masks = masks.astype(masks_dtype)
    content, seen = image[1:10, 2:13], set()
    for seed in range(300):
        moved, learned = Placing(BOXES, border).move(image, masks, 3, seed)
        assert (moved.shape, moved.dtype) == (image.shape, np.uint8)
        assert (learned.shape, learned.dtype) == (masks.shape, masks_dtype)
        top, left = next((at for at in PLACES if (moved[at[0] :, at[1] :][:9, :11] == content).all()), (-1, -1))
        assert top >= 0
        if border == "reflect":
            expected = cv2.copyMakeBorder(content, top, 3 - top, left, 5 - left, cv2.BORDER_REFLECT_101)
            np.testing.assert_array_equal(moved, expected.reshape(image.shape))
            np.testing.assert_array_equal(learned, np.stack([moved[..., 0]] * 2))
        else:
            inside = np.zeros((12, 16), bool)
            inside[top : top + 9, left : left + 11] = True
            np.testing.assert_array_equal((moved > 0).all(2), inside)
            np.testing.assert_array_equal((moved == 0).all(2), ~inside)
            np.testing.assert_array_equal(learned, np.where(inside, moved[..., 0], IGNORE)[None].repeat(2, 0))
        seen.add((top, left))
    assert seen == set(PLACES)


def test_each_row_has_its_own_box() -> None:
    image, masks = placed(1)
    placing = Placing(np.array([[0, 0, 12, 16], [1, 0, 9, 16], [0, 2, 12, 11]]), "constant")
    for seed in range(20):
        still, down, aside = (placing.move(image, masks, row, seed)[0][..., 0] for row in range(3))
        np.testing.assert_array_equal(still, image[..., 0])  # nothing to move
        rows, columns = (down > 0).any(1), (aside > 0).any(0)
        np.testing.assert_array_equal(down[rows], image[1:10, :, 0])
        np.testing.assert_array_equal(aside[:, columns], image[:, 2:13, 0])


def test_the_place_belongs_to_seed_epoch_and_row(labelled: Path) -> None:
    (image, masks), placing, order = placed(1), Placing(BOXES, "constant"), list(range(11))
    all_alike(labelled, image)
    np.save(labelled / "train_masks.npy", np.repeat(masks[None], 11, axis=0))

    def places(seed: int, epoch: int, rows: list[int], labels: PseudoLabels | None = None) -> list[int]:
        dataset = TrainDataset(labelled, np.array(rows), Augmentation([]), seed, placing=placing, pseudo=labels)
        found = [dataset[(epoch, position)] for position in range(len(rows))]
        assert all((one.pixels[0] == one.masks.where(one.masks != IGNORE, 0)).all() for one in found)
        return [int((one.pixels[0] == 1).int().argmax()) for one in found]

    first = places(4, 3, order)
    assert first == places(4, 3, order, pseudo()) == places(4, 3, order[::-1])[::-1]
    assert len(set(first)) > 5
    assert first != places(5, 3, order) and first != places(4, 4, order)


# --- mixing and preprocessing ----------------------------------------------------------------------------------------


def test_cutmix_takes_pixels_and_masks_of_two_images(pixels: Path) -> None:
    rows, columns = np.mgrid[:12, :16]
    images = np.stack([np.stack([np.full((12, 16), row), columns, rows], axis=2) for row in range(11)])
    np.save(pixels / "train_images.npy", images.astype(np.uint8))
    masks = np.stack([images[..., 0] % 2, (images[..., 0] + images[..., 1]) % 2], axis=1)
    np.save(pixels / "train_masks.npy", masks.astype(np.uint8))
    flip = Augmentation([{"HorizontalFlip": {"p": 0.5}}])
    partners, flips, mixed = set(), set(), 0
    for batch in samples(TrainDataset(pixels, ROWS, flip, 4, mixer=mixer(cutmix=1)), range(40)):
        numbers, across, down = batch.pixels.numpy().astype(int)
        np.testing.assert_array_equal(batch.masks, np.stack([numbers % 2, (numbers + across) % 2]))
        np.testing.assert_array_equal(down, rows)  # nothing leaves its row, and its column only by the flip
        others, own = set(np.unique(numbers)) - {int(batch.rows)}, numbers == int(batch.rows)
        assert len(others) <= 1 and others <= set(ROWS)
        partners |= others
        if others and own.any():  # else the rectangle is the image's own, or covers it
            mixed += 1
            turned = tuple(bool((across + columns == 15)[region].all()) for region in (own, ~own))
            assert turned == tuple(not (across == columns)[region].all() for region in (own, ~own))
            flips.add(turned)
    assert partners == set(ROWS.tolist())
    assert mixed > 140  # of 280
    assert flips == set(product([False, True], repeat=2))  # each image by its own draw


@pytest.mark.parametrize("options", [{}, {"crop": (8, 9), "crops": 2}], ids=["whole", "crops"])
def test_preprocessing_comes_before_augmentation_and_draws_nothing(labelled: Path, options: dict[str, Any]) -> None:
    turn = Augmentation([{"Rotate": {"limit": [20, 40], "fill": 0, "p": 1}}, {"HorizontalFlip": {"p": 0.5}}])
    options = options | {"pseudo": pseudo()}
    bare = TrainDataset(labelled, ROWS, turn, 4, **options)
    inverted = TrainDataset(labelled, ROWS, turn, 4, preprocess=Preprocess([{"InvertImg": {}}]), **options)
    found = [samples(inverted, range(2)), samples(bare, range(2))]
    for path in labelled.glob("*_images.npy"):
        np.save(path, 255 - np.load(path))
    by_hand = samples(TrainDataset(labelled, ROWS, turn, 4, **options), range(2))
    for one, plain, other in zip(*found, by_hand, strict=True):
        assert torch.equal(one.pixels, other.pixels)
        assert not torch.equal(one.pixels, plain.pixels)
        assert torch.equal(one.masks, plain.masks)


def test_training_and_plain_images_are_preprocessed_alike(labelled: Path) -> None:
    all_alike(labelled, np.load(labelled / "train_images.npy")[0])
    noise = Preprocess([{"GaussNoise": {"p": 0.1}}])  # what would be drawn is drawn alike, always
    found = samples(TrainDataset(labelled, ROWS, Augmentation([]), 4, preprocess=noise, pseudo=pseudo()), range(2))
    for subset, rows in (("train", ROWS), ("test", np.arange(5))):
        plain = PlainDataset(labelled, subset, rows, with_masks=subset == "train", preprocess=noise)
        expected = {plain[position][0].numpy().tobytes() for position in range(len(plain))}
        assert len(expected) == 1 and expected == {batch.pixels.numpy().tobytes() for batch in found}
        assert not torch.equal(plain[0][0], PlainDataset(labelled, subset, rows, with_masks=False)[0][0])
