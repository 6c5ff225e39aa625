"""What runs units of work that do not depend on each other: trainings, shards of predictions, runs of a sweep.

Implementations stand in the room `engines`; the command line chooses one and passes it in. Without one, `OneByOne` runs
the units in this process.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

Advance = Callable[[str, float], None]
"""Is told the title of a unit and which further share of it is done."""
IDLE = 0.2
"""Seconds until an engine asks again for a unit where none could begin."""


@dataclass(frozen=True)
class Needs:
    """What a unit takes while it runs."""

    gpus: int = 1
    """How many GPUs it uses where there are any; on a machine without, it takes the CPU."""
    per_gpu: int = 1
    """How many such units share a GPU, or the CPU of a machine without one (`train.parallel`)."""
    threads: int | None = None
    """torch's threads; None: those of the process that asks, divided among the units that run at once."""


class Reporter(Protocol):
    """What a unit tells the process that asked for it; what it prints on the console goes there too."""

    threads: int | None
    """How many threads the unit gives torch, so that its result does not depend on the engine; None: as they are."""

    def advance(self, title: str, share: float) -> None:
        """A further share of the unit is done."""


@dataclass(frozen=True)
class Unit:
    """One piece of work, which can be killed at any moment and run again, here or elsewhere."""

    title: str
    work: Callable[[Any, Reporter], Any]
    """A function of a module, so that other processes and machines find it."""
    argument: Any
    """What it takes: small, and can be pickled. Large data lie in files."""
    needs: Needs = Needs()


@dataclass(frozen=True)
class Outcome:
    """A unit that ended."""

    unit: Unit
    result: Any = None
    error: Exception | None = None
    """Why it failed; the others go on. With a note that is its traceback where it failed in another process."""


class Engine(Protocol):
    """Where units run."""

    def at_once(self, needs: Needs, count: int) -> int:
        """Returns how many of `count` units with these needs run at once.

        Raises:
            PipelineError: there is less than one of them needs.
        """

    def run(self, units: Iterable[Unit | None], advance: Advance, count: int | None = None) -> Iterator[Outcome]:
        """Yields every unit when it ended, in the order in which they end.

        Args:
            units: all with the same needs. One is asked for when it can begin; None instead of one: there is none that
                may begin now, ask again.
            advance: is told what the reporters are told.
            count: how many there are at most; None: as many as there is room for.

        Raises:
            PipelineError: there is less than a unit needs.
            Interrupted: a worker process got SIGINT or SIGTERM, as if this one had got it.
        """


@dataclass
class Here:
    """The reporter of a unit that runs in the process that asks."""

    advance: Advance
    threads: int | None = None


class OneByOne:
    """The engine that runs one unit after another in this process."""

    def at_once(self, needs: Needs, count: int) -> int:
        """Returns 1."""
        return 1

    def run(self, units: Iterable[Unit | None], advance: Advance, count: int | None = None) -> Iterator[Outcome]:
        """Yields every unit when it ended; see Engine."""
        for unit in units:
            if unit is None:
                time.sleep(IDLE)
                continue
            try:
                outcome = Outcome(unit, unit.work(unit.argument, Here(advance, unit.needs.threads)))
            except Exception as error:
                outcome = Outcome(unit, error=error)
            yield outcome


# --- what a unit has of its machine ----------------------------------------------------------------------------------

_CORES = "PIPELINE_CORES"


def cores() -> int:
    """Returns how many cores this process may keep busy: those that it may run on, or a worker process's share."""
    share = os.environ.get(_CORES, "")
    if share.isdigit() and int(share):
        return int(share)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_environment(threads: int, share: int) -> dict[str, str]:
    """Returns the environment variables of a process that runs a unit with so many of torch's threads and cores."""
    return {"OMP_NUM_THREADS": str(max(1, threads)), _CORES: str(max(1, share))}


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Sets environment variables for the processes that are started in the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
