"""The parts of an inference that use a neural network. Each runs in a separate process, so that a process that is
killed or runs out of memory does not affect the rest.

    python -m pipeline infer-part probe|predict ROOT

reads   ROOT, as project.lay_out makes it, and ROOT/asked.json
writes  ROOT/probe.json: the canary's differences and, if requested, the speed; or the test predictions; and after an
        error ROOT/fault.json with its message
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.core import driver, interruption
from pipeline.core.engine import Engine, Needs
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json, write_json
from pipeline.core.run import Run
from pipeline.decode import table
from pipeline.kaggle.bundle import project
from pipeline.networks import device

PARTS = ("probe", "predict")
BATCHES = 6
"""Number of batches on which the speed is measured, after a first batch that is not counted."""


def run_part(part: str, root: Path, engine: Engine) -> None:
    """Runs one part of an inference.

    Raises:
        PipelineError: there is no such part, or as in predict.
    """
    if part not in PARTS:
        raise PipelineError(f"there is no part {part!r}; the parts are {', '.join(PARTS)}.")
    request = read_json(root / "asked.json")
    if "process" in request:
        interruption.end_with_process(request["process"])
    try:
        _run(part, root, request, engine)
    except PipelineError as error:
        write_json(root / project.FAULT, {"said": str(error)})
        raise


def _run(part: str, root: Path, request: dict[str, Any], engine: Engine) -> None:
    run = project.opened(request["run"], root)
    runs = [usable(other) for other in project.predicting(run)]
    if part == "probe":
        write_json(root / "probe.json", _probe(runs, Path(request["bundle"]), engine, request["timed"]))
    else:
        _predict(runs, engine)


def _probe(runs: list[Run], bundle: Path, engine: Engine, timed: bool) -> dict[str, Any]:
    from pipeline.kaggle.bundle import canary

    compute = device.detect(runs[0].recipe.train.precision)
    return {
        "differences": {run.name: canary.difference(run, bundle / "runs" / run.name / "canary.npz") for run in runs},
        "precision": compute.precision,
        "device": compute.reason,
        "devices": engine.at_once(Needs(), 64),
        "seconds": {run.name: speed(run) for run in runs} if timed else {},
    }


def usable(run: Run) -> Run:
    """Returns a run with a precision that this machine supports: the recipe's, or, if it is missing (bf16 on some GPUs,
    fp16 on a CPU), the fastest one."""
    precision, gpu = run.recipe.train.precision, torch.cuda.is_available()
    lacking = precision == "bf16" and gpu and not torch.cuda.is_bf16_supported(including_emulation=False)
    if not lacking and not (precision == "16" and not gpu):
        return run
    train = run.recipe.train.model_copy(update={"precision": "auto"})
    return replace(run, recipe=run.recipe.model_copy(update={"train": train}))


def speed(run: Run) -> float:
    """Returns the time in seconds per network, view and image, measured on the first test images."""
    from pipeline.networks.predictor import batches
    from pipeline.networks.views import views

    size = run.recipe.predict.batch_size
    ids = table.read_table(run.test_table)["image_id"].tolist()[: (BATCHES + 1) * size]
    fold = run.test_folds()[0]
    members = run.members(fold)[:1]
    predicted = batches(run, members, views("none"), False, "test", np.arange(len(ids)), ids)
    images, began = 0, time.perf_counter()
    for number, ((mask, _),) in enumerate(predicted):
        if number == 0 and len(ids) > size:  # the first batch includes the selection of CUDA kernels
            began = time.perf_counter()
            continue
        images += len(mask)
    return (time.perf_counter() - began) / max(1, images) / len(run.weights(members[0]))


def _predict(runs: list[Run], engine: Engine) -> None:
    """Predicts with the first fold of every run, then with the second, and so on, so that complete folds exist when the
    time is up."""
    most = max(len(run.test_folds()) for run in runs)
    for count in range(1, most + 1):
        for run in runs:
            folds = run.trained_folds()[:count]
            train = run.recipe.train.model_copy(update={} if run.recipe.train.final else {"folds": folds})
            partial = replace(run, recipe=run.recipe.model_copy(update={"train": train}))
            driver.run_stage(partial, "predict", mention=False, engine=engine)
