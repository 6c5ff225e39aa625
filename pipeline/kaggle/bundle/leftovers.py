"""What an inference uses of predictions that did not come to their end: the time was up, or a process was killed."""

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
    """Returns the run that makes the submission, of the folds that every run has predicted; where a run has no whole
    fold, its first one counts as far as it came, and the other images get the usual answer.

    Args:
        whole_run: the run that was to make the submission.
        images: the table of test images.
        note: is told what is missing.
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
            used = "the submission is of these" if whole else "the first one counts as far as it came"
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
