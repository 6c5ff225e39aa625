"""The interface of image file formats.

A format is a module with `SUFFIXES`, the endings of its files; `starts(head)`, which returns whether a file that starts
with these bytes has this format, regardless of its name; `read(path, wanted)`, which reads one picture of a file; and
`measure(path, axis, volume)`, which returns its size.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pipeline.core.errors import PipelineError
from pipeline.masks.windows import Box

HEAD = 132
"""Number of bytes at the start of a file that identify its format."""


class Wanted(NamedTuple):
    """The part of a file to read, and how to read it."""

    check_size: Callable[[tuple[int, ...]], None]
    """A function that raises ValueError for a shape (rows, columns, …) that is too large to be read as a whole."""
    alpha: bool = False
    """Whether grey pixels with transparency are returned as (H, W, 4) instead of (H, W)."""
    slice: int | None = None
    """The number of the slice of a volume, along `axis`; None: the file is one picture."""
    axis: int | None = None
    """The axis along which slices lie; None: the usual axis of the format."""
    box: Box | None = None
    """A part of the picture. A format that cannot read parts returns the whole picture with `Stored.cut` False."""
    value_range: tuple[float, float] | None = None
    """The values of black and white, if the competition's YAML sets them."""
    key: str | None = None
    """The name of the array in a file that holds several."""


class Stored(NamedTuple):
    """A picture in the form in which it is stored."""

    pixels: np.ndarray
    """The pixels (H, W) or (H, W, C), of any number format."""
    orientation: int = 1
    """The orientation by the EXIF standard; 1: the first row is at the top."""
    value_range: tuple[float, float] | None = None
    """The values of black and white, if the file gives them."""
    cut: bool = False
    """Whether the pixels are only those of the box."""


class Size(NamedTuple):
    """The size of the picture or volume in a file."""

    slices: int
    """Number of slices; 1 for a file that is one picture."""
    rows: int
    columns: int
    spacing: str = ""
    """Distances between slices, rows and columns in millimetres, separated by spaces, if the file gives them."""
    directions: str = ""
    """The directions of the axes of the array in the body, if the file gives them, e.g. `RAS` for right, anterior,
    superior."""


class Refused(ValueError):
    """Raised for a file that is not damaged but not supported. The message says why in one sentence."""


class OtherKind(ValueError):
    """Raised for a damaged file, or for a file whose format differs from its name."""


def needs_extra(package: str, what: str, error: ImportError) -> PipelineError:
    """Returns the error for a missing package of the extra `medical`."""
    return PipelineError(f"{what} needs {package}, which is not installed ({error}): pip install '.[medical]'.")


def along_axis(array: np.ndarray, wanted: Wanted, usual: int) -> np.ndarray:
    """Returns the wanted slice of an array without reading more of it, or the array if no slice is wanted.

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
    """Returns the size of an array of this shape with slices along `axis`, or along `usual` if that is None. If both
    are None, the array is one picture."""
    chosen = usual if axis is None else axis
    if chosen is None or len(shape) < 3:
        return Size(1, shape[0], (*shape, 1)[1], spacing)
    left = [length for number, length in enumerate(shape) if number != chosen % len(shape)]
    return Size(shape[chosen], left[0], left[1], spacing)
