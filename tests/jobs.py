"""What the processes of test_processes.py do: a module that is quickly imported there."""

import os
import signal
import time
from typing import Any

from pipeline.core.console import console


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
