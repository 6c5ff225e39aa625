"""Arrays of predictions made elsewhere, as they lie on disk: a .npy, and beside it a .csv of the same name with a row
an image: image_id, and perhaps fold and presence_<class>.

Apart from importing.py, because where a run's files lie depends on them.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pipeline.core.errors import PipelineError
from pipeline.core.shortage import pass_on
from pipeline.core.tables import read_csv

if TYPE_CHECKING:
    from pipeline.core.config.recipe import ArraysSettings


def open_array(path: Path) -> np.ndarray:
    """Returns an array (N, C, H, W), mapped from the file; C is 1 where the file has no class axis.

    Raises:
        PipelineError: no such file, not a .npy, or an array of another kind or shape.
    """
    if not path.is_file():
        raise PipelineError(
            f"{path} does not exist; expected predictions, a .npy, and their image ids, a .csv, beside it."
        )
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy raises whatever it likes on a damaged header
        pass_on(error)
        raise PipelineError(
            f"{path} is not a .npy that can be mapped: {error}; write it with numpy.save, all images of one size."
        ) from None
    if not isinstance(array, np.ndarray) or array.ndim not in (3, 4) or 0 in array.shape:
        shape = "several arrays" if not isinstance(array, np.ndarray) else f"shape {_sizes(array.shape)}"
        raise PipelineError(
            f"{path} holds {shape}; expected probabilities (images, rows, columns) or (images, classes, rows, columns)."
        )
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        hint = "; of masks of 0 and 1 write mask.astype(numpy.uint8) * 255" if array.dtype.kind in "bi" else ""
        raise PipelineError(f"{path} holds {array.dtype}; expected floats from 0 to 1, or uint8 from 0 to 255{hint}.")
    return array[:, None] if array.ndim == 3 else array


def image_size(arrays: "ArraysSettings") -> tuple[int, int]:
    """Returns the rows × columns of the arrays, from their headers.

    Raises:
        PipelineError: a file is missing or is none, or the two are of different size.
    """
    paths = [Path(path) for path in (arrays.oof, arrays.test) if path]
    sizes = [open_array(path).shape[2:] for path in paths]
    if len(set(sizes)) > 1:
        first, second = (f"{path} is {_sizes(size)}" for path, size in zip(paths, sizes, strict=True))
        raise PipelineError(f"{first}, and {second}: give both the same rows × columns.")
    for path in paths:
        if not path.with_suffix(".csv").is_file():
            raise PipelineError(
                f"{path.with_suffix('.csv')} does not exist; write it beside {path.name}: a column image_id, a row an "
                "image, in the array's order."
            )
    return sizes[0][0], sizes[0][1]


def read_index(path: Path) -> pd.DataFrame:
    """Returns the .csv beside an array, in its order: image_id (text), fold (int) and presence_<class> where they are,
    and file_row, the row of the file.

    Raises:
        PipelineError: not a CSV, no column image_id, or a fold that is none.
    """
    file = path.with_suffix(".csv")
    index = read_csv(file)
    if "image_id" not in index:
        raise PipelineError(f"{file} has no column image_id; it has {', '.join(map(repr, index))}.")
    if "fold" in index:
        bad = index.index[~index["fold"].str.fullmatch("[0-9]{1,9}")]
        if len(bad):
            value = index["fold"][bad[0]]
            raise PipelineError(
                f"{file} row {bad[0] + 2}: fold is {value!r}; expected 0, 1, 2, … in every row, or no column."
            )
        index["fold"] = index["fold"].astype(int)
    return index.assign(file_row=index.index + 2).reset_index(drop=True)


def folds_of(oof: Path, split_file: Path, count: int) -> list[int]:
    """Returns the folds that out-of-fold predictions made elsewhere are of: those their .csv says, or else those that
    the split puts its images into; before there is a split, all `count` that it will have."""
    index = read_index(oof)
    if "fold" in index:
        return sorted(set(index["fold"].tolist()))
    if not split_file.exists():
        return list(range(count))
    split = read_csv(split_file)
    known = {"image_id", "fold"} <= set(split) and split["fold"].str.fullmatch("[0-9]{1,9}").all()
    found = split["fold"][split["image_id"].isin(index["image_id"])].astype(int) if known else pd.Series(dtype=int)
    return sorted(set(found.tolist())) or list(range(count))


def _sizes(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
