"""Files of predicted probabilities: an array (N, C, H, W) at the size of the pixel arrays, and its image ids beside it.

uint8 (p·255) for binary and multilabel competitions, where it costs nothing measurable; float16 for multiclass ones,
where uint8 would change which class is the largest and erase rare ones.

They are written batch by batch, so that memory does not grow with the number of images, into a folder .<name>.partial
beside them, and put in place when they are whole. How far an interrupted attempt came follows from the sizes of its
files; the same attempt goes on after its last whole batch.

Apart from the stages validate and predict, so that those which only read them do not depend on the network's code.
"""

import io
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd

from pipeline.core.errors import PipelineError
from pipeline.core.files import allocate_ahead, make_folder, new_array, require_space, shown, writing
from pipeline.core.intact import damaged, read_array, read_texts

Predicted = tuple[np.ndarray, np.ndarray | None]
"""Of a batch of images: probabilities (n, C, H, W), and how probable it is that a class occurs in the image (n, C), or
None where the network has no such head."""


def write_probabilities(
    path: Path,
    shape: tuple[int, ...],
    dtype: np.dtype,
    batches: Iterable[Predicted],
    ids: list[str],
    classes: list[str],
    advance: Callable[[int], None],
) -> None:
    """Writes probabilities batch by batch into one array file, and the ids of its rows beside it.

    See write_resumable; this always begins anew.
    """
    write_resumable([path], shape, dtype, lambda _: ([one] for one in batches), ids, classes, advance)


def write_resumable(
    paths: Sequence[Path],
    shape: tuple[int, ...],
    dtype: np.dtype,
    predict: Callable[[int], Iterable[Sequence[Predicted]]],
    ids: list[str],
    classes: list[str],
    advance: Callable[[int], None],
    fingerprint: str = "",
    batch_size: int = 1,
) -> None:
    """Writes probabilities batch by batch into array files, and the ids of their rows, and presence_<class> where the
    network says it, into a .csv beside each; goes on where an attempt with the same fingerprint was interrupted.

    Args:
        paths: the files; all hold the same images.
        shape: of each array, (N, C, H, W).
        dtype: of each array.
        predict: from the first image that is wanted to batches of it and all that follow, each with one element a file.
        ids: of the images (N,).
        classes: their names.
        advance: told how many images are done more, those of an earlier attempt at once.
        fingerprint: what the result follows from; "" begins anew.
        batch_size: how many images a batch holds, so that an interrupted attempt goes on with the same batches.

    Raises:
        PipelineError: the disk is or becomes full: finished files stay as they were, and what is done is kept. Or
            `predict` raises it, and nothing is kept.
    """
    folder = partial_folder(paths[0])
    arrays = [_Rows(folder / path.name, shape, dtype) for path in paths]
    heads = [_Rows(folder / f"presence_{path.name}", (len(ids), len(classes)), np.dtype(np.float32)) for path in paths]
    with _explained(paths[0]):
        begin(folder, fingerprint)
    done = min(rows.count() for rows in (*arrays, *heads))
    done -= done % batch_size if done < len(ids) else 0
    needed = (len(ids) - done) * sum(rows.row_bytes for rows in (*arrays, *heads))
    require_space(folder, needed, f"probabilities of {len(ids) - done} images")
    advance(done)
    with ExitStack() as stack:
        with _explained(paths[0]):
            files = [[stack.enter_context(rows.open(done)) for rows in kind] for kind in (arrays, heads)]
        for batch in _or_nothing(predict(done) if done < len(ids) else (), folder):
            with _explained(paths[0]):
                for (array, presence), file, head in zip(batch, *files, strict=True):
                    known = np.full((len(array), len(classes)), np.nan) if presence is None else presence
                    for target, values, kind in ((head, known, np.float32), (file, array, dtype)):
                        target.write(np.ascontiguousarray(values, kind))
                        target.flush()
            advance(len(batch[0][0]))
    assert all(rows.count() == len(ids) for rows in arrays), "there are fewer or more predictions than images"
    with _explained(paths[0]):
        for rows, head in zip(arrays, heads, strict=True):
            _index(ids, classes, np.load(head.path)).to_csv(rows.path.with_suffix(".csv"), index=False)
        for path in (file for one in paths for file in (one, one.with_suffix(".csv"))):
            os.replace(folder / path.name, path)
    shutil.rmtree(folder)


def partial_folder(path: Path) -> Path:
    """Returns where the files of an unfinished attempt at writing a file lie."""
    return path.with_name(f".{path.stem}.partial")


def shards_folder(path: Path) -> Path:
    """Returns where parts of a file, each predicted for itself, lie until they are put together."""
    return path.with_name(f".{path.stem}.shards")


def stage_of(path: Path) -> str:
    """Returns the stage that writes a file of probabilities."""
    return "predict" if path.name.startswith("test") else "validate"


def read_predictions(path: Path, classes: list[str]) -> tuple[np.ndarray, list[str], np.ndarray | None]:
    """Returns the probabilities (N, C, H, W) uint8 or float16, mapped from the file, the image ids of their rows, and
    what the presence head says (N, C) float32, 0 to 1; None where the network has no such head.

    Raises:
        PipelineError: the file is missing, or its index has another number of rows.
    """
    array, index = _read(path)
    columns = [f"presence_{name}" for name in classes]
    presence = index[columns].to_numpy(np.float32) if columns[0] in index else None
    return array, index["image_id"].tolist(), presence


def read_probabilities(path: Path) -> tuple[np.ndarray, list[str]]:
    """Returns the probabilities and the image ids alone, as read_predictions does."""
    array, index = _read(path)
    return array, index["image_id"].tolist()


def _read(path: Path) -> tuple[np.ndarray, pd.DataFrame]:
    if not path.exists():
        raise PipelineError(f"{shown(path)} does not exist; run the {stage_of(path)} stage.")
    array, listed = read_array(path), path.with_suffix(".csv")
    index = read_texts(listed, ["image_id"])
    if array.ndim != 4:
        raise damaged(path, f"it has {array.ndim} axes, and probabilities have four")
    if len(index) != len(array):
        raise damaged(listed, f"it has {len(index)} rows, and {path.name} has {len(array)}")
    return array, index


def salvage(path: Path, shape: tuple[int, ...], dtype: np.dtype, ids: list[str], classes: list[str]) -> np.ndarray:
    """Writes a file of what an interrupted attempt has predicted of it, and zeros for all other images; returns which
    images (N,) bool are predicted.

    Args:
        path: the file.
        shape: of the array, (N, C, H, W).
        dtype: of the array.
        ids: of the images (N,).
        classes: their names.
    """
    done, presence = np.zeros(len(ids), bool), np.full((len(ids), len(classes)), np.nan, np.float32)
    parts = {0: path} | {
        int(part.stem.rpartition("_from_")[2]): part for part in shards_folder(path).glob(f"{path.stem}_from_*.npy")
    }
    parts |= {
        int(folder.name.removesuffix(".partial").rpartition("_from_")[2]): folder.with_name(
            f"{folder.name.removesuffix('.partial').removeprefix('.')}.npy"
        )
        for folder in shards_folder(path).glob(f".{path.stem}_from_*.partial")
    }
    with writing(path) as temporary:
        array = new_array(temporary, shape, dtype)
        for start, part in parts.items():
            rows, heads = _predicted_rows(part, shape, dtype, classes)
            stop = start + len(rows)
            array[start:stop], presence[start:stop], done[start:stop] = rows, heads, True
        array.flush()
        presence = np.where(done[:, None], presence, 0 if done.any() and not np.isnan(presence[done]).any() else np.nan)
        with writing(path.with_suffix(".csv")) as listed:
            _index(ids, classes, presence).to_csv(listed, index=False)
    return done


def _predicted_rows(
    path: Path, shape: tuple[int, ...], dtype: np.dtype, classes: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a file, be it finished or not, and what the presence head says of them, NaN without one."""
    if path.with_suffix(".csv").exists():
        array, _, presence = read_predictions(path, classes)
        return array, np.full((len(array), len(classes)), np.nan) if presence is None else presence
    folder = partial_folder(path)
    rows, heads = (_whole_rows(folder / name) for name in (path.name, f"presence_{path.name}"))
    if rows is None or heads is None:
        return np.empty((0, *shape[1:]), dtype), np.empty((0, len(classes)))
    count = min(len(rows), len(heads))
    return rows[:count], heads[:count]


def _whole_rows(path: Path) -> np.ndarray | None:
    """The whole rows of a .npy file that is being written; None where there is none."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        try:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        except ValueError:  # not even the header was written
            return None
        offset = file.tell()
    count = min(shape[0], (path.stat().st_size - offset) // (math.prod(shape[1:]) * dtype.itemsize))
    return np.memmap(path, dtype, "r", offset, (count, *shape[1:])) if count else None


# --- unfinished files ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rows:
    """A .npy file that grows by rows; its header tells of the whole array from the beginning."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def count(self) -> int:
        """Returns how many whole rows there are."""
        written = self.path.stat().st_size if self.path.exists() else 0
        return max(0, written - len(self._header())) // self.row_bytes

    def open(self, rows: int) -> BinaryIO:
        """Returns the file with its first rows alone, to write on after them."""
        file = self.path.open("r+b" if rows else "wb")
        file.write(self._header())
        file.truncate(len(self._header()) + rows * self.row_bytes)
        file.seek(0, os.SEEK_END)
        allocate_ahead(file.fileno(), len(self._header()) + self.shape[0] * self.row_bytes)
        return file

    def _header(self) -> bytes:
        buffer, descr = io.BytesIO(), np.lib.format.dtype_to_descr(self.dtype)
        described = {"descr": descr, "fortran_order": False, "shape": tuple(self.shape)}
        np.lib.format.write_array_header_1_0(buffer, described)
        return buffer.getvalue()


def begin(folder: Path, fingerprint: str) -> None:
    """Makes the folder of an attempt anew, unless it is the same one's; "" is never the same."""
    note = folder / "fingerprint"
    if fingerprint and note.exists() and note.read_text(encoding="utf-8") == fingerprint:
        return
    if folder.exists():
        shutil.rmtree(folder)
    make_folder(folder)
    note.write_text(fingerprint, encoding="utf-8")


def _or_nothing(batches: Iterable[Sequence[Predicted]], folder: Path) -> Iterator[Sequence[Predicted]]:
    """Yields the batches; where they cannot be had, there is nothing to go on with."""
    try:
        yield from batches
    except PipelineError:
        shutil.rmtree(folder)
        raise


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns what the disk says into a sentence."""
    try:
        yield
    except OSError as error:
        raise PipelineError(
            f"{shown(path)} could not be written: {error.strerror}. What was there before is unchanged; make room and "
            "run it again, and it goes on where it stopped."
        ) from error


def _index(ids: list[str], classes: list[str], presence: np.ndarray) -> pd.DataFrame:
    index = pd.DataFrame({"image_id": ids})
    if not np.isnan(presence).any():
        index[[f"presence_{name}" for name in classes]] = presence.round(5)
    return index
