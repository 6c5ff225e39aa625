"""The exception whose message is written for the user, and helpers for such messages."""

import difflib
import os
import re
from collections.abc import Iterable


class PipelineError(Exception):
    """Raised for bad input or a wrong setting. The message says what was expected, what was found, where, and what to
    do.

    The command line prints the message without a traceback and exits with code 2.
    """


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or the name of its type if it has no message."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def nearest(name: str, known: Iterable[str], count: int) -> list[str]:
    """Returns up to `count` known names that are similar to an unknown one, the most similar first.

    Among equally similar names, the one with the longer common prefix comes first, then the one with the nearer number.
    """

    def distance(other: str) -> tuple[float, int, float]:
        ratio = difflib.SequenceMatcher(None, other, name).ratio()
        gap = min((abs(first - second) for first in _numbers(name)[:1] for second in _numbers(other)[:1]), default=0)
        return -ratio, -len(os.path.commonprefix([name, other])), gap

    near = difflib.get_close_matches(name, known, n=20, cutoff=0.5)
    return sorted(near, key=distance)[:count]


def did_you_mean(name: str, known: Iterable[str], count: int = 1) -> str:
    """Returns the end of a sentence about an unknown name: `; did you mean …?` with the most similar known names, or a
    full stop if no known name is similar."""
    near = [f"`{candidate}`" for candidate in nearest(name, known, count)]
    return f"; did you mean {' or '.join(filter(None, [', '.join(near[:-1]), near[-1]]))}?" if near else "."


def _numbers(text: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"[0-9]+", text)]
