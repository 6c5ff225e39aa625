"""Tables of class maps: one row per image, with its id and the class of every pixel."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.core.tables import check_separator, column_names, is_parquet, normal_form
from pipeline.decode.readers.columns import image_finder
from pipeline.encode import file_kinds
from pipeline.encode.sentences import Measure, meant_id
from pipeline.predictions.format.expected import Expected, Key


def read_labels(path: Path, want: Expected) -> Iterator[tuple[int, str, np.ndarray | str]]:
    """Yields the row, the id, and the class numbers (pixels,) or a description of what is wrong with them.

    The file is read line by line, because a table of a million rows × 8192 columns would not fit into memory as text.
    """
    values, pixels = np.array([int(label) for label in want.labels]), len(want.header) - 1
    order = np.argsort(values)
    lines = file_kinds.lines_of(path)
    next(lines, "")
    for row, line in enumerate(lines, start=1 if is_parquet(path) else 2):
        if not line.strip():
            continue
        image_id, _, text = normal_form(line).rstrip("\r\n").partition(",")
        try:
            numbers = np.array(text.split(","), dtype=np.int64)
        except (ValueError, OverflowError):
            strange = [value for value in text.split(",") if not re.fullmatch(r"\s*-?[0-9]{1,18}\s*", value)]
            words = "is not a class" if strange[0].strip().isdecimal() else "is not a whole number"
            yield row, image_id, f"{strange[0][:40]!r} {words}"
            continue
        if len(numbers) != pixels:
            yield row, image_id, f"has {len(numbers)} pixels; expected {pixels}"
            continue
        labels, unknown = _classes_of(numbers, values, order)
        if unknown.any():
            yield row, image_id, f"{numbers[unknown][0]} is not a class ({', '.join(want.labels)})"
            continue
        yield row, image_id, labels.astype(np.uint8)


def _classes_of(numbers: np.ndarray, values: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the class number of each value of a file, and which values belong to no class.

    Args:
        numbers: the values in the file (pixels,).
        values: the values of the classes (C,).
        order: the indices that sort `values` (C,).
    """
    place = np.searchsorted(values, numbers, sorter=order).clip(max=len(values) - 1)
    labels = order[place]
    return labels, values[labels] != numbers


def faults_of(path: Path, want: Expected, measure: Measure | None) -> tuple[list[str], dict[Key, str] | None]:
    """Returns the faults in the order of their rows, and the first row of every key; None if the columns are wrong."""
    header = [column.strip('"') for column in next(file_kinds.lines_of(path), "").rstrip("\r\n").split(",")]
    check_separator(path, header)
    if header != want.header:
        last = f"{column_names(header[:3])}, … ({len(header)} columns)"
        return [f"columns are {last}; expected {want.header[0]}, 0, 1, … {want.header[-1]}"], None
    known, first = set(want.keys), {}  # type: tuple[set[Key], dict[Key, str]]
    faults, find = [], image_finder({image_id for image_id, _ in known})
    for row, image_id, labels in read_labels(path, want):
        key = image_id, None
        if key not in known:
            hint = meant_id(image_id, image_id, find(image_id))
            faults.append(f"row {row}: id {image_id!r} is not in the test set{hint}")
        elif key in first:
            faults.append(f"row {row}: id {image_id} is already in {first[key]}")
        elif isinstance(labels, str):
            faults.append(f"row {row}: id {image_id}: {labels}")
        elif image_id not in want.shapes:
            faults.append(f"row {row}: id {image_id}: no such image was decoded")
        elif measure:
            for number in want.classes:
                measure(image_id, number, (labels == number).view(np.uint8).reshape(want.shapes[image_id]))
        if key in known:
            first.setdefault(key, f"row {row}")
    return faults, first
