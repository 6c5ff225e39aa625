"""Measures how much of the time of a run with `--time` is used, over all its processes."""

import threading
import time
from contextlib import suppress

from pipeline.core.errors import PipelineError
from pipeline.core.files import write_json
from pipeline.core.plan import find_clock
from pipeline.core.run import Run

NOTED_EVERY = 2.0
"""Seconds between two notes of the time that is used."""


class Clock:
    """Notes in clock.json how much of a run's budget is used, so that a later process continues with what is left."""

    def __init__(self, run: Run, started: float) -> None:
        """Reads how much earlier processes have used; this one has started at `started` (time.monotonic)."""
        noted = find_clock(run.folder)
        self.path, self.budget, self.started = run.clock, run.budget or 0.0, started
        self.before = noted.used if noted else 0.0
        self.rounds = noted.rounds if noted else None
        self.ended, self.kept, self.stopped = threading.Event(), True, False
        self.writing = threading.Lock()

    @property
    def used(self) -> float:
        """The seconds that the run has used, over all its processes."""
        return self.before + (0.0 if self.stopped else time.monotonic() - self.started)

    @property
    def left(self) -> float:
        """The seconds of the budget that are left, at least 0."""
        return max(0.0, self.budget - self.used)

    def __enter__(self) -> "Clock":
        self._note()
        self.thread = threading.Thread(target=self._keep_noting, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()
        with suppress(OSError, PipelineError):  # what the thread noted last is nearly the same
            if self.kept:
                self._note()
            else:
                self.path.unlink(missing_ok=True)

    def forget(self) -> None:
        """Removes the note at the end: the next command begins with the whole budget, or with another one."""
        self.kept = False

    def stop(self) -> None:
        """Does not count the time of this process, because everything was done before."""
        self.stopped = True

    def note(self, rounds: int | None) -> None:
        """Notes how many rounds are carried out (core/plan.py)."""
        self.rounds = rounds
        self._note()

    def _keep_noting(self) -> None:
        while not self.ended.wait(NOTED_EVERY):
            with suppress(OSError, PipelineError):  # the stages report a full disk
                self._note()

    def _note(self) -> None:
        with self.writing:
            write_json(self.path, {"used": round(self.used, 1), "budget": self.budget, "rounds": self.rounds})
