"""What the units of the engines' tests do: a module that is quickly imported in their processes."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from pipeline.core.console import console, say
from pipeline.core.engine import cores
from pipeline.core.errors import PipelineError

SEEN = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")


def tell(job: int, reporter: Any) -> int:
    """Says in both ways that it is done."""
    reporter.advance(f"job {job}", 0.5)
    console.print(f"job [b]{job}[/b] is done")
    return job * job


def look(job: int, reporter: Any) -> list[Any]:
    """Returns what it sees of its machine."""
    return [*map(os.environ.get, SEEN), reporter.threads, cores()]


def fail(job: int, reporter: Any) -> None:
    """Each fails in another way, but for job 3."""
    if job == 0:
        raise PipelineError("bad input")
    if job == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if job == 2:
        raise KeyError(job)


def interrupt(job: int, reporter: Any) -> None:
    """Job 1 gets SIGINT while job 0 has much to do."""
    os.kill(os.getpid(), signal.SIGINT) if job else time.sleep(600)


def take_part(said: Path, show: tuple[Any, str, int], place: Any) -> None:
    """A training's part, of which the first process is heard, and then the second fails."""
    while place.rank and not said.exists():
        time.sleep(0.1)
    if place.rank:
        raise PipelineError(f"device {place.rank} says so")
    progress, task, after = show
    say(f"device {place.rank} of {place.devices}, {after} come after it")
    progress.advance(task, 0.5)
    said.touch()
    time.sleep(600)
