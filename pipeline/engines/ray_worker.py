"""What runs on the workers of a Ray cluster, and how they tell what they do."""

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.console import console
from pipeline.core.errors import PipelineError
from pipeline.engines.local import portable

ASIDE = 0.5
"""Seconds for which a unit gathers its progress before it tells it."""


class Inbox:
    """What units say, until the process that asks for them takes it: an actor beside that process."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def put(self, key: str, said: Any) -> None:
        """Keeps what a unit says."""
        self.said.append((key, said))

    def take(self) -> list[Any]:
        """Returns what was said since the last time."""
        said, self.said = self.said, []
        return said


@dataclass(frozen=True)
class Began:
    """A unit begins on this host."""

    host: str


class NotSeen(PipelineError):
    """A worker does not see the folder."""


class Reporter:
    """Stands in for the console's file too, and sends what it gets to the inbox."""

    relays = True
    """Events go the same way."""

    def __init__(self, send: Callable[[Any], Any], threads: int) -> None:
        self.send, self.threads = send, threads
        self.shares: dict[str, float] = {}
        self.told = 0.0

    def write(self, text: str) -> int:
        """Sends text to be shown."""
        self.send(text)
        return len(text)

    def flush(self) -> None:
        """Nothing is kept back."""

    def advance(self, title: str, share: float) -> None:
        """Sends which further share of a unit is done, from time to time."""
        self.shares[title] = self.shares.get(title, 0.0) + share
        if time.monotonic() - self.told > ASIDE:
            self.tell()

    def tell(self) -> None:
        """Sends the progress that it has gathered."""
        for title, share in self.shares.items():
            self.send((title, share))
        self.shares.clear()
        self.told = time.monotonic()


def do(
    work: Any, argument: Any, key: str, inbox: Any, threads: int, token: str, quiet: bool
) -> tuple[Any, Exception | None]:
    """Runs a unit; returns its result, or its error, which Ray thus does not take for a lost worker's."""
    import ray

    def send(said: Any) -> Any:
        return inbox.put.remote(key, said)

    host = socket.gethostname()
    send(Began(host))
    if not Path(token).exists():
        folder = Path(token).parents[1]
        return None, NotSeen(
            f"the worker on {host} does not see the files in {folder}: put the pipeline's folder (PIPELINE_ROOT) where "
            "all machines of the cluster see it at the same path."
        )
    reporter = Reporter(send, threads)
    before = console.file, console.quiet
    console.file, console.quiet = reporter, quiet  # type: ignore[assignment]
    try:
        return work(argument, reporter), None
    except Exception as error:
        return None, portable(error)
    finally:
        console.file, console.quiet = before
        reporter.tell()
        ray.get(send(""))  # all that it said is there before it ends
