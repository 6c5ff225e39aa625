"""Determines the image, the class and the group of a row of a table."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import pandas as pd

from pipeline.core.config.competition import Competition
from pipeline.core.config.raw_files import REST, Columns, Value, names_in, values_of
from pipeline.core.errors import PipelineError
from pipeline.core.tables import normal_form
from pipeline.decode.readers.files import SUFFIXES
from pipeline.decode.readers.names import ImageFiles, relative_name
from pipeline.decode.table import units_of

_FILE_ENDINGS = (*SUFFIXES, ".dcm", ".dicom", ".npy", ".npz", ".nii", ".nii.gz", ".svs")
"""Endings of image files, including formats that tables may mention although the files were converted later."""


def template_columns(template: str) -> list[str]:
    """Returns the columns from which an id is built: one, or those of a template such as `{subject}_{img}`."""
    return re.findall(r"{(\w+)}", template) or [template]


def key_columns(columns: Columns) -> list[str]:
    """Returns the columns that identify the image and the class of a row."""
    return [*template_columns(columns.id), *([columns.label] if columns.label else [])]


def ids_of(table: pd.DataFrame, template: str) -> list[str]:
    """Returns the ids of the rows of a table, by a column name or a template."""
    columns = template_columns(template)
    if columns == [template]:
        return table[template].tolist()
    values = zip(*(table[column] for column in columns), strict=True)
    return [template.format(**dict(zip(columns, row, strict=True))) for row in values]


def keys_of(table: pd.DataFrame, columns: Columns, labels: Iterable[str]) -> Iterator[tuple[str | None, str | None]]:
    """Yields the image id and the label of each row. The id is None if it does not match `columns.pattern`; the label
    is None if rows have no label.

    Args:
        table: the rows, with values as text.
        columns: the names and patterns of columns.
        labels: the known labels, which may contain the separator between id and label in the pattern.
    """
    ids = ids_of(table, columns.id)
    if columns.pattern is None:
        yield from zip(ids, _labels_of(table, columns), strict=True)
        return
    known = "|".join(map(re.escape, sorted(labels, key=len, reverse=True)))
    # try the longest known label first; without a known label, the id matches as many characters as possible
    parts = (("(?P<id>.+?)", f"(?P<label>{known})"), ("(?P<id>.+)", "(?P<label>.+?)"))
    pattern = re.escape(columns.pattern)
    expressions = [re.compile(pattern.replace(r"\{id\}", part).replace(r"\{label\}", label)) for part, label in parts]
    for text in ids:
        match = expressions[0].fullmatch(text) or expressions[1].fullmatch(text)
        yield (match["id"], match["label"]) if match else (None, None)


def _labels_of(table: pd.DataFrame, columns: Columns) -> Iterable[str | None]:
    """Returns the values of the label column, up to the end of the label."""
    if columns.label is None:
        return [None] * len(table)
    labels = table[columns.label].tolist()
    return [label.split(columns.label_until, 1)[0] for label in labels] if columns.label_until else labels


def image_finder(known: Collection[str]) -> Callable[[str], str]:
    """Returns a function that converts the text for an image in a table to the image's id.

    If the text is an id, it is returned. Otherwise the id with the same file name, without folders and ending, is
    returned: `train/7.tiff` is image 7. The text is returned unchanged if it matches no image or several, or if the
    table uses another text for this image elsewhere.

    Args:
        known: the ids of the images.
    """
    by_stem: dict[str, list[str]] = {}
    written: dict[str, str] = {}

    def find(text: str) -> str:
        image_id_found = text
        if text not in known:
            if not by_stem:
                for image_id in known:
                    by_stem.setdefault(file_stem(image_id), []).append(image_id)
            same = by_stem.get(file_stem(text), [])
            image_id_found = same[0] if len(same) == 1 else text
        return image_id_found if written.setdefault(image_id_found, text) == text else text

    return find


def file_finder(files: ImageFiles, folder: Path) -> Callable[[str], str | None]:
    """Returns a function that converts the name of an image in a list or an annotation file to the image's id. The name
    may be its path or the end of it, its file name with or without an ending, or its id. The result is None if the name
    matches no image, or several."""
    by_base: dict[str, list[tuple[str, str]]] = {}
    for image_id, path in [*files.others.items(), *files.paths.items()]:
        name = normal_form(relative_name(path, folder))
        by_base.setdefault(path.name, []).append((name, image_id))
    by_id = image_finder(files.all_ids)

    def find(text: str) -> str | None:
        text = normal_form(text).replace("\\", "/")
        same = by_base.get(text.rsplit("/", 1)[-1], [])
        ends = [image_id for name, image_id in same if f"/{name}".endswith(f"/{text.lstrip('./')}")]
        if len(ends) == 1 or len(same) == 1:
            return ends[0] if len(ends) == 1 else same[0][1]
        if same:
            return None
        image_id = by_id(text)
        return image_id if image_id in files.all_ids else None

    return find


def file_stem(text: str) -> str:
    """Returns a file's name without its folders and the ending of an image; `\\` separates folders, too."""
    name = re.split(r"[/\\]", text)[-1]
    ending = next(
        (suffix for suffix in sorted(_FILE_ENDINGS, key=len, reverse=True) if name.lower().endswith(suffix)), ""
    )
    return name[: len(name) - len(ending)] or name


def class_numbers(competition: Competition) -> dict[str, int]:
    """Returns the number of the class for each label in a CSV file. The labels of a class are its values in the YAML.
    A class without a value, or whose value is a colour or `rest`, has its name as label; in a submission of class
    maps, its number."""
    return {
        _label(competition, number, value): number
        for number, given in enumerate(competition.values or competition.classes)
        for value in values_of(given)
    }


def class_labels(competition: Competition) -> list[str]:
    """Returns the label of each class in a CSV file: the first one if a class has several."""
    values = [values_of(given)[0] for given in competition.values or competition.classes]
    return [_label(competition, number, value) for number, value in enumerate(values)]


def _label(competition: Competition, number: int, value: Value) -> str:
    if competition.submission.format == "labels":
        return str(value if isinstance(value, int) else number)
    return competition.classes[number] if isinstance(value, tuple) or value == REST else str(value)


def is_placeholder(competition: Competition, labels: Iterable[str | None]) -> bool:
    """Returns whether the label column of a sample submission is only a placeholder: it holds a single label although
    there are several classes."""
    several = len(competition.foreground) > 1 and competition.submission.label is not None
    return several and len(set(labels)) == 1


def key_text(columns: Columns, image_id: str, label: str) -> str:
    """Returns the value of the id column for an image and class."""
    return columns.pattern.format(id=image_id, label=label) if columns.pattern else image_id


def is_missing(value: str) -> bool:
    """Returns whether a value of a group column stands for a missing group: blank, NA, NaN, null or none, in upper or
    lower case."""
    return value.strip().casefold() in _MISSING


_MISSING = {"", "na", "<na>", "n/a", "#n/a", "nan", "null", "none"}


def own_group(image_id: str) -> str:
    """Returns the name of the separate group of an image without a group."""
    return f"image {image_id} alone"


def group_in(pattern: str, image_id: str) -> str | None:
    """Returns the part `{group}` of an id, where each name in braces matches as few characters as possible; None if the
    id does not match the pattern."""
    match = re.fullmatch(re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+?)", re.escape(pattern)), image_id)
    return match["group"] if match else None


def group_of(competition: Competition, image_id: str, extra: dict[str, str]) -> str | None:
    """Returns the group of a training image, from further columns, from parts of its path or from its id; None if the
    competition has no groups.

    Raises:
        PipelineError: there is no such column, or the id does not match the pattern.
    """
    return None if competition.group is None else set_of(competition, competition.group, image_id, extra)


def set_of(competition: Competition, what: str, image_id: str, extra: dict[str, str], key: str = "group") -> str:
    """Returns the set to which an image belongs, by a column, a text with several columns, or a pattern of the id with
    `{group}`.

    Args:
        competition: the competition.
        what: the column, text or pattern.
        image_id: the id of the image.
        extra: the further columns of the image.
        key: the key of the YAML, for messages.

    Raises:
        PipelineError: there is no such column, or the id does not match the pattern.
    """
    if "{group}" in what:
        group = group_in(what, image_id)
        if group is None:
            raise PipelineError(f"competition {competition.name}: id {image_id} does not match `{key}: {what}`.")
        return group
    names = names_in(what) or [what]
    for name in names:
        if name not in extra:
            raise PipelineError(_no_column(competition, name, image_id, extra, key))
    return what.format(**{name: extra[name].strip() for name in names}) if names != [what] else extra[what].strip()


def units_by_id(competition: Competition, images: pd.DataFrame) -> dict[str, str]:
    """Returns the group of each image of a table, or its id if it has no group. Decode stores no groups of test images;
    they are determined from their paths, columns or ids."""
    units = dict(zip(images["image_id"], units_of(images), strict=True))
    extras = [name for name in images.columns if name.startswith("extra_")]
    for row in images[images["group"].eq("") & images["subset"].eq("test")].to_dict("records"):
        with suppress(PipelineError):  # test images may have no group
            extra = {name.removeprefix("extra_"): str(row[name]) for name in extras}
            units[row["image_id"]] = group_of(competition, row["image_id"], extra) or row["image_id"]
    return units


def _no_column(competition: Competition, name: str, image_id: str, extra: dict[str, str], key: str) -> str:
    columns = ", ".join(f"`{column}`" for column in extra)
    if columns:
        return f"competition {competition.name}: column `{name}` ({key}) is missing; found {columns}."
    return (
        f"competition {competition.name}: the `{name}` ({key}) of image {image_id} is not known, because it has no row "
        f"or the table has no such column: correct `{key}`, or set a table with a row for every image in `train: "
        f"{{table: …}}`."
    )
