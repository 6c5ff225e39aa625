"""Submissions of mask images: a zip with one PNG or TIFF per test image, or per image and class.

A volume is one TIFF with one page per slice.
"""

import io
import math
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tifffile

from pipeline.core.errors import PipelineError, first_line
from pipeline.decode.formats.base import Refused
from pipeline.decode.formats.limits import check_picture
from pipeline.decode.formats.raster import declared
from pipeline.decode.formats.tiff import check_pages
from pipeline.encode.file_kinds import member
from pipeline.masks import rle
from pipeline.predictions.format import further_columns
from pipeline.predictions.format.expected import Expected, Key, Texts

SHOWN = 5
"""The largest number of values or names in a message."""
IGNORED = (".DS_Store", "Thumbs.db", "__MACOSX")
"""Files that operating systems add to archives."""


@dataclass(frozen=True)
class Member:
    """One mask image."""

    name: str
    keys: list[list[Key]]
    """The keys of the masks of each page: one key, or in a class map one key per class that has pixels."""
    volume: bool
    """Whether it is a volume, even if it has only one page."""


@dataclass(frozen=True)
class Found:
    """The mask of one key as read from a mask image."""

    name: str
    key: Key
    text: str
    """Run lengths."""
    fault: str = ""
    """Why the mask image cannot be read; "" if it can."""
    ignored: str = ""
    """In a truth, the run lengths of the pixels that do not count."""


def members(want: Expected) -> list[Member]:
    """Returns the mask images of a submission, in the order of the test images.

    Raises:
        PipelineError: two test images have the same mask image but are not slices of one volume.
    """
    rows = want.images[want.images["subset"] == "test"]
    volumes = dict(zip(rows["image_id"], rows["of_image"], strict=True)) if "of_image" in rows else {}
    template, pages = want.settings.image or "{id}", dict[str, list[list[Key]]]()
    by_class = "{class}" in template
    for image_id in want.ids:
        numbers = want.classes if want.classed else [None]
        for group in [[number] for number in numbers] if by_class else [numbers]:
            label = want.labels[group[0] or 0]
            values = want.names[image_id] | {"id": volumes.get(image_id) or image_id, "class": label}
            name = further_columns.filled(template, values)
            pages.setdefault(name, []).append([(image_id, number) for number in group])
            if len(pages[name]) > 1 and not volumes.get(image_id):
                first = pages[name][0][0][0]
                raise PipelineError(f"submission.image gives images {first} and {image_id} the same name, {name}.")
    return [Member(name, keys, bool(volumes.get(keys[0][0][0]))) for name, keys in pages.items()]


# --- writing ---------------------------------------------------------------------------------------------------------


def write(path: Path, texts: Texts, want: Expected) -> int:
    """Writes a zip of mask images and returns their number.

    Raises:
        PipelineError: an image was not predicted.
    """
    listed = members(want)
    with zipfile.ZipFile(path, "w") as archive:
        for image in listed:
            planes = [_page(keys, texts, want) for keys in image.keys]
            pixels = np.moveaxis(np.stack(planes), 0, want.axis) if image.volume else planes[0]
            archive.writestr(member(image.name, zipfile.ZIP_STORED), encoded(image.name, pixels))
    return len(listed)


def encoded(name: str, pixels: np.ndarray) -> bytes:
    """Returns a PNG of pixels (h, w), or a TIFF with deflate compression of pixels (h, w) or (pages, h, w)."""
    if name.lower().endswith(".png"):
        return cv2.imencode(".png", pixels)[1].tobytes()
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, compression="zlib", photometric="minisblack", metadata=None, software=False)
    return buffer.getvalue()


def _page(keys: list[Key], texts: Texts, want: Expected) -> np.ndarray:
    """Returns a mask image, or one page of it, (h, w)."""
    if missing := next((key for key in keys if key not in texts), None):
        raise PipelineError(f"test id {want.name(missing)} was not decoded: decode again.")
    page = np.full(want.shapes[keys[0][0]], _background(want), _dtype(want))
    for key in keys:
        for text in texts[key]:
            page[rle.decode(text, page.shape, want.convention) == 1] = _value(key, want)
    return page


def _value(key: Key, want: Expected) -> int:
    return want.values[want.classes[0] if key[1] is None else key[1]]


def _background(want: Expected) -> int:
    """Returns the value of pixels without a class; in class maps it is the value of the first class."""
    is_class_map = 0 not in want.classes and "{class}" not in str(want.settings.image)
    return want.values[0] if is_class_map else 0


def _dtype(want: Expected) -> type[np.unsignedinteger]:
    return np.uint8 if max(want.values) < 256 else np.uint16


# --- reading ---------------------------------------------------------------------------------------------------------


def read(path: Path, want: Expected, faults: list[str], truth: bool = False) -> Iterator[Found]:
    """Yields the masks of a zip or a folder of mask images, and adds a fault for every other file to `faults`.

    A truth may contain the values of ignored pixels.

    Raises:
        PipelineError: the path is neither a zip nor a folder.
    """
    known = {image.name: image for image in members(want)}
    with _Folder(path) as folder:
        names = folder.names()
        inside = {name.split("/")[0] for name in names}
        if (
            names
            and not set(names) & set(known)
            and len(inside) == 1
            and {*known} & {name.split("/", 1)[-1] for name in names}
        ):
            faults.append(f"all mask images are in the folder {inside.pop()}/; expected {next(iter(known))} at the top")
            return
        for name in [name for name, count in Counter(names).items() if count > 1]:
            faults.append(f"{name}: occurs {names.count(name)} times in the zip")
        for name in dict.fromkeys(names):
            if name not in known:
                faults.append(f"{name}: no test image has this mask image; expected names like {next(iter(known), '')}")
        for name, image in known.items():
            if name not in names:
                continue
            try:
                pages = _pages(folder.read(name), image, want, truth)
            except ValueError as error:
                yield from (Found(name, key, "", str(error)) for keys in image.keys for key in keys)
                continue
            for keys, page in zip(image.keys, pages, strict=True):
                left_out = rle.encode(np.isin(page, want.ignored), want.convention) if truth else ""
                for key in keys:
                    yield Found(name, key, rle.encode(page == _value(key, want), want.convention), "", left_out)


class _Folder:
    """The files of a folder or a zip."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise PipelineError(f"{path} does not exist.")
        try:
            self.path, self.archive = path, None if path.is_dir() else zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise PipelineError(f"{path} is neither a folder nor a zip of mask images: {first_line(error)}.") from None

    def __enter__(self) -> "_Folder":
        return self

    def __exit__(self, *_: object) -> None:
        if self.archive:
            self.archive.close()

    def names(self) -> list[str]:
        if self.archive:
            names = [name for name in self.archive.namelist() if not name.endswith("/")]
        else:
            files = (path for path in sorted(self.path.rglob("*")) if path.is_file())
            names = [path.relative_to(self.path).as_posix() for path in files]
        return [name for name in names if not {*name.split("/")} & {*IGNORED}]

    def read(self, name: str) -> bytes:
        """Returns the content of a file; raises ValueError if it is damaged."""
        try:
            if self.archive:
                member = self.archive.getinfo(name)
                check_picture(member.file_size, member.compress_size)
            return self.archive.read(name) if self.archive else (self.path / name).read_bytes()
        except (OSError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"cannot be read: {first_line(error)}") from None


def _pages(content: bytes, image: Member, want: Expected, truth: bool) -> np.ndarray:
    """Returns the pages (n, h, w) of a mask image; raises ValueError if its dtype, shape or values are wrong."""
    pixels, shape = _decoded(content, image.name), want.shapes[image.keys[0][0][0]]
    if image.volume and len(image.keys) == 1 and pixels.ndim == 2:
        pixels = np.expand_dims(pixels, want.axis)
    if pixels.dtype != _dtype(want):
        raise ValueError(f"holds {pixels.dtype} pixels; expected {np.dtype(_dtype(want))}")
    wanted = list(shape)
    if image.volume:
        wanted.insert(want.axis, len(image.keys))
    if list(pixels.shape) != wanted:
        turned = ", transposed?" if len(wanted) == 2 and list(pixels.shape) == wanted[::-1] else ""
        expected = "×".join(map(str, wanted))
        raise ValueError(f"is {'×'.join(map(str, pixels.shape))}; expected {expected}{turned}")
    allowed = {_background(want), *(_value(key, want) for keys in image.keys for key in keys)}
    allowed |= {*want.ignored} if truth else set()
    if strange := sorted(set(np.unique(pixels).tolist()) - allowed):
        listed = ", ".join(map(str, strange[:SHOWN])) + (", …" if len(strange) > SHOWN else "")
        raise ValueError(f"holds the values {listed}; expected {', '.join(map(str, sorted(allowed)))}")
    return np.moveaxis(pixels, want.axis, 0) if image.volume else pixels[None]


def _decoded(content: bytes, name: str) -> np.ndarray:
    if name.lower().endswith(".png"):
        if shape := declared(content):
            check_picture(math.prod(shape), len(content))
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED) if content else None
        if pixels is None:
            raise ValueError("is not a readable PNG")
        return pixels
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            check_pages(file)
            check_picture(file.series[0].nbytes, len(content))
            return np.asarray(file.asarray())
    except Refused:
        raise
    except Exception as error:  # tifffile passes on any error of its codecs
        raise ValueError(f"is not a readable TIFF: {first_line(error)}") from None
