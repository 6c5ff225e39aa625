"""Uses incomplete predictions of an inference whose time was up or whose process was killed."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from pipeline.core import driver, freshness
from pipeline.core.files import root, writing
from pipeline.core.run import Run
from pipeline.kaggle.bundle import project
from pipeline.masks.scale import scale_of
from pipeline.predictions.files import salvage


def take(whole_run: Run, images: pd.DataFrame, note: Callable[[str], None]) -> Run:
    """Returns the run that makes the submission from the folds that were completely predicted.

    If a run has no complete fold, its first fold is used as far as it was predicted, and the other images get the usual
    answer.

    Args:
        whole_run: the run with all folds.
        images: the table of test images.
        note: function that is called with a text about missing predictions.
    """
    answered = np.ones(len(images), bool)
    for run in project.predicting(whole_run):
        steps = {step.fold: step for state in driver.states(run, "predict") if (step := state.step)}
        whole = [fold for fold, step in steps.items() if step.manifest.exists()]
        if len(whole) < len(steps):
            first = run.test_folds()[0]
            if not whole:
                shape = (len(images), run.planes, *run.recipe.image.stored)
                path, dtype = run.predictions("test", first), scale_of(run.competition).dtype
                path.parent.mkdir(parents=True, exist_ok=True)
                answered &= salvage(path, shape, dtype, images["image_id"].tolist(), run.competition.classes)
                freshness.record(steps[first], 0.0)
            used = "the submission uses these" if whole else "the first one is used as far as it was predicted"
            note(f"{run.name}: {len(whole)} of {len(steps)} folds are predicted; {used}.")
            if not run.recipe.train.final:
                project.change(run, train={"folds": [fold for fold in whole if fold is not None] or [first]})
    if not answered.all():
        late = ~answered & (images["fault"] == "").to_numpy()
        images.loc[late, "fault"] = images.loc[late, "path"] + ": the time was up before it was predicted"
        with writing(whole_run.test_table) as temporary:
            images.to_parquet(temporary, index=False)
        freshness.rewrote(whole_run.test_table.with_suffix(".manifest.json"), whole_run.test_table)
        note(f"{int(late.sum())} of {len(images)} test images were not reached and get the usual answer.")
    return project.opened(whole_run.name, root())
