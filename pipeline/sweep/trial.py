"""One trial of a sweep: a run that grows fold by fold, and stops where its score so far is too low.

It is the unit of work that an engine runs, in this process or in another. It can be killed at any moment: the same
trial goes on from the last checkpoint of its run, with the scores of the folds that it has told the sweep.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.core.console import say
from pipeline.core.driver import run_stage
from pipeline.core.engine import Reporter
from pipeline.core.results import read_scored
from pipeline.core.run import Run, open_run

STAGES = ("train", "validate", "tune")


@dataclass(frozen=True)
class Trial:
    """What one trial takes."""

    number: int
    recipe: str
    quick: bool
    assignments: tuple[str, ...]
    """What the sweep sets, and what this trial sets."""
    name: str
    """The run's."""
    folds: tuple[int, ...]
    """All that the trial may train, in their order."""
    database: Path
    study: str
    prune: bool

    def open(self, folds: int | None = None) -> Run:
        """Returns the trial's run with so many of its folds, or with all."""
        chosen = list(self.folds[:folds])
        changes = [*self.assignments, f"train.folds={chosen}", "train.final=false"]
        return open_run(self.recipe, self.quick, self.name, changes)


@dataclass(frozen=True)
class Ended:
    """How a trial ended."""

    state: Literal["complete", "pruned"]
    score: float
    """The honest score of its folds."""


def run_trial(trial: Trial, reporter: Reporter) -> Ended:
    """Trains, predicts and tunes a trial's folds, one after the other, and returns how it ended.

    Raises:
        PipelineError: a stage could not be run.
    """
    from pipeline.sweep import study  # Optuna is needed from here on

    told = study.open_trial(trial)
    scores = told.scores()
    for count in range(len(scores) + 1, len(trial.folds) + 1):
        if trial.prune and count > 1 and told.too_low():
            return Ended("pruned", scores[-1])
        run = trial.open(count)
        for stage in STAGES:
            run_stage(run, stage, mention=False)
        scores.append(honest(read_scored(run.folder)))
        told.report(count, scores[-1])
        reporter.advance(f"trial {trial.number}", 1 / len(trial.folds))
        say(f"  trial {trial.number}: fold {count} of {len(trial.folds)}, honest score so far {scores[-1]:.4f}")
    return Ended("complete", scores[-1])


def honest(result: dict[str, Any]) -> float:
    """Returns the honest score that postprocess.json holds: of images that chose nothing."""
    return result.get("scores", {}).get("fold_model", {}).get("score", result["nested"])
