"""Runs of the twelve tiny images with weights that nobody trained, for the tests of validate, tune and predict."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Tiny
from safetensors.torch import load_file, save_file

from pipeline.core import driver
from pipeline.core.config.settings import merge
from pipeline.core.run import Run
from pipeline.networks import predictor
from pipeline.networks.models import build_network

RECIPE: dict[str, Any] = {
    "image": {"size": [32, 64]},
    "model": {"architecture": "ConfigurableUnet", "encoder": "plain", "options": {"channels": [4, 8]}},
    "train": {"folds": [0, 1], "precision": "32"},
    "predict": {"batch_size": 3, "tta": "hflip"},
    "tune": {"method": "fixed"},
}
PREDICTED = ("validate", "tune", "predict")


def split_run(root: Path) -> Iterator[Run]:
    """Yields a run of twelve training images of 40×60 in three folds, and four test images; nothing is trained."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPELINE_ROOT", str(root))
        patch.setenv("PIPELINE_INPUT", str(root / "input"))
        tiny = Tiny(root)
        tiny.recipe = {"competition": str(tiny.competition_path), **RECIPE}
        tiny.save()
        yield tiny.run("decode", "clean", "split")


def run_of_test(split: Run, request: pytest.FixtureRequest) -> Run:
    """The run of one test, named after it, with weights."""
    return with_weights(named(split, request.node.name.replace("[", "-").rstrip("]")))


def named(run: Run, name: str, **changes: Any) -> Run:
    recipe = type(run.recipe).model_validate(merge(run.recipe.model_dump(mode="json"), changes))
    return replace(run, recipe=recipe, name=name)


def changed(run: Run, **changes: Any) -> Run:
    return named(run, run.name, **changes)


def with_weights(run: Run) -> Run:
    """Writes weights as if every member had been trained, each with others."""
    for number, member in enumerate(one for fold in run.trained_folds() for one in run.members(fold)):
        torch.manual_seed(number)
        for path in run.weights(member):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(build_network(run, None, np.dtype(np.uint8)).state_dict(), path)
    return run


def with_other_weights(run: Run, fold: int) -> None:
    """Changes the weights of a fold."""
    (path,) = run.weights(run.members(fold)[0])
    save_file({name: value + 0.3 if "head" in name else value for name, value in load_file(path).items()}, path)


def go(run: Run, *stages: str) -> Run:
    """Runs these stages; by default all that predict or decide on predictions."""
    for stage in stages or PREDICTED:
        driver.run_stage(run, stage)
    return run


def array(path: Path) -> np.ndarray:
    return np.load(path)


def outputs(run: Run) -> dict[str, bytes]:
    """All predictions, but for manifests, which hold times."""
    files = sorted((run.folder / "predictions").rglob("*"))
    return {path.name: path.read_bytes() for path in files if path.is_file() and "manifest" not in path.name}


def times(run: Run) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (run.folder / "predictions").glob("*.npy")}


def newer(run: Run, before: dict[str, int]) -> set[str]:
    """The files of probabilities that were written since."""
    return {name for name, time in times(run).items() if time != before.get(name)}


def reasons(run: Run, stage: str) -> list[str]:
    return [reason.text for state in driver.states(run, stage) for reason in state.reasons]


def assert_up_to_date(run: Run) -> None:
    assert {stage: reasons(run, stage) for stage in PREDICTED} == {stage: [] for stage in PREDICTED}


def images_shown(monkeypatch: pytest.MonkeyPatch, breaks: Iterator[bool] = iter(())) -> list[int]:
    """Returns a list that gets the size of each batch that is predicted; `breaks` says of each whether Ctrl-C comes
    before it."""
    called, seen = predictor.Predictor.__call__, []

    def counting(self: Any, pixels: torch.Tensor) -> Any:
        if next(breaks, False):
            raise KeyboardInterrupt
        seen.append(len(pixels))
        return called(self, pixels)

    monkeypatch.setattr(predictor.Predictor, "__call__", counting)
    return seen
