"""The events that `--json` prints for scripts: one JSON object per line on standard output, in order of time.
docs/events.md lists them. Their names and fields do not change; new ones may be added.

An event is one of the classes below. `emit` writes it if `--json` is set, and otherwise does nothing. A worker process
sends its events together with its console output, and `relay` receives them in the calling process.
"""

import json
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline.core.console import console

MARK = "\x1e"
"""The record separator (as in RFC 7464), which marks an event in the text that a worker process sends."""

_enabled = False


@dataclass(frozen=True)
class RunStarted:
    """A command starts to work on a run."""

    run: str
    competition: str
    stages: list[str]
    """The requested stages, in their order."""
    folder: str
    """The folder of the run's artefacts, relative to the root if it lies there."""


@dataclass(frozen=True)
class StageStarted:
    """A stage starts, because at least one of its steps must run."""

    run: str
    stage: str
    why: str
    """Why the stage runs; empty if it has never run before."""


@dataclass(frozen=True)
class StageFinished:
    """A stage has finished all steps that had to run."""

    run: str
    stage: str
    seconds: float


@dataclass(frozen=True)
class StageUpToDate:
    """A stage has nothing to do: nothing has changed since it ran, or it has no steps in this run."""

    run: str
    stage: str


@dataclass(frozen=True)
class Epoch:
    """A training has finished an epoch."""

    run: str
    fold: int | None
    """null for the final model, which is trained on all images."""
    seed: int
    epoch: int
    """Number of the epoch, from 1."""
    epochs: int
    train_loss: float
    valid_loss: float | None
    """The loss on the held-out images; null if no images are held out."""
    score: float | None
    """The competition's metric on the held-out images, without tuning, at the network's size; null if no images are
    held out."""
    best: bool
    """Whether the score is the best of this training so far."""
    seconds: float
    seconds_left: float
    """Estimated seconds until this training and those after it are done, if none stops early."""


@dataclass(frozen=True)
class Score:
    """The scores of a run on its held-out images."""

    run: str
    metric: str
    honest: float
    """The score to expect: measured on images that were used for no choice."""
    interval_95: list[float] | None
    """The 95 % interval of `honest`; null if it is not known."""
    optimistic: float
    """The score on the same images on which everything was tuned."""
    images: int


@dataclass(frozen=True)
class Verdict:
    """Whether the submission can be trusted."""

    run: str
    verdict: str
    """`fine`, `check first` or `do not submit`."""
    submitted: bool
    """Whether the verdict includes a submission; otherwise it is based on the held-out images only."""
    reasons: list[dict[str, Any]]
    """The reasons, the most serious first, each with `level` (stop, check or note), `kind`, `text`, `command` and
    `images`."""


@dataclass(frozen=True)
class Paths:
    """The paths of the results, as messages show them; null for files that do not exist."""

    run: str
    submission: str | None
    record: str | None
    """The submission's .json file, which records how it was made and which score to expect."""
    postprocess: str | None
    """The file with everything that tune chose, and with all scores."""
    report: str | None


@dataclass(frozen=True)
class RunFinished:
    """The command has finished successfully."""

    run: str
    seconds: float


@dataclass(frozen=True)
class Error:
    """The command ends without success. This is always the last event."""

    message: str
    exit_code: int
    """2: bad input. 3: the verdict is `do not submit`, with --strict. 4: not finished yet. 130 or 143: ended by a
    signal. 1: an error in the program, whose traceback is on standard error."""


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
"""The value of the field `event` for each class."""


def enable() -> None:
    """Makes `emit` write events on standard output."""
    global _enabled
    _enabled = True


def enabled() -> bool:
    """Returns whether events are written on standard output, so that nothing else may be printed there."""
    return _enabled


def emit(event: Event) -> None:
    """Writes an event as one line, or sends it to the calling process from a worker process."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    _send(json.dumps({"event": NAMES[type(event)], "time": now, **asdict(event)}, ensure_ascii=False) + "\n")


def relay(text: str) -> None:
    """Prints the console output of a worker process, and emits the events in it."""
    if text.startswith(MARK):
        _send(text.removeprefix(MARK))
    elif text.endswith("\n"):
        console.print(text[:-1], markup=False)
    else:
        console.print(text, end="", markup=False)


def _send(line: str) -> None:
    if getattr(console.file, "relays", False):  # in a worker process
        console.file.write(MARK + line)
    elif _enabled:
        # the real stream, if a progress bar has replaced it
        stream = getattr(sys.stdout, "rich_proxied_file", sys.stdout)
        stream.write(line)
        stream.flush()
