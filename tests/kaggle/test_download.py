"""Downloads from a fake Kaggle: the files that arrive, the archives that are refused, and the messages."""

import errno
import io
import stat
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Tiny
from kaggle_server import TOKEN, Kaggle, serve
from typer.testing import CliRunner

from pipeline.__main__ import app
from pipeline.core.config.raw_layouts import load_competition
from pipeline.core.errors import PipelineError
from pipeline.core.run import input_folder
from pipeline.kaggle import archives, client
from pipeline.kaggle.download import download

SLUG = "tiny-cup"


def packed(members: dict[str, bytes | str], **more: int) -> bytes:
    """A .zip of these members; `more` are attributes of a member named mode."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = more.get("mode", 0) << 16
            opened.writestr(info, content)
    return buffer.getvalue()


@pytest.fixture
def kaggle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kaggle]:
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    monkeypatch.delenv("PIPELINE_INPUT", raising=False)
    for known in serve(tmp_path / "home"):
        inner = packed({"images/1.png": b"one", "masks/1.png": b"two"})
        known.files[SLUG] = packed({
            "train.zip": inner, "test.zip": packed({"test/2.png": b"three"}),
            "train.csv.zip": packed({"train.csv": "id"}), "sample_submission.csv": "id,rle\n",
        })  # fmt: skip
        yield known


def refused(folder: Path) -> str:
    competition = load_competition("tgs-salt").model_copy(update={"kaggle": SLUG})
    with pytest.raises(PipelineError) as caught:
        download(competition, folder)
    assert not folder.exists() or not any(folder.iterdir())
    assert TOKEN not in str(caught.value)
    return str(caught.value)


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


EXPECTED = {
    "train/images/1.png": b"one", "train/masks/1.png": b"two", "test/2.png": b"three", "train.csv": b"id",
    "sample_submission.csv": b"id,rle\n",
}  # fmt: skip


def test_everything_arrives_unpacked(kaggle: Kaggle, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["download", SLUG])
    assert done.exit_code == 0, done.output
    assert files_in(tmp_path / "input" / SLUG) == EXPECTED
    assert [path.name for path in (tmp_path / "input").iterdir()] == [SLUG]
    assert f"new {SLUG} --from input/{SLUG}" in done.output
    assert TOKEN not in done.output
    again = CliRunner().invoke(app, ["download", SLUG])
    assert "is not empty, so nothing was downloaded" in str(again.exception)


def test_a_download_that_broke_off_goes_on(kaggle: Kaggle, tmp_path: Path) -> None:
    folder = tmp_path / "input" / "tgs-salt"
    kaggle.files[SLUG] = packed({"large.bin": bytes(3 * 2**20)})
    kaggle.cut = 3 * 2**19
    assert (
        "the connection to Kaggle was interrupted" in (said := refused(folder))
        and "Run the same command again to continue the download" in said
    )
    assert (tmp_path / "input" / ".tgs-salt.download" / f"{SLUG}.zip").stat().st_size == 2**20
    kaggle.cut, before = None, len(kaggle.ranges)
    competition = load_competition("tgs-salt").model_copy(update={"kaggle": SLUG})
    download(competition, folder)
    assert kaggle.ranges[before:] == [f"bytes={2**20}-"]
    assert files_in(folder) == {"large.bin": bytes(3 * 2**20)}


@pytest.mark.parametrize(
    ("method", "status", "said"),
    [
        ("GetCompetition", 401, "rejects the token (401): it is wrong or has expired"),
        ("DownloadDataFiles", 401, "rejects the token (401)"),
        (
            "DownloadDataFiles",
            403,
            "(403: some reason): join the competition and accept its rules at https://www.kaggle.com/competitions/tiny-cup/rules",
        ),
        (
            "GetCompetition",
            404,
            "does not find it (404: some reason); check the name, which is the last part of the address https://www.kaggle.com/competitions/tiny-cup",
        ),
        ("ListDataFiles", 500, "reports an internal error (500: some reason); try again later"),
        ("ListDataFiles", 429, "too many requests"),
    ],
)
def test_refusals_are_sentences(kaggle: Kaggle, tmp_path: Path, method: str, status: int, said: str) -> None:
    kaggle.fails[method] = status, "some reason"
    message = refused(tmp_path / "input" / "tgs-salt")
    assert message.startswith("Could not download tiny-cup: ") and said in message


def test_rules_come_first(kaggle: Kaggle, tmp_path: Path) -> None:
    kaggle.entered = False
    assert "join the competition at https://www.kaggle.com/competitions/tiny-cup/rules" in refused(
        tmp_path / "input" / "tgs-salt"
    )
    assert not kaggle.calls("DownloadDataFiles")


def test_no_token_a_wrong_one_and_no_network(kaggle: Kaggle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "input" / "tgs-salt"
    kaggle.token = "another"
    assert refused(folder).startswith("Kaggle rejects the token that is set here")
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    assert refused(folder).startswith("No Kaggle token was found: make a token at https://www.kaggle.com/settings")
    monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
    from kagglesdk import kaggle_env

    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.TEST, "http://127.0.0.1:1")
    assert refused(folder) == (
        "Could not log in to Kaggle: there is no connection to Kaggle; check the network and try again."
    )


def test_the_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kaggle.api.kaggle_api_extended", None)
    client._client_class.cache_clear()
    with pytest.raises(PipelineError, match=r"client is not installed .*: pip install 'kaggle>=2.2' six"):
        client.connect()


def test_a_full_disk(kaggle: Kaggle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    client._client_class()
    monkeypatch.setattr(sys.modules["kaggle.api.kaggle_api_extended"], "open", full, raising=False)
    message = refused(tmp_path / "input" / "tgs-salt")
    assert message.startswith(
        "Could not download tiny-cup: the disk is full; make room, and run the same command again to continue."
    )


def test_a_small_disk(kaggle: Kaggle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100}))
    assert "GiB free: make room, or put input/ on another disk" in refused(tmp_path / "input" / "tgs-salt")
    assert not kaggle.calls("DownloadDataFiles")


def test_a_damaged_archive_is_thrown_away(kaggle: Kaggle, tmp_path: Path) -> None:
    sound = kaggle.files[SLUG]
    kaggle.files[SLUG] = sound.replace(b"three", b"thr3e")
    folder = tmp_path / "input" / "tgs-salt"
    assert refused(folder).startswith("tiny-cup.zip is damaged (Bad CRC-32 for file 'test.zip'), and was deleted: run")
    kaggle.files[SLUG] = sound
    download(load_competition("tgs-salt").model_copy(update={"kaggle": SLUG}), folder)
    assert files_in(folder) == EXPECTED


@pytest.mark.parametrize("name", ["../out.txt", "/tmp/out.txt", "a/../../out.txt", "C:/out.txt", "..\\out.txt"])
def test_nothing_leaves_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.zip").write_bytes(packed({"fine.txt": "", name: "out"}))
    with pytest.raises(PipelineError, match="would be written outside the folder"):
        archives.unpack(tmp_path / "a.zip", tmp_path / "to" / "here")
    assert not list(tmp_path.rglob("*.txt")) and not Path("/tmp/out.txt").exists()


@pytest.mark.parametrize(
    ("files", "said"),
    [({"../out.txt": "out"}, "would be written outside the folder"), ({}, "tiny-cup.zip contains no files.")],
)
def test_a_refused_archive_is_named(kaggle: Kaggle, tmp_path: Path, files: dict[str, Any], said: str) -> None:
    kaggle.files[SLUG] = packed(files)
    folder = tmp_path / "input" / "tgs-salt"
    message = refused(folder)
    assert said in message and ".tgs-salt.download/tiny-cup.zip: look at it, or delete it to download" in message
    assert not folder.exists()


def test_links_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(packed({"link": "/etc/passwd"}, mode=stat.S_IFLNK | 0o777))
    with pytest.raises(PipelineError, match="is a link or a device"):
        archives.unpack(tmp_path / "a.zip", tmp_path / "to")


def test_packed_files_of_a_folder_that_can_only_be_read(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """As /kaggle/input has them: a .zip of images, a .zip of a table, and files as they are."""
    with zipfile.ZipFile(tiny.input / "train.zip", "w") as opened:
        for path in sorted((tiny.input / "train").iterdir()):
            opened.write(path, path.name)
            path.unlink()
    (tiny.input / "train").rmdir()
    (tiny.input / "train.csv.zip").write_bytes(packed({"train.csv": (tiny.input / "train.csv").read_bytes()}))
    (tiny.input / "train.csv").unlink()
    said = tiny.fails()
    assert "`python -m pipeline download" in said and "unpacks" in said
    competition: Any = load_competition(str(tiny.competition_path))
    before = files_in(tiny.input)
    assert download(competition, input_folder(competition)) == tiny.root / "work" / "tiny" / "raw"
    assert files_in(tiny.input) == before
    tiny.run("decode", "clean", "split")


def test_tables_are_read_as_they_lie(tiny: Tiny) -> None:
    for name in ("train.csv", "sample.csv"):
        (tiny.input / f"{name}.zip").write_bytes(packed({name: (tiny.input / name).read_bytes()}))
        (tiny.input / name).unlink()
    run = tiny.run("decode")
    images = run.table.read_bytes()
    tiny.save()
    tiny.run("decode")
    assert run.table.read_bytes() == images


def test_raw_files_beside_their_archive_stay(tiny: Tiny) -> None:
    """What is unpacked already is linked to: the archive must not be unpacked through the link."""
    (tiny.input / "train.zip").write_bytes(packed({"train/new.png": b"new", "train/a.png": b"other"}))
    (tiny.input / "more.zip").write_bytes(packed({"x.txt": b"x"}))
    before = files_in(tiny.input)
    raw = download(load_competition(str(tiny.competition_path)), tiny.input)
    assert files_in(tiny.input) == before
    assert (raw / "more" / "x.txt").read_bytes() == b"x" and not (raw / "train" / "new.png").exists()


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a"), (".",), ("x" * 300,), ("a/" * 3000 + "x",)])
def test_names_that_no_disk_holds_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    (tmp_path / "a.zip").write_bytes(packed(dict.fromkeys(names, b"x")))
    with pytest.raises(archives.RefusedArchive):
        archives.unpack(tmp_path / "a.zip", tmp_path / "unpacked")
