"""Small trainings of the twelve tiny images, for the tests of several rooms."""

import json
from dataclasses import replace
from typing import Any

from conftest import Tiny

from pipeline.core import driver, freshness
from pipeline.core.config.settings import merge
from pipeline.core.run import Run
from pipeline.engines.local import LocalEngine

BASE: dict[str, Any] = {
    "image": {"size": [32, 32]},
    "model": {"architecture": "ConfigurableUnet", "encoder": "plain", "options": {"channels": [8, 16, 16]}},
    "augment": [{"HorizontalFlip": {"p": 0.5}}, {"RandomBrightnessContrast": {"p": 0.5}}],
    "train": {"folds": [0, 1], "epochs": 2, "batch_size": 4, "precision": "32", "learning_rate": 0.003},
    "predict": {"batch_size": 4},
}


def prepare(tiny: Tiny, *changes: dict[str, Any], group: bool = False) -> Run:
    """Sets the recipe and does what comes before training."""
    recipe = {"competition": str(tiny.competition_path)}
    for change in (BASE, *changes):
        recipe = merge(recipe, change)
    tiny.recipe = recipe
    if group:
        tiny.settings["group"] = "patient"
    tiny.save()
    return tiny.run("decode", "clean", "split")


def train(run: Run, *more: str) -> Run:
    for stage in ("train", *more):
        driver.run_stage(run, stage, engine=LocalEngine())
    return run


def named(run: Run, name: str, changes: dict[str, Any] | None = None) -> Run:
    """The same competition under another run name, with other settings."""
    data = merge(run.recipe.model_dump(mode="json"), changes or {})
    return replace(run, recipe=type(run.recipe).model_validate(data), name=name)


def hashes(run: Run) -> dict[str, str]:
    files = sorted(run.folder.rglob("*.safetensors"))
    return {str(path.relative_to(run.folder)): freshness.hash_file(path) for path in files}


def summary(run: Run, fold: int | None = 0) -> dict[str, Any]:
    return json.loads((run.fold_folder(fold) / "fold.json").read_text())
