"""Trains one model a fold, with early stopping, and goes on where it was interrupted.

    python -m pipeline train RECIPE

reads   folds/<competition>.csv, work/<competition>/pixels_…/train_{images,masks}.npy
writes  work/<competition>/<run>/fold_<k>/best.safetensors, history.csv, fold.json, tensorboard/
        and, while the fold is unfinished, last.ckpt, best.ckpt, started.json

Finished training is never thrown away unasked: other settings or other data stop with a sentence; other code is said.
"""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from pipeline import workspace
from pipeline.console import console, progress_bar
from pipeline.errors import PipelineError
from pipeline.stages.split import drop_list, read_folds
from pipeline.workspace import Reason, Run, Step, shown

if TYPE_CHECKING:
    from pipeline.device import Compute

PARTS = {"image", "model", "loss", "augment", "train"}


def steps(run: Run) -> list[Step]:
    """Returns one step a fold."""
    settings = run.recipe.model_dump(mode="json", include=PARTS)
    settings["train"] = {key: value for key, value in settings["train"].items() if key not in ("folds", "workers")}
    settings["metric"] = {
        key: getattr(run.competition, key) for key in ("metric", "ignore_class", "ignored_prediction")
    }
    settings["never"] = list(run.never)
    weights = run.recipe.model.weights
    files = (Path(weights).expanduser(),) if weights not in ("none", "imagenet") else ()
    inputs = (run.folds, run.pixels / "train_images.npy", run.pixels / "train_masks.npy", *files, *drop_list(run))
    return [
        Step("train", f"train fold {fold}", run.fold(fold) / "manifest.json", inputs,
             (run.fold(fold) / "best.safetensors",), settings, fold)
        for fold in run.trained_folds()
    ]  # fmt: skip


def keeps(run: Run, step: Step, reasons: list[Reason]) -> bool:
    """Whether a finished fold stays: it does when nothing but the code changed."""
    return all(reason.kind == "code" for reason in reasons)


def guard(run: Run, waiting: list[Any], kinds: tuple[str, ...] = ("settings", "input")) -> None:
    """Stops before training that exists, finished or not, would be thrown away for reasons of these kinds.

    Raises:
        PipelineError: what changed, and the two ways on.
    """
    for state in waiting:
        reasons = state.reasons
        if reasons[0].kind == "never":
            reasons = workspace.stale(state.step, _started(run, state.step))
        changed = [reason.text for reason in reasons if reason.kind in kinds]
        if changed:
            raise PipelineError(
                f"{shown(state.step.manifest.parent)} holds training made differently ({'; '.join(changed[:4])}). "
                "Keep it and train beside it with `--name NAME`, or throw it away with `--force`."
            )


def preflight(run: Run) -> None:
    """Builds what training needs and throws it away, so that wrong names and missing weights are found before decode.

    Raises:
        PipelineError: weights that cannot be had or do not fit, an unknown architecture, encoder or augmentation, a
            precision that the device does not train in.
    """
    run.trained_folds()
    from pipeline import device, models, weights
    from pipeline.augment import Augmentation

    device.choose(run.recipe.train.precision)
    source = weights.resolve(run.recipe.model)
    Augmentation(run.recipe.augment)
    models.build(run.recipe.model, run.recipe.image.channels, len(run.competition.classes), source)


def execute(run: Run, waiting: list[Step], fresh: bool = False) -> Iterator[Step]:
    """Trains the folds one after another; `fresh` starts them anew."""
    from pipeline import device, weights

    _silence_lightning()
    compute = device.choose(run.recipe.train.precision)
    console.print(f"  {compute.accelerator}, {compute.precision}, channels_last: {compute.reason}")
    source = weights.resolve(run.recipe.model)
    console.print(f"  encoder weights: {source or 'none (from scratch)'}; results → {shown(run.folder)}/fold_*")
    workspace.write_text(run.folder / "recipe.yaml", yaml.safe_dump(workspace.describe(run), sort_keys=False))
    if fresh:  # all at once, so that an interrupted --force goes on without it
        for step in waiting:
            shutil.rmtree(step.manifest.parent, ignore_errors=True)
    with progress_bar() as bar:
        task = bar.add_task("train", total=len(waiting) * run.recipe.train.epochs)
        for index, step in enumerate(waiting):
            assert step.fold is not None
            folder, started = run.fold(step.fold), _started(run, step)
            workspace.record(step, 0, started)
            _train_fold(run, step.fold, source, compute, (bar, task, len(waiting) - index - 1))
            bar.update(task, completed=(index + 1) * run.recipe.train.epochs)
            yield step
            for name in ("last.ckpt", "best.ckpt", started.name):
                (folder / name).unlink(missing_ok=True)


def build_network(run: Run, source: Path | None) -> Any:
    """Returns the recipe's network for this run's pixel arrays, its encoder started from `source`."""
    from pipeline import models

    image = run.recipe.image
    dtype = np.load(run.pixels / "train_images.npy", mmap_mode="r").dtype
    inner = models.build(run.recipe.model, image.channels, len(run.competition.classes), source)
    return models.SegmentationNetwork(inner, image.channels, image.normalize, np.iinfo(dtype).max)


def loader_workers(run: Run, compute: "Compute") -> int:
    """Returns the recipe's number of loader processes; by default none on a CPU, which is busy with the network."""
    if run.recipe.train.workers is not None:
        return run.recipe.train.workers
    return 0 if compute.accelerator == "cpu" else min(16, os.cpu_count() or 1)


def _started(run: Run, step: Step) -> Path:
    assert step.fold is not None
    return run.fold(step.fold) / "started.json"


def _train_fold(run: Run, fold: int, source: Path | None, compute: "Compute", show: tuple[Any, Any, int]) -> None:
    import torch
    from lightning.pytorch import Trainer
    from lightning.pytorch.loggers import TensorBoardLogger

    from pipeline import callbacks, loader
    from pipeline.lightning_module import SegmentationModule

    settings, folder = run.recipe.train, run.fold(fold)
    torch.manual_seed(loader.derive_seed(settings.seed, fold))
    network = build_network(run, source).to(memory_format=torch.channels_last)
    module = SegmentationModule(network, run, fold)
    history = callbacks.History(folder / "history.csv")
    trainer = Trainer(
        accelerator=compute.accelerator,
        devices=1,
        precision=compute.precision,
        max_epochs=settings.epochs,
        gradient_clip_val=settings.gradient_clip or None,
        logger=TensorBoardLogger(folder, name="", version="tensorboard"),
        plugins=[callbacks.AtomicCheckpointIO()],
        callbacks=[history, callbacks.ShowProgress(history, *show[:2], fold, show[2]), *_checkpointing(run, folder)],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=10**9,
    )
    last = folder / "last.ckpt"
    resumed = last if last.exists() else None
    if resumed:
        console.print(f"  fold {fold}: going on from {shown(last)}")
    try:
        trainer.fit(module, *_loaders(run, fold, compute), ckpt_path=resumed, weights_only=False)
    except SystemExit:  # Lightning's answer to Ctrl-C
        console.print("[bold]interrupted[/bold]: the same command goes on from the last finished epoch")
        raise
    _finish(run, fold, history.rows, source, compute, network)


def _silence_lightning() -> None:
    """Lightning's advice does not fit here (logging intervals, other products); its errors still come through."""
    import logging
    import warnings

    import lightning.pytorch  # noqa: F401  (it sets its level when imported)

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")


def _checkpointing(run: Run, folder: Path) -> list[Any]:
    from lightning.pytorch.callbacks import ModelCheckpoint

    from pipeline.callbacks import EarlyStopping

    monitor, mode = ("valid/score", "max") if run.recipe.train.monitor == "score" else ("valid/loss", "min")
    common: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False}
    return [
        EarlyStopping(monitor, mode=mode, patience=run.recipe.train.early_stopping),
        ModelCheckpoint(filename="best", monitor=monitor, mode=mode, save_weights_only=True, **common),
        # every epoch, after everything else of that epoch: what a killed run goes on from
        ModelCheckpoint(filename="last", save_on_train_epoch_end=True, **common),
    ]


def _loaders(run: Run, fold: int, compute: "Compute") -> tuple[Any, Any]:
    from pipeline import loader
    from pipeline.augment import Augmentation

    folds, settings = read_folds(run), run.recipe.train
    used = folds["use"] == "train"
    train_rows = np.flatnonzero(used & (folds["fold"] != fold))
    valid_rows = np.flatnonzero(used & (folds["fold"] == fold))
    if not len(train_rows) or not len(valid_rows):
        raise PipelineError(
            f"{shown(run.folds)}: fold {fold} has {len(train_rows)} images to train on and {len(valid_rows)} held out."
        )
    workers, seed = loader_workers(run, compute), loader.derive_seed(settings.seed, fold)
    augmentation, image = Augmentation(run.recipe.augment), run.recipe.image
    crop, crops = (image.size, settings.crops or image.crops_to_cover) if image.store else (None, 1)
    train = loader.TrainDataset(run.pixels, train_rows, augmentation, seed, crop, crops)
    first = int(train_rows[0])
    rows, columns = image.size
    augmentation.check(np.array(train.images[first, :rows, :columns]), np.array(train.masks[first, :, :rows, :columns]))
    valid = loader.PlainDataset(run.pixels, "train", valid_rows, with_masks=True)
    batch_size = run.recipe.predict.batch_size
    return loader.train_loader(train, settings.batch_size, workers), loader.plain_loader(valid, batch_size, workers)


def _finish(
    run: Run, fold: int, rows: list[dict[str, float]], source: Path | None, compute: "Compute", network: Any
) -> None:
    import torch
    from safetensors.torch import save_file

    from pipeline.models import parameter_count

    folder, monitor = run.fold(fold), run.recipe.train.monitor
    state = torch.load(folder / "best.ckpt", "cpu", weights_only=False)["state_dict"]
    prefix = "network."
    tensors = {key.removeprefix(prefix): value.contiguous() for key, value in state.items() if key.startswith(prefix)}
    with workspace.writing(folder / "best.safetensors") as temporary:
        save_file(tensors, temporary)
    key, better = ("valid/score", max) if monitor == "score" else ("valid/loss", min)
    best = better(rows, key=lambda row: row[key])
    workspace.write_json(folder / "fold.json", {
        "fold": fold,
        "best_epoch": int(best["epoch"]),
        "best_score": best["valid/score"],
        "best_loss": best["valid/loss"],
        "epochs": len(rows),
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "parameters": parameter_count(network),
        "weights": {"asked": run.recipe.model.weights, "file": str(source) if source else None,
                    "sha256": workspace.hash_file(source) if source else None},
        "compute": {"accelerator": compute.accelerator, "precision": compute.precision, "reason": compute.reason},
        "sha256": workspace.hash_file(folder / "best.safetensors"),
        "environment": workspace.environment(),
        "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
    })  # fmt: skip
