"""Guesses the meaning of tables among the raw files: the image and class of a row, and the column of run lengths."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import compress, permutations
from pathlib import Path
from typing import Literal

import pandas as pd

from pipeline.core.errors import PipelineError
from pipeline.core.tables import read_header
from pipeline.decode.readers.columns import image_finder, template_columns
from pipeline.decode.readers.files import evenly, natural, read_table
from pipeline.decode.rle_checks import Certainty
from pipeline.masks.rle import Convention
from pipeline.new.guess.base import Files
from pipeline.new.guess.rle import is_damaged
from pipeline.new.guess.writing import writing_of

SEPARATORS = ("_", "-", " ", ":")
MOST_COLUMNS, MOST_LABELS, MOST_TABLES = 50, 60, 50
"""Limits: a table with more columns has one column per pixel; a column with more different values is not a class; and a
folder with more tables is skipped."""
ALIKE = 20
"""Maximum number of CSVs that are read if many folders have a CSV of the same name."""
SAMPLED = 1000
"""Number of rows on which a reading of a table is tried first."""
_CLASS_NAME = re.compile(r"class|label|categor", re.IGNORECASE)


@dataclass(frozen=True)
class Table:
    """A CSV file of the raw files, with every value as text."""

    name: str
    """Path relative to the folder of raw files."""
    frame: pd.DataFrame
    rle: str | None
    """The column of run lengths; None if there is none."""
    pixels: int = 0
    """Number of further columns named 0, 1, 2, …, one per pixel."""
    writing: Convention = Convention()
    """Format of the numbers of its run lengths; the rest of the convention is not known yet."""

    @property
    def is_sample(self) -> bool:
        """Whether it is named like a sample submission."""
        name = self.name.lower()
        return "sample" in name and "subm" in name


@dataclass(frozen=True)
class Key:
    """The way in which the rows of a table name images."""

    id: str
    """A column, or a template of several columns."""
    pattern: str | None
    files: Files
    ids: list[str]
    labels: list[str] | None

    @cached_property
    def share(self) -> float:
        """The share of the rows that name an existing image."""
        return sum(image_id in self.files.paths for image_id in self.ids) / max(len(self.ids), 1)

    @property
    def rank(self) -> tuple[float, int]:
        """Sort key of readings: the share of named images, then fewer labels."""
        return self.share, -len(set(self.labels or []))

    @property
    def columns(self) -> list[str]:
        """The columns from which the id is built."""
        return template_columns(self.id)


@dataclass(frozen=True)
class Rows:
    """The meaning of one row of a table."""

    kind: Literal["image", "class", "instance"]
    label: str | None
    """The column with the class of the row."""
    labels: list[str]
    """All values of this column, or of the label inside the id."""
    evidence: str
    until: str | None = None
    """The separator at which a label ends."""


@dataclass(frozen=True)
class Named:
    """A table, with the way in which its rows name images."""

    table: Table
    key: Key
    rows: Rows

    @property
    def certainty(self) -> Certainty:
        """`sure` if every row names an image."""
        return "sure" if self.key.share == 1 else "guess"

    @property
    def hits(self) -> str:
        """The beginning of a sentence about the share of rows that name an image."""
        if self.key.share == 1:
            return f"every id of {self.table.name} is"
        return f"{100 * self.key.share:.1f} % of the ids of {self.table.name} are"


def read_tables(folder: Path, paths: Iterable[Path]) -> tuple[list[Table], list[str]]:
    """Returns the CSVs among the files (also those without rows), and sentences about CSVs that are left out."""
    files = sorted((path for path in paths if path.suffix.lower() == ".csv"), key=lambda path: natural(str(path)))
    places = Counter(path.parent for path in files)
    crowded = {place: count for place, count in places.items() if count > MOST_TABLES}
    tables = []
    notes = [f"not used: {count} CSVs in {place.relative_to(folder)}/" for place, count in crowded.items()]
    alike: dict[str, int] = Counter()
    called = Counter(path.name for path in files if path.parent not in crowded)
    notes += [f"not looked at: all but {ALIKE} of {count} CSVs called {name}, of a folder each"
              for name, count in called.items() if count > MOST_TABLES]  # fmt: skip
    for path in (path for path in files if path.parent not in crowded):
        alike[path.name] += 1
        if called[path.name] > MOST_TABLES and alike[path.name] > ALIKE:
            continue
        name = path.relative_to(folder).as_posix()
        try:
            header = read_header(path)
            wide = len(header) > MOST_COLUMNS
            frame = read_table(path, header[:1] if wide else [], only=wide)
        except PipelineError as error:
            notes.append(f"not used: {name}: {' '.join(str(error).split())}")
            continue
        pixels = len(header) - 1 if wide and header[1:] == [str(number) for number in range(len(header) - 1)] else 0
        column, writing = rle_column(frame)
        tables.append(Table(name, frame, column, pixels, writing))
    return tables, notes


def rle_column(frame: pd.DataFrame) -> tuple[str | None, Convention]:
    """Returns the column of run lengths and the format of its numbers; None without any.

    Of several such columns, the one with the longest texts is returned. Blank texts, and one text for empty masks, are
    ignored.
    """
    lengths: dict[str, float] = {}
    writings: dict[str, Convention] = {}
    for column in frame.columns:
        texts = frame[column].str.strip()
        texts = texts[texts != ""]
        if texts.empty or not (format_and_fitting := writing_of(texts)):
            continue
        writing, fitting = format_and_fitting
        others = texts[~fitting].value_counts()
        damaged = [count == 1 and is_damaged(text, count, writing) for text, count in others.items()]
        strange = others[[not flag for flag in damaged]]
        if strange[1:].sum() <= 0.05 * len(texts) and sum(damaged) <= 0.5 * fitting.sum():
            lengths[str(column)], writings[str(column)] = texts[fitting].str.len().mean(), writing
    if not lengths:
        return None, Convention()
    best = max(lengths, key=lambda column: lengths[column])
    return best, writings[best]


def read_rows(table: Table, groups: list[Files], by_file: bool = False) -> Named | None:
    """Returns a table with the way in which its rows name images; None if they name none.

    Args:
        table: the table.
        groups: groups of images.
        by_file: whether rows may also contain the names of image files.
    """
    key = find_key(table, groups, by_file)
    return Named(table, key, rows_of(table, key)) if key else None


def find_key(table: Table, groups: list[Files], by_file: bool = False) -> Key | None:
    """Returns the reading of a table's rows that names most images of a group, with the fewest labels; None if no
    reading names any image."""
    frame = table.frame.drop(columns=[table.rle] if table.rle else [])
    sample = frame.iloc[evenly(range(len(frame)), SAMPLED)]
    best: Key | None = None
    for readings in (_plain, *((_by_file,) if by_file else ()), _with_label, _of_two_columns):
        for files in groups:
            for reading in readings(frame):
                if len(sample) < len(frame) and not reading(sample, files).share:
                    continue  # none of the sampled rows names an image
                key = reading(frame, files)
                if key.share and (best is None or key.rank > best.rank):
                    best = key
        if best and best.share > 0.9:
            break
    return best


Reading = Callable[[pd.DataFrame, Files], Key]
"""A way in which the rows of a table may name images."""


def _plain(frame: pd.DataFrame) -> Iterator[Reading]:
    for column in map(str, frame.columns):
        yield partial(_whole, column)


def _whole(column: str, rows: pd.DataFrame, files: Files) -> Key:
    return Key(column, None, files, rows[column].tolist(), None)


def _by_file(frame: pd.DataFrame) -> Iterator[Reading]:
    for column in map(str, frame.columns):
        yield partial(_named_files, column)


def _named_files(column: str, rows: pd.DataFrame, files: Files) -> Key:
    find = image_finder(files.paths)
    ids = {text: find(text) for text in rows[column].unique()}
    return Key(column, None, files, rows[column].map(ids).tolist(), None)


def _with_label(frame: pd.DataFrame) -> Iterator[Reading]:
    for column in map(str, frame.columns):
        for separator in SEPARATORS:
            yield partial(_label_behind, column, separator)
            yield partial(_label_before, column, separator)


def _label_behind(column: str, separator: str, rows: pd.DataFrame, files: Files) -> Key:
    parts = rows[column].str.rpartition(separator)
    return _labelled(column, f"{{id}}{separator}{{label}}", files, parts[0], parts[2])


def _label_before(column: str, separator: str, rows: pd.DataFrame, files: Files) -> Key:
    parts = rows[column].str.partition(separator)
    return _labelled(column, f"{{label}}{separator}{{id}}", files, parts[2], parts[0])


def _labelled(column: str, pattern: str, files: Files, ids: pd.Series, labels: pd.Series) -> Key:
    few = 0 < labels.nunique() <= MOST_LABELS
    return Key(column, pattern, files, ids.tolist() if few else [], labels.tolist())


def _of_two_columns(frame: pd.DataFrame) -> Iterator[Reading]:
    for first, second in permutations(map(str, frame.columns[:6]), 2):
        for separator in SEPARATORS:
            yield partial(_joined, first, second, separator)


def _joined(first: str, second: str, separator: str, rows: pd.DataFrame, files: Files) -> Key:
    ids = rows[first] + separator + rows[second]
    return Key(f"{{{first}}}{separator}{{{second}}}", None, files, ids.tolist(), None)


# --- rows ------------------------------------------------------------------------------------------------------------


def rows_of(table: Table, key: Key) -> Rows:
    """Returns the meaning of a table's rows: one per image, one per image and class, or one per instance."""
    twice = table.frame.duplicated()
    if twice.any() and not twice.all():  # repeated rows are faults, which decode reports
        once = [not again for again in twice]
        ids, labels = [list(compress(values, once)) if values else values for values in (key.ids, key.labels)]
        return rows_of(replace(table, frame=table.frame[~twice]), replace(key, ids=ids or [], labels=labels))
    images, rows = len(set(key.ids)), len(key.ids)
    if key.labels is not None:
        labels = sorted(set(key.labels), key=natural)
        several = len(set(zip(key.ids, key.labels, strict=True))) < rows
        evidence = f"{rows} rows, {images} images, {len(labels)} labels"
        return Rows("instance" if several else "class", None, labels, evidence)
    others = [str(column) for column in table.frame.columns if column not in (*key.columns, table.rle)]
    named = [column for column in others if _CLASS_NAME.search(column)]
    for column in dict.fromkeys([*named, *others]):
        labels, until = (
            _heads(table.frame[column].tolist()) if column in named else (table.frame[column].tolist(), None)
        )
        if 2 <= len(set(labels)) <= MOST_LABELS and (column in named or _tells_apart(key.ids, labels)):
            kind: Literal["class", "instance"] = "class" if _unique(key.ids, labels) else "instance"
            evidence = f"{rows} rows of {images} images, {len(set(labels))} different `{column}`"
            evidence += f", up to the first {until!r}" if until else ""
            return Rows(kind, column, sorted(set(labels), key=natural), evidence, until)
    if images < rows:
        return Rows("instance", None, [], f"{rows} rows of {images} images, and no column that names a class")
    return Rows("image", None, [], f"{rows} rows, no image has two")


def _heads(labels: list[str]) -> tuple[list[str], str | None]:
    """Labels without the text after the class, such as the attributes in 6_18_73; and the separator, if any."""
    if len(set(labels)) <= 2 or not all(re.fullmatch(r"\d+(_\d+)*", label) for label in set(labels)):
        return labels, None
    heads = [label.split("_", 1)[0] for label in labels]
    return (heads, "_") if any("_" in label for label in labels) and len(set(heads)) > 1 else (labels, None)


def _unique(ids: list[str], labels: list[str]) -> bool:
    return len(set(zip(ids, labels, strict=True))) == len(ids)


def _tells_apart(ids: list[str], labels: list[str]) -> bool:
    """Whether labels distinguish the rows of an image and are not just numbers of its instances (1 to n)."""
    if len(set(ids)) == len(ids) or not _unique(ids, labels) or len(set(labels)) > len(ids) / 2:
        return False
    by_image: dict[str, list[str]] = {}
    for image_id, label in zip(ids, labels, strict=True):
        by_image.setdefault(image_id, []).append(label)
    ordered = [sorted(labels_of_image, key=natural) for labels_of_image in by_image.values()]
    numbers = max(ordered, key=lambda labels_of_image: len(labels_of_image))
    counted = all(labels_of_image == numbers[: len(labels_of_image)] for labels_of_image in ordered)
    return not counted or len({len(labels_of_image) for labels_of_image in ordered}) == 1
