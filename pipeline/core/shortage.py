"""Clear messages for errors of the machine: too little memory, a full disk, missing write permission."""

import errno
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.core.errors import PipelineError
from pipeline.core.interruption import Interrupted

MEMORY_SIGNS = (
    "out of memory", "can't allocate memory", "cannot allocate memory", "unable to allocate", "alloc_failed",
    "bad_alloc", "bad alloc", "could not create a primitive", "insufficient memory", "malloc of size",
    "can't start new thread", "realloc of size",
)  # fmt: skip
"""Parts of the messages with which libraries report a lack of memory: torch, NumPy, OpenCV, pyarrow, Python's
threads."""
DISK_SIGNS = ("no space left on device", "disk quota exceeded", "pytorchstreamwriter failed", "requested and")
"""Parts of the messages with which libraries report that a file could not be written: safetensors, torch, NumPy."""
FULL = (errno.ENOSPC, errno.EDQUOT)
OF_FILES = (
    *FULL, errno.EROFS, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.EIO, errno.EACCES, errno.EISDIR, errno.ENOTDIR,
    errno.ELOOP, errno.ENAMETOOLONG,
)  # fmt: skip
"""Error numbers that concern only files, even if the error does not name a file."""
LEAST_ADDRESS_SPACE = 64 * 2**20
"""Bytes that must be left to a process with a limit before a stage starts."""
ANY_MEMORY = "close other programs, or lower image.size"
"""The advice if a stage has no better one."""


class WorkerKilled(MemoryError):
    """Raised when a worker process was killed from outside, most likely because memory ran out."""

    @classmethod
    def of(cls, process: str, code: int | None) -> "WorkerKilled":
        """Returns the error for a process, given by its name in messages, that ended with this exit code."""
        return cls(f"{process} ended with code {code} (-9: it was killed, most likely because memory ran out)")


def out_of_memory(error: BaseException) -> bool:
    """Returns whether an error means that memory ran out, regardless of the library that raised it."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    # torch raises RuntimeError on the CPU and a subclass of it on a GPU; OpenCV and Arrow have their own types
    return not isinstance(error, PipelineError | OSError) and _has(error, MEMORY_SIGNS)


def disk_fault(error: BaseException) -> str:
    """Returns the operating system's message for an error of the disk or a file; "" for all other errors."""
    if isinstance(error, OSError) and error.errno is not None:
        of_a_file = error.filename is not None or error.errno in OF_FILES  # network functions raise OSError too
        return error.strerror or os.strerror(error.errno) if of_a_file and error.errno != errno.ENOMEM else ""
    if isinstance(error, FileNotFoundError):  # pyarrow's error holds only the path
        return os.strerror(errno.ENOENT)
    if isinstance(error, PipelineError) or not isinstance(error, Exception):
        return ""
    if number := re.search(r"\(os error ([0-9]+)\)", str(error)):  # errors of Rust code: safetensors
        return os.strerror(int(number[1]))
    return os.strerror(errno.ENOSPC) if _has(error, DISK_SIGNS) else ""


def pass_on(error: BaseException) -> None:
    """Raises an error again if memory ran out, the disk is full or a signal ended the command, so that it is not
    mistaken for a fault of the data that was being read, or of the user's code."""
    if (
        isinstance(error, Interrupted)
        or out_of_memory(error)
        or (isinstance(error, OSError) and error.errno in (*FULL, errno.EMFILE, errno.ENFILE))
    ):
        raise error


def sentence(error: BaseException, what: str = "", lower: str = ANY_MEMORY) -> str:
    """Returns the message for an error of the machine (memory, disk, permissions); "" for all other errors.

    Args:
        error: the error that was raised.
        what: what was being done, e.g. the name of a stage; "" leaves it out.
        lower: the advice how to use less memory.
    """
    if isinstance(error, PipelineError):
        return ""
    during = f" during {what}" if what else ""
    if isinstance(error, WorkerKilled):
        return f"{error}; {lower}. The same command continues from what is finished."
    if out_of_memory(error):
        return f"memory ran out{during}: {lower}. What is finished is kept, and the same command continues from there."
    if not (fault := disk_fault(error)):
        return ""
    path = _path(error)
    return f"{path or 'a file'} {_disk_sentence(error, fault)}" if path or isinstance(error, OSError) else ""


def require_address_space(what: str) -> None:
    """Checks that a limit on the address space of this process leaves enough memory. Native code crashes if it cannot
    allocate. Without such a limit (ulimit -v) nothing is checked.

    Raises:
        PipelineError: the limit is too low.
    """
    try:
        import resource  # only on Unix

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    except (ImportError, OSError, ValueError):
        return
    if limit != resource.RLIM_INFINITY and limit - used < LEAST_ADDRESS_SPACE:
        raise PipelineError(
            f"{what} needs at least {LEAST_ADDRESS_SPACE / 2**20:.0f} MiB of memory, and the limit of this process "
            f"(ulimit -v) leaves {max(0, limit - used) / 2**20:.0f} MiB: raise the limit."
        )


@contextmanager
def explained(what: str = "", lower: str = ANY_MEMORY) -> Iterator[None]:
    """Turns errors of the machine in the block into a PipelineError; see `sentence`.

    Raises:
        PipelineError: memory ran out, or a file could not be read or written.
    """
    try:
        yield
    except BrokenPipeError:  # the reader of the output has ended
        raise
    except Exception as error:
        if not (message := sentence(error, what, lower)):
            raise
        raise PipelineError(message) from error


def quiet_threads() -> None:
    """Suppresses the traceback of threads that fail because the disk is full or memory ran out. The main thread gets
    the error too and reports it."""
    before = threading.excepthook

    def hook(raised: threading.ExceptHookArgs) -> None:
        error = raised.exc_value
        if error is None or not (out_of_memory(error) or disk_fault(error)):
            before(raised)

    threading.excepthook = hook


def _disk_sentence(error: BaseException, fault: str) -> str:
    number = error.errno if isinstance(error, OSError) else errno.ENOSPC
    number = errno.ENOENT if isinstance(error, FileNotFoundError) else number
    if number in FULL:
        return (
            f"could not be written: {fault}. Free some space; what is finished is kept, and the same command continues "
            "from there."
        )
    if number == errno.EROFS:
        return f"could not be written: {fault}. Set PIPELINE_ROOT to a writable folder, or mount this one writable."
    if number in (errno.EACCES, errno.EPERM):
        return f"may not be read or written by this user: {fault}. Change its permissions or its owner."
    if number in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP):
        return f"is a file, a folder or a link where another of these is expected: {fault}. Move it away."
    if number in (errno.EMFILE, errno.ENFILE):
        return f"could not be opened: {fault}. Raise the limit (ulimit -n), or lower train.workers."
    if number == errno.ENOENT:
        return f"does not exist ({fault}): restore it, or run the stage that writes it."
    return f"could not be read or written: {fault}."


def _path(error: BaseException) -> str:
    from pipeline.core.files import shown

    name = error.filename if isinstance(error, OSError) else None
    if isinstance(error, FileNotFoundError) and name is None and len(error.args) == 1:
        name = error.args[0]
    if not isinstance(name, str | bytes | os.PathLike):
        return ""
    return shown(Path(os.fsdecode(name)))


def _has(error: BaseException, signs: tuple[str, ...]) -> bool:
    text = str(error).lower()
    return any(sign in text for sign in signs)
