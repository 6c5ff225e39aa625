"""External predictions: arrays checked against the competition and converted to what validate and predict write.

Arrays are memory-mapped and read in chunks, never loaded as a whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from pipeline.core import external_arrays
from pipeline.core.config.competition import Competition
from pipeline.core.console import track
from pipeline.core.errors import PipelineError
from pipeline.masks.scale import BYTES, HALVES, Scale, scale_of

CHUNK = 2**24
"""The number of probabilities that are checked or converted at a time."""
BEYOND = 1e-3
"""How far outside 0 to 1 a float may lie, as after averaging in half precision. Such values are clipped."""
SUM = 0.02
"""How far the sum over the classes of a multiclass pixel may be from 1."""
WORDS = {"train": "training", "test": "test"}


@dataclass(frozen=True)
class ExternalPredictions:
    """External predictions of some training images or of all test images."""

    path: Path
    array: np.ndarray
    """(N, C, H, W), as in the file."""
    index: pd.DataFrame
    """Columns image_id and, optionally, fold and presence_<class>. The rows are in the order of the table of images and
    are labelled by their position in the array. Images that decode could not read are left out."""
    images: int
    """The number of images that the competition has in this subset."""

    @property
    def scale(self) -> Scale:
        """The scale of the file's values: integers are from 0 to 255, floats from 0 to 1."""
        return BYTES if self.array.dtype == BYTES.dtype else replace(HALVES, dtype=self.array.dtype)

    def name(self, row: int) -> str:
        """Returns the id of the image at a position in the array."""
        return self.index["image_id"].get(row, "an image that decode could not read")


def open_external(
    path: Path, subset: Literal["train", "test"], competition: Competition, images: pd.DataFrame
) -> ExternalPredictions:
    """Returns an external array with its index, after checking its shape and ids. Its values are not checked here.

    Args:
        path: the .npy file.
        subset: the images that it predicts.
        competition: the competition, for its classes.
        images: the rows of images.parquet and test_images.parquet.

    Raises:
        PipelineError: a wrong number of classes, a transposed array, unknown or repeated ids, a number of ids that
            differs from the number of rows, missing test images, or a presence value that is not a probability.
    """
    array, index = external_arrays.open_array(path), external_arrays.read_index(path)
    readable = images[images["subset"] == subset]
    _check_shape(path, array, competition, readable)
    ids = index["image_id"].set_axis(index["file_row"])
    _check_ids(path.with_suffix(".csv"), ids, len(array), images, subset)
    kept = index[index["image_id"].isin(readable["image_id"])]
    if kept.empty:
        raise PipelineError(f"{path.with_suffix('.csv')} has no {WORDS[subset]} image that decode could read.")
    place = pd.Series(range(len(readable)), index=readable["image_id"])
    kept = kept.sort_values("image_id", key=lambda ids: ids.map(place))
    return ExternalPredictions(path, array, _with_presence(path.with_suffix(".csv"), kept, competition), len(readable))


def check_values(external: ExternalPredictions, competition: Competition) -> None:
    """Checks that an array holds probabilities.

    Raises:
        PipelineError: the values are logits or NaN, or uint8 masks of 0 and 1, or the classes of a multiclass
            competition do not sum to 1. The message names the first image with the fault.
    """
    highest, array = 0.0, external.array
    size = _chunk(array)
    parts = ((start, np.asarray(array[start : start + size])) for start in range(0, len(array), size))
    for start, block in track(parts, f"check {external.path.name}", -(-len(array) // size)):
        low, high = block.min(axis=(1, 2, 3)), block.max(axis=(1, 2, 3))
        highest = max(highest, float(high.max()))
        if not external.scale.whole:
            bad = np.flatnonzero(~((low >= -BEYOND) & (high <= 1 + BEYOND)))  # also true for NaN
            if len(bad):
                raise PipelineError(_out_of_range(external, start + bad[0], low[bad[0]], high[bad[0]], competition))
        if competition.kind == "multiclass":
            _check_sums(external, start, block)
    if external.scale.whole and highest == 1:
        raise PipelineError(
            f"{external.path} is uint8 and holds only 0 and 1; expected probabilities from 0 to 255: multiply by 255, "
            "or give the float probabilities that the masks were made from, so that a threshold can be tuned."
        )


def converted(external: ExternalPredictions, rows: np.ndarray, competition: Competition) -> Iterator[np.ndarray]:
    """Yields the probabilities at these positions in chunks (n, C, H, W), as validate and predict write them: float16
    for a multiclass competition, else uint8 (p·255, rounded)."""
    scale, size = scale_of(competition), _chunk(external.array)
    for start in range(0, len(rows), size):
        block = external.array[rows[start : start + size]]
        if external.scale == scale == BYTES:
            yield block
            continue
        bounded = np.clip(external.scale.probability(block), 0, 1, dtype=np.float32, casting="same_kind")
        yield scale.stored(bounded)


def _chunk(array: np.ndarray) -> int:
    """The number of images that are read at a time."""
    return max(1, CHUNK // int(np.prod(array.shape[1:])))


def _check_shape(path: Path, array: np.ndarray, competition: Competition, images: pd.DataFrame) -> None:
    classes = competition.classes
    if array.shape[1] != len(classes):
        last = ": the classes are the last axis; numpy.moveaxis(array, -1, 1) moves it"
        raise PipelineError(
            f"{path} is {'×'.join(map(str, array.shape))}; expected images × {len(classes)} × rows × columns, for the "
            f"classes {', '.join(classes)}{last if array.shape[3] == len(classes) else ''}."
        )
    rows, columns = array.shape[2:]
    if rows != columns and len(images) and ((images["height"] == columns) & (images["width"] == rows)).all():
        raise PipelineError(
            f"{path} is {rows}×{columns} (rows × columns), and the images are {columns}×{rows}: it looks transposed; "
            "array.swapaxes(-1, -2) corrects it."
        )


def _check_ids(file: Path, ids: pd.Series, rows: int, images: pd.DataFrame, subset: str) -> None:
    if len(ids) != rows:
        raise PipelineError(
            f"{file} has {len(ids)} ids, and {file.with_suffix('.npy').name} has {rows} images; expected one row per "
            "image, in the order of the array."
        )
    repeated = ids[ids.duplicated()]
    if len(repeated):
        raise PipelineError(f"{file} repeats {_examples(repeated)}; expected each image once.")
    known = images["image_id"][images["subset"] == subset]
    unknown = ids[~ids.isin(images["image_id"][images["subset"].isin((subset, "faulty"))])]
    if len(unknown):
        other = unknown.isin(images["image_id"]).all()
        hint = "they belong to the other set" if other else f"valid ids look like {', '.join(known.head(2).map(repr))}"
        raise PipelineError(f"{file} has {_examples(unknown)} that no {WORDS[subset]} image has; {hint}.")
    missing = known[~known.isin(ids)]
    if subset == "test" and len(missing):
        raise PipelineError(
            f"{file} lacks {len(missing)} of {len(known)} test images, for instance {', '.join(missing.head(3))}; "
            "predict them too: a submission needs all of them."
        )


def _examples(ids: pd.Series) -> str:
    some = ", ".join(f"{image_id!r} (row {row})" for row, image_id in ids.head(3).items())
    return f"{len(ids)} id{'s' if len(ids) > 1 else ''}, {some}{', …,' if len(ids) > 3 else ','}"


def _with_presence(file: Path, index: pd.DataFrame, competition: Competition) -> pd.DataFrame:
    """Returns the index with presence_<class> as numbers; either all classes have the column, or none."""
    columns = [f"presence_{name}" for name in competition.classes]
    missing = [column for column in columns if column not in index]
    if len(missing) == len(columns):
        return index
    if missing:
        raise PipelineError(
            f"{file} lacks {', '.join(missing)}; expected presence_<class> for every class, or for none."
        )
    numbers = index[columns].apply(pd.to_numeric, errors="coerce")
    for column in columns:
        bad = index[column][~numbers[column].between(0, 1)]
        if len(bad):
            row = index["file_row"][bad.index[0]]
            raise PipelineError(f"{file} row {row}: {column} is {bad.iloc[0]!r}; expected a probability from 0 to 1.")
    return index.assign(**numbers)


def _out_of_range(external: ExternalPredictions, row: int, low: float, high: float, competition: Competition) -> str:
    where = f"{external.path} image {row} ({external.name(row)})"
    if np.isnan(low) or np.isnan(high):
        return f"{where} holds NaN; expected probabilities from 0 to 1: predict the image again, or leave it out."
    hint = "these look like logits: apply a " + (
        "softmax over the classes" if competition.kind == "multiclass" else "sigmoid"
    )
    if low >= 0 and high <= 255:
        hint = "these look like 0 to 255: divide by 255, or store them as uint8"
    return f"{where} holds values from {low:.3g} to {high:.3g}; expected probabilities from 0 to 1; {hint}."


def _check_sums(external: ExternalPredictions, start: int, block: np.ndarray) -> None:
    scale = external.scale
    rounded = block.shape[1] / 2 / scale.largest if scale.whole else 0
    off = np.abs(block.sum(axis=1, dtype=np.float32) / scale.largest - 1).max(axis=(1, 2))
    bad = np.flatnonzero(off > SUM + rounded)
    if len(bad):
        row = start + bad[0]
        raise PipelineError(
            f"{external.path} image {row} ({external.name(row)}): the classes of a pixel sum to 1 ± {off[bad[0]]:.2f}; "
            "expected 1, because a pixel has one class: apply a softmax over the classes."
        )
