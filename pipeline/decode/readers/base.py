"""What a reader finds in a competition's raw files.

A reader is a module with `list_items(competition, folder, subsets)`, which names every image of these subsets and
says what is wrong with the listing; `raw_files(competition, folder, subset)`, the files and folders it reads of one
of them; and `opener(competition, folder)`, a function from a row of images.parquet or test_images.parquet to that
image as it is. The training images can be listed without a test image, and the other way round.
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
"""What subsets are called."""


@dataclass(frozen=True)
class Masks:
    """The true masks of one image, at its own size."""

    planes: np.ndarray
    """(classes, h, w) uint8 of 0, 1, and 255 where a pixel is ignored; a multiclass pixel is 1 in one plane."""
    instances: tuple[tuple[str, ...], ...] | None = None
    """Per class, one run-length text (internal convention) an instance, where the raw files tell instances apart."""


@dataclass(frozen=True)
class Item:
    """One image of a competition, and how to read it; readers raise ValueError with one sentence."""

    image_id: str
    subset: SubsetName
    path: str
    """Its file, relative to the competition's folder."""
    read_image: Callable[[], np.ndarray]
    """Gives (H, W, C) uint8, uint16 or float16."""
    read_masks: Callable[[tuple[int, int]], Masks] | None = None
    """Gives the masks of an image of this height and width; raises MaskFault. None: no truth is known."""
    group: str | None = None
    extra: dict[str, str] = field(default_factory=dict)
    """The raw table's other columns."""
    place: dict[str, str] = field(default_factory=dict)
    """Further columns `of_…` of its row: where in its files it lies; see sources.py."""


class MaskFault(ValueError):
    """Something wrong with a mask: the file, the row where it has one, and one sentence."""

    def __init__(self, file: str, row: int | None, message: str) -> None:
        super().__init__(message)
        self.file, self.row = file, row


@dataclass(frozen=True)
class Fault:
    """Something wrong with the raw files: where, and one sentence."""

    file: str
    row: int | None
    message: str
    image_id: str | None = None
    """The training image that can be left out to go on; None when nothing can be left out."""

    def __str__(self) -> str:
        where = self.file if self.row is None else f"{self.file} row {self.row}"
        return f"{where}: {self.message}"


@dataclass(frozen=True)
class Listing:
    """All images of a competition, training first, and all faults found so far."""

    items: list[Item]
    faults: list[Fault]
    remarks: list[str] = field(default_factory=list)
    """What a person should know of the files, such as how many belong to no image."""


def repeated_ids(items: list[Item], faults: list[Fault], together: bool) -> list[Fault]:
    """Returns a fault for every test image that is a training image too, sound or faulty. An id in both subsets is
    none where it stands for two files.

    Args:
        items: of both subsets.
        faults: of the training images.
        together: whether both subsets lie in one place, so that an id means one file.
    """
    training = [item for item in items if item.subset == "train"]
    known = {fault.image_id for fault in faults} | {item.image_id for item in training} if together else set()
    paths = {(item.image_id, item.path) for item in training}
    tests = [item for item in items if item.subset == "test"]
    both = [item for item in tests if item.image_id in known or (item.image_id, item.path) in paths]
    return [Fault(item.path, None, f"test image {item.image_id} is a training image too") for item in both]


class Part(NamedTuple):
    """Which part of a mask file is the mask of an image."""

    slice_number: int | None = None
    axis: int | None = None
    box: Box | None = None
    volume: Size | None = None
    """The volume that the image is a slice of."""


WHOLE = Part()


def read_mask(
    folder: Path, file: str, shape: tuple[int, int], orientation: Orientation = "upright", part: Part = WHOLE
) -> np.ndarray:
    """Returns a mask image (h, w, C) uint8 or uint16 of the size of its image, or part of one.

    Raises:
        MaskFault: it cannot be read, has several frames or another size, or lies in the alpha channel.
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
        text = "mask has several frames; a mask is one picture: save the frame that belongs to the image as a PNG"
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
    """Raises ValueError where slices of a mask and of its image with the same number are not of the same place."""
    if mask.slices != image.slices:
        raise ValueError(
            f"has {mask.slices} slices and its image {image.slices}: nothing says which slices belong together"
        )
    if mask.directions and image.directions and mask.directions != image.directions:
        raise ValueError(
            f"is stored with axes {mask.directions} and its image with {image.directions}, by the affines of their "
            "headers: one is mirrored or turned; save both in the same orientation, for instance with "
            "nibabel.as_closest_canonical"
        )


def _check_alpha(file: str, mask: np.ndarray) -> None:
    """Raises MaskFault where a mask (h, w, 4) says something in its alpha channel that its colours do not say."""
    *colours, alpha = cv2.split(mask)  # of whole arrays the lowest and highest values come many times faster
    if alpha.min() == alpha.max():
        return
    if all(plane.min() == plane.max() for plane in colours):
        what = f"mask lies in the alpha channel: its colour is {mask[0, 0, :3].tolist()} everywhere, and its alpha"
    elif not any(((plane > 0) & (alpha > 0)).any() for plane in colours):
        what = "mask is transparent wherever it is not black, and black elsewhere: its alpha"
    else:
        return
    text = f"{what} holds {counted(alpha)}; the alpha channel is not read: save it as a grey image"
    raise MaskFault(file, None, text)


def listed(values: Sequence[object], most: int = 5) -> str:
    """Returns the first values as text: `2, 3, 5 and 7 more`."""
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(map(str, values[:most])) + more


def counted(values: np.ndarray, shown: Callable[[Any], str] = "{:.8g}".format) -> str:
    """Returns the different values with their numbers of pixels, the first four of them: `7 (35 px), 9 (2 px)`."""
    found, counts = np.unique(values, return_counts=True)
    texts = [f"{shown(value)} ({count} px)" for value, count in zip(found, counts, strict=True)]
    return ", ".join(texts[:4] + ["…"] * (len(texts) > 4))
