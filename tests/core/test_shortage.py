"""A lack of memory, room or rights is said in one sentence, in every stage, and nothing half-written stays."""

import errno
import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import Tiny
from typer.testing import CliRunner

from pipeline.__main__ import app
from pipeline.core import driver, files, shortage
from pipeline.core.errors import PipelineError
from pipeline.core.files import make_folder, new_array, require_space, write_text, writing
from pipeline.core.run import open_run
from pipeline.core.shortage import WorkerKilled, explained, out_of_memory, pass_on, require_address_space, sentence
from pipeline.networks.weight_files import read_state
from pipeline.stages import STAGES

MEMORY = [
    MemoryError(),
    np._core._exceptions._ArrayMemoryError((9,), np.dtype(np.uint8)),  # type: ignore[attr-defined]
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried to"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("could not create a primitive"),
    RuntimeError("can't start new thread"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    cv2.error("OpenCV(4.12.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate 9 bytes"),
]


@pytest.mark.parametrize("error", MEMORY, ids=lambda error: type(error).__name__)
def test_lack_of_memory_is_recognised_for_every_library(error: Exception) -> None:
    assert out_of_memory(error)
    assert sentence(error, "tune", "lower x").startswith(
        "memory ran out during tune: lower x. What is finished is kept"
    )
    with pytest.raises(type(error)):
        pass_on(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("memory"),
        PipelineError("out of memory"),
        OSError("no number"),
        KeyError(1),
        ConnectionRefusedError(errno.ECONNREFUSED, "x"),
    ],
)
def test_what_is_no_shortage(error: Exception) -> None:
    assert not out_of_memory(error) and sentence(error) == ""
    pass_on(error)
    with pytest.raises(type(error)), explained():
        raise error


@pytest.mark.parametrize(("error", "said"), [
    (OSError(errno.ENOSPC, "No space left on device", "/a/b"), "/a/b could not be written: No space left on device."),
    (OSError(errno.EROFS, "Read-only file system", "/a/b"), "/a/b could not be written: Read-only file system."),
    (PermissionError(errno.EACCES, "Permission denied", "/a/b"), "/a/b may not be read or written by this user"),
    (OSError(errno.ELOOP, "Too many levels of symbolic links", "/a/b"), "/a/b is a file, a folder or a link where"),
    (FileNotFoundError(errno.ENOENT, "No such file or directory", "/a/b"), "/a/b does not exist"),
    (FileNotFoundError("/a/b"), "/a/b does not exist"),  # pyarrow's
    (OSError(errno.EMFILE, "Too many open files", "/a/b"), "/a/b could not be opened: Too many open files. Raise"),
])  # fmt: skip
def test_the_disk(error: OSError, said: str) -> None:
    with pytest.raises(PipelineError) as caught, explained():
        raise error
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("stage", STAGES)
def test_memory_runs_out_in_every_stage(stage: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def out(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(driver, "states", out)
    with pytest.raises(PipelineError, match=f"memory ran out during {stage}: (set|close) .*(image|YAML)"):
        driver.run_stage(open_run(str(tiny.recipe_path)), stage)


def test_the_error_of_a_killed_worker_names_the_settings_to_lower() -> None:
    said = sentence(WorkerKilled("fold 1: its process ended with code -9"), "train", "set a smaller train.batch_size")
    assert said == (
        "fold 1: its process ended with code -9; set a smaller train.batch_size. The same command continues from what "
        "is "
        "finished."
    )


def test_memory_is_not_taken_for_damaged_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "load", lambda *_, **__: (_ for _ in ()).throw(MEMORY[2]))
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        read_state(tmp_path / "weights.pt")


@pytest.mark.parametrize("said", [
    "Error while serializing: I/O error: No space left on device (os error 28)",  # safetensors
    "[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file data/7: file write failed",
    "20000 requested and 512 written",  # NumPy
])  # fmt: skip
def test_writers_with_words_of_their_own(tmp_path: Path, said: str) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with (
        pytest.raises(PipelineError, match="could not be written: No space left on device"),
        writing(path) as temporary,
    ):
        temporary.write_text("half")
        raise RuntimeError(said)
    assert [one.name for one in tmp_path.iterdir()] == ["file"] and path.read_text() == "before"


def test_a_writer_that_names_no_file(tmp_path: Path) -> None:
    with (
        pytest.raises(PipelineError, match="table could not be written: Permission denied"),
        writing(tmp_path / "table"),
    ):
        raise PermissionError(errno.EACCES, "Permission denied")  # pyarrow's


@pytest.mark.parametrize("kind", ["a file", "a broken link"])
def test_misplaced_folders(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "work"
    place.write_text("") if kind == "a file" else place.symlink_to("nowhere")
    for path in (place, place / "deep" / "er"):
        with pytest.raises(PipelineError, match=f"work is {kind}, and a folder is needed there: move it away"):
            make_folder(path)
    with pytest.raises(PipelineError, match="a folder is needed there"):
        write_text(place / "file", "")


def test_a_link_to_itself(tmp_path: Path) -> None:
    (tmp_path / "work").symlink_to("work")
    with pytest.raises(PipelineError):
        write_text(tmp_path / "work" / "file", "")


def test_arrays_have_their_bytes_before_they_are_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = new_array(tmp_path / "a.npy", (3, 4), np.dtype(np.float16))
    array[:] = 1
    array.flush()
    assert np.load(tmp_path / "a.npy").tolist() == [[1.0] * 4] * 3
    assert (tmp_path / "a.npy").stat().st_blocks * 512 >= 24

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with (
        pytest.raises(PipelineError, match="b.npy could not be written: No space left"),
        writing(tmp_path / "b.npy") as place,
    ):
        new_array(place, (3, 4), np.dtype(np.float16))
    assert not (tmp_path / "b.npy").exists() and len(list(tmp_path.iterdir())) == 1


def test_decode_asks_for_all_of_its_arrays_at_once(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("pipeline.decode.stage.require_space", lambda folder, needed, what: asked.append(needed))
    run = tiny.run("decode")
    arrays = [*run.pixels.glob("*.npy"), *run.competition_folder.glob("*.npy")]
    assert asked == [sum(np.load(path).nbytes for path in arrays)]


def test_too_little_disk_space_is_reported_before_work_starts(tmp_path: Path) -> None:
    with pytest.raises(
        PipelineError, match="all arrays take 8589934592.0 GiB, and the disk of .* free: free some space, or set a "
    ):
        require_space(tmp_path, 2**63, "all arrays")


def test_threads_that_die_of_a_full_disk_are_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    before = threading.excepthook
    try:
        threading.excepthook = threading.__excepthook__
        shortage.quiet_threads()
        for error in (OSError(errno.ENOSPC, "full"), ValueError("a fault")):
            thread = threading.Thread(target=_raise, args=(error,))
            thread.start()
            thread.join()
    finally:
        threading.excepthook = before
    said = capsys.readouterr().err
    assert "ValueError: a fault" in said and "full" not in said


def _raise(error: Exception) -> None:
    raise error


@pytest.fixture
def rooted(tiny: Tiny) -> Iterator[CliRunner]:
    yield CliRunner()


def test_check_of_a_folder(tiny: Tiny, rooted: CliRunner) -> None:
    tiny.run("decode")
    result = rooted.invoke(app, ["check", str(tiny.root), "--competition", str(tiny.competition_path)])
    assert isinstance(result.exception, PipelineError) and "is a folder; the competition's" in str(result.exception)


def test_room_that_a_file_will_grow_to(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        files.allocate_ahead(file.fileno(), 2**20)
        assert os.fstat(file.fileno()).st_size == 0


def test_a_limit_on_address_space_is_reported_before_a_stage_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    require_address_space("train")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (used + 2**20, -1))
    with pytest.raises(PipelineError, match=r"train needs at least 64 MiB of memory, .* \(ulimit -v\) leaves [01] MiB"):
        require_address_space("train")
