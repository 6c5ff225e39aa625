"""Predicts the images that each fold holds out, by the fold's models, which have not seen them.

    python -m pipeline validate RECIPE

reads   work/<competition>/<run>/fold_<k>/last.safetensors (of all seeds, all snapshots), work/<competition>/pixels_…/,
        images.parquet, folds/<competition>.csv
writes  work/<competition>/<run>/predictions/
            oof_fold_<k>.npy, of further seeds oof_fold_<k>_seed_<s>.npy: probabilities (N, classes, H, W) at the size
            of the pixel arrays, uint8 (p·255), or float16 of a multiclass competition; beside each a .csv of its image
            ids, and the probabilities of presence where the model has such a head
        and with test-time augmentation, from the same pass over the images,
            oof_fold_<k>_plain.npy and .csv: what they would be without

With `predict.tta` both are kept, the mean over the views and the plain prediction: tune decides between them. An
interrupted file goes on after its last batch. External predictions are checked and taken over instead (importing.py);
an ensemble has none of its own.
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
    """Returns one step per fold and seed; the import of external predictions; none for an ensemble."""
    if run.recipe.arrays:
        return importing.oof_steps(run)
    if not run.recipe.trains:
        return []
    views, found = run.recipe.predict.tta, []
    for member in (member for fold in run.trained_folds() for member in run.members(fold)):
        kinds = [False] if views == "none" else [False, True]
        paths = [run.predictions("oof", member.fold, member.seed, plain) for plain in kinds]
        title = f"validate {member.title}"
        found.append(prediction_step(run, "validate", title, "train", [member], paths, views, run.folds_file))
    return found


def execute(run: Run, waiting: list[Step], runner: StepRunner | None = None) -> Iterator[Step]:
    """Predicts the held-out images of the folds that are waiting.

    Raises:
        PipelineError: weights are missing, damaged, do not fit or give no numbers, or were trained on other folds; or
            the disk is full.
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
    with exclusive_lock(run.folder):  # other processes of this run write it too
        write_recipe(run)  # other runs ask it how these predictions came about


def tidy(run: Run, finished: list[Step]) -> None:
    """Removes what a killed process left beside finished predictions; and writes the run's recipe.yaml again where it
    is damaged or missing."""
    remove_attempts(finished)
    if len(finished) == len(steps(run)) and run.folder.exists():
        # a run of predictions made elsewhere is this process's alone already
        with exclusive_lock(run.folder) if run.recipe.trains else nullcontext():
            write_recipe(run)


def _remove_left_over(run: Run) -> None:
    """Removes what other settings left: plain predictions, and unfinished files; and what version 0.1.0 kept apart."""
    folder = run.predictions("oof", 0).parent
    patterns = ["tta.*"] + ["oof_fold_*_plain.*"] * (run.recipe.predict.tta == "none")
    for path in (path for pattern in patterns for path in folder.glob(pattern)):
        path.unlink()
    remove_unfinished(folder, "oof", steps(run))
