"""The stages, in the order data flows. A stage talks to others only through the files it lists at its head.

A stage module has `steps(run)`, its units of work with what each reads and writes, and `execute(run, steps)`, which
does the ones it is given and yields each when its outputs are in place. It may have `keeps(run, step, reasons)`:
whether outputs stay although something changed; and `guard(run, waiting)`, which stops before work would be lost.
"""

import importlib
import time
from dataclasses import dataclass

from pipeline import freshness, workspace
from pipeline.console import console
from pipeline.errors import PipelineError
from pipeline.freshness import Reason, Step
from pipeline.workspace import Run

STAGES = ("decode", "clean", "split", "train", "predict", "tune", "encode", "evaluate", "report")


@dataclass(frozen=True)
class State:
    """One step and why it must run; no reasons: up to date. `kept`: its outputs stay although something changed."""

    step: Step
    reasons: list[Reason]
    kept: bool


def states(run: Run, stage: str) -> list[State]:
    """Returns the state of every step of a stage."""
    module = importlib.import_module(f"pipeline.stages.{stage}")
    found = []
    for step in module.steps(run):
        reasons = freshness.stale(step)
        kept = bool(reasons) and hasattr(module, "keeps") and module.keeps(run, step, reasons)
        found.append(State(step, reasons, kept))
    return found


def run_stage(run: Run, stage: str, force: bool = False) -> None:
    """Runs the steps of a stage that are not up to date (all of them with `force`) and records each.

    Raises:
        PipelineError: bad input, or finished work that would be thrown away.
    """
    module, found = importlib.import_module(f"pipeline.stages.{stage}"), states(run, stage)
    if not found:  # evaluate, where no truth is known
        return
    waiting = []
    for state in found:
        if force or (state.reasons and not state.kept):
            waiting.append(state)
        elif state.kept:
            why = "; ".join(reason.text for reason in state.reasons)
            console.print(f"[yellow]{state.step.title}: kept although {why} (--force does it again)[/yellow]")
    if not waiting:
        console.print(f"[dim]{stage}: up to date[/dim]")
        return
    if not force and hasattr(module, "guard"):
        module.guard(run, waiting)
    if stage != "decode":
        _check_inputs(run, stage, waiting)
    why = _why(waiting, force)
    console.print(f"[bold]{stage}[/bold]{': ' if why else ''}{why}")
    started = time.perf_counter()
    arguments = {"fresh": True} if force and stage == "train" else {}
    for step in module.execute(run, [state.step for state in waiting], **arguments):
        now = time.perf_counter()
        freshness.record(step, now - started)
        started = now


def _check_inputs(run: Run, stage: str, waiting: list[State]) -> None:
    written = {path for state in waiting for path in state.step.outputs}  # by an earlier step of the same stage
    for path in dict.fromkeys(path for state in waiting for path in state.step.inputs):
        if not path.exists() and path not in written:
            raise PipelineError(
                f"{stage} reads {workspace.shown(path)}, which does not exist; "
                f"`python -m pipeline run {run.recipe.name} --to {stage}` makes what comes before."
            )


def _why(waiting: list[State], force: bool) -> str:
    if force:
        return "--force"
    texts = dict.fromkeys(reason.text for state in waiting for reason in state.reasons if reason.kind != "never")
    return "; ".join(list(texts)[:4])
