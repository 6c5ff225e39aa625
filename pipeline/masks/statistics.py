"""Statistics of many masks: how much of an image they cover, where they lie, and which are equal.

The guards of a submission use them to compare predicted masks with training masks. tune writes the statistics of the
training masks once, so that prediction needs neither training images nor their table.
"""

import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import cv2
import numpy as np
import pandas as pd

from pipeline.core.errors import PipelineError
from pipeline.core.files import shown, writing
from pipeline.masks import rle

GRID = 16
"""Number of cells along each side of a position map."""
SAMPLES = 128
"""Number of pixels along each side from which a position map is computed. More pixels take longer and change
nothing."""


@dataclass(frozen=True)
class Statistics:
    """Statistics of the masks of N images and C classes. `blank` creates empty ones, and `add` adds one mask."""

    names: list[str]
    """The names of the classes."""
    exclusive: bool
    """Whether each pixel belongs to exactly one class, as in a class map."""
    groups: np.ndarray
    """The group of each image (N,), e.g. a patient. Images of one group are similar."""
    area: np.ndarray
    """The share of the image that each mask covers (N, C) float64."""
    maps: np.ndarray
    """The position maps (N, C, 2, 16, 16) uint8, the covered share of each cell in 255ths: of the mask, and of the mask
    that its runs give if pixels are numbered in the other order."""
    marks: np.ndarray
    """A checksum per mask (N, C) int64. Equal masks have equal checksums."""

    def add(self, row: int, column: int, mask: np.ndarray) -> None:
        """Adds the mask (h, w) uint8 of 0 and 1 of the image with index `row` and the class with index `column`."""
        area = np.count_nonzero(mask)
        if not area:
            return
        transposed = not mask.flags.c_contiguous  # pixels are numbered column by column
        pixels = np.ascontiguousarray(mask.T if transposed else mask)
        cells, in_other_order = _cells(pixels), _cells(pixels.reshape(pixels.shape[::-1])).T
        self.maps[row, column] = (cells.T, in_other_order.T) if transposed else (cells, in_other_order)
        self.area[row, column] = area / pixels.size
        self.marks[row, column] = zlib.crc32(pixels.data)

    def only(self, rows: np.ndarray) -> "Statistics":
        """Returns the statistics of some images, selected by index or by (N,) bool."""
        arrays = (array[rows] for array in (self.groups, self.area, self.maps, self.marks))
        return Statistics(self.names, self.exclusive, *arrays)

    def without(self, names: Collection[str]) -> "Statistics":
        """Returns the statistics of all classes except `names`."""
        columns = [column for column, name in enumerate(self.names) if name not in names]
        arrays = (array[:, columns] for array in (self.area, self.maps, self.marks))
        return Statistics([self.names[column] for column in columns], self.exclusive, self.groups, *arrays)

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.area)

    @property
    def share(self) -> np.ndarray:
        """The share of pixels of each class per image (N, C); in class maps, among the pixels of these classes."""
        return self.area / np.maximum(self.area.sum(1, keepdims=True), 1e-9) if self.exclusive else self.area

    @property
    def position(self) -> np.ndarray:
        """The mean mask (C, 16, 16) float64, from 0 to 1."""
        return self.maps[:, :, 0].mean(0) / 255

    @property
    def most_common(self) -> np.ndarray:
        """The number of images (C,) with the most common mask that is neither empty nor full."""
        marks_of_classes = [mark[(area > 0) & (area < 1)] for mark, area in zip(self.marks.T, self.area.T, strict=True)]
        return np.array([np.unique(values, return_counts=True)[1].max(initial=0) for values in marks_of_classes])


def blank(names: Sequence[str], exclusive: bool, groups: Sequence[str]) -> Statistics:
    """Returns the statistics of N images with empty masks, one per entry of `groups`, the name of its group."""
    shape = len(groups), len(names)
    maps = np.zeros((*shape, 2, GRID, GRID), np.uint8)
    return Statistics(
        list(names), exclusive, np.array(groups, str), np.zeros(shape), maps, np.zeros(shape, np.int64)
    )  # fmt: skip


def of_table(images: pd.DataFrame, names: Sequence[str], exclusive: bool) -> Statistics:
    """Returns the statistics of the true masks of these classes, for the training rows of a table of images."""
    rows = images[images["subset"] == "train"]
    groups = [group or image_id for group, image_id in zip(rows["group"], rows["image_id"], strict=True)]
    statistics = blank(names, exclusive, groups)
    for column, name in enumerate(names):
        shapes = zip(rows["height"], rows["width"], strict=True)
        for row, (text, shape) in enumerate(zip(rows[f"rle_{name}"], shapes, strict=True)):
            if text:
                statistics.add(row, column, rle.decode(text, shape))
    return statistics


def save(path: Path, statistics: Statistics) -> None:
    """Writes statistics atomically as a compressed .npz file of plain arrays: names, groups, area, maps and marks."""
    arrays = {name: getattr(statistics, name) for name in ("groups", "area", "maps", "marks")}
    with writing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, names=np.array(statistics.names, str), **arrays)


def load(path: Path, names: Sequence[str], exclusive: bool) -> Statistics:
    """Returns the statistics of these classes from a file that `save` wrote.

    Raises:
        PipelineError: the file is damaged, or lacks a class.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            columns = [content["names"].tolist().index(name) for name in names]
            arrays = (content[name][:, columns] for name in ("area", "maps", "marks"))
            return Statistics(list(names), exclusive, content["groups"], *arrays)
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise PipelineError(f"{shown(path)} cannot be read ({reason}); run the tune stage with --force.") from None


def _cells(pixels: np.ndarray) -> np.ndarray:
    """Returns the share of each cell (16, 16) uint8, in 255ths, that a contiguous mask covers."""
    # sampling the nearest pixels first makes the averaging ten times as fast: few pixels, and cells of whole pixels
    sampled = cv2.resize(pixels, (SAMPLES, SAMPLES), interpolation=cv2.INTER_NEAREST)
    return cv2.resize(sampled * np.uint8(255), (GRID, GRID), interpolation=cv2.INTER_AREA)
