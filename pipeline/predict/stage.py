"""Predicts the test images with the mean over each fold's models, with the views that tune kept.

    python -m pipeline predict RECIPE

reads   work/<competition>/<run>/fold_<k>/last.safetensors (of all seeds, all snapshots), postprocess.json;
        work/<competition>/pixels_…/test_images.npy, test_images.parquet; and the names of the raw test images, so that
        an array of other images is never predicted. No training images, tables or folds are read
writes  work/<competition>/<run>/predictions/test_fold_<k>.npy, or test_final.npy for a final model, the mean over
        seeds: probabilities (N, classes, H, W) at the size of the pixel arrays, uint8 (p·255), or float16 for a
        multiclass competition; beside each a .csv of its image ids, with presence probabilities if the model has a
        presence head

Test-time augmentation is only computed if tune kept it. An interrupted file is resumed after its last batch. External
predictions are checked and imported instead (importing.py). An ensemble has no predictions of its own.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pipeline.core.console import loading_torch
from pipeline.core.errors import PipelineError
from pipeline.core.files import shown
from pipeline.core.freshness import Step
from pipeline.core.lock import exclusive_lock
from pipeline.core.recorded import write_recipe
from pipeline.core.run import Member, Run
from pipeline.core.units import StepRunner
from pipeline.decode import table
from pipeline.predictions import importing, kept_views
from pipeline.predictions.steps import prediction_step, remove_attempts, remove_unfinished
from pipeline.predictions.test_images import check_decoded, raw_test_files

LESS_MEMORY = "set a smaller predict.batch_size, train.workers or image.size"
ACCEPTS = ("runner",)
READS_FOLDS = "weights"


def steps(run: Run) -> list[Step]:
    """Returns one step per fold, or one for the final model, or the import of external predictions.

    There is no step for an ensemble or without a test set.
    """
    if run.recipe.arrays:
        return importing.test_steps(run)
    if not run.recipe.trains or not run.competition.has_test:
        return []
    views, planned = kept_views.views_of(run), []
    for fold in run.test_folds():
        path, title = run.predictions("test", fold), f"predict {Member(fold, 0).title}"
        raw = raw_test_files(run)
        planned.append(prediction_step(run, "predict", title, "test", run.members(fold), [path], views, *raw))
    return planned


def guard(run: Run, waiting: Sequence[Any]) -> None:
    """Checks that the pixel array holds the current test images, and that tune has decided on the views.

    Raises:
        PipelineError: a raw test file changed after decode; or postprocess.json does not exist or has no decision on
            these views.
    """
    if run.recipe.trains:
        check_decoded(run)
    views = run.recipe.predict.tta
    if not run.recipe.trains or views == "none" or kept_views.decided_views(run) is not None:
        return
    lacks = f"has no decision on predict.tta={views}" if run.postprocess.exists() else "does not exist"
    raise PipelineError(
        f"predict needs tune's decision on test-time augmentation, but {shown(run.postprocess)} {lacks}; "
        f"run `{run.command('--to', 'predict')}`."
    )


def tidy(run: Run, finished: list[Step]) -> None:
    """Removes what a killed process left beside finished predictions."""
    remove_attempts(finished)


def execute(run: Run, waiting: list[Step], runner: StepRunner | None = None) -> Iterator[Step]:
    """Predicts the test images with the models of the waiting steps.

    Raises:
        PipelineError: weights are missing, damaged, do not fit or predict values that are not finite; tune has not
            decided on test-time augmentation yet; or the disk is full.
    """
    if run.recipe.arrays:
        yield from importing.execute(run, waiting)
        return
    with loading_torch():
        from pipeline.networks.predictor import Wanted
        from pipeline.networks.shards import predict_steps

    assert runner is not None
    guard(run, waiting)  # again, because --force skips it
    remove_unfinished(run.predictions("test", 0).parent, "test", steps(run))
    ids = table.read_table(run.test_table)["image_id"].tolist()
    jobs = [Wanted(step, run.members(step.fold), "test", np.arange(len(ids)), ids) for step in waiting]
    yield from predict_steps(run, jobs, runner, "predict")
    with exclusive_lock(run.folder):  # other processes of this run write the same file
        write_recipe(run)  # other runs read there how these predictions were made
