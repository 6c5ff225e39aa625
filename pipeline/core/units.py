"""Runs the steps of a stage as units of work, possibly shared with other processes, and reports failures."""

import inspect
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from rich.markup import escape

from pipeline.core import shortage
from pipeline.core.console import say, warn
from pipeline.core.deadline import TimeIsUp
from pipeline.core.engine import Advance, Engine, Needs, Outcome, Unit
from pipeline.core.errors import PipelineError, first_line
from pipeline.core.files import shown, write_text
from pipeline.core.freshness import Inputs, Step
from pipeline.core.lock import Holder, StepLock, look_again

AGAIN = 1.0
"""Seconds until a step is checked again that another process is working on."""


class StepRunner:
    """Runs steps of a stage on an engine. Each step has its own lock, so that several processes can share the steps of
    a run.

    A step that another process is working on is skipped at first. When all other steps are done, this process waits for
    it, and runs it if the other process ends without finishing it.
    """

    def __init__(
        self,
        engine: Engine,
        locks: Path,
        steps: Sequence[Step],
        inputs: Inputs,
        finished: Callable[[Step], bool],
        keeps_old: bool,
    ) -> None:
        """Notes the current state of the steps that must run.

        Args:
            engine: the engine that runs the units of the steps.
            locks: the folder of lock files.
            steps: the steps that must run.
            inputs: the inputs of these steps. It is notified of outputs that another process wrote.
            finished: returns whether the outputs of a step that another process has left are complete and up to date.
            keeps_old: whether the manifest of old outputs is kept until the step has run again.
        """
        self.engine, self.locks, self.inputs = engine, locks, inputs
        self.finished, self.keeps_old = finished, keeps_old
        self._began = {step.title: _stamp(step.manifest) for step in steps}
        self._held: dict[str, StepLock] = {}
        self._failed: dict[str, Exception] = {}
        self._elsewhere = set[str]()

    def at_once(self, needs: Needs, count: int) -> int:
        """Returns how many of `count` units with these needs run at the same time; see Engine."""
        return self.engine.at_once(needs, count)

    def run(
        self,
        steps: Sequence[Step],
        units_of: Callable[[Step], Sequence[Unit]],
        advance: Advance,
        done: Callable[[Step], None] = lambda step: None,
        finish: Callable[[Step], None] = lambda step: None,
        shards: int = 1,
    ) -> Iterator[Step]:
        """Yields each step that this process has done, after its units have ended and `finish` has stored their
        results.

        Args:
            steps: some of the steps that must run.
            units_of: called with a step when it starts; returns its units, at least one.
            advance: receives the progress of units; see Engine.
            done: called with each step that is done, in this process or another.
            finish: called with each step whose units have all ended without an error.
            shards: maximum number of units per step.

        Raises:
            PipelineError: some steps failed because of bad input. All other steps are done.
        """
        step_of: dict[int, Step] = {}
        left: dict[str, int] = {}

        def units() -> Iterator[Unit | None]:
            for step in self._free(steps, done):
                step_units = units_of(step) if step else [None]
                if step:
                    left[step.title] = len(step_units)
                for unit in step_units:
                    if unit and step:
                        step_of[id(unit)] = step
                    yield unit

        with closing(self.engine.run(units(), advance, len(steps) * shards)) as outcomes:  # type: ignore[type-var]
            yield from self._completed(outcomes, step_of, left, finish, done)
        if any(left.get(step.title, 1) for step in steps if step.title not in self._elsewhere):
            raise RuntimeError("the engine ended before its units did")
        self._raise_failed()

    def _completed(
        self,
        outcomes: Iterator[Outcome],
        step_of: dict[int, Step],
        left: dict[str, int],
        finish: Callable[[Step], None],
        done: Callable[[Step], None],
    ) -> Iterator[Step]:
        """Yields each step after all of its units have ended without an error."""
        for outcome in outcomes:
            step = step_of[id(outcome.unit)]
            left[step.title] -= 1
            if outcome.error:
                self._note(step, outcome)
            if left[step.title]:
                continue
            if step.title in self._failed:
                self.release(step)
                continue
            finish(step)
            done(step)
            yield step
            error_file(step).unlink(missing_ok=True)

    @contextmanager
    def alone(self, steps: Sequence[Step]) -> Iterator[None]:
        """Locks these steps for the block. Waits first for other processes that are working on them."""
        for step in steps:
            while holder := self._take(step):
                self._say_held(step, holder)
                time.sleep(AGAIN)
        try:
            yield
        finally:
            for step in steps:
                self.release(step)

    def check_held(self, step: Step) -> None:
        """Checks that this process still holds the lock of a step that it has done.

        Raises:
            PipelineError: another machine has taken over the step.
        """
        if step.title in self._held and not self._held[step.title].is_held():
            raise PipelineError(
                f"{step.title}: another machine took over this step, because this machine did not answer for a minute; "
                "the same command continues with the remaining steps."
            )

    def release(self, step: Step) -> None:
        """Releases the lock of a step."""
        if lock := self._held.pop(step.title, None):
            lock.release()

    def close(self) -> None:
        """Releases the locks of all steps."""
        for lock in self._held.values():
            lock.release()
        self._held.clear()

    # --- which steps are free ---

    def _free(self, steps: Sequence[Step], done: Callable[[Step], None]) -> Iterator[Step | None]:
        """Locks and yields the steps that no other process is working on; yields None while all remaining steps are in
        work elsewhere."""
        waiting, checked = list(steps), dict[str, float]()
        while waiting:
            for step in waiting:
                if time.monotonic() - checked.get(step.title, -AGAIN) < AGAIN:
                    continue
                if holder := self._take(step):
                    if step.title not in checked:
                        self._say_held(step, holder)
                    checked[step.title] = time.monotonic()
                    continue
                waiting.remove(step)
                if self._finished_elsewhere(step):
                    say(f"  {step.title}: done by another process")
                    self.inputs.wrote(step)
                    self._elsewhere.add(step.title)
                    self.release(step)
                    done(step)
                else:
                    if not self.keeps_old:  # after a kill, the old manifest would not describe the half-written outputs
                        step.manifest.unlink(missing_ok=True)
                    yield step
                break
            else:
                yield None

    def _take(self, step: Step) -> Holder | None:
        lock = StepLock(self.locks / f"{step.title.replace(' ', '-')}.lock", step.title)
        holder = lock.acquire()
        if holder is None:
            self._held[step.title] = lock
        return holder

    def _finished_elsewhere(self, step: Step) -> bool:
        for folder in (step.manifest.parent.parent, step.manifest.parent):
            look_again(folder)
        return _stamp(step.manifest) != self._began[step.title] and self.finished(step)

    @staticmethod
    def _say_held(step: Step, holder: Holder) -> None:
        say(f"  {step.title} is being done by {holder}")

    # --- failures ---

    def _note(self, step: Step, outcome: Outcome) -> None:
        """Reports that a unit failed, and stores its traceback."""
        error = outcome.error
        assert error is not None
        if isinstance(error, TimeIsUp):
            say(f"  {error}")
            self._failed.setdefault(step.title, error)
            return
        shortage_text = shortage.sentence(error)
        if not shortage_text:  # errors of the machine, such as a full disk, need no traceback
            with suppress(PipelineError):  # the error itself is more important
                write_text(error_file(step), "".join(traceback.format_exception(error)))
        _forget(error)
        message = shortage_text or (
            str(error) if isinstance(error, PipelineError) else f"{type(error).__name__}: {first_line(error)}"
        )
        if len(self._began) > 1:  # if there is only one step, its error ends the command and is printed then
            title, text = escape(outcome.unit.title), escape(message.rstrip("."))
            warn(f"[bold red]  {title} failed:[/bold red] {text}; the other steps continue")
        if error_file(step).exists():
            say(f"  traceback of {escape(outcome.unit.title)}: {shown(error_file(step))}")
        self._failed.setdefault(step.title, error)

    def _raise_failed(self) -> None:
        """Raises the error of failed steps, if there are any.

        An error in the program has priority over bad input. If all steps failed with the same error, it is raised
        unchanged; otherwise one error lists all failed steps.
        """
        errors = list(self._failed.values())
        if errors and all(isinstance(error, TimeIsUp) for error in errors):
            raise TimeIsUp("The time of --stop-after is up.")
        for error in errors:
            if not isinstance(error, PipelineError):
                raise error
        if len(errors) == len(self._began) and len(set(map(str, errors))) == 1:
            raise errors[0]
        if errors:
            lines = [f"  {title}: {str(error).removeprefix(f'{title}: ')}" for title, error in self._failed.items()]
            raise PipelineError(
                "\n".join([f"{len(lines)} of {len(self._began)} steps failed:", *lines])
                + "\nThe same command runs these steps again, each from where it stopped, and keeps the others."
            )


def error_file(step: Step) -> Path:
    """Returns the path of the traceback of a failed step."""
    return step.manifest.with_name(f"{step.manifest.name.removesuffix('manifest.json')}error.txt")


def _forget(error: BaseException | None) -> None:
    """Frees the objects in the frames of an error, such as a network on the GPU, because the other units need the
    memory."""
    while error:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if (
                not frame.f_code.co_flags & inspect.CO_GENERATOR
            ):  # the engine's own generators, which clearing would end
                with suppress(RuntimeError):  # the frame is still running
                    frame.clear()
        error = error.__cause__ or error.__context__


def _stamp(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None
