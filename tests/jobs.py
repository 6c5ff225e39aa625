"""What the units of the engines' tests do: a module that is quickly imported in their processes."""

import os
import signal
import time
from typing import Any

from pipeline.core.console import console
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
