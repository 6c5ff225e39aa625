"""Trainings at once: the same weights, one fault for all, and nothing left behind by what is killed."""

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, Tiny
from jobs import die, tell
from trainings import hashes, named, prepare, summary, train

from pipeline.core.errors import PipelineError
from pipeline.core.processes import run_in_parallel


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
    assert "2 trainings at once" in said
    lines = [line for line in said.splitlines() if " epoch 2/2 " in line]
    assert sorted(line.split(" epoch")[0].strip() for line in lines[:3]) == ["fold 0", "fold 1", "fold 2"]
    train(named(run, "beside", {"train": {"parallel": 3}}))  # how many at once makes no training stale
    assert "train: up to date" in capsys.readouterr().err


def test_a_fault_of_one_ends_all(tiny: Tiny) -> None:
    run = prepare(tiny, {"train": {"parallel": 2, "learning_rate": 1e30, "epochs": 50}})
    with pytest.raises(PipelineError, match="is no number|is not a number|nan"):
        train(run)
    assert not multiprocessing.active_children()


def test_jobs_are_asked_for_when_they_begin(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[int] = []
    ahead, advanced, done = [], [], []

    def jobs() -> Iterator[int]:
        for number in range(5):
            asked.append(number)
            yield number

    for job in run_in_parallel(jobs(), 2, tell, lambda *what: advanced.append(what)):
        done.append(job)
        ahead.append(len(asked) - len(done))
    assert sorted(done) == asked == [0, 1, 2, 3, 4]
    assert max(ahead) <= 1
    assert sorted(advanced) == [(f"job {number}", 0.5) for number in range(5)]
    assert sorted(capsys.readouterr().err.splitlines()) == [f"job {number} is done" for number in range(5)]


def test_a_process_that_is_killed() -> None:
    with pytest.raises(PipelineError, match=r"killed, most likely for want of memory: lower train\.parallel"):
        list(run_in_parallel([0, 1], 2, die, lambda *_: None))
    assert not multiprocessing.active_children()


def test_a_command_that_is_killed_leaves_no_training_behind(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, pathlib, sys, time\n"
        "from pipeline.core.processes import run_in_parallel\n"
        "def work(job, reporter):\n"
        "    pathlib.Path(sys.argv[1], str(os.getpid())).touch()\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    list(run_in_parallel([0, 1], 2, work, print))\n"
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
