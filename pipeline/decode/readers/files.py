"""Image files and tables, as competitions use them."""

import io
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import pandas as pd
from PIL.GifImagePlugin import GifImageFile
from PIL.Image import DecompressionBombError
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from pipeline.core.config.competition import Orientation
from pipeline.core.errors import PipelineError
from pipeline.core.tables import as_packed, column_names, read_csv, read_header
from pipeline.core.version import program
from pipeline.decode.readers import remarks
from pipeline.decode.readers.tiff import NoTiff, Refused, is_tiff, read_tiff

Element = TypeVar("Element")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif")
"""Endings of files that `read_image` reads."""
LARGEST_IMAGE = 2**28
"""Pixels; an image is decoded as a whole, several at a time."""


def read_image(
    path: Path,
    channels: int | None = None,
    orientation: Orientation = "upright",
    value_range: tuple[float, float] | None = None,
    as_mask: bool = False,
) -> np.ndarray:
    """Returns an image file as (H, W, C) uint8 or uint16; C is 1, 3 (RGB) or, where `channels` is 4, 4.

    What kind of file it is, its content says, not its name.

    A fourth channel is left out otherwise. Palettes, CMYK, YCbCr and WhiteIsZero come as a viewer shows them, and
    pixels of one bit as 0 and 255; ICC profiles are not applied. What a person should know of the file goes to
    `remarks`.

    Args:
        path: the file.
        channels: what the competition's YAML says.
        orientation: whether the EXIF orientation is followed, or pixels are left as they are stored.
        value_range: lowest and highest value, scaled to the range of uint8 files, or of uint16 for all others, which
            may then be of any number format.
        as_mask: whether transparency is kept as a fourth channel where there is one, that of grey files too, and
            whole numbers from 0 to 65535 are read in every number format.

    Raises:
        ValueError: one sentence, when the file cannot be read whole, is too large, or holds something else.
    """
    if not path.exists():
        raise ValueError("does not exist")
    image, turn = _stored(path, as_mask)
    if value_range is not None:
        image = scaled(image, value_range, path)
    if as_mask and image.dtype not in (np.uint8, np.uint16):
        image = _whole_numbers(image)
    if image.dtype not in (np.uint8, np.uint16):
        raise OtherNumbers(f"holds {image.dtype} pixels{_range_of(image)}; expected uint8 or uint16")
    image = image[..., None] if image.ndim == 2 else image
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4):
        raise ValueError(f"has shape {image.shape}; expected rows × columns, grey, RGB or four channels")
    if channels == 4 and image.shape[2] != 4:
        raise ValueError(f"has {image.shape[2]} channels; the competition's YAML says 4")
    if turn in _TURNS:
        remarks.note("turned", path)
        image = np.ascontiguousarray(_TURNS[turn](image)) if orientation == "upright" else image
    return image if channels == 4 or as_mask else image[..., :3]


class OtherNumbers(ValueError):
    """Pixels that are neither uint8 nor uint16; `value_range` could make them that."""


def scaled(image: np.ndarray, value_range: tuple[float, float], path: Path) -> np.ndarray:
    """Returns pixels scaled from a range to that of uint8, where they are that, or of uint16; what lies outside is
    clipped, which is noted in `remarks`.

    Raises:
        ValueError: pixels that are no numbers.
    """
    if image.dtype.kind not in "uif" or not np.isfinite(image).all():
        raise ValueError(f"holds {'NaN or infinite' if image.dtype.kind == 'f' else image.dtype} pixels, no numbers")
    low, high = value_range
    if image.size and (image.min() < low or image.max() > high):
        remarks.note("clipped", path)
    dtype = np.uint8 if image.dtype == np.uint8 else np.uint16
    shares = (image.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    return np.rint(shares.clip(0, 1) * np.iinfo(dtype).max).astype(dtype)


def _whole_numbers(image: np.ndarray) -> np.ndarray:
    """The same values as uint8 or uint16."""
    highest = np.iinfo(np.uint16).max
    numbers = image.dtype.kind in "uif" and bool(np.isfinite(image).all())
    if not numbers or float(image.min()) < 0 or float(image.max()) > highest or (image % 1).any():
        raise OtherNumbers(
            f"holds {image.dtype} pixels{_range_of(image)}; expected uint8 or uint16, or whole numbers from 0 to "
            f"{highest}: save it as uint8"
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


def _stored(path: Path, alpha: bool) -> tuple[np.ndarray, int]:
    """The pixels of a file in the order in which they are stored, and its EXIF orientation."""
    if path.suffix.lower() in (".tif", ".tiff"):
        try:
            return read_tiff(path, _check_size, alpha)
        except NoTiff:
            if not cv2.haveImageReader(str(path)):
                raise
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error
    return read_tiff(path, _check_size, alpha) if is_tiff(data) else _read_with_opencv(path, data)


def _read_with_opencv(path: Path, data: bytes) -> tuple[np.ndarray, int]:
    # a file that is cut short would otherwise come with a grey lower half
    if not _ends(data, path.suffix.lower()):
        raise ValueError("cannot be read whole, it is damaged or truncated")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE" in str(error):
            raise TooLarge("is larger than an image may be here") from None
        image = None
    if image is None:
        raise ValueError("is not an image that can be read")
    _check_size(image.shape)
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA if image.shape[2] == 4 else cv2.COLOR_BGR2RGB)
    orientation, frames = _described(data)
    if frames > 1:
        remarks.note("frames", path)
    if data.startswith(b"GIF8") and (frames > 1 or image.shape[-1] == 4):  # OpenCV blends what is transparent
        try:
            with _plugin(data)(io.BytesIO(data)) as file:
                image = np.array(file.convert("RGBA" if image.shape[-1] == 4 else "RGB"))
        except Exception as error:  # of which OpenCV read what was there
            raise ValueError(f"cannot be read whole, it is damaged or truncated ({type(error).__name__})") from error
    return image, orientation


def _described(data: bytes) -> tuple[int, int]:
    """The EXIF orientation and the number of frames of a file; Pillow reads them where a mark says that there may be
    one or the other."""
    is_jpeg = data.startswith(b"\xff\xd8")
    marked = (
        (data.startswith(b"\x89PNG") and _png_describes(data))
        or (is_jpeg and any(mark in data[:_HEAD] for mark in _JPEG_MARKS))
        or (data.startswith(b"RIFF") and data[12:16] == b"VP8X")
        or data.startswith(b"GIF8")
    )
    if not marked:
        return 1, 1
    try:
        with _plugin(data)(io.BytesIO(data)) as file:
            orientation = file.getexif().get(_ORIENTATION, 1)
            frames = 1 if is_jpeg else getattr(file, "n_frames", 1)  # a camera's preview is none
        return int(orientation), int(frames)
    except DecompressionBombError:  # only of WebP and GIF
        raise TooLarge("is larger than an image may be here") from None
    except Exception:  # damaged remarks beside pixels that were read well
        return 1, 1


def _plugin(data: bytes) -> type[ImageFile]:
    """Pillow's reader of a file; `Image.open` would refuse large images."""
    plugins = {b"\x89P": PngImageFile, b"\xff\xd8": JpegImageFile, b"RI": WebPImageFile, b"GI": GifImageFile}
    return plugins[data[:2]]


def _png_describes(data: bytes) -> bool:
    """Whether a PNG has a chunk that may hold an orientation or frames; pixels are not searched, which takes longer."""
    place = 8
    while place + 8 <= len(data):
        name = data[place + 4 : place + 8]
        if name in (b"eXIf", b"acTL") or data.startswith(_PNG_TEXTS, place + 8):
            return True
        place += 12 + int.from_bytes(data[place : place + 4], "big")
    return False


_ORIENTATION = 0x0112
_HEAD = 2**18
_PNG_TEXTS = (b"Raw profile type ", b"XML:com.adobe.xmp")
_JPEG_MARKS = (b"Exif\0\0", b"iff:Orientation")


def _ends(data: bytes, suffix: str) -> bool:
    """Whether a PNG or JPEG holds the mark of its end, whatever follows that; by its content, since names lie."""
    stub = suffix if len(data) < 8 else ""
    if data.startswith(b"\x89PNG") or stub == ".png":
        return b"IEND" in data
    if data.startswith(b"\xff\xd8") or stub in (".jpg", ".jpeg"):
        return b"\xff\xd9" in data[max(0, data.rfind(b"\xff\xda")) :]  # behind the last scan: a thumbnail has its own
    return True


class TooLarge(Refused):
    """An image of more pixels than are decoded as a whole."""


def _check_size(shape: tuple[int, ...]) -> None:
    if len(shape) >= 2 and shape[0] * shape[1] > LARGEST_IMAGE:
        raise TooLarge(
            f"is {shape[0]}×{shape[1]}; an image is decoded as a whole and may have {LARGEST_IMAGE // 2**20} Mi pixels "
            "(16384×16384): cut it into parts first"
        )
