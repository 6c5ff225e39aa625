"""`--time`: until when a command may work. Its worker processes know it too, by an environment variable."""

import os
import re
import time

from pipeline.core.errors import PipelineError
from pipeline.core.version import program

VARIABLE = "PIPELINE_UNTIL"
"""Holds the end as seconds since the epoch."""
EXAMPLES = "for instance 8.5h, 90min or 45s"
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600}


class TimeIsUp(PipelineError):
    """The time of `--time` is used up; all that is finished is kept, and the same command goes on from there."""


def seconds_of(text: str, option: str = "--time") -> float:
    """Returns a length of time such as `8.5h`, `90min`, `30m` or `45s` in seconds.

    Raises:
        PipelineError: it is none.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min|h)\s*", text)
    if match is None:
        none = ", or `none` for no limit" if option == "--time" else ""
        raise PipelineError(f"{option} {text}: expected a number and a unit, {EXAMPLES}{none}.")
    return float(match[1]) * _SECONDS[match[2]]


def limit_of(text: str) -> float | None:
    """Returns what `--time` says in seconds; None for `none`: there is no limit.

    Raises:
        PipelineError: it is no length of time, or 0.
    """
    if text.strip() == "none":
        return None
    seconds = seconds_of(text)
    if not seconds:
        raise PipelineError(f"--time {text}: expected more than 0; {EXAMPLES}, or `none` for no limit.")
    return seconds


def set_limit(seconds: float) -> None:
    """Lets this process and those that it starts work for so many seconds from now on."""
    os.environ[VARIABLE] = repr(time.time() + seconds)


def lift_limit() -> None:
    """Lets this process work without a limit again."""
    os.environ.pop(VARIABLE, None)


def seconds_left() -> float | None:
    """Returns how many seconds are left, fewer than 0 after the end; None without a limit."""
    until = os.environ.get(VARIABLE)
    return None if until is None else float(until) - time.time()


def check(what: str) -> None:
    """Checks that there is time left to begin something.

    Raises:
        TimeIsUp: there is none.
    """
    left = seconds_left()
    if left is not None and left <= 0:
        raise TimeIsUp(f"{what} was not begun: the time of --time is up.")


def how_to_go_on() -> str:
    """Returns what a person does when the time is up."""
    save = ""
    if os.environ.get("KAGGLE_KERNEL_RUN_TYPE"):
        save = f" Before this session ends, `{program()} save NAME` keeps it; `restore NAME` puts it back in the next."
    return f"the same command goes on from there.{save}"


def stopped(what: str, epochs: int, of: int, longest: float) -> TimeIsUp:
    """Returns the error of a training that stops between two epochs.

    Args:
        what: the training.
        epochs: how many it has finished.
        of: how many it would have.
        longest: seconds of its longest epoch.
    """
    from pipeline.core.console import duration  # slow to import, and the command line starts with this module

    left = max(0.0, seconds_left() or 0.0)
    return TimeIsUp(
        f"{what} stopped after epoch {epochs} of {of}: {duration(left)} of --time are left, and an epoch takes "
        f"{duration(longest)}."
    )
