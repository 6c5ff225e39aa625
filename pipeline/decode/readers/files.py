"""Image files, tables and file name patterns, as competitions use them."""

import glob
import os
import re
import unicodedata
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import pandas as pd
import tifffile

from pipeline.core.errors import PipelineError
from pipeline.core.tables import normal_form, read_csv, read_header

Element = TypeVar("Element")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif")
"""Endings of files that `read_image` reads."""
LARGEST_IMAGE = 2**28
"""Pixels; an image is decoded as a whole, several at a time."""


def read_image(path: Path, channels: int | None = None) -> np.ndarray:
    """Returns an image file as (H, W, C) uint8 or uint16; C is 1, 3 (RGB) or, where `channels` is 4, 4.

    A fourth channel is left out otherwise. CMYK files come as RGB, whatever the file's name says about its format.

    Raises:
        ValueError: one sentence, when the file cannot be read whole, is too large, or holds something else.
    """
    if not path.exists():
        raise ValueError("does not exist")
    image = _read_tiff(path) if path.suffix.lower() in (".tif", ".tiff") else _read_with_opencv(path)
    if image.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"holds {image.dtype} pixels; expected uint8 or uint16")
    image = image[..., None] if image.ndim == 2 else image
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4):
        raise ValueError(f"has shape {image.shape}; expected rows × columns, grey, RGB or four channels")
    if channels == 4 and image.shape[2] != 4:
        raise ValueError(f"has {image.shape[2]} channels; the competition's YAML says 4")
    return image if channels == 4 else image[..., :3]


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
    if not path.exists():
        raise PipelineError(f"{path} does not exist{hint}{packed(path.parent)}.")
    table = read_csv(path, needed if only else None)
    missing = [column for column in needed if column not in table.columns]
    if missing:
        found = read_header(path)
        raise PipelineError(
            f"{path.name}: column {', '.join(f'`{name}`' for name in missing)} is missing; found "
            f"{', '.join(f'`{name}`' for name in found)}. Correct `{section}` in the YAML or the file."
        )
    return table


def find_images(pattern: str, folder: Path, exclude: list[str]) -> tuple[dict[str, Path], list[tuple[str, Path]]]:
    """Returns the files under `folder` that match a pattern such as `train/{id}.png` or `{id}/images/{id}.png`, by id,
    and further files of an id that has one already.

    Hidden files (`._x`, `.DS_Store`) never match.
    """
    expression = re.compile(
        re.escape(pattern).replace(r"\{id\}", "(?P<id>[^/]+)", 1).replace(r"\{id\}", "(?P=id)").replace(r"\*", "[^/]*")
    )
    found: dict[str, Path] = {}
    further: list[tuple[str, Path]] = []
    for path in sorted(folder.glob(glob_pattern(pattern.replace("{id}", "*")))):
        match = expression.fullmatch(path.relative_to(folder).as_posix())
        excluded = path.name.startswith(".") or any(fnmatch(path.name, other) for other in exclude)
        image_id = normal_form(match["id"]) if match else ""
        if match and not excluded and found.setdefault(image_id, path) != path:
            further.append((image_id, path))
    return found, further


def as_on_disk(folder: Path, file: str) -> Path:
    """Returns the path of a file in a folder, where its name on the disk may have the composed or the decomposed form
    of what `file` says."""
    path = folder / file
    if file.isascii() or path.exists():
        return path
    for form in ("NFC", "NFD"):
        if (other := folder / unicodedata.normalize(form, file)).exists():
            return other
    for part in Path(file).parts:  # forms mixed in one path
        names = os.listdir(folder) if folder.is_dir() else []
        folder /= next((name for name in names if normal_form(name) == normal_form(part)), part)
    return folder


def packed(folder: Path) -> str:
    """Returns the end of a sentence about files that a folder lacks, where it holds archives; else ""."""
    names = [path.name for path in sorted(folder.glob("*.zip"))]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"; {', '.join(names[:3])}{more} there: unzip what is still packed" if names else ""


def evenly(elements: Iterable[Element], count: int) -> list[Element]:
    """Returns up to `count` elements at even distances."""
    known = list(elements)
    places = np.linspace(0, len(known) - 1, min(count, len(known))).round().astype(int)
    return [known[place] for place in places]


def glob_pattern(pattern: str) -> str:
    """Returns a pattern in which `*` alone is special: `[` and `?` may stand in names of files."""
    return "*".join(glob.escape(part) for part in pattern.split("*"))


def natural(name: str) -> list[tuple[int, int, str]]:
    """Returns a sort key that puts a2 before a10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]


def _read_tiff(path: Path) -> np.ndarray:
    try:
        with tifffile.TiffFile(path) as file:
            _check_size(tuple(sorted(file.series[0].shape)[-2:]))
            image = file.asarray()
    except TooLarge:
        raise
    except Exception as error:  # tifffile and its codecs raise whatever they like on a damaged file
        raise ValueError(f"cannot be read, it is damaged or truncated ({type(error).__name__}: {error})") from error
    if not image.size:  # what tifffile makes of a header alone
        raise ValueError("cannot be read, it is damaged or truncated: it holds no pixels")
    while image.ndim > 2 and image.shape[0] == 1:  # one page, one time, one channel
        image = image[0]
    if image.ndim == 3 and image.shape[0] in (3, 4) and image.shape[2] not in (1, 3, 4):  # plane by plane
        image = np.moveaxis(image, 0, -1)
    return image


def _read_with_opencv(path: Path) -> np.ndarray:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error
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
    return image


def _ends(data: bytes, suffix: str) -> bool:
    """Whether a PNG or JPEG holds the mark of its end, whatever follows that; by its content, since names lie."""
    stub = suffix if len(data) < 64 else ""
    if data.startswith(b"\x89PNG") or stub == ".png":
        return b"IEND" in data
    if data.startswith(b"\xff\xd8") or stub in (".jpg", ".jpeg"):
        return b"\xff\xd9" in data[max(0, data.rfind(b"\xff\xda")) :]  # behind the last scan: a thumbnail has its own
    return True


class TooLarge(ValueError):
    """An image of more pixels than are decoded as a whole."""


def _check_size(shape: tuple[int, ...]) -> None:
    if len(shape) >= 2 and shape[0] * shape[1] > LARGEST_IMAGE:
        raise TooLarge(
            f"is {shape[0]}×{shape[1]}; an image is decoded as a whole and may have {LARGEST_IMAGE // 2**20} Mi pixels "
            "(16384×16384): cut it into parts first"
        )
