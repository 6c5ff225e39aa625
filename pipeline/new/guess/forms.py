"""Examines the content of image files of any format: a picture, channels, slices of a volume, and the number format."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from pipeline.decode.formats import numpy_arrays, raster
from pipeline.decode.formats.base import Refused, Size, Stored, Wanted
from pipeline.decode.formats.registry import BY_SUFFIX, measure, read_stored, suffix_of
from pipeline.decode.readers.files import evenly, read_image
from pipeline.masks.windows import Box

HUGE = 6000 * 6000
"""Number of pixels above which images are cut into windows."""
SLICES = 6
"""Number of slices of a volume that are examined."""
LOOKED_AT = 4 * 1024 * 1024
"""Maximum number of pixels of a picture that are examined; of a larger one, evenly spaced pixels."""
MOST_CHANNELS = 32
VOLUMES = 8
"""Maximum number of volumes that are examined."""
_BOX = 2048


@dataclass(frozen=True)
class Form:
    """The content of an image file."""

    rows: int
    columns: int
    channels: int
    """Length of the last axis; of the first axis if `first` is true."""
    dtype: np.dtype
    slices: int = 1
    """Number of slices in the file."""
    axis: int | None = None
    """Axis of the slices, if it is not the usual one of the format."""
    first: bool = False
    """Whether the axes are channels × rows × columns or slices × rows × columns; the masks tell which of the two."""
    window: tuple[float, float] | None = None
    """The values that the file itself declares as black and white."""

    @property
    def is_huge(self) -> bool:
        """Whether a picture is too large to be processed as a whole."""
        return self.rows * self.columns > HUGE


def is_plain(path: Path) -> bool:
    """Returns whether a file's format can only contain one picture of 8 or 16 bits, such as PNG or JPEG."""
    return BY_SUFFIX.get(suffix_of(path), raster) is raster


def form_of(path: Path) -> Form | None:
    """Returns the content of a file; None if it cannot be read.

    Raises:
        PipelineError: its format needs a package that is not installed.
    """
    stat = path.stat()
    return _form(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=512)
def _form(path: Path, size: int, modified: int) -> Form | None:
    """The content of a file. Its size and modification time are part of the cache key."""
    try:
        if suffix_of(path) in numpy_arrays.SUFFIXES:
            array = numpy_arrays.load(path, None)
            return of_shape(array.shape, array.dtype)
        if is_plain(path):
            return _of_picture(_read(path))
        flat = measure(path)
        if flat.rows * flat.columns > HUGE:
            part = _read(path, box=_middle(flat))
            return _of_picture(part, flat)
        try:
            return _of_picture(_read(path))
        except Refused:
            whole = measure(path, volume=True)
            if whole.slices < 2:
                return None
            picture = _of_picture(_read(path, whole.slices // 2))
            return Form(whole.rows, whole.columns, picture.channels, picture.dtype, whole.slices, window=picture.window)
    except ValueError:
        return None


def of_shape(shape: tuple[int, ...], dtype: np.dtype) -> Form | None:
    """Returns the content of an array of this shape; None if it is neither a picture nor a volume."""
    while len(shape) > 3 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) == 2:
        return Form(*shape, 1, dtype)
    if len(shape) != 3:
        return None
    first, second, last = shape
    if last in (1, 3, 4) or (last <= MOST_CHANNELS and last < min(first, second)):
        return Form(first, second, last, dtype)
    if first <= MOST_CHANNELS and first < min(second, last):
        return Form(second, last, first, dtype, slices=first, first=True)
    if first == second != last:
        return Form(first, second, 1, dtype, slices=last, axis=2)
    return Form(second, last, 1, dtype, slices=first)


def size_of(path: Path) -> tuple[int, int] | None:
    """Returns rows and columns of a file's picture, from its header; None if it cannot be read."""
    try:
        if suffix_of(path) in numpy_arrays.SUFFIXES:
            array = numpy_arrays.load(path, None)
            form = of_shape(array.shape, array.dtype)
            return (form.rows, form.columns) if form else None
        size = measure(path, volume=True)
    except ValueError:
        return None
    return (size.rows, size.columns) if size.rows else None


def values_of(path: Path, as_mask: bool = False) -> np.ndarray:
    """Returns sampled values (H, W, C) of a file in its own number format; those of masks are whole numbers.

    Of a volume, some slices are stacked along the rows. Of a huge image, the middle or some rows and columns are
    returned.

    Raises:
        ValueError: the file cannot be read, or is a mask with values that are not whole numbers from 0 to 65535.
        PipelineError: its format needs a package that is not installed.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error
    return _values(path, as_mask, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=24)
def _values(path: Path, as_mask: bool, size: int, modified: int) -> np.ndarray:
    if is_plain(path):
        image = read_image(path, as_mask=as_mask)
        step = max(1, round((image.shape[0] * image.shape[1] / LOOKED_AT) ** 0.5))
        return image[::step, ::step]
    form = form_of(path)
    if form is None:
        return read_image(path, as_mask=as_mask)  # raises the error
    if form.is_huge and form.slices == 1:
        pixels = _read(path, box=_middle(Size(1, form.rows, form.columns)), alpha=as_mask).pixels
    elif form.slices > 1 and not form.first:
        numbers = evenly(range(form.slices), SLICES + 2)[1:-1] or [0]
        pixels = np.concatenate([_read(path, number, form.axis, alpha=as_mask).pixels for number in numbers])
    else:
        pixels = _read(path, alpha=as_mask).pixels
        if form.first and pixels.ndim == 3:  # an axis of length 1 in front is left out
            pixels = np.concatenate(list(pixels)) if as_mask else np.moveaxis(pixels, 0, -1)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if not as_mask or pixels.dtype in (np.uint8, np.uint16):
        return pixels
    if (
        not np.isfinite(pixels).all()
        or not 0 <= float(pixels.min()) <= float(pixels.max()) <= 65535
        or (pixels % 1).any()
    ):
        raise ValueError(f"holds {pixels.dtype} pixels; expected whole numbers from 0 to 65535")
    return pixels.astype(np.uint16)


def some_of(paths: Iterable[Path], count: int) -> list[Path]:
    """Returns up to `count` evenly spaced files, fewer if they are volumes, which take long to read."""
    known = list(paths)
    volumes = bool(known) and not is_plain(known[0]) and (form := form_of(known[0])) is not None and form.slices > 1
    return evenly(known, min(count, VOLUMES) if volumes else count)


def _read(
    path: Path, number: int | None = None, axis: int | None = None, box: Box | None = None, alpha: bool = False
) -> Stored:
    stored = read_stored(path, Wanted(lambda shape: None, alpha, number, axis, box))
    if box is not None and not stored.cut:
        return stored._replace(pixels=stored.pixels[box[0] : box[2], box[1] : box[3]])
    return stored


def _middle(size: Size) -> Box:
    """The window in the middle of a picture."""
    top, left = max(0, (size.rows - _BOX) // 2), max(0, (size.columns - _BOX) // 2)
    return top, left, min(size.rows, top + _BOX), min(size.columns, left + _BOX)


def _of_picture(stored: Stored, size: Size | None = None) -> Form:
    rows, columns, *channels = stored.pixels.shape
    if size is not None:
        rows, columns = size.rows, size.columns
    return Form(rows, columns, (channels or [1])[0], stored.pixels.dtype, window=stored.value_range)
