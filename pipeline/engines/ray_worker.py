"""The code that runs on the workers of a Ray cluster, and how they report to the calling process."""

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
"""Seconds for which a unit accumulates its progress before it sends it."""


class Inbox:
    """The messages of units until the calling process takes them; an actor on the machine of that process."""

    def __init__(self) -> None:
        self.messages: list[Any] = []

    def put(self, key: str, message: Any) -> None:
        """Stores a message of a unit."""
        self.messages.append((key, message))

    def take(self) -> list[Any]:
        """Returns the messages since the last call."""
        messages, self.messages = self.messages, []
        return messages


@dataclass(frozen=True)
class Began:
    """The message that a unit starts on this host."""

    host: str


class NotSeen(PipelineError):
    """A worker does not see the shared folder."""


class Reporter:
    """The reporter of a unit, which also replaces the console's file; it sends everything to the inbox."""

    relays = True
    """Whether events are sent the same way."""

    def __init__(self, send: Callable[[Any], Any], threads: int) -> None:
        self.send, self.threads = send, threads
        self.shares: dict[str, float] = {}
        self.last_report = 0.0

    def write(self, text: str) -> int:
        """Sends text to be shown."""
        self.send(text)
        return len(text)

    def flush(self) -> None:
        """Does nothing, because text is sent immediately."""

    def advance(self, title: str, share: float) -> None:
        """Accumulates the share of a unit that was done, and sends it from time to time."""
        self.shares[title] = self.shares.get(title, 0.0) + share
        if time.monotonic() - self.last_report > ASIDE:
            self.tell()

    def tell(self) -> None:
        """Sends the accumulated progress."""
        for title, share in self.shares.items():
            self.send((title, share))
        self.shares.clear()
        self.last_report = time.monotonic()


def do(
    work: Any, argument: Any, key: str, inbox: Any, threads: int, token: str, quiet: bool
) -> tuple[Any, Exception | None]:
    """Runs a unit and returns its result and its error. The error is returned so that Ray does not restart the unit."""
    import ray

    def send(message: Any) -> Any:
        return inbox.put.remote(key, message)

    host = socket.gethostname()
    send(Began(host))
    if not Path(token).exists():
        folder = Path(token).parents[1]
        return None, NotSeen(
            f"the worker on {host} does not see the files in {folder}: put the pipeline's folder (PIPELINE_ROOT) on a "
            "file system that all machines of the cluster see at the same path."
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
        ray.get(send(""))  # waits until all messages have arrived
