"""The kinds of files of submissions: tables as CSV (optionally compressed) or Parquet, COCO results, and mask
images."""

import csv
import gzip
import io
import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from pipeline.core.config.submission_settings import ENDINGS, RESULTS, File, file_of_name
from pipeline.core.errors import PipelineError, first_line
from pipeline.core.files import PARTIAL, final_name
from pipeline.core.tables import (
    NO_PARQUET,
    UNREADABLE,
    as_packed,
    is_parquet,
    no_parquet,
    not_readable,
    not_utf8,
    open_text,
)
from pipeline.decode.readers.files import read_table

MEMBER = "submission.csv"
"""The name of the table in a zip."""
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The modification time of every file in a zip, so that the same content gives the same bytes."""
AT_ONCE = 64
"""The number of rows of a Parquet file of class maps that are in memory at a time."""
BLOCK = 2**26
"""The number of bytes of a CSV that are converted to Parquet at a time; longer than any row."""


def files_in(folder: Path) -> list[Path]:
    """Returns the submissions in a folder, sorted by name, without records and hidden files."""
    endings = tuple(ENDINGS.values())
    return [path for path in sorted(folder.glob("*")) if path.name.lower().endswith(endings) and path.name[0] != "."]


def stem(path: Path) -> str:
    """Returns the name of a submission's file without its ending."""
    ending = next((known for known in ENDINGS.values() if path.name.lower().endswith(known)), path.suffix)
    return path.name[: len(path.name) - len(ending)]


def record_of(path: Path) -> Path:
    """Returns the path of the record of a submission, <name>.json."""
    return path.with_name(f"{stem(path)}.json")


def holds_images(path: Path) -> bool:
    """Returns whether a submission consists of mask images: a folder, or a zip without a CSV."""
    if path.is_dir() or not final_name(path).lower().endswith(".zip") or not path.exists():
        return path.is_dir()
    try:
        with zipfile.ZipFile(path) as archive:
            return not any(name.lower().endswith(".csv") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile) as error:
        raise PipelineError(f"{path} is not a zip archive: {first_line(error)}.") from None


# --- writing ---------------------------------------------------------------------------------------------------------


@contextmanager
def writing_table(path: Path, file: File, numbers: bool = False) -> Iterator[TextIO]:
    """Yields a text file to write a CSV to, which becomes a file of the given kind; the same text gives the same bytes.

    Args:
        path: the file to write. It is written in place, so it should be a temporary file.
        file: the kind of file.
        numbers: for Parquet, whether all columns except the first hold numbers; otherwise all hold text.
    """
    if file == "csv":
        with path.open("w", encoding="utf-8", newline="") as text:
            yield text
    elif file == "csv.gz":
        with (
            path.open("wb") as raw,
            gzip.GzipFile("", "wb", 9, raw, mtime=0) as archived,
            io.TextIOWrapper(archived, "utf-8", newline="") as text,
        ):
            yield text
    elif file == "zip":
        with (
            zipfile.ZipFile(path, "w") as archive,
            archive.open(member(MEMBER), "w", force_zip64=True) as packed,
            io.TextIOWrapper(packed, "utf-8", newline="") as text,
        ):
            yield text
    else:
        source = path.with_name(f"{path.name}.csv{PARTIAL}")
        try:
            with source.open("w", encoding="utf-8", newline="") as text:
                yield text
            _to_parquet(source, path, numbers)
        finally:
            source.unlink(missing_ok=True)


def member(name: str, compression: int = zipfile.ZIP_DEFLATED) -> zipfile.ZipInfo:
    """Returns the entry for a file in a zip, with fixed time and permissions."""
    entry = zipfile.ZipInfo(name, EPOCH)
    entry.compress_type, entry.external_attr = compression, 0o644 << 16
    return entry


def convert(source: Path, target: Path, file: File, numbers: bool = False) -> None:
    """Writes a table as a file of another kind, with the same texts.

    Args:
        source: the table; the ending of its name tells its kind.
        target: the file to write.
        file: the kind of the target.
        numbers: see writing_table.

    Raises:
        PipelineError: the table cannot be read.
    """
    with writing_table(target, file, numbers) as text:
        for line in lines_of(source):
            text.write(line)


def _to_parquet(source: Path, target: Path, numbers: bool) -> None:
    with source.open(encoding="utf-8", newline="") as text:
        header = next(csv.reader(text), [])
    types = {name: pa.int64() if numbers and place else pa.string() for place, name in enumerate(header)}
    reading = pa.csv.ReadOptions(block_size=BLOCK)
    texts = pa.csv.ConvertOptions(column_types=types, strings_can_be_null=False, null_values=[])
    parsing = pa.csv.ParseOptions(newlines_in_values=True)
    with (
        pa.csv.open_csv(source, reading, parsing, texts) as batches,
        pa.parquet.ParquetWriter(target, batches.schema) as writer,
    ):
        for batch in batches:
            writer.write_batch(batch)


# --- reading ---------------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> pd.DataFrame:
    """Returns the table of a submission with every value as text.

    Index + 2 is the number of the row in the file: counted from 1 with the header in a CSV, counted from 1 in others.

    Raises:
        PipelineError: the file does not exist or cannot be read.
    """
    if file_of_name(final_name(path)) == "json":
        return _read_results(path)
    return read_table(path, [], hint="")


def lines_of(path: Path) -> Iterator[str]:
    """Yields the lines of a table as CSV, one by one, because the whole table may not fit into memory.

    Raises:
        PipelineError: the file does not exist, cannot be read, or is not text.
    """
    if is_parquet(path):
        yield from _lines_of_parquet(path)
        return
    if not as_packed(path).exists():
        raise PipelineError(f"{path} does not exist.")
    try:
        with open_text(path) as file:
            yield from file
    except UnicodeDecodeError as error:
        raise not_utf8(path, error.object, error.start) from None
    except UNREADABLE as error:
        raise not_readable(path, error) from None


def _lines_of_parquet(path: Path) -> Iterator[str]:
    try:
        file = pa.parquet.ParquetFile(path)
    except NO_PARQUET as error:
        raise no_parquet(path, error) from None
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    rows = (row for batch in file.iter_batches(AT_ONCE) for row in zip(*_texts(batch), strict=True))
    for row in chain([file.schema_arrow.names], rows):
        writer.writerow(row)
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()


def _texts(batch: Any) -> list[list[str]]:
    return [["" if value is None else str(value) for value in column.to_pylist()] for column in batch.columns]


def _read_results(path: Path) -> pd.DataFrame:
    """Returns COCO results as a table of image_id, category_id, segmentation (as JSON) and score."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PipelineError(f"{path} does not exist.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise PipelineError(f"{path} is not readable JSON: {first_line(error)}.") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise PipelineError(
            f"{path} is not a list of results; expected [{{image_id, category_id, segmentation, score}}, …]."
        )
    columns = list(dict.fromkeys([*RESULTS.values(), "score", *(key for entry in entries for key in entry)]))
    rows = []
    for number, entry in enumerate(entries, start=1):
        if lacking := [name for name in columns[:4] if name not in entry]:
            raise PipelineError(f"{path}: entry {number} lacks {', '.join(lacking)}.")
        if isinstance(mask := entry["segmentation"], dict):  # sorted in the order in which run lengths are written
            entry = entry | {"segmentation": {name: mask[name] for name in sorted(mask, reverse=True)}}
        rows.append([value if isinstance(value, str) else json.dumps(value) for value in map(entry.get, columns)])
    return pd.DataFrame(rows, columns=columns, dtype=str, index=pd.RangeIndex(-1, len(rows) - 1))
