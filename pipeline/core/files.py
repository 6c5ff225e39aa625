"""The project's folders, and atomic writes: a file is written under a temporary name and then renamed."""

import errno
import json
import math
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import PipelineError
from pipeline.core.shortage import FULL, disk_fault

if TYPE_CHECKING:
    import numpy as np

PACKAGE = Path(__file__).parents[1]
PARTIAL = ".partial"


def repository() -> Path | None:
    """Returns the repository that contains the package; None if the package is installed."""
    return PACKAGE.parent if (PACKAGE.parent / "run_all.sh").is_file() else None


def root() -> Path:
    """Returns the folder that holds input/, folds/, submissions/ and work/: $PIPELINE_ROOT if it is set, else the
    repository, or the working directory if the package is installed."""
    return Path(os.environ.get("PIPELINE_ROOT") or repository() or Path.cwd()).expanduser().resolve()


def input_root() -> Path:
    """Returns the folder of raw competition files: $PIPELINE_INPUT if it is set, else input/ under the root."""
    return Path(os.environ.get("PIPELINE_INPUT") or root() / "input").expanduser().absolute()


def shown(path: Path, base: Path | None = None) -> str:
    """Returns a path as messages show it: relative to the root if it lies there.

    Args:
        path: the path.
        base: the result of `root`, for callers that show thousands of paths; None: computed here.
    """
    text, folder = str(path), str(base or root())  # comparing texts is faster than comparing paths
    return "." if text == folder else text.removeprefix(folder + os.sep)


def final_name(path: Path) -> str:
    """Returns the name of a file; for a temporary file of `writing`, the name that it will be renamed to."""
    return path.name.removeprefix(".").removesuffix(PARTIAL) if path.name.endswith(PARTIAL) else path.name


def make_folder(path: Path) -> None:
    """Creates a folder and its parent folders.

    Raises:
        PipelineError: a file or a broken link is in the way, or the folder cannot be created there.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        obstacle = next((place for place in (path, *path.parents) if place.is_symlink() or place.exists()), path)
        kind = "a broken link" if obstacle.is_symlink() and not obstacle.exists() else "a file"
        raise PipelineError(f"{shown(obstacle)} is {kind}, and a folder is needed there: move it away.") from error
    except OSError as error:
        raise PipelineError(
            f"the folder {shown(path)} could not be created: {error.strerror}. Give this user write permission there, "
            "or set PIPELINE_ROOT to another folder."
        ) from error


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, and renames it to `path` when the block ends without an error.

    Raises:
        PipelineError: the file cannot be written. An earlier file at `path` is unchanged.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}{PARTIAL}")
    try:
        yield temporary
        os.replace(temporary, path)
    except Exception as error:
        fault = "" if isinstance(error, FileNotFoundError) else disk_fault(error)
        if not fault:
            raise
        raise PipelineError(f"{shown(path)} could not be written: {fault}. Nothing was changed.") from error
    finally:
        with suppress(OSError):  # if the temporary file cannot be removed, it could not be written either
            remove(temporary)


def remove(path: Path) -> None:
    """Removes a file, or a folder with its content, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def require_space(folder: Path, needed: int, what: str, smaller: str = "image.size or image.store") -> None:
    """Checks that the disk has `needed` bytes free, before long work starts that would fail at its end.

    Args:
        folder: where the files will be written.
        needed: number of bytes.
        what: what the files are, in the plural, for the message.
        smaller: the settings to lower, for the message.

    Raises:
        PipelineError: the disk does not have that much free space.
    """
    make_folder(folder)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise PipelineError(
            f"{what} take {_size(needed)}, and the disk of {shown(folder)} has {_size(free)} free: free some space, or "
            f"set a smaller {smaller}."
        )


def _size(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if 2 * count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 2**10:.1f} KiB"


def allocate(path: Path, size: int) -> None:
    """Allocates all bytes of a file on the disk. Without this, writing to a memory-mapped sparse file kills the process
    (SIGBUS) when the disk is full.

    Raises:
        OSError: the disk is full.
    """
    with path.open("r+b") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
            return
        file.seek(0, os.SEEK_END)  # macOS
        while (missing := size - file.tell()) > 0:
            file.write(bytes(min(missing, 2**24)))


KEEP_SIZE = 1
"""The flag FALLOC_FL_KEEP_SIZE of Linux's fallocate: bytes are allocated beyond the end of the file, and its size does
not change."""


def allocate_ahead(descriptor: int, size: int) -> None:
    """Allocates the disk space that an open file will grow to. The file's size does not change, because it tells how
    far an attempt came. Does nothing on systems other than Linux.

    Raises:
        OSError: the disk is full.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    if library.fallocate(descriptor, KEEP_SIZE, ctypes.c_int64(0), ctypes.c_int64(size)) == 0:
        return
    if (number := ctypes.get_errno()) in FULL:
        raise OSError(number, os.strerror(number))


def new_array(path: Path, shape: tuple[int, ...], dtype: "np.dtype") -> "np.memmap":
    """Returns a new .npy file, memory-mapped for writing, with all bytes allocated on the disk.

    Raises:
        OSError: the file cannot be written, or the disk is full.
    """
    import numpy as np  # slow to import, and the command line starts with this module

    with path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        size = file.tell() + math.prod(shape) * np.dtype(dtype).itemsize
    allocate(path, size)
    return np.lib.format.open_memmap(path, "r+")


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Writes a JSON file atomically."""
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def write_png(path: Path, picture: "np.ndarray") -> None:
    """Writes an RGB picture (h, w, 3) uint8 as a PNG file atomically."""
    import cv2  # slow to import, and the command line starts with this module

    with writing(path) as temporary:
        temporary.write_bytes(cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes())


def read_record(path: Path) -> dict[str, Any]:
    """Returns the mapping in a JSON file that a stage wrote; an empty one if the file is missing or damaged. The
    stage's manifest then makes the stage run again."""
    try:
        data = read_json(path)
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def require_regular(path: Path) -> None:
    """Checks that a path is a file or a folder. Reading a pipe or a device might never end.

    Raises:
        OSError: the path does not exist, or is something else.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "it is a pipe or a device; expected a file", str(path))


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file."""
    require_regular(path)
    return json.loads(path.read_text(encoding="utf-8"))
