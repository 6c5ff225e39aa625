"""The one exception a user is meant to read."""

import difflib
from collections.abc import Iterable


class PipelineError(Exception):
    """Bad input or a wrong setting: one sentence that says what was expected, what came, where, and what to do.

    The command line prints the sentence and exits with code 2, without a traceback.
    """


def first_line(error: Exception) -> str:
    """Returns the first line of an error's text, or its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns the end of a sentence about an unknown name, which asks for the nearest known one where one is near."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean `{near[0]}`?" if near else "."
