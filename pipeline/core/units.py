"""The steps of a stage as units of work: which of them this process does, beside others, and what failed."""

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
"""Seconds until a step that another process works on is looked at again."""


class StepRunner:
    """Runs steps of a stage on an engine, each under its own lock, so that several processes share a run's steps.

    A step that another process works on is left to it; when all others are done, it is waited for, and done here where
    the other process left it unfinished.
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
        """Takes the steps that are to be done, as they are now.

        Args:
            engine: where their units run.
            locks: the folder of their locks.
            steps: the steps.
            inputs: of these steps; is told of outputs that another process wrote.
            finished: whether what another process left of a step is good.
            keeps_old: whether the manifest of old outputs stays until the step is done again.
        """
        self.engine, self.locks, self.inputs = engine, locks, inputs
        self.finished, self.keeps_old = finished, keeps_old
        self._began = {step.title: _stamp(step.manifest) for step in steps}
        self._held: dict[str, StepLock] = {}
        self._failed: dict[str, Exception] = {}
        self._elsewhere = set[str]()

    def at_once(self, needs: Needs, count: int) -> int:
        """Returns how many of `count` units with these needs run at once; see Engine."""
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
        """Yields each step that was done here when its units have ended and `finish` has put their results in place.

        Args:
            steps: some of those that are to be done.
            units_of: is called with a step when it begins; returns its units, one at least.
            advance: see Engine.
            done: is told of each step that is done, here or by another process.
            finish: is called with a step whose units ended well.
            shards: how many units a step has at most.

        Raises:
            PipelineError: bad input of some steps; the others are done.
        """
        of: dict[int, Step] = {}
        left: dict[str, int] = {}

        def units() -> Iterator[Unit | None]:
            for step in self._free(steps, done):
                found = units_of(step) if step else [None]
                if step:
                    left[step.title] = len(found)
                for unit in found:
                    if unit and step:
                        of[id(unit)] = step
                    yield unit

        with closing(self.engine.run(units(), advance, len(steps) * shards)) as outcomes:  # type: ignore[type-var]
            yield from self._completed(outcomes, of, left, finish, done)
        if any(left.get(step.title, 1) for step in steps if step.title not in self._elsewhere):
            raise RuntimeError("the engine ended before its units did")
        self._raise_failed()

    def _completed(
        self,
        outcomes: Iterator[Outcome],
        of: dict[int, Step],
        left: dict[str, int],
        finish: Callable[[Step], None],
        done: Callable[[Step], None],
    ) -> Iterator[Step]:
        """Yields the steps all of whose units ended well."""
        for outcome in outcomes:
            step = of[id(outcome.unit)]
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
        """Keeps other processes from these steps, and waits for those that they work on."""
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
        """Checks that a step that was done here is still this process's.

        Raises:
            PipelineError: another machine took it over.
        """
        if step.title in self._held and not self._held[step.title].is_held():
            raise PipelineError(
                f"{step.title}: another machine took it over, because this one did not answer for a minute; the same "
                "command goes on with what is left."
            )

    def release(self, step: Step) -> None:
        """Leaves a step to other processes."""
        if lock := self._held.pop(step.title, None):
            lock.release()

    def close(self) -> None:
        """Leaves all steps to other processes."""
        for lock in self._held.values():
            lock.release()
        self._held.clear()

    # --- which steps are free ---

    def _free(self, steps: Sequence[Step], done: Callable[[Step], None]) -> Iterator[Step | None]:
        """Yields the steps that are free, locked; None while all that is left is other processes' work."""
        waiting, looked = list(steps), dict[str, float]()
        while waiting:
            for step in waiting:
                if time.monotonic() - looked.get(step.title, -AGAIN) < AGAIN:
                    continue
                if holder := self._take(step):
                    if step.title not in looked:
                        self._say_held(step, holder)
                    looked[step.title] = time.monotonic()
                    continue
                waiting.remove(step)
                if self._finished_elsewhere(step):
                    say(f"  {step.title}: done by another process")
                    self.inputs.wrote(step)
                    self._elsewhere.add(step.title)
                    self.release(step)
                    done(step)
                else:
                    if not self.keeps_old:  # half of new outputs, after a kill, are not what the old manifest says
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

    # --- what failed ---

    def _note(self, step: Step, outcome: Outcome) -> None:
        """Says that a unit failed, and keeps its traceback."""
        error = outcome.error
        assert error is not None
        if isinstance(error, TimeIsUp):
            say(f"  {error}")
            self._failed.setdefault(step.title, error)
            return
        short = shortage.sentence(error)
        if not short:  # the machine's own limits need no traceback
            with suppress(PipelineError):  # which says no more than the error
                write_text(error_file(step), "".join(traceback.format_exception(error)))
        _forget(error)
        said = short or (
            str(error) if isinstance(error, PipelineError) else f"{type(error).__name__}: {first_line(error)}"
        )
        if len(self._began) > 1:  # the error of the only one ends the command, and is said then
            title, said = escape(outcome.unit.title), escape(said.rstrip("."))
            warn(f"[bold red]  {title} failed:[/bold red] {said}; the others go on")
        if error_file(step).exists():
            say(f"  traceback of {escape(outcome.unit.title)}: {shown(error_file(step))}")
        self._failed.setdefault(step.title, error)

    def _raise_failed(self) -> None:
        """Raises what failed: a fault of the program before bad input; what is wrong with all steps as it is."""
        errors = list(self._failed.values())
        if errors and all(isinstance(error, TimeIsUp) for error in errors):
            raise TimeIsUp("The time of --time is up.")
        for error in errors:
            if not isinstance(error, PipelineError):
                raise error
        if len(errors) == len(self._began) and len(set(map(str, errors))) == 1:
            raise errors[0]
        if errors:
            lines = [f"  {title}: {str(error).removeprefix(f'{title}: ')}" for title, error in self._failed.items()]
            raise PipelineError(
                "\n".join([f"{len(lines)} of {len(self._began)} steps failed:", *lines])
                + "\nThe same command does these again, each from where it stopped, and keeps the others."
            )


def error_file(step: Step) -> Path:
    """Returns where the traceback of a step that failed is kept."""
    return step.manifest.with_name(f"{step.manifest.name.removesuffix('manifest.json')}error.txt")


def _forget(error: BaseException | None) -> None:
    """Lets go of what an error's frames hold, a network on the GPU for instance: the others need the room."""
    while error:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if not frame.f_code.co_flags & inspect.CO_GENERATOR:  # the engine's own, which would end
                with suppress(RuntimeError):  # it is still at work
                    frame.clear()
        error = error.__cause__ or error.__context__


def _stamp(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None
