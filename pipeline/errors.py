"""The one exception a user is meant to read."""


class PipelineError(Exception):
    """Bad input or a wrong setting: one sentence that says what was expected, what came, where, and what to do.

    The command line prints the sentence and exits with code 2, without a traceback.
    """


def first_line(error: Exception) -> str:
    """Returns the first line of an error's text, or its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
