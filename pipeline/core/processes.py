"""Trainings at once, each in a process of its own, which ends with the process that started it."""

import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from multiprocessing import connection
from typing import Any, TypeVar

from pipeline.core.console import console
from pipeline.core.errors import PipelineError
from pipeline.core.interruption import end_worker_quietly, held_back, of_worker

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


def run_in_parallel(
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
        Interrupted: a process got SIGINT or SIGTERM, as if this one had got it (in a notebook KeyboardInterrupt).
    """
    context = multiprocessing.get_context("spawn")  # a fork after CUDA or OpenMP have started does not work
    queue = context.SimpleQueue()
    waiting, running = iter(jobs), dict[Any, Job]()
    try:
        while True:
            for job in islice(waiting, count - len(running)):
                process = context.Process(target=_do, args=(work, job, queue, console.quiet))
                with held_back():
                    process.start()
                    running[process] = job
            if not running:
                return
            connection.wait([process.sentinel for process in running], LISTEN)
            ended = [process for process in running if process.exitcode is not None]
            while not queue.empty():  # after the line above: all that those which ended have said is in it
                said = queue.get()
                if isinstance(said, Exception):
                    raise said
                console.print(said, end="", markup=False) if isinstance(said, str) else advance(*said)
            for process in ended:
                if interruption := of_worker(process.exitcode):
                    raise interruption
                if process.exitcode:
                    raise PipelineError(
                        f"a training's process ended with code {process.exitcode} (-9: it was killed, most likely for "
                        "want of memory: lower train.parallel, 1 is one after another); the same command goes on from "
                        "the last finished epochs."
                    )
                yield running.pop(process)
    finally:
        for process in running:
            process.kill()
            process.join()


# --- in such a process -----------------------------------------------------------------------------------------------


def _do(work: Callable[[Job, Reporter], None], job: Job, queue: Any, quiet: bool) -> None:
    end_worker_quietly()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    reporter = Reporter(queue)
    console.file, console.quiet = reporter, quiet  # type: ignore[assignment]
    try:
        work(job, reporter)
    except Exception as error:
        error.add_note(traceback.format_exc())  # shown with an error that is nobody's bad input
        queue.put(error)


def _end_with_parent() -> None:
    """A command that was killed leaves nothing behind that writes where the next one writes."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
