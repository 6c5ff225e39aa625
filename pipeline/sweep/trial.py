"""One trial of a sweep: a run that is trained fold by fold, and stopped early if its score is too low.

A trial is the unit of work that an engine runs, in this process or in another. It can be killed at any moment: the
trial resumes from the last checkpoint of its run, and the reported scores of earlier folds are kept.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.core.console import say
from pipeline.core.driver import run_stage
from pipeline.core.engine import Reporter
from pipeline.core.results import honest_score, read_scored
from pipeline.core.run import Run, open_run

STAGES = ("train", "validate", "tune")


@dataclass(frozen=True)
class Trial:
    """The inputs of one trial."""

    number: int
    recipe: str
    quick: bool
    assignments: tuple[str, ...]
    """The settings of the sweep, then those of this trial."""
    name: str
    """The name of the run."""
    folds: tuple[int, ...]
    """All folds that the trial may train, in order."""
    database: Path
    study: str
    prune: bool

    def open(self, folds: int | None = None) -> Run:
        """Returns the trial's run with its first `folds` folds, or with all."""
        chosen = list(self.folds[:folds])
        changes = [*self.assignments, f"train.folds={chosen}", "train.final=false"]
        return open_run(self.recipe, self.quick, self.name, changes)


@dataclass(frozen=True)
class Ended:
    """How a trial ended."""

    state: Literal["complete", "pruned"]
    score: float
    """The honest score on its folds."""


def run_trial(trial: Trial, reporter: Reporter) -> Ended:
    """Trains, predicts and tunes the folds of a trial one after the other, and returns how it ended.

    Raises:
        PipelineError: a stage failed.
    """
    from pipeline.sweep import study  # imports Optuna

    record = study.open_trial(trial)
    scores = record.scores()
    for count in range(len(scores) + 1, len(trial.folds) + 1):
        if trial.prune and count > 1 and record.too_low():
            return Ended("pruned", scores[-1])
        run = trial.open(count)
        for stage in STAGES:
            run_stage(run, stage, mention=False)
        scores.append(honest_score(read_scored(run.folder)))
        record.report(count, scores[-1])
        reporter.advance(f"trial {trial.number}", 1 / len(trial.folds))
        say(f"  trial {trial.number}: fold {count} of {len(trial.folds)}, honest score so far {scores[-1]:.4f}")
    return Ended("complete", scores[-1])
