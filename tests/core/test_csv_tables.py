"""CSVs of others are read as pandas reads sound ones; cut, doubled and blank rows are told apart, with their number."""

import gzip
from pathlib import Path

import pandas as pd
import pytest

from pipeline.core import external_arrays, tables
from pipeline.core.errors import PipelineError
from pipeline.core.tables import read_csv, read_header, unseen


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "table.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def fault(path: Path) -> str:
    with pytest.raises(PipelineError) as caught:
        read_csv(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        "id,rle\na,1 2\nb,\n",
        "id,rle\r\na,1 2\r\nb,\r\n",
        "id,rle\ra,1 2\rb,3 4",
        '\ufeffid,rle\n"a, b",1 2\n"say ""x""",NaN\n',
        "id\na\nb\n",
        ",id,rle\n0,a,1 2\n1,b,\n",
        "id,rle,\na,1 2,\n",
        "id,rle\n",
        'id,rle\n"two\nlines",1 2\nb,\n',
        f"id,rle\na,{'1 2 ' * 60000}\n",
    ],
)
def test_sound_tables_are_read_as_pandas_reads_them(tmp_path: Path, content: str) -> None:
    path = written(tmp_path, content)
    wanted = pd.read_csv(path, dtype=str, keep_default_na=False)
    found = read_csv(path)
    assert list(found.columns) == list(wanted.columns) == read_header(path)
    assert found.to_numpy().tolist() == wanted.to_numpy().tolist()


def test_some_columns_and_compressed_files(tmp_path: Path) -> None:
    path = tmp_path / "table.csv.gz"
    path.write_bytes(gzip.compress(b"a,b,c\n1,2,3\n4,5,6\n"))
    assert read_csv(path, ["c", "a", "other"]).to_dict("list") == {"a": ["1", "4"], "c": ["3", "6"]}


def test_an_index_and_two_is_the_row_of_the_file(tmp_path: Path) -> None:
    table = read_csv(written(tmp_path, '\nid,rle\na,1\n\n"b\nc",2\n   \nd,3\n\n'))
    assert dict(zip(table["id"], table.index + 2, strict=True)) == {"a": 3, "b\nc": 5, "d": 8}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("id,rle\na,1 2\n\nb 1 2\n", "has columns (id, rle), but row 4 has 1 (b 1 2): "),
        ("id,rle\na,1,2\nb,1\nc\n", "but row 2 has 3 (a,1,2); row 4 has 1 (c): "),
        ("id,rle\na,1,\nb,1,\n", "but row 2 has 3 (a,1,); row 3 has 3 (b,1,): "),
        ("id,rle\n" + "a\n" * 9, "row 6 has 1 (a) and 4 more rows: "),
        ("id,rle,rle\na,,1 2\n", "csv: the column `rle` stands more than once in its header (id, rle, rle); "),
        ("id,rle,rle,id\n", "the columns `id`, `rle` stand more than once"),
        ('id,rle\na,1 2\nb,"1 2\nc,3 4\n', "row 3: unexpected end of data; look for an unclosed quotation mark."),
        (b"id,who\na,1\nb,Jos\xe9\n", "not UTF-8, but perhaps Latin-1 or Windows-1252, in which it contains 'b,José'"),
        ("id,rle\na,1 2\n".encode("utf-16"), "is not a readable CSV: it is UTF-16; save it as UTF-8."),
        ("id,rle\na,1 2\n".encode("utf-16-le"), "is not a readable CSV: it is UTF-16; save it as UTF-8."),
        (b"PK\x03\x04\x14\x00\x08\x08\xff", "it is a spreadsheet (.xlsx) or another zip archive; save "),
        ("id;rle\na;1 2\n", "seem to be separated by semicolons, because its header is 'id;rle'; save it with commas"),
        ("id\trle\na\t1 2\n", "columns seem to be separated by tabs, because its header is 'id\\trle'; save it"),
        ("sep=;\nid;rle\na;1 2\n", "its columns seem to be separated by semicolons, because its header is 'sep=;'; "),
        ("\n\n", "is not a readable CSV: No columns to parse from file."),
    ],
)  # fmt: skip
def test_cut_and_doubled_tables(tmp_path: Path, content: str | bytes, words: str) -> None:
    assert words in fault(written(tmp_path, content))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("case 7", ""),
        ("a ", "with a space at its end"),
        (" a ", "with a space at its start and its end"),
        ("a\xa0", "with a no-break space (U+00A0)"),
        (" a\0", "with a space at its start and a NUL character (U+0000)"),
        ("a\u3000b", "with the invisible character U+3000"),
    ],
)
def test_characters_that_do_not_show(text: str, words: str) -> None:
    assert unseen(text) == words


def test_the_ids_of_an_array_keep_their_places_and_rows(tmp_path: Path) -> None:
    written(tmp_path, "image_id,fold\na,0\n\nb,1\n")
    index = external_arrays.read_index(tmp_path / "table.npy")
    assert index.index.tolist() == [0, 1]
    assert index["file_row"].tolist() == [2, 4]
    written(tmp_path, "image_id,fold\na,0\n\nb,x\n")
    with pytest.raises(PipelineError, match="row 4: fold is 'x'"):
        external_arrays.read_index(tmp_path / "table.npy")


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz", "zst", "zip", "tar", "tar.gz"])
def test_a_damaged_compressed_table_is_named(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"table.csv.{ending}"
    sound = gzip.compress(b"id,rle\n" + b"a,1 2\n" * 99)
    for content in (b"", b"no archive" * 99, sound[:40] + b"\xff\xff" + sound[42:], sound[:-9]):
        path.write_bytes(content)
        assert f"table.csv.{ending} is not a readable CSV: " in fault(path)


def test_a_parquet_file_of_bytes_is_named(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    pd.DataFrame({"id": ["a"], "rle": [b"\xff"]}).to_parquet(path)
    assert "table.parquet cannot be read as Parquet: " in fault(path)


def test_too_many_rows_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MOST_ROWS", 3)
    path = tmp_path / "table.parquet"
    pd.DataFrame({"id": list("abcd")}).to_parquet(path)
    for one in (path, written(tmp_path, "id,rle\n" + ",\n" * 4)):
        assert "it has more than 3 rows; at most that many are read." in fault(one)
    assert len(read_csv(written(tmp_path, "id,rle\n" + ",\n" * 3))) == 3


def test_of_many_columns_the_first_are_named() -> None:
    assert tables.column_names(map(str, range(99))).endswith(", 28, 29, … (99 columns)")
    assert tables.column_names(["a", "b"], "`") == "`a`, `b`"
