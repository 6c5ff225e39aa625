"""The engine of this machine: as many units at once as its GPUs have room for, each in a process of its own.

A single unit at a time, on a CPU or on one GPU, runs in the process that asks: nothing is started anew, and a debugger
finds it. Processes are spawned, also from a notebook, and end with the process that started them.
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
    """Returns the names by which CUDA_VISIBLE_DEVICES calls the GPUs that this process sees: numbers, or UUIDs."""
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get(DEVICES, "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]


class LocalEngine:
    """Runs units on this machine."""

    def at_once(self, needs: Needs, count: int) -> int:
        """Returns how many of `count` units run at once: those that the GPUs, or the CPU, have room for.

        Raises:
            PipelineError: a unit needs more GPUs than there are.
        """
        return max(1, min(len(_places(needs)), count))

    def run(self, units: Iterable[Unit | None], advance: Advance, count: int | None = None) -> Iterator[Outcome]:
        """Yields every unit when it ended; see Engine."""
        waiting = iter(units)
        first = _first(waiting)
        if first is None:
            return
        places = _places(first.needs)[:count]
        if len(places) == 1:
            yield from OneByOne().run(chain([first], waiting), advance)
            return
        yield from _run_beside(chain([first], waiting), places, advance)


def _first(units: Iterator[Unit | None]) -> Unit | None:
    """The first unit that can begin; None where there is none at all."""
    for unit in units:
        if unit is not None:
            return unit
        time.sleep(IDLE)
    return None


def _places(needs: Needs) -> list[str | None]:
    """The GPUs of each unit that has room at once, as CUDA_VISIBLE_DEVICES lists them; None each on a CPU. Those that
    come first share no GPU."""
    names = gpus()
    if not names:
        return [None] * needs.per_gpu
    groups = [names[start : start + needs.gpus] for start in range(0, len(names) - needs.gpus + 1, needs.gpus)]
    if not groups:
        there = "1 GPU is" if len(names) == 1 else f"{len(names)} GPUs are"
        raise PipelineError(
            f"a training asks for {needs.gpus} GPUs, and {there} there ({', '.join(names)}): set train.devices to "
            f"{len(names)}, or make more visible with {DEVICES}."
        )
    return [",".join(group) for _ in range(needs.per_gpu) for group in groups]


# --- in the process that asks ----------------------------------------------------------------------------------------


@dataclass
class _Worker:
    """A process that runs one unit."""

    unit: Unit
    place: str | None
    process: Any
    inbox: Any
    """What it says: text to show, (title, share), and in the end an Outcome without its unit."""
    outcome: Outcome | None = None


def _run_beside(units: Iterable[Unit | None], places: list[str | None], advance: Advance) -> Iterator[Outcome]:
    import torch

    waiting, free, running = iter(units), list(places), list[_Worker]()
    threads, share = max(1, torch.get_num_threads() // len(places)), max(1, cores() // len(places))
    more = True
    try:
        while True:
            asked = True
            while more and free and asked:
                unit = next(waiting, _END)
                more, asked = unit is not _END, unit is not None
                if isinstance(unit, Unit):
                    running.append(_start(unit, free.pop(0), threads, share))
            if not running and not more:
                return
            connection.wait([worker.process.sentinel for worker in running], IDLE) if running else time.sleep(IDLE)
            ended = [worker for worker in running if worker.process.exitcode is not None]
            for worker in running:  # after the line above: all that those which ended have said is there
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
    context = multiprocessing.get_context("spawn")  # a fork after CUDA or OpenMP have started does not work
    inbox, outbox = context.Pipe(duplex=False)  # one each: who is killed while it speaks keeps no other from speaking
    threads = unit.needs.threads or threads
    variables = worker_environment(threads, share) | ({} if place is None else {DEVICES: place})
    process = context.Process(target=_do, args=(unit.work, unit.argument, outbox, threads, console.quiet))
    with held_back(), environment(variables):
        process.start()
    outbox.close()
    return _Worker(unit, place, process, inbox)


def _listen(worker: _Worker, advance: Advance) -> None:
    """Shows what a process has said since the last time."""
    try:
        while worker.inbox.poll():
            said = worker.inbox.recv()
            if isinstance(said, str):
                events.relay(said)
            elif isinstance(said, Exception):
                worker.outcome = Outcome(worker.unit, error=said)
            elif isinstance(said, _Result):
                worker.outcome = Outcome(worker.unit, said.value)
            else:
                advance(*said)
    except (EOFError, OSError):  # it ended, perhaps in the middle of a word
        return


def _killed(worker: _Worker) -> WorkerKilled:
    return WorkerKilled.of(f"{worker.unit.title}: its process", worker.process.exitcode)


# --- in such a process -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Result:
    value: Any


class WorkerReporter:
    """Stands in for the console's file too, and sends what it gets to the process that asks."""

    relays = True
    """Events go the same way."""

    def __init__(self, outbox: Any, threads: int) -> None:
        self.outbox, self.threads = outbox, threads
        self._one = threading.Lock()

    def write(self, text: str) -> int:
        """Sends text to be shown."""
        self.send(text)
        return len(text)

    def flush(self) -> None:
        """Nothing is kept back."""

    def advance(self, title: str, share: float) -> None:
        """Sends which further share of a unit is done."""
        self.send((title, share))

    def send(self, what: Any) -> None:
        """Sends something, whole."""
        with self._one:
            self.outbox.send(what)


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
    """Returns an error as another process can take it, its traceback as a note."""
    error.add_note(traceback.format_exc())  # shown with an error that is nobody's bad input
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        told = RuntimeError(f"{type(error).__name__}: {error}")
        told.add_note(traceback.format_exc())
        return told
    return error
