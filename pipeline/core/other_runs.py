"""Other runs that one builds on: whose weights it starts from, whose labels of test images it takes, or whose
predictions it averages.

Fold k may know only what the other run's fold k knows: both held the same images out, and nothing about them comes in.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.core import freshness
from pipeline.core.config.recipe import Recipe
from pipeline.core.config.settings import validate
from pipeline.core.errors import PipelineError
from pipeline.core.files import root, shown
from pipeline.core.recorded import read_recipe
from pipeline.core.run import Member, Run
from pipeline.core.version import program


def find_run(run: Run, name: str, setting: str) -> Run:
    """Returns another run of the same competition, with the recipe that it was trained by, and of all folds that it
    trained, be it one after the other with --folds.

    Raises:
        PipelineError: there is none, or it is this run itself.
    """
    folder = run.competition_folder / name
    if name == run.name:
        raise PipelineError(f"{setting} is {name}, which is this run itself; train it under another --name.")
    if not (folder / "recipe.yaml").exists():
        known = sorted(path.parent.name for path in run.competition_folder.glob("*/recipe.yaml"))
        raise PipelineError(
            f"{setting} is {name}, and there is no {shown(folder)}; train it first ({program()} run {name}). "
            f"Trained so far: {', '.join(one for one in known if one != run.name) or 'nothing'}."
        )
    recipe = validate(Recipe, read_recipe(folder / "recipe.yaml")["recipe"], shown(folder / "recipe.yaml"))
    numbers = [path.parent.name.removeprefix("fold_") for path in folder.glob("fold_*/manifest.json")]
    trained = sorted(int(number) for number in numbers if number.isdecimal())
    if recipe.trains and trained:
        recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"folds": trained})})
    return replace(run, recipe=recipe, name=name, options=())  # this run's command line trains another recipe


def runs_of(run: Run) -> list[Run]:
    """Returns the runs whose predictions a run averages: itself, or those of its ensemble.

    Raises:
        PipelineError: one of them is not there, or was trained on other folds.
    """
    if not run.recipe.ensemble:
        return [run]
    others = [find_run(run, name, "ensemble") for name in run.recipe.ensemble]
    if run.folds_file.exists():  # which nothing after tune needs
        for other in others:
            check_folds(run, other, "ensemble", run.trained_folds())
    return others


def start_weights(run: Run, member: Member) -> Path | None:
    """Returns the weights that a training starts from, by `train.start_from`: the same fold's, the same seed's where
    the other run has it, the last of several snapshots; None where it starts anew.

    Raises:
        PipelineError: the other run or its fold is not there, or its folds are others.
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
    """Returns the test predictions that a training learns, by `train.pseudo`: those of the same fold, and of all folds
    for the final model, which holds nothing out; none without it.

    Raises:
        PipelineError: the other run or its fold is not there, or its folds or its pixel arrays are others.
    """
    settings = run.recipe.train.pseudo
    if settings is None:
        return []
    other = find_run(run, settings.recipe, "train.pseudo.recipe")
    mine, theirs = (one.pixels for one in (run, other))
    if mine != theirs:
        raise PipelineError(
            f"train.pseudo.recipe is {other.name}, whose images are {theirs.name} and not {mine.name}: both runs need "
            "the same image size (image.store where it is set), fit, border and channels."
        )
    if other.recipe.train.final and member.fold is not None:
        raise PipelineError(
            f"train.pseudo.recipe is {other.name}, whose test predictions are by its final model, which has seen the "
            "images that every fold holds out: train that run without train.final."
        )
    folds = other.test_folds() if member.fold is None else [member.fold]
    for fold in folds:
        _same_fold(run, other, Member(fold, member.seed), other.predictions("test", fold), "train.pseudo.recipe")
    return [other.predictions("test", fold) for fold in folds]


def _same_fold(run: Run, other: Run, member: Member, path: Path, setting: str) -> None:
    """Checks that a file of another run is there, and that its fold held the same images out."""
    if not path.exists():
        raise PipelineError(
            f"{setting} is {other.name}, and {shown(path)} does not exist; finish that run first: "
            f"{program()} run {other.name} with {member.title} among train.folds."
        )
    if member.fold is not None:
        check_folds(run, other, setting, [member.fold])


def check_folds(run: Run, other: Run, setting: str, folds: Sequence[int]) -> None:
    """Checks that folds of another run held the same images out.

    Raises:
        PipelineError: it was trained on other folds.
    """
    now = (
        freshness.hash_file(run.folds_file) if other.folds_file == run.folds_file and run.folds_file.exists() else None
    )
    for fold in folds:
        manifest = freshness.read_manifest(other.fold_folder(fold) / "manifest.json") or {"inputs": {}}
        used = manifest["inputs"].get(shown(other.folds_file), {}).get("hash")
        if now is None or used != now:
            raise PipelineError(
                f"{setting} is {other.name}, which was trained on other folds than {shown(run.folds_file)} holds now: "
                f"its fold {fold} has seen images that this fold {fold} holds out. Train it again on these folds."
            )


def check_trained(run: Run) -> None:
    """Checks that what a run trained held the images out that its folds file holds out now.

    Raises:
        PipelineError: the folds file has changed since.
    """
    now = freshness.hash_file(run.folds_file)
    for member in (member for fold in run.trained_folds() for member in run.members(fold)):
        folder = run.fold_folder(member.fold, member.seed)
        record = freshness.read_manifest(folder / "manifest.json") or freshness.read_manifest(folder / "started.json")
        used = record["inputs"].get(shown(run.folds_file), {}).get("hash") if record else now
        if used != now:
            raise PipelineError(
                f"{shown(folder)} was trained on other folds than {shown(run.folds_file)} holds now: it has seen "
                "images that would count as held out. Put the old folds back, or train anew: "
                f"{run.command('--name', 'NAME')}"
            )


def check_ensemble(run: Run) -> None:
    """Checks that the runs of an ensemble are there, and have out-of-fold predictions of its folds.

    Raises:
        PipelineError: one is not, is of another competition, or lacks folds; these are named.
    """
    missing = {name: _missing_folds(run, name) for name in run.recipe.ensemble}
    for name, folds in missing.items():
        if folds:
            there = [fold for fold in run.trained_folds() if all(fold not in one for one in missing.values())]
            rest = f", or go on with --folds {','.join(map(str, there))}" if there else ""
            what = f"fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, folds))}"
            raise PipelineError(
                f"ensemble names {name}, which has no out-of-fold predictions of {what}: finish that run first "
                f"({program()} run {name}){rest}."
            )


def _missing_folds(run: Run, name: str) -> list[int]:
    """The folds of which a run of the ensemble has no predictions, or does not say what they are."""
    found = [path.parent.parent.name for path in (root() / "work").glob(f"*/{name}/recipe.yaml")]
    if found and run.competition.name not in found:
        raise PipelineError(
            f"ensemble names {name}, which is a run of {found[0]}, and {run.name} is one of {run.competition.name}: "
            "only runs of one competition can be averaged."
        )
    other = find_run(run, name, "ensemble")
    needed = {
        fold: [*other.oof_predictions(fold), other.fold_folder(fold) / "manifest.json"] for fold in run.trained_folds()
    }
    return [fold for fold, paths in needed.items() if not all(path.exists() for path in paths)]
