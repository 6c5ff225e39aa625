"""What a run tells a script with `--json`: one JSON object per line on standard output, in the order in which things
happen. docs/events.md lists the events; names and fields stay as they are, and further ones may come.

An event is one of the classes below. `emit` writes it where `--json` asked for it, and does nothing else. A worker
process sends its events along with what it prints on the console (`relay` is where they arrive).
"""

import json
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline.core.console import console

MARK = "\x1e"
"""The record separator, which comes before an event among the text that a worker process sends (as in RFC 7464)."""

_enabled = False


@dataclass(frozen=True)
class RunStarted:
    """A command begins to work on a run."""

    run: str
    competition: str
    stages: list[str]
    """The stages that were asked for, in their order."""
    folder: str
    """Where the run's artefacts lie, relative to the root where they lie in it."""


@dataclass(frozen=True)
class StageStarted:
    """A stage has something to do."""

    run: str
    stage: str
    why: str
    """Why it runs; empty where it never ran before."""


@dataclass(frozen=True)
class StageFinished:
    """All that a stage had to do is done."""

    run: str
    stage: str
    seconds: float


@dataclass(frozen=True)
class StageUpToDate:
    """A stage has nothing to do: nothing changed since it ran, or it has no work in this run."""

    run: str
    stage: str


@dataclass(frozen=True)
class Epoch:
    """A training has finished an epoch."""

    run: str
    fold: int | None
    """null: the model that is trained on all images."""
    seed: int
    epoch: int
    """From 1 on."""
    epochs: int
    train_loss: float
    valid_loss: float | None
    """Of the held-out images; null where none are held out."""
    score: float | None
    """The competition's metric of the held-out images, untuned, at the network's size; null where none are held out."""
    best: bool
    """Whether the score is the best of this training so far."""
    seconds: float
    seconds_left: float
    """Until this training and those after it are done, if none stops early."""


@dataclass(frozen=True)
class Score:
    """What a run's held-out images say."""

    run: str
    metric: str
    honest: float
    """Of images that chose nothing: what to expect."""
    interval_95: list[float] | None
    """Of the honest score; null where it is not known."""
    optimistic: float
    """Of the images that everything was tuned on."""
    images: int


@dataclass(frozen=True)
class Verdict:
    """Whether the submission can be trusted."""

    run: str
    verdict: str
    """fine, check first or do not submit."""
    submitted: bool
    """Whether there is a submission that this is said of; else it is said of the held-out images alone."""
    reasons: list[dict[str, Any]]
    """The gravest first: `level` (stop, check or note), `kind`, `text`, `command`, `images`."""


@dataclass(frozen=True)
class Paths:
    """Where the results lie, as they are shown; null for what is not there."""

    run: str
    submission: str | None
    record: str | None
    """The submission's .json: how it came about and what to expect of it."""
    postprocess: str | None
    """What tune chose, with every score."""
    report: str | None


@dataclass(frozen=True)
class RunFinished:
    """The command has done what it was asked for."""

    run: str
    seconds: float


@dataclass(frozen=True)
class Error:
    """The command ends without having done what it was asked for; always the last event."""

    message: str
    exit_code: int
    """2: bad input; 3: the verdict is `do not submit`, with --strict; 4: not finished yet; 130 or 143: a
    signal; 1: a fault of the program, whose traceback is on standard error."""


Event = (
    RunStarted | StageStarted | StageFinished | StageUpToDate | Epoch | Score | Verdict | Paths | RunFinished | Error
)
NAMES: dict[type[Event], str] = {
    RunStarted: "run_started",
    StageStarted: "stage_started",
    StageFinished: "stage_finished",
    StageUpToDate: "stage_up_to_date",
    Epoch: "epoch",
    Score: "score",
    Verdict: "verdict",
    Paths: "paths",
    RunFinished: "run_finished",
    Error: "error",
}
"""What the field `event` holds."""


def enable() -> None:
    """Lets `emit` write events on standard output, from here on."""
    global _enabled
    _enabled = True


def enabled() -> bool:
    """Returns whether standard output holds events, and nothing else may be printed there."""
    return _enabled


def emit(event: Event) -> None:
    """Writes an event as one line, or sends it to the process that asked for this one's work."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    _send(json.dumps({"event": NAMES[type(event)], "time": now, **asdict(event)}, ensure_ascii=False) + "\n")


def relay(said: str) -> None:
    """Shows what a worker process has printed on its console, and writes what is an event among it."""
    if said.startswith(MARK):
        _send(said.removeprefix(MARK))
    elif said.endswith("\n"):
        console.print(said[:-1], markup=False)
    else:
        console.print(said, end="", markup=False)


def _send(line: str) -> None:
    if getattr(console.file, "relays", False):  # this is a worker process
        console.file.write(MARK + line)
    elif _enabled:
        stream = getattr(sys.stdout, "rich_proxied_file", sys.stdout)  # a progress bar stands in for it meanwhile
        stream.write(line)
        stream.flush()
