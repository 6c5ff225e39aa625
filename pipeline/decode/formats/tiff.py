"""TIFF files as a viewer shows them: colour spaces, axes, pages, and windows of large ones.

docs/decode.md has the table of what is read.
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
"""Compressions whose codecs give RGB for YCbCr; all others keep it as it is."""
_CMYK_INK, _PLANES = 1, 2
_ASSOCIATED_ALPHA, _UNASSOCIATED_ALPHA = 1, 2
"""Values of the tag ExtraSamples: whether colours are stored multiplied by their alpha."""
_REDUCED_OR_MASK = 1 | 4
"""NewSubfileType of a smaller copy, or of the transparency, of another page."""
_SLIDE_EXTRAS = ("Thumbnail", "Label", "Macro")
_ORIENTATION, _INK_SET = 274, 332
_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of TIFF and BigTIFF."""


SUFFIXES = (".tif", ".tiff")
LARGEST_SEGMENT = 2**28
"""Values of a compressed strip or tile, which is decoded as a whole."""
MOST_PAGES = 100_000
"""Pages of a file, also those that it only says it has."""


def starts(head: bytes) -> bool:
    """Returns whether a file that starts with these bytes is a TIFF, whatever its name."""
    return head.startswith(_HEADS)


def read(path: Path, wanted: Wanted) -> Stored:
    """Returns the one picture of a TIFF, or one of its pages where a slice is wanted, in the order in which it is
    stored, (H, W) or (H, W, C).

    Of a box, the strips or tiles that it touches are read alone.

    Raises:
        OtherKind: the file does not start as a TIFF does.
        ValueError: one sentence, when the file is damaged, too large, of several pictures, or of another colour space.
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
    except Exception as error:  # tifffile and its codecs raise whatever they like on a damaged file
        pass_on(error)
        kind = OtherKind if _is_something_else(path) else ValueError
        raise kind(f"cannot be read, it is damaged or truncated ({type(error).__name__}: {error})") from error
    if through_pillow:
        return Stored(_read_with_pillow(path, page), orientation)
    if not image.size:  # what tifffile makes of a header alone
        raise ValueError("cannot be read, it is damaged or truncated: it holds no pixels")
    return Stored(_shown(_rows_columns_channels(image, axes), page, path, wanted.alpha), orientation)


def measure(path: Path, axis: int | None = None, volume: bool = False) -> Size:
    """Returns the size of a TIFF, of which the tags alone are read."""
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
    """The size of the first series as slices along an axis (by default its first), or of as many equal pages."""
    series = file.series[0]
    if len(series.shape) > 2 and series.axes[0] not in "YXS":
        return size_along(series.shape, axis, 0)
    same = [other for other in file.series if other.shape == series.shape]
    return Size(len(same), series.keyframe.imagelength, series.keyframe.imagewidth)


def _slice_of(file: tifffile.TiffFile, path: Path, wanted: Wanted) -> Stored:
    """One page, or one slice of the first series along another axis."""
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
    elif series.dataoffset is not None:  # one block without compression, of which pages are parts
        dtype: np.dtype = np.dtype(series.dtype)
        mapped = np.memmap(path, dtype.newbyteorder(file.byteorder), "r", series.dataoffset, series.shape)
        image, axes = np.array(along_axis(mapped, wanted, 0), dtype), _left(series.axes, wanted.axis)
    elif not wanted.axis and len(series) == series.shape[0]:
        image, axes = series.asarray(key=number), series.axes[1:]
    else:
        image, axes = along_axis(series.asarray(), wanted, 0), _left(series.axes, wanted.axis)
    return Stored(_shown(_rows_columns_channels(np.array(image), axes), page, path, wanted.alpha))


def _left(axes: str, axis: int | None) -> str:
    """The axes of one slice: rows and columns first, whatever they were before, then channels."""
    left = [name for number, name in enumerate(axes) if number != (axis or 0)]
    return "YX" + "".join(name for name in left[2:])


# --- windows ---------------------------------------------------------------------------------------------------------


def _check_parts(page: tifffile.TiffPage, orientation: int, through_pillow: bool) -> None:
    """Raises Refused where parts of a picture cannot be read."""
    if through_pillow:
        name = _NAMES.get(page.photometric, "grey")
        raise Refused(f"is a {name} TIFF, of which windows are not read: save it as RGB")
    if orientation != 1:
        raise Refused("is stored turned (EXIF orientation), and windows of it are not read: save it upright")
    if not page.is_memmappable and int(np.prod(page.chunks)) > LARGEST_SEGMENT:
        raise Refused(
            f"holds strips or tiles of {'×'.join(map(str, page.chunks))}, which would be decoded as a whole: save it "
            "in tiles of 512×512"
        )


def _part(page: tifffile.TiffPage, box: Box) -> np.ndarray:
    """The pixels of a box, (h, w) or (h, w, C)."""
    planes = page.planarconfig == _PLANES and page.samplesperpixel > 1
    samples = page.samplesperpixel
    if page.is_memmappable:
        shape = (samples, page.imagelength, page.imagewidth) if planes else (page.imagelength, page.imagewidth, samples)
        file = page.parent
        stored = np.dtype(page.dtype).newbyteorder(file.byteorder)
        mapped = np.memmap(file.filehandle.path, stored, "r", page.dataoffsets[0], shape)
        top, left, bottom, right = box
        part = np.moveaxis(mapped[:, top:bottom, left:right], 0, -1) if planes else mapped[top:bottom, left:right]
        found = np.array(part, page.dtype, order="C")
    else:
        found = _decoded_part(page, box, planes)
    return found[..., 0] if samples == 1 else found


def _decoded_part(page: tifffile.TiffPage, box: Box, planes: bool) -> np.ndarray:
    """The pixels (h, w, C) of a box, from the strips or tiles that it touches."""
    top, left, bottom, right = box
    tall, wide = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    across, down = -(-page.imagewidth // wide), -(-page.imagelength // tall)
    found = np.zeros((bottom - top, right - left, page.samplesperpixel), page.dtype)
    handle = page.parent.filehandle
    for plane in range(page.samplesperpixel if planes else 1):
        target = found[..., plane : plane + 1] if planes else found
        for row in range(top // tall, (bottom - 1) // tall + 1):
            for column in range(left // wide, (right - 1) // wide + 1):
                index = (plane * down + row) * across + column
                if not page.databytecounts[index]:  # a tile of zeros, which is not stored
                    continue
                handle.seek(page.dataoffsets[index])
                data = handle.read(page.databytecounts[index])
                segment = page.decode(data, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader)[0]
                if segment is None:
                    continue
                _copy(target, segment[0], (row * tall - top, column * wide - left))
    return found


def _copy(target: np.ndarray, segment: np.ndarray, place: tuple[int, int]) -> None:
    """Writes the part of a segment (h, w, C) that lies inside into a target (H, W, C); its place may be negative."""
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
    """Checks that a file has no more pages than can be meant, before tifffile makes a list of them.

    Raises:
        Refused: it has, or its OME header says so.
    """
    count = len(file.pages)
    for pixels in re.findall(r"<[^<>]*\bPixels\b[^<>]*>", (file.ome_metadata or "") if file.is_ome else ""):
        count = max(count, math.prod(map(int, re.findall(r"\bSize[ZCT]\s*=\s*[\"']\s*([0-9]{1,15})", pixels))))
    if file.is_ome:
        places = re.findall(r"\b(?:IFD|PlaneCount|First[ZCT])\s*=\s*[\"']\s*([0-9]{1,15})", file.ome_metadata or "")
        count = max([count, *map(int, places)])
    if count > MOST_PAGES:
        raise Refused(f"says that it holds {count} pages, and {MOST_PAGES} are the most that are read")


def _picture(file: tifffile.TiffFile) -> tifffile.TiffPageSeries:
    """The first series that is no smaller copy, such as a thumbnail before the picture; the first one without such."""
    return next((series for series in file.series if not _belongs_to_another(series)), file.series[0])


def _checked_axes(file: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> str:
    """The axes of the picture, of which none but rows, columns and channels may be longer than 1."""
    further = [other for other in file.series if other is not series and not _belongs_to_another(other)]
    if further:
        sizes = ", ".join("×".join(map(str, other.shape)) for other in [series, *further][:4])
        raise Refused(
            f"holds {1 + len(further)} pictures ({sizes}); an image is one picture: save each as a file of its own"
        )
    axes, shape = series.axes, series.shape
    if series.kind == "shaped" and len(axes) == 3 and axes[0] not in "YS" and shape[2] in (3, 4) and shape[0] > 4:
        return "YXS"  # tifffile writes an array (H, W, 4) as H grey pages where nobody told it the colours
    long = [(axis, length) for axis, length in zip(axes, shape, strict=True) if length > 1 and axis not in "YXSC"]
    if long:
        pages = int(np.prod([length for _, length in long]))
        along = {"Z": "slices along Z", "T": "times"}.get(long[0][0], "pages")
        raise Refused(
            f"holds {pages} {along} (axes {axes}, {'×'.join(map(str, shape))}); an image is one picture, and pages are "
            "no colours: save the page that belongs to the mask as a file of its own"
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
        raise Refused(f"is a TIFF of {name}, a colour space that is not read: save it as RGB or grey")
    if _is_unread_kind(page):
        planes = " in planes" if page.planarconfig == _PLANES and page.samplesperpixel > 1 else ""
        kind = f"{page.bitspersample}-bit {_NAMES.get(page.photometric, 'colours')}{planes}"
        raise Refused(f"is a TIFF of {kind}, which is not read: save it as 8-bit RGB")
    whole = page.dtype is not None and page.dtype.kind in "bu" and page.dtype.itemsize <= 2
    if page.photometric == MINISWHITE and not whole:
        raise Refused(
            f"is a WhiteIsZero TIFF of {page.dtype} pixels, of which nothing says what is black: save it as BlackIsZero"
        )
    if page.extrasamples == (_ASSOCIATED_ALPHA,) and not whole:
        raise Refused(f"is a TIFF of {page.dtype} colours multiplied by their alpha: save it without alpha")


def _is_unread_kind(page: tifffile.TiffPage) -> bool:
    """Whether the picture has a number of bits, or planes, in which its kind of colours is not read."""
    planes, deep = page.planarconfig == _PLANES, page.bitspersample > 8
    if page.photometric == YCBCR:
        return planes or deep
    few = page.bitspersample < 8 and page.samplesperpixel > 1
    return few or (deep and (page.photometric == PALETTE or (planes and page.photometric == SEPARATED)))


def _needs_pillow(page: tifffile.TiffPage) -> bool:
    """Whether pixels are no grey values or colours yet: tifffile gives them as they are stored."""
    if page.photometric in (MINISBLACK, MINISWHITE):
        return page.bitspersample in (2, 4)
    return page.photometric != RGB and (page.photometric != YCBCR or page.compression not in _JPEG)


def _read_with_pillow(path: Path, page: tifffile.TiffPage) -> np.ndarray:
    name = _NAMES.get(page.photometric, "grey")
    if page.is_subifd:
        raise Refused(f"is a {name} TIFF whose first page is a smaller copy with the picture inside: save it as RGB")
    try:
        # by content: of a path Pillow maps the pixels of turned files into memory with rows and columns swapped
        with TiffImageFile(io.BytesIO(path.read_bytes())) as file:
            file.seek(page.index)
            shown = file if file.mode == "L" else file.convert("RGB")
            return np.array(_as_stored(shown, page))
    except Image.DecompressionBombError:
        raise Refused("is too large to be converted from its colours to RGB here: save it as RGB") from None
    except Exception as error:  # an encoding of the pixels that Pillow does not know, or a damaged file
        pass_on(error)
        raise ValueError(
            f"is a {page.bitspersample}-bit {name} TIFF that cannot be converted to RGB, or damaged "
            f"({type(error).__name__}): save it as 8-bit RGB"
        ) from error


def _as_stored(image: Image.Image, page: tifffile.TiffPage) -> Image.Image:
    """The pixels in the order of the file: Pillow turns a TIFF upright while it loads it."""
    tag = page.tags.get(_ORIENTATION)
    inverse = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
               5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
               8: Image.Transpose.ROTATE_270}  # fmt: skip
    method = inverse.get(int(tag.value)) if tag is not None else None
    image = ImageOps.exif_transpose(image)  # nothing more to do where it is upright
    return image if method is None else image.transpose(method)


def _rows_columns_channels(image: np.ndarray, axes: str) -> np.ndarray:
    """The picture as (H, W) or (H, W, C), without axes of one element."""
    kept = [number for number, axis in enumerate(axes) if axis in "YX" or image.shape[number] > 1]
    image, left = image.reshape([image.shape[number] for number in kept]), "".join(axes[number] for number in kept)
    if image.ndim == 3 and left[0] in "SC":  # plane by plane
        image = np.moveaxis(image, 0, -1)
    return image


def _shown(image: np.ndarray, page: tifffile.TiffPage, path: Path, alpha: bool) -> np.ndarray:
    """Pixels as a viewer shows them: colours are divided by the alpha that they were multiplied by, black is 0 and the
    white of one bit is 255; the alpha of grey values is left out, or comes behind three equal channels."""
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
    """Undoes the multiplication of colours by alpha / highest in (H, W, C), alpha last; those of alpha 0 are kept."""
    alpha = image[..., -1:].astype(np.uint32)
    colours = np.minimum(image[..., :-1] * np.uint32(highest) // np.maximum(alpha, 1), highest)
    divided = np.where(alpha == 0, image[..., :-1], colours)
    return np.concatenate([divided, alpha], axis=2).astype(image.dtype)
