"""Kinds of files that submissions come in: tables as CSV, packed or not, Parquet, COCO's results, and mask images."""

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
"""What the table in a zip is called."""
EPOCH = (1980, 1, 1, 0, 0, 0)
"""When every file in a zip was made, so that the same content has the same bytes."""
AT_ONCE = 64
"""Rows of a Parquet file of class maps that are in memory together."""
BLOCK = 2**26
"""Bytes of a CSV that become Parquet at once; more than a row has."""


def files_in(folder: Path) -> list[Path]:
    """Returns the submissions in a folder, by name; records and hidden files are none."""
    endings = tuple(ENDINGS.values())
    return [path for path in sorted(folder.glob("*")) if path.name.lower().endswith(endings) and path.name[0] != "."]


def stem(path: Path) -> str:
    """Returns the name of a submission's file without its ending."""
    ending = next((one for one in ENDINGS.values() if path.name.lower().endswith(one)), path.suffix)
    return path.name[: len(path.name) - len(ending)]


def record_of(path: Path) -> Path:
    """Returns where the record of a submission lies: <name>.json."""
    return path.with_name(f"{stem(path)}.json")


def holds_images(path: Path) -> bool:
    """Returns whether a submission is a folder, or a zip of something else than one table."""
    if path.is_dir() or not final_name(path).lower().endswith(".zip") or not path.exists():
        return path.is_dir()
    try:
        with zipfile.ZipFile(path) as archive:
            return not any(name.lower().endswith(".csv") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile) as error:
        raise PipelineError(f"{path} is no zip archive: {first_line(error)}.") from None


# --- writing ---------------------------------------------------------------------------------------------------------


@contextmanager
def writing_table(path: Path, file: File, numbers: bool = False) -> Iterator[TextIO]:
    """Gives a file that takes a CSV, and becomes a file of a kind; the same text gives the same bytes.

    Args:
        path: where; it is written as it goes, so it should be a temporary one.
        file: the kind.
        numbers: of Parquet, whether all columns but the first hold numbers; else all hold text.
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
    """Returns a file in a zip."""
    found = zipfile.ZipInfo(name, EPOCH)
    found.compress_type, found.external_attr = compression, 0o644 << 16
    return found


def convert(source: Path, target: Path, file: File, numbers: bool = False) -> None:
    """Writes a table as a file of another kind, with the same texts.

    Args:
        source: the table, whose kind its name's ending says.
        target: where.
        file: the kind of the target.
        numbers: see writing_table.

    Raises:
        PipelineError: it cannot be read.
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
    """Returns the table of a submission with every value as text; an index + 2 is the row of a CSV, counted from 1 with
    the header, or of another file, counted from 1.

    Raises:
        PipelineError: there is none, or it cannot be read.
    """
    if file_of_name(final_name(path)) == "json":
        return _read_results(path)
    return read_table(path, [], hint="")


def lines_of(path: Path) -> Iterator[str]:
    """Yields the lines of a table as a CSV has them, one by one: not all of them may fit into memory.

    Raises:
        PipelineError: it does not exist, cannot be read, or is no text.
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
    """COCO's results as a table of image_id, category_id, segmentation (as JSON) and score."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PipelineError(f"{path} does not exist.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise PipelineError(f"{path} is no readable JSON: {first_line(error)}.") from None
    if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
        raise PipelineError(
            f"{path} is no list of results; expected [{{image_id, category_id, segmentation, score}}, …]."
        )
    columns = list(dict.fromkeys([*RESULTS.values(), "score", *(key for one in entries for key in one)]))
    rows = []
    for number, one in enumerate(entries, start=1):
        if lacking := [name for name in columns[:4] if name not in one]:
            raise PipelineError(f"{path}: entry {number} lacks {', '.join(lacking)}.")
        if isinstance(mask := one["segmentation"], dict):  # in this order, as run lengths are written
            one = one | {"segmentation": {name: mask[name] for name in sorted(mask, reverse=True)}}
        rows.append([value if isinstance(value, str) else json.dumps(value) for value in map(one.get, columns)])
    return pd.DataFrame(rows, columns=columns, dtype=str, index=pd.RangeIndex(-1, len(rows) - 1))
