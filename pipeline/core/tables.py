"""CSV files of any origin: every value is read as text, and a row cut short or a repeated column is refused."""

import csv
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.io.common import get_handle, infer_compression

from pipeline.core.errors import PipelineError
from pipeline.core.files import final_name, writing

MOST_COLUMNS = 300_000
"""Columns that are kept of a table: class maps of 512×512 pixels have 262,145."""
SHOWN = 5
"""Rows that a message names."""
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
"""What parts the columns of tables that are no comma-separated ones."""
LARGEST_UNPACKED, MOST_TIMES = 2**27, 200
"""A compressed table of more characters than this must not have so many times the bytes of its file."""
CHARACTERS = {
    "\0": "a NUL character",
    "\t": "a tab",
    "\xa0": "a no-break space",
    "\u200b": "a zero-width space",
    "\ufeff": "a byte order mark",
}
"""Characters that do not show, by what a message calls them."""


def read_csv(path: Path, only: Iterable[str] | None = None, normal: bool = True) -> pd.DataFrame:
    """Returns a CSV with every value as text, an empty field as "". An index + 2 is the row of the file, counted from
    1 with the header and with blank lines, so that messages name the row that an editor shows; of a Parquet file, its
    row counted from 1.

    Args:
        path: the file, also a compressed one, one whose .zip lies in its place, or a Parquet file.
        only: the columns to keep, where the file has them; None: all.
        normal: whether to bring text into its normal form (`normal_form`), in which ids are compared.

    Raises:
        PipelineError: not a CSV, not UTF-8, columns that are not separated by commas, a repeated column, or a row of
            more or fewer values than the header has columns.
    """
    _require_file(path)
    csv.field_size_limit(sys.maxsize)  # run lengths of a large mask exceed the default
    if is_parquet(path):
        return _read_parquet(path, None if only is None else set(only), normal)
    try:
        with open_text(path) as opened:
            lines = map(normal_form, opened) if normal else opened
            return _table(path, _records(lines), None if only is None else set(only))
    except UnicodeDecodeError as error:
        raise not_utf8(path, error.object, error.start) from None
    except (ValueError, OSError, EOFError, csv.Error) as error:
        raise PipelineError(f"{path} is not a readable CSV: {' '.join(str(error).split())}.") from None


@contextmanager
def open_text(path: Path) -> Iterator[Iterator[str]]:
    """Gives the lines of a text file, also of a compressed one, or of one whose .zip lies in its place."""
    packed = as_packed(path)
    compression = infer_compression(final_name(packed), "infer")
    with get_handle(packed, "r", encoding="utf-8-sig", compression=compression) as opened:
        yield _limited(opened.handle, packed)


def is_parquet(path: Path) -> bool:
    """Returns whether a table is a Parquet file, by its name."""
    return final_name(path).lower().endswith(".parquet")


def _read_parquet(path: Path, only: set[str] | None, normal: bool) -> pd.DataFrame:
    try:
        _limit_parquet(path)
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise _no_parquet(path, error) from None
    table = table[[name for name in table.columns if only is None or normal_form(str(name)) in only]]
    texts = table.astype(object).where(table.notna(), "").astype(str)
    texts.columns, texts.index = list(map(str, table.columns)), pd.RangeIndex(-1, len(table) - 1)
    return texts.map(normal_form) if normal else texts


def _parquet_header(path: Path) -> list[str]:
    """The names of the columns; no row is read for them."""
    from pyarrow import parquet

    try:
        return [str(name) for name in parquet.read_schema(path).empty_table().to_pandas().columns]
    except (OSError, ValueError) as error:
        raise _no_parquet(path, error) from None


def _no_parquet(path: Path, error: Exception) -> PipelineError:
    return PipelineError(f"{path.name} cannot be read as Parquet: {' '.join(str(error).split())}.")


def _limit_parquet(path: Path) -> None:
    """Raises ValueError where a Parquet file unpacks to far more than its size: text that repeats is stored once."""
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        about, most = file.metadata, max(LARGEST_UNPACKED, MOST_TIMES * path.stat().st_size)
        stated = sum(about.row_group(number).total_byte_size for number in range(about.num_row_groups))
        batches = file.iter_batches(2**14) if stated <= most else ()
        length = max(stated, about.num_rows * about.num_columns)
        for batch in batches:
            stated += batch.nbytes
            length = max(length, stated)
            if length > most:
                break
    if length > most:
        raise ValueError("unpacked it is far larger than the file: it is damaged, or made to fill the memory")


def _require_file(path: Path) -> None:
    if path.is_dir():
        raise PipelineError(f"{path} is not a readable CSV: it is a folder.")
    if path.exists() and not path.is_file() and not str(path).startswith("/dev/"):  # a shell's <(…) lies there
        raise PipelineError(f"{path} is not a readable CSV: it is a pipe or a device.")


def as_packed(path: Path) -> Path:
    """Returns the path of a table, or of the .zip of it alone that lies in its place, as Kaggle mounts some:
    train.csv.zip; it is read as it lies."""
    packed = path.with_name(f"{path.name}.zip")
    return packed if path.suffix == ".csv" and packed.exists() and not path.exists() else path


def _limited(handle: Any, path: Path) -> Iterator[str]:
    """Yields the lines of a table, of a compressed one while they stay in proportion to the file."""
    if path.suffix.lower() == ".csv":
        yield from handle
        return
    length, most = 0, max(LARGEST_UNPACKED, MOST_TIMES * path.stat().st_size)
    while line := handle.readline(LARGEST_UNPACKED):
        length += len(line)
        if length > most or len(line) == LARGEST_UNPACKED:
            raise ValueError(
                f"unpacked it has more than {length / 2**20:.0f} million characters, and {path.stat().st_size} bytes "
                "packed: it is damaged, or made to fill the memory"
            )
        yield line


def normal_form(text: str) -> str:
    """Returns a text with composed characters (NFC): é may be one character or e and an accent, which look alike. Files
    that come from a Mac have the second form."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def read_header(path: Path) -> list[str]:
    """Returns the names of a CSV's columns; raises as read_csv does."""
    _require_file(path)
    if is_parquet(path):
        return _parquet_header(path)
    try:
        with open_text(path) as opened:
            return _header(path, _records(map(normal_form, opened)))
    except UnicodeDecodeError as error:
        raise not_utf8(path, error.object, error.start) from None
    except (ValueError, OSError, EOFError, csv.Error) as error:
        raise PipelineError(f"{path} is not a readable CSV: {' '.join(str(error).split())}.") from None


def not_utf8(path: Path, content: bytes, place: int) -> PipelineError:
    """Returns the error of a table that is not UTF-8: what it probably is, and what to do.

    Args:
        path: the table.
        content: some of it, from its beginning where that is not UTF-8.
        place: the first byte there that is not UTF-8.
    """
    if _is_utf16(content):
        return PipelineError(f"{path} is not a readable CSV: it is UTF-16; save it as UTF-8.")
    if content.startswith(b"PK\x03\x04"):
        return PipelineError(
            f"{path} is not a readable CSV: it is a spreadsheet (.xlsx) or another zip archive; save the table as a "
            "CSV in UTF-8."
        )
    some = content[max(0, place - 15) : place + 5].decode("cp1252", "replace").split("\n")
    shown = next((line for line in reversed(some) if not line.isascii()), some[-1]).strip()
    return PipelineError(
        f"{path} is not a readable CSV: it is not UTF-8, but perhaps Latin-1 or Windows-1252, in which it holds "
        f"{shown!r}; save it as UTF-8."
    )


def _is_utf16(content: bytes) -> bool:
    """Whether a text begins with the mark of UTF-16, or with letters that a zero stands beside."""
    some = content[:40]
    return content.startswith((b"\xff\xfe", b"\xfe\xff")) or 3 * some.count(0) > len(some)


def check_separator(path: Path, header: list[str]) -> None:
    """Checks that the columns of a table are not parted by something else than commas.

    Raises:
        PipelineError: its only column holds another separator, or it is UTF-16.
    """
    whole = ",".join(header).encode()
    if _is_utf16(whole):
        raise not_utf8(path, whole, 0)
    line = header[0] if len(header) == 1 else ""
    found = max(SEPARATORS, key=line.count)
    if found in line:
        raise PipelineError(
            f"{path}: its columns look separated by {SEPARATORS[found]}, as its header is "
            f"{line if len(line) <= 60 else line[:60] + '…'!r}; save it with commas."
        )


def unseen(text: str) -> str:
    """Returns which characters a text has that do not show, as `with a space at its end`; "" for none."""
    places = [place for place, end in (("start", text[:1]), ("end", text[-1:])) if end == " "]
    found = [f"a space at its {' and its '.join(places)}"] if places else []
    for character in dict.fromkeys(text):
        if not character.isprintable():
            number = f"U+{ord(character):04X}"
            name = CHARACTERS.get(character)
            found.append(f"{name} ({number})" if name else f"the character {number}, which does not show")
    return f"with {' and '.join(found)}" if found else ""


def column_names(columns: Iterable[str], mark: str = "") -> str:
    """Returns names of columns one after another, between marks; those with characters that do not show are quoted, and
    the characters said."""
    names = ((str(name), unseen(str(name))) for name in columns)
    return ", ".join(f"{name!r} ({odd})" if odd else f"{mark}{name}{mark}" for name, odd in names)


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
    check_separator(path, header)
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
    if len(places) > MOST_COLUMNS:
        raise ValueError(f"it has {len(places)} columns, and {MOST_COLUMNS} are the most that are read")
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


# --- tables that a person opens in a spreadsheet ---------------------------------------------------------------------

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?[0-9]+([.,][0-9]+)?([eE][+-]?[0-9]+)?")


def write_for_people(
    path: Path, table: pd.DataFrame, writer: Callable[[Path], AbstractContextManager[Path]] = writing
) -> None:
    """Writes a table as CSV, atomically. A text that a spreadsheet would run as a formula, an id that begins with = for
    instance, gets an apostrophe in front, which `as_written` takes away.

    Args:
        path: the CSV.
        table: its rows.
        writer: gives the temporary path; `freshness.writing_editable` for an output that users may edit.
    """
    with writer(path) as temporary:
        _each_text(table, _guarded).to_csv(temporary, index=False)


def as_written(table: pd.DataFrame) -> pd.DataFrame:
    """Returns a table that was read as text, as `write_for_people` was given it."""
    return _each_text(table, lambda text: text[1:] if text.startswith("'") and _FORMULA.match(text) else text)


def _guarded(text: str) -> str:
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def _each_text(table: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    texts = [name for name in table if table[name].dtype.kind not in "biufcmM"]
    changed = {name: table[name].map(lambda one: change(one) if isinstance(one, str) else one) for name in texts}
    return table.assign(**changed) if changed else table
