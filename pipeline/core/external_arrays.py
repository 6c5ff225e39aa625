"""Reading of external predictions: a .npy file, and beside it a .csv file of the same name with one row per image and
the columns image_id and optionally fold and presence_<class>.

This is a separate module from importing.py, because the paths of a run depend on it.
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
    """Returns a memory-mapped array (N, C, H, W); C is 1 if the array in the file has no class axis.

    Raises:
        PipelineError: the file does not exist, is not a .npy file, or has another dtype or number of dimensions.
    """
    if not path.is_file():
        raise PipelineError(
            f"{path} does not exist; expected a .npy file of predictions, and beside it a .csv file with their image "
            "ids."
        )
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy raises errors of many types for a damaged header
        pass_on(error)
        raise PipelineError(
            f"{path} is not a .npy file that can be memory-mapped: {error}; write it with numpy.save, with all images "
            "of one size."
        ) from None
    if not isinstance(array, np.ndarray) or array.ndim not in (3, 4) or 0 in array.shape:
        shape = "several arrays" if not isinstance(array, np.ndarray) else f"shape {_sizes(array.shape)}"
        raise PipelineError(
            f"{path} holds {shape}; expected probabilities (images, rows, columns) or (images, classes, rows, columns)."
        )
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        hint = "; for masks of 0 and 1 save mask.astype(numpy.uint8) * 255" if array.dtype.kind in "bi" else ""
        raise PipelineError(f"{path} holds {array.dtype}; expected floats from 0 to 1, or uint8 from 0 to 255{hint}.")
    return array[:, None] if array.ndim == 3 else array


def image_size(arrays: "ArraysSettings") -> tuple[int, int]:
    """Returns the rows × columns of the images in the arrays.

    Raises:
        PipelineError: a file is missing or is not an array of predictions, or the two have images of different sizes.
    """
    paths = [Path(path) for path in (arrays.oof, arrays.test) if path]
    sizes = [open_array(path).shape[2:] for path in paths]
    if len(set(sizes)) > 1:
        first, second = (f"{path} is {_sizes(size)}" for path, size in zip(paths, sizes, strict=True))
        raise PipelineError(f"{first}, and {second}: both must have the same rows × columns.")
    for path in paths:
        if not path.with_suffix(".csv").is_file():
            raise PipelineError(
                f"{path.with_suffix('.csv')} does not exist; write it beside {path.name}, with a column image_id and "
                "one row per image, in the order of the array."
            )
    return sizes[0][0], sizes[0][1]


def read_index(path: Path) -> pd.DataFrame:
    """Returns the table in the .csv file beside an array, one row per image in the order of the array.

    Its columns are image_id (text), fold (int) and presence_<class> if the file has them, and file_row, the number of
    the row in the file.

    Raises:
        PipelineError: the file is not a CSV file, has no column image_id, or has a value of fold that is not a number.
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
                f"{file} row {bad[0] + 2}: fold is {value!r}; expected 0, 1, 2, … in every row, or no column fold."
            )
        index["fold"] = index["fold"].astype(int)
    return index.assign(file_row=index.index + 2).reset_index(drop=True)


def folds_of(oof: Path, split_file: Path, count: int) -> list[int]:
    """Returns the folds of external out-of-fold predictions.

    These are the folds in their .csv file or, if it has none, the folds of their images in the split. Before the split
    exists, these are all `count` folds that it will have.
    """
    index = read_index(oof)
    if "fold" in index:
        return sorted(set(index["fold"].tolist()))
    if not split_file.exists():
        return list(range(count))
    split = read_csv(split_file)
    readable = {"image_id", "fold"} <= set(split) and split["fold"].str.fullmatch("[0-9]{1,9}").all()
    folds = split["fold"][split["image_id"].isin(index["image_id"])].astype(int) if readable else pd.Series(dtype=int)
    return sorted(set(folds.tolist())) or list(range(count))


def _sizes(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
