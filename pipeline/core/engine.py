"""What runs units of work that do not depend on each other: trainings, shards of predictions, runs of a sweep.

Implementations stand in the room `engines`; the command line chooses one and passes it in.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

Advance = Callable[[str, float], None]
"""Is told the title of a unit and which further share of it is done."""


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
    """Why it failed; the others go on."""


class Engine(Protocol):
    """Where units run."""

    def run(self, units: Iterable[Unit], advance: Advance) -> Iterator[Outcome]:
        """Yields every unit when it ended, in the order in which they end; one is asked for when it can begin."""
