"""What many masks look like as a whole: how much of an image they cover, where they lie, and which are equal.

The guards of a submission compare predicted masks with those of training by these figures, which tune writes once, so
that neither a training image nor their table is needed to predict.
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
"""Cells along each side of a position map."""
SAMPLES = 128
"""Pixels along each side of what a position map is made of; more would cost time and change nothing."""


@dataclass(frozen=True)
class Statistics:
    """What the masks of N images and C classes look like; made empty by `blank`, and filled mask by mask by `add`."""

    names: list[str]
    """The classes."""
    exclusive: bool
    """Whether they share out the pixels among them, as in a class map."""
    groups: np.ndarray
    """What each image (N,) belongs to, e.g. a patient; images of one group are alike."""
    area: np.ndarray
    """Share (N, C) float64 of the image that a mask covers."""
    maps: np.ndarray
    """Where masks lie (N, C, 2, 16, 16) uint8, the share of each cell in 255ths: of the mask, and of what its runs give
    with pixels numbered in the other order."""
    marks: np.ndarray
    """Equal masks have equal marks (N, C) int64."""

    def add(self, row: int, column: int, mask: np.ndarray) -> None:
        """Takes the mask (h, w) uint8 of 0 and 1 of an image and a class, by their places."""
        area = np.count_nonzero(mask)
        if not area:
            return
        transposed = not mask.flags.c_contiguous  # numbered down the columns
        pixels = np.ascontiguousarray(mask.T if transposed else mask)
        here, other = _cells(pixels), _cells(pixels.reshape(pixels.shape[::-1])).T
        self.maps[row, column] = (here.T, other.T) if transposed else (here, other)
        self.area[row, column] = area / pixels.size
        self.marks[row, column] = zlib.crc32(pixels.data)

    def only(self, rows: np.ndarray) -> "Statistics":
        """Returns the statistics of some images, by their numbers or as (N,) bool."""
        arrays = (array[rows] for array in (self.groups, self.area, self.maps, self.marks))
        return Statistics(self.names, self.exclusive, *arrays)

    def without(self, names: Collection[str]) -> "Statistics":
        """Returns the statistics of all classes but these."""
        columns = [column for column, name in enumerate(self.names) if name not in names]
        arrays = (array[:, columns] for array in (self.area, self.maps, self.marks))
        return Statistics([self.names[column] for column in columns], self.exclusive, self.groups, *arrays)

    @property
    def images(self) -> int:
        """How many there are."""
        return len(self.area)

    @property
    def share(self) -> np.ndarray:
        """Share (N, C) of an image's pixels that is of a class; of class maps, among the classes that count."""
        return self.area / np.maximum(self.area.sum(1, keepdims=True), 1e-9) if self.exclusive else self.area

    @property
    def position(self) -> np.ndarray:
        """The mean mask (C, 16, 16) float64, from 0 to 1."""
        return self.maps[:, :, 0].mean(0) / 255

    @property
    def most_common(self) -> np.ndarray:
        """How many images (C,) have the most common mask that is neither empty nor full."""
        found = [mark[(area > 0) & (area < 1)] for mark, area in zip(self.marks.T, self.area.T, strict=True)]
        return np.array([np.unique(one, return_counts=True)[1].max(initial=0) for one in found])


def blank(names: Sequence[str], exclusive: bool, groups: Sequence[str]) -> Statistics:
    """Returns statistics of one image a group name (N,), all masks empty so far."""
    shape = len(groups), len(names)
    maps = np.zeros((*shape, 2, GRID, GRID), np.uint8)
    return Statistics(
        list(names), exclusive, np.array(groups, str), np.zeros(shape), maps, np.zeros(shape, np.int64)
    )  # fmt: skip


def of_table(images: pd.DataFrame, names: Sequence[str], exclusive: bool) -> Statistics:
    """Returns the statistics of the true masks of these classes, of the training rows of a table of images."""
    rows = images[images["subset"] == "train"]
    groups = [group or image_id for group, image_id in zip(rows["group"], rows["image_id"], strict=True)]
    found = blank(names, exclusive, groups)
    for column, name in enumerate(names):
        shapes = zip(rows["height"], rows["width"], strict=True)
        for row, (text, shape) in enumerate(zip(rows[f"rle_{name}"], shapes, strict=True)):
            if text:
                found.add(row, column, rle.decode(text, shape))
    return found


def save(path: Path, statistics: Statistics) -> None:
    """Writes statistics atomically as a compressed .npz of plain arrays: names, groups, area, maps and marks."""
    arrays = {name: getattr(statistics, name) for name in ("groups", "area", "maps", "marks")}
    with writing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, names=np.array(statistics.names, str), **arrays)


def load(path: Path, names: Sequence[str], exclusive: bool) -> Statistics:
    """Returns the statistics of these classes that `save` wrote.

    Raises:
        PipelineError: the file is damaged, or has none of a class.
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
    """Shares (16, 16) uint8 in 255ths that a contiguous mask covers of each cell."""
    # a nearest pixel each, so that the averaging has few pixels and whole cells, which is ten times as fast
    sampled = cv2.resize(pixels, (SAMPLES, SAMPLES), interpolation=cv2.INTER_NEAREST)
    return cv2.resize(sampled * np.uint8(255), (GRID, GRID), interpolation=cv2.INTER_AREA)
