"""Predicts the held-out images and the test images of every fold, by one function: the mean of the fold's models.

    python -m pipeline predict RECIPE

reads   work/<competition>/<run>/fold_<k>/best.safetensors (of all seeds, all snapshots), work/<competition>/pixels_…/,
        images.parquet, outliers.csv, folds/<competition>.csv
writes  work/<competition>/<run>/predictions/
            oof_fold_<k>.npy, of further seeds oof_fold_<k>_seed_<s>.npy, and test_fold_<k>.npy, or test_final.npy, the
            mean over seeds: probabilities (N, classes, H, W) at the size of the pixel arrays, uint8 (p·255), or float16
            of a multiclass competition; beside each a .csv of its image ids, and the probabilities of presence where
            the model has such a head
        and with test-time augmentation, from the same pass over the held-out images,
            oof_fold_<k>_plain.npy and .csv, what they would be without; tta.json, what it brings, and whether the test
            images get it; tta.npz, the pixel counts of every held-out image behind that

The held-out images come first: where test-time augmentation brings no more than noise there, the test images are
predicted without. An interrupted file goes on after its last batch. Predictions made elsewhere are checked and taken
over instead (importing.py); an ensemble has none of its own.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from pipeline.core import freshness, other_runs
from pipeline.core.console import console, progress_bar
from pipeline.core.files import shown
from pipeline.core.freshness import Step
from pipeline.core.run import Member, Run, write_recipe
from pipeline.decode import table
from pipeline.predictions import importing
from pipeline.predictions.files import Predicted, partial_folder, write_resumable
from pipeline.split.folds import read_folds
from pipeline.tune import views as tta_gain

READS_FOLDS = "weights"


def steps(run: Run) -> list[Step]:
    """Returns one step a fold and seed for the held-out images, one that measures test-time augmentation, and one a
    fold for the test images."""
    if run.recipe.arrays:
        return importing.steps(run)
    return [*_oof_steps(run), *tta_gain.steps(run), *_test_steps(run)] if run.recipe.trains else []


def execute(run: Run, waiting: list[Step]) -> Iterator[Step]:
    """Predicts what is waiting, and what is out of date as soon as that is done.

    Raises:
        PipelineError: weights are missing, do not fit or give no numbers, or were trained on other folds; or the disk
            is full.
    """
    if run.recipe.arrays:
        yield from importing.execute(run, waiting)
        return
    other_runs.check_trained(run)
    _remove_left_over(run)
    wanted, ids = {step.manifest for step in waiting}, _image_ids(run)
    images = {step.manifest: len(ids(step)[1]) for step in waiting if step.manifest != tta_gain.manifest(run)}
    with progress_bar() as bar:
        task = bar.add_task("predict", total=sum(images.values()))
        for step in _due(run, wanted):
            if step.manifest == tta_gain.manifest(run):
                bar.stop()  # it shows its own
                tta_gain.execute(run)
                bar.start()
            else:
                rows, names = ids(step)
                images[step.manifest] = len(names)
                bar.update(task, total=sum(images.values()))
                _predict(run, step, rows, names, lambda count: bar.advance(task, count))
            yield step
    write_recipe(run)  # other runs ask it how these predictions came about


def _due(run: Run, wanted: set[Path]) -> Iterator[Step]:
    """Yields the steps with these manifests, and those that are out of date when all before them are done."""
    for part in (_oof_steps, tta_gain.steps, _test_steps):
        for step in part(run):
            if step.manifest in wanted or freshness.stale(step):
                yield step


# --- steps -----------------------------------------------------------------------------------------------------------


def _oof_steps(run: Run) -> list[Step]:
    tta, found = run.recipe.predict.tta, []
    for member in (member for fold in run.trained_folds() for member in run.members(fold)):
        kinds = [False] if tta == "none" else [False, True]
        paths = [run.predictions("oof", member.fold, member.seed, plain) for plain in kinds]
        found.append(_step(run, f"oof {member.title}", "train", [member], paths, tta, run.folds))
    return found


def _test_steps(run: Run) -> list[Step]:
    tta, found = tta_gain.of_test(run), []
    for fold in run.test_folds():
        title, path = f"test {Member(fold, 0).title}", run.predictions("test", fold)
        found.append(_step(run, title, "test", run.members(fold), [path], tta))
    return found


def _step(
    run: Run, title: str, subset: str, members: list[Member], paths: list[Path], tta: str, *more: Path
) -> Step:  # fmt: skip
    settings = {"tta": tta, "overlap": run.recipe.predict.overlap, "never": list(run.never)}
    settings |= {"image": run.recipe.image.model_dump(mode="json"), "precision": run.recipe.train.precision}
    weights = [path for member in members for path in run.weights(member)]
    inputs = (*weights, run.pixels / f"{subset}_images.npy", run.table, *more)
    outputs = tuple(file for path in paths for file in (path, path.with_suffix(".csv")))
    manifest, fold, seed = paths[0].with_suffix(".manifest.json"), members[0].fold, members[0].seed
    return Step("predict", f"predict {title}", manifest, inputs, outputs, settings, fold, seed)


# --- one file --------------------------------------------------------------------------------------------------------


def _image_ids(run: Run) -> Callable[[Step], tuple[np.ndarray, list[str]]]:
    """The function from a step to its images: positions in the pixel arrays, and ids."""
    folds, test = read_folds(run), table.read_table(run.table, "test")["image_id"]

    def ids(step: Step) -> tuple[np.ndarray, list[str]]:
        if _is_test(step):
            return np.arange(len(test)), test.tolist()
        rows = np.flatnonzero(folds["fold"] == step.fold)
        return rows, folds["image_id"].iloc[rows].tolist()

    return ids


def _is_test(step: Step) -> bool:
    return step.outputs[0].name.startswith("test")


def _predict(run: Run, step: Step, rows: np.ndarray, ids: list[str], advance: Callable[[int], None]) -> None:
    """Predicts these images into the files of a step, going on where the same step was interrupted."""
    from pipeline.networks import predictor
    from pipeline.networks.views import views

    members = run.members(step.fold) if _is_test(step) else [Member(step.fold, step.seed)]
    paths, tta = [path for path in step.outputs if path.suffix == ".npy"], step.settings["tta"]

    def predict(first: int) -> Iterator[list[Predicted]]:
        if first:
            console.print(f"  {step.title}: going on after {first} of {len(ids)} images")
        subset = "test" if _is_test(step) else "train"
        return predictor.batches(run, members, views(tta), len(paths) > 1, subset, rows[first:], ids[first:])

    classes, size = run.competition.classes, run.recipe.predict.batch_size
    shape = (len(ids), len(classes), *run.recipe.image.stored)
    dtype = np.dtype(np.float16 if run.competition.kind == "multiclass" else np.uint8)
    write_resumable(paths, shape, dtype, predict, ids, classes, advance, _fingerprint(run, step), size)
    models = sum(len(run.weights(member)) for member in members)
    notes = [f"mean of {models} models"] * (models > 1) + [f"test-time augmentation {tta}"] * (tta != "none")
    console.print(f"  {step.title}: {', '.join([f'{len(ids)} images', *notes])} → {shown(paths[0])}")


def _fingerprint(run: Run, step: Step) -> str:
    """What the predictions of a step follow from."""
    known = freshness.known_inputs(step)
    inputs = {name: entry["hash"] for name, entry in freshness.fingerprint(step.inputs, known).items()}
    return json.dumps([step.settings, run.recipe.predict.batch_size, inputs, freshness.code(step.stage)], indent=1)


def _remove_left_over(run: Run) -> None:
    """Removes what other settings left: plain predictions with their figures, and unfinished files."""
    folder = run.tta.parent
    if run.recipe.predict.tta == "none":
        for path in (run.tta, run.tta_counts, tta_gain.manifest(run), *folder.glob("oof_fold_*_plain.*")):
            path.unlink(missing_ok=True)
    expected = {partial_folder(step.outputs[0]) for step in steps(run)}
    for path in folder.glob(".*.partial"):
        if path.is_dir() and path not in expected:
            shutil.rmtree(path)
