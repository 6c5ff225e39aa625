"""Reading of image files and tables of competitions."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from pipeline.core.config.competition import Orientation
from pipeline.core.config.raw_images import MOST_CHANNELS, Range
from pipeline.core.errors import PipelineError
from pipeline.core.tables import as_packed, column_names, read_csv, read_header
from pipeline.core.version import program
from pipeline.decode.formats import registry
from pipeline.decode.formats.base import Stored, Wanted
from pipeline.decode.formats.raster import TooLarge
from pipeline.decode.readers import remarks
from pipeline.masks.windows import Box

Element = TypeVar("Element")
SUFFIXES = registry.SUFFIXES
"""File name endings that `read_image` supports."""
LARGEST_IMAGE = 2**28
"""Maximum number of pixels of an image that is decoded as a whole. Several images are decoded at the same time."""


def read_image(
    path: Path,
    channels: int | None = None,
    orientation: Orientation = "upright",
    value_range: Range | list[Range] | None = None,
    as_mask: bool = False,
    channels_first: bool = False,
    pick: tuple[int, ...] = (),
    slice_number: int | None = None,
    axis: int | None = None,
    box: Box | None = None,
    key: str | None = None,
) -> np.ndarray:
    """Returns an image (H, W, C) uint8 or uint16, or float16 from 0 to 1 if the file holds floats. C is 1, 3 (RGB) or,
    if `channels` is set, up to 32.

    The format is determined by the content of the file, not by its name.

    Without `channels`, a fourth channel is removed. Palettes, CMYK, YCbCr, WhiteIsZero and MONOCHROME1 are converted to
    what a viewer shows, and 1-bit pixels to 0 and 255. ICC profiles are not applied. Remarks are noted in `remarks`.

    Args:
        path: the file.
        channels: the number of channels in the competition's YAML.
        orientation: whether the EXIF orientation is applied (`upright`) or ignored (`stored`).
        value_range: lowest and highest value, or one such pair per channel. They are scaled to the range of uint8 for
            uint8 files, to 0 to 1 for float files, and to the range of uint16 for all others, which may have any number
            format.
        as_mask: whether transparency is kept as a fourth channel, also for grey files, and whole numbers from 0 to
            65535 are accepted in any number format.
        channels_first: whether arrays with three axes are (C, H, W).
        pick: the channels that are kept; () keeps all.
        slice_number: the number of the slice of a volume.
        axis: the axis of the array along which slices lie; None: the usual axis of the format.
        box: a part of the image. Only this part is read if the format allows it.
        key: the name of the array in a file that holds several.

    Raises:
        ValueError: the file cannot be read completely, is too large, or holds something else.
    """
    if not path.exists():
        raise ValueError("does not exist")
    if not path.is_file():
        raise ValueError("is not a file")
    pair = value_range if isinstance(value_range, tuple) else None
    wanted = Wanted(_check_size, as_mask, slice_number, axis, None if channels_first else box, pair, key)
    stored = registry.read_stored(path, wanted)
    if not stored.pixels.size:
        raise ValueError(f"holds no pixels: its shape is {'×'.join(map(str, stored.pixels.shape))}")
    image, turn = _cut(stored, path, channels_first, box), stored.orientation
    image = _in_range(image, value_range or (None if as_mask else stored.value_range), path, as_mask)
    image = image[..., None] if image.ndim == 2 else image
    if pick:
        image, channels = _picked(image, pick), len(pick)
    image = _checked_channels(image, channels)
    if turn in _TURNS and orientation == "upright":
        image = np.ascontiguousarray(_TURNS[turn](image))
    return image if as_mask or channels is not None and image.shape[2] == channels else image[..., :3]


def _in_range(image: np.ndarray, known: Range | list[Range] | None, path: Path, as_mask: bool) -> np.ndarray:
    """Returns the pixels scaled to a known range, or the whole numbers of a mask; raises ValueError if they are
    neither."""
    if known is not None:
        image = scaled(image, known, path)
    if as_mask and image.dtype not in (np.uint8, np.uint16):
        image = _whole_numbers(image)
    _check_numbers(image, known is not None)
    return image


def _check_numbers(image: np.ndarray, scaled_to_range: bool) -> None:
    usual = image.dtype in (np.uint8, np.uint16) or (image.dtype == np.float16 and scaled_to_range)
    if not usual:
        raise OtherNumbers(f"holds {image.dtype} pixels{_range_of(image)}; expected uint8 or uint16")


def _cut(stored: Stored, path: Path, channels_first: bool, box: Box | None) -> np.ndarray:
    """Returns the pixels of a box, with channels last."""
    image, turned = stored.pixels, stored.orientation in _TURNS
    if channels_first and image.ndim == 3:
        image = np.ascontiguousarray(np.moveaxis(image, 0, -1))
    if turned:
        remarks.note("turned", path)
    if box is None or stored.cut:
        return image
    if turned:
        raise ValueError(
            "is stored turned (EXIF orientation), and windows of such files are not supported: save it upright"
        )
    return image[box[0] : box[2], box[1] : box[3]]


def _picked(image: np.ndarray, pick: tuple[int, ...]) -> np.ndarray:
    if image.ndim != 3 or image.shape[2] <= max(pick):
        raise ValueError(f"has shape {image.shape}; channels.pick asks for channel {max(pick)}, counted from 0")
    return np.ascontiguousarray(image[..., list(pick)])


def _checked_channels(image: np.ndarray, channels: int | None) -> np.ndarray:
    """Returns the image, if its number of channels is allowed."""
    if image.ndim != 3 or not 1 <= image.shape[2] <= MOST_CHANNELS:
        expected = f"expected rows × columns, grey, RGB or up to {MOST_CHANNELS} channels"
        raise ValueError(f"has shape {image.shape}; {expected}")
    count = image.shape[2]
    if channels is None and count not in (1, 3, 4):
        raise ValueError(
            f"has shape {image.shape}; expected rows × columns, grey, RGB or four channels; `channels: {count}` in the "
            "competition's YAML reads them all"
        )
    convertible = count in (1, 3, 4) and channels in (None, 1, 3)  # grey to RGB and back, and without alpha
    if count != channels and not convertible:
        raise ValueError(f"has {count} channels; the competition's YAML says {channels}")
    return image


class OtherNumbers(ValueError):
    """Raised for pixels that are neither uint8 nor uint16, which the setting `value_range` would convert."""


def scaled(image: np.ndarray, value_range: Range | list[Range], path: Path) -> np.ndarray:
    """Returns pixels scaled from a range, or from one range per channel.

    uint8 pixels are scaled to the range of uint8, floats to 0 to 1 as float16, and all others to the range of uint16.
    Values outside the range are clipped, which is noted in `remarks`.

    Raises:
        ValueError: pixels are not finite numbers, or the number of channels differs from the number of ranges.
    """
    if image.dtype.kind not in "uif" or not np.isfinite(image).all():
        raise ValueError(
            f"holds {'NaN or infinite' if image.dtype.kind == 'f' else image.dtype} pixels; expected finite numbers"
        )
    low, high = np.asarray(value_range, np.float64).T
    if low.ndim and (image.ndim != 3 or image.shape[2] != len(low)):
        raise ValueError(f"has shape {image.shape}; value_range has {len(low)} ranges, and needs one per channel")
    if image.size and ((image < low).any() or (image > high).any()):
        remarks.note("clipped", path)
    dtype = np.uint8 if image.dtype == np.uint8 else np.uint16
    shares = (image.astype(np.float32) - low.astype(np.float32)) / (high - low).astype(np.float32)
    if image.dtype.kind == "f":
        return shares.clip(0, 1).astype(np.float16)
    return np.rint(shares.clip(0, 1) * np.iinfo(dtype).max).astype(dtype)


def _whole_numbers(image: np.ndarray) -> np.ndarray:
    """Returns the same values as uint8 or uint16."""
    highest = np.iinfo(np.uint16).max
    numbers = image.dtype.kind in "uif" and bool(np.isfinite(image).all())
    if not numbers or float(image.min()) < 0 or float(image.max()) > highest or (image % 1).any():
        raise OtherNumbers(
            f"holds {image.dtype} pixels{_range_of(image)}; expected uint8 or uint16, or whole numbers from 0 to "
            f"{highest}: save it as uint8 or uint16"
        )
    return image.astype(np.uint8 if image.max() <= np.iinfo(np.uint8).max else np.uint16)


def _range_of(image: np.ndarray) -> str:
    if image.dtype.kind not in "uif" or not image.size or not np.isfinite(image).all():
        return ""
    return f" from {image.min():.6g} to {image.max():.6g}"


def read_table(
    path: Path,
    needed: list[str],
    hint: str = "; the competition's YAML names it",
    only: bool = False,
    section: str = "columns",
) -> pd.DataFrame:
    """Returns the table in a CSV file with all values as text, and empty fields as "". The index plus 2 is the row
    number in the file, which includes blank lines.

    Args:
        path: the file.
        needed: the columns that it must have.
        hint: the text after "… does not exist".
        only: whether only the needed columns are read.
        section: the section of the competition's YAML that names the columns.

    Raises:
        PipelineError: the file does not exist or is not a CSV file, a row is too short or too long, a column is
            repeated, or a needed column is missing.
    """
    if not as_packed(path).exists():
        raise PipelineError(f"{path} does not exist{hint}{packed(path.parent)}.")
    table = read_csv(path, needed if only else None)
    missing = [column for column in needed if column not in table.columns]
    if missing:
        header = read_header(path)
        raise PipelineError(
            f"{path.name}: column {column_names(missing, '`')} is missing; found {column_names(header, '`')}. Correct "
            f"`{section}` in the YAML or the file."
        )
    return table


def packed(folder: Path, known: bool = True) -> str:
    """Returns the end of a sentence about missing files if their folder holds archives; otherwise "". `known`: whether
    the files belong to a competition that has a YAML."""
    names = [path.name for path in sorted(folder.glob("*.zip"))]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    if not names:
        return ""
    way = f" (`{program()} download COMPETITION` unpacks it into work/)" if known else ""
    return f"; {', '.join(names[:3])}{more} there: unzip the archives{way}"


def evenly(elements: Iterable[Element], count: int) -> list[Element]:
    """Returns up to `count` evenly spaced elements."""
    known = list(elements)
    places = np.linspace(0, len(known) - 1, min(count, len(known))).round().astype(int)
    return [known[place] for place in places]


def natural(name: str) -> list[tuple[int, int, str]]:
    """Returns a sort key that puts a2 before a10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]


_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: image[::-1].swapaxes(0, 1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: image[:, ::-1].swapaxes(0, 1),
}
"""The operation that makes an image with this EXIF orientation upright."""


def _check_size(shape: tuple[int, ...]) -> None:
    if len(shape) >= 2 and shape[0] * shape[1] > LARGEST_IMAGE:
        raise TooLarge(
            f"is {shape[0]}×{shape[1]}; an image that is decoded as a whole may have at most {LARGEST_IMAGE // 2**20} "
            f"Mi pixels (16384×16384): `windows: {{}}` in the competition's YAML cuts a TIFF or .npy into windows"
        )
