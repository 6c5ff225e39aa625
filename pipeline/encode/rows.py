"""Reads the rows of a submission of any kind of file."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.core.config.submission_settings import file_of_name
from pipeline.core.errors import PipelineError
from pipeline.core.files import final_name
from pipeline.decode.readers.columns import keys_of
from pipeline.encode import file_kinds, mask_images
from pipeline.predictions.format import cells, further_columns
from pipeline.predictions.format.expected import Expected


@dataclass(frozen=True)
class Row:
    """One mask or instance of a submission."""

    number: int
    where: str
    """Its name in messages: `row 3`, or the name of a mask image."""
    value: str
    """The text in the id column."""
    image_id: str | None
    label: str | None
    text: str
    """The run lengths as they are written."""
    fault: str = ""
    """Why the run lengths cannot be read; "" if they can."""
    ignored: str = ""
    """In a true mask image, the run lengths of the pixels that do not count."""


def read_frame(path: Path, want: Expected) -> pd.DataFrame:
    """Returns the table of a submission; see file_kinds.read_rows.

    Raises:
        PipelineError: the file cannot be read, or is of another kind than the competition's submissions.
    """
    if file_kinds.holds_images(path):
        kind = "is a folder" if path.is_dir() else "is an archive without a table"
        raise PipelineError(f"{path} {kind}; the competition's submissions are tables (.{want.file}).")
    is_json = file_of_name(final_name(path)) == "json"
    if is_json != (want.file == "json"):
        kind, other = ("COCO's results", "tables") if is_json else ("a table", "COCO's results (.json)")
        raise PipelineError(f"{path} is {kind}; the competition's submissions are {other}.")
    return file_kinds.read_rows(path)


def rows_of(frame: pd.DataFrame, want: Expected) -> Iterator[Row]:
    """Yields every mask and instance in a table. For a cell that names classes, it also yields an empty mask of each
    class of which the cell has no instance."""
    images = {text: image_id for image_id, text in want.written.items()}
    values, texts = frame[want.settings.id].tolist(), frame[want.settings.rle].tolist()
    for place, (number, (name, label)) in enumerate(
        zip(frame.index + 2, keys_of(frame, want.settings, want.labels), strict=True)
    ):
        image_id = images.get(name, name) if name is not None else None
        row = Row(int(number), f"row {number}", values[place], image_id, label, texts[place])
        yield from _in_cell(row, want) if want.settings.cell else [row]


def _in_cell(row: Row, want: Expected) -> Iterator[Row]:
    instances = cells.split(row.text, want)
    labels = [want.labels[number] for number in want.classes] if want.settings.classes_in_cell else [row.label]
    if instances is None:
        between = "spaces" if want.several.isspace() else repr(want.several)
        fault = f"{row.text[:40]!r} does not have the form {want.settings.cell!r}, with {between} between instances"
        yield from (_of(row, label, "", fault) for label in labels[:1])
        return
    for instance in instances:
        label = instance.label if want.settings.classes_in_cell else row.label
        fault = "" if instance.score is None else further_columns.score_fault("the score", instance.score)
        if want.settings.classes_in_cell and label not in labels:
            label, fault = labels[0], f"label {instance.label!r} is not a class ({', '.join(map(str, labels))})"
        yield _of(row, label, instance.text, fault)
    named = {instance.label if want.settings.classes_in_cell else row.label for instance in instances}
    yield from (
        _of(row, label, want.convention.empty if instances else row.text) for label in labels if label not in named
    )


def _of(row: Row, label: str | None, text: str, fault: str = "") -> Row:
    return Row(row.number, row.where, row.value, row.image_id, label, text, fault)


def rows_of_images(path: Path, want: Expected, faults: list[str], truth: bool = False) -> Iterator[Row]:
    """Yields the masks of a zip or a folder of mask images; see mask_images.read."""
    if path.exists() and not file_kinds.holds_images(path):
        raise PipelineError(f"{path} is a table; the competition's submissions are zips or folders of mask images.")
    for number, mask in enumerate(mask_images.read(path, want, faults, truth)):
        label = None if mask.key[1] is None else want.labels[mask.key[1]]
        yield Row(number, mask.name, mask.key[0], mask.key[0], label, mask.text, mask.fault, mask.ignored)
