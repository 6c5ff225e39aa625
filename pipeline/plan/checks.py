"""What may not stand in the way of a plan: trainings without a plan, and settings that contradict it."""

import shutil
from pathlib import Path

from pipeline.core.errors import PipelineError
from pipeline.core.files import shown
from pipeline.core.plan import FIRST
from pipeline.core.run import Run


def forget(opened: Run) -> None:
    """Removes the plans, the used time and the trainings, so that everything is planned and trained again."""
    for name in (opened.name, opened.name + FIRST):
        folder = opened.competition_folder / name
        for file in (opened.plan.name, opened.clock.name):
            (folder / file).unlink(missing_ok=True)
        for training in trainings(folder):
            shutil.rmtree(training, ignore_errors=True)


def trainings(folder: Path) -> list[Path]:
    """Returns the folders in a run's folder that hold weights or a checkpoint."""
    return sorted({file.parent for ending in ("safetensors", "ckpt") for file in folder.glob(f"*/*.{ending}")})


def require_plans(opened: Run) -> None:
    """Checks that a run that is not planned yet has no training, which a plan would make useless.

    Raises:
        PipelineError: it has, or its first run has although it has no plan.
    """
    if opened.plan.exists():
        return
    for folder in (opened.folder, opened.competition_folder / (opened.name + FIRST)):
        if trainings(folder) and not (folder / opened.plan.name).exists():
            raise PipelineError(
                f"{shown(folder)} holds training without {opened.plan.name}: give the planned run another --name, "
                "restore this file, or overwrite the training with --force."
            )


def check_chosen(opened: Run, keys: frozenset[str]) -> None:
    """Checks the name of a planned run, and that no setting of the command line contradicts a plan.

    Raises:
        PipelineError: the name is that of a first run, or a setting lets a training end at another time than planned.
    """
    if not opened.is_planned:
        raise PipelineError(f"--name {opened.name}: names that end in {FIRST} are those of first runs; choose another.")
    train = opened.recipe.train
    unfit = {
        "train.schedule.name=plateau": train.schedule.name == "plateau",
        f"train.snapshots={train.snapshots}": train.snapshots > 1,
        "train.final=true": train.final,
    }
    if wrong := next((text for text, is_set in unfit.items() if is_set and text.partition("=")[0] in keys), ""):
        raise PipelineError(
            f"--time plans trainings with one fixed end, and --set {wrong} does not fit to it: leave one of the two "
            "out."
        )
