"""The step that validate and predict share: it predicts images of a run with some of its trained models."""

import json
import shutil
from pathlib import Path

from pipeline.core import freshness
from pipeline.core.files import remove
from pipeline.core.freshness import Step
from pipeline.core.run import Member, Run
from pipeline.predictions.files import partial_folder, shards_folder


def prediction_step(
    run: Run, stage: str, title: str, subset: str, members: list[Member], paths: list[Path], views: str, *more: Path
) -> Step:
    """Returns the step of a stage that predicts images with the mean over the models of some members.

    Args:
        run: the run.
        stage: validate or predict.
        title: the name of the step in messages.
        subset: train or test, the pixel arrays that hold the images.
        members: the trained members whose models predict.
        paths: the files of probabilities; a .csv of image ids is written beside each.
        views: the test-time augmentation, as in `predict.tta`.
        more: further files that the step reads.
    """
    settings = {"tta": views, "overlap": run.recipe.predict.overlap, "never": list(run.never)}
    settings |= {"image": run.recipe.image.model_dump(mode="json"), "precision": run.recipe.train.precision}
    settings |= {"backend": run.recipe.predict.backend}
    weights = [path for member in members for path in run.weights(member)]
    listed = run.table if subset == "train" else run.test_table
    inputs = (*weights, run.pixels / f"{subset}_images.npy", listed, *more)
    outputs = tuple(file for path in paths for file in (path, path.with_suffix(".csv")))
    manifest, fold, seed = paths[0].with_suffix(".manifest.json"), members[0].fold, members[0].seed
    return Step(stage, title, manifest, inputs, outputs, settings, fold, seed, defaults={"backend": "torch"})


def remove_unfinished(folder: Path, subset: str, steps: list[Step]) -> None:
    """Removes unfinished files of a subset (oof or test) that belong to other settings than those of these steps."""
    expected = {place(step.outputs[0]) for step in steps for place in (partial_folder, shards_folder)}
    for path in [*folder.glob(f".{subset}_*.partial"), *folder.glob(f".{subset}_*.shards")]:
        if path.is_dir() and path not in expected:
            shutil.rmtree(path)


def remove_attempts(finished: list[Step]) -> None:
    """Removes unfinished files of finished steps: an attempt may be killed just after its results were in place."""
    for path in (path for step in finished for path in step.outputs):
        for place in (partial_folder(path), shards_folder(path)):
            remove(place)


def fingerprint(run: Run, step: Step) -> str:
    """Returns a text that identifies everything the predictions of a step depend on.

    An interrupted file is resumed only if this text is unchanged.
    """
    now = freshness.fingerprint(step.inputs, freshness.known_inputs(step))
    inputs = {name: entry["hash"] for name, entry in now.items()}
    return json.dumps([step.settings, run.recipe.predict.batch_size, inputs, freshness.code(step.stage)], indent=1)
