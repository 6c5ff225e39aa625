"""Reader for stacked arrays, as used in courses: X_train.npy, y_train.npy, X_test.npy, or the same arrays in a .npz
file.

The id of an image is its index in the array.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.config.raw_layouts import ArrayFiles, Arrays
from pipeline.core.errors import PipelineError
from pipeline.decode.formats.numpy_arrays import load
from pipeline.decode.readers.base import SUBSETS, Item, Listing, MaskFault, Masks, SubsetName, counted
from pipeline.decode.readers.columns import group_of
from pipeline.decode.readers.files import packed, read_image, read_table
from pipeline.masks.geometry import IGNORE


def list_items(competition: Arrays, folder: Path, subsets: Sequence[SubsetName] = SUBSETS) -> Listing:
    """Returns all images of these subsets from the arrays in `folder`.

    Raises:
        PipelineError: a file is missing or damaged, or the numbers of images and masks differ.
    """
    items: list[Item] = []
    for subset in subsets:
        files: ArrayFiles | None = getattr(competition, subset)
        if files is None:
            continue
        images = _open(folder, files.images)
        masks = _open(folder, files.masks) if files.masks else None
        if masks is not None and (len(masks) != len(images) or masks.ndim not in (3, 4)):
            raise PipelineError(
                f"{folder / str(files.masks)} has shape {masks.shape}, and {files.images} has shape {images.shape}; "
                "expected as many masks as images, (N, rows, columns), or with classes as a fourth axis."
            )
        extras = _extras(folder, files, len(images))
        for row in range(len(images)):
            read_masks = None if masks is None else partial(_masks, competition, str(files.masks), masks, row)
            group = group_of(competition, str(row), extras[row]) if subset == "train" else None
            read = partial(_image, competition, folder, files.images, row)
            path = files.images.partition(":")[0]
            items.append(Item(str(row), subset, path, read, read_masks, group, extras[row]))
    return Listing(items, [])


def raw_files(competition: Arrays, folder: Path, subset: SubsetName) -> tuple[Path, ...]:
    """Returns the files of a subset; for test images, including the sample submission."""
    files: ArrayFiles | None = getattr(competition, subset)
    if files is None:
        return ()
    names = [files.images, files.masks, files.table, competition.sample_submission if subset == "test" else None]
    return tuple(dict.fromkeys(folder / name.partition(":")[0] for name in names if name))


def opener(competition: Arrays, folder: Path) -> Callable[[Any], np.ndarray]:
    """Returns a function that reads the image (H, W, C) of a row of images.parquet."""

    def read(row: Any) -> np.ndarray:
        files = competition.test if row["subset"] == "test" and competition.test else competition.train
        return _image(competition, folder, files.images, int(row["image_id"]))

    return read


def _image(competition: Arrays, folder: Path, name: str, row: int) -> np.ndarray:
    file, _, key = name.partition(":")
    try:
        return read_image(folder / file, **competition.reading, slice_number=row, axis=0, key=key or None)
    except ValueError as error:
        raise type(error)(f"row {row}{f' of {key}' if key else ''} {error}") from error


def _open(folder: Path, name: str) -> np.ndarray:
    file, _, key = name.partition(":")
    path = folder / file
    if not path.exists():
        raise PipelineError(f"{path} does not exist; the competition's YAML names it{packed(path.parent)}.")
    try:
        array = load(path, key or None)
    except ValueError as error:
        hint = f": name one, `{file}:NAME`" if "it is not known which" in str(error) else ""
        raise PipelineError(f"{path} {error}{hint}.") from None
    if array.ndim < 3 or not len(array):
        raise PipelineError(
            f"{path} has shape {array.shape}; expected (N, rows, columns) or (N, rows, columns, channels)."
        )
    return array


def _extras(folder: Path, files: ArrayFiles, count: int) -> list[dict[str, str]]:
    """Returns the further columns of each image, from the rows of the table, which are in the order of the images."""
    if files.table is None:
        return [{} for _ in range(count)]
    table = read_table(folder / files.table, [])
    if len(table) != count:
        raise PipelineError(
            f"{folder / files.table} has {len(table)} rows, and {files.images} has {count} images; expected one row "
            "per image, in their order."
        )
    records: list[Any] = table.to_dict("records")
    return records


def _masks(competition: Arrays, file: str, masks: np.ndarray, row: int, shape: tuple[int, int]) -> Masks:
    """Returns the masks of an image, from one plane per class or from a class map."""
    mask, names = np.array(masks[row]), competition.classes
    if mask.dtype.kind == "f" and (broken := mask[~(np.isfinite(mask) & (mask % 1 == 0))]).size:
        text = f"the mask holds {counted(broken)}; expected whole numbers, one for each class"
        raise MaskFault(file, row, text)
    if mask.ndim == 3:
        mask = mask if competition.channels_first else np.moveaxis(mask, -1, 0)
        mask = mask[0] if len(mask) == 1 else mask
    if mask.shape[-2:] != shape or (mask.ndim == 3 and len(mask) != len(names)):
        text = f"the mask has shape {masks.shape[1:]}, and its image is {shape[0]}×{shape[1]}"
        raise MaskFault(file, row, f"{text}, and there are {len(names)} classes")
    planes = _planes(competition, mask)
    ignored: np.ndarray = np.zeros(shape, bool)
    if competition.ignore_value is not None:
        ignored[np.atleast_3d(competition.ignore_value == mask.T).any(2).T] = True
        planes[:, ignored] = IGNORE
    known = planes.any(0) | ((mask == 0) & (competition.kind != "multiclass"))
    if not known.all():
        strange = np.broadcast_to(mask, known.shape)[~known]
        raise MaskFault(file, row, f"the mask holds {counted(strange)}, which is no class of the YAML")
    return Masks(planes)


def _planes(competition: Arrays, mask: np.ndarray) -> np.ndarray:
    """Returns planes (C, h, w) uint8 of 0 and 1. If there is one class without a given value, all pixels that are not 0
    belong to it, provided that they all have the same value."""
    if mask.ndim == 3:
        return (mask == 1).astype(np.uint8)
    values = competition.class_values
    if len(values) == 1 and competition.values is None:
        present = np.unique(mask[(mask != 0) & (mask != competition.ignore_value)])
        values = present.tolist() if len(present) == 1 else values
    return np.stack([mask == value for value in values]).astype(np.uint8)
