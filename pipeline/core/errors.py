"""The one exception a user is meant to read."""

import difflib
import os
import re
from collections.abc import Iterable


class PipelineError(Exception):
    """Bad input or a wrong setting: one sentence that says what was expected, what came, where, and what to do.

    The command line prints the sentence and exits with code 2, without a traceback.
    """


def first_line(error: Exception) -> str:
    """Returns the first line of an error's text, or its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def nearest(name: str, known: Iterable[str], count: int) -> list[str]:
    """Returns up to so many known names that are near an unknown one, the nearest first: of equally similar ones the
    one that begins alike for longer, then the one whose number is nearer."""

    def distance(other: str) -> tuple[float, int, float]:
        ratio = difflib.SequenceMatcher(None, other, name).ratio()
        gap = min((abs(one - two) for one in _numbers(name)[:1] for two in _numbers(other)[:1]), default=0)
        return -ratio, -len(os.path.commonprefix([name, other])), gap

    near = difflib.get_close_matches(name, known, n=20, cutoff=0.5)
    return sorted(near, key=distance)[:count]


def did_you_mean(name: str, known: Iterable[str], count: int = 1) -> str:
    """Returns the end of a sentence about an unknown name, which asks for the nearest known ones where any is near."""
    near = [f"`{one}`" for one in nearest(name, known, count)]
    return f"; did you mean {' or '.join(filter(None, [', '.join(near[:-1]), near[-1]]))}?" if near else "."


def _numbers(text: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"[0-9]+", text)]
