"""Predicts the held-out images and the test images of every fold, by one function.

    python -m pipeline predict RECIPE

reads   work/<competition>/<run>/fold_<k>/best.safetensors, work/<competition>/pixels_…/{train,test}_images.npy
writes  work/<competition>/<run>/predictions/{oof,test}_fold_<k>.npy: probabilities (N, classes, H, W) at the size of
        the pixel arrays, uint8 (p·255), or float16 of a multiclass competition; beside each a .csv of its image ids
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np

from pipeline import table
from pipeline.console import console, progress_bar
from pipeline.errors import PipelineError
from pipeline.folds import read_folds
from pipeline.probabilities import write_probabilities
from pipeline.stages.train import build_network, loader_workers
from pipeline.workspace import Run, Step, shown

if TYPE_CHECKING:
    import torch

    from pipeline.device import Compute

SUBSETS: tuple[Literal["oof", "test"], ...] = ("oof", "test")


def steps(run: Run) -> list[Step]:
    """Returns one step a fold and subset, out-of-fold first."""
    settings = run.recipe.predict.model_dump(mode="json", include={"tta", "overlap"}) | {"never": list(run.never)}
    settings |= {"image": run.recipe.image.model_dump(mode="json"), "precision": run.recipe.train.precision}
    found = []
    for subset in SUBSETS:
        for fold in run.trained_folds():
            path, name = run.predictions(subset, fold), "train" if subset == "oof" else "test"
            inputs = (run.fold(fold) / "best.safetensors", run.pixels / f"{name}_images.npy", run.table, run.folds)
            manifest, outputs = path.with_suffix(".manifest.json"), (path, path.with_suffix(".csv"))
            found.append(Step("predict", f"predict {subset} fold {fold}", manifest, inputs, outputs, settings, fold))
    return found


def execute(run: Run, waiting: list[Step]) -> Iterator[Step]:
    """Predicts what is waiting."""
    from pipeline import device

    compute = device.choose(run.recipe.train.precision)
    work = [(step, _rows(run, step)) for step in waiting]
    with progress_bar() as bar:
        task = bar.add_task("predict", total=sum(len(rows) for _, (_, rows, _) in work))
        for step, (subset, rows, ids) in work:
            assert step.fold is not None
            network = _load(run, step.fold, compute)
            batches = _probabilities(run, network, compute, subset, rows)
            shape = (len(rows), len(run.competition.classes), *run.recipe.image.stored)
            dtype = np.dtype(np.float16 if run.competition.kind == "multiclass" else np.uint8)
            write_probabilities(step.outputs[0], shape, dtype, batches, ids, lambda count: bar.advance(task, count))
            console.print(f"  {step.title}: {len(rows)} images → {shown(step.outputs[0])}")
            yield step


def _rows(run: Run, step: Step) -> tuple[str, np.ndarray, list[str]]:
    if step.outputs[0].name.startswith("test"):
        ids = table.read_table(run.table, "test")["image_id"].tolist()
        return "test", np.arange(len(ids)), ids
    folds = read_folds(run)
    rows = np.flatnonzero(folds["fold"] == step.fold)
    return "train", rows, folds["image_id"].iloc[rows].tolist()


def _load(run: Run, fold: int, compute: "Compute") -> "torch.nn.Module":
    import torch
    from safetensors.torch import load_file

    path = run.fold(fold) / "best.safetensors"
    if not path.exists():
        raise PipelineError(f"{shown(path)} does not exist; run the train stage first.")
    network = build_network(run, None)
    network.load_state_dict(load_file(path))
    return network.to(compute.device, memory_format=torch.channels_last).eval()


def _probabilities(
    run: Run, network: "torch.nn.Module", compute: "Compute", subset: str, rows: np.ndarray
) -> Iterator[np.ndarray]:
    import torch

    from pipeline import loader
    from pipeline.tiles import predict_tiled

    dataset = loader.PlainDataset(run.pixels, subset, rows, with_masks=False)
    batches = loader.plain_loader(dataset, run.recipe.predict.batch_size, loader_workers(run, compute))
    flips: list[tuple[int, ...]] = [(), *({"hflip": (3,), "vflip": (2,)}[name] for name in run.recipe.predict.tta)]
    size, overlap = run.recipe.image.size, run.recipe.predict.overlap

    def probability(pixels: torch.Tensor) -> torch.Tensor:
        logits = predict_tiled(network, pixels, size, overlap)
        if run.competition.kind != "multiclass":
            return logits.sigmoid()
        logits[:, list(run.never)] = -torch.inf  # before the softmax, so that the others keep their precision
        return logits.softmax(1)

    with torch.inference_mode(), compute.autocast():
        for (pixels,) in batches:
            pixels = pixels.to(compute.device, non_blocking=True)
            mean = torch.stack([probability(pixels.flip(axes)).flip(axes) for axes in flips]).mean(0)
            multiclass = run.competition.kind == "multiclass"
            yield (mean.half() if multiclass else (mean * 255).round().to(torch.uint8)).cpu().numpy()
