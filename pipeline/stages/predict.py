"""Predicts the held-out images and the test images of every fold, by one function: the mean of the fold's models.

    python -m pipeline predict RECIPE

reads   work/<competition>/<run>/fold_<k>/best.safetensors (of all seeds, all snapshots), work/<competition>/pixels_…/
writes  work/<competition>/<run>/predictions/{oof,test}_fold_<k>.npy, test_final.npy: probabilities (N, classes, H, W)
        at the size of the pixel arrays, uint8 (p·255), or float16 of a multiclass competition; beside each a .csv of
        its image ids, and the probabilities of presence where the model has such a head
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from pipeline import table
from pipeline.console import console, progress_bar
from pipeline.errors import PipelineError
from pipeline.folds import read_folds
from pipeline.freshness import Step
from pipeline.probabilities import write_probabilities
from pipeline.workspace import Member, Run, shown

if TYPE_CHECKING:
    import torch

    from pipeline.device import Compute


def steps(run: Run) -> list[Step]:
    """Returns one step a fold and subset, out-of-fold first."""
    settings = run.recipe.predict.model_dump(mode="json", include={"tta", "overlap"}) | {"never": list(run.never)}
    settings |= {"image": run.recipe.image.model_dump(mode="json"), "precision": run.recipe.train.precision}
    wanted: list[tuple[Literal["oof", "test"], int | None]]
    wanted = [("oof", fold) for fold in run.trained_folds()]
    wanted += [("test", fold) for fold in run.test_folds()]
    found = []
    for subset, fold in wanted:
        path, name = run.predictions(subset, fold), "train" if subset == "oof" else "test"
        weights = [path for member in run.members(fold) for path in run.weights(member)]
        inputs = (*weights, run.pixels / f"{name}_images.npy", run.table, run.folds)
        manifest, outputs = path.with_suffix(".manifest.json"), (path, path.with_suffix(".csv"))
        title = f"predict {subset} {Member(fold, 0).title}"
        found.append(Step("predict", title, manifest, inputs, outputs, settings, fold))
    return found


def execute(run: Run, waiting: list[Step]) -> Iterator[Step]:
    """Predicts what is waiting."""
    from pipeline import device

    compute = device.choose(run.recipe.train.precision)
    work = [(step, _rows(run, step)) for step in waiting]
    classes = run.competition.classes
    with progress_bar() as bar:
        task = bar.add_task("predict", total=sum(len(rows) for _, (_, rows, _) in work))
        for step, (subset, rows, ids) in work:
            networks = [_load(run, path, compute) for member in run.members(step.fold) for path in run.weights(member)]
            batches = _probabilities(run, networks, compute, subset, rows)
            shape = (len(rows), len(classes), *run.recipe.image.stored)
            dtype = np.dtype(np.float16 if run.competition.kind == "multiclass" else np.uint8)
            write_probabilities(
                step.outputs[0], shape, dtype, batches, ids, classes, lambda count: bar.advance(task, count)
            )
            models = f", mean of {len(networks)} models" if len(networks) > 1 else ""
            console.print(f"  {step.title}: {len(rows)} images{models} → {shown(step.outputs[0])}")
            yield step


def _rows(run: Run, step: Step) -> tuple[str, np.ndarray, list[str]]:
    if step.outputs[0].name.startswith("test"):
        ids = table.read_table(run.table, "test")["image_id"].tolist()
        return "test", np.arange(len(ids)), ids
    folds = read_folds(run)
    rows = np.flatnonzero(folds["fold"] == step.fold)
    return "train", rows, folds["image_id"].iloc[rows].tolist()


def _load(run: Run, path: Path, compute: "Compute") -> "torch.nn.Module":
    import torch
    from safetensors.torch import load_file

    from pipeline.fit import build_network

    if not path.exists():
        raise PipelineError(f"{shown(path)} does not exist; run the train stage first.")
    network = build_network(run, None)
    network.load_state_dict(load_file(path))
    return network.to(compute.device).to(memory_format=torch.channels_last).eval()


def _probabilities(
    run: Run, networks: "list[torch.nn.Module]", compute: "Compute", subset: str, rows: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Batches of the mean over networks and flips: of masks (n, C, H, W), and of presence (n, C) where there is any."""
    import torch

    from pipeline import loader
    from pipeline.augment import Preprocess
    from pipeline.fit import loader_workers
    from pipeline.tiles import predict_tiled

    preprocess = Preprocess(run.recipe.image.preprocess)
    dataset = loader.PlainDataset(run.pixels, subset, rows, with_masks=False, preprocess=preprocess)
    batches = loader.plain_loader(dataset, run.recipe.predict.batch_size, loader_workers(run, compute))
    flips: list[tuple[int, ...]] = [(), *({"hflip": (3,), "vflip": (2,)}[name] for name in run.recipe.predict.tta)]
    size, overlap = run.recipe.image.size, run.recipe.predict.overlap
    multiclass = run.competition.kind == "multiclass"

    def predict(network: torch.nn.Module, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        output = predict_tiled(network, pixels, size, overlap)
        presence = None if output.presence is None else output.presence.sigmoid()
        if not multiclass:
            return output.mask.sigmoid(), presence
        output.mask[:, list(run.never)] = -torch.inf  # before the softmax, so that the others keep their precision
        return output.mask.softmax(1), presence

    with torch.inference_mode(), compute.autocast():
        for (pixels,) in batches:
            pixels = pixels.to(compute.device, non_blocking=True)
            found = []
            for axes in flips:
                flipped = pixels.flip(axes)
                for mask, presence in (predict(network, flipped) for network in networks):
                    found.append((mask.flip(axes), presence))
            masks, presences = zip(*found, strict=True)
            mean = torch.stack(masks).mean(0)
            mask = mean.half() if multiclass else (mean * 255).round().to(torch.uint8)
            present = None if presences[0] is None else torch.stack(presences).mean(0).float().cpu().numpy()
            yield mask.cpu().numpy(), present
