"""SIGINT and SIGTERM: exit code 130 or 143, one line, and the same command goes on to the same result."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY, Tiny
from trainings import BASE, hashes, named, prepare, train

from pipeline.__main__ import main
from pipeline.clean import stage as clean
from pipeline.core import interruption
from pipeline.core.console import Shares
from pipeline.core.engine import Needs, Unit
from pipeline.decode import stage as decode
from pipeline.encode import stage as encode
from pipeline.engines.local import LocalEngine
from pipeline.evaluate import stage as evaluate
from pipeline.predict import stage as predict
from pipeline.report import stage as report
from pipeline.split import stage as split
from pipeline.stages import STAGES
from pipeline.train import stage as training
from pipeline.tune import stage as tune
from pipeline.validate import stage as validate

SIGNALS = [signal.SIGINT, signal.SIGTERM]
ROOMS = (decode, clean, split, training, validate, tune, predict, encode, evaluate, report)
MODULES = dict(zip(STAGES, ROOMS, strict=True))
LINE = "interrupted: the same command continues where it stopped"


@pytest.fixture
def handlers() -> Iterator[None]:
    """Leaves the signals as they were: an interrupted command keeps its handlers until its process ends."""
    before = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGALRM)}
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in before.items():
        signal.signal(number, handler)


SLOW_END = """
import os, signal, time
from pipeline.core import interruption

class Slow:
    def __del__(self):
        time.sleep(1)

slow = Slow()
interruption.GRACE = 0.4
with interruption.exit_codes():
    os.kill(os.getpid(), signal.SIGTERM)
"""


def test_python_that_shuts_down_slowly_changes_no_exit_code() -> None:
    assert subprocess.run([sys.executable, "-c", SLOW_END], cwd=REPOSITORY, capture_output=True).returncode == 143


LOST = """
import os, signal, time
from pipeline.core import interruption

class Last:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)

with interruption.exit_codes():
    last = Last()
    del last
    time.sleep(60)
"""


def test_an_interruption_that_a_destructor_loses_is_raised_again() -> None:
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", LOST], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (143, "interrupted\n") and time.monotonic() - began < 30


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def command(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> int:
    """The exit code of `python -m pipeline` with these words, run in this process."""
    monkeypatch.setattr(sys, "argv", ["pipeline", *map(str, words)])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


# --- one process -----------------------------------------------------------------------------------------------------


def test_every_stage(
    tiny: Tiny, handlers: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.recipe |= {**BASE, "train": {**BASE["train"], "folds": [0], "epochs": 1}}
    tiny.save()
    stages = [stage for stage in STAGES if stage != "evaluate"]  # it has no truth to score against here
    for index, stage in enumerate(stages):
        number, execute = SIGNALS[index % 2], MODULES[stage].execute

        def interrupted(*arguments: Any, number: int = number, execute: Any = execute, **options: Any) -> Iterator[Any]:
            for step in execute(*arguments, **options):
                send(number)
                yield step

        with monkeypatch.context() as patch:
            patch.setattr(MODULES[stage], "execute", interrupted)
            assert command(patch, stage, tiny.recipe_path) == 128 + number, stage
        said = capsys.readouterr().err
        assert said.endswith(f"{LINE}\n") and "Traceback" not in said, stage
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert command(monkeypatch, stage, tiny.recipe_path) == 0, stage
        assert not list(tiny.root.rglob("*.partial")), stage


@pytest.mark.parametrize("number", SIGNALS)
def test_while_threads_are_at_work(
    number: int, tiny: Tiny, handlers: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    decode_one, calls = decode.decode_one, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            send(number)
        time.sleep(0.01)
        return decode_one(*arguments)

    monkeypatch.setattr(decode, "decode_one", interrupted)
    assert command(monkeypatch, "decode", tiny.recipe_path) == 128 + number
    assert capsys.readouterr().err.endswith(f"{LINE}\n")
    tiny.assert_nothing_half_written()


@pytest.mark.parametrize("number", SIGNALS)
def test_before_a_stage_there_is_nothing_to_continue(
    number: int, tiny: Tiny, handlers: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.status.examine", lambda: send(number))
    assert command(monkeypatch, "doctor") == 128 + number
    assert capsys.readouterr().err == "interrupted\n"


def test_an_error_that_follows_from_the_signal_does_not_hide_it(handlers: None) -> None:
    """As when a loader's process dies of the same signal and PyTorch raises an error of its own."""
    with pytest.raises(SystemExit) as caught, interruption.exit_codes():
        try:
            send(signal.SIGTERM)
        except SystemExit:
            raise RuntimeError("DataLoader worker is killed by signal: Terminated") from None
    assert caught.value.code == 143


def test_a_signal_that_comes_twice_is_one(handlers: None) -> None:
    cleaned = []
    with pytest.raises(SystemExit) as caught, interruption.exit_codes():
        try:
            send(signal.SIGTERM)
        finally:
            send(signal.SIGTERM)
            cleaned.append(True)
    assert caught.value.code == 143 and cleaned


def test_what_does_not_end_is_cut_off() -> None:
    """An exception in a destructor is lost."""
    script = (
        "import os, signal, time\n"
        "from pipeline.core import interruption\n"
        "interruption.GRACE = 0.2\n"
        "class Loses:\n"
        "    def __del__(self): os.kill(os.getpid(), signal.SIGTERM)\n"
        "with interruption.exit_codes():\n"
        "    Loses()\n"
        "    time.sleep(60)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, stderr=subprocess.DEVNULL).returncode == 143


def test_the_handlers_are_put_back(handlers: None) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with interruption.exit_codes():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_an_empty_file_is_an_error_and_no_aborted(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.npy").touch()
    monkeypatch.setattr("pipeline.status.examine", lambda: np.load(tmp_path / "empty.npy"))
    monkeypatch.setattr(sys, "argv", ["pipeline", "doctor"])
    with pytest.raises(RuntimeError, match="a file ends too early"):
        main()
    assert "Aborted" not in capsys.readouterr().err


# --- several processes -----------------------------------------------------------------------------------------------

SCRIPT = """
import os, pathlib, sys, time
from pipeline.core import interruption
from pipeline.core.engine import Needs, Unit
from pipeline.engines.local import LocalEngine
def work(job, reporter):
    pathlib.Path(sys.argv[1], f"{job}-{os.getpid()}").touch()
    time.sleep(600)
if __name__ == "__main__":
    with interruption.exit_codes():
        interruption.work_began()
        units = [Unit(str(job), work, job, Needs(per_gpu=2)) for job in (0, 1)]
        list(LocalEngine().run(units, print))
"""


@pytest.mark.parametrize("to", ["the group", "a worker"])
@pytest.mark.parametrize("number", SIGNALS)
def test_workers(number: int, to: str, tmp_path: Path) -> None:
    script, pids = tmp_path / "script.py", tmp_path / "pids"
    script.write_text(SCRIPT)
    pids.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    options: dict[str, Any] = {"env": environment, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen([sys.executable, str(script), str(pids)], **options) as process:
        wait_for(lambda: len(list(pids.iterdir())) == 2)
        if to == "the group":
            os.killpg(process.pid, number)
        else:
            os.kill(int(min(pids.iterdir()).name.split("-")[1]), number)
        said = process.communicate(timeout=60)[1]
    assert (process.returncode, said) == (128 + number, f"{LINE}\n")
    wait_for(lambda: not any(Path("/proc", path.name.split("-")[1]).exists() for path in pids.iterdir()))


def test_in_a_notebook_an_interrupted_worker_is_a_keyboard_interrupt() -> None:
    from jobs import interrupt

    with pytest.raises(KeyboardInterrupt):
        units = [Unit(str(job), interrupt, job, Needs(per_gpu=2)) for job in (0, 1)]
        list(LocalEngine().run(units, lambda *_: None))
    assert not multiprocessing.active_children()


def test_a_training_beside_others_goes_on_to_the_same_weights(
    tiny: Tiny, handlers: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(prepare(tiny, {"train": {"epochs": 3}}))
    other, advance = named(run, "other"), Shares.advance

    def interrupted(self: Any, title: str, epochs: float) -> None:
        advance(self, title, epochs)
        for worker in multiprocessing.active_children():
            os.kill(worker.pid or 0, signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Shares, "advance", interrupted)
        words = ["train", tiny.recipe_path, "--name", "other", "--set", "train.parallel=2"]
        assert command(patch, *words) == 143
    said = capsys.readouterr().err
    assert said.endswith(f"{LINE}\n") and "Traceback" not in said
    assert not multiprocessing.active_children()
    assert not all((other.fold_folder(fold) / "manifest.json").exists() for fold in (0, 1))
    train(other)
    assert hashes(other) == hashes(run)


def wait_for(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    inner = (
        "import os, sys, time\nfrom pipeline.core import interruption\n"
        "interruption.end_with_process(os.getppid())\nprint(os.getpid(), flush=True)\ntime.sleep(60)"
    )
    outer = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {inner!r}])"
    process = subprocess.Popen([sys.executable, "-c", outer], cwd=REPOSITORY, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.wait()
    began = time.monotonic()
    assert process.stdout.read() == b""  # the other end is closed when the inner process has ended
    assert time.monotonic() - began < 30
