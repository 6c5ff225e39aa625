"""The folder that an inference works in, which is removed at its end, or where it was killed, by the next inference."""

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
"""The file in such a folder whose lock ends with the process that works there."""
YOUNG = 60.0
"""Seconds in which a folder may be just about to be locked."""


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for all that is derived; PIPELINE_ROOT, which is set in it, is afterwards what it was before."""
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
