"""Arrays saved by NumPy: .npy files, of which only the wanted part is read, and .npz files."""

from functools import lru_cache
from pathlib import Path

import numpy as np

from pipeline.core.shortage import pass_on
from pipeline.decode.formats.base import OtherKind, Refused, Size, Stored, Wanted, along_axis, size_along
from pipeline.decode.formats.limits import check_member

SUFFIXES = (".npy", ".npz")


def starts(head: bytes) -> bool:
    """Returns whether a file that starts with these bytes is a .npy file."""
    return head.startswith(b"\x93NUMPY")


def read(path: Path, wanted: Wanted) -> Stored:
    """Returns one picture of a file, (H, W) or (H, W, C). Leading axes of length 1 are removed.

    Raises:
        OtherKind: the file is damaged, or is not a NumPy file.
        Refused: the file holds values that are not numbers, or several arrays of which none is selected.
    """
    array = along_axis(load(path, wanted.key), wanted, 0)
    while array.ndim > 2 and array.shape[0] == 1 and (array.ndim > 3 or array.shape[2] > 32):
        array = array[0]
    if array.ndim < 2:
        raise Refused(f"has shape {array.shape}; expected rows × columns, or rows × columns × channels")
    if wanted.box is not None:
        top, left, bottom, right = wanted.box
        array = array[top:bottom, left:right]
    else:
        wanted.check_size(array.shape)
    pixels = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    return Stored(pixels.view(np.uint8) if pixels.dtype == bool else pixels, cut=wanted.box is not None)


def measure(path: Path, axis: int | None = None, volume: bool = False) -> Size:
    """Returns the size of the array in a file, reading only its header."""
    return size_along(load(path, None).shape, axis, 0 if volume else None)


def load(path: Path, key: str | None) -> np.ndarray:
    """Returns the memory-mapped array of a .npy file, or an array of a .npz file.

    Raises:
        ValueError: see `read`.
    """
    stat = path.stat()
    array = _load(path, key, stat.st_size, stat.st_mtime_ns) if path.suffix.lower() == ".npz" else _mapped(path)
    if array.dtype.kind not in "biuf":
        raise Refused(f"holds {array.dtype}; expected an array of numbers")
    return array


def _mapped(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy raises errors of many types for a damaged file
        pass_on(error)
        raise _damaged(error) from error
    if not isinstance(array, np.ndarray):
        raise OtherKind("is a .npz file with the ending .npy: rename it")
    return array


@lru_cache(maxsize=4)
def _load(path: Path, key: str | None, size: int, modified: int) -> np.ndarray:
    """Returns an array of a .npz file. Size and modification time are arguments so that a changed file is read
    again."""
    try:
        with np.load(path, allow_pickle=False) as content:
            if not isinstance(content, np.lib.npyio.NpzFile):
                raise OtherKind("is not a .npz file, judging by its content")
            names = content.files
            if key is None and len(names) == 1:
                key = names[0]
            if key is None or key not in names:
                text = (
                    "it is not known which of them is the picture" if key is None else f"none of them is called {key}"
                )
                listed = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
                raise Refused(f"holds the arrays {listed or '(none)'}, and {text}")
            check_member(path, key)
            array = content[key]
    except (Refused, OtherKind):
        raise
    except Exception as error:
        pass_on(error)
        raise _damaged(error) from error
    array.setflags(write=False)
    return array


def _damaged(error: Exception) -> ValueError:
    if "objects" in str(error):
        return Refused("holds pickled objects, which are not read: save it again as a plain array of numbers")
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return OtherKind(f"cannot be read, it is damaged or truncated ({reason})")
