"""The command that trains on the decisions of a review."""

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
    """Returns the command that trains with the actions in outliers.csv; "" if this run was, or will be, trained so.

    A finished training is not changed: the command trains a new run, whose name is derived from this one's.

    Args:
        run: the reviewed run.
        found: the content of outliers.csv.
    """
    if run.folds_file.exists() and run.table.exists():
        folds = read_folds(run)
        if (uses_of(found, folds["image_id"]) == folds["use"].to_numpy()).all() and _is_trained_on(run):
            return ""
    if not look.trainings(run):
        return run.command()
    words = list(run.options or (run.recipe.name,))
    if "--name" in words:
        position = words.index("--name")
        del words[position : position + 2]
    return shlex.join([*program().split(), "run", *words, "--name", _name(run)])


def _is_trained_on(run: Run) -> bool:
    """Whether every finished training of the run used the current lists."""
    try:
        states = driver.states(run, "train")
    except PipelineError:  # a fault of the settings is reported when the command runs
        return False
    return not any(reason.kind == "input" for state in states for reason in state.reasons)


def _name(run: Run) -> str:
    """The first free name of the form <run>-reviewed or <run>-reviewed-<number>."""
    base = re.sub(r"-reviewed(-\d+)?$", "", run.name) + "-reviewed"
    names = (base, *(f"{base}-{number}" for number in range(2, 1000)))
    return next(name for name in names if not (run.competition_folder / name).exists())
