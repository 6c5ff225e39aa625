"""Augmentation of whole batches on the device: what albumentations would have made of them, image by image."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Tiny
from trainings import hashes, named, prepare, train

from pipeline.core.errors import PipelineError
from pipeline.masks.geometry import IGNORE
from pipeline.networks.transforms import Entries
from pipeline.train import callbacks
from pipeline.train.batches.augment import Augmentation
from pipeline.train.batches.device_augment import EQUALS, DeviceAugmentation
from pipeline.train.stage import preflight

SIDE = 32
AFFINE = {
    "rotate": [-30, 30],
    "scale": {"x": [0.8, 1.2], "y": [0.9, 1.1]},
    "translate_percent": {"x": [-0.2, 0.2], "y": [0, 0.1]},
    "shear": {"x": [-10, 10], "y": [-5, 5]},
    "p": 0.8,
}
# each with settings of another strength
STRENGTHS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "HorizontalFlip": ({"p": 0.5}, {"p": 0.2}),
    "VerticalFlip": ({"p": 0.3}, {"p": 0.6}),
    "Transpose": ({"p": 0.5}, {"p": 0.2}),
    "RandomRotate90": ({"p": 0.9}, {"p": 0.5}),
    "D4": ({"p": 0.9}, {"p": 0.5}),
    "Rotate": ({"limit": [-40, 40], "p": 0.7}, {"limit": [-20, 20], "p": 0.7}),
    "Affine": (AFFINE, AFFINE | {"translate_percent": {"x": [-0.2, 0.2], "y": [0, 0.2]}}),
    "RandomBrightnessContrast": ({"p": 0.7}, {"brightness_limit": 0.3, "p": 0.7}),
    "RandomGamma": ({"gamma_limit": [60, 140], "p": 0.7}, {"gamma_limit": [80, 120], "p": 0.7}),
    "GaussNoise": ({"std_range": [0.1, 0.3], "p": 0.7}, {"std_range": [0.1, 0.2], "p": 0.7}),
    "GaussianBlur": ({"p": 0.7}, {"sigma_limit": [0.5, 1], "p": 0.7}),
    "CoarseDropout": ({"num_holes_range": [1, 3], "p": 0.7}, {"num_holes_range": [1, 2], "p": 0.7}),
}
DRAWN_ALIKE: list[dict[str, Any]] = [
    *({name: settings} for name, (settings, _) in STRENGTHS.items() if name != "GaussNoise"),
    {"RandomBrightnessContrast": {"brightness_by_max": False, "contrast_limit": [-0.5, 0.1], "p": 1}},
    {"RandomBrightnessContrast": {"ensure_safe_range": True, "brightness_limit": 0.6, "contrast_limit": 0.8}},
    {"GaussianBlur": {"blur_limit": [3, 7], "sigma_limit": [0.5, 2], "p": 1}},
    {"GaussianBlur": {"blur_limit": [99, 99], "sigma_limit": [20, 30], "p": 1}},
    {"CoarseDropout": {"hole_height_range": [4, 9], "hole_width_range": [2, 5], "fill": 77, "fill_mask": IGNORE}},
    {"Rotate": {"fill": 90, "fill_mask": IGNORE, "p": 1}},
    {"Affine": {"scale": [0.6, 1.5], "keep_ratio": True, "translate_px": [-6, 6], "interpolation": 0, "p": 1}},
    {"Affine": {"scale": [0.5, 2], "balanced_scale": True, "fill_mask": 1, "p": 1}},
    *({"Affine": AFFINE | {"border_mode": mode}} for mode in (1, 2, 4)),  # replicated and mirrored
]
GEOMETRIC: Entries = [
    {name: STRENGTHS[name][0]} for name in ("HorizontalFlip", "VerticalFlip", "D4", "RandomRotate90", "Affine")
]


def scene(rows: int = SIDE, columns: int = SIDE, channels: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """A smooth image (H, W, C) without any symmetry, and two masks (2, H, W) of 0, 1 and 255 in large parts."""
    down, across = np.mgrid[:rows, :columns] / max(rows, columns)
    planes = [40 + 90 * across + 70 * down**2 + 30 * np.sin(9 * across * down + channel) for channel in range(channels)]
    disc = ((down - 0.35) ** 2 + (across - 0.6) ** 2 < 0.06).astype(np.uint8)
    return np.stack(planes, -1).astype(np.uint8), np.stack([disc, np.where(down > 0.7, IGNORE, 1 - disc)])


def batch_of(image: np.ndarray, masks: np.ndarray, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    wide = image.astype(np.int32) if image.dtype == np.uint16 else image
    pixels = torch.from_numpy(wide.transpose(2, 0, 1).copy())
    return pixels.expand(count, -1, -1, -1), torch.from_numpy(masks.copy()).expand(count, -1, -1, -1)


def on_device(
    settings: Entries, image: np.ndarray, masks: np.ndarray, count: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, H, W, C) and masks (N, C, H, W) that the device makes of one."""
    pixels, moved = DeviceAugmentation(settings, masks.shape[1:])(*batch_of(image, masks, count), seed)
    return pixels.permute(0, 2, 3, 1).numpy(), moved.numpy()


# --- like albumentations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", DRAWN_ALIKE, ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_from_the_same_generator_the_same_images(entry: dict[str, Any], channels: int) -> None:
    image, masks = scene(channels=channels)
    found, moved = on_device([entry], image, masks, 12, seed=3)
    compose = Augmentation([entry]).compose
    assert compose is not None
    compose.set_random_state(np.random.default_rng(3), random.Random(3))
    wanted = [compose.transforms[0](image=image.copy(), masks=masks.copy()) for _ in range(12)]
    assert len({one["image"].tobytes() for one in wanted}) > 1
    off = np.abs(found.astype(int) - np.stack([one["image"] for one in wanted]))
    largest, mean = (6, 0.15) if {"Rotate", "Affine"} & set(entry) else (1, 0.001)  # OpenCV steps by 1/32 pixel
    assert off.max() <= largest
    assert off.mean() < mean
    assert (moved == np.stack([one["masks"] for one in wanted])).mean() > 0.999


def test_several_transforms_are_drawn_in_turn() -> None:
    entries = [{name: STRENGTHS[name][0]} for name in ("D4", "HorizontalFlip", "RandomGamma", "RandomRotate90")]
    image, masks = scene()
    found, moved = on_device(entries, image, masks, 20)
    compose = Augmentation(entries).compose
    assert compose is not None
    compose.set_random_state(np.random.default_rng(0), random.Random(0))
    for one, same in zip(found, moved, strict=True):
        data = {"image": image, "masks": masks}
        for transform in compose.transforms:
            data = transform(**data)
        assert np.abs(one.astype(int) - data["image"]).max() <= 1
        np.testing.assert_array_equal(same, data["masks"])


def statistics(images: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Of every draw (N, S): mean, deviation and quantiles of the pixels, and what lies in each quarter of the image."""
    half, values = SIDE // 2, images[..., 0].astype(float)
    flat = values.reshape(len(values), -1)
    found = [flat.mean(1), flat.std(1), *np.quantile(flat, [0.02, 0.25, 0.75, 0.98], axis=1)]
    for part in [(slice(a, a + half), slice(b, b + half)) for a in (0, half) for b in (0, half)]:
        found += [values[:, *part].mean((1, 2)), (masks[:, 0, *part] == 1).mean((1, 2))]
        found += [(masks[:, 1, *part] == IGNORE).mean((1, 2))]
    return np.stack(found, 1)


def largest_difference(first: np.ndarray, second: np.ndarray) -> float:
    """How many standard errors the means, or the spreads, of two samples of statistics differ by at most."""
    centre = np.concatenate([first, second]).mean(0)
    pairs = [(first, second), ((first - centre) ** 2, (second - centre) ** 2)]
    found = []
    for one, other in pairs:
        error = np.sqrt(one.var(0) / len(one) + other.var(0) / len(other))
        rounding = 0.02 * np.abs(one).mean(0) + 0.02  # interpolation in steps of 1/32 pixel
        found.append(np.maximum(np.abs(one.mean(0) - other.mean(0)) - rounding, 0) / np.maximum(error, 1e-9))
    return float(np.max(found))


@pytest.mark.parametrize("name", EQUALS)
def test_the_distribution_is_that_of_the_loader(name: str) -> None:
    settings, other = STRENGTHS[name]
    (image, masks), count = scene(), 600
    augmentation = Augmentation([{name: settings}])
    results = [augmentation(image, masks, seed) for seed in range(count)]
    loader = statistics(*(np.stack(part) for part in zip(*results, strict=True)))
    found, stronger = (statistics(*on_device([{name: one}], image, masks, count)) for one in (settings, other))
    assert largest_difference(loader, found) < 4
    assert largest_difference(loader, stronger) > 4


@pytest.mark.parametrize("name", ["RandomBrightnessContrast", "RandomGamma", "GaussNoise", "GaussianBlur", "Affine"])
def test_deep_images_become_what_shallow_ones_do(name: str) -> None:
    image, masks = scene()
    shallow, _ = on_device([{name: STRENGTHS[name][0]}], image, masks, 8)
    deep, _ = on_device([{name: STRENGTHS[name][0]}], image.astype(np.uint16) * 257, masks, 8)
    assert deep.dtype == np.int32
    assert deep.max() > 255
    np.testing.assert_allclose(deep / 257, shallow, atol=1.01)
    assert (deep % 257).any()  # not the eight bits of the shallow ones


# --- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("shape", [(48, 48), (40, 56)])
def test_masks_stay_aligned_and_never_blend(dtype: type, shape: tuple[int, int]) -> None:
    entries = [one for one in GEOMETRIC if shape[0] == shape[1] or not {"D4", "RandomRotate90"} & set(one)]
    _, masks = scene(*shape)
    mask: np.ndarray = masks[1:].astype(dtype)  # of 0, 1 and 255
    mask[:, :5] = 0.25 if dtype == np.float32 else 1
    image = np.select([mask[0] == IGNORE, mask[0] == 1, mask[0] == 0.25], [200, 100, 50], 0).astype(np.uint8)[..., None]
    pixels, moved = on_device(entries, image, mask, 24)
    assert moved.dtype == dtype
    assert set(np.unique(moved)) <= set(np.unique(mask)) | {0}
    expected = np.select([moved == IGNORE, moved == 1, moved == 0.25], [200, 100, 50], 0)[:, 0]
    tensor = torch.from_numpy(moved.astype(np.float32))
    pooled = [torch.nn.functional.max_pool2d(sign * tensor, 3, 1, 1) for sign in (1, -1)]
    inner = (pooled[0] == -pooled[1]).numpy()[:, 0]  # no edge of the mask beside it, nor of the image
    inner[:, [0, -1]] = inner[:, :, [0, -1]] = False
    assert inner.mean() > 0.7
    assert (np.abs(pixels[..., 0][inner].astype(int) - expected[inner]) <= 1).all()
    assert sum(np.array_equal(one, mask) for one in moved) < 6


def test_pixel_changes_leave_masks_alone() -> None:
    names = ("RandomBrightnessContrast", "RandomGamma", "GaussNoise", "GaussianBlur", "CoarseDropout")
    image, masks = scene()
    pixels, same = on_device([{name: STRENGTHS[name][0] | {"p": 1}} for name in names], image, masks, 4)
    assert all((one != image).any() for one in pixels)
    assert (same == masks).all()


# --- draws -----------------------------------------------------------------------------------------------------------


def test_every_image_of_a_batch_has_its_own_draw() -> None:
    image, masks = scene()
    pixels, _ = on_device([{"RandomBrightnessContrast": {"p": 1}}], image, masks, 40)
    assert len({one.tobytes() for one in pixels}) == 40
    pixels, moved = on_device([{"HorizontalFlip": {"p": 0.3}}, {"VerticalFlip": {"p": 0.3}}], image, masks, 1000)
    flips = [image, image[:, ::-1], image[::-1], image[::-1, ::-1]]
    counts = np.array([sum(np.array_equal(one, flip) for one in pixels) for flip in flips])
    shares = np.array([0.49, 0.21, 0.21, 0.09])
    assert counts.sum() == 1000
    assert (np.abs(counts - 1000 * shares) < 4 * np.sqrt(1000 * shares * (1 - shares))).all()
    assert on_device([{"GaussNoise": {"p": 0}}], image, masks, 3)[0].tolist() == [image.tolist()] * 3


def test_the_seed_decides_and_nothing_else_is_drawn() -> None:
    image, masks = scene()
    entries = [{name: settings} for name, (settings, _) in STRENGTHS.items()]
    pixels, planes = batch_of(image, masks, 6)
    augmentation, before = DeviceAugmentation(entries, (SIDE, SIDE)), torch.get_rng_state()
    first, moved = augmentation(pixels, planes, 5)
    assert not torch.equal(augmentation(pixels, planes, 6)[0], first)
    again, moved_again = augmentation(pixels, planes, 5)
    assert torch.equal(first, again)
    assert torch.equal(moved, moved_again)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(pixels, batch_of(image, masks, 6)[0])  # the batch itself is left as it was
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(augmentation(pixels, planes, 5)[0], first)


# --- what it cannot do -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"ElasticTransform": {}},
            r"ElasticTransform is not implemented for .*; expected only HorizontalFlip, .*=loader",
        ),
        ({"OneOf": {"transforms": [{"HorizontalFlip": {}}]}}, "OneOf is not implemented"),
        ({"RandomRotate90": {}}, "RandomRotate90 with images of 32×48, which are not square, is not implemented"),
        ({"D4": {}}, "D4 with images of 32×48"),
        ({"Transpose": {}}, "Transpose with images of 32×48"),
        ({"Rotate": {"crop_border": True}}, "Rotate with crop_border=True is not implemented"),
        ({"Affine": {"fit_output": True}}, "Affine with fit_output=True is not implemented"),
        ({"Affine": {"interpolation": 2}}, "Affine with interpolation=2"),
        ({"Affine": {"mask_interpolation": 1}}, "Affine with mask_interpolation=1"),
        ({"Rotate": {"border_mode": 3}}, "Rotate with border_mode=3"),
        ({"Rotate": {"fill": [1, 2, 3]}}, r"Rotate with fill=\(1.0, 2.0, 3.0\)"),
        ({"CoarseDropout": {"fill": "random"}}, "CoarseDropout with fill='random'"),
        ({"GaussNoise": {"noise_scale_factor": 0.5}}, "GaussNoise with noise_scale_factor=0.5"),
        ({"HorizontalFlip": {"often": 1}}, "HorizontalFlip has no setting often"),
    ],
    ids=str,
)
def test_what_has_no_equal_is_named(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        DeviceAugmentation([{"VerticalFlip": {}}, entry], (32, 48))


def test_an_empty_list_changes_nothing() -> None:
    pixels, planes = batch_of(*scene(), 2)
    assert DeviceAugmentation([], (SIDE, SIDE))(pixels, planes, 0) == (pixels, planes)


# --- training --------------------------------------------------------------------------------------------------------

SETTINGS: dict[str, Any] = {
    "augment": [{"HorizontalFlip": {}}, {"Affine": AFFINE}, {"GaussNoise": {}}],
    "model": {"dropout": 0.2},
    "train": {"augment_on": "device", "folds": [0], "epochs": 2},
}


def test_a_resumed_run_draws_the_same(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    call = DeviceAugmentation.__call__
    run = prepare(tiny, SETTINGS)
    stored = {image.transpose(2, 0, 1).tobytes() for image in np.load(run.pixels / "train_images.npy")}

    def records(self: Any, pixels: torch.Tensor, masks: torch.Tensor, seed: int) -> Any:
        assert all(one.numpy().tobytes() in stored for one in pixels)  # the loader has left them as they are
        seeds.append(seed)
        return call(self, pixels, masks, seed)

    monkeypatch.setattr(DeviceAugmentation, "__call__", records)
    train(run)
    undisturbed, drawn = hashes(run), list(seeds)
    assert len(set(drawn)) == len(drawn) == 4  # epochs · batches
    ended, broken = callbacks.ShowProgress.on_train_epoch_end, iter([False, True])

    def breaks(self: Any, trainer: Any, module: Any) -> None:
        ended(self, trainer, module)
        if next(broken, False):
            raise KeyboardInterrupt

    monkeypatch.setattr(callbacks.ShowProgress, "on_train_epoch_end", breaks)
    other = named(run, "interrupted")
    with pytest.raises(KeyboardInterrupt):
        train(other)
    train(other)
    assert seeds[4:] == drawn + drawn[2:]
    assert hashes(other) == undisturbed


def test_a_wrong_list_is_found_before_anything_is_decoded(tiny: Tiny) -> None:
    tiny.recipe |= {"augment": [{"ElasticTransform": {}}], "train": {"augment_on": "device"}}
    tiny.save()
    with pytest.raises(PipelineError, match="ElasticTransform is not implemented"):
        preflight(tiny.run())
    assert not list((tiny.root / "work").rglob("*.npy"))
