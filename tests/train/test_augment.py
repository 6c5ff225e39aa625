"""Augmentation: seeded draws, masks that move along, wrong settings."""

from typing import Any

import numpy as np
import pytest

from pipeline.core.errors import PipelineError
from pipeline.masks.geometry import IGNORE
from pipeline.networks.transforms import Entries, Preprocess
from pipeline.train.batches.augment import Augmentation

MIXED: Entries = [
    {"HorizontalFlip": {"p": 0.5}},
    {"RandomBrightnessContrast": {"p": 0.5}},
    {"Affine": {"scale": [0.9, 1.1], "rotate": [-10, 10], "p": 0.7}},
]
HOLES = {"num_holes_range": [1, 4], "hole_height_range": [0.1, 0.3], "hole_width_range": [0.1, 0.3], "p": 1}
GEOMETRIC: Entries = [
    {"HorizontalFlip": {"p": 1}},
    {"VerticalFlip": {"p": 1}},
    {"Rotate": {"limit": [-30, 30], "p": 1}},
    {"RandomRotate90": {"p": 1}},
    {"Affine": {"scale": [0.8, 1.2], "rotate": [-15, 15], "shear": {"x": [-5, 5], "y": [0, 0]}, "p": 1}},
    {"ShiftScaleRotate": {"p": 1}},
    {"ElasticTransform": {"alpha": 40, "sigma": 4, "p": 1}},
    {"GridDistortion": {"distort_limit": [-0.4, 0.4], "p": 1}},
    {"CoarseDropout": HOLES},
]
GROUPS: Entries = [
    {"OneOf": {"transforms": [{"GaussianBlur": {"p": 1}}, {"HorizontalFlip": {"p": 1}}], "p": 0.5}},
    {"SomeOf": {"transforms": [{"VerticalFlip": {}}, {"Sequential": {"transforms": MIXED, "p": 1}}], "n": 2, "p": 1}},
    {"RandomOrder": {"transforms": [{"Rotate": {"p": 1}}, {"RandomGamma": {"p": 1}}], "n": 2, "p": 0.5}},
]


def picture(rows: int = 12, columns: int = 16, channels: int = 1, classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (rows, columns, channels), dtype=np.uint8)
    return image, rng.choice(np.array([0, 1, IGNORE], np.uint8), (classes, rows, columns))


@pytest.mark.parametrize("settings", [MIXED, GROUPS], ids=["plain", "groups"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_seed_decides_the_draw(channels: int, settings: Entries) -> None:
    image, masks = picture(channels=channels)
    first, second = Augmentation(settings), Augmentation(settings)
    seen = []
    for seed in range(12):
        once = first(image.copy(), masks.copy(), seed)
        second(image.copy(), masks.copy(), seed + 100)  # what was drawn before does not matter
        again = second(image.copy(), masks.copy(), seed)
        for one, other, before in zip(once, again, (image, masks), strict=True):
            np.testing.assert_array_equal(one, other)
            assert (one.shape, one.dtype) == (before.shape, before.dtype)
        assert set(np.unique(once[1])) <= {0, 1, IGNORE}
        seen.append(once[0].tobytes())
    assert len(set(seen)) > 6


def test_transforms_draw_independently() -> None:
    """albumentations' own set_random_seed gives every transform the same numbers: both or none in every case."""
    image, masks = picture()
    both = Augmentation([{"HorizontalFlip": {"p": 0.5}}, {"VerticalFlip": {"p": 0.5}}])
    flips = [masks, masks[:, :, ::-1], masks[:, ::-1], masks[:, ::-1, ::-1]]
    results = [both(image, masks, seed)[1] for seed in range(80)]
    counts = [sum(np.array_equal(result, flip) for result in results) for flip in flips]
    assert sum(counts) == 80
    assert min(counts) >= 10
    group = Augmentation([{"OneOf": {"transforms": [{"HorizontalFlip": {"p": 1}}, {"VerticalFlip": {"p": 3e-1}}]}}])
    results = [group(image, masks, seed)[1] for seed in range(80)]
    counts = [sum(np.array_equal(result, flip) for result in results) for flip in flips]
    assert counts[3] == 0
    assert counts[1] > counts[2] > 0  # the p of a group's members are weights


@pytest.mark.filterwarnings("ignore:ShiftScaleRotate")
@pytest.mark.parametrize("settings", GEOMETRIC, ids=lambda entry: next(iter(entry)))
@pytest.mark.parametrize(("planes", "values"), [(2, [0, 1, IGNORE]), (1, [0.0, 0.25, 1.0, IGNORE]), (7, [0.5, IGNORE])])
def test_masks_never_blend(settings: dict[str, Any], planes: int, values: list[float]) -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (32, 32, 1), dtype=np.uint8)
    masks = rng.choice(np.array(values, np.uint8 if planes == 2 else np.float32), (planes, 32, 32))
    augmentation = Augmentation([settings])
    augmentation.check(image, masks)
    before = masks.copy()
    changed = 0
    for seed in range(5):
        moved_image, moved = augmentation(image, masks, seed)
        assert (moved.shape, moved.dtype, moved_image.shape) == (masks.shape, masks.dtype, image.shape)
        assert set(np.unique(moved)) <= {*values, 0}  # 0 is what comes in from outside
        changed += not np.array_equal(moved, before)
    np.testing.assert_array_equal(masks, before)
    assert changed > 0 or "CoarseDropout" in settings


def test_masks_lose_pixels_only_on_request() -> None:
    image, masks = picture(32, 32)
    full = np.ones_like(masks)
    holes = Augmentation([{"CoarseDropout": HOLES}])
    assert any((holes(image, full, seed)[0] != image).any() for seed in range(3))
    asked = Augmentation([{"CoarseDropout": HOLES | {"fill_mask": IGNORE}}])
    assert IGNORE in asked(image, full, 0)[1]
    turned = Augmentation([{"Rotate": {"limit": [45, 45], "p": 1}}])(image, full, 0)[1]
    assert set(np.unique(turned)) == {0, 1}
    ignored = Augmentation([{"Rotate": {"limit": [45, 45], "fill_mask": IGNORE, "p": 1}}])(image, full, 0)[1]
    assert set(np.unique(ignored)) == {1, IGNORE}


@pytest.mark.filterwarnings("ignore:ShiftScaleRotate")
@pytest.mark.parametrize("channels", [1, 3])
def test_what_the_recipes_use_works(channels: int) -> None:
    image, masks = picture(32, 32, channels)
    others = ["GaussianBlur", "MedianBlur", "RandomBrightnessContrast", "ColorJitter", "CLAHE", "Bilateral"]
    Augmentation(GEOMETRIC + [{name: {}} for name in others] + GROUPS).check(image, masks)


@pytest.mark.parametrize(
    ("entry", "dtype", "channels", "message"),
    [
        ({"CLAHE": {"p": 0.1}}, np.uint16, 1, "CLAHE does not work on uint16 images of 1 channels: "),
        ({"ColorJitter": {}}, np.uint8, 4, "ColorJitter does not work on uint8 images of 4 channels: "),
        ({"RandomGamma": {}}, np.uint16, 1, r"it turns uint16 \(12, 16, 1\) into float64 \(12, 16, 1\)"),
        ({"RandomRotate90": {}}, np.uint8, 1, r"it turns uint8 \(12, 16, 1\) into uint8 \(16, 12, 1\)"),
        ({"Affine": {"mask_interpolation": 1, "rotate": [-20, 20]}}, np.uint8, 1, "it interpolates their masks"),
        ({"OneOf": {"transforms": [{"Blur": {}}, {"CLAHE": {}}]}}, np.uint16, 1, "augment: CLAHE does not work"),
    ],
)
def test_what_does_not_work_is_named(entry: dict[str, Any], dtype: type, channels: int, message: str) -> None:
    image, masks = picture(channels=channels)
    with pytest.raises(PipelineError, match=message):
        Augmentation([entry]).check(image.astype(dtype), masks)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_image_is_preprocessed_alike(channels: int) -> None:
    image, _ = picture(32, 32, channels)
    preprocess = Preprocess([{"CLAHE": {"clip_limit": [2, 2], "p": 0.1}}, {"Bilateral": {"diameter": 3}}])
    preprocess.check(image)
    before, once = image.copy(), preprocess(image)
    np.testing.assert_array_equal(image, before)
    assert (once.shape, once.dtype) == (image.shape, image.dtype)
    assert (once != image).any()
    preprocess(once)  # what went through before does not matter
    np.testing.assert_array_equal(preprocess(image), once)
    drawn = Preprocess([{"GaussNoise": {}}])
    np.testing.assert_array_equal(drawn(image), drawn(image))
    assert Preprocess([])(image) is image


def test_bilateral_keeps_edges() -> None:
    rng = np.random.default_rng(0)
    step = np.where(np.arange(32) < 16, 40, 200) * np.ones((32, 1))
    image = (step + rng.integers(-5, 6, step.shape)).astype(np.uint8)[..., None]
    smooth = Preprocess([{"Bilateral": {"sigma_color": 30}}])(image)
    assert np.abs(smooth[..., 0] - step).mean() < 0.6 * np.abs(image[..., 0] - step).mean()
    assert abs(int(smooth[:, 15].mean()) - 40) < 5 and abs(int(smooth[:, 16].mean()) - 200) < 5
    deep = Preprocess([{"Bilateral": {"sigma_color": 30}}])(image.astype(np.uint16) * 257)
    assert (deep.dtype, deep.shape) == (np.uint16, image.shape)
    np.testing.assert_allclose(deep / 257, smooth, atol=0.55)


def test_image_and_masks_move_together() -> None:
    image, masks = picture()
    moved_image, moved_masks = Augmentation([{"HorizontalFlip": {"p": 1}}])(image, masks, 0)
    np.testing.assert_array_equal(moved_image, image[:, ::-1])
    np.testing.assert_array_equal(moved_masks, masks[:, :, ::-1])
    rows, columns = np.mgrid[:64, :64]
    disc = ((rows - 20) ** 2 + (columns - 40) ** 2 < 150).astype(np.uint8)
    affine = Augmentation([{"Affine": {"rotate": [-90, 90], "translate_percent": [-0.2, 0.2], "p": 1}}])
    for seed in range(5):
        image_again, masks_again = affine((disc * 255)[..., None], disc[None], seed)
        assert ((image_again[..., 0] > 127) == masks_again[0]).mean() > 0.99
        assert (masks_again[0] != disc).any()


def test_pixel_changes_leave_masks_alone() -> None:
    image, masks = picture()
    brighter = Augmentation([{"RandomBrightnessContrast": {"brightness_limit": [0.2, 0.2], "p": 1}}])
    changed, same = brighter(image, masks, 0)
    assert (changed != image).any()
    np.testing.assert_array_equal(same, masks)


def test_no_transforms_change_nothing() -> None:
    image, masks = picture()
    same_image, same_masks = Augmentation([])(image, masks, 0)
    np.testing.assert_array_equal(same_image, image)
    np.testing.assert_array_equal(same_masks, masks)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([{"HorizontalFlop": {}}], "no transform named `HorizontalFlop`; did you mean `HorizontalFlip`\\?"),
        ([{"Compose": {}}], "albumentations has no transform named `Compose`"),
        ([{"np": {}}], "albumentations has no transform named `np`"),
        ([{"HorizontalFlip": {"probability": 1}}], "HorizontalFlip has no setting probability; it has p"),
        ([{"RandomBrightnessContrast": {"limit": 1, "p": 1}}], "has no setting limit; it has brightness_limit"),
        ([{"HorizontalFlip": {"p": 2}}], "HorizontalFlip does not accept its settings: .*less than or equal to 1"),
        ([{"HorizontalFlip": {"p": "often"}}], "HorizontalFlip does not accept its settings: .*often"),
        ([{"HorizontalFlip": 0.5}], "expected settings of HorizontalFlip as `{setting: value}`, not 0.5"),
        ([{"Affine": {"shear": {"x": "a"}}}], r"Affine does not accept its settings: shear={'x': 'a'}: [^\n]*\.$"),
        ([{"Resize": {"height": 3}}], "Resize does not accept its settings: width: Field required"),
        ([{"MedianBlur": {"blur_limit": [3, 1]}}], "MedianBlur does not accept its settings: .*not allowed"),
        ([{"OneOf": {}}], "OneOf.transforms: expected a list"),
        ([{"OneOf": {"transforms": ["Blur"]}}], "OneOf.transforms: expected a list of `Name: {setting: value}`"),
        ([{"OneOf": {"transforms": [{"Blurr": {}}]}}], "OneOf.transforms: albumentations has no transform .*`Blurr`"),
        ([{"OneOf": {"transforms": [{"Blur": {"p": 0}}]}}], "OneOf needs transforms with a p above 0"),
        ([{"OneOf": {"transforms": [{"Blur": {}}], "n": 1}}], "OneOf has no setting n; it has transforms, p"),
        ([{"OneOf": {"transforms": [{"Blur": {}}], "p": 2}}], "OneOf does not accept its settings: p=2: .*equal to 1"),
        (
            [{"SomeOf": {"transforms": [{"Blur": {}}], "n": 2}}],
            "SomeOf does not accept its settings: .*greater than number",
        ),
    ],
)
def test_wrong_transforms_are_named(settings: list[dict[str, dict[str, Any]]], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        Augmentation(settings)


@pytest.mark.parametrize(
    ("entry", "dtype", "message"),
    [
        ({"Rotate": {}}, np.uint8, "image.preprocess: Rotate is not allowed"),
        ({"OneOf": {"transforms": [{"Blur": {}}]}}, np.uint8, "image.preprocess: OneOf is not allowed"),
        (
            {"Bilateral": {"diameter": 0}},
            np.uint8,
            "image.preprocess: Bilateral does not accept its settings: diameter=0",
        ),
        ({"CLAHE": {}}, np.uint16, "image.preprocess: CLAHE does not work on uint16 images of 1 channels"),
        ({"Normalize": {"mean": [0.5], "std": [0.5]}}, np.uint8, "Normalize does not work .* into float32"),
    ],
)
def test_wrong_preprocessing_is_named(entry: dict[str, Any], dtype: type, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        Preprocess([entry]).check(picture()[0].astype(dtype))
