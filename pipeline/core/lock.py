"""One process at a time where several would write the same files: on one machine, or on several that share a folder."""

import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout
from rich.markup import escape

from pipeline.core.console import duration, say, warn
from pipeline.core.errors import PipelineError
from pipeline.core.files import make_folder, shown, write_text

RENEWED = 15.0
"""Seconds after which the holder of a step renews its lease."""
STALE = 60.0
"""Seconds after which a lease that was not renewed counts as a dead machine's."""
TOKEN = uuid.uuid4().hex
"""What this process calls itself: numbers of processes are taken again, in containers too."""


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Lets one process at a time work in a folder; a second waits and says so. The lock ends with its process.

    Raises:
        PipelineError: the folder cannot be made.
    """
    make_folder(folder)
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


# --- a step, which another process may take instead -------------------------------------------------------------------


@dataclass(frozen=True)
class Holder:
    """The process that works on a step."""

    host: str
    process: int
    machine: str
    """The same for all containers of a machine, whose locks know each other."""
    token: str

    def __str__(self) -> str:
        return f"{self.host}, process {self.process}" if self.process else "another process"


UNKNOWN = Holder("", 0, "", "")


@cache
def _machine() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return socket.gethostname()


class StepLock:
    """The lock of one step, which does not wait.

    A lock of the operating system, which ends with its process, and beside it a lease: a small file that says who holds
    it and is renewed every RENEWED seconds. By the lease alone a shared folder without locks works, and by it a lock is
    recognised that a file server still keeps for a dead machine. Ages are told by the clock of the file system.
    """

    def __init__(self, path: Path, title: str) -> None:
        """Takes the lock file, beside which the lease lies, and what messages call the step."""
        self.path, self.title = path, title
        self.lease = path.with_suffix(".lease")
        self._lock = FileLock(path)
        self._ended = threading.Event()
        self._leased = False

    def acquire(self) -> Holder | None:
        """Takes the lock where it is free; returns who has it where it is not, else None.

        Raises:
            PipelineError: the folder of the lock cannot be made, or a folder lies where the lock belongs.
        """
        make_folder(self.path.parent)
        for path in (self.path, self.lease):
            if path.is_dir():
                raise PipelineError(f"{shown(path)} is a folder, and the lock of a step belongs there: remove it.")
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            return self._of_a_dead_machine()
        except (OSError, NotImplementedError):
            return self._without_locks()
        holder, age = self._read()
        if holder and holder.machine != _machine():
            if age < STALE:  # the folder's locks do not reach from machine to machine, or it died just now
                self._lock.release()
                return holder
            self._say_dead(holder, age)
        write_text(self.lease, _described())
        self._keep_renewing()
        return None

    def is_held(self) -> bool:
        """Returns whether the lock is still this process's: another machine takes it over where this one did not renew
        its lease for too long."""
        holder, _ = self._read()
        return not self._leased or (holder is not None and holder.token in (TOKEN, UNKNOWN.token))

    def release(self) -> None:
        """Gives the lock back."""
        self._ended.set()
        holder, _ = self._read()
        if holder and holder.token == TOKEN:
            self.lease.unlink(missing_ok=True)
        self._lock.release()

    # --- where the operating system's lock does not tell all ---

    def _of_a_dead_machine(self) -> Holder | None:
        """Takes the lock over where the server keeps it for a machine that is gone; on this one, its process lives."""
        holder, age = self._read()
        if holder is None:
            return UNKNOWN
        if holder.machine == _machine() or age < STALE or not self._take_lease():
            return holder
        self.path.unlink(missing_ok=True)
        self._lock = FileLock(self.path)
        with suppress(Timeout, OSError, NotImplementedError):
            self._lock.acquire(blocking=False)
        self._say_dead(holder, age)
        write_text(self.lease, _described())
        self._keep_renewing()
        return None

    def _without_locks(self) -> Holder | None:
        holder, age = self._read()
        if holder:
            if age < STALE or not self._take_lease():
                return holder
            self._say_dead(holder, age)
        try:
            with self.lease.open("x", encoding="utf-8") as file:
                file.write(_described())
        except FileExistsError:
            return self._read()[0]
        except OSError:  # a folder that can only be read
            return None
        self._keep_renewing()
        return None

    def _take_lease(self) -> bool:
        """Removes a dead machine's lease; False where another process was faster."""
        gone = self.lease.with_name(f".{uuid.uuid4().hex}")
        try:
            os.rename(self.lease, gone)
        except OSError:
            return False
        gone.unlink(missing_ok=True)
        return True

    def _read(self) -> tuple[Holder | None, float]:
        """Who holds the lease, and how many seconds ago it was renewed."""
        try:
            with self.lease.open(encoding="utf-8") as file:  # opened: a network drive looks at the server again
                text, renewed = file.read(), os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return None, 0.0
        except OSError:
            return UNKNOWN, 0.0
        try:
            holder = Holder(**json.loads(text))
        except (ValueError, TypeError):  # it is being written
            holder = UNKNOWN
        return holder, 0.0 if holder.token == TOKEN else self._now() - renewed

    def _now(self) -> float:
        """The time by the file system's own clock."""
        probe = self.lease.with_name(f".{uuid.uuid4().hex}")
        try:
            probe.touch()
            os.utime(probe)
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def _keep_renewing(self) -> None:
        self._leased = True
        threading.Thread(target=self._renew, daemon=True).start()

    def _renew(self) -> None:
        while not self._ended.wait(RENEWED):
            with suppress(OSError):
                if not self.is_held():
                    return
                os.utime(self.lease)

    def _say_dead(self, holder: Holder, age: float) -> None:
        warn(
            f"[yellow]  {escape(self.title)}: {escape(str(holder))}, has not answered for {duration(age)} and is taken "
            "for dead; going on from what it left[/yellow]"
        )


def look_again(folder: Path) -> None:
    """Lets this machine see what others have written into a folder: a network drive remembers for a while which files
    were not there, until something changes in the folder."""
    probe = folder / f".{uuid.uuid4().hex}"
    with suppress(OSError):
        probe.touch()
        probe.unlink()


def _described() -> str:
    holder = Holder(socket.gethostname(), os.getpid(), _machine(), TOKEN)
    return json.dumps(holder.__dict__)
