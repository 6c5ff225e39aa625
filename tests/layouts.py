"""Raw competition folders in layouts of their own, made of the sample competition, each with the YAML that reads it."""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import tifffile

from pipeline.masks import rle
from pipeline.masks.rle import Convention
from pipeline.new.sample import write_sample

TRAIN, TEST, SHAPE = 24, 8, (80, 110)
WINDOW = (slice(160, 400), slice(120, 450))
"""A part of the sample's images whose edges cut through masks: only there do conventions differ."""
COLOURS = {"background": (0, 0, 0), "nerve": (0, 0, 255), "rim": (0, 255, 0), "bright": (255, 0, 0)}


@dataclass(frozen=True)
class Drawn:
    """A small sample competition in memory, by id; test images have masks too."""

    images: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    test_masks: dict[str, np.ndarray]


@dataclass(frozen=True)
class Layout:
    """A folder of raw files, the settings that read it, and the masks (classes, h, w) that they must give."""

    folder: Path
    settings: dict[str, Any]
    masks: dict[str, np.ndarray]
    test_masks: dict[str, np.ndarray]


@cache
def drawn() -> Drawn:
    """The sample competition, 24 and 8 images of 80×110; drawn once a session, as it takes a second."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "sample"
        write_sample(folder, TRAIN, TEST)
        train = [path.stem for path in sorted((folder / "train").iterdir()) if not path.stem.endswith("_mask")]
        images = {name: _shrunk(tifffile.imread(folder / "train" / f"{name}.tif")) for name in train}
        masks = {name: _shrunk(tifffile.imread(folder / "train" / f"{name}_mask.tif")) // 128 for name in train}
        truth = pd.read_csv(folder / "truth.csv", dtype=str, keep_default_na=False)
        test = {name: _shrunk(tifffile.imread(folder / "test" / f"{name}.tif")) for name in truth["img"]}
        full = {
            name: rle.decode(text, (420, 580)) * 255 for name, text in zip(truth["img"], truth["pixels"], strict=True)
        }
    return Drawn(images, masks, test, {name: _shrunk(mask) // 128 for name, mask in full.items()})


def _shrunk(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image[WINDOW], SHAPE[::-1], interpolation=cv2.INTER_AREA)


def jpeg_rows(folder: Path) -> Layout:
    """JPEG images, run lengths by row from 0, "-1" for an empty mask, and a column of patients."""
    sample, convention = drawn(), Convention("row", 0, "-1")
    _write_images(folder, "train/{}.jpg", sample.images)
    _write_images(folder, "test/{}.jpg", sample.test)
    rows = [
        {"image": name, "patient": name.split("_")[0], "mask": rle.encode(mask, convention)}
        for name, mask in sample.masks.items()
    ]
    _write_table(folder / "train.csv", rows)
    _write_table(folder / "sample_submission.csv", [{"image": name, "mask": "-1"} for name in sample.test])
    settings = _settings("train/{id}.jpg", "test/{id}.jpg", "train.csv", ["nerve"], "patient") | {
        "columns": {"id": "image", "rle": "mask"},
        "rle": {"order": "row", "base": 0, "empty": "-1"},
    }
    return Layout(folder, settings, _one_plane(sample.masks), _one_plane(sample.test_masks))


def instances(folder: Path) -> Layout:
    """One row an instance, ids with their extension, images without a row."""
    sample = drawn()
    _write_images(folder, "train/{}.png", sample.images)
    _write_images(folder, "test/{}.png", sample.test)
    parts = {name: _parts(mask, number) for number, (name, mask) in enumerate(sample.masks.items())}
    rows = [
        {"ImageId": f"{name}.png", "EncodedPixels": rle.encode(part)} for name, own in parts.items() for part in own
    ]
    _write_table(folder / "train_masks.csv", rows)
    sample_rows = [{"ImageId": f"{name}.png", "EncodedPixels": "1 1"} for name in sample.test]
    _write_table(folder / "sample_submission.csv", sample_rows)
    columns = {"id": "ImageId", "rle": "EncodedPixels", "rows": "instance", "absent": "empty"}
    settings = _settings("train/{id}", "test/{id}", "train_masks.csv", ["thing"], "{group}_{number}")
    masks = {f"{name}.png": np.max([np.zeros(SHAPE, np.uint8), *own], axis=0)[None] for name, own in parts.items()}
    test_masks = {f"{name}.png": mask[None] for name, mask in sample.test_masks.items()}
    return Layout(folder, settings | {"columns": columns}, masks, test_masks)


def classes(folder: Path) -> Layout:
    """One row per image and class in one column, three classes that overlap, empty masks without a row."""
    sample = drawn()
    _write_images(folder, "train_images/{}.png", sample.images)
    _write_images(folder, "test_images/{}.png", sample.test)
    masks = {name: _three(sample.images[name], mask) for name, mask in sample.masks.items()}
    rows = [
        {"ImageId_ClassId": f"{name}.png_{number}", "EncodedPixels": rle.encode(plane)}
        for name, planes in masks.items()
        for number, plane in enumerate(planes, start=1)
        if plane.any()
    ]
    _write_table(folder / "train.csv", rows)
    sample_rows = [
        {"ImageId_ClassId": f"{name}.png_{number}", "EncodedPixels": "1 1"}
        for name in sample.test
        for number in (1, 2, 3)
    ]
    _write_table(folder / "sample_submission.csv", sample_rows)
    settings = _settings("train_images/{id}", "test_images/{id}", "train.csv", {}, "{group}_{number}") | {
        "columns": {"id": "ImageId_ClassId", "pattern": "{id}_{label}", "rle": "EncodedPixels", "absent": "empty"},
        "classes": {"nerve": 1, "rim": 2, "bright": 3},
    }
    test_masks = {f"{name}.png": _three(sample.test[name], mask) for name, mask in sample.test_masks.items()}
    return Layout(folder, settings, {f"{name}.png": planes for name, planes in masks.items()}, test_masks)


def palette(folder: Path) -> Layout:
    """Masks as PNG files in four colours, one of them the background; a submission of one label a pixel."""
    sample = drawn()
    masks = {name: _exclusive(_three(sample.images[name], mask)) for name, mask in sample.masks.items()}
    test_masks = {name: _exclusive(_three(sample.test[name], mask)) for name, mask in sample.test_masks.items()}
    colours = np.array(list(COLOURS.values()), np.uint8)
    _write_images(folder, "train/{}.png", sample.images)
    _write_images(folder, "masks/{}.png", {name: colours[planes.argmax(0)] for name, planes in masks.items()})
    _write_images(folder, "test/{}.png", sample.test)
    labels = pd.DataFrame(0, range(TEST), map(str, range(SHAPE[0] * SHAPE[1])))
    labels.insert(0, "id", list(sample.test))
    labels.to_csv(folder / "sample_submission.csv", index=False)
    settings = _settings("train/{id}.png", "test/{id}.png", "masks/{id}.png", COLOURS, "{group}_{number}") | {
        "kind": "multiclass",
        "submission": {"format": "labels", "id": "id"},
        "metric": "mean_iou",
    }
    return Layout(folder, settings, masks, test_masks)


def relative(folder: Path) -> Layout:
    """Starts counted from the end of the run before, as in SIIM-ACR Pneumothorax, "-1" for an empty mask."""
    sample, convention = drawn(), Convention("column", 0, "-1", "relative")
    _write_images(folder, "train/{}.png", sample.images)
    _write_images(folder, "test/{}.png", sample.test)
    rows = [{"ImageId": name, "EncodedPixels": rle.encode(mask, convention)} for name, mask in sample.masks.items()]
    _write_table(folder / "train-rle.csv", rows)
    _write_table(folder / "sample_submission.csv", [{"ImageId": name, "EncodedPixels": "-1"} for name in sample.test])
    settings = _settings("train/{id}.png", "test/{id}.png", "train-rle.csv", ["nerve"], "{group}_{number}") | {
        "columns": {"id": "ImageId", "rle": "EncodedPixels"},
        "rle": {"order": "column", "base": 0, "empty": "-1", "offsets": "relative"},
    }
    return Layout(folder, settings, _one_plane(sample.masks), _one_plane(sample.test_masks))


LAYOUTS: dict[str, Callable[[Path], Layout]] = {
    "jpeg_rows": jpeg_rows,
    "instances": instances,
    "classes": classes,
    "palette": palette,
    "relative": relative,
}


def _settings(images: str, test: str, masks: str, names: Any, group: str) -> dict[str, Any]:
    return {
        "title": "A layout",
        "reader": "rle_csv",
        "train": {"images": images, "masks": masks},
        "test": {"images": test},
        "sample_submission": "sample_submission.csv",
        "classes": names,
        "shape": list(SHAPE),
        "group": group,
        "metric": "dice",
        "split": {"folds": 4},
    }


def _write_images(folder: Path, pattern: str, images: dict[str, np.ndarray]) -> None:
    for name, image in images.items():
        path = folder / pattern.format(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), image[..., ::-1] if image.ndim == 3 else image)


def _write_table(path: Path, rows: Iterable[dict[str, str]]) -> None:
    pd.DataFrame(rows).to_csv(path, index=False)


def _one_plane(masks: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: mask[None] for name, mask in masks.items()}


def _parts(mask: np.ndarray, number: int) -> list[np.ndarray]:
    """The instances of an image: none, or its mask and up to two more things, the last of them cut by the left edge."""
    if not mask.any():
        return []
    found = [mask]
    for place in ((100, 70), (0, 60))[: number % 3]:
        blob = cv2.ellipse(np.zeros(SHAPE, np.uint8), place, (9, 6), 0, 0, 360, 1, -1)
        found.append(blob & ~mask & 1)
    return found


def _three(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Masks (3, h, w) of the nerve, of a band around its outline that overlaps it, and of all that is bright."""
    wide = np.ones((5, 5), np.uint8)
    rim = cv2.dilate(mask, wide) - cv2.erode(mask, wide)
    bright = (cv2.GaussianBlur(image, (0, 0), 2) > 150).astype(np.uint8) if image.std() > 0 else np.zeros_like(mask)
    return np.stack([mask, rim, bright])


def _exclusive(planes: np.ndarray) -> np.ndarray:
    """Planes (classes, h, w) as (1 + classes, h, w), the background first, of which each pixel has one."""
    labels = np.zeros(planes.shape[1:], np.int64)
    for number in (3, 1, 2):  # a rim goes over what it surrounds
        labels[planes[number - 1] > 0] = number
    return (np.arange(len(planes) + 1)[:, None, None] == labels).astype(np.uint8)
