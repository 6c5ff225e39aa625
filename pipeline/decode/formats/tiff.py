"""TIFF files, read as a viewer shows them: colour spaces, axes, pages, and windows of large files.

docs/decode.md has a table of what is supported.
"""

import io
import math
import re
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from pipeline.core.shortage import pass_on
from pipeline.decode.formats.base import (
    OtherKind,
    Refused,
    Size,
    Stored,
    Wanted,
    along_axis,
    size_along,
)
from pipeline.decode.formats.limits import check_picture
from pipeline.decode.readers import remarks
from pipeline.masks.windows import Box

MINISWHITE, MINISBLACK, RGB, PALETTE, SEPARATED, YCBCR = 0, 1, 2, 3, 5, 6
"""Values of the tag PhotometricInterpretation."""
_REFUSED = {4: "a transparency mask", 8: "Lab", 9: "ICC Lab", 10: "ITU Lab", 32803: "raw camera data (CFA)",
            32844: "LogL", 32845: "LogLuv", 34892: "raw camera data (linear)", 51177: "depth"}  # fmt: skip
_NAMES = {RGB: "RGB", PALETTE: "palette", SEPARATED: "CMYK", YCBCR: "YCbCr"}
_JPEG = (6, 7, 33007, 34892)
"""Compressions whose codecs convert YCbCr to RGB. All others keep YCbCr."""
_CMYK_INK, _PLANES = 1, 2
_ASSOCIATED_ALPHA, _UNASSOCIATED_ALPHA = 1, 2
"""Values of the tag ExtraSamples: alpha with which colours are multiplied (associated), and alpha without this."""
_REDUCED_OR_MASK = 1 | 4
"""Bits of NewSubfileType for a smaller copy of another page, or for its transparency mask."""
_SLIDE_EXTRAS = ("Thumbnail", "Label", "Macro")
_ORIENTATION, _INK_SET = 274, 332
_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""The first bytes of TIFF and BigTIFF files."""


SUFFIXES = (".tif", ".tiff")
LARGEST_SEGMENT = 2**28
"""Maximum number of values in a compressed strip or tile, which is decoded as a whole."""
MOST_PAGES = 100_000
"""Maximum number of pages of a file, including pages that only its header states."""


def starts(head: bytes) -> bool:
    """Returns whether a file that starts with these bytes is a TIFF file, regardless of its name."""
    return head.startswith(_HEADS)


def read(path: Path, wanted: Wanted) -> Stored:
    """Returns the picture of a TIFF file, or one of its pages if a slice is selected, (H, W) or (H, W, C) with its
    pixels in the stored order.

    For a box, only the strips or tiles that it touches are read.

    Raises:
        OtherKind: the file does not start like a TIFF file.
        ValueError: the file is damaged or too large, holds several pictures, or has a colour space that is not
            supported. The message is one sentence.
    """
    try:
        with tifffile.TiffFile(path) as file:
            check_pages(file)
            if wanted.slice is not None:
                return _slice_of(file, path, wanted)
            series = _picture(file)
            if wanted.box is None:
                wanted.check_size(tuple(sorted(series.shape)[-2:]))
                check_picture(series.nbytes, path.stat().st_size)
            page = series.keyframe
            tag = page.tags.get(_ORIENTATION)
            orientation = int(tag.value) if tag is not None else 1
            axes = _checked_axes(file, series)
            _check_colours(page)
            through_pillow = _needs_pillow(page)
            if wanted.box is not None:
                _check_parts(page, orientation, through_pillow)
                return Stored(_shown(_part(page, wanted.box), page, path, wanted.alpha), cut=True)
            image = np.zeros(0, np.uint8) if through_pillow else series.asarray()
    except Refused:
        raise
    except Exception as error:  # tifffile and its codecs raise errors of many types for a damaged file
        pass_on(error)
        kind = OtherKind if _is_something_else(path) else ValueError
        raise kind(f"cannot be read, it is damaged or truncated ({type(error).__name__}: {error})") from error
    if through_pillow:
        return Stored(_read_with_pillow(path, page), orientation)
    if not image.size:  # tifffile's result for a file that has only a header
        raise ValueError("cannot be read, it is damaged or truncated: it holds no pixels")
    return Stored(_shown(_rows_columns_channels(image, axes), page, path, wanted.alpha), orientation)


def measure(path: Path, axis: int | None = None, volume: bool = False) -> Size:
    """Returns the size of the picture or volume in a TIFF file, reading only its tags."""
    try:
        with tifffile.TiffFile(path) as file:
            check_pages(file)
            if volume:
                return _size_of_volume(file, axis)
            page = _picture(file).keyframe
            return Size(1, page.imagelength, page.imagewidth)
    except Refused:
        raise
    except Exception as error:
        pass_on(error)
        raise ValueError(f"cannot be read, it is damaged or truncated ({type(error).__name__}: {error})") from error


# --- slices ----------------------------------------------------------------------------------------------------------


def _size_of_volume(file: tifffile.TiffFile, axis: int | None) -> Size:
    """Returns the size of the first series as slices along an axis (by default the first one), or of all pages of equal
    shape."""
    series = file.series[0]
    if len(series.shape) > 2 and series.axes[0] not in "YXS":
        return size_along(series.shape, axis, 0)
    same = [other for other in file.series if other.shape == series.shape]
    return Size(len(same), series.keyframe.imagelength, series.keyframe.imagewidth)


def _slice_of(file: tifffile.TiffFile, path: Path, wanted: Wanted) -> Stored:
    """Returns one page, or one slice of the first series along another axis."""
    series, number = file.series[0], wanted.slice or 0
    count = _size_of_volume(file, wanted.axis).slices
    if number >= count:
        raise Refused(f"holds {count} slices; slice {number} does not exist")
    page = series.keyframe
    _check_colours(page)
    if _needs_pillow(page):
        raise Refused("holds slices of colours that are not stored as grey or RGB: save them as grey or RGB")
    if len(series.shape) == 2 or series.axes[0] in "YXS":
        same = [other for other in file.series if other.shape == series.shape]
        image, axes = same[number].asarray(), series.axes
    elif series.dataoffset is not None:  # one uncompressed block, of which pages are parts
        dtype: np.dtype = np.dtype(series.dtype)
        mapped = np.memmap(path, dtype.newbyteorder(file.byteorder), "r", series.dataoffset, series.shape)
        image, axes = np.array(along_axis(mapped, wanted, 0), dtype), _left(series.axes, wanted.axis)
    elif not wanted.axis and len(series) == series.shape[0]:
        image, axes = series.asarray(key=number), series.axes[1:]
    else:
        image, axes = along_axis(series.asarray(), wanted, 0), _left(series.axes, wanted.axis)
    return Stored(_shown(_rows_columns_channels(np.array(image), axes), page, path, wanted.alpha))


def _left(axes: str, axis: int | None) -> str:
    """Returns the axes of one slice: its first two axes as rows and columns, then channels."""
    left = [name for number, name in enumerate(axes) if number != (axis or 0)]
    return "YX" + "".join(name for name in left[2:])


# --- windows ---------------------------------------------------------------------------------------------------------


def _check_parts(page: tifffile.TiffPage, orientation: int, through_pillow: bool) -> None:
    """Raises Refused if parts of a picture cannot be read."""
    if through_pillow:
        name = _NAMES.get(page.photometric, "grey")
        raise Refused(f"is a {name} TIFF, and windows of such files are not supported: save it as RGB")
    if orientation != 1:
        raise Refused(
            "is stored turned (EXIF orientation), and windows of such files are not supported: save it upright"
        )
    if not page.is_memmappable and int(np.prod(page.chunks)) > LARGEST_SEGMENT:
        raise Refused(
            f"holds strips or tiles of {'×'.join(map(str, page.chunks))}, which are too large to be decoded as a "
            "whole: save it in tiles of 512×512"
        )


def _part(page: tifffile.TiffPage, box: Box) -> np.ndarray:
    """Returns the pixels of a box, (h, w) or (h, w, C)."""
    planes = page.planarconfig == _PLANES and page.samplesperpixel > 1
    samples = page.samplesperpixel
    if page.is_memmappable:
        shape = (samples, page.imagelength, page.imagewidth) if planes else (page.imagelength, page.imagewidth, samples)
        file = page.parent
        stored = np.dtype(page.dtype).newbyteorder(file.byteorder)
        mapped = np.memmap(file.filehandle.path, stored, "r", page.dataoffsets[0], shape)
        top, left, bottom, right = box
        part = np.moveaxis(mapped[:, top:bottom, left:right], 0, -1) if planes else mapped[top:bottom, left:right]
        pixels = np.array(part, page.dtype, order="C")
    else:
        pixels = _decoded_part(page, box, planes)
    return pixels[..., 0] if samples == 1 else pixels


def _decoded_part(page: tifffile.TiffPage, box: Box, planes: bool) -> np.ndarray:
    """Returns the pixels (h, w, C) of a box, from the strips or tiles that it touches."""
    top, left, bottom, right = box
    tall, wide = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    across, down = -(-page.imagewidth // wide), -(-page.imagelength // tall)
    pixels = np.zeros((bottom - top, right - left, page.samplesperpixel), page.dtype)
    handle = page.parent.filehandle
    for plane in range(page.samplesperpixel if planes else 1):
        target = pixels[..., plane : plane + 1] if planes else pixels
        for row in range(top // tall, (bottom - 1) // tall + 1):
            for column in range(left // wide, (right - 1) // wide + 1):
                index = (plane * down + row) * across + column
                if not page.databytecounts[index]:  # a tile of zeros is not stored
                    continue
                handle.seek(page.dataoffsets[index])
                data = handle.read(page.databytecounts[index])
                segment = page.decode(data, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader)[0]
                if segment is None:
                    continue
                _copy(target, segment[0], (row * tall - top, column * wide - left))
    return pixels


def _copy(target: np.ndarray, segment: np.ndarray, place: tuple[int, int]) -> None:
    """Copies the part of a segment (h, w, C) that lies inside a target (H, W, C) to its place, which may be
    negative."""
    (row, column), (height, width) = place, segment.shape[:2]
    rows = slice(max(row, 0), min(row + height, target.shape[0]))
    columns = slice(max(column, 0), min(column + width, target.shape[1]))
    if rows.start < rows.stop and columns.start < columns.stop:
        inside = segment[rows.start - row : rows.stop - row, columns.start - column : columns.stop - column]
        target[rows, columns] = inside


# --- the picture -----------------------------------------------------------------------------------------------------


def _is_something_else(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return not starts(file.read(4))
    except OSError:
        return False


def check_pages(file: tifffile.TiffFile) -> None:
    """Checks that a file has a reasonable number of pages, before tifffile creates a list of them.

    Raises:
        Refused: the file has too many pages, or its OME header states too many.
    """
    count = len(file.pages)
    for pixels in re.findall(r"<[^<>]*\bPixels\b[^<>]*>", (file.ome_metadata or "") if file.is_ome else ""):
        count = max(count, math.prod(map(int, re.findall(r"\bSize[ZCT]\s*=\s*[\"']\s*([0-9]{1,15})", pixels))))
    if file.is_ome:
        places = re.findall(r"\b(?:IFD|PlaneCount|First[ZCT])\s*=\s*[\"']\s*([0-9]{1,15})", file.ome_metadata or "")
        count = max([count, *map(int, places)])
    if count > MOST_PAGES:
        raise Refused(f"says that it holds {count} pages; at most {MOST_PAGES} are read")


def _picture(file: tifffile.TiffFile) -> tifffile.TiffPageSeries:
    """Returns the first series that is not a smaller copy, such as a thumbnail before the picture; if there is none,
    the first series."""
    return next((series for series in file.series if not _belongs_to_another(series)), file.series[0])


def _checked_axes(file: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> str:
    """Returns the axes of the picture. Only rows, columns and channels may be longer than 1."""
    further = [other for other in file.series if other is not series and not _belongs_to_another(other)]
    if further:
        sizes = ", ".join("×".join(map(str, other.shape)) for other in [series, *further][:4])
        raise Refused(
            f"holds {1 + len(further)} pictures ({sizes}); expected one picture: save each one as a separate file"
        )
    axes, shape = series.axes, series.shape
    if series.kind == "shaped" and len(axes) == 3 and axes[0] not in "YS" and shape[2] in (3, 4) and shape[0] > 4:
        return "YXS"  # tifffile writes an array (H, W, 4) as H grey pages if it is not told that these are colours
    long = [(axis, length) for axis, length in zip(axes, shape, strict=True) if length > 1 and axis not in "YXSC"]
    if long:
        pages = int(np.prod([length for _, length in long]))
        along = {"Z": "slices along Z", "T": "times"}.get(long[0][0], "pages")
        raise Refused(
            f"holds {pages} {along} (axes {axes}, {'×'.join(map(str, shape))}); expected one picture, and pages are "
            "not channels: save the page that belongs to the mask as a separate file"
        )
    return axes


def _belongs_to_another(series: tifffile.TiffPageSeries) -> bool:
    return bool(series.keyframe.subfiletype & _REDUCED_OR_MASK) or series.name in _SLIDE_EXTRAS


def _check_colours(page: tifffile.TiffPage) -> None:
    name = _REFUSED.get(page.photometric)
    if page.photometric == SEPARATED:
        ink = page.tags.get(_INK_SET)
        if page.samplesperpixel < 4 or (ink is not None and ink.value != _CMYK_INK):
            name = f"{page.samplesperpixel} inks that are not CMYK"
    if name:
        raise Refused(f"is a TIFF of {name}, a colour space that is not supported: save it as RGB or grey")
    if _is_unread_kind(page):
        planes = " in planes" if page.planarconfig == _PLANES and page.samplesperpixel > 1 else ""
        kind = f"{page.bitspersample}-bit {_NAMES.get(page.photometric, 'colours')}{planes}"
        raise Refused(f"is a TIFF of {kind}, which is not supported: save it as 8-bit RGB")
    whole = page.dtype is not None and page.dtype.kind in "bu" and page.dtype.itemsize <= 2
    if page.photometric == MINISWHITE and not whole:
        raise Refused(
            f"is a WhiteIsZero TIFF of {page.dtype} pixels, for which it is not known which value is black: save it as "
            "BlackIsZero"
        )
    if page.extrasamples == (_ASSOCIATED_ALPHA,) and not whole:
        raise Refused(f"is a TIFF of {page.dtype} colours multiplied by their alpha: save it without alpha")


def _is_unread_kind(page: tifffile.TiffPage) -> bool:
    """Returns whether the picture has a number of bits, or a storage in planes, that is not supported for its kind of
    colours."""
    planes, deep = page.planarconfig == _PLANES, page.bitspersample > 8
    if page.photometric == YCBCR:
        return planes or deep
    few = page.bitspersample < 8 and page.samplesperpixel > 1
    return few or (deep and (page.photometric == PALETTE or (planes and page.photometric == SEPARATED)))


def _needs_pillow(page: tifffile.TiffPage) -> bool:
    """Returns whether pixels must be converted to grey values or colours, because tifffile returns them as they are
    stored."""
    if page.photometric in (MINISBLACK, MINISWHITE):
        return page.bitspersample in (2, 4)
    return page.photometric != RGB and (page.photometric != YCBCR or page.compression not in _JPEG)


def _read_with_pillow(path: Path, page: tifffile.TiffPage) -> np.ndarray:
    name = _NAMES.get(page.photometric, "grey")
    if page.is_subifd:
        raise Refused(f"is a {name} TIFF whose first page is a smaller copy that contains the picture: save it as RGB")
    try:
        # read from memory: given a path, Pillow would map rotated files with rows and columns swapped
        with TiffImageFile(io.BytesIO(path.read_bytes())) as file:
            file.seek(page.index)
            shown = file if file.mode == "L" else file.convert("RGB")
            return np.array(_as_stored(shown, page))
    except Image.DecompressionBombError:
        raise Refused("is too large to be converted to RGB: save it as RGB") from None
    except Exception as error:  # an encoding that Pillow does not support, or a damaged file
        pass_on(error)
        raise ValueError(
            f"is a {page.bitspersample}-bit {name} TIFF that cannot be converted to RGB, or is damaged "
            f"({type(error).__name__}): save it as 8-bit RGB"
        ) from error


def _as_stored(image: Image.Image, page: tifffile.TiffPage) -> Image.Image:
    """Returns the pixels in the order of the file. Pillow rotates a TIFF upright while loading it, which is undone
    here."""
    tag = page.tags.get(_ORIENTATION)
    inverse = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
               5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
               8: Image.Transpose.ROTATE_270}  # fmt: skip
    method = inverse.get(int(tag.value)) if tag is not None else None
    image = ImageOps.exif_transpose(image)  # does nothing if the image is upright
    return image if method is None else image.transpose(method)


def _rows_columns_channels(image: np.ndarray, axes: str) -> np.ndarray:
    """Returns the picture as (H, W) or (H, W, C), without axes of length 1."""
    kept = [number for number, axis in enumerate(axes) if axis in "YX" or image.shape[number] > 1]
    image, left = image.reshape([image.shape[number] for number in kept]), "".join(axes[number] for number in kept)
    if image.ndim == 3 and left[0] in "SC":  # stored plane by plane
        image = np.moveaxis(image, 0, -1)
    return image


def _shown(image: np.ndarray, page: tifffile.TiffPage, path: Path, alpha: bool) -> np.ndarray:
    """Returns pixels as a viewer shows them. Colours are divided by the alpha with which they were multiplied, black is
    0, and the white of 1-bit pixels is 255. The alpha of grey values is removed, or is the fourth channel after three
    equal ones."""
    has_alpha = image.ndim == 3 and image.shape[2] == page.samplesperpixel and page.samplesperpixel in (2, 4)
    if has_alpha and page.extrasamples == (_ASSOCIATED_ALPHA,):
        image = _divided_by_alpha(image, 2**page.bitspersample - 1)
    if has_alpha and image.shape[2] == 2 and page.extrasamples[:1] in ((_ASSOCIATED_ALPHA,), (_UNASSOCIATED_ALPHA,)):
        grey = _shown(image[..., 0], page, path, alpha)
        return np.dstack([grey, grey, grey, image[..., 1].astype(grey.dtype)]) if alpha else grey
    if page.photometric == MINISWHITE and image.dtype.kind in "bu":
        remarks.note("white_is_zero", path)
        image = ~image if image.dtype == bool else (2**page.bitspersample - 1 - image).astype(image.dtype)
    return image.view(np.uint8) * np.uint8(255) if image.dtype == bool else image


def _divided_by_alpha(image: np.ndarray, highest: int) -> np.ndarray:
    """Undoes the multiplication of colours by alpha / highest in (H, W, C) with alpha as last channel. Pixels with
    alpha 0 are unchanged."""
    alpha = image[..., -1:].astype(np.uint32)
    colours = np.minimum(image[..., :-1] * np.uint32(highest) // np.maximum(alpha, 1), highest)
    divided = np.where(alpha == 0, image[..., :-1], colours)
    return np.concatenate([divided, alpha], axis=2).astype(image.dtype)
