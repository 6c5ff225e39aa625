"""Reading of CSV files from any source. All values are read as text; incomplete rows and repeated columns are
refused."""

import csv
import re
import sys
import tarfile
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from lzma import LZMAError
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.io.common import get_handle, infer_compression

from pipeline.core.errors import PipelineError
from pipeline.core.files import final_name, writing

MOST_COLUMNS = 300_000
"""Maximum number of columns of a table. A table of class maps of 512×512 pixels has 262,145."""
MOST_ROWS = 4_000_000
"""Maximum number of rows of a table. Competitions have had up to three million."""
SHOWN, NAMES_SHOWN = 5, 30
"""Maximum numbers of rows and of columns that a message names."""
UNREADABLE = (
    *(ValueError, OSError, EOFError, csv.Error, zlib.error, LZMAError, zipfile.BadZipFile, tarfile.TarError),
    *(RuntimeError, ImportError),
)
"""Exceptions raised for a table that is damaged, or compressed in a way that cannot be read here."""
NO_PARQUET = (OSError, ValueError, TypeError, LookupError, NotImplementedError)
"""Exceptions raised by pyarrow and pandas for a damaged Parquet file, or one that contains no table."""
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
"""Other separators than commas, and their names in messages."""
LARGEST_UNPACKED, MOST_TIMES = 2**27, 200
"""An unpacked table may have at most LARGEST_UNPACKED characters, or MOST_TIMES the bytes of its file if that is
more."""
CHARACTERS = {
    "\0": "a NUL character",
    "\t": "a tab",
    "\xa0": "a no-break space",
    "\u200b": "a zero-width space",
    "\ufeff": "a byte order mark",
}
"""Invisible characters, and their names in messages."""


def read_csv(path: Path, only: Iterable[str] | None = None, normal: bool = True) -> pd.DataFrame:
    """Returns the table in a CSV or Parquet file with all values as text, and empty fields as "".

    The index of the table plus 2 is the row number in a CSV file, which counts from 1 and includes the header and blank
    lines, so that messages name the row that an editor shows. For a Parquet file it is the number of the row, from 1.

    Args:
        path: the file. It may be compressed or a Parquet file, and may exist only as .zip in the same folder.
        only: the columns to keep, as far as the file has them; None: all.
        normal: whether text is converted to its normal form (`normal_form`), in which ids are compared.

    Raises:
        PipelineError: the file is not a CSV file, is not UTF-8, or is not separated by commas, has a repeated column,
            or has a row with more or fewer values than columns.
    """
    _require_file(path)
    csv.field_size_limit(sys.maxsize)  # run lengths of a large mask are longer than the default limit
    if is_parquet(path):
        return _read_parquet(path, None if only is None else set(only), normal)
    try:
        with open_text(path) as opened:
            lines = map(normal_form, opened) if normal else opened
            return _table(path, _records(lines), None if only is None else set(only))
    except UnicodeDecodeError as error:
        raise not_utf8(path, error.object, error.start) from None
    except UNREADABLE as error:
        raise not_readable(path, error) from None


@contextmanager
def open_text(path: Path) -> Iterator[Iterator[str]]:
    """Yields an iterator over the lines of a text file, which may be compressed, or exist only as .zip in the same
    folder."""
    packed = as_packed(path)
    compression = infer_compression(final_name(packed), "infer")
    with get_handle(packed, "r", encoding="utf-8-sig", compression=compression) as opened:
        yield _limited(opened.handle, packed)


def not_readable(path: Path, error: Exception) -> PipelineError:
    """Returns the error of a table that raises one of UNREADABLE."""
    return PipelineError(f"{path} is not a readable CSV: {' '.join(str(error).split()).rstrip('.')}.")


def is_parquet(path: Path) -> bool:
    """Returns whether a file is a Parquet file, by its name."""
    return final_name(path).lower().endswith(".parquet")


def _read_parquet(path: Path, only: set[str] | None, normal: bool) -> pd.DataFrame:
    try:
        _limit_parquet(path)
        table = pd.read_parquet(path)
        table = table[[name for name in table.columns if only is None or normal_form(str(name)) in only]]
        texts = table.astype(object).where(table.notna(), "").astype(str)
    except NO_PARQUET as error:
        raise no_parquet(path, error) from None
    texts.columns, texts.index = list(map(str, table.columns)), pd.RangeIndex(-1, len(table) - 1)
    return texts.map(normal_form) if normal else texts


def _parquet_header(path: Path) -> list[str]:
    """Returns the names of the columns without reading any row."""
    from pyarrow import parquet

    try:
        return [str(name) for name in parquet.read_schema(path).empty_table().to_pandas().columns]
    except NO_PARQUET as error:
        raise no_parquet(path, error) from None


def no_parquet(path: Path, error: Exception) -> PipelineError:
    """Returns the error of a table that raises one of NO_PARQUET."""
    return PipelineError(f"{path.name} cannot be read as Parquet: {' '.join(str(error).split())}.")


def _limit_parquet(path: Path) -> None:
    """Raises ValueError if a Parquet file unpacks to far more than its size, which is possible because repeated text is
    stored once."""
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        metadata, most = file.metadata, max(LARGEST_UNPACKED, MOST_TIMES * path.stat().st_size)
        _limit_rows(metadata.num_rows)
        unpacked = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
        batches = file.iter_batches(2**14) if unpacked <= most else ()
        length = max(unpacked, metadata.num_rows * metadata.num_columns)
        for batch in batches:
            unpacked += batch.nbytes
            length = max(length, unpacked)
            if length > most:
                break
    if length > most:
        raise ValueError(
            "unpacked, it would be far larger than the file: it is damaged, or was made to fill the memory"
        )


def _limit_rows(count: int) -> None:
    if count > MOST_ROWS:
        raise ValueError(f"it has more than {MOST_ROWS:,} rows; at most that many are read")


def _require_file(path: Path) -> None:
    if path.is_dir():
        raise PipelineError(f"{path} is not a readable CSV: it is a folder.")
    if (
        path.exists() and not path.is_file() and not str(path).startswith("/dev/")
    ):  # where the files of a shell's <(…) are
        raise PipelineError(f"{path} is not a readable CSV: it is a pipe or a device.")


def as_packed(path: Path) -> Path:
    """Returns the path of a table, or of its .zip file if only that exists, such as train.csv.zip, which Kaggle mounts
    for some competitions."""
    packed = path.with_name(f"{path.name}.zip")
    return packed if path.suffix == ".csv" and packed.exists() and not path.exists() else path


def _limited(handle: Any, path: Path) -> Iterator[str]:
    """Yields the lines of a table. A compressed table raises ValueError if it unpacks to far more than the size of the
    file."""
    if path.suffix.lower() == ".csv":
        yield from handle
        return
    length, most = 0, max(LARGEST_UNPACKED, MOST_TIMES * path.stat().st_size)
    while line := handle.readline(LARGEST_UNPACKED):
        length += len(line)
        if length > most or len(line) == LARGEST_UNPACKED:
            raise ValueError(
                f"unpacked, it has more than {length / 2**20:.0f} million characters, and packed only "
                f"{path.stat().st_size} bytes: it is damaged, or was made to fill the memory"
            )
        yield line


def normal_form(text: str) -> str:
    """Returns a text with composed characters (Unicode form NFC). The letter é, for instance, can be one character or
    an e followed by an accent, which look the same. Files from a Mac use the second form."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def read_header(path: Path) -> list[str]:
    """Returns the names of the columns of a CSV or Parquet file. Raises the same errors as read_csv."""
    _require_file(path)
    if is_parquet(path):
        return _parquet_header(path)
    try:
        with open_text(path) as opened:
            return _header(path, _records(map(normal_form, opened)))
    except UnicodeDecodeError as error:
        raise not_utf8(path, error.object, error.start) from None
    except UNREADABLE as error:
        raise not_readable(path, error) from None


def not_utf8(path: Path, content: bytes, place: int) -> PipelineError:
    """Returns the error for a table that is not UTF-8, which says what the file probably is and what to do.

    Args:
        path: the table.
        content: a part of it, from its beginning if the beginning is not UTF-8.
        place: the position of the first byte in `content` that is not UTF-8.
    """
    if _is_utf16(content):
        return PipelineError(f"{path} is not a readable CSV: it is UTF-16; save it as UTF-8.")
    if content.startswith(b"PK\x03\x04"):
        return PipelineError(
            f"{path} is not a readable CSV: it is a spreadsheet (.xlsx) or another zip archive; save the table as a "
            "CSV in UTF-8."
        )
    excerpt = content[max(0, place - 15) : place + 5].decode("cp1252", "replace").split("\n")
    shown = next((line for line in reversed(excerpt) if not line.isascii()), excerpt[-1]).strip()
    return PipelineError(
        f"{path} is not a readable CSV: it is not UTF-8, but perhaps Latin-1 or Windows-1252, in which it contains "
        f"{shown!r}; save it as UTF-8."
    )


def _is_utf16(content: bytes) -> bool:
    """Returns whether a text starts with the byte order mark of UTF-16, or with letters that alternate with zero
    bytes."""
    start = content[:40]
    return content.startswith((b"\xff\xfe", b"\xfe\xff")) or 3 * start.count(0) > len(start)


def check_separator(path: Path, header: list[str]) -> None:
    """Checks that the columns of a table are separated by commas.

    Raises:
        PipelineError: the only column contains another separator, or the file is UTF-16.
    """
    whole = ",".join(header).encode()
    if _is_utf16(whole):
        raise not_utf8(path, whole, 0)
    line = header[0] if len(header) == 1 else ""
    separator = max(SEPARATORS, key=line.count)
    if separator in line:
        raise PipelineError(
            f"{path}: its columns seem to be separated by {SEPARATORS[separator]}, because its header is "
            f"{line if len(line) <= 60 else line[:60] + '…'!r}; save it with commas as separators."
        )


def unseen(text: str) -> str:
    """Returns a text that lists the invisible characters of a text, e.g. `with a space at its end`; "" if there are
    none."""
    places = [place for place, end in (("start", text[:1]), ("end", text[-1:])) if end == " "]
    descriptions = [f"a space at its {' and its '.join(places)}"] if places else []
    for character in dict.fromkeys(text):
        if not character.isprintable():
            number = f"U+{ord(character):04X}"
            name = CHARACTERS.get(character)
            descriptions.append(f"{name} ({number})" if name else f"the invisible character {number}")
    return f"with {' and '.join(descriptions)}" if descriptions else ""


def column_names(columns: Iterable[str], mark: str = "") -> str:
    """Returns the names of columns separated by commas, each between `mark`, and at most NAMES_SHOWN of them. Names
    with invisible characters are quoted, and these characters are listed."""
    every = list(map(str, columns))
    names = ((name, unseen(name)) for name in every[:NAMES_SHOWN])
    more = f", … ({len(every)} columns)" if len(every) > NAMES_SHOWN else ""
    return ", ".join(f"{name!r} ({odd})" if odd else f"{mark}{name}{mark}" for name, odd in names) + more


def _records(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Yields the row number in the file and the values of each line that is not blank."""
    # not strict, an unclosed quotation mark would swallow the rest of the file
    reader, row = csv.reader(lines, strict=True), 1
    while True:
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"row {row}: {error}; look for an unclosed quotation mark") from None
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
            "remove all but one of them."
        )
    return [name or f"Unnamed: {number}" for number, name in enumerate(header)]


def _table(path: Path, records: Iterator[tuple[int, list[str]]], only: set[str] | None) -> pd.DataFrame:
    header = _header(path, records)
    places = [place for place, name in enumerate(header) if only is None or normal_form(name) in only]
    everything = len(places) == len(header)
    if len(places) > MOST_COLUMNS:
        raise ValueError(f"it has {len(places)} columns; at most {MOST_COLUMNS} are read")
    rows: list[int] = []
    values: list[list[str]] = []
    faulty: list[str] = []
    for row, record in records:
        if len(record) != len(header):
            start = ",".join(record)
            faulty.append(f"row {row} has {len(record)} ({start[:30]}{'…' if len(start) > 30 else ''})")
            continue
        rows.append(row)
        if len(rows) > MOST_ROWS:
            _limit_rows(len(rows))
        values.append(record if everything else [record[place] for place in places])
    if faulty:
        more = f" and {len(faulty) - SHOWN} more rows" if len(faulty) > SHOWN else ""
        expected = f"{len(header)} value{'s' * (len(header) > 1)}"
        raise PipelineError(
            f"{path}: every row must have {expected}, as many as the header has columns "
            f"({', '.join(header[:10])}{', …' if len(header) > 10 else ''}), but {'; '.join(faulty[:SHOWN])}{more}: "
            "look there for a missing or superfluous comma, or for a value with commas that needs quotation marks."
        )
    table = pd.DataFrame(values, columns=[header[place] for place in places], dtype=str)
    if rows and rows[-1] != len(rows) + 1:  # blank lines
        table.index = pd.Index([row - 2 for row in rows])
    return table


# --- tables that users open in a spreadsheet -------------------------------------------------------------------------

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?[0-9]+([.,][0-9]+)?([eE][+-]?[0-9]+)?")


def write_for_people(
    path: Path, table: pd.DataFrame, writer: Callable[[Path], AbstractContextManager[Path]] = writing
) -> None:
    """Writes a table as a CSV file atomically. A text that a spreadsheet would run as a formula, such as an id that
    starts with =, gets an apostrophe in front, which `as_written` removes.

    Args:
        path: the CSV.
        table: its rows.
        writer: gives the temporary path; `editable.writing_editable` for an output that users may edit.
    """
    with writer(path) as temporary:
        _each_text(table, _guarded).to_csv(temporary, index=False)


def as_written(table: pd.DataFrame) -> pd.DataFrame:
    """Returns a table that was read as text in the form that it had before `write_for_people` wrote it."""
    return _each_text(table, lambda text: text[1:] if text.startswith("'") and _FORMULA.match(text) else text)


def _guarded(text: str) -> str:
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def _each_text(table: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    texts = [name for name in table if table[name].dtype.kind not in "biufcmM"]
    changed = {
        name: table[name].map(lambda value: change(value) if isinstance(value, str) else value) for name in texts
    }
    return table.assign(**changed) if changed else table
