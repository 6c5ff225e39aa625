"""The time limit of `--time`. An environment variable passes it on to worker processes."""

import os
import re
import time

from pipeline.core.errors import PipelineError
from pipeline.core.version import program

VARIABLE = "PIPELINE_UNTIL"
"""The environment variable with the end of the limit, in seconds since the epoch."""
EXAMPLES = "for instance 8.5h, 90min or 45s"
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600}


class TimeIsUp(PipelineError):
    """Raised when the time of `--time` is used up. All finished work is kept, and the same command continues from
    there."""


def seconds_of(text: str, option: str = "--time") -> float:
    """Returns the seconds of a duration such as `8.5h`, `90min`, `30m` or `45s`.

    Raises:
        PipelineError: the text is not a duration.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min|h)\s*", text)
    if match is None:
        no_limit = ", or `none` for no limit" if option == "--time" else ""
        raise PipelineError(f"{option} {text}: expected a number and a unit, {EXAMPLES}{no_limit}.")
    return float(match[1]) * _SECONDS[match[2]]


def limit_of(text: str) -> float | None:
    """Returns the value of `--time` in seconds; None for `none`, which means no limit.

    Raises:
        PipelineError: the text is not a duration, or is 0.
    """
    if text.strip() == "none":
        return None
    seconds = seconds_of(text)
    if not seconds:
        raise PipelineError(f"--time {text}: expected more than 0; {EXAMPLES}, or `none` for no limit.")
    return seconds


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
        raise TimeIsUp(f"{what} was not started: the time of --time is up.")


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
        f"{what} stopped after epoch {epochs} of {of}: {duration(left)} of --time are left, and an epoch takes "
        f"{duration(longest)}."
    )
