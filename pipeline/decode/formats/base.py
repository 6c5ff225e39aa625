"""What a format of image files is, and what is asked of one.

A format is a module with `SUFFIXES`, the endings of its files; `starts(head)`, whether a file that starts with these
bytes is one, whatever its name; `read(path, wanted)`, one picture of a file; and `measure(path, axis, volume)`, how
large it is.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pipeline.core.errors import PipelineError
from pipeline.masks.windows import Box

HEAD = 132
"""Bytes of the beginning of a file that say which format it is."""


class Wanted(NamedTuple):
    """What of a file is wanted, and how."""

    check_size: Callable[[tuple[int, ...]], None]
    """Raises ValueError for a shape (rows, columns, …) that is too large to be read whole."""
    alpha: bool = False
    """Whether grey with transparency comes as (H, W, 4) instead of (H, W)."""
    slice: int | None = None
    """Which slice of a volume, along `axis`; None: the file is one picture."""
    axis: int | None = None
    """None: the axis along which files of this format hold slices."""
    box: Box | None = None
    """A part of the picture; a format that cannot read parts returns the whole picture, and `Stored.cut` says so."""
    value_range: tuple[float, float] | None = None
    """What is black and what is white, where the competition's YAML says so."""
    key: str | None = None
    """Which array of a file that holds several."""


class Stored(NamedTuple):
    """A picture as it is stored."""

    pixels: np.ndarray
    """(H, W) or (H, W, C), of any number format."""
    orientation: int = 1
    """By the EXIF standard; 1: the first row is the top one."""
    value_range: tuple[float, float] | None = None
    """The values that the file itself calls black and white."""
    cut: bool = False
    """Whether the pixels are those of the box alone."""


class Size(NamedTuple):
    """How large a file is."""

    slices: int
    """1 for a file that is one picture."""
    rows: int
    columns: int
    spacing: str = ""
    """Distance of neighbouring slices, rows and columns in millimetres, separated by spaces, where the file says it."""
    directions: str = ""
    """Where the axes of the array lead in the body, where the file says it: `RAS` for right, anterior, superior."""


class Refused(ValueError):
    """A sound file that is not read; one sentence says why."""


class OtherKind(ValueError):
    """A damaged file, or one of another format than its name says."""


def needs_extra(package: str, what: str, error: ImportError) -> PipelineError:
    """Returns what to raise where a package of the extra `medical` is missing."""
    return PipelineError(f"{what} needs {package}, which is not installed ({error}): pip install '.[medical]'.")


def along_axis(array: np.ndarray, wanted: Wanted, usual: int) -> np.ndarray:
    """Returns the wanted slice of an array, or the array where none is wanted, without reading more of it.

    Raises:
        ValueError: the array has no such axis or slice.
    """
    if wanted.slice is None:
        return array
    axis = usual if wanted.axis is None else wanted.axis
    if array.ndim < 3 or axis >= array.ndim:
        raise Refused(f"has shape {array.shape}; expected a volume of slices along axis {axis}")
    if wanted.slice >= array.shape[axis]:
        raise Refused(f"holds {array.shape[axis]} slices along axis {axis}; slice {wanted.slice} does not exist")
    return array[(slice(None),) * (axis % array.ndim) + (wanted.slice,)]


def size_along(shape: tuple[int, ...], axis: int | None, usual: int | None, spacing: str = "") -> Size:
    """Returns the size of an array of this shape whose slices lie along `axis`; of one picture where both are None."""
    chosen = usual if axis is None else axis
    if chosen is None or len(shape) < 3:
        return Size(1, shape[0], (*shape, 1)[1], spacing)
    left = [length for number, length in enumerate(shape) if number != chosen % len(shape)]
    return Size(shape[chosen], left[0], left[1], spacing)
