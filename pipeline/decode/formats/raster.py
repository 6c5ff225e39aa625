"""PNG, JPEG, BMP, WebP, GIF and other formats that OpenCV reads. Pillow reads their metadata."""

import io
import struct
import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from PIL.GifImagePlugin import GifImageFile
from PIL.Image import DecompressionBombError
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from pipeline.core.shortage import pass_on
from pipeline.decode.formats.base import Refused, Size, Stored, Wanted
from pipeline.decode.formats.limits import check_picture
from pipeline.decode.readers import remarks

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif")


class TooLarge(Refused):
    """Raised for an image with too many pixels to be decoded as a whole."""


def starts(head: bytes) -> bool:
    """Returns whether a file that starts with these bytes is a PNG or a JPEG. OpenCV detects other formats itself."""
    return head.startswith((b"\x89PNG", b"\xff\xd8\xff"))


def read(path: Path, wanted: Wanted) -> Stored:
    """Returns the picture in a file; see read_data."""
    try:
        return read_data(path, path.read_bytes(), wanted)
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error


def measure(path: Path, axis: int | None = None, volume: bool = False) -> Size:
    """Returns the size of a picture, by reading it."""
    pixels = read(path, Wanted(lambda shape: None)).pixels
    return Size(1, pixels.shape[0], pixels.shape[1])


def read_data(path: Path, data: bytes, wanted: Wanted) -> Stored:
    """Returns the first picture of a file, given its content.

    Raises:
        ValueError: the picture cannot be read completely, or is too large.
    """
    if wanted.slice is not None:
        raise Refused("is one picture; expected a volume of slices")
    if shape := declared(data):
        wanted.check_size(shape[:2])
        check_picture(shape[0] * shape[1] * shape[2], len(data))
    # otherwise, a file that is cut short would be read with a grey lower part
    if not _ends(data, path.suffix.lower()) or not _chunks_fit(data):
        raise ValueError("cannot be read whole, it is damaged or truncated")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE" in str(error):
            raise TooLarge("is larger than the maximum image size") from None
        image = None
    if image is None:
        raise ValueError("is not an image that can be read")
    wanted.check_size(image.shape)
    if image.ndim == 3:
        code = cv2.COLOR_BGRA2RGBA if image.shape[2] == 4 else cv2.COLOR_BGR2RGB
        cv2.cvtColor(image, code, dst=image)  # in place, so that a large picture is not in memory twice
    orientation, frames = _described(data)
    if frames > 1:
        remarks.note("frames", path)
    if data.startswith(b"GIF8") and (frames > 1 or image.shape[-1] == 4):  # OpenCV would blend transparent pixels
        try:
            with _plugin(data)(io.BytesIO(data)) as file:
                image = np.array(file.convert("RGBA" if image.shape[-1] == 4 else "RGB"))
        except Exception as error:  # OpenCV has read only the intact part
            pass_on(error)
            raise ValueError(f"cannot be read whole, it is damaged or truncated ({type(error).__name__})") from error
    return Stored(image, orientation)


def declared(data: bytes) -> tuple[int, int, int] | None:
    """Returns the rows, columns and bytes per pixel in the header of a file; None if they cannot be determined."""
    try:
        if data.startswith(b"\x89PNG"):
            columns, rows, depth, colour = struct.unpack_from(">IIBB", data, 16)
            return rows, columns, _PNG_CHANNELS.get(colour, 4) * (2 if depth == 16 else 1)
        if data.startswith(b"\xff\xd8"):
            return _declared_by_jpeg(data)
        if data.startswith((b"BM", b"GIF8", b"RIFF", b"P4", b"P5", b"P6", b"\0\0\0\x0cjP")):
            with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as file:
                return file.height, file.width, 4
    except DecompressionBombError:
        raise TooLarge("is larger than the maximum image size") from None
    except (OSError, ValueError, SyntaxError, struct.error, IndexError):  # OpenCV reports such errors
        return None
    return None


def _declared_by_jpeg(data: bytes) -> tuple[int, int, int] | None:
    place = 2
    while place + 10 <= len(data):
        mark, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if mark in _JPEG_FRAMES:
            rows, columns, channels = struct.unpack_from(">HHB", data, place + 5)
            return rows, columns, channels
        place += 1 if mark == 0xFF else 2 + length
    return None


def _chunks_fit(data: bytes) -> bool:
    """Returns whether the lengths of all chunks of a PNG fit into the file, because libpng allocates memory for the
    stated lengths."""
    place = 8
    while data.startswith(b"\x89PNG") and place + 8 <= len(data):
        place += 12 + int.from_bytes(data[place : place + 4], "big")
        if place > len(data):
            return False
    return True


def _described(data: bytes) -> tuple[int, int]:
    """Returns the EXIF orientation and the number of frames of a file. Pillow only reads them if a marker in the file
    shows that they may be present."""
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
            frames = 1 if is_jpeg else getattr(file, "n_frames", 1)  # a camera's preview is not a frame
        return int(orientation), int(frames)
    except DecompressionBombError:  # only raised for WebP and GIF
        raise TooLarge("is larger than the maximum image size") from None
    except Exception as error:  # damaged metadata, although the pixels could be read
        pass_on(error)
        return 1, 1


def _plugin(data: bytes) -> type[ImageFile]:
    """Returns Pillow's reader for a file. `Image.open` would refuse large images."""
    plugins = {b"\x89P": PngImageFile, b"\xff\xd8": JpegImageFile, b"RI": WebPImageFile, b"GI": GifImageFile}
    return plugins[data[:2]]


def _png_describes(data: bytes) -> bool:
    """Returns whether a PNG has a chunk that may hold an orientation or frames. The pixel data are not searched,
    because that takes longer."""
    place = 8
    while place + 8 <= len(data):
        name = data[place + 4 : place + 8]
        if name in (b"eXIf", b"acTL") or data.startswith(_PNG_TEXTS, place + 8):
            return True
        place += 12 + int.from_bytes(data[place : place + 4], "big")
    return False


_ORIENTATION = 0x0112
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 4, 6: 4}
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_HEAD = 2**18
_PNG_TEXTS = (b"Raw profile type ", b"XML:com.adobe.xmp")
_JPEG_MARKS = (b"Exif\0\0", b"iff:Orientation")


def _ends(data: bytes, suffix: str) -> bool:
    """Returns whether a PNG or JPEG contains its end marker, regardless of what follows. The format is determined by
    the content, because names may be wrong."""
    stub = suffix if len(data) < 8 else ""
    if data.startswith(b"\x89PNG") or stub == ".png":
        return b"IEND" in data
    if data.startswith(b"\xff\xd8") or stub in (".jpg", ".jpeg"):
        # after the last scan, because a thumbnail has its own marker
        return b"\xff\xd9" in data[max(0, data.rfind(b"\xff\xda")) :]
    return True
