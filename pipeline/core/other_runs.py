"""Runs that depend on other runs: on their weights as a start, on their predictions as pseudo-labels, or on their
predictions for an ensemble.

Fold k may only use the other run's fold k. Both held out the same images, so that no information about them leaks.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.core import freshness
from pipeline.core.config.recipe import Recipe
from pipeline.core.config.settings import validate
from pipeline.core.errors import PipelineError
from pipeline.core.files import root, shown
from pipeline.core.plan import find_plan
from pipeline.core.recorded import read_recipe
from pipeline.core.run import Member, Run
from pipeline.core.version import program


def find_run(run: Run, name: str, setting: str) -> Run:
    """Returns another run of the same competition, with the recipe that it was trained with and with all folds that it
    has trained, even if these were trained one by one with --folds.

    Raises:
        PipelineError: there is no such run, or it is this run itself.
    """
    folder = run.competition_folder / name
    if name == run.name:
        raise PipelineError(f"{setting} is {name}, which is this run itself; give this run another --name.")
    if not (folder / "recipe.yaml").exists():
        known = sorted(path.parent.name for path in run.competition_folder.glob("*/recipe.yaml"))
        raise PipelineError(
            f"{setting} is {name}, and {shown(folder)} does not exist; train that run first ({program()} run {name}). "
            f"Trained so far: {', '.join(other for other in known if other != run.name) or 'nothing'}."
        )
    recipe = validate(Recipe, read_recipe(folder / "recipe.yaml")["recipe"], shown(folder / "recipe.yaml"))
    numbers = [path.parent.name.removeprefix("fold_") for path in folder.glob("fold_*/manifest.json")]
    trained = sorted(int(number) for number in numbers if number.isdecimal())
    if recipe.trains and trained:
        recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"folds": trained})})
    plan = find_plan(folder)
    # this run's command line and plan belong to another recipe
    return replace(run, recipe=recipe, name=name, options=(), budget=plan.budget if plan else None, until=None)


def runs_of(run: Run) -> list[Run]:
    """Returns the runs whose predictions a run averages: the runs of its ensemble, or the run itself.

    Raises:
        PipelineError: a run of the ensemble does not exist, or was trained on other folds.
    """
    if not run.recipe.ensemble:
        return [run]
    others = [find_run(run, name, "ensemble") for name in run.recipe.ensemble]
    if run.folds_file.exists():  # stages after tune do not need the file
        for other in others:
            check_folds(run, other, "ensemble", run.trained_folds())
    return others


def start_weights(run: Run, member: Member) -> Path | None:
    """Returns the weights from which a training starts (`train.start_from`); None if it does not start from another
    run.

    These are the weights of the same fold, of the same seed if the other run has it, and of the last of several
    snapshots.

    Raises:
        PipelineError: the other run or its fold does not exist, or was trained on other folds.
    """
    name = run.recipe.train.start_from
    if name is None:
        return None
    other = find_run(run, name, "train.start_from")
    seeds = other.recipe.train.seeds
    path = other.weights(Member(member.fold, member.seed if member.seed in seeds else seeds[0]))[-1]
    _same_fold(run, other, member, path, "train.start_from")
    return path


def label_files(run: Run, member: Member) -> list[Path]:
    """Returns the files of test predictions that a training uses as pseudo-labels (`train.pseudo`).

    These are the predictions of the same fold; for the final model, which holds out no images, those of all folds.
    Without `train.pseudo` the list is empty.

    Raises:
        PipelineError: the other run or its fold does not exist, or has other folds or other pixel arrays.
    """
    settings = run.recipe.train.pseudo
    if settings is None:
        return []
    other = find_run(run, settings.recipe, "train.pseudo.recipe")
    own_pixels, other_pixels = (each.pixels for each in (run, other))
    if own_pixels != other_pixels:
        raise PipelineError(
            f"train.pseudo.recipe is {other.name}, whose images are {other_pixels.name} and not {own_pixels.name}: "
            "both runs need the same image.size (or image.store, if set), image.fit, image.border and image.channels."
        )
    if other.recipe.train.final and member.fold is not None:
        raise PipelineError(
            f"train.pseudo.recipe is {other.name}, whose test predictions come from its final model, which was trained "
            "on the images that the folds hold out: train that run without train.final."
        )
    folds = other.test_folds() if member.fold is None else [member.fold]
    for fold in folds:
        _same_fold(run, other, Member(fold, member.seed), other.predictions("test", fold), "train.pseudo.recipe")
    return [other.predictions("test", fold) for fold in folds]


def _same_fold(run: Run, other: Run, member: Member, path: Path, setting: str) -> None:
    """Checks that a file of another run exists, and that its fold held out the same images."""
    if not path.exists():
        raise PipelineError(
            f"{setting} is {other.name}, and {shown(path)} does not exist; finish that run first: "
            f"{other.command()} with {member.title} among train.folds."
        )
    if member.fold is not None:
        check_folds(run, other, setting, [member.fold])


def check_folds(run: Run, other: Run, setting: str, folds: Sequence[int]) -> None:
    """Checks that folds of another run held out the same images.

    Raises:
        PipelineError: the other run was trained on other folds.
    """
    now = (
        freshness.hash_file(run.folds_file) if other.folds_file == run.folds_file and run.folds_file.exists() else None
    )
    for fold in folds:
        manifest = freshness.read_manifest(other.fold_folder(fold) / "manifest.json") or {"inputs": {}}
        used = manifest["inputs"].get(shown(other.folds_file), {}).get("hash")
        if now is None or used != now:
            raise PipelineError(
                f"{setting} is {other.name}, which was not trained on the folds that are now in "
                f"{shown(run.folds_file)}: its fold {fold} has seen images that fold {fold} of this run holds out. "
                "Train that run again on these folds."
            )


def check_trained(run: Run) -> None:
    """Checks that the trained models of a run held out the same images as its folds file does now.

    Raises:
        PipelineError: the folds file has changed since training.
    """
    now = freshness.hash_file(run.folds_file)
    for member in (member for fold in run.trained_folds() for member in run.members(fold)):
        folder = run.fold_folder(member.fold, member.seed)
        record = freshness.read_manifest(folder / "manifest.json") or freshness.read_manifest(folder / "started.json")
        used = record["inputs"].get(shown(run.folds_file), {}).get("hash") if record else now
        if used != now:
            raise PipelineError(
                f"{shown(folder)} was not trained on the folds that are now in {shown(run.folds_file)}: it has seen "
                "images that would count as held out. Restore the old folds, or train a new run: "
                f"{run.command('--name', 'NAME')}"
            )


def check_ensemble(run: Run) -> None:
    """Checks that the runs of an ensemble exist and have out-of-fold predictions for its folds.

    Raises:
        PipelineError: a run does not exist, belongs to another competition, or lacks predictions of some folds.
    """
    missing = {name: _missing_folds(run, name) for name in run.recipe.ensemble}
    for name, folds in missing.items():
        if folds:
            complete = [
                fold for fold in run.trained_folds() if all(fold not in lacking for lacking in missing.values())
            ]
            alternative = f", or continue with --folds {','.join(map(str, complete))}" if complete else ""
            what = f"fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, folds))}"
            raise PipelineError(
                f"ensemble names {name}, which has no out-of-fold predictions of {what}: finish that run first "
                f"({find_run(run, name, 'ensemble').command()}){alternative}."
            )


def _missing_folds(run: Run, name: str) -> list[int]:
    """Returns the folds for which a run of the ensemble lacks predictions or the manifest of their training."""
    competitions = [path.parent.parent.name for path in (root() / "work").glob(f"*/{name}/recipe.yaml")]
    if competitions and run.competition.name not in competitions:
        raise PipelineError(
            f"ensemble names {name}, which is a run of {competitions[0]}, and {run.name} is a run of "
            f"{run.competition.name}: only runs of the same competition can be averaged."
        )
    other = find_run(run, name, "ensemble")
    needed = {
        fold: [*other.oof_predictions(fold), other.fold_folder(fold) / "manifest.json"] for fold in run.trained_folds()
    }
    return [fold for fold, paths in needed.items() if not all(path.exists() for path in paths)]
