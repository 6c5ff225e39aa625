"""Checks that artefacts are as their stage wrote them, and reading of arrays and tables with this check.

All code that reads artefacts uses this module. The first reader of a damaged file raises an error that names the file
and the command that rebuilds it, so that there is neither a traceback nor silent use. A file is compared with the
manifest of its stage: by size and time, and by content if these differ, or always with `--verify`.
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
"""The folders under the root into which stages write."""
_in_work = set[Path]()


def require_intact(path: Path, by_content: bool = False) -> None:
    """Checks that a file is as its stage wrote it. Files that no manifest lists are not checked.

    Args:
        path: the file.
        by_content: whether the content is compared even if size and time are unchanged.

    Raises:
        PipelineError: the file was changed or is missing. The message says how to rebuild it.
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
    """Disables the check for files that a stage writes in the block, because an old manifest may still list them."""
    added = set(paths) - _in_work
    _in_work.update(added)
    try:
        yield
    finally:
        _in_work.difference_update(added)


def changed(paths: Iterable[Path]) -> Iterator[PipelineError]:
    """Yields an error for each file whose content is not what a stage wrote. `paths` are files, or folders of files."""
    for path in paths:
        for file in path.glob("*") if path.is_dir() else [path]:
            try:
                require_intact(file, by_content=True)
            except PipelineError as error:
                yield error


def remedy(path: Path) -> str:
    """Returns the advice how to rebuild a damaged file."""
    record = _maker_of(path)
    if record is None:
        return f"restore the file, or delete it and rebuild it with `{program()} run RECIPE`"
    if record["stage"] == "train":
        return "restore the file, or train again with `--force`"
    return f"restore the file, or rebuild it: {program()} run RECIPE, or {record['stage']} with --force"


def damaged(path: Path, error: Exception | str, what_to_do: str = "") -> PipelineError:
    """Returns the error for a damaged file.

    Args:
        path: the file.
        error: what is wrong with it.
        what_to_do: the advice; by default how to rebuild the file.
    """
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
    """Returns the arrays with these names from a .npz file that a stage wrote.

    Raises:
        PipelineError: the file is missing or damaged.
    """
    import numpy as np

    with explained(path), np.load(path, allow_pickle=False) as content:
        return tuple(content[name] for name in names)


def read_parquet(path: Path, columns: list[str] | None = None) -> "pd.DataFrame":
    """Returns a table, or some of its columns, from a Parquet file that a stage wrote.

    Raises:
        PipelineError: the file is missing or damaged.
    """
    import pandas as pd

    with explained(path):
        return pd.read_parquet(path, columns=columns)


def read_texts(path: Path, needed: Iterable[str] = ()) -> "pd.DataFrame":
    """Returns the table in a CSV file that a stage wrote, with all values as text.

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
    """Checks a file with `require_intact`, and turns errors of the libraries that read it into a PipelineError.

    Raises:
        PipelineError: the file is missing or damaged.
    """
    require_intact(path)
    try:
        require_regular(path)
        yield
    except PipelineError:
        raise
    except FileNotFoundError:
        raise PipelineError(f"{shown(path)} does not exist: {remedy(path)}.") from None
    except MemoryError:
        if _maker_of(path):  # the file is as it was written, so memory is really short
            raise
        raise damaged(path, "its header says that it is larger than the memory") from None
    except Exception as error:  # numpy, zipfile, zlib, pyarrow and pandas raise errors of many types
        raise damaged(path, error) from None


# --- the manifest of a file ------------------------------------------------------------------------------------------


def _maker_of(path: Path) -> dict[str, Any] | None:
    """Returns the manifest that lists a file as an output that the user may not edit; None if there is none."""
    name = shown(path)
    if not name.startswith(ARTEFACTS):
        return None
    for manifest in _manifests_of(path):
        try:
            stat = manifest.stat()
        except FileNotFoundError:  # another process is starting the step again
            continue
        record = _sealed(manifest, stat.st_size, stat.st_mtime_ns)
        if record and name in record["outputs"] and name not in record["editable"]:
            return record
    return None


def _manifests_of(path: Path) -> Iterator[Path]:
    """Yields the manifests that may list a file. They lie beside it, except those of submissions and of pictures."""
    yield from path.parent.glob("*manifest.json")
    if path.parent == root() / "submissions":
        yield from (root() / "work").glob(f"*/{path.stem}/submission.manifest.json")
    elif path.suffix == ".png":
        yield from path.parent.parent.glob("*.manifest.json")


@lru_cache(maxsize=512)
def _sealed(manifest: Path, _size: int, _modified: int) -> dict[str, Any] | None:
    """Returns the stage, outputs and editable outputs of a manifest; None for manifests of earlier versions, which did
    not say which outputs may be edited."""
    record = freshness.read_manifest(manifest)
    if record is None or "seal" not in record:
        return None
    return {key: record[key] for key in ("stage", "outputs", "editable")}
