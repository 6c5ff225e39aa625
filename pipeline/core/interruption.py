"""SIGINT and SIGTERM end a command, or a worker process of it, with exit code 130 or 143: a scheduler must not take an
interrupted run for a finished one."""

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
"""Seconds within which an interrupted command must have cleaned up; what it has not ended by then is cut off."""
MOMENT = 0.02
"""Seconds after which an interruption that a destructor has lost is raised again."""
REPEATED = 1.0
"""Seconds in which further signals count as the same: `timeout` and schedulers signal a process and its group."""

WATCHED = 0.5
"""Seconds between two looks at whether the process that started this one is still there."""

_received: int | None = None
_received_at = 0.0
_work_began = False


class Interrupted(SystemExit):
    """This process got a signal; its exit code is 128 plus the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


def work_began() -> None:
    """Lets an interrupted command say that it can be continued."""
    global _work_began
    _work_began = True


@contextmanager
def exit_codes() -> Iterator[None]:
    """Ends a command that gets SIGINT or SIGTERM with exit code 130 or 143 and one line on standard error.

    The signal raises Interrupted wherever the main thread is. What becomes of that on its way (a worker process that
    died of the same signal can raise an error of its own) does not change the exit code.
    """
    global _received, _work_began
    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        yield
        return
    _received, _work_began = None, False
    if hasattr(signal, "setitimer"):  # after the handlers that are registered later: Python takes its own away then
        atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)
    before = [signal.signal(number, _interrupt) for number in SIGNALS]
    unraisable, sys.unraisablehook = sys.unraisablehook, _raise_again
    try:
        yield
    except BaseException:
        if _received is not None:
            for number in SIGNALS:  # one that comes again while Python shuts down must not end it by the signal
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
    """Returns what a process raises whose worker ended with this exit code; None if no signal interrupted the worker.

    Outside the command line, in a notebook, that is a KeyboardInterrupt.
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
    """Holds SIGINT and SIGTERM back while a worker process is started; it inherits that until `end_worker_quietly`."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_worker_quietly() -> None:
    """Lets SIGINT and SIGTERM end this worker process at once, without a traceback: all that it writes is atomic."""
    for number in SIGNALS:
        signal.signal(number, lambda number, _: os._exit(128 + number))
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def end_with_parent() -> None:
    """Lets this worker process end with the one that started it: a command that was killed leaves nothing behind that
    writes where the next one writes."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def end_with_process(number: int) -> None:
    """Lets this process, a command of its own, end with the one that started it.

    Args:
        number: the process that started it; another parent shows that it has ended.
    """

    def wait() -> None:
        while os.getppid() == number:
            time.sleep(WATCHED)
        os._exit(1)

    if os.name == "posix":  # elsewhere the number of the parent stays when it ends
        threading.Thread(target=wait, daemon=True).start()


def _interrupt(number: int, _frame: FrameType | None) -> None:
    global _received, _received_at
    if _received is not None:
        if time.monotonic() - _received_at > REPEATED:  # somebody does not want to wait
            _end_now(number)
        return
    _received, _received_at = number, time.monotonic()
    _raise(number)


def _raise(number: int) -> None:
    if hasattr(signal, "setitimer"):  # a thread pool may be busy
        signal.signal(signal.SIGALRM, lambda *_: _end_now(number))
        signal.setitimer(signal.ITIMER_REAL, GRACE)
    raise Interrupted(number)


def _raise_again(unraisable: "sys.UnraisableHookArgs") -> None:
    """Raises an interruption that a destructor has lost once more, when the destructor is done."""
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
    going_on = ": the same command goes on where it stopped" if _work_began else ""
    with suppress(OSError):  # nobody reads any more
        print(f"interrupted{going_on}", file=sys.stderr, flush=True)
