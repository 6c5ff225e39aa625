"""A moment in the near future that processes on several machines agree on."""

import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@cache
def machine_id() -> str:
    """Returns the id of this machine since it was started, which is the same for all of its containers."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return socket.gethostname()


@dataclass(frozen=True)
class Moment:
    """A moment, of which any process can tell how far away it is.

    On the machine that made it, a clock decides that is never set and that stands still while the machine sleeps. Other
    machines of a cluster have only the time of day.
    """

    steady: float
    """time.monotonic() at the moment."""
    time_of_day: float
    """time.time() at the moment."""
    machine: str

    @classmethod
    def after(cls, seconds: float) -> "Moment":
        """Returns the moment that is `seconds` away."""
        return cls(time.monotonic() + seconds, time.time() + seconds, machine_id())

    @property
    def seconds_left(self) -> float:
        """The seconds until the moment; negative after it."""
        return self.steady - time.monotonic() if self.machine == machine_id() else self.time_of_day - time.time()
