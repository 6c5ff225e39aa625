"""Whether a file is as the stage left it that wrote it, and how files of arrays and tables are read.

Every reader of an artefact asks this, so that a damaged file is named by whoever comes upon it first, with what makes
it again: never a traceback, never silent use. Manifests say what was written; size and time tell whether a file
changed, and its content where they differ, or always with `--verify`.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core import freshness
from pipeline.core.errors import PipelineError, first_line
from pipeline.core.files import require_regular, root, shown
from pipeline.core.version import program

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


ARTEFACTS = ("work/", "folds/", "submissions/")
"""Where stages write, under the root."""
_in_work = set[Path]()


def require_intact(path: Path, by_content: bool = False) -> None:
    """Checks that a file is as the stage left it that wrote it; a file that no manifest lists is as it is.

    Args:
        path: the file.
        by_content: compare its content, whatever its size and time.

    Raises:
        PipelineError: it is not, or is missing; what makes it again is named.
    """
    if path.is_dir() or path in _in_work:
        return
    record = _maker_of(path)
    if record and not path.exists():
        raise PipelineError(f"{shown(path)}, which {record['stage']} wrote, is missing: {remedy(path)}.")
    if record and not (path.is_file() and freshness.is_as_written(path, record["outputs"], by_content)):
        raise PipelineError(f"{shown(path)} is not what {record['stage']} wrote: {remedy(path)}.")


@contextmanager
def in_work(paths: Iterable[Path]) -> Iterator[None]:
    """Lets files be as they are in the block, in which a stage writes them: an old manifest may still list them."""
    added = set(paths) - _in_work
    _in_work.update(added)
    try:
        yield
    finally:
        _in_work.difference_update(added)


def changed(paths: Iterable[Path]) -> Iterator[PipelineError]:
    """Yields an error for each of these files, or files in these folders, whose content is not what a stage wrote."""
    for path in paths:
        for file in path.glob("*") if path.is_dir() else [path]:
            try:
                require_intact(file, by_content=True)
            except PipelineError as error:
                yield error


def remedy(path: Path) -> str:
    """Returns what makes a damaged file again."""
    record = _maker_of(path)
    if record is None:
        return f"put the file back, or delete it and make it again with `{program()} run RECIPE`"
    if record["stage"] == "train":
        return "put the file back, or train again with `--force`"
    return f"put the file back, or make it again: {program()} run RECIPE, or {record['stage']} with --force"


def damaged(path: Path, error: Exception | str, what_to_do: str = "") -> PipelineError:
    """Returns the error that says what is wrong with a file, and what to do, by default what makes it again."""
    fault = error if isinstance(error, str) else " ".join(first_line(error).split())[:120]
    return PipelineError(f"{shown(path)} is damaged ({fault}): {what_to_do or remedy(path)}.")


# --- reading ---------------------------------------------------------------------------------------------------------


def read_array(path: Path) -> "np.ndarray":
    """Returns the array in a .npy file that a stage wrote, memory-mapped.

    Raises:
        PipelineError: the file is missing or damaged.
    """
    import numpy as np

    with explained(path):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise damaged(path, "it is not one array")
    return array


def read_arrays(path: Path, names: Iterable[str]) -> "tuple[np.ndarray, ...]":
    """Returns some arrays of a .npz file that a stage wrote.

    Raises:
        PipelineError: the file is missing or damaged.
    """
    import numpy as np

    with explained(path), np.load(path, allow_pickle=False) as content:
        return tuple(content[name] for name in names)


def read_parquet(path: Path, columns: list[str] | None = None) -> "pd.DataFrame":
    """Returns a table that a stage wrote as parquet, or some of its columns.

    Raises:
        PipelineError: the file is missing or damaged.
    """
    import pandas as pd

    with explained(path):
        return pd.read_parquet(path, columns=columns)


def read_texts(path: Path, needed: Iterable[str] = ()) -> "pd.DataFrame":
    """Returns a CSV that a stage wrote, every value as text.

    Raises:
        PipelineError: the file is missing or damaged, or lacks a column.
    """
    import pandas as pd

    with explained(path):
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if lacking := [name for name in needed if name not in table]:
        raise damaged(path, f"it has no column {lacking[0]}")
    return table


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns whatever a library says of a file into a sentence; a file that is not what a stage wrote is not opened."""
    require_intact(path)
    try:
        require_regular(path)
        yield
    except PipelineError:
        raise
    except FileNotFoundError:
        raise PipelineError(f"{shown(path)} does not exist: {remedy(path)}.") from None
    except MemoryError:
        if _maker_of(path):  # it is as it was written, and memory is short
            raise
        raise damaged(path, "it says that it holds more than the memory") from None
    except Exception as error:  # numpy, zipfile, zlib, pyarrow and pandas raise whatever they like on a damaged file
        raise damaged(path, error) from None


# --- who wrote it ----------------------------------------------------------------------------------------------------


def _maker_of(path: Path) -> dict[str, Any] | None:
    """The manifest that lists a file among what its step wrote, but for what a person may edit; None without one."""
    name = shown(path)
    if not name.startswith(ARTEFACTS):
        return None
    for manifest in _manifests_of(path):
        try:
            stat = manifest.stat()
        except FileNotFoundError:  # another process begins the step anew
            continue
        record = _sealed(manifest, stat.st_size, stat.st_mtime_ns)
        if record and name in record["outputs"] and name not in record["editable"]:
            return record
    return None


def _manifests_of(path: Path) -> Iterator[Path]:
    """The manifests that a file may be listed in: they lie beside it, but for those of submissions and of pictures."""
    yield from path.parent.glob("*manifest.json")
    if path.parent == root() / "submissions":
        yield from (root() / "work").glob(f"*/{path.stem}/submission.manifest.json")
    elif path.suffix == ".png":
        yield from path.parent.parent.glob("*.manifest.json")


@lru_cache(maxsize=512)
def _sealed(manifest: Path, _size: int, _modified: int) -> dict[str, Any] | None:
    """The stage, outputs and editable outputs of a manifest that this version wrote; None of an earlier one, which did
    not say what may be edited."""
    record = freshness.read_manifest(manifest)
    if record is None or "seal" not in record:
        return None
    return {key: record[key] for key in ("stage", "outputs", "editable")}
