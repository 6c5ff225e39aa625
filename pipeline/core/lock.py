"""One process at a time where several would write the same files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.core.console import say
from pipeline.core.errors import PipelineError
from pipeline.core.files import shown


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Lets one process at a time work in a folder; a second waits and says so. The lock ends with its process.

    Raises:
        PipelineError: the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PipelineError(f"{shown(folder)} could not be made: {error.strerror}. Nothing was changed.") from error
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        say(f"another process works in {shown(folder)}; waiting until it is done")
        lock.acquire()
    except (OSError, NotImplementedError):  # a network drive without locks, or a folder that can only be read
        pass
    try:
        yield
    finally:
        lock.release()
