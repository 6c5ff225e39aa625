"""NIfTI volumes (.nii, .nii.gz), by nibabel: of one that is not compressed, the wanted slice alone is read."""

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
"""Bytes of a value that the header scales."""
MOST_BEYOND = 2**26
"""Bytes that may follow those of the volume."""


def starts(head: bytes) -> bool:
    """Returns False: what starts a NIfTI, or a gzip file, starts others too; their names tell."""
    return False


def read(path: Path, wanted: Wanted) -> Stored:
    """Returns one slice of a volume, in the axes of the array as nibabel gives them: rows are the first of the two that
    are left. Values are scaled as the header says.

    Raises:
        OtherKind: the file is damaged, or no NIfTI.
        Refused: it holds several pictures and no slice is wanted.
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
                    f"is a volume of {'×'.join(map(str, long))}; set `volumes: {{}}` in the competition's YAML: "
                    "every slice is an image then"
                )
        else:
            axis = 2 if wanted.axis is None else wanted.axis
            wanted.check_size(tuple(length for number, length in enumerate(lengths[:3]) if number != axis))
            if path.suffix.lower() == ".gz":
                needed = math.prod(lengths) * proxy.dtype.itemsize + min(int(proxy.offset), MOST_BEYOND)
                _check_end(path, path.stat().st_mtime_ns, needed)
            along_axis(np.broadcast_to(np.uint8(0), proxy.shape), wanted, 2)  # whether there is such a slice
            array = np.asanyarray(proxy[(slice(None),) * axis + (wanted.slice,)])
            array = array.reshape([length for number, length in enumerate(array.shape) if number < 2 or length > 1])
    except (Refused, MemoryError):
        raise
    except Exception as error:  # nibabel, gzip and zlib raise whatever they like on a damaged file
        raise ValueError(f"cannot be read, it is damaged or truncated ({type(error).__name__}: {error})") from error
    return Stored(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))


def measure(path: Path, axis: int | None = None, volume: bool = False) -> Size:
    """Returns the size of a volume and the spacing that its header states."""
    image = _open(path)
    header: Any = image.header
    zooms = [float(value) for value in header.get_zooms()[:3]]
    axis = 2 if axis is None else axis
    ordered = [zooms[axis], *(value for number, value in enumerate(zooms) if number != axis)] if len(zooms) > 2 else []
    size = size_along(image.shape, axis if volume else None, None, " ".join(f"{value:g}" for value in ordered))
    return size._replace(directions=_directions(image))


def _directions(image: Any) -> str:
    """Where the axes of the array lead, as the header says; "" where it says nothing."""
    import nibabel

    header = image.header
    if not any(int(header[key]) for key in ("qform_code", "sform_code") if key in header):
        return ""
    return "".join(code or "?" for code in nibabel.orientations.aff2axcodes(image.affine))


@lru_cache(maxsize=64)
def _check_end(path: Path, modified: int, needed: int) -> None:
    """Raises an error of gzip or zlib where a compressed file ends early: slices before its end could be read; and
    Refused where it goes on long after the bytes that it needs."""
    with gzip.open(path) as file:
        while file.read(2**22):
            if file.tell() > needed + MOST_BEYOND:
                raise Refused(f"goes on after the {needed} bytes of its volume: it is damaged, or made to take long")


def _open(path: Path) -> Any:
    try:
        import nibabel
    except ImportError as error:
        raise needs_extra("nibabel", f"{path.name}, a NIfTI file,", error) from None
    try:
        return nibabel.load(path)
    except Exception as error:
        pass_on(error)
        raise OtherKind(f"cannot be read, it is damaged or no NIfTI ({type(error).__name__}: {error})") from error
