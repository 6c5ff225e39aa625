"""The interface of readers, which list and read the raw files of a competition.

A reader is a module with three functions. `list_items(competition, folder, subsets)` returns all images of these
subsets and the faults of the listing. `raw_files(competition, folder, subset)` returns the files and folders that it
reads for a subset. `opener(competition, folder)` returns a function that reads the image of a row of images.parquet or
test_images.parquet. Training images can be listed without test images, and test images without training images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np

from pipeline.core.config.competition import Orientation
from pipeline.decode.formats.base import Size
from pipeline.decode.formats.registry import measure
from pipeline.decode.readers import remarks
from pipeline.decode.readers.files import read_image
from pipeline.decode.readers.names import as_on_disk
from pipeline.masks.windows import Box

SubsetName = Literal["train", "test"]
SUBSETS: tuple[SubsetName, ...] = ("train", "test")
WORDS: dict[SubsetName, str] = {"train": "training", "test": "test"}
"""The names of subsets in messages."""


@dataclass(frozen=True)
class Masks:
    """The true masks of one image at its own size."""

    planes: np.ndarray
    """The masks (classes, h, w) uint8 of 0, 1, and 255 for ignored pixels. In multiclass competitions, each pixel is 1
    in exactly one plane."""
    instances: tuple[tuple[str, ...], ...] | None = None
    """For each class, one run-length text (in the internal convention) per instance; None if the raw files do not
    distinguish instances."""


@dataclass(frozen=True)
class Item:
    """One image of a competition, and the functions that read it. They raise ValueError with a message of one
    sentence."""

    image_id: str
    subset: SubsetName
    path: str
    """The image file, relative to the competition's folder."""
    read_image: Callable[[], np.ndarray]
    """Returns the image (H, W, C) uint8, uint16 or float16."""
    read_masks: Callable[[tuple[int, int]], Masks] | None = None
    """Returns the masks of an image of this height and width, or raises MaskFault. None: the truth is not known."""
    group: str | None = None
    extra: dict[str, str] = field(default_factory=dict)
    """The other columns of the raw table."""
    place: dict[str, str] = field(default_factory=dict)
    """The columns `of_…` of its row, which say where in its files the image lies; see sources.py."""


class MaskFault(ValueError):
    """Raised for a fault of a mask, with the file, the row (None if there is none) and a message of one sentence."""

    def __init__(self, file: str, row: int | None, message: str) -> None:
        super().__init__(message)
        self.file, self.row = file, row


@dataclass(frozen=True)
class Fault:
    """A fault of the raw files: the file, the row and a message of one sentence."""

    file: str
    row: int | None
    message: str
    image_id: str | None = None
    """The training image that can be left out because of this fault; None if leaving out an image does not help."""

    def __str__(self) -> str:
        where = self.file if self.row is None else f"{self.file} row {self.row}"
        return f"{where}: {self.message}"


@dataclass(frozen=True)
class Listing:
    """All images of a competition, training images first, and the faults found so far."""

    items: list[Item]
    faults: list[Fault]
    remarks: list[str] = field(default_factory=list)
    """Remarks for the user about the files, such as the number of files that belong to no image."""


def repeated_ids(items: list[Item], faults: list[Fault], together: bool) -> list[Fault]:
    """Returns a fault for each test image that is also a training image. The same id in both subsets is not a fault if
    it belongs to two files.

    Args:
        items: the images of both subsets.
        faults: the faults of the training images.
        together: whether both subsets lie in the same folder, so that each id belongs to one file.
    """
    training = [item for item in items if item.subset == "train"]
    known = {fault.image_id for fault in faults} | {item.image_id for item in training} if together else set()
    paths = {(item.image_id, item.path) for item in training}
    tests = [item for item in items if item.subset == "test"]
    both = [item for item in tests if item.image_id in known or (item.image_id, item.path) in paths]
    return [Fault(item.path, None, f"test image {item.image_id} is also a training image") for item in both]


class Part(NamedTuple):
    """The part of a mask file that is the mask of an image."""

    slice_number: int | None = None
    axis: int | None = None
    box: Box | None = None
    volume: Size | None = None
    """The size of the volume of which the image is a slice."""


WHOLE = Part()


def read_mask(
    folder: Path, file: str, shape: tuple[int, int], orientation: Orientation = "upright", part: Part = WHOLE
) -> np.ndarray:
    """Returns a mask image (h, w, C) uint8 or uint16 of the size of its image, or a part of it.

    Raises:
        MaskFault: the mask cannot be read, has several frames or another size, or is in the alpha channel.
    """
    try:
        path = as_on_disk(folder, file)
        mask = read_image(
            path, orientation=orientation, as_mask=True, slice_number=part.slice_number, axis=part.axis, box=part.box
        )
        if part.volume:
            _check_volume(_size_of_volume(path, part.axis, path.stat().st_mtime_ns), part.volume)
    except ValueError as error:
        raise MaskFault(file, None, f"mask {error}") from None
    if remarks.has("frames", path):
        text = "mask has several frames; expected one picture: save the frame that belongs to the image as a PNG"
        raise MaskFault(file, None, text)
    if mask.shape[:2] != shape:
        height, width = mask.shape[:2]
        raise MaskFault(file, None, f"mask is {height}×{width}, its image {shape[0]}×{shape[1]} (rows × columns)")
    if mask.shape[2] == 4:
        _check_alpha(file, mask)
    return mask[..., :3]


@lru_cache(maxsize=256)
def _size_of_volume(path: Path, axis: int | None, modified: int) -> Size:
    return measure(path, axis, volume=True)


def _check_volume(mask: Size, image: Size) -> None:
    """Raises ValueError if slices of a mask and of its image with the same number are not at the same position."""
    if mask.slices != image.slices:
        raise ValueError(
            f"has {mask.slices} slices and its image {image.slices}, so it is not known which slices belong together"
        )
    if mask.directions and image.directions and mask.directions != image.directions:
        raise ValueError(
            f"is stored with axes {mask.directions} and its image with {image.directions}, by the affines of their "
            "headers: one is mirrored or turned; save both in the same orientation, for instance with "
            "nibabel.as_closest_canonical"
        )


def _check_alpha(file: str, mask: np.ndarray) -> None:
    """Raises MaskFault if the alpha channel of a mask (h, w, 4) holds information that its colours do not have."""
    *colours, alpha = cv2.split(mask)  # minimum and maximum are many times faster for contiguous arrays
    if alpha.min() == alpha.max():
        return
    if all(plane.min() == plane.max() for plane in colours):
        what = f"mask lies in the alpha channel: its colour is {mask[0, 0, :3].tolist()} everywhere, and its alpha"
    elif not any(((plane > 0) & (alpha > 0)).any() for plane in colours):
        what = "mask is transparent wherever it is not black, and black everywhere else; its alpha"
    else:
        return
    text = f"{what} holds {counted(alpha)}; the alpha channel is not read: save the mask as a grey image"
    raise MaskFault(file, None, text)


def listed(values: Sequence[object], most: int = 5) -> str:
    """Returns the first values as a text, e.g. `2, 3, 5 and 7 more`."""
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(map(str, values[:most])) + more


def counted(values: np.ndarray, shown: Callable[[Any], str] = "{:.8g}".format) -> str:
    """Returns a text of the first four distinct values with their numbers of pixels, e.g. `7 (35 px), 9 (2 px)`."""
    distinct, counts = np.unique(values, return_counts=True)
    texts = [f"{shown(value)} ({count} px)" for value, count in zip(distinct, counts, strict=True)]
    return ", ".join(texts[:4] + ["…"] * (len(texts) > 4))
