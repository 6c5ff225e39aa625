"""What a machine may lack: memory, room on a disk, the right to write. Each is said in one sentence."""

import errno
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.core.errors import PipelineError

MEMORY_SIGNS = (
    "out of memory", "can't allocate memory", "cannot allocate memory", "unable to allocate", "alloc_failed",
    "bad_alloc", "bad alloc", "could not create a primitive", "insufficient memory", "malloc of size",
    "can't start new thread", "realloc of size",
)  # fmt: skip
"""How libraries say that there is no memory: torch, NumPy, OpenCV, pyarrow, Python's threads."""
DISK_SIGNS = ("no space left on device", "disk quota exceeded", "pytorchstreamwriter failed", "requested and")
"""How libraries say that a file could not be written: safetensors, torch, NumPy."""
FULL = (errno.ENOSPC, errno.EDQUOT)
OF_FILES = (
    *FULL, errno.EROFS, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.EIO, errno.EACCES, errno.EISDIR, errno.ENOTDIR,
    errno.ELOOP, errno.ENAMETOOLONG,
)  # fmt: skip
"""What is said of files alone, also by calls that do not name them."""
LEAST_ADDRESS_SPACE = 64 * 2**20
"""Bytes that a limited process must have left before a stage begins."""
ANY_MEMORY = "close other programs, or lower image.size"
"""What helps where nothing better is known."""


class WorkerKilled(MemoryError):
    """A worker process was killed from outside, most likely for want of memory."""

    @classmethod
    def of(cls, process: str, code: int | None) -> "WorkerKilled":
        """Returns the error of a process, named in words, that ended with a code."""
        return cls(f"{process} ended with code {code} (-9: it was killed, most likely for want of memory)")


def out_of_memory(error: BaseException) -> bool:
    """Returns whether an error says that there is not enough memory, whichever library raised it."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    # torch's errors of the CPU are RuntimeError, its own type of the GPU is a subclass; OpenCV's and Arrow's are others
    return not isinstance(error, PipelineError | OSError) and _has(error, MEMORY_SIGNS)


def disk_fault(error: BaseException) -> str:
    """Returns what the disk said, in the operating system's words; "" where an error is of something else."""
    if isinstance(error, OSError) and error.errno is not None:
        of_a_file = error.filename is not None or error.errno in OF_FILES  # networks raise OSError too
        return error.strerror or os.strerror(error.errno) if of_a_file and error.errno != errno.ENOMEM else ""
    if isinstance(error, FileNotFoundError):  # pyarrow's holds nothing but the path
        return os.strerror(errno.ENOENT)
    if isinstance(error, PipelineError) or not isinstance(error, Exception):
        return ""
    if number := re.search(r"\(os error ([0-9]+)\)", str(error)):  # Rust's: safetensors
        return os.strerror(int(number[1]))
    return os.strerror(errno.ENOSPC) if _has(error, DISK_SIGNS) else ""


def pass_on(error: BaseException) -> None:
    """Raises an error again that says that memory or the disk failed: nobody may take it for a fault of what was being
    read or built."""
    if out_of_memory(error) or (isinstance(error, OSError) and error.errno in (*FULL, errno.EMFILE, errno.ENFILE)):
        raise error


def sentence(error: BaseException, what: str = "", lower: str = ANY_MEMORY) -> str:
    """Returns the sentence about what the machine lacks; "" where an error is of something else.

    Args:
        error: what was raised.
        what: was being done, a stage for instance; "" leaves it out.
        lower: the settings that need less memory when they are lowered.
    """
    if isinstance(error, PipelineError):
        return ""
    during = f" during {what}" if what else ""
    if isinstance(error, WorkerKilled):
        return f"{error}; {lower}. The same command goes on from what is finished."
    if out_of_memory(error):
        return f"memory ran out{during}: {lower}. What is finished is kept, and the same command goes on from there."
    if not (said := disk_fault(error)):
        return ""
    path = _path(error)
    return f"{path or 'a file'} {_disk_sentence(error, said)}" if path or isinstance(error, OSError) else ""


def require_address_space(what: str) -> None:
    """Checks that a limit on this process's address space leaves enough for native code, which crashes where it cannot
    allocate; does nothing without such a limit (ulimit -v).

    Raises:
        PipelineError: it does not.
    """
    try:
        import resource  # of Unix alone

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    except (ImportError, OSError, ValueError):
        return
    if limit != resource.RLIM_INFINITY and limit - used < LEAST_ADDRESS_SPACE:
        raise PipelineError(
            f"{what} may take {max(0, limit - used) / 2**20:.0f} MiB of memory more, by the limit of this process "
            f"(ulimit -v), and needs {LEAST_ADDRESS_SPACE / 2**20:.0f} MiB at least: raise the limit."
        )


@contextmanager
def explained(what: str = "", lower: str = ANY_MEMORY) -> Iterator[None]:
    """Turns what is raised inside into one sentence where it says what the machine lacks; see `sentence`.

    Raises:
        PipelineError: memory ran out, or a file could not be written or read.
    """
    try:
        yield
    except BrokenPipeError:  # nobody reads what is printed
        raise
    except Exception as error:
        if not (said := sentence(error, what, lower)):
            raise
        raise PipelineError(said) from error


def quiet_threads() -> None:
    """Lets threads that die of a full disk or for want of memory print no traceback: the main thread hears of it and
    says so."""
    before = threading.excepthook

    def hook(raised: threading.ExceptHookArgs) -> None:
        error = raised.exc_value
        if error is None or not (out_of_memory(error) or disk_fault(error)):
            before(raised)

    threading.excepthook = hook


def _disk_sentence(error: BaseException, said: str) -> str:
    number = error.errno if isinstance(error, OSError) else errno.ENOSPC
    number = errno.ENOENT if isinstance(error, FileNotFoundError) else number
    if number in FULL:
        return f"could not be written: {said}. Make room; what is finished is kept, and the same command goes on."
    if number == errno.EROFS:
        return f"could not be written: {said}. Set PIPELINE_ROOT to a folder that can be written, or mount it so."
    if number in (errno.EACCES, errno.EPERM):
        return f"may not be read or written by this user: {said}. Change its permissions or its owner."
    if number in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP):
        return f"is a file, a folder or a link where another kind belongs: {said}. Move it away."
    if number in (errno.EMFILE, errno.ENFILE):
        return f"could not be opened: {said}. Raise the limit (ulimit -n), or lower train.workers."
    if number == errno.ENOENT:
        return f"is not there ({said}): put it back, or run the stage that makes it."
    return f"could not be read or written: {said}."


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
