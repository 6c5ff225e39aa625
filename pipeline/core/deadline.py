"""Durations, and the time limit of `--stop-after`. An environment variable passes it on to worker processes."""

import os
import re
import time

from pipeline.core.errors import PipelineError
from pipeline.core.version import program

VARIABLE = "PIPELINE_UNTIL"
"""The environment variable with the end of the limit, in seconds since the epoch."""
EXAMPLES = "for instance 8.5h, 90min or 45s"
NO_LIMIT = ", or `none` for no limit"
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600}


class TimeIsUp(PipelineError):
    """Raised when the time of `--stop-after` is used up. All finished work is kept, and the same command continues from
    there."""


def seconds_of(text: str, option: str = "--time", or_none: bool = False) -> float:
    """Returns the seconds of a duration such as `8.5h`, `90min`, `30m` or `45s`.

    Args:
        text: the duration.
        option: the option that it is given for, for the message.
        or_none: whether the option also accepts `none`.

    Raises:
        PipelineError: the text is not a duration.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(s|m|min|h)\s*", text)
    if match is None:
        raise PipelineError(f"{option} {text}: expected a number and a unit, {EXAMPLES}{NO_LIMIT * or_none}.")
    return float(match[1]) * _SECONDS[match[2]]


def is_duration(text: str) -> bool:
    """Returns whether a text is a duration that is longer than 0."""
    try:
        return budget_of(text) > 0
    except PipelineError:
        return False


def text_of(seconds: float) -> str:
    """Returns a duration as `seconds_of` reads it, in minutes if these are whole."""
    return f"{seconds / 60:.0f}m" if seconds % 60 == 0 else f"{seconds!r}s"


def budget_of(text: str, option: str = "--time", or_none: bool = False) -> float:
    """Returns the seconds of a duration that must be longer than 0; see `seconds_of`.

    Raises:
        PipelineError: the text is not a duration, or is 0.
    """
    seconds = seconds_of(text, option, or_none)
    if not seconds:
        raise PipelineError(f"{option} {text}: expected more than 0; {EXAMPLES}{NO_LIMIT * or_none}.")
    return seconds


def limit_of(text: str, option: str = "--time") -> float | None:
    """Returns the seconds of a time limit; None for `none`, which means no limit.

    Raises:
        PipelineError: the text is not a duration, or is 0.
    """
    return None if text.strip() == "none" else budget_of(text, option, or_none=True)


def set_limit(seconds: float) -> None:
    """Sets the time limit of this process, and of the processes that it starts, to `seconds` from now."""
    os.environ[VARIABLE] = repr(time.time() + seconds)


def lift_limit() -> None:
    """Removes the time limit of this process."""
    os.environ.pop(VARIABLE, None)


def seconds_left() -> float | None:
    """Returns the number of seconds left, negative after the end; None without a limit."""
    until = os.environ.get(VARIABLE)
    return None if until is None else float(until) - time.time()


def check(what: str) -> None:
    """Checks that there is time left to start `what`.

    Raises:
        TimeIsUp: there is no time left.
    """
    left = seconds_left()
    if left is not None and left <= 0:
        raise TimeIsUp(f"{what} was not started: the time of --stop-after is up.")


def how_to_go_on() -> str:
    """Returns the text that says how to continue after the time is up."""
    save = ""
    if os.environ.get("KAGGLE_KERNEL_RUN_TYPE"):
        save = (
            f" Before this session ends, `{program()} save NAME` saves the work; `restore NAME` restores it in the "
            "next session."
        )
    return f"the same command continues from there.{save}"


def stopped(what: str, epochs: int, of: int, longest: float) -> TimeIsUp:
    """Returns the error for a training that stops between two epochs.

    Args:
        what: the title of the training.
        epochs: number of finished epochs.
        of: number of planned epochs.
        longest: seconds of the longest epoch.
    """
    from pipeline.core.console import duration  # slow to import, and the command line starts with this module

    left = max(0.0, seconds_left() or 0.0)
    return TimeIsUp(
        f"{what} stopped after epoch {epochs} of {of}: {duration(left)} of --stop-after are left, and an epoch takes "
        f"{duration(longest)}."
    )
