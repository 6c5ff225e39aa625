"""Trainings at once, each in a process of its own, which ends with the process that started it."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import connection
from typing import Any, TypeVar

from pipeline.console import console
from pipeline.errors import PipelineError

Job = TypeVar("Job")
LISTEN = 0.2
"""Seconds between two looks at what the processes say."""


class Reporter:
    """Stands in for the console's file and for the progress bar, and sends what they get to the first process."""

    def __init__(self, queue: Any) -> None:
        self.queue = queue

    def write(self, text: str) -> int:
        """Sends text to be shown."""
        self.queue.put(text)
        return len(text)

    def flush(self) -> None:
        """Nothing is kept back."""

    def advance(self, task: str, epochs: float) -> None:
        """Sends how many epochs of a task are done since the last time."""
        self.queue.put((task, epochs))


def run_side_by_side(
    jobs: Iterable[Job], count: int, work: Callable[[Job, Reporter], None], advance: Callable[[str, float], None]
) -> Iterator[Job]:
    """Yields every job when it is done, in the order in which they end; at most `count` run at once.

    Args:
        jobs: what `work` takes; one is asked for when it begins, and sent to a process.
        count: how many at once.
        work: a function of a module, as processes are spawned.
        advance: is told what the reporter's `advance` is told.

    Raises:
        PipelineError: of the first job that fails, or a process was killed; the others are stopped then.
    """
    context = multiprocessing.get_context("spawn")  # a fork after CUDA or OpenMP have started does not work
    queue = context.SimpleQueue()
    pool = ProcessPoolExecutor(count, context, _prepare, (queue, console.quiet))
    waiting, running = iter(jobs), dict[Any, Job]()
    try:
        while True:
            for job in islice(waiting, count - len(running)):
                running[pool.submit(_do, work, job)] = job
            if not running:
                return
            done, _ = wait(running, LISTEN, FIRST_COMPLETED)
            while not queue.empty():
                said = queue.get()
                console.print(said, end="", markup=False) if isinstance(said, str) else advance(*said)
            for future in done:
                future.result()
                yield running.pop(future)
    except BrokenProcessPool:
        raise PipelineError(
            "a training's process was killed, most likely for want of memory: lower train.parallel (1: one after "
            "another); the same command goes on from the last finished epochs."
        ) from None
    finally:
        if running:
            for process in multiprocessing.active_children():
                process.kill()
        pool.shutdown()


# --- in such a process -----------------------------------------------------------------------------------------------


def _prepare(queue: Any, quiet: bool) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    console.file, console.quiet = Reporter(queue), quiet  # type: ignore[assignment]


def _do(work: Callable[[Job, Reporter], None], job: Job) -> None:
    work(job, console.file)  # type: ignore[arg-type]


def _end_with_parent() -> None:
    """A command that was killed leaves nothing behind that writes where the next one writes."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
