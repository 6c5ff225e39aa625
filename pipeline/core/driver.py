"""Runs a stage: those of its steps that are not up to date. Which stages there are, in which order, says stages.py.

A stage is the module `stage` of a room, and talks to others only through the files that it lists at its head. It has
`steps(run)`, its units of work with what each reads and writes, and `execute(run, steps)`, which does the ones it is
given and yields each when its outputs are in place. `Stage` says what else it may have.
"""

import importlib
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.markup import escape

from pipeline.core import events, freshness, intact, layout
from pipeline.core.console import console, detail, warn
from pipeline.core.engine import Engine, OneByOne
from pipeline.core.errors import PipelineError, first_line
from pipeline.core.files import remove, shown
from pipeline.core.freshness import Reason, Step
from pipeline.core.lock import exclusive_lock
from pipeline.core.other_runs import check_ensemble, runs_of
from pipeline.core.run import Run
from pipeline.core.shortage import ANY_MEMORY, explained, sentence
from pipeline.core.units import StepRunner, error_file
from pipeline.core.version import program


class Stage:
    """A stage's module, and what it declares beside `steps` and `execute`."""

    def __init__(self, name: str) -> None:
        """Imports the module of the stage `name`."""
        self.name = name
        self.module: Any = importlib.import_module(f"pipeline.{name}.stage")

    @property
    def shared(self) -> bool:
        """SHARED: whether all runs of a competition share the stage's files."""
        return getattr(self.module, "SHARED", False)

    @property
    def needs_test(self) -> bool:
        """NEEDS_TEST: whether the stage cannot do without predictions of the test images."""
        return getattr(self.module, "NEEDS_TEST", False)

    @property
    def reads_raw(self) -> bool:
        """READS_RAW: whether the stage reads raw files, and lists what is missing of them itself."""
        return getattr(self.module, "READS_RAW", False)

    @property
    def reads_folds(self) -> Literal["weights", "oof", "test", None]:
        """READS_FOLDS: what the stage reads of every fold: its weights, out-of-fold or test predictions."""
        return getattr(self.module, "READS_FOLDS", None)

    @property
    def needs_oof(self) -> bool:
        """Whether an ensemble's runs must have out-of-fold predictions here: tune reads them, and what is shared comes
        before it. From predict on, nothing of the training images is needed."""
        return self.reads_folds == "oof" or self.shared

    @property
    def accepts(self) -> tuple[str, ...]:
        """ACCEPTS: what its `execute` takes beside the run and the steps: `force`; `runner`, a StepRunner, where its
        steps do not depend on each other."""
        return getattr(self.module, "ACCEPTS", ())

    @property
    def less_memory(self) -> str:
        """LESS_MEMORY: what to set where memory runs out in the stage."""
        return getattr(self.module, "LESS_MEMORY", ANY_MEMORY)

    @property
    def may_keep(self) -> bool:
        """Whether the module has `keeps(run, step, reasons)`: whether outputs stay although something changed."""
        return hasattr(self.module, "keeps")

    def keeps(self, run: Run, step: Step, reasons: list[Reason]) -> bool:
        """Returns whether a step's outputs stay although something changed."""
        return bool(reasons) and self.may_keep and self.module.keeps(run, step, reasons)

    def tidy(self, run: Run, finished: list[Step]) -> None:
        """Puts in order what lies beside the outputs of finished steps: temporary files of a process that was killed,
        and, where the module has `tidy(run, finished)`, what else the stage keeps there."""
        for step in finished:
            error_file(step).unlink(missing_ok=True)
            freshness.remove_notes(step)
            for path in (*step.outputs, *step.also, step.manifest):
                remove(path.with_name(f".{path.name}.partial"))
        if hasattr(self.module, "tidy"):
            self.module.tidy(run, finished)

    def guard(self, run: Run, waiting: list["State"]) -> None:
        """Stops before work would be lost, where the module has `guard(run, waiting)`."""
        if hasattr(self.module, "guard"):
            self.module.guard(run, waiting)


@dataclass(frozen=True)
class State:
    """One step and why it must run; no reasons: up to date. `kept`: its outputs stay although something changed."""

    step: Step
    reasons: list[Reason]
    kept: bool


def states(run: Run, stage: str, subset: Literal["train", "test"] | None = None) -> list[State]:
    """Returns the state of every step of a stage; with a `subset`, of the steps of these images alone.

    Raises:
        PipelineError: a run of an ensemble is not there, or lacks predictions.
    """
    opened, found = Stage(stage), []
    if run.recipe.ensemble and opened.needs_oof and subset != "test":
        check_ensemble(run)
    layout.check()
    for step in opened.module.steps(run):
        if subset not in (None, step.subset):
            continue
        reasons = freshness.stale(step)
        found.append(State(step, reasons, opened.keeps(run, step, reasons)))
    return found


def unfinished(run: Run, stage: str) -> list[State]:
    """Returns the states of the steps of a stage that are not up to date and do not stay as they are."""
    return [state for state in states(run, stage) if state.reasons and not state.kept]


def require_test(run: Run, stage: str) -> None:
    """Checks that there are predictions of the test images where a stage needs them.

    Raises:
        PipelineError: predictions made elsewhere are of the training images only.
    """
    if Stage(stage).needs_test and run.recipe.arrays and not run.recipe.arrays.test and run.competition.has_test:
        raise PipelineError(
            f"{stage} needs predictions of the test images, and {run.name} has none: add --test test.npy (or, in a "
            "recipe, `arrays: {test: …}`)."
        )


def run_stage(
    run: Run,
    stage: str,
    force: bool = False,
    mention: bool = True,
    subset: Literal["train", "test"] | None = None,
    engine: Engine | None = None,
) -> None:
    """Runs the steps of a stage that are not up to date (all of them with `force`) and records each.

    Without `mention` nothing is said of a stage that is up to date. With a `subset`, the steps of these images alone.
    Steps that do not depend on each other run on the `engine`, by default one after another in this process, and other
    processes may take some of them; every other stage is one process's at a time.

    Raises:
        PipelineError: bad input, finished work that would be thrown away, or a machine that lacks memory, room on the
            disk or the right to write.
    """
    require_test(run, stage)
    opened = Stage(stage)
    with explained(stage, opened.less_memory):
        layout.take_over()
    shares = "runner" in opened.accepts and run.recipe.trains
    started = time.perf_counter()
    folder = run.competition_folder if opened.shared else run.folder
    with explained(stage, opened.less_memory), nullcontext() if shares else exclusive_lock(folder):
        waiting = _waiting(run, opened, force, mention, subset)
        if waiting:
            written = [path for state in waiting for path in (*state.step.outputs, *state.step.also)]
            with _damage_named(waiting), intact.in_work(written):
                _execute(run, opened, waiting, force, (engine or OneByOne()) if shares else None)
            events.emit(events.StageFinished(run.name, stage, round(time.perf_counter() - started, 3)))
        elif mention:
            events.emit(events.StageUpToDate(run.name, stage))


def _waiting(
    run: Run, stage: Stage, force: bool, mention: bool, subset: Literal["train", "test"] | None
) -> list[State]:
    """Returns the states of the steps that are to be done, after what can be checked before."""
    found = states(run, stage.name, subset)
    if not found:  # evaluate, where no truth is known; train and predict, where nothing is trained
        return []
    waiting = [state for state in found if force or (state.reasons and not state.kept)]
    resting = [state for state in found if state not in waiting]
    for state in resting:
        _say_kept(state)
    stage.tidy(run, [state.step for state in resting])
    if not waiting:
        if mention:
            console.print(f"[dim]{stage.name}: up to date[/dim]")
        return []
    if not stage.reads_raw:
        _check_intact(stage, waiting)  # first: no other advice helps where an input is damaged
    if not force:
        stage.guard(run, waiting)
    if not stage.reads_raw:
        _check_inputs(run, stage, waiting)
    why = _why(waiting, force)
    for state in waiting:
        detail(f"{state.step.title} runs: {'; '.join(reason.text for reason in state.reasons) or '--force'}")
    console.print(f"[bold]{stage.name}[/bold]{': ' if why else ''}{escape(why)}")
    events.emit(events.StageStarted(run.name, stage.name, why))
    for manifest in (state.step.manifest for state in waiting):
        if manifest.is_dir():
            raise PipelineError(f"{shown(manifest)} is a folder, and {stage.name} writes a file there: move it away.")
    return waiting


def _say_kept(state: State) -> None:
    """Says why the outputs of a step stay although something changed, or which of them a person edited."""
    step = state.step
    if state.kept:
        why = escape("; ".join(reason.text for reason in state.reasons))
        warn(f"[yellow]{escape(step.title)}: kept although {why} (--force does it again)[/yellow]")
    for path in (path for path in step.editable if freshness.is_user_edited(step, path)):
        if freshness.read_manifest(step.manifest):
            what = f"was changed since {step.stage} wrote it: it is used as it is, and made anew once it is deleted"
        else:
            what = f"is used as your own: no {step.manifest.name} says that {step.stage} wrote it"
        console.print(f"[dim]{escape(shown(path))} {what}[/dim]")


def _execute(run: Run, stage: Stage, waiting: list[State], force: bool, engine: Engine | None) -> None:
    """Does the steps, those of a stage whose steps do not depend on each other on an engine, and records each."""
    started = time.perf_counter()
    steps = [state.step for state in waiting]
    arguments: dict[str, Any] = {"force": True} if force and "force" in stage.accepts else {}
    inputs = freshness.Inputs(steps)
    runner = None
    if engine:

        def finished(step: Step) -> bool:
            reasons = freshness.stale(step)
            return not reasons or stage.keeps(run, step, reasons)

        runner = StepRunner(engine, run.folder / ".locks", steps, inputs, finished, stage.may_keep)
        arguments["runner"] = runner
    elif not stage.may_keep:  # half of new outputs, after a kill, are not what the old manifest says
        for step in steps:
            step.manifest.unlink(missing_ok=True)
    done = stage.module.execute(run, steps, **arguments)
    try:
        for step in done:
            now = time.perf_counter()
            if runner:
                runner.check_held(step)
            freshness.record(step, now - started, inputs=inputs.of(step))
            detail(f"{step.title}: {now - started:.1f} s → {', '.join(map(shown, step.outputs))}")
            started = now
            if runner:
                runner.release(step)
    finally:
        if isinstance(done, Generator):  # whatever is said of an error still holds it: its processes end now
            done.close()
        if runner:
            runner.close()


@contextmanager
def _damage_named(waiting: list[State]) -> Iterator[None]:
    """Where steps fail and one of their inputs is not what a stage wrote, names that file."""
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        if sentence(error):  # what the machine lacks is no damage
            raise
        inputs = dict.fromkeys(path for state in waiting for path in state.step.inputs)
        for fault in intact.changed(inputs):
            raise PipelineError(f"{fault} ({type(error).__name__}: {first_line(error)})") from error
        raise


def _check_intact(stage: Stage, waiting: list[State]) -> None:
    """Checks that what a stage reads is as it was written, by content before hours of training."""
    written = {path for state in waiting for path in state.step.outputs}
    for path in dict.fromkeys(path for state in waiting for path in state.step.inputs if path not in written):
        if path.exists():
            intact.require_intact(path, by_content=stage.name == "train")


def _check_inputs(run: Run, stage: Stage, waiting: list[State]) -> None:
    written = {path for state in waiting for path in state.step.outputs}  # by an earlier step of the same stage
    inputs = dict.fromkeys(path for state in waiting for path in state.step.inputs)
    missing = [path for path in inputs if not path.exists() and path not in written]
    if not missing:
        return
    _offer_folds(run, stage, missing)
    if run.recipe.ensemble and run.folder not in missing[0].parents and missing[0].parent.name == "predictions":
        name = missing[0].parent.parent.name
        raise PipelineError(
            f"{stage.name} reads {shown(missing[0])} of the ensemble's run {name}, which does not exist; "
            f"finish that run first: {program()} run {name}."
        )
    raise PipelineError(
        f"{stage.name} reads {shown(missing[0])}, which does not exist; "
        f"`{run.command('--to', stage.name)}` makes what comes before."
    )


def _offer_folds(run: Run, stage: Stage, missing: list[Path]) -> None:
    """Stops with the folds that are there, where some folds, and nothing else, lack what a stage reads."""
    if stage.reads_folds is None:
        return
    paths_of = _paths_by_fold(run, stage.reads_folds)
    lacking = [fold for fold, paths in paths_of.items() if any({path, path.parent} & paths for path in missing)]
    there = [fold for fold in paths_of if fold not in lacking]
    known = set().union(*paths_of.values())
    if lacking and there and all({path, path.parent} & known for path in missing):
        what = {"weights": "weights", "oof": "predictions", "test": "test predictions"}[stage.reads_folds]
        raise PipelineError(
            f"{stage.name} reads the {what} of folds {listed(list(paths_of))}, and those of {listed(lacking)} are "
            f"missing: train and predict them, or go on with --folds {','.join(map(str, there))}."
        )


def _paths_by_fold(run: Run, what: Literal["weights", "oof", "test"]) -> dict[int, set[Path]]:
    """What a stage reads of every fold: files, or the folders that hold them."""
    found: dict[int, set[Path]] = {}
    for fold in run.trained_folds():
        paths = []
        for other in runs_of(run):
            paths += [other.fold_folder(fold, member.seed) for member in other.members(fold)]
            paths += [other.predictions("test", fold)] if what == "test" else other.oof_predictions(fold)
        found[fold] = {file for path in paths for file in (path, path.with_suffix(".csv"))}
    return found


def listed(folds: list[int]) -> str:
    """Returns numbers of folds as a person reads them: 0–4, 3 and 4, or 0, 2 and 3."""
    if len(folds) > 2 and folds == list(range(folds[0], folds[-1] + 1)):
        return f"{folds[0]}–{folds[-1]}"
    return " and ".join(filter(None, [", ".join(map(str, folds[:-1])), str(folds[-1])]))


def _why(waiting: list[State], force: bool) -> str:
    if force:
        return "--force"
    texts = dict.fromkeys(reason.text for state in waiting for reason in state.reasons if reason.kind != "never")
    return "; ".join(list(texts)[:4])
