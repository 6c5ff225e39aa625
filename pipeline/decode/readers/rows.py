"""Reading of tables: the rows of masks, of a sample submission and of further columns, and their faults."""

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from rich.markup import escape

from pipeline.core.config.raw_files import Columns, Subset
from pipeline.core.config.raw_layouts import RleCsv
from pipeline.core.console import warn
from pipeline.core.errors import PipelineError
from pipeline.core.tables import normal_form, unseen
from pipeline.decode.readers.base import Fault, SubsetName
from pipeline.decode.readers.columns import (
    class_numbers,
    file_finder,
    image_finder,
    is_placeholder,
    key_columns,
    keys_of,
    template_columns,
)
from pipeline.decode.readers.files import natural, read_table
from pipeline.decode.readers.names import ImageFiles, as_on_disk

MOST_FURTHER = 200
"""Maximum number of further columns of a table that are kept if the YAML does not name them."""


@dataclass
class Rows:
    """The rows of a mask table for one image."""

    texts: list[tuple[int, int, str]] = field(default_factory=list)
    """Row number, class and run-length text of each row."""
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def row(self) -> int | None:
        """The number of the first row; None if there is none."""
        return self.texts[0][0] if self.texts else None


def read_rows(
    competition: RleCsv, subset: SubsetName, path: Path, files: ImageFiles
) -> tuple[dict[str, Rows], list[Fault]]:
    """Returns the rows of a table of masks by image id, and their faults: an id without an image, an unknown label, a
    repeated key, an image without a row.

    Raises:
        PipelineError: the table cannot be read, or lacks a column.
    """
    columns, numbers, settings = competition.columns, class_numbers(competition), getattr(competition, subset)
    used = [*key_columns(columns), columns.rle]
    table = read_table(path, used)
    faults: list[Fault] = []
    by_image: dict[str, Rows] = {}
    seen: dict[tuple[str, str | None], int] = {}
    texts, further = table[columns.rle].tolist(), table.drop(columns=[columns.rle, *_plain_keys(columns)])
    further = limited(further, competition, path)
    extra: list[Any] = further.to_dict("records")
    keys, find = keys_of(table, columns, numbers), image_finder(files.all_ids)
    for place, (row, (written, label)) in enumerate(zip(table.index + 2, keys, strict=True)):
        if written is None:
            value = table[columns.id].iat[place]
            faults.append(Fault(path.name, row, f"{columns.id} {value!r} does not match the pattern {columns.pattern}"))
            continue
        image_id = find(written)
        droppable = image_id if subset == "train" else None
        if not files.has(image_id):
            faults.append(Fault(path.name, row, _no_image(image_id, settings), droppable))
        if label is not None and label not in numbers:
            if competition.other_labels == "leave_out":
                by_image.setdefault(image_id, Rows(extra=extra[place]))
                continue
            known = ", ".join(numbers)
            faults.append(Fault(path.name, row, f"label {label!r} is no class of the YAML ({known})", droppable))
            continue
        first = seen.setdefault((image_id, label), row)
        if first != row and columns.row != "instance":
            faults.append(Fault(path.name, row, f"{_name(image_id, label)} is already in row {first}", droppable))
            continue
        rows = by_image.setdefault(image_id, Rows(extra=extra[place]))
        rows.texts.append((row, 0 if label is None else numbers[label], texts[place]))
    if columns.absent == "fault" and not competition.images_together:
        for image_id in sorted(files.paths.keys() - by_image.keys(), key=natural):
            image, droppable = file_of(settings, image_id), image_id if subset == "train" else None
            faults.append(Fault(image, None, f"image without a row in {path.name}", droppable))
    return by_image, faults


def sample_ids(competition: RleCsv, folder: Path, files: ImageFiles) -> tuple[list[str], list[Fault]]:
    """Returns the ids of the sample submission in its order, and their faults.

    Raises:
        PipelineError: see `read_rows`.
    """
    name, columns, settings = competition.sample_submission or "", competition.submission, competition.test
    assert settings is not None
    lengths = [columns.rle] if columns.format == "rle" else []
    sample, faults = read_table(folder / name, [*key_columns(columns), *lengths], only=True, section="submission"), []
    first: dict[tuple[str, str | None], int] = {}
    ids: dict[str, None] = {}
    numbers, find = class_numbers(competition), image_finder(files.all_ids)
    keys = list(keys_of(sample, columns, numbers))
    placeholder = is_placeholder(competition, (label for _, label in keys))
    for place, (row, (image_id, label)) in enumerate(zip(sample.index + 2, keys, strict=True)):
        if image_id is None:
            value = sample[columns.id].iat[place]
            faults.append(Fault(name, row, f"{columns.id} {value!r} does not match the pattern {columns.pattern}"))
            continue
        if label is not None and label not in numbers and not placeholder:
            text = (
                f"label {label!r} is no class of the YAML ({', '.join(numbers)}); if the labels are only placeholders, "
                "set "
            )
            faults.append(Fault(name, row, text + "`sample_submission: null`"))
        if not files.has(image_id) and image_id not in ids:
            hint = _name_hint(settings.images, image_id, find(image_id), files)
            faults.append(Fault(name, row, f"{_no_image(image_id, settings)}{hint}"))
        if first.setdefault((image_id, label), row) != row and columns.row != "instance":
            faults.append(Fault(name, row, f"{_name(image_id, label)} is already in row {first[image_id, label]}"))
        ids[image_id] = None
    for image_id in files.paths:
        if image_id not in ids and not competition.images_together:
            faults.append(Fault(file_of(settings, image_id), None, f"image without a row in {name}"))
    return list(ids), faults


def limited(further: pd.DataFrame, competition: RleCsv, path: Path) -> pd.DataFrame:
    """Returns the further columns of a table that are kept with its images. Of a very wide table, only the first
    MOST_FURTHER and those that the YAML names are kept, and a warning gives their number."""
    if further.shape[1] <= MOST_FURTHER:
        return further
    yaml = json.dumps(competition.model_dump(mode="json"), ensure_ascii=False)
    kept = [name for place, name in enumerate(further.columns) if place < MOST_FURTHER or name in yaml]
    warn(
        f"  [yellow]{escape(path.name)} has {further.shape[1]:,} columns besides ids and masks. {len(kept):,} are "
        "kept: the first ones and those that the competition's YAML names[/yellow]"
    )
    return further[kept]


def _plain_keys(columns: Columns) -> list[str]:
    """Returns the key columns that hold only the id or the label. Columns of a template are not included, because they
    may be groups."""
    return [name for name in (columns.id, columns.label) if name and template_columns(name) == [name]]


def further_columns(
    competition: RleCsv, settings: Subset, folder: Path, files: Collection[str]
) -> dict[str, tuple[int, dict[str, str]]]:
    """Returns the row number and the values of the further table by image id; an empty mapping if there is no such
    table.

    Raises:
        PipelineError: see `read_rows`; or no row belongs to an image, or two rows of the same image differ.
    """
    if settings.table is None:
        return {}
    table = read_table(folder / settings.table, [])
    ids = table.iloc[:, 0].map(image_finder(files))
    if files and not set(ids) & set(files):
        raise PipelineError(_no_image_of(settings.table, table, files))
    doubtful = ids[ids.duplicated() & ~table.duplicated()]
    if len(doubtful):
        image_id, row = doubtful.iloc[0], doubtful.index[0] + 2
        first = table.index[ids == image_id][0] + 2
        raise PipelineError(
            f"{settings.table} row {row}: id {image_id} is already in row {first}, with other values ({len(doubtful)} "
            f"such row{'s' if len(doubtful) > 1 else ''}): each image must have one row; remove the others."
        )
    records: list[Any] = limited(table.iloc[:, 1:], competition, folder / settings.table).to_dict("records")
    return dict(zip(ids, zip(table.index + 2, records, strict=True), strict=True))


def listed_images(name: str, folder: Path, files: ImageFiles) -> tuple[ImageFiles, list[Fault]]:
    """Returns the image files in the list of a subset, and the faults of the list.

    Raises:
        PipelineError: the list cannot be read, or contains no image.
    """
    path = as_on_disk(folder, name)
    if path.suffix.lower() == ".csv":
        table = read_table(path, [], hint="; `listed_in` in the competition's YAML names it")
        lines = dict(zip(table.index + 2, table.iloc[:, 0], strict=True))
    else:
        try:
            text = normal_form(path.read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError) as error:
            raise PipelineError(f"{path} is not a readable list of images: {' '.join(str(error).split())}.") from None
        lines = {row: line.strip() for row, line in enumerate(text.splitlines(), start=1) if line.strip()}
    find, faults, wanted = file_finder(files, folder), [], set()
    for row, line in lines.items():
        image_id = find(line) or find(line.split()[0] if line.split() else "")
        if image_id is None or not files.has(image_id):
            faults.append(Fault(name, row, f"{line!r} is the name of no image, or of several"))
        else:
            wanted.add(image_id)
    if not wanted:
        example = f", for instance {next(iter(lines.values()))!r}" if lines else ""
        raise PipelineError(
            f"none of the {len(lines)} rows of {name} is the name of an image{example}: correct `listed_in`."
        )
    kept = {image_id: path for image_id, path in files.paths.items() if image_id in wanted}
    left_out = [path for image_id, path in [*files.paths.items(), *files.others.items()] if image_id not in wanted]
    further = [pair for pair in files.further if pair[0] in wanted]
    return ImageFiles(kept, further, parts=files.parts, left_out=left_out), faults


def _no_image_of(name: str, table: pd.DataFrame, files: Collection[str]) -> str:
    """Returns the message about a further table whose first column does not contain any image, with examples of its
    values and of ids."""
    first, *others = table.columns
    with_ids = [column for column in others if set(table[column].map(image_finder(files))) & set(files)]
    example = f", for instance {table[first].iloc[0]!r}," if len(table) else ""
    remedy = (
        f"make `{with_ids[0]}`, which holds ids, the first column" if with_ids else "correct the values, or `table`"
    )
    return (
        f"{name}: none of the {len(table)} values of its first column `{first}`{example} is the id of an image or the "
        f"name of its file; ids of images look like {next(iter(files))!r}: {remedy}."
    )


def file_of(settings: Subset, image_id: str) -> str:
    """Returns the expected path of the image with this id; for ids that are built from parts, the pattern."""
    return settings.images.replace("{id}", image_id)


def _no_image(image_id: str, settings: Subset) -> str:
    """Returns the message that an id has no image, which mentions invisible characters in the id."""
    if odd := unseen(image_id):
        return f"id {image_id!r} has no image: it is written {odd}"
    if settings.id:
        return f"id {image_id} has no image: no file that matches {settings.images} has this id ({settings.id})"
    return f"id {image_id} has no image: {file_of(settings, image_id)} does not exist"


def _name(image_id: str, label: str | None) -> str:
    return f"id {image_id}" if label is None else f"id {image_id} with label {label}"


def _name_hint(pattern: str, written: str, image_id: str, files: ImageFiles) -> str:
    """Returns the end of a sentence about an id of the sample submission that is the file name of an image; "" if it is
    not."""
    path = files.paths.get(image_id) or files.others.get(image_id)
    if path is None:
        return ""
    if path.name == written and pattern.count("{id}") == 1:
        return f'; the ids there are file names: set `images: "{Path(pattern).parent / "{id}"}"`'
    return (
        f"; this is probably image {image_id}, but the ids of a submission must be those of the images: rename the "
        "images, or set `sample_submission: null` and change the ids in the written submission"
    )
