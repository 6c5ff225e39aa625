"""NIfTI volumes (.nii, .nii.gz), read by nibabel. If a volume is not compressed, only the wanted slice is read."""

import gzip
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.shortage import pass_on
from pipeline.decode.formats.base import OtherKind, Refused, Size, Stored, Wanted, along_axis, needs_extra, size_along
from pipeline.decode.formats.limits import check_picture

SUFFIXES = (".nii", ".nii.gz")
VALUE = 8
"""Number of bytes of a value that is scaled by the header."""
MOST_BEYOND = 2**26
"""Maximum number of bytes after those of the volume."""


def starts(head: bytes) -> bool:
    """Returns False, because other formats start with the same bytes as NIfTI and gzip files. They are recognised by
    their names."""
    return False


def read(path: Path, wanted: Wanted) -> Stored:
    """Returns one slice of a volume with the axes of nibabel's array: rows are the first of the two remaining axes.
    Values are scaled as the header says.

    Raises:
        OtherKind: the file is damaged, or is not a NIfTI file.
        Refused: the file holds several pictures and no slice is selected.
    """
    image = _open(path)
    try:
        proxy: Any = image.dataobj
        lengths = [int(length) for length in proxy.shape]
        if min(lengths, default=0) < 1:
            raise Refused(f"says that its shape is {'×'.join(map(str, lengths))}: it is damaged")
        if wanted.slice is None:
            long = [length for length in lengths if length > 1]
            wanted.check_size(tuple(long))
            if len(long) <= 2:
                check_picture(math.prod(lengths) * VALUE, path.stat().st_size)
            array = np.asanyarray(proxy).squeeze() if len(long) <= 2 else np.zeros(0)
            if array.ndim != 2:
                raise Refused(
                    f"is a volume of {'×'.join(map(str, long))}; set `volumes: {{}}` in the competition's YAML, which "
                    "makes each slice an image"
                )
        else:
            axis = 2 if wanted.axis is None else wanted.axis
            wanted.check_size(tuple(length for number, length in enumerate(lengths[:3]) if number != axis))
            if path.suffix.lower() == ".gz":
                needed = math.prod(lengths) * proxy.dtype.itemsize + min(int(proxy.offset), MOST_BEYOND)
                _check_end(path, path.stat().st_mtime_ns, needed)
            along_axis(np.broadcast_to(np.uint8(0), proxy.shape), wanted, 2)  # raises Refused if there is no such slice
            array = np.asanyarray(proxy[(slice(None),) * axis + (wanted.slice,)])
            array = array.reshape([length for number, length in enumerate(array.shape) if number < 2 or length > 1])
    except (Refused, MemoryError):
        raise
    except Exception as error:  # nibabel, gzip and zlib raise errors of many types
        raise ValueError(f"cannot be read, it is damaged or truncated ({type(error).__name__}: {error})") from error
    return Stored(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))


def measure(path: Path, axis: int | None = None, volume: bool = False) -> Size:
    """Returns the size of a volume, with the spacing in its header."""
    image = _open(path)
    header: Any = image.header
    zooms = [float(value) for value in header.get_zooms()[:3]]
    axis = 2 if axis is None else axis
    ordered = [zooms[axis], *(value for number, value in enumerate(zooms) if number != axis)] if len(zooms) > 2 else []
    size = size_along(image.shape, axis if volume else None, None, " ".join(f"{value:g}" for value in ordered))
    return size._replace(directions=_directions(image))


def _directions(image: Any) -> str:
    """Returns the directions of the axes of the array in the header; "" if it has none."""
    import nibabel

    header = image.header
    if not any(int(header[key]) for key in ("qform_code", "sform_code") if key in header):
        return ""
    return "".join(code or "?" for code in nibabel.orientations.aff2axcodes(image.affine))


@lru_cache(maxsize=64)
def _check_end(path: Path, modified: int, needed: int) -> None:
    """Raises an error of gzip or zlib if a compressed file is cut short, although slices before its end could be read;
    and Refused if it continues far beyond the bytes of its volume."""
    with gzip.open(path) as file:
        while file.read(2**22):
            if file.tell() > needed + MOST_BEYOND:
                raise Refused(
                    f"continues after the {needed} bytes of its volume: it is damaged, or was made to take long"
                )


def _open(path: Path) -> Any:
    try:
        import nibabel
    except ImportError as error:
        raise needs_extra("nibabel", f"{path.name}, a NIfTI file,", error) from None
    try:
        return nibabel.load(path)
    except Exception as error:
        pass_on(error)
        raise OtherKind(
            f"cannot be read, it is damaged or not a NIfTI file ({type(error).__name__}: {error})"
        ) from error
