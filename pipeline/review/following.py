"""What follows from decisions: the command that trains on them."""

import re
import shlex

import pandas as pd

from pipeline.core import driver
from pipeline.core.errors import PipelineError
from pipeline.core.run import Run
from pipeline.core.version import program
from pipeline.report import look
from pipeline.split.folds import read_folds, uses_of


def command(run: Run, found: pd.DataFrame) -> str:
    """Returns the command that trains on what outliers.csv (`found`) says; "" where a training of this run has seen the
    same, or will.

    A run that has trained stays as it is: the next one is named after it and stands beside it.
    """
    if run.folds_file.exists() and run.table.exists():
        folds = read_folds(run)
        if (uses_of(found, folds["image_id"]) == folds["use"].to_numpy()).all() and _is_trained_on(run):
            return ""
    if not look.trainings(run):
        return run.command()
    words = list(run.options or (run.recipe.name,))
    if "--name" in words:
        place = words.index("--name")
        del words[place : place + 2]
    return shlex.join([*program().split(), "run", *words, "--name", _name(run)])


def _is_trained_on(run: Run) -> bool:
    """Whether no training of the run read other lists than those that are there now."""
    try:
        states = driver.states(run, "train")
    except PipelineError:  # what is wrong with its settings is said when it runs
        return False
    return not any(reason.kind == "input" for state in states for reason in state.reasons)


def _name(run: Run) -> str:
    """A name that no run has yet."""
    base = re.sub(r"-reviewed(-\d+)?$", "", run.name) + "-reviewed"
    names = (base, *(f"{base}-{number}" for number in range(2, 1000)))
    return next(name for name in names if not (run.competition_folder / name).exists())
