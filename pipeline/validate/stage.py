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

import shutil
from collections.abc import Iterator

import numpy as np

from pipeline.core import other_runs
from pipeline.core.console import progress_bar
from pipeline.core.freshness import Step
from pipeline.core.run import Run, write_recipe
from pipeline.predictions import importing
from pipeline.predictions.files import partial_folder
from pipeline.predictions.steps import prediction_step
from pipeline.split.folds import read_folds

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


def execute(run: Run, waiting: list[Step]) -> Iterator[Step]:
    """Predicts the held-out images of the folds that are waiting.

    Raises:
        PipelineError: weights are missing, damaged, do not fit or give no numbers, or were trained on other folds; or
            the disk is full.
    """
    if run.recipe.arrays:
        yield from importing.execute(run, waiting)
        return
    from pipeline.networks.predictor import predict_step

    other_runs.check_trained(run)
    _remove_left_over(run)
    folds = read_folds(run)
    rows_of = {step.title: np.flatnonzero(folds["fold"] == step.fold) for step in waiting}
    with progress_bar() as bar:
        task = bar.add_task("validate", total=sum(map(len, rows_of.values())))
        for step in waiting:
            rows = rows_of[step.title]
            members = [member for member in run.members(step.fold) if member.seed == step.seed]
            ids = folds["image_id"].iloc[rows].tolist()
            predict_step(run, step, members, "train", rows, ids, lambda count: bar.advance(task, count))
            yield step
    write_recipe(run)  # other runs ask it how these predictions came about


def _remove_left_over(run: Run) -> None:
    """Removes what other settings left: plain predictions, and unfinished files; and what version 0.1.0 kept apart."""
    folder = run.predictions("oof", 0).parent
    patterns = ["tta.*"] + ["oof_fold_*_plain.*"] * (run.recipe.predict.tta == "none")
    for path in (path for pattern in patterns for path in folder.glob(pattern)):
        path.unlink()
    expected = {partial_folder(step.outputs[0]) for step in steps(run)}
    for path in folder.glob(".oof_*.partial"):
        if path.is_dir() and path not in expected:
            shutil.rmtree(path)
