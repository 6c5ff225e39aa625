"""Predicts the held-out images of each fold with the models of this fold, which have not seen them.

    python -m pipeline validate RECIPE

reads   work/<competition>/<run>/fold_<k>/last.safetensors (of all seeds, all snapshots), work/<competition>/pixels_…/,
        images.parquet, folds/<competition>.csv
writes  work/<competition>/<run>/predictions/
            oof_fold_<k>.npy, for further seeds oof_fold_<k>_seed_<s>.npy: probabilities (N, classes, H, W) at the size
            of the pixel arrays, uint8 (p·255), or float16 for a multiclass competition; beside each a .csv of its image
            ids, with presence probabilities if the model has a presence head
        and with test-time augmentation, from the same pass over the images,
            oof_fold_<k>_plain.npy and .csv: the predictions without test-time augmentation

With `predict.tta`, both the mean over the views and the plain prediction are kept, and tune decides between them. An
interrupted file is resumed after its last batch. External predictions are checked and imported instead (importing.py).
An ensemble has no predictions of its own.
"""

from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np

from pipeline.core import other_runs
from pipeline.core.console import loading_torch
from pipeline.core.freshness import Step
from pipeline.core.lock import exclusive_lock
from pipeline.core.recorded import write_recipe
from pipeline.core.run import Run
from pipeline.core.units import StepRunner
from pipeline.predictions import importing
from pipeline.predictions.steps import prediction_step, remove_attempts, remove_unfinished
from pipeline.split.folds import read_folds

LESS_MEMORY = "set a smaller predict.batch_size, train.workers or image.size"
ACCEPTS = ("runner",)
READS_FOLDS = "weights"


def steps(run: Run) -> list[Step]:
    """Returns one step per fold and seed, or the import of external predictions; no step for an ensemble."""
    if run.recipe.arrays:
        return importing.oof_steps(run)
    if not run.recipe.trains:
        return []
    views, planned = run.recipe.predict.tta, []
    for member in (member for fold in run.trained_folds() for member in run.members(fold)):
        kinds = [False] if views == "none" else [False, True]
        paths = [run.predictions("oof", member.fold, member.seed, plain) for plain in kinds]
        title = f"validate {member.title}"
        planned.append(prediction_step(run, "validate", title, "train", [member], paths, views, run.folds_file))
    return planned


def execute(run: Run, waiting: list[Step], runner: StepRunner | None = None) -> Iterator[Step]:
    """Predicts the held-out images of the waiting folds.

    Raises:
        PipelineError: weights are missing, damaged, do not fit, predict values that are not finite, or were trained on
            other folds; or the disk is full.
    """
    if run.recipe.arrays:
        yield from importing.execute(run, waiting)
        return
    with loading_torch():
        from pipeline.networks.predictor import Wanted
        from pipeline.networks.shards import predict_steps

    assert runner is not None
    other_runs.check_trained(run)
    _remove_left_over(run)
    folds, jobs = read_folds(run), []
    for step in waiting:
        rows = np.flatnonzero(folds["fold"] == step.fold)
        members = [member for member in run.members(step.fold) if member.seed == step.seed]
        jobs.append(Wanted(step, members, "train", rows, folds["image_id"].iloc[rows].tolist()))
    yield from predict_steps(run, jobs, runner, "validate")
    with exclusive_lock(run.folder):  # other processes of this run write the same file
        write_recipe(run)  # other runs read there how these predictions were made


def tidy(run: Run, finished: list[Step]) -> None:
    """Removes what a killed process left beside finished predictions, and rewrites the run's recipe.yaml if it is
    damaged or missing."""
    remove_attempts(finished)
    if len(finished) == len(steps(run)) and run.folder.exists():
        # a run of external predictions is already locked by this process
        with exclusive_lock(run.folder) if run.recipe.trains else nullcontext():
            write_recipe(run)


def _remove_left_over(run: Run) -> None:
    """Removes plain predictions and unfinished files of other settings, and files that only version 0.1.0 wrote."""
    folder = run.predictions("oof", 0).parent
    patterns = ["tta.*"] + ["oof_fold_*_plain.*"] * (run.recipe.predict.tta == "none")
    for path in (path for pattern in patterns for path in folder.glob(pattern)):
        path.unlink()
    remove_unfinished(folder, "oof", steps(run))
