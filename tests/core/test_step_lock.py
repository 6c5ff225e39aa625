"""Steps that several processes share: on one machine, on a folder of several, and where one of them is gone."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, Tiny
from filelock import FileLock
from trainings import hashes, named, prepare, train

from pipeline.core import driver, lock, units
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json
from pipeline.core.lock import StepLock
from pipeline.core.moments import machine_id
from pipeline.train import stage

OTHER = {"host": "node7", "process": 123, "machine": "another", "token": "1"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "locks" / "train-fold-0.lock"


def lease_of(path: Path, age: float, **changes: str) -> None:
    """Writes a lease that another process renewed so many seconds ago."""
    path.parent.mkdir(exist_ok=True)
    lease = path.with_suffix(".lease")
    lease.write_text(json.dumps({**OTHER, **changes}))
    os.utime(lease, (time.time() - age,) * 2)


def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def acquire(self: FileLock, blocking: bool) -> None:
        raise NotImplementedError("no flock")

    monkeypatch.setattr(FileLock, "acquire", acquire)


@pytest.mark.parametrize("kind", ["locks", "no locks"])
def test_one_of_two_has_it(path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "no locks":
        without_locks(monkeypatch)
    one, two = (StepLock(path, "train fold 0") for _ in range(2))
    assert one.acquire() is None
    holder = two.acquire()
    assert holder and holder.process == os.getpid() and str(holder).endswith(f", process {os.getpid()}")
    one.release()
    assert not path.with_suffix(".lease").exists()
    assert two.acquire() is None
    two.release()


@pytest.mark.parametrize("suffix", [".lock", ".lease"])
def test_a_folder_where_the_lock_belongs(path: Path, suffix: str) -> None:
    path.with_suffix(suffix).mkdir(parents=True)
    with pytest.raises(PipelineError, match=f"train-fold-0{suffix} is a folder, .*: remove it"):
        StepLock(path, "train fold 0").acquire()


@pytest.mark.parametrize("kind", ["locks that reach no other machine", "no locks", "locks that a server keeps"])
def test_a_machine_that_is_gone(
    path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lease_of(path, 40)
    kept = FileLock(path)
    if kind == "no locks":
        without_locks(monkeypatch)
    elif kind == "locks that a server keeps":
        kept.acquire()
    step = StepLock(path, "train fold 0")
    assert str(step.acquire()) == "node7, process 123"
    lease_of(path, 70)
    assert step.acquire() is None
    assert (
        "train fold 0: node7, process 123, has not answered for 70 s and is considered dead" in capsys.readouterr().err
    )
    assert read_json(path.with_suffix(".lease"))["process"] == os.getpid()
    other = StepLock(path, "train fold 0")
    assert str(other.acquire()).endswith(f"process {os.getpid()}")
    step.release()


def test_a_process_that_is_gone_from_this_machine_is_not_waited_for(path: Path) -> None:
    lease_of(path, 1, machine=machine_id())
    step = StepLock(path, "train fold 0")
    assert step.acquire() is None
    step.release()


def test_a_lease_is_renewed_and_its_loss_is_noticed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "RENEWED", 0.02)
    step = StepLock(path, "train fold 0")
    assert step.acquire() is None
    lease = path.with_suffix(".lease")
    os.utime(lease, (1, 1))
    wait_for(lambda: lease.stat().st_mtime > 1)
    assert step.is_held()
    lease_of(path, 0)
    assert not step.is_held()
    step.release()
    assert read_json(lease) == OTHER  # it is another's now


def test_a_fold_that_another_process_trains_is_left_to_it(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It dies in the middle, and the fold is gone on with."""
    run = prepare(tiny, {"train": {"folds": [0, 1], "epochs": 1}})
    monkeypatch.setattr(units, "AGAIN", 0.05)
    place, trained, work = run.folder / ".locks" / "train-fold-0.lock", [], stage._train
    place.parent.mkdir(parents=True)
    lease_of(place, 0)

    def dies_meanwhile(training: Any, reporter: Any) -> None:
        work(training, reporter)
        trained.append(training.step.title)
        if len(trained) == 1:
            lease_of(place, 99)

    monkeypatch.setattr(stage, "_train", dies_meanwhile)
    driver.run_stage(run, "train")
    assert trained == ["train fold 1", "train fold 0"]
    said = capsys.readouterr().err
    assert said.index("train fold 0 is being done by node7, process 123") < said.index("fold 1      1/1")
    assert said.index("fold 1      1/1") < said.index("is considered dead") < said.index("fold 0      1/1")
    assert not list(place.parent.glob("*.lease"))


def test_two_processes_of_one_run_at_once(tiny: Tiny) -> None:
    """Each fold is trained once, by one or the other, and both end with the same submission."""
    run = prepare(tiny, {"tune": {"method": "fixed"}})
    words = [sys.executable, "-m", "pipeline", "run", str(tiny.recipe_path), "--to", "encode"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    started = [
        subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    for fold in (0, 1):
        assert sum(text.count(f"  fold {fold}      2/2") for text in said) == 1
    assert "is being done by" in "".join(said)
    alone = train(named(run, "alone"), "validate", "tune", "predict", "encode")
    assert hashes(alone) == hashes(run)
    assert alone.submission.read_bytes() == run.submission.read_bytes()


def wait_for(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
