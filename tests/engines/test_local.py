"""The engine of this machine: which unit sees which GPU, what it says, and the others when one fails."""

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, Tiny
from jobs import fail, look, tell
from predicted import named as named_
from predicted import outputs, split_run, with_weights
from trainings import hashes, named, prepare, summary, train

from pipeline.core import driver, freshness
from pipeline.core.engine import Needs, Outcome, Unit
from pipeline.core.errors import PipelineError
from pipeline.engines import local
from pipeline.engines.local import LocalEngine
from pipeline.train.leftovers import started


def units(work: Any, count: int, **needs: int) -> list[Unit]:
    return [Unit(f"job {number}", work, number, Needs(**needs)) for number in range(count)]


def run(work: Any, count: int, **needs: int) -> list[Outcome]:
    return list(LocalEngine().run(units(work, count, **needs), lambda *_: None, count))


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int, visible: str | None = None) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    if visible is None:
        monkeypatch.delenv(local.DEVICES, raising=False)
    else:
        monkeypatch.setenv(local.DEVICES, visible)


# --- what a unit sees ------------------------------------------------------------------------------------------------


def test_each_unit_sees_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 2, "5,GPU-8a1")
    monkeypatch.setattr(local, "cores", lambda: 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    before = dict(os.environ)
    seen = [outcome.result for outcome in run(look, 4, per_gpu=2)]
    assert sorted(seen) == sorted([[name, "1", 1, 2] for name in ("5", "GPU-8a1") for _ in range(2)])
    assert dict(os.environ) == before


def test_places() -> None:
    def places(names: list[str], **needs: int) -> list[str | None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(local, "gpus", lambda: names)
            return local._places(Needs(**needs))

    assert places(["0", "1"]) == ["0", "1"]
    assert places(["0", "1"], per_gpu=2) == ["0", "1", "0", "1"]
    assert places(["0", "1", "2", "3", "4"], gpus=2) == ["0,1", "2,3"]
    assert places([], gpus=2, per_gpu=3) == [None] * 3
    with pytest.raises(PipelineError, match=r"needs 2 GPUs, but only 1 GPU is visible \(7\): set train.devices to 1"):
        places(["7"], gpus=2)


def test_which_gpus_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for visible, count, names in (
        (None, 2, ["0", "1"]),
        ("3, GPU-8a1", 2, ["3", "GPU-8a1"]),
        ("", 0, []),
        ("0,9", 1, ["0"]),
    ):
        with_gpus(monkeypatch, count, visible)
        assert local.gpus() == names


@pytest.mark.parametrize(("gpus", "count"), [(0, 3), (1, 3), (2, 1)])
def test_one_at_a_time_runs_in_this_process(gpus: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, gpus)
    monkeypatch.setenv("OMP_NUM_THREADS", "of this process")
    for outcome in run(look, count):
        assert outcome.result[1:3] == ["of this process", None]


# --- what it says ----------------------------------------------------------------------------------------------------


def test_units_are_asked_for_when_they_begin(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[str] = []
    ahead, advanced, done = [], [], []

    def asking() -> Iterator[Unit | None]:
        for unit in units(tell, 5, per_gpu=2):
            yield None  # nothing can begin now
            asked.append(unit.title)
            yield unit

    for outcome in LocalEngine().run(asking(), lambda *what: advanced.append(what)):
        done.append((outcome.unit.title, outcome.result))
        ahead.append(len(asked) - len(done))
    assert sorted(done) == [(f"job {number}", number**2) for number in range(5)]
    assert max(ahead) <= 1
    assert sorted(advanced) == [(f"job {number}", 0.5) for number in range(5)]
    assert sorted(capsys.readouterr().err.splitlines()) == [f"job {number} is done" for number in range(5)]


def test_the_same_weights_as_one_after_another(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(prepare(tiny, {"train": {"folds": [0, 1, 2], "final": True}}))
    beside = named(run, "beside", {"train": {"parallel": 2}})
    capsys.readouterr()
    train(beside)
    assert len(hashes(run)) == 4
    assert hashes(beside) == hashes(run)
    assert summary(beside)["epochs"] == 2
    assert not list(beside.folder.rglob("*.ckpt"))
    said = capsys.readouterr().err
    assert "2 trainings in parallel" in said
    lines = [line for line in said.splitlines() if " 2/2 " in line]
    assert sorted(" ".join(line.split()[:2]) for line in lines[:3]) == ["fold 0", "fold 1", "fold 2"]
    train(named(run, "beside", {"train": {"parallel": 3}}))  # how many at once makes no training stale
    assert "train: up to date" in capsys.readouterr().err


def test_predictions_in_shards_are_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two GPUs, one fold of four images in batches of three: in two parts, the second of one image."""
    for split in split_run(tmp_path_factory.mktemp("shards")):
        change: dict[str, Any] = {"model": {"presence": True}, "train": {"folds": [0]}}
        whole, cut = (with_weights(named_(split, name, **change)) for name in ("one", "cut"))
        driver.run_stage(whole, "validate", engine=LocalEngine())
        monkeypatch.setattr(local, "gpus", lambda: ["", ""])  # which see no GPU
        driver.run_stage(cut, "validate", engine=LocalEngine())
        assert outputs(cut) == outputs(whole)
        assert len(outputs(cut)) == 4
        assert not list(cut.folder.rglob(".*.shards"))


# --- when one fails --------------------------------------------------------------------------------------------------


def test_when_one_fails_the_others_go_on() -> None:
    errors = {outcome.unit.argument: outcome.error for outcome in run(fail, 4, per_gpu=2)}
    assert str(errors[0]) == "bad input"
    assert "job 1: its process ended with code -9 (-9: it was killed, most likely" in str(errors[1])
    assert isinstance(errors[2], KeyError)
    assert "in fail" in errors[2].__notes__[0]
    assert errors[3] is None
    assert not multiprocessing.active_children()


def test_a_training_that_fails(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    """An unexpected error in one fold: the others are trained, and this fold is trained once the cause is gone."""
    run = prepare(tiny, {"train": {"parallel": 2, "folds": [0, 1], "epochs": 1}})
    damaged = run.fold_folder(0) / "last.ckpt"
    damaged.parent.mkdir(parents=True)
    torch.save({"state_dict": {}}, damaged)  # which torch reads, and Lightning cannot go on from
    step = next(state.step for state in driver.states(run, "train") if state.step.fold == 0)
    freshness.record(step, 0, started(step))
    with pytest.raises(Exception) as caught:
        train(run)
    said, error = capsys.readouterr().err, run.fold_folder(0) / "error.txt"
    assert (
        "train fold 0 failed:" in said
        and "tiny/small/fold_0/error.txt" in said
        and "; the other steps continue" in said
    )
    assert "Traceback" in error.read_text() and type(caught.value).__name__ in error.read_text()
    assert [path.parent.name for path in run.folder.glob("*/manifest.json")] == ["fold_1"]
    damaged.unlink()
    train(run)
    assert (run.fold_folder(0) / "manifest.json").exists() and not error.exists()


def test_bad_input_of_all(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    run = prepare(tiny, {"train": {"learning_rate": 1e30, "epochs": 50}})
    with pytest.raises(PipelineError, match=r"2 of 2 steps failed:\n  train fold 0: .*nan") as caught:
        train(run)
    assert "The same command runs these steps again" in str(caught.value)
    assert str(caught.value).count("\n") == 3


def test_a_command_that_is_killed_leaves_no_training_behind(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, pathlib, sys, time\n"
        "from pipeline.core.engine import Needs, Unit\n"
        "from pipeline.engines.local import LocalEngine\n"
        "def work(job, reporter):\n"
        "    pathlib.Path(sys.argv[1], str(os.getpid())).touch()\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    units = [Unit(str(job), work, job, Needs(per_gpu=2)) for job in (0, 1)]\n"
        "    list(LocalEngine().run(units, print))\n"
    )
    pids = tmp_path / "pids"
    pids.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen([sys.executable, str(script), str(pids)], env=environment) as process:
        wait_for(lambda: len(list(pids.iterdir())) == 2)
        process.kill()
    wait_for(lambda: not any(Path("/proc", path.name).exists() for path in pids.iterdir()))


def wait_for(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)
