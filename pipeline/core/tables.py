"""CSV files as somebody else wrote them: every value as text, and a fault where a row is cut short or a column stands
twice."""

import csv
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd
from pandas.io.common import get_handle

from pipeline.core.errors import PipelineError

SHOWN = 5
"""Rows that a message names."""


def read_csv(path: Path, only: Iterable[str] | None = None, normal: bool = True) -> pd.DataFrame:
    """Returns a CSV with every value as text, an empty field as "". An index + 2 is the row of the file, counted from
    1 with the header and with blank lines, so that messages name the row that an editor shows.

    Args:
        path: the file, also a compressed one.
        only: the columns to keep, where the file has them; None: all.
        normal: whether to bring text into its normal form (`normal_form`), in which ids are compared.

    Raises:
        PipelineError: not a CSV, a repeated column, or a row of more or fewer values than the header has columns.
    """
    csv.field_size_limit(sys.maxsize)  # run lengths of a large mask exceed the default
    try:
        with get_handle(path, "r", encoding="utf-8-sig", compression="infer") as opened:
            lines = map(normal_form, opened.handle) if normal else opened.handle
            return _table(path, _records(lines), None if only is None else set(only))
    except (ValueError, OSError, EOFError, csv.Error) as error:
        raise PipelineError(f"{path} is not a readable CSV: {' '.join(str(error).split())}.") from None


def normal_form(text: str) -> str:
    """Returns a text with composed characters (NFC): é may be one character or e and an accent, which look alike. Files
    that come from a Mac have the second form."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def read_header(path: Path) -> list[str]:
    """Returns the names of a CSV's columns; raises as read_csv does."""
    try:
        with get_handle(path, "r", encoding="utf-8-sig", compression="infer") as opened:
            return _header(path, _records(map(normal_form, opened.handle)))
    except (ValueError, OSError, EOFError, csv.Error) as error:
        raise PipelineError(f"{path} is not a readable CSV: {' '.join(str(error).split())}.") from None


def _records(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """The row in the file and the values of every line that is not blank."""
    # strict: else a quotation mark that is never closed swallows the rest of the file
    reader, row = csv.reader(lines, strict=True), 1
    while True:
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"row {row}: {error}; look for a stray quotation mark") from None
        if len(values) > 1 or (values and (not values[0] or values[0].strip())):
            yield row, values
        row = reader.line_num + 1


def _header(path: Path, records: Iterator[tuple[int, list[str]]]) -> list[str]:
    _, header = next(records, (0, []))
    if not header:
        raise ValueError("No columns to parse from file")
    twice = [f"`{name}`" for name, count in Counter(header).items() if name and count > 1]
    if twice:
        raise PipelineError(
            f"{path}: the column{'s' if len(twice) > 1 else ''} {', '.join(twice)} "
            f"stand{'' if len(twice) > 1 else 's'} more than once in its header ({', '.join(header[:20])}); rename or "
            "remove all but one, else nobody knows which is meant."
        )
    return [name or f"Unnamed: {number}" for number, name in enumerate(header)]


def _table(path: Path, records: Iterator[tuple[int, list[str]]], only: set[str] | None) -> pd.DataFrame:
    header = _header(path, records)
    places = [place for place, name in enumerate(header) if only is None or normal_form(name) in only]
    everything = len(places) == len(header)
    rows: list[int] = []
    values: list[list[str]] = []
    faulty: list[str] = []
    for row, record in records:
        if len(record) != len(header):
            start = ",".join(record)
            faulty.append(f"row {row} has {len(record)} ({start[:30]}{'…' if len(start) > 30 else ''})")
            continue
        rows.append(row)
        values.append(record if everything else [record[place] for place in places])
    if faulty:
        more = f" and {len(faulty) - SHOWN} more rows" if len(faulty) > SHOWN else ""
        raise PipelineError(
            f"{path}: every row must have {len(header)} values, as many as the header has columns "
            f"({', '.join(header[:10])}{', …' if len(header) > 10 else ''}), but {'; '.join(faulty[:SHOWN])}{more}: "
            "look there for a comma that is missing or too much, or a value with commas that needs quotation marks."
        )
    table = pd.DataFrame(values, columns=[header[place] for place in places], dtype=str)
    if rows and rows[-1] != len(rows) + 1:  # blank lines
        table.index = pd.Index([row - 2 for row in rows])
    return table
