"""What the processes of test_processes.py do: a module that is quickly imported there."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from pipeline.core.console import console, say
from pipeline.core.errors import PipelineError


def tell(job: int, reporter: Any) -> None:
    """Says in both ways that it is done."""
    reporter.advance(f"job {job}", 0.5)
    console.print(f"job [b]{job}[/b] is done")


def die(job: int, reporter: Any) -> None:
    """Job 1 is killed while job 0 has much to do."""
    os.kill(os.getpid(), signal.SIGKILL) if job else time.sleep(600)


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
