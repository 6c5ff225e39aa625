"""Image files and tables, as competitions use them."""

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
"""Endings of files that `read_image` reads."""
LARGEST_IMAGE = 2**28
"""Pixels of an image that is decoded as a whole, several at a time."""


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
    """Returns an image file as (H, W, C) uint8 or uint16, or float16 from 0 to 1 of a file of floats; C is 1, 3 (RGB)
    or, where `channels` says so, up to 32.

    What kind of file it is, its content says, not its name.

    A fourth channel is left out otherwise. Palettes, CMYK, YCbCr, WhiteIsZero and MONOCHROME1 come as a viewer shows
    them, and pixels of one bit as 0 and 255; ICC profiles are not applied. What a person should know of the file goes
    to `remarks`.

    Args:
        path: the file.
        channels: what the competition's YAML says.
        orientation: whether the EXIF orientation is followed, or pixels are left as they are stored.
        value_range: lowest and highest value, scaled to the range of uint8 files, to 0 to 1 of files of floats, or to
            the range of uint16 for all others, which may then be of any number format; or such a pair per channel.
        as_mask: whether transparency is kept as a fourth channel where there is one, that of grey files too, and
            whole numbers from 0 to 65535 are read in every number format.
        channels_first: whether arrays of three axes are (C, H, W).
        pick: the channels that are kept; () keeps all.
        slice_number: which slice of a volume.
        axis: along which axis of the array slices lie; None: as files of the format hold them.
        box: a part of the image, of which no more than that is read where the format allows it.
        key: which array of a file that holds several.

    Raises:
        ValueError: one sentence, when the file cannot be read whole, is too large, or holds something else.
    """
    if not path.exists():
        raise ValueError("does not exist")
    if not path.is_file():
        raise ValueError("is no file")
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
    """The pixels scaled to a known range, or whole numbers of a mask; raises ValueError where they are neither."""
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
    """The pixels of a box, channels last."""
    image, turned = stored.pixels, stored.orientation in _TURNS
    if channels_first and image.ndim == 3:
        image = np.ascontiguousarray(np.moveaxis(image, 0, -1))
    if turned:
        remarks.note("turned", path)
    if box is None or stored.cut:
        return image
    if turned:
        raise ValueError("is stored turned (EXIF orientation), and windows of it are not read: save it upright")
    return image[box[0] : box[2], box[1] : box[3]]


def _picked(image: np.ndarray, pick: tuple[int, ...]) -> np.ndarray:
    if image.ndim != 3 or image.shape[2] <= max(pick):
        raise ValueError(f"has shape {image.shape}; channels.pick asks for channel {max(pick)}, counted from 0")
    return np.ascontiguousarray(image[..., list(pick)])


def _checked_channels(image: np.ndarray, channels: int | None) -> np.ndarray:
    """The image, if it has as many channels as it may have."""
    if image.ndim != 3 or not 1 <= image.shape[2] <= MOST_CHANNELS:
        expected = f"expected rows × columns, grey, RGB or up to {MOST_CHANNELS} channels"
        raise ValueError(f"has shape {image.shape}; {expected}")
    found = image.shape[2]
    if channels is None and found not in (1, 3, 4):
        raise ValueError(
            f"has shape {image.shape}; expected rows × columns, grey, RGB or four channels; `channels: {found}` in the "
            "competition's YAML reads them all"
        )
    convertible = found in (1, 3, 4) and channels in (None, 1, 3)  # grey to RGB and back, and without alpha
    if found != channels and not convertible:
        raise ValueError(f"has {found} channels; the competition's YAML says {channels}")
    return image


class OtherNumbers(ValueError):
    """Pixels that are neither uint8 nor uint16; `value_range` could make them that."""


def scaled(image: np.ndarray, value_range: Range | list[Range], path: Path) -> np.ndarray:
    """Returns pixels scaled from a range, or from one per channel, to that of uint8, where they are that, to 0 to 1 as
    float16, where they are floats, or to that of uint16; what lies outside is clipped, which is noted in `remarks`.

    Raises:
        ValueError: pixels that are no numbers, or another number of channels than of ranges.
    """
    if image.dtype.kind not in "uif" or not np.isfinite(image).all():
        raise ValueError(f"holds {'NaN or infinite' if image.dtype.kind == 'f' else image.dtype} pixels, no numbers")
    low, high = np.asarray(value_range, np.float64).T
    if low.ndim and (image.ndim != 3 or image.shape[2] != len(low)):
        raise ValueError(f"has shape {image.shape}; value_range gives {len(low)} ranges, one per channel")
    if image.size and ((image < low).any() or (image > high).any()):
        remarks.note("clipped", path)
    dtype = np.uint8 if image.dtype == np.uint8 else np.uint16
    shares = (image.astype(np.float32) - low.astype(np.float32)) / (high - low).astype(np.float32)
    if image.dtype.kind == "f":
        return shares.clip(0, 1).astype(np.float16)
    return np.rint(shares.clip(0, 1) * np.iinfo(dtype).max).astype(dtype)


def _whole_numbers(image: np.ndarray) -> np.ndarray:
    """The same values as uint8 or uint16."""
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
    """Returns a CSV with every value as text, an empty field as ""; all of its columns, or the `needed` ones `only`. An
    index + 2 is the row of the file, blank lines counted.

    Args:
        path: the file.
        needed: columns that it must have.
        hint: what follows "… does not exist".
        only: whether to read these columns alone.
        section: what in the competition's YAML names them.

    Raises:
        PipelineError: no such file, not a CSV, a row cut short or too long, a repeated column, or one of the
            `needed` columns is missing.
    """
    if not as_packed(path).exists():
        raise PipelineError(f"{path} does not exist{hint}{packed(path.parent)}.")
    table = read_csv(path, needed if only else None)
    missing = [column for column in needed if column not in table.columns]
    if missing:
        found = read_header(path)
        raise PipelineError(
            f"{path.name}: column {column_names(missing, '`')} is missing; found {column_names(found, '`')}. Correct "
            f"`{section}` in the YAML or the file."
        )
    return table


def packed(folder: Path, known: bool = True) -> str:
    """Returns the end of a sentence about files that a folder lacks, where it holds archives; else "". `known`: whether
    they are those of a competition that has a YAML."""
    names = [path.name for path in sorted(folder.glob("*.zip"))]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    if not names:
        return ""
    way = f" (`{program()} download COMPETITION` unpacks it into work/)" if known else ""
    return f"; {', '.join(names[:3])}{more} there: unzip what is still packed{way}"


def evenly(elements: Iterable[Element], count: int) -> list[Element]:
    """Returns up to `count` elements at even distances."""
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
"""What makes an image of this EXIF orientation upright."""


def _check_size(shape: tuple[int, ...]) -> None:
    if len(shape) >= 2 and shape[0] * shape[1] > LARGEST_IMAGE:
        raise TooLarge(
            f"is {shape[0]}×{shape[1]}; an image that is decoded as a whole may have {LARGEST_IMAGE // 2**20} Mi "
            "pixels (16384×16384): `windows: {}` in the competition's YAML cuts a TIFF or .npy into windows"
        )
