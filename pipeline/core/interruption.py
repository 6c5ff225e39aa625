"""Handling of SIGINT and SIGTERM. They end a command or a worker process with exit code 130 or 143, so that a scheduler
can distinguish interrupted runs from finished ones."""

import atexit
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import connection
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
EXIT_CODES = tuple(128 + number for number in SIGNALS)
GRACE = 10.0
"""Seconds that an interrupted command has for cleaning up. After that the process is ended."""
MOMENT = 0.02
"""Seconds after which an interruption is raised again that got lost in a destructor."""
REPEATED = 1.0
"""Seconds during which further signals count as the same one. `timeout` and schedulers signal both a process and its
group."""

WATCHED = 0.5
"""Seconds between two checks whether the parent process is still alive."""

_received: int | None = None
_received_at = 0.0
_work_began = False


class Interrupted(SystemExit):
    """Raised when this process receives a signal. The exit code is 128 plus the number of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


def work_began() -> None:
    """Notes that work has started which the same command would continue, so that an interruption says so."""
    global _work_began
    _work_began = True


@contextmanager
def exit_codes() -> Iterator[None]:
    """Ends a command that receives SIGINT or SIGTERM with exit code 130 or 143 and one line on standard error.

    The signal raises Interrupted in the main thread, wherever it is. If another error replaces Interrupted on the way,
    for instance one about a worker process that died of the same signal, the exit code is the same.
    """
    global _received, _work_began
    if threading.current_thread() is not threading.main_thread():  # only the main thread can handle signals
        yield
        return
    _received, _work_began = None, False
    if hasattr(signal, "setitimer"):
        # runs after handlers that are registered later, when Python removes its own signal handler
        atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)
    before = [signal.signal(number, _interrupt) for number in SIGNALS]
    unraisable, sys.unraisablehook = sys.unraisablehook, _raise_again
    try:
        yield
    except BaseException:
        if _received is not None:
            for number in SIGNALS:  # a second signal during shutdown must not change the exit code
                signal.signal(number, signal.SIG_IGN)
            _say_interrupted()
            raise SystemExit(128 + _received) from None
        raise
    finally:
        if _received is None:
            sys.unraisablehook = unraisable
            for number, handler in zip(SIGNALS, before, strict=True):
                signal.signal(number, handler)


def of_worker(exit_code: int) -> BaseException | None:
    """Returns the exception to raise for a worker that ended with this exit code; None if no signal interrupted it.

    Outside the command line, for instance in a notebook, this is a KeyboardInterrupt.
    """
    global _received
    number = next((number for number in SIGNALS if exit_code in (-number, 128 + number)), None)
    if number is None:
        return None
    if signal.getsignal(signal.SIGINT) is not _interrupt:
        return KeyboardInterrupt()
    _received = int(number)
    return Interrupted(number)


@contextmanager
def held_back() -> Iterator[None]:
    """Blocks SIGINT and SIGTERM while a worker process is started. The worker inherits this until
    `end_worker_quietly`."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_worker_quietly() -> None:
    """Makes SIGINT and SIGTERM end this worker process at once and without a traceback. This is safe because all of its
    writes are atomic."""
    for number in SIGNALS:
        signal.signal(number, lambda number, _: os._exit(128 + number))
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def end_with_parent() -> None:
    """Makes this worker process end together with its parent process. After a command was killed, no worker may go on
    writing files that the next command writes too."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def end_with_process(number: int) -> None:
    """Makes this process, which runs a command, end together with its parent process.

    Args:
        number: process id of the parent. A different parent id means that the parent has ended.
    """

    def wait() -> None:
        while os.getppid() == number:
            time.sleep(WATCHED)
        os._exit(1)

    if os.name == "posix":  # on other systems the parent id does not change when the parent ends
        threading.Thread(target=wait, daemon=True).start()


def _interrupt(number: int, _frame: FrameType | None) -> None:
    global _received, _received_at
    if _received is not None:
        if time.monotonic() - _received_at > REPEATED:  # a second signal after a while: the user does not want to wait
            _end_now(number)
        return
    _received, _received_at = number, time.monotonic()
    _raise(number)


def _raise(number: int) -> None:
    if hasattr(signal, "setitimer"):  # a busy thread pool may delay the end
        signal.signal(signal.SIGALRM, lambda *_: _end_now(number))
        signal.setitimer(signal.ITIMER_REAL, GRACE)
    raise Interrupted(number)


def _raise_again(unraisable: "sys.UnraisableHookArgs") -> None:
    """Raises an interruption again that got lost in a destructor, after the destructor has ended."""
    if not isinstance(unraisable.exc_value, Interrupted) or _received is None:
        sys.__unraisablehook__(unraisable)
    elif hasattr(signal, "setitimer"):
        number = _received
        signal.signal(signal.SIGALRM, lambda *_: _raise(number))
        signal.setitimer(signal.ITIMER_REAL, MOMENT)


def _end_now(number: int) -> None:
    _say_interrupted()
    os._exit(128 + number)


def _say_interrupted() -> None:
    advice = ": the same command continues where it stopped" if _work_began else ""
    with suppress(OSError):  # standard error may be closed
        print(f"interrupted{advice}", file=sys.stderr, flush=True)
