"""TIFF files as a viewer shows them: colour spaces, axes and pages. docs/decode.md has the table of what is read."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from pipeline.decode.readers import remarks

MINISWHITE, MINISBLACK, RGB, PALETTE, SEPARATED, YCBCR = 0, 1, 2, 3, 5, 6
"""Values of the tag PhotometricInterpretation."""
_REFUSED = {4: "a transparency mask", 8: "Lab", 9: "ICC Lab", 10: "ITU Lab", 32803: "raw camera data (CFA)",
            32844: "LogL", 32845: "LogLuv", 34892: "raw camera data (linear)", 51177: "depth"}  # fmt: skip
_NAMES = {PALETTE: "palette", SEPARATED: "CMYK", YCBCR: "YCbCr"}
_WITHOUT_CODEC = (1, 5, 8, 32773, 32946)
"""Compressions that keep YCbCr as it is; the codecs of JPEG and its kin give RGB."""
_CMYK_INK, _ASSOCIATED_ALPHA, _PLANES = 1, 1, 2
_REDUCED_OR_MASK = 1 | 4
"""NewSubfileType of a smaller copy, or of the transparency, of another page."""
_SLIDE_EXTRAS = ("Thumbnail", "Label", "Macro")
_ORIENTATION, _INK_SET = 274, 332


def read_tiff(path: Path, check_size: Callable[[tuple[int, ...]], None], alpha: bool = False) -> tuple[np.ndarray, int]:
    """Returns the one picture of a TIFF, (H, W) or (H, W, C), in the order in which it is stored, and its orientation.

    Args:
        path: the file.
        check_size: raises ValueError for a shape that is too large.
        alpha: whether grey with transparency comes as (H, W, 4) instead of (H, W).

    Raises:
        ValueError: one sentence, when the file is damaged, too large, of several pictures, or of another colour space.
    """
    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            check_size(tuple(sorted(series.shape)[-2:]))
            page = series.keyframe
            tag = page.tags.get(_ORIENTATION)
            axes = _checked_axes(file, series)
            _check_colours(page)
            through_pillow = _needs_pillow(page)
            image = np.zeros(0, np.uint8) if through_pillow else series.asarray()
    except Refused:
        raise
    except Exception as error:  # tifffile and its codecs raise whatever they like on a damaged file
        raise ValueError(f"cannot be read, it is damaged or truncated ({type(error).__name__}: {error})") from error
    orientation = int(tag.value) if tag is not None else 1
    if through_pillow:
        return _read_with_pillow(path, page), orientation
    if not image.size:  # what tifffile makes of a header alone
        raise ValueError("cannot be read, it is damaged or truncated: it holds no pixels")
    return _shown(_rows_columns_channels(image, axes), page, path, alpha), orientation


class Refused(ValueError):
    """A sound file that is not read; one sentence says why."""


def _checked_axes(file: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> str:
    """The axes of the first series, of which none but rows, columns and channels may be longer than 1."""
    further = [other for other in file.series[1:] if not _belongs_to_another(other)]
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
    packed = page.bitspersample < 8 and page.samplesperpixel > 1
    if packed or (page.bitspersample > 8 and page.planarconfig == _PLANES and page.photometric in _NAMES):
        raise Refused(
            f"is a TIFF of {page.bitspersample}-bit colours in an order that is not read: save it as 8-bit RGB"
        )
    if name:
        raise Refused(f"is a TIFF of {name}, a colour space that is not read: save it as RGB or grey")


def _needs_pillow(page: tifffile.TiffPage) -> bool:
    """Whether pixels are no grey values or colours yet: tifffile gives them as they are stored."""
    if page.photometric in (MINISBLACK, MINISWHITE):
        return page.bitspersample in (2, 4)
    if page.photometric == RGB:
        return page.bitspersample == 8 and _ASSOCIATED_ALPHA in page.extrasamples
    return page.photometric != YCBCR or page.compression in _WITHOUT_CODEC


def _read_with_pillow(path: Path, page: tifffile.TiffPage) -> np.ndarray:
    try:
        # by content: of a path Pillow maps the pixels of turned files into memory with rows and columns swapped
        with TiffImageFile(io.BytesIO(path.read_bytes())) as file:
            shown = file if file.mode in ("L", "RGBA") else file.convert("RGB")
            return np.array(_as_stored(shown, page))
    except Image.DecompressionBombError:
        raise Refused("is too large to be converted from its colours to RGB here: save it as RGB") from None
    except Exception as error:  # an encoding of the pixels that Pillow does not know, or a damaged file
        name = _NAMES.get(page.photometric, "grey or RGB")
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
    """Grey values as a viewer shows them: black is 0, the white of one bit is 255, and their alpha is left out, or
    comes behind three equal channels."""
    if page.photometric in (MINISBLACK, MINISWHITE) and image.ndim == 3 and image.shape[2] == 2 and page.extrasamples:
        grey = _shown(image[..., 0], page, path, alpha)
        return np.dstack([grey, grey, grey, image[..., 1].astype(grey.dtype)]) if alpha else grey
    if page.photometric == MINISWHITE and image.dtype.kind in "bu":
        remarks.note("white_is_zero", path)
        image = ~image if image.dtype == bool else (2**page.bitspersample - 1 - image).astype(image.dtype)
    return image.view(np.uint8) * np.uint8(255) if image.dtype == bool else image
