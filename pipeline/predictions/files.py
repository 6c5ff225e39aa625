"""Files of predicted probabilities: an array (N, C, H, W) at the size of the pixel arrays, and a CSV of its image ids.

The dtype is uint8 (p·255) for binary and multilabel competitions, where the rounding has no measurable effect. It is
float16 for multiclass competitions, where uint8 would change which class is the largest and erase rare classes.

Files are written batch by batch, so memory does not grow with the number of images. They are written into a folder
.<name>.partial beside their destination and moved when they are complete. The sizes of the partial files tell how far
an interrupted attempt came, and the same attempt resumes after its last complete batch.

This module is separate from the stages validate and predict, so that stages which only read predictions do not depend
on the code of the network.
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
"""Predictions of a batch of images: mask probabilities (n, C, H, W), and the probabilities (n, C) that each class is
present in the image, or None if the network has no presence head."""


def write_probabilities(
    path: Path,
    shape: tuple[int, ...],
    dtype: np.dtype,
    batches: Iterable[Predicted],
    ids: list[str],
    classes: list[str],
    advance: Callable[[int], None],
) -> None:
    """Writes probabilities batch by batch into one array file, and the ids of its rows into a CSV beside it.

    See write_resumable; this function always starts from the first image.
    """
    write_resumable([path], shape, dtype, lambda _: ([batch] for batch in batches), ids, classes, advance)


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
    """Writes probabilities batch by batch into array files, and a CSV with the ids of their rows beside each.

    The CSV has columns presence_<class> if the network has a presence head. Resumes an interrupted attempt with the
    same fingerprint.

    Args:
        paths: the files; all hold the same images.
        shape: the shape (N, C, H, W) of each array.
        dtype: the dtype of each array.
        predict: takes the position of the first image to predict; yields batches of this image and all later ones. A
            batch has one element per file.
        ids: the N image ids.
        classes: the names of the classes.
        advance: called with the number of images done since the last call, first with those of an earlier attempt.
        fingerprint: identifies everything that the result depends on; "" starts from the first image.
        batch_size: the number of images per batch, so that a resumed attempt predicts the same batches.

    Raises:
        PipelineError: the disk is full or becomes full; then finished files are unchanged and the work done is kept.
            If `predict` raises the error, nothing is kept.
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
        for path in (file for final in paths for file in (final, final.with_suffix(".csv"))):
            os.replace(folder / path.name, path)
    shutil.rmtree(folder)


def partial_folder(path: Path) -> Path:
    """Returns the folder that holds the files of an unfinished attempt at writing `path`."""
    return path.with_name(f".{path.stem}.partial")


def shards_folder(path: Path) -> Path:
    """Returns the folder that holds separately predicted parts of a file until they are merged."""
    return path.with_name(f".{path.stem}.shards")


def stage_of(path: Path) -> str:
    """Returns the stage that writes a file of probabilities."""
    return "predict" if path.name.startswith("test") else "validate"


def read_predictions(path: Path, classes: list[str]) -> tuple[np.ndarray, list[str], np.ndarray | None]:
    """Returns the probabilities (N, C, H, W) uint8 or float16, memory-mapped, the N image ids, and the output of the
    presence head (N, C) float32 from 0 to 1, or None if the network has no presence head.

    Raises:
        PipelineError: the file is missing, or its index has another number of rows.
    """
    array, index = _read(path)
    columns = [f"presence_{name}" for name in classes]
    presence = index[columns].to_numpy(np.float32) if columns[0] in index else None
    return array, index["image_id"].tolist(), presence


def read_probabilities(path: Path) -> tuple[np.ndarray, list[str]]:
    """Returns the probabilities and the image ids as read_predictions does, without the presence head."""
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
    """Writes a file from what an interrupted attempt had predicted, with zeros for all other images.

    Returns a bool array (N,) that is true for the images that were predicted.

    Args:
        path: the file.
        shape: the shape (N, C, H, W) of the array.
        dtype: the dtype of the array.
        ids: the N image ids.
        classes: the names of the classes.
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
    """Returns the rows of a finished or unfinished file, and the presence head's output for them, NaN without one."""
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
    """Returns the complete rows of a .npy file that is still being written; None if there are none."""
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
    """A .npy file that grows row by row. Its header describes the complete array from the start."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def count(self) -> int:
        """Returns the number of complete rows."""
        written = self.path.stat().st_size if self.path.exists() else 0
        return max(0, written - len(self._header())) // self.row_bytes

    def open(self, rows: int) -> BinaryIO:
        """Returns the file cut to its first `rows` rows, positioned at its end for writing."""
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
    """Makes the folder of an attempt empty, unless it belongs to an attempt with the same fingerprint. The fingerprint
    "" never matches."""
    note = folder / "fingerprint"
    if fingerprint and note.exists() and note.read_text(encoding="utf-8") == fingerprint:
        return
    if folder.exists():
        shutil.rmtree(folder)
    make_folder(folder)
    note.write_text(fingerprint, encoding="utf-8")


def _or_nothing(batches: Iterable[Sequence[Predicted]], folder: Path) -> Iterator[Sequence[Predicted]]:
    """Yields the batches; if computing one fails, the folder is removed and there is nothing to resume."""
    try:
        yield from batches
    except PipelineError:
        shutil.rmtree(folder)
        raise


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns an OSError into a PipelineError."""
    try:
        yield
    except OSError as error:
        raise PipelineError(
            f"{shown(path)} could not be written: {error.strerror}. Earlier files are unchanged. Free some disk space "
            "and run the same command again; it resumes where it stopped."
        ) from error


def _index(ids: list[str], classes: list[str], presence: np.ndarray) -> pd.DataFrame:
    index = pd.DataFrame({"image_id": ids})
    if not np.isnan(presence).any():
        index[[f"presence_{name}" for name in classes]] = presence.round(5)
    return index
