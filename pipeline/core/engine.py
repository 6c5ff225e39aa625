"""The interface of engines, which run independent units of work: trainings, shards of predictions, runs of a sweep.

The room `engines` holds the implementations. The command line chooses one and passes it in. Without one, `OneByOne`
runs the units one after another in this process.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

Advance = Callable[[str, float], None]
"""A callback that receives the title of a unit and the share of it, from 0 to 1, that was done since the last call."""
IDLE = 0.2
"""Seconds until an engine asks again for a unit when none can start."""


@dataclass(frozen=True)
class Needs:
    """The resources that a unit occupies while it runs."""

    gpus: int = 1
    """Number of GPUs that the unit uses. On a machine without a GPU it uses the CPU."""
    per_gpu: int = 1
    """Number of such units that share one GPU, or the CPU of a machine without a GPU (`train.parallel`)."""
    threads: int | None = None
    """Number of torch's threads. None: the threads of the calling process, divided among the units that run at the same
    time."""


class Reporter(Protocol):
    """Through which a unit reports to the calling process. What the unit prints on the console is sent there too."""

    threads: int | None
    """Number of threads that the unit sets for torch, so that its result does not depend on the engine. None:
    unchanged."""

    def advance(self, title: str, share: float) -> None:
        """Reports that a further share of the unit, from 0 to 1, is done."""


@dataclass(frozen=True)
class Unit:
    """One piece of work. It can be killed at any moment and run again, on this machine or another."""

    title: str
    work: Callable[[Any, Reporter], Any]
    """A function at module level, so that other processes and machines can import it."""
    argument: Any
    """The argument of `work`. It must be small and picklable; large data are passed in files."""
    needs: Needs = Needs()


@dataclass(frozen=True)
class Outcome:
    """The result of a unit that has ended."""

    unit: Unit
    result: Any = None
    error: Exception | None = None
    """Why the unit failed, or None. Other units are not affected. If it failed in another process, the error has the
    traceback as a note."""


class Engine(Protocol):
    """Runs units of work."""

    def at_once(self, needs: Needs, count: int) -> int:
        """Returns how many of `count` units with these needs run at the same time.

        Raises:
            PipelineError: the machine has fewer resources than one unit needs.
        """

    def run(self, units: Iterable[Unit | None], advance: Advance, count: int | None = None) -> Iterator[Outcome]:
        """Yields the outcome of each unit, in the order in which units end.

        Args:
            units: units with the same needs. The next one is requested when it can start. None in place of a unit means
                that no unit may start now, and the engine must ask again later.
            advance: receives the progress that units report.
            count: maximum number of units; None: as many as can run at the same time.

        Raises:
            PipelineError: the machine has fewer resources than one unit needs.
            Interrupted: a worker process received SIGINT or SIGTERM. This is handled as if this process had received
                it.
        """


@dataclass
class Here:
    """The reporter of a unit that runs in the calling process."""

    advance: Advance
    threads: int | None = None


class OneByOne:
    """The engine that runs one unit after another in this process."""

    def at_once(self, needs: Needs, count: int) -> int:
        """Returns 1."""
        return 1

    def run(self, units: Iterable[Unit | None], advance: Advance, count: int | None = None) -> Iterator[Outcome]:
        """Yields the outcome of each unit; see Engine."""
        for unit in units:
            if unit is None:
                time.sleep(IDLE)
                continue
            try:
                outcome = Outcome(unit, unit.work(unit.argument, Here(advance, unit.needs.threads)))
            except Exception as error:
                outcome = Outcome(unit, error=error)
            yield outcome


# --- the resources of a unit's machine -------------------------------------------------------------------------------

_CORES = "PIPELINE_CORES"


def cores() -> int:
    """Returns the number of CPU cores that this process may use: those available to it, or its share as a worker
    process."""
    share = os.environ.get(_CORES, "")
    if share.isdigit() and int(share):
        return int(share)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_environment(threads: int, share: int) -> dict[str, str]:
    """Returns the environment variables of a worker process that uses `threads` of torch's threads and `share`
    cores."""
    return {"OMP_NUM_THREADS": str(max(1, threads)), _CORES: str(max(1, share))}


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Sets environment variables for processes that are started in the block."""
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
