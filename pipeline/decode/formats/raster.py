"""PNG, JPEG, BMP, WebP, GIF and whatever else OpenCV reads; Pillow reads what they say of themselves."""

import io
from pathlib import Path

import cv2
import numpy as np
from PIL.GifImagePlugin import GifImageFile
from PIL.Image import DecompressionBombError
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from pipeline.core.shortage import pass_on
from pipeline.decode.formats.base import Refused, Size, Stored, Wanted
from pipeline.decode.readers import remarks

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif")


class TooLarge(Refused):
    """An image of more pixels than are decoded as a whole."""


def starts(head: bytes) -> bool:
    """Returns whether a file that starts with these bytes is a PNG or a JPEG; OpenCV looks for itself what else is."""
    return head.startswith((b"\x89PNG", b"\xff\xd8\xff"))


def read(path: Path, wanted: Wanted) -> Stored:
    """Returns the picture of a file; see read_data."""
    try:
        return read_data(path, path.read_bytes(), wanted)
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error


def measure(path: Path, axis: int | None = None, volume: bool = False) -> Size:
    """Returns the size of a picture, which is read for it."""
    pixels = read(path, Wanted(lambda shape: None)).pixels
    return Size(1, pixels.shape[0], pixels.shape[1])


def read_data(path: Path, data: bytes, wanted: Wanted) -> Stored:
    """Returns the first picture of a file from its content.

    Raises:
        ValueError: it cannot be read whole, or is too large.
    """
    if wanted.slice is not None:
        raise Refused("is one picture; expected a volume of slices")
    # a file that is cut short would otherwise come with a grey lower half
    if not _ends(data, path.suffix.lower()) or not _chunks_fit(data):
        raise ValueError("cannot be read whole, it is damaged or truncated")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE" in str(error):
            raise TooLarge("is larger than an image may be here") from None
        image = None
    if image is None:
        raise ValueError("is not an image that can be read")
    wanted.check_size(image.shape)
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
            pass_on(error)
            raise ValueError(f"cannot be read whole, it is damaged or truncated ({type(error).__name__})") from error
    return Stored(image, orientation)


def _chunks_fit(data: bytes) -> bool:
    """Whether every part of a PNG says a length that the file has: libpng takes memory for as much as it says."""
    place = 8
    while data.startswith(b"\x89PNG") and place + 8 <= len(data):
        place += 12 + int.from_bytes(data[place : place + 4], "big")
        if place > len(data):
            return False
    return True


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
    except Exception as error:  # damaged remarks beside pixels that were read well
        pass_on(error)
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
