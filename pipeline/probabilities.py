"""Files of predicted probabilities: an array (N, C, H, W) at the size of the pixel arrays, and its image ids beside it.

uint8 (p·255) for binary and multilabel competitions, where it costs nothing measurable; float16 for multiclass ones,
where uint8 would change which class is the largest and erase rare ones.

Apart from the predict stage, so that the stages that only read them do not depend on the network's code.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.errors import PipelineError
from pipeline.workspace import require_space, shown, writing


def write_probabilities(
    path: Path,
    shape: tuple[int, ...],
    dtype: np.dtype,
    batches: Iterator[tuple[np.ndarray, np.ndarray | None]],
    ids: list[str],
    classes: list[str],
    advance: Any,
) -> None:
    """Writes probabilities batch by batch into one array file, and the ids of its rows beside it.

    A batch is (n, C, H, W), and (n, C) or None: how probable it is that a class occurs in the image, which is written
    beside the ids as presence_<class>.
    """
    require_space(path, math.prod(shape) * dtype.itemsize, f"probabilities of {shape[0]} images")
    with writing(path) as temporary:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=shape)
        position, presence = 0, []
        for batch, present in batches:
            array[position : position + len(batch)] = batch
            position += len(batch)
            presence += [] if present is None else [present]
            advance(len(batch))
        array.flush()
    index = pd.DataFrame({"image_id": ids})
    if presence:
        index[[f"presence_{name}" for name in classes]] = np.concatenate(presence).round(5)
    with writing(path.with_suffix(".csv")) as temporary:
        index.to_csv(temporary, index=False)


def read_probabilities(path: Path) -> tuple[np.ndarray, list[str]]:
    """Returns the probabilities (N, C, H, W) uint8 or float16, mapped from the file, and the image ids of their rows.

    Raises:
        PipelineError: the file is missing, or its index has another number of rows.
    """
    if not path.exists():
        raise PipelineError(f"{shown(path)} does not exist; run the predict stage.")
    array = np.load(path, mmap_mode="r")
    ids = pd.read_csv(path.with_suffix(".csv"), dtype=str, keep_default_na=False)["image_id"].tolist()
    if len(ids) != len(array):
        raise PipelineError(f"{shown(path)} has {len(array)} rows, its index {len(ids)}; delete both.")
    return array, ids
