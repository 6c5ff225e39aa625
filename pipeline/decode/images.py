"""Reading and checking of one image and its masks: its row in the table, its pixels at network size, and its faults."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.core.config.competition import Competition
from pipeline.core.config.raw_layouts import RleCsv
from pipeline.core.run import Run
from pipeline.decode import descriptors, rle_checks
from pipeline.decode.readers import remarks
from pipeline.decode.readers.base import Fault, Item, MaskFault, Masks
from pipeline.decode.readers.files import OtherNumbers
from pipeline.decode.value_range import extremes
from pipeline.masks import rle
from pipeline.masks.geometry import IGNORE, Geometry, image_to_network, labels_to_network, mask_to_network

_RANGE_HINT = ": `value_range: [lowest, highest]` in the competition's YAML scales all images"


@dataclass(frozen=True)
class Decoded:
    """The result of reading one image: its row in the table, its arrays if it could be read, and its faults."""

    row: dict[str, Any]
    arrays: dict[str, np.ndarray]
    """Arrays by name, which starts with train_ or test_: image and masks at network size, histograms, thumbnail."""
    outlines: list[tuple[float, float]]
    """For each mask, the length of its outline, and of the outline that the same text gives in the other pixel
    order."""
    faults: list[Fault]


def first_type(items: Iterable[Item]) -> np.dtype:
    """Returns the dtype of the first image that can be read; uint8 if none can."""
    for item in items:
        try:
            return item.read_image().dtype
        except ValueError:
            continue
    return np.dtype(np.uint8)


def decode_one(item: Item, run: Run, geometry: Geometry, dtype: np.dtype) -> Decoded:
    """Returns an image and its masks as arrays at network size and its row, or its faults.

    Args:
        item: the image.
        run: the run, for its competition and raw files.
        geometry: how images and masks are fitted to network size.
        dtype: the dtype that all images of the competition must have.
    """
    competition = run.competition
    row = empty_row(item.image_id, item.subset, competition) | {"path": item.path, **item.place}
    row |= {"group": item.group or ""} | {f"extra_{key}": value for key, value in item.extra.items()}
    droppable = item.image_id if item.subset == "train" else None
    try:
        image = item.read_image()
        _check_image(image, competition, dtype, lambda: _is_turned(item, run))
    except ValueError as error:
        hint = _RANGE_HINT if isinstance(error, OtherNumbers) else ""
        return Decoded(row, {}, [], [Fault(row["path"], None, f"{error}{hint}", droppable)])
    values = descriptors.grey(image)
    row |= _statistics(image, values)
    arrays = {f"{item.subset}_images": image_to_network(image, geometry)}
    grid = descriptors.block_grid(competition.shape)
    arrays |= {f"{item.subset}_histogram": descriptors.block_histograms(values, grid)}
    arrays |= {f"{item.subset}_thumbnail": descriptors.thumbnail(values)}
    if item.read_masks is None:
        return Decoded(row, arrays, [], [])
    try:
        masks = item.read_masks(image.shape[:2])
    except MaskFault as error:
        hint = _turned_hint(run) if _is_turned(item, run) else ""
        return Decoded(row, arrays, [], [Fault(error.file, error.row, f"{error}{hint}", droppable)])
    row |= _mask_columns(masks, competition)
    to_network = labels_to_network if competition.kind == "multiclass" else mask_to_network
    arrays |= {"train_masks": to_network(masks.planes, geometry)} if item.subset == "train" else {}
    return Decoded(row, arrays, _all_outlines(masks, competition), [])


def blank_one(item: Item, run: Run, geometry: Geometry, shape: tuple[int, ...], dtype: np.dtype) -> Decoded:
    """Returns a black image of this shape (H, W, C) and dtype as a substitute for an image that cannot be read. The
    column `fault` of its row is empty."""
    return decode_one(replace(item, read_image=lambda: np.zeros(shape, dtype)), run, geometry, dtype)


def usual(items: Iterable[Item], competition: Competition, most: int = 20) -> tuple[tuple[int, ...], np.dtype] | None:
    """Returns the most frequent shape (H, W, C) and dtype of the first images that can be read; None if none can.

    Args:
        items: the images.
        competition: the competition, whose `shape` is used if it is set.
        most: maximum number of images to read.
    """
    kinds: Counter[tuple[tuple[int, ...], np.dtype]] = Counter()
    for item in items:
        try:
            image = item.read_image()
        except ValueError:
            continue
        kinds[(*(competition.shape or image.shape[:2]), image.shape[2]), image.dtype] += 1
        if kinds.total() == most:
            break
    return kinds.most_common(1)[0][0] if kinds else None


def _mask_columns(masks: Masks, competition: Competition) -> dict[str, Any]:
    row: dict[str, Any] = {"ignore": rle.encode(masks.planes[0] == IGNORE)}
    for number, name in enumerate(competition.classes):
        mask = masks.planes[number] == 1
        row |= {f"rle_{name}": rle.encode(mask), f"area_{name}": int(mask.sum())}
        if masks.instances is not None:
            row[f"instances_{name}"] = "|".join(masks.instances[number])
    return row


def _is_turned(item: Item, run: Run) -> bool:
    return remarks.has("turned", run.input / item.path)


def _turned_hint(run: Run) -> str:
    upright = run.competition.reads_upright
    remedy, verb = ("if masks are", "set") if upright else ("unless masks are", "remove")
    return (
        f"; the image is stored turned or mirrored (EXIF orientation): {remedy} drawn on the pixels as stored, {verb} "
        "`orientation: stored` in the competition's YAML"
    )


def _check_image(image: np.ndarray, competition: Competition, dtype: np.dtype, turned: Callable[[], bool]) -> None:
    height, width = image.shape[:2]
    if competition.shape and (height, width) != competition.shape:
        expected = f"expected {competition.shape[0]}×{competition.shape[1]} (rows × columns)"
        hint = ": transposed?" if (width, height) == competition.shape else ""
        if hint and turned():
            how = "upright" if competition.reads_upright else "as stored (`orientation: stored`)"
            hint = f": it is stored turned (EXIF orientation) and read {how}, where `shape` is [{height}, {width}]"
        raise ValueError(f"image is {height}×{width}; {expected}{hint}")
    if image.dtype != dtype:
        raise ValueError(
            f"image is {image.dtype}, and the first image of the competition is {dtype}; convert one of them"
        )


def _statistics(image: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    height, width, channels = image.shape
    low, high = extremes(image)
    return {
        "height": height, "width": width, "channels": channels, "dtype": str(image.dtype),
        "mean": float(image.mean(dtype=np.float64)), "standard_deviation": float(image.std(dtype=np.float64)),
        "minimum": image.min().item(), "maximum": image.max().item(), "low": low, "high": high,
        "entropy": descriptors.entropy(values), "smoothness": descriptors.smoothness(values),
        "pixel_hash": hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).hexdigest(),
    }  # fmt: skip


def empty_row(image_id: str, subset: str, competition: Competition) -> dict[str, Any]:
    """Returns a table row with the default values of all columns."""
    row: dict[str, Any] = {"image_id": image_id, "subset": subset, "path": "", "height": 0, "width": 0, "channels": 0}
    row |= {"dtype": "", "group": "", "fault": "", "mean": 0.0, "standard_deviation": 0.0, "minimum": 0, "maximum": 0}
    row |= {"low": 0, "high": 0}
    row |= {"entropy": 0.0, "smoothness": 0.0, "pixel_hash": "", "ignore": ""}
    for name in competition.classes:
        row |= {f"rle_{name}": "", f"area_{name}": 0}
    return row


def _all_outlines(masks: Masks, competition: Competition) -> list[tuple[float, float]]:
    """Returns the outlines of an image's masks if they come from run lengths, which can be read in the wrong order."""
    if not isinstance(competition, RleCsv) or competition.train.mask_files or competition.windows:
        return []
    return [_outlines(mask, rle.convention_of(competition.rle)) for mask in masks.planes if mask.any()]


def _outlines(mask: np.ndarray, convention: rle.Convention) -> tuple[float, float]:
    other = rle.Convention("row" if convention.order == "column" else "column")
    text = rle.encode(mask, rle.Convention(convention.order))
    return rle_checks.outline_length(mask), rle_checks.outline_length(rle.decode(text, mask.shape[:2], other))
