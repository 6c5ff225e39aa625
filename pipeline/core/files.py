"""The folders that everything lies in, and how files are written: atomically, under a temporary name and renamed."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import PipelineError

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


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path` and renames it to `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}{PARTIAL}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None or isinstance(error, FileNotFoundError):
            raise
        raise PipelineError(f"{shown(path)} could not be written: {error.strerror}. Nothing was changed.") from error
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Removes a file, or a folder with all that is in it, where there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def require_space(path: Path, needed: int, what: str) -> None:
    """Checks that the disk holds `needed` bytes more: arrays are mapped from it, and a full one would kill the process.

    Raises:
        PipelineError: it does not.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise PipelineError(
            f"{what} take {needed / 2**30:.1f} GiB, and the disk of {shown(path.parent)} has {free / 2**30:.1f} GiB "
            "free, which is the limit: make room, or set a smaller image.size or image.store."
        )


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


def read_json(path: Path) -> Any:
    """Returns a JSON file's content."""
    return json.loads(path.read_text(encoding="utf-8"))
