"""The folders that everything lies in, and how files are written: atomically, under a temporary name and renamed."""

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
    """Returns the repository that the package lies in; None where it is installed."""
    return PACKAGE.parent if (PACKAGE.parent / "run_all.sh").is_file() else None


def root() -> Path:
    """Returns the folder of input/, folds/, submissions/ and work/: $PIPELINE_ROOT, or the repository, or, where the
    package is installed, the working directory."""
    return Path(os.environ.get("PIPELINE_ROOT") or repository() or Path.cwd()).expanduser().resolve()


def input_root() -> Path:
    """Returns the folder of raw competition files ($PIPELINE_INPUT, default: input/ under the root)."""
    return Path(os.environ.get("PIPELINE_INPUT") or root() / "input").expanduser().absolute()


def shown(path: Path, base: Path | None = None) -> str:
    """Returns a path as a person wants to read it: relative to the root where it lies inside. `base`: what `root`
    returned, for those who ask for thousands of paths."""
    text, folder = str(path), str(base or root())  # comparing texts is faster than comparing paths
    return "." if text == folder else text.removeprefix(folder + os.sep)


def final_name(path: Path) -> str:
    """Returns the name of a file, of a temporary one that `writing` gave the name that it is to have."""
    return path.name.removeprefix(".").removesuffix(PARTIAL) if path.name.endswith(PARTIAL) else path.name


def make_folder(path: Path) -> None:
    """Makes a folder and those that it lies in.

    Raises:
        PipelineError: a file or a link to nowhere lies in its place, or it may not be made there.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        wrong = next((place for place in (path, *path.parents) if place.is_symlink() or place.exists()), path)
        kind = "a link to nowhere" if wrong.is_symlink() and not wrong.exists() else "a file"
        raise PipelineError(f"{shown(wrong)} is {kind}, and a folder belongs there: move it away.") from error
    except OSError as error:
        raise PipelineError(
            f"the folder {shown(path)} could not be made: {error.strerror}. Give this user the right to write there, "
            "or set PIPELINE_ROOT to another folder."
        ) from error


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path` and renames it to `path` when the block ends without an error.

    Raises:
        PipelineError: it cannot be written; what was there before stays.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}{PARTIAL}")
    try:
        yield temporary
        os.replace(temporary, path)
    except Exception as error:
        said = "" if isinstance(error, FileNotFoundError) else disk_fault(error)
        if not said:
            raise
        raise PipelineError(f"{shown(path)} could not be written: {said}. Nothing was changed.") from error
    finally:
        with suppress(OSError):  # what cannot be removed could not be written either
            remove(temporary)


def remove(path: Path) -> None:
    """Removes a file, or a folder with all that is in it, where there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def require_space(folder: Path, needed: int, what: str, smaller: str = "image.size or image.store") -> None:
    """Checks that the disk holds `needed` bytes more, before work begins that would fail at its end.

    Args:
        folder: where they will lie.
        needed: bytes.
        what: takes them, in the plural.
        smaller: the settings that need less.

    Raises:
        PipelineError: it does not.
    """
    make_folder(folder)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise PipelineError(
            f"{what} take {_size(needed)}, and the disk of {shown(folder)} has {_size(free)} free: make room, or set "
            f"a smaller {smaller}."
        )


def _size(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if 2 * count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 2**10:.1f} KiB"


def allocate(path: Path, size: int) -> None:
    """Gives a file all of its bytes on the disk: one that is mapped and has holes kills the process (SIGBUS) when the
    disk is full.

    Raises:
        OSError: the disk is full.
    """
    with path.open("r+b") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
            return
        file.seek(0, os.SEEK_END)  # macOS
        while (rest := size - file.tell()) > 0:
            file.write(bytes(min(rest, 2**24)))


KEEP_SIZE = 1
"""Of Linux's fallocate: bytes beyond the end of a file, whose size stays."""


def allocate_ahead(descriptor: int, size: int) -> None:
    """Gives an open file the room that it will grow to, and leaves its size: what tells how far an attempt came. Does
    nothing where the system has no such call.

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
    """Returns a new .npy file, mapped to be written, whose bytes are all allocated on the disk.

    Raises:
        OSError: it cannot be written, or the disk is full.
    """
    import numpy as np  # slow to import, and the command line starts with this module

    with path.open("wb") as file:
        described = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, described)
        size = file.tell() + math.prod(shape) * np.dtype(dtype).itemsize
    allocate(path, size)
    return np.lib.format.open_memmap(path, "r+")


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def write_png(path: Path, picture: "np.ndarray") -> None:
    """Writes an RGB picture (h, w, 3) uint8 as a PNG, atomically."""
    import cv2  # slow to import, and the command line starts with this module

    with writing(path) as temporary:
        temporary.write_bytes(cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes())


def read_record(path: Path) -> dict[str, Any]:
    """Returns the mapping in a JSON file that a stage wrote; an empty one where the file is missing or damaged, which
    the stage's manifest tells, so that the stage runs again."""
    try:
        data = read_json(path)
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def require_regular(path: Path) -> None:
    """Checks that what is there is a file or a folder: pipes and devices are read without an end.

    Raises:
        OSError: it is something else, or is not there.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "it is a pipe or a device, and a file is expected", str(path))


def read_json(path: Path) -> Any:
    """Returns a JSON file's content."""
    require_regular(path)
    return json.loads(path.read_text(encoding="utf-8"))
