"""Locks that keep several processes from writing the same files, on one machine or on several that share a folder."""

import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from rich.markup import escape

from pipeline.core.console import duration, say, warn
from pipeline.core.errors import PipelineError
from pipeline.core.files import make_folder, shown, write_text
from pipeline.core.moments import machine_id

RENEWED = 15.0
"""Seconds between two renewals of a lease by its holder."""
STALE = 60.0
"""Seconds without renewal after which the machine that holds a lease is considered dead."""
TOKEN = uuid.uuid4().hex
"""Identifies this process. Process ids are not unique: they are reused, and repeat across containers."""


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Lets one process at a time work in a folder. A second process prints a message and waits. The lock is released
    when its process ends.

    Raises:
        PipelineError: the folder cannot be created.
    """
    make_folder(folder)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        say(f"another process is working in {shown(folder)}; waiting until it is done")
        lock.acquire()
    except (OSError, NotImplementedError):  # a network drive without locks, or a read-only folder
        pass
    try:
        yield
    finally:
        lock.release()


# --- the lock of one step ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Holder:
    """The process that works on a step."""

    host: str
    process: int
    machine: str
    """Id of the machine, which is the same for all of its containers. Locks of the operating system work across
    them."""
    token: str

    def __str__(self) -> str:
        return f"{self.host}, process {self.process}" if self.process else "another process"


UNKNOWN = Holder("", 0, "", "")


class StepLock:
    """The lock of one step. Acquiring it never waits.

    It consists of a lock of the operating system, which is released when its process ends, and a lease: a small file
    that names the holder and is renewed every RENEWED seconds. The lease makes shared folders without locks usable, and
    shows when a file server still keeps the lock of a dead machine. The age of a lease is measured by the clock of the
    file system.
    """

    def __init__(self, path: Path, title: str) -> None:
        """Creates the lock, without acquiring it.

        Args:
            path: the lock file; the lease is written beside it.
            title: the step's name in messages.
        """
        self.path, self.title = path, title
        self.lease = path.with_suffix(".lease")
        self._lock = FileLock(path)
        self._ended = threading.Event()
        self._leased = False

    def acquire(self) -> Holder | None:
        """Acquires the lock if it is free and returns None; otherwise returns its holder.

        Raises:
            PipelineError: the lock's folder cannot be created, or a folder has the name of the lock file.
        """
        make_folder(self.path.parent)
        for path in (self.path, self.lease):
            if path.is_dir():
                raise PipelineError(
                    f"{shown(path)} is a folder, and the lock file of a step is needed there: remove it."
                )
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            return self._of_a_dead_machine()
        except (OSError, NotImplementedError):
            return self._without_locks()
        holder, age = self._read()
        if holder and holder.machine != machine_id():
            if age < STALE:  # locks do not work across machines here, or the machine died just now
                self._lock.release()
                return holder
            self._say_dead(holder, age)
        write_text(self.lease, _described())
        self._keep_renewing()
        return None

    def is_held(self) -> bool:
        """Returns whether this process still holds the lock. Another machine takes it over if the lease was not renewed
        for too long."""
        holder, _ = self._read()
        return not self._leased or (holder is not None and holder.token in (TOKEN, UNKNOWN.token))

    def release(self) -> None:
        """Releases the lock."""
        self._ended.set()
        holder, _ = self._read()
        if holder and holder.token == TOKEN:
            self.lease.unlink(missing_ok=True)
        self._lock.release()

    # --- cases that the operating system's lock does not cover ---

    def _of_a_dead_machine(self) -> Holder | None:
        """Takes over a lock that a file server keeps for a dead machine. On this machine, the process that holds it is
        alive."""
        holder, age = self._read()
        if holder is None:
            return UNKNOWN
        if holder.machine == machine_id() or age < STALE or not self._take_lease():
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
        except OSError:  # a read-only folder
            return None
        self._keep_renewing()
        return None

    def _take_lease(self) -> bool:
        """Removes the lease of a dead machine. Returns False if another process was faster."""
        removed = self.lease.with_name(f".{uuid.uuid4().hex}")
        try:
            os.rename(self.lease, removed)
        except OSError:
            return False
        removed.unlink(missing_ok=True)
        return True

    def _read(self) -> tuple[Holder | None, float]:
        """Returns the holder of the lease, and the seconds since it was renewed."""
        try:
            # opening the file makes a network drive ask its server again
            with self.lease.open(encoding="utf-8") as file:
                text, renewed = file.read(), os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return None, 0.0
        except OSError:
            return UNKNOWN, 0.0
        try:
            holder = Holder(**json.loads(text))
        except (ValueError, TypeError):  # the lease is being written
            holder = UNKNOWN
        return holder, 0.0 if holder.token == TOKEN else self._now() - renewed

    def _now(self) -> float:
        """Returns the time by the clock of the file system, in seconds since the epoch."""
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
            f"[yellow]  {escape(self.title)}: {escape(str(holder))}, has not answered for {duration(age)} and is "
            "considered dead; continuing from what it finished[/yellow]"
        )


def look_again(folder: Path) -> None:
    """Makes files visible that other machines have written into a folder. A network drive caches for a while which
    files do not exist, until something changes in the folder."""
    probe = folder / f".{uuid.uuid4().hex}"
    with suppress(OSError):
        probe.touch()
        probe.unlink()


def _described() -> str:
    holder = Holder(socket.gethostname(), os.getpid(), machine_id(), TOKEN)
    return json.dumps(holder.__dict__)
