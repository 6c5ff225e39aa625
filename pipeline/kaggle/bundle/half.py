"""Measures the effect of fp16 weights: runs validate and tune again with them, in a temporary folder."""

import os
import tempfile
from pathlib import Path
from typing import Any

from pipeline.core import driver
from pipeline.core.console import console, say
from pipeline.core.engine import Engine
from pipeline.core.errors import PipelineError
from pipeline.core.files import input_root, root, shown
from pipeline.core.other_runs import runs_of
from pipeline.core.results import read_tuned
from pipeline.core.run import Run
from pipeline.kaggle.bundle import project

COMPARED = ("score", "nested")


def convert(source: Path, target: Path) -> None:
    """Copies weights, with every fp32 tensor converted to fp16."""
    import torch
    from safetensors.torch import load_file, save_file

    target.parent.mkdir(parents=True, exist_ok=True)
    state = load_file(source)
    save_file({name: value.half() if value.dtype == torch.float32 else value for name, value in state.items()}, target)


def measure(run: Run, dataset: Path, engine: Engine | None) -> dict[str, Any]:
    """Returns the out-of-fold scores with the run's fp32 weights and with the bundle's fp16 weights.

    Args:
        run: the run, whose training images are on this machine.
        dataset: folder of the bundle's files.
        engine: the engine that predicts.

    Raises:
        PipelineError: the pixel arrays of the training images are missing.
    """
    for bundled in runs_of(run):
        if bundled.recipe.trains and not (bundled.pixels / "train_images.npy").exists():
            raise PipelineError(
                f"{shown(bundled.pixels)}/train_images.npy does not exist, but the effect of fp16 weights is measured "
                f"on the training images: `{bundled.command('--to', 'split')}` makes it."
            )
    full_result, source, here = (
        read_tuned(run),
        root(),
        {name: os.environ.get(name) for name in ("PIPELINE_ROOT", "PIPELINE_INPUT")},
    )
    os.environ["PIPELINE_INPUT"] = str(input_root())
    say("  running validate and tune again with fp16 weights")
    quiet, console.quiet = console.quiet, True
    try:
        with tempfile.TemporaryDirectory(prefix="half-") as folder:
            place = Path(folder).resolve()
            laid_out = project.lay_out(dataset, run.name, place)
            _link_training(source, place, laid_out)
            for bundled in project.predicting(laid_out):
                driver.run_stage(bundled, "validate", engine=engine)
                driver.run_stage(bundled, "tune")
            if laid_out.recipe.ensemble:
                driver.run_stage(laid_out, "tune")
            half_result = read_tuned(laid_out)
    finally:
        console.quiet = quiet
        for name, value in here.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
    full_result = full_result.get("tuned_by", full_result)  # a bundle is scored with a built-in metric
    return {key: {"fp32": full_result[key], "fp16": half_result[key]} for key in COMPARED}


def _link_training(source: Path, place: Path, run: Run) -> None:
    """Links the files of the training images that the stages read."""
    (place / "folds").symlink_to(source / "folds")
    for path in (source / "work" / run.competition.name).iterdir():
        target = place / "work" / run.competition.name / path.name
        if path.name.startswith("pixels_") or path.is_file():
            target.symlink_to(path)
    for path in (source / "work" / run.competition.name).glob("*/fold_*/manifest.json"):
        fold = place / "work" / run.competition.name / path.parents[1].name / path.parent.name
        if fold.is_dir():
            (fold / path.name).symlink_to(path)
