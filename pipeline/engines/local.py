"""The engine for this machine: runs as many units in parallel as its GPUs allow, each in its own process.

If only one unit runs at a time, on a CPU or on one GPU, it runs in the calling process. No process is started, and a
debugger can reach it. Worker processes are spawned, also from a notebook, and end with the process that started them.
"""

import multiprocessing
import os
import pickle
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from multiprocessing import connection
from typing import Any

from pipeline.core import events
from pipeline.core.console import console
from pipeline.core.engine import IDLE, Advance, Needs, OneByOne, Outcome, Unit, cores, environment, worker_environment
from pipeline.core.errors import PipelineError
from pipeline.core.interruption import end_with_parent, end_worker_quietly, held_back, of_worker
from pipeline.core.shortage import WorkerKilled

DEVICES = "CUDA_VISIBLE_DEVICES"


def gpus() -> list[str]:
    """Returns the names of the visible GPUs as in CUDA_VISIBLE_DEVICES: numbers or UUIDs."""
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get(DEVICES, "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]


class LocalEngine:
    """Runs units on this machine."""

    def at_once(self, needs: Needs, count: int) -> int:
        """Returns how many of `count` units run in parallel on the GPUs, or on the CPU if there are none.

        Raises:
            PipelineError: a unit needs more GPUs than there are.
        """
        return max(1, min(len(_places(needs)), count))

    def run(self, units: Iterable[Unit | None], advance: Advance, count: int | None = None) -> Iterator[Outcome]:
        """Yields the outcome of every unit when it has ended; see Engine."""
        waiting = iter(units)
        first = _first(waiting)
        if first is None:
            return
        places = _places(first.needs)[:count]
        if len(places) == 1:
            yield from OneByOne().run(chain([first], waiting), advance)
            return
        yield from _run_parallel(chain([first], waiting), places, advance)


def _first(units: Iterator[Unit | None]) -> Unit | None:
    """Returns the first unit that can start; None if there is no unit."""
    for unit in units:
        if unit is not None:
            return unit
        time.sleep(IDLE)
    return None


def _places(needs: Needs) -> list[str | None]:
    """Returns one entry per unit that can run in parallel: its GPUs as in CUDA_VISIBLE_DEVICES, or None on a CPU.

    GPUs are shared only after every GPU is used.
    """
    names = gpus()
    if not names:
        return [None] * needs.per_gpu
    groups = [names[start : start + needs.gpus] for start in range(0, len(names) - needs.gpus + 1, needs.gpus)]
    if not groups:
        available = "1 GPU is" if len(names) == 1 else f"{len(names)} GPUs are"
        raise PipelineError(
            f"a training needs {needs.gpus} GPUs, but only {available} visible ({', '.join(names)}): set train.devices "
            f"to {len(names)}, or make more visible with {DEVICES}."
        )
    return [",".join(group) for _ in range(needs.per_gpu) for group in groups]


# --- in the calling process ------------------------------------------------------------------------------------------


@dataclass
class _Worker:
    """A process that runs one unit."""

    unit: Unit
    place: str | None
    process: Any
    inbox: Any
    """The pipe of its messages: text to show, (title, share), and at the end a _Result or an error."""
    outcome: Outcome | None = None


def _run_parallel(units: Iterable[Unit | None], places: list[str | None], advance: Advance) -> Iterator[Outcome]:
    import torch

    waiting, free, running = iter(units), list(places), list[_Worker]()
    threads, share = max(1, torch.get_num_threads() // len(places)), max(1, cores() // len(places))
    more = True
    try:
        while True:
            ready = True
            while more and free and ready:
                unit = next(waiting, _END)
                more, ready = unit is not _END, unit is not None
                if isinstance(unit, Unit):
                    running.append(_start(unit, free.pop(0), threads, share))
            if not running and not more:
                return
            connection.wait([worker.process.sentinel for worker in running], IDLE) if running else time.sleep(IDLE)
            ended = [worker for worker in running if worker.process.exitcode is not None]
            for worker in running:  # after the line above, so that all messages of ended processes have arrived
                _listen(worker, advance)
            for worker in ended:
                if interruption := of_worker(worker.process.exitcode):
                    raise interruption
                running.remove(worker)
                free.append(worker.place)
                worker.inbox.close()
                yield worker.outcome or Outcome(worker.unit, error=_killed(worker))
    finally:
        for worker in running:
            worker.process.kill()
            worker.process.join()


_END: Any = object()


def _start(unit: Unit, place: str | None, threads: int, share: int) -> _Worker:
    context = multiprocessing.get_context("spawn")  # forking does not work after CUDA or OpenMP have started
    inbox, outbox = context.Pipe(duplex=False)  # one per process, so that a killed process cannot block the others
    threads = unit.needs.threads or threads
    variables = worker_environment(threads, share) | ({} if place is None else {DEVICES: place})
    process = context.Process(target=_do, args=(unit.work, unit.argument, outbox, threads, console.quiet))
    with held_back(), environment(variables):
        process.start()
    outbox.close()
    return _Worker(unit, place, process, inbox)


def _listen(worker: _Worker, advance: Advance) -> None:
    """Handles the messages that a process has sent since the last call."""
    try:
        while worker.inbox.poll():
            message = worker.inbox.recv()
            if isinstance(message, str):
                events.relay(message)
            elif isinstance(message, Exception):
                worker.outcome = Outcome(worker.unit, error=message)
            elif isinstance(message, _Result):
                worker.outcome = Outcome(worker.unit, message.value)
            else:
                advance(*message)
    except (EOFError, OSError):  # the process ended, perhaps while sending a message
        return


def _killed(worker: _Worker) -> WorkerKilled:
    return WorkerKilled.of(f"{worker.unit.title}: its process", worker.process.exitcode)


# --- in a worker process ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Result:
    value: Any


class WorkerReporter:
    """The reporter of a unit, which also replaces the console's file; it sends everything to the calling process."""

    relays = True
    """Whether events are sent the same way."""

    def __init__(self, outbox: Any, threads: int) -> None:
        self.outbox, self.threads = outbox, threads
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        """Sends text to be shown."""
        self.send(text)
        return len(text)

    def flush(self) -> None:
        """Does nothing, because text is sent immediately."""

    def advance(self, title: str, share: float) -> None:
        """Sends the share of a unit that was done since the last call."""
        self.send((title, share))

    def send(self, message: Any) -> None:
        """Sends one message; threads do not interleave."""
        with self._lock:
            self.outbox.send(message)


def _do(work: Any, argument: Any, outbox: Any, threads: int, quiet: bool) -> None:
    end_worker_quietly()
    end_with_parent()
    reporter = WorkerReporter(outbox, threads)
    console.file, console.quiet = reporter, quiet  # type: ignore[assignment]
    try:
        reporter.send(_Result(work(argument, reporter)))
    except Exception as error:
        reporter.send(portable(error))


def portable(error: Exception) -> Exception:
    """Returns an error that can be sent to another process, with its traceback as a note."""
    error.add_note(traceback.format_exc())  # shown for errors other than PipelineError
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        described = RuntimeError(f"{type(error).__name__}: {error}")
        described.add_note(traceback.format_exc())
        return described
    return error
