"""What the tables among raw files seem to say: which image and class a row speaks of, where its run lengths stand."""

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
"""A table of more columns is one of labels a pixel; more different labels are something else, and so are more tables in
one folder."""
ALIKE = 20
"""CSVs of one name in many folders that are read."""
SAMPLED = 1000
"""Rows of a table that a reading is tried on first."""
_CLASS_NAME = re.compile(r"class|label|categor", re.IGNORECASE)


@dataclass(frozen=True)
class Table:
    """A CSV of the raw files, every value as text."""

    name: str
    """Relative to the folder of raw files."""
    frame: pd.DataFrame
    rle: str | None
    """The column of run lengths."""
    pixels: int = 0
    """How many further columns it has, numbered 0, 1, 2, …: one a pixel."""
    writing: Convention = Convention()
    """How the numbers of its run lengths are written; the rest of the convention is not known yet."""

    @property
    def is_sample(self) -> bool:
        """Whether its name says that it is a sample submission."""
        name = self.name.lower()
        return "sample" in name and "subm" in name


@dataclass(frozen=True)
class Key:
    """How the rows of a table name images."""

    id: str
    """A column, or a template over columns."""
    pattern: str | None
    files: Files
    ids: list[str]
    labels: list[str] | None

    @cached_property
    def share(self) -> float:
        """Of the rows, how many name an image that exists."""
        return sum(one in self.files.paths for one in self.ids) / max(len(self.ids), 1)

    @property
    def rank(self) -> tuple[float, int]:
        """What the best reading has most of: images named, and the fewer labels for it."""
        return self.share, -len(set(self.labels or []))

    @property
    def columns(self) -> list[str]:
        """The columns that the id is made of."""
        return template_columns(self.id)


@dataclass(frozen=True)
class Rows:
    """What one row of a table is."""

    kind: Literal["image", "class", "instance"]
    label: str | None
    """The column that names its class."""
    labels: list[str]
    """All values of it, or of the label within the id."""
    evidence: str
    until: str | None = None
    """The text at which a label ends."""


@dataclass(frozen=True)
class Named:
    """A table and how its rows name images."""

    table: Table
    key: Key
    rows: Rows

    @property
    def certainty(self) -> Certainty:
        """Sure where every row names an image."""
        return "sure" if self.key.share == 1 else "guess"

    @property
    def hits(self) -> str:
        """How many rows name an image, the beginning of a sentence."""
        if self.key.share == 1:
            return f"every id of {self.table.name} is"
        return f"{100 * self.key.share:.1f} % of the ids of {self.table.name} are"


def read_tables(folder: Path, paths: Iterable[Path]) -> tuple[list[Table], list[str]]:
    """Returns the CSVs among the files of a folder, those without rows too, and a sentence on each that is left out."""
    files = sorted((path for path in paths if path.suffix.lower() == ".csv"), key=lambda path: natural(str(path)))
    places = Counter(path.parent for path in files)
    crowded = {place: count for place, count in places.items() if count > MOST_TABLES}
    found = []
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
        found.append(Table(name, frame, column, pixels, writing))
    return found, notes


def rle_column(frame: pd.DataFrame) -> tuple[str | None, Convention]:
    """Returns the column whose values are run lengths, the longest one, and how they are written; None without any.

    Blanks do not count, nor does one text that stands for an empty mask.
    """
    lengths: dict[str, float] = {}
    writings: dict[str, Convention] = {}
    for column in frame.columns:
        texts = frame[column].str.strip()
        texts = texts[texts != ""]
        if texts.empty or not (found := writing_of(texts)):
            continue
        writing, fitting = found
        others = texts[~fitting].value_counts()
        damaged = [count == 1 and is_damaged(text, count, writing) for text, count in others.items()]
        strange = others[[not one for one in damaged]]
        if strange[1:].sum() <= 0.05 * len(texts) and sum(damaged) <= 0.5 * fitting.sum():
            lengths[str(column)], writings[str(column)] = texts[fitting].str.len().mean(), writing
    if not lengths:
        return None, Convention()
    best = max(lengths, key=lambda column: lengths[column])
    return best, writings[best]


def read_rows(table: Table, groups: list[Files], by_file: bool = False) -> Named | None:
    """Returns how the rows of a table name images of one of the groups; None when they name none. `by_file`: rows may
    also name the images' files."""
    key = find_key(table, groups, by_file)
    return Named(table, key, rows_of(table, key)) if key else None


def find_key(table: Table, groups: list[Files], by_file: bool = False) -> Key | None:
    """Returns the reading of a table's rows that names most images of one of the groups, with the fewest labels.

    None when nothing fits.
    """
    frame = table.frame.drop(columns=[table.rle] if table.rle else [])
    some = frame.iloc[evenly(range(len(frame)), SAMPLED)]
    best: Key | None = None
    for readings in (_plain, *((_by_file,) if by_file else ()), _with_label, _of_two_columns):
        for files in groups:
            for reading in readings(frame):
                if len(some) < len(frame) and not reading(some, files).share:
                    continue  # it names none of many rows
                key = reading(frame, files)
                if key.share and (best is None or key.rank > best.rank):
                    best = key
        if best and best.share > 0.9:
            break
    return best


Reading = Callable[[pd.DataFrame, Files], Key]
"""How rows of a table may name images."""


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
    found = {text: find(text) for text in rows[column].unique()}
    return Key(column, None, files, rows[column].map(found).tolist(), None)


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
    """Returns what a row of a table is: an image, an image and class, or an instance."""
    twice = table.frame.duplicated()
    if twice.any() and not twice.all():  # what stands there twice is a mistake that decode tells
        once = [not again for again in twice]
        ids, labels = [list(compress(own, once)) if own else own for own in (key.ids, key.labels)]
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
    """Labels without what follows their class, such as the attributes of 6_18_73; and what parts them, if anything."""
    if len(set(labels)) <= 2 or not all(re.fullmatch(r"\d+(_\d+)*", label) for label in set(labels)):
        return labels, None
    heads = [label.split("_", 1)[0] for label in labels]
    return (heads, "_") if any("_" in label for label in labels) and len(set(heads)) > 1 else (labels, None)


def _unique(ids: list[str], labels: list[str]) -> bool:
    return len(set(zip(ids, labels, strict=True))) == len(ids)


def _tells_apart(ids: list[str], labels: list[str]) -> bool:
    """Whether labels tell the rows of an image apart, and are not the numbers of its instances: 1 to however many there
    are."""
    if len(set(ids)) == len(ids) or not _unique(ids, labels) or len(set(labels)) > len(ids) / 2:
        return False
    by_image: dict[str, list[str]] = {}
    for image_id, label in zip(ids, labels, strict=True):
        by_image.setdefault(image_id, []).append(label)
    ordered = [sorted(own, key=natural) for own in by_image.values()]
    numbers = max(ordered, key=lambda own: len(own))
    counted = all(own == numbers[: len(own)] for own in ordered)
    return not counted or len({len(own) for own in ordered}) == 1
