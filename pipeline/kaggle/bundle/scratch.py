"""The temporary folder of an inference. It is removed at its end or, if it was killed, by the next inference."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

PREFIX = "bundle-"
IN_USE = ".in-use"
"""A file in the folder; the process that uses the folder holds its lock."""
YOUNG = 60.0
"""Minimum age in seconds of a folder to remove: a younger one may not be locked yet."""


@contextmanager
def scratch() -> Iterator[Path]:
    """Yields a temporary folder, and restores PIPELINE_ROOT, which may be changed inside the with-block, at its end."""
    remove_abandoned()
    before = os.environ.get("PIPELINE_ROOT")
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as folder:
        lock = FileLock(Path(folder) / IN_USE)
        with suppress(Timeout, OSError, NotImplementedError):
            lock.acquire(blocking=False)
        try:
            yield Path(folder).resolve()
        finally:
            lock.release()
            os.environ.pop("PIPELINE_ROOT", None)
            if before is not None:
                os.environ["PIPELINE_ROOT"] = before


def remove_abandoned() -> None:
    """Removes the folders of inferences that were killed."""
    for mark in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{IN_USE}"):
        lock = FileLock(mark)
        with suppress(Timeout, OSError, NotImplementedError):
            if time.time() - mark.stat().st_mtime < YOUNG:
                continue
            lock.acquire(blocking=False)
            lock.release()
            shutil.rmtree(mark.parent, ignore_errors=True)
