"""Trains one model a fold, with early stopping, and goes on where it was interrupted.

    python -m pipeline train RECIPE

reads   folds/<competition>.csv, work/<competition>/pixels_…/train_{images,masks}.npy, the file of train.exclude; and
        work/<competition>/outliers.csv where the folds file does not say all
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
import pandas as pd
import yaml

from pipeline import workspace
from pipeline.competitions.files import read_table
from pipeline.console import console, progress_bar
from pipeline.errors import PipelineError
from pipeline.folds import drop_list, leak_remark, read_folds, read_outliers
from pipeline.targets import Chosen, choose, sources
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
    files = [Path(weights).expanduser()] if weights not in ("none", "imagenet") else []
    if excluded := exclude_file(run):
        files.append(excluded)
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
            precision that the device does not train in, a list of images to exclude that is missing or is none.
    """
    run.trained_folds()
    _read_excluded(run)
    if run.competition.clean.contradictions.policy == "soft":
        _require_masks(run)
    from pipeline import device, models, weights
    from pipeline.augment import Augmentation

    device.choose(run.recipe.train.precision)
    source = weights.resolve(run.recipe.model)
    Augmentation(run.recipe.augment)
    models.build(run.recipe.model, run.recipe.image.channels, len(run.competition.classes), source)


def execute(run: Run, waiting: list[Step], fresh: bool = False) -> Iterator[Step]:
    """Trains the folds one after another; `fresh` starts them anew."""
    from pipeline import device, weights

    # all before the first, so that a fault shows now and not after hours
    chosen = {step.fold: rows_of(run, step.fold) for step in waiting if step.fold is not None}
    for fold, rows in chosen.items():
        console.print(f"  fold {fold}: {rows.note}")
    if remark := leak_remark(run):
        console.print(f"  [yellow]{remark}: every score here flatters[/yellow]")
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
            _train_fold(run, step.fold, chosen[step.fold], source, compute, (bar, task, len(waiting) - index - 1))
            bar.update(task, completed=(index + 1) * run.recipe.train.epochs)
            yield step
            for name in ("last.ckpt", "best.ckpt", started.name):
                (folder / name).unlink(missing_ok=True)


def rows_of(run: Run, fold: int) -> Chosen:
    """Returns the images that a fold trains on and is held against, and what they learn.

    Raises:
        PipelineError: none of either, or a list of images to exclude or to train otherwise that does not fit.
    """
    folds, listed = read_folds(run), _read_excluded(run)
    excluded = np.zeros(len(folds), bool) if listed is None else _find_excluded(run, listed, folds["image_id"])
    use = folds["use"].to_numpy()
    made_from: dict[int, list[int]] = {}
    if np.isin(use, ("relabel", "soft")).any():
        if (use == "soft").any():
            _require_masks(run)
        made_from = sources(read_outliers(run), folds["image_id"], use)
    chosen = choose(fold, folds, excluded, made_from)
    if not len(chosen.train) or not len(chosen.valid):
        also = f" and {run.recipe.train.exclude} (train.exclude)" if excluded.any() else ""
        raise PipelineError(
            f"{shown(run.folds)}{also}: fold {fold} has {chosen.note}; expected one image of each at least: list fewer "
            "to leave out, or correct the folds."
        )
    return chosen


def exclude_file(run: Run) -> Path | None:
    """Returns the path of the file that `train.exclude` names; None where it names none.

    Raises:
        PipelineError: it does not exist, or it is this run's own list of suspects, which follows from its training.
    """
    name = run.recipe.train.exclude
    if not name:
        return None
    path = workspace.root() / Path(name).expanduser()
    if path.resolve() == run.suspects.resolve():
        raise PipelineError(
            f"train.exclude is {shown(run.suspects)}, which this run's own training leads to: copy it (e.g. to "
            "folds/), or train the second round beside the first with `--name NAME`."
        )
    if not path.is_file():
        raise PipelineError(
            f"train.exclude is {name}, and there is no file {shown(path)}; expected a CSV with a column image_id."
        )
    return path


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


def _read_excluded(run: Run) -> pd.DataFrame | None:
    """The table that `train.exclude` names, every value as text."""
    path = exclude_file(run)
    if path is None:
        return None
    table = read_table(path, [])
    if "image_id" not in table:
        columns = ", ".join(f"`{column}`" for column in table)
        raise PipelineError(f"train.exclude: {run.recipe.train.exclude} has no column `image_id`; it has {columns}.")
    return table


def _find_excluded(run: Run, listed: pd.DataFrame, image_ids: pd.Series) -> np.ndarray:
    """Whether each training image is listed (N,) bool."""
    unknown = listed["image_id"][~listed["image_id"].isin(image_ids)]
    if len(unknown):
        some = ", ".join(f"{value!r} (row {row + 2})" for row, value in unknown.head(3).items())
        raise PipelineError(
            f"train.exclude: {run.recipe.train.exclude} lists {len(unknown)} ids that no training image has: {some}; "
            "correct or remove these rows."
        )
    return image_ids.isin(listed["image_id"]).to_numpy()


def _require_masks(run: Run) -> None:
    if run.competition.kind == "multiclass":
        raise PipelineError(
            "`clean.contradictions.policy: soft` needs masks of 0 and 1, which have a mean; "
            f"{run.competition.name} is multiclass: set it to relabel, drop_empty, drop_both or keep, and let no `use` "
            f"in {shown(run.folds)} be soft."
        )


def _started(run: Run, step: Step) -> Path:
    assert step.fold is not None
    return run.fold(step.fold) / "started.json"


def _train_fold(
    run: Run, fold: int, chosen: Chosen, source: Path | None, compute: "Compute", show: tuple[Any, Any, int]
) -> None:
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
        trainer.fit(module, *_loaders(run, fold, chosen, compute), ckpt_path=resumed, weights_only=False)
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


def _loaders(run: Run, fold: int, chosen: Chosen, compute: "Compute") -> tuple[Any, Any]:
    from pipeline import loader
    from pipeline.augment import Augmentation

    settings = run.recipe.train
    workers, seed = loader_workers(run, compute), loader.derive_seed(settings.seed, fold)
    augmentation, image = Augmentation(run.recipe.augment), run.recipe.image
    crop, crops = (image.size, settings.crops or image.crops_to_cover) if image.store else (None, 1)
    train = loader.TrainDataset(run.pixels, chosen.train, augmentation, seed, crop, crops, chosen.targets)
    first = int(chosen.train[0])
    rows, columns = image.size
    augmentation.check(np.array(train.images[first, :rows, :columns]), np.array(train.masks[first, :, :rows, :columns]))
    valid = loader.PlainDataset(run.pixels, "train", chosen.valid, with_masks=True)
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
