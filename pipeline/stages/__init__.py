"""The stages, in the order data flows. A stage talks to others only through the files it lists at its head.

A stage module has `steps(run)`, its units of work with what each reads and writes, and `execute(run, steps)`, which
does the ones it is given and yields each when its outputs are in place. It may have `keeps(run, step, reasons)`:
whether outputs stay although something changed; and `guard(run, waiting)`, which stops before work would be lost.
"""

import importlib
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline import freshness, sources, workspace
from pipeline.console import console, detail, warn
from pipeline.errors import PipelineError
from pipeline.freshness import Reason, Step
from pipeline.lock import alone
from pipeline.stage_table import STAGES
from pipeline.teachers import check_members
from pipeline.workspace import Run

SHARED = ("decode", "clean", "split")
"""The stages whose files all runs of a competition share."""
NEED_TEST = ("encode", "evaluate", "report")
"""The stages that cannot do without predictions of the test images."""


@dataclass(frozen=True)
class State:
    """One step and why it must run; no reasons: up to date. `kept`: its outputs stay although something changed."""

    step: Step
    reasons: list[Reason]
    kept: bool


def states(run: Run, stage: str) -> list[State]:
    """Returns the state of every step of a stage.

    Raises:
        PipelineError: a run of an ensemble is not there, or lacks predictions.
    """
    if run.recipe.ensemble:
        check_members(run)
    module = importlib.import_module(f"pipeline.stages.{stage}")
    found = []
    for step in module.steps(run):
        reasons = freshness.stale(step)
        kept = bool(reasons) and hasattr(module, "keeps") and module.keeps(run, step, reasons)
        found.append(State(step, reasons, kept))
    return found


def run_through(run: Run, stage: str, force: bool = False, strict: bool = False) -> None:
    """Runs what comes before a stage, as far as it is not up to date, and the stage, as run_stage does."""
    require_test(run, stage)
    for earlier in STAGES[: STAGES.index(stage)]:
        run_stage(run, earlier, mention=False)
    run_stage(run, stage, force, strict)


def require_test(run: Run, stage: str) -> None:
    """Checks that there are predictions of the test images where a stage needs them.

    Raises:
        PipelineError: predictions made elsewhere are of the training images only.
    """
    if stage in NEED_TEST and run.recipe.arrays and not run.recipe.arrays.test:
        raise PipelineError(
            f"{stage} needs predictions of the test images, and {run.name} has none: add --test test.npy (or, in a "
            "recipe, `arrays: {test: …}`)."
        )


def run_stage(run: Run, stage: str, force: bool = False, strict: bool = False, mention: bool = True) -> None:
    """Runs the steps of a stage that are not up to date (all of them with `force`) and records each.

    With `strict`, encode refuses what it would only warn of; it then always runs. Without `mention` nothing is said of
    a stage that is up to date.

    Raises:
        PipelineError: bad input, or finished work that would be thrown away.
    """
    require_test(run, stage)
    with alone(run.competition_folder if stage in SHARED else run.folder):
        _run_stage(run, stage, force, strict, mention)


def _run_stage(run: Run, stage: str, force: bool, strict: bool, mention: bool) -> None:
    module, found = importlib.import_module(f"pipeline.stages.{stage}"), states(run, stage)
    if not found:  # evaluate, where no truth is known; train and predict, where nothing is trained
        return
    strict = strict and stage == "encode"
    waiting = []
    for state in found:
        if force or strict or (state.reasons and not state.kept):
            waiting.append(state)
        elif state.kept:
            why = "; ".join(reason.text for reason in state.reasons)
            warn(f"[yellow]{state.step.title}: kept although {why} (--force does it again)[/yellow]")
    if not waiting:
        if mention:
            console.print(f"[dim]{stage}: up to date[/dim]")
        return
    if not force and hasattr(module, "guard"):
        module.guard(run, waiting)
    if stage != "decode":
        _check_inputs(run, stage, waiting)
    why = _why(waiting, force)
    for state in waiting:
        detail(f"{state.step.title} runs: {'; '.join(reason.text for reason in state.reasons) or '--force'}")
    console.print(f"[bold]{stage}[/bold]{': ' if why else ''}{why}")
    started = time.perf_counter()
    arguments = {"fresh": True} if force and stage == "train" else {"strict": True} if strict else {}
    inputs = freshness.Inputs(state.step for state in waiting)
    if not hasattr(module, "keeps"):  # half of new outputs, after a kill, are not what the old manifest says
        for state in waiting:
            state.step.manifest.unlink(missing_ok=True)
    for step in module.execute(run, [state.step for state in waiting], **arguments):
        now = time.perf_counter()
        freshness.record(step, now - started, inputs=inputs.of(step))
        detail(f"{step.title}: {now - started:.1f} s → {', '.join(map(workspace.shown, step.outputs))}")
        started = now


def _check_inputs(run: Run, stage: str, waiting: list[State]) -> None:
    written = {path for state in waiting for path in state.step.outputs}  # by an earlier step of the same stage
    inputs = dict.fromkeys(path for state in waiting for path in state.step.inputs)
    missing = [path for path in inputs if not path.exists() and path not in written]
    if not missing:
        return
    _offer_folds(run, stage, missing)
    if run.recipe.ensemble and run.folder not in missing[0].parents and missing[0].parent.name == "predictions":
        name = missing[0].parent.parent.name
        raise PipelineError(
            f"{stage} reads {workspace.shown(missing[0])} of the ensemble's run {name}, which does not exist; finish "
            f"that run first: python -m pipeline run {name}."
        )
    raise PipelineError(
        f"{stage} reads {workspace.shown(missing[0])}, which does not exist; "
        f"`{run.command('--to', stage)}` makes what comes before."
    )


def _offer_folds(run: Run, stage: str, missing: list[Path]) -> None:
    """Stops with the folds that are there, where some folds, and nothing else, lack what a stage reads."""
    what, of_fold = _by_fold(run, stage)
    lacking = [fold for fold, paths in of_fold.items() if any({path, path.parent} & paths for path in missing)]
    there = [fold for fold in of_fold if fold not in lacking]
    known = set().union(*of_fold.values())
    if lacking and there and all({path, path.parent} & known for path in missing):
        raise PipelineError(
            f"{stage} reads {what} of folds {listed(list(of_fold))}, and those of {listed(lacking)} are missing: train "
            f"and predict them, or go on with --folds {','.join(map(str, there))}."
        )


def _by_fold(run: Run, stage: str) -> tuple[str, dict[int, set[Path]]]:
    """What a stage reads of every fold: in words, and files or the folders that hold them."""
    what = "the test predictions" if stage in ("encode", "evaluate") else "the predictions"
    found: dict[int, set[Path]] = {}
    for fold in run.trained_folds():
        paths = []
        for one in sources.runs_of(run):
            paths += [one.fold(fold, member.seed) for member in one.members(fold)]
            paths += [one.predictions("test", fold)] if stage in ("encode", "evaluate") else one.oof_predictions(fold)
        found[fold] = {file for path in paths for file in (path, path.with_suffix(".csv"))}
    return "the weights" if stage == "predict" else what, found


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
