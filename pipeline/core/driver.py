"""Runs the steps of a stage that are not up to date. stages.py lists the stages and their order.

A stage is the module `stage` of a room. Stages exchange data only through files, which the head of each stage lists.
The module has `steps(run)`, which returns its units of work with the files that each reads and writes, and
`execute(run, steps)`, which does the given steps and yields each one when its outputs are in place. `Stage` documents
the optional members.
"""

import importlib
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.markup import escape

from pipeline.core import editable, events, freshness, intact, layout
from pipeline.core.console import console, detail, warn
from pipeline.core.engine import Engine, OneByOne
from pipeline.core.errors import PipelineError, first_line
from pipeline.core.files import remove, shown
from pipeline.core.freshness import Reason, Step
from pipeline.core.lock import exclusive_lock
from pipeline.core.other_runs import check_ensemble, find_run, runs_of
from pipeline.core.run import Run
from pipeline.core.shortage import ANY_MEMORY, explained, require_address_space, sentence
from pipeline.core.units import StepRunner, error_file


class Stage:
    """The module of a stage, and its optional members besides `steps` and `execute`."""

    def __init__(self, name: str) -> None:
        """Imports the module of the stage `name`."""
        self.name = name
        self.module: Any = importlib.import_module(f"pipeline.{name}.stage")

    @property
    def shared(self) -> bool:
        """SHARED: whether all runs of a competition share the files of the stage."""
        return getattr(self.module, "SHARED", False)

    @property
    def needs_test(self) -> bool:
        """NEEDS_TEST: whether the stage needs predictions of the test images."""
        return getattr(self.module, "NEEDS_TEST", False)

    @property
    def reads_raw(self) -> bool:
        """READS_RAW: whether the stage reads raw files, and reports missing ones itself."""
        return getattr(self.module, "READS_RAW", False)

    @property
    def reads_folds(self) -> Literal["weights", "oof", "test", None]:
        """READS_FOLDS: what the stage reads for each fold: weights, out-of-fold predictions or test predictions."""
        return getattr(self.module, "READS_FOLDS", None)

    @property
    def needs_oof(self) -> bool:
        """Whether the runs of an ensemble must have out-of-fold predictions at this stage. tune reads them, and shared
        stages come before tune. From predict on, nothing that belongs to the training images is needed."""
        return self.reads_folds == "oof" or self.shared

    @property
    def accepts(self) -> tuple[str, ...]:
        """ACCEPTS: the further arguments of `execute`: `force`, and `runner`, a StepRunner, if the steps do not depend
        on each other."""
        return getattr(self.module, "ACCEPTS", ())

    @property
    def less_memory(self) -> str:
        """LESS_MEMORY: the advice for the case that the stage runs out of memory."""
        return getattr(self.module, "LESS_MEMORY", ANY_MEMORY)

    @property
    def may_keep(self) -> bool:
        """Whether the module has `keeps(run, step, reasons)`, which decides whether outputs are kept although something
        changed."""
        return hasattr(self.module, "keeps")

    def keeps(self, run: Run, step: Step, reasons: list[Reason]) -> bool:
        """Returns whether the outputs of a step are kept although something changed."""
        return bool(reasons) and self.may_keep and self.module.keeps(run, step, reasons)

    def tidy(self, run: Run, finished: list[Step]) -> None:
        """Removes leftovers beside the outputs of finished steps: temporary files of killed processes, and whatever
        `tidy(run, finished)` of the module removes, if it has that function."""
        for step in finished:
            error_file(step).unlink(missing_ok=True)
            editable.remove_notes(step)
            for path in (*step.outputs, *step.also, step.manifest):
                remove(path.with_name(f".{path.name}.partial"))
        if hasattr(self.module, "tidy"):
            self.module.tidy(run, finished)

    def guard(self, run: Run, waiting: list["State"]) -> None:
        """Stops before finished work would be lost, if the module has `guard(run, waiting)`."""
        if hasattr(self.module, "guard"):
            self.module.guard(run, waiting)


@dataclass(frozen=True)
class State:
    """A step, and the reasons why it must run; without reasons it is up to date. `kept`: whether its outputs are kept
    although something changed."""

    step: Step
    reasons: list[Reason]
    kept: bool


def states(run: Run, stage: str, subset: Literal["train", "test"] | None = None) -> list[State]:
    """Returns the state of each step of a stage; with a `subset`, only of the steps for these images.

    Raises:
        PipelineError: a run of the ensemble does not exist, or lacks predictions.
    """
    opened, result = Stage(stage), []
    if run.recipe.ensemble and opened.needs_oof and subset != "test":
        check_ensemble(run)
    layout.check()
    for step in opened.module.steps(run):
        if subset not in (None, step.subset):
            continue
        reasons = freshness.stale(step)
        result.append(State(step, reasons, opened.keeps(run, step, reasons)))
    return result


def unfinished(run: Run, stage: str) -> list[State]:
    """Returns the states of the steps that must run: they are not up to date, and their outputs are not kept."""
    return [state for state in states(run, stage) if state.reasons and not state.kept]


def require_test(run: Run, stage: str) -> None:
    """Checks that there are predictions of the test images if a stage needs them.

    Raises:
        PipelineError: there are external predictions of the training images only.
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

    Steps that do not depend on each other run on the `engine`, and other processes may do some of them at the same
    time. All other stages are locked, so that one process at a time runs them.

    Args:
        run: the run.
        stage: the stage's name.
        force: whether steps that are up to date run too.
        mention: whether a message is printed for a stage that is up to date.
        subset: runs only the steps for these images; None: all steps.
        engine: where steps run; None: one after another in this process.

    Raises:
        PipelineError: the input is bad, finished work would be lost, or the machine lacks memory, disk space or write
            permission.
    """
    require_test(run, stage)
    opened = Stage(stage)
    with explained(stage, opened.less_memory):
        layout.take_over()
    in_steps = "runner" in opened.accepts and run.recipe.trains
    started = time.perf_counter()
    folder = run.competition_folder if opened.shared else run.folder
    with explained(stage, opened.less_memory), nullcontext() if in_steps else exclusive_lock(folder):
        waiting = _waiting(run, opened, force, mention, subset)
        if waiting:
            require_address_space(stage)
            written = [path for state in waiting for path in (*state.step.outputs, *state.step.also)]
            with _damage_named(waiting), intact.in_work(written):
                _execute(run, opened, waiting, force, (engine or OneByOne()) if in_steps else None)
            events.emit(events.StageFinished(run.name, stage, round(time.perf_counter() - started, 3)))
        elif mention:
            events.emit(events.StageUpToDate(run.name, stage))


def _waiting(
    run: Run, stage: Stage, force: bool, mention: bool, subset: Literal["train", "test"] | None
) -> list[State]:
    """Returns the states of the steps that must run, after all checks that are possible before the work starts."""
    all_states = states(run, stage.name, subset)
    if not all_states:  # evaluate without known truth; train and predict without training
        return []
    waiting = [state for state in all_states if force or (state.reasons and not state.kept)]
    finished = [state for state in all_states if state not in waiting]
    for state in finished:
        _say_kept(state)
    stage.tidy(run, [state.step for state in finished])
    if not waiting:
        if mention:
            console.print(f"[dim]{stage.name}: up to date[/dim]")
        return []
    if not stage.reads_raw:
        _check_intact(stage, waiting)  # first, because no other advice helps if an input is damaged
    if not force:
        stage.guard(run, waiting)
    if not stage.reads_raw:
        _check_inputs(run, stage, waiting)
    summary = _why(waiting, force)
    for state in waiting:
        detail(f"{state.step.title} runs: {'; '.join(reason.text for reason in state.reasons) or '--force'}")
    console.print(f"[bold]{stage.name}[/bold]{': ' if summary else ''}{escape(summary)}")
    events.emit(events.StageStarted(run.name, stage.name, summary))
    for manifest in (state.step.manifest for state in waiting):
        if manifest.is_dir():
            raise PipelineError(
                f"{shown(manifest)} is a folder, and {stage.name} writes a file of this name: move the folder away."
            )
    return waiting


def _say_kept(state: State) -> None:
    """Prints why the outputs of a step are kept although something changed, and which outputs the user edited."""
    step = state.step
    if state.kept:
        why = escape("; ".join(reason.text for reason in state.reasons))
        warn(f"[yellow]{escape(step.title)}: kept although {why} (--force runs it again)[/yellow]")
    for path in (path for path in step.editable if editable.is_user_edited(step, path)):
        if freshness.read_manifest(step.manifest):
            what = f"was edited after {step.stage} wrote it, and is used as it is; delete it to have it written again"
        else:
            what = f"is used as your own file: {step.stage} did not write it (there is no {step.manifest.name})"
        console.print(f"[dim]{escape(shown(path))} {what}[/dim]")


def _execute(run: Run, stage: Stage, waiting: list[State], force: bool, engine: Engine | None) -> None:
    """Runs the steps and records each one in its manifest. With an engine, independent steps run on it."""
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
    elif not stage.may_keep:  # after a kill, the old manifest would not describe the half-written outputs
        for step in steps:
            step.manifest.unlink(missing_ok=True)
    done = stage.module.execute(run, steps, **arguments)
    try:
        for step in done:
            now = time.perf_counter()
            if runner:
                runner.check_held(step)
            freshness.record(step, now - started, inputs=inputs.of(step))
            editable.remove_notes(step)
            detail(f"{step.title}: {now - started:.1f} s → {', '.join(map(shown, step.outputs))}")
            started = now
            if runner:
                runner.release(step)
    finally:
        if isinstance(done, Generator):  # an error may still refer to the generator: end its worker processes now
            done.close()
        if runner:
            runner.close()


@contextmanager
def _damage_named(waiting: list[State]) -> Iterator[None]:
    """If steps fail and one of their inputs is not what a stage wrote, raises an error that names this file."""
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        if sentence(error):  # a shortage of memory or disk space is not damage
            raise
        inputs = dict.fromkeys(path for state in waiting for path in state.step.inputs)
        for fault in intact.changed(inputs):
            raise PipelineError(f"{fault} ({type(error).__name__}: {first_line(error)})") from error
        raise


def _check_intact(stage: Stage, waiting: list[State]) -> None:
    """Checks that the inputs of a stage are as they were written. Before training, their contents are compared."""
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
            f"{stage.name} reads {shown(missing[0])} of the run {name} in the ensemble, and the file does not exist; "
            f"finish that run first: {find_run(run, name, 'ensemble').command()}."
        )
    raise PipelineError(
        f"{stage.name} reads {shown(missing[0])}, which does not exist; `{run.command('--to', stage.name)}` runs the "
        "stages that write it."
    )


def _offer_folds(run: Run, stage: Stage, missing: list[Path]) -> None:
    """Raises an error that suggests --folds if files are missing only for some of the folds."""
    if stage.reads_folds is None:
        return
    paths_by_fold = _paths_by_fold(run, stage.reads_folds)
    lacking = [fold for fold, paths in paths_by_fold.items() if any({path, path.parent} & paths for path in missing)]
    complete = [fold for fold in paths_by_fold if fold not in lacking]
    known = set().union(*paths_by_fold.values())
    if lacking and complete and all({path, path.parent} & known for path in missing):
        what = {"weights": "weights", "oof": "predictions", "test": "test predictions"}[stage.reads_folds]
        raise PipelineError(
            f"{stage.name} reads the {what} of folds {listed(list(paths_by_fold))}, and those of {listed(lacking)} are "
            f"missing: train and predict them, or continue with --folds {','.join(map(str, complete))}."
        )


def _paths_by_fold(run: Run, what: Literal["weights", "oof", "test"]) -> dict[int, set[Path]]:
    """Returns what a stage reads for each fold: files, or the folders that hold them."""
    paths_of: dict[int, set[Path]] = {}
    for fold in run.trained_folds():
        paths = []
        for other in runs_of(run):
            paths += [other.fold_folder(fold, member.seed) for member in other.members(fold)]
            paths += [other.predictions("test", fold)] if what == "test" else other.oof_predictions(fold)
        paths_of[fold] = {file for path in paths for file in (path, path.with_suffix(".csv"))}
    return paths_of


def listed(folds: list[int]) -> str:
    """Returns a list of folds as a text: `0–4`, `3 and 4`, or `0, 2 and 3`."""
    if len(folds) > 2 and folds == list(range(folds[0], folds[-1] + 1)):
        return f"{folds[0]}–{folds[-1]}"
    return " and ".join(filter(None, [", ".join(map(str, folds[:-1])), str(folds[-1])]))


def _why(waiting: list[State], force: bool) -> str:
    if force:
        return "--force"
    texts = dict.fromkeys(reason.text for state in waiting for reason in state.reasons if reason.kind != "never")
    return "; ".join(list(texts)[:4])
