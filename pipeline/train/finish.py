"""Writes the results of a training after its last epoch."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.markup import escape
from safetensors.torch import save_file

from pipeline.core import freshness
from pipeline.core.console import console, peak_memory
from pipeline.core.files import write_json, writing
from pipeline.core.plan import FIRST
from pipeline.core.run import Member, Run
from pipeline.networks import models
from pipeline.networks.device import Compute
from pipeline.train import callbacks
from pipeline.train.batches.targets import Chosen
from pipeline.train.checkpoints import read_checkpoint


def finish(
    run: Run, member: Member, chosen: Chosen, ids: list[str], train: Any, history: callbacks.History,
    source: Path | None, compute: Compute, network: Any,
) -> None:  # fmt: skip
    """Writes the kept weights of a training, the pixel counts of every epoch, and fold.json.

    Args:
        run: the run.
        member: the trained member.
        chosen: the images of the fold.
        ids: the ids of all training images.
        train: the training loader.
        history: the epochs.
        source: the file of the encoder's initial weights, if any.
        compute: the device and number format.
        network: the network.
    """
    folder, rows = run.fold_folder(member.fold, member.seed), history.rows
    kept = _kept(run, member, rows)
    for path, (checkpoint, _) in zip(run.weights(member), kept, strict=True):
        write_weights(folder / checkpoint, path)
    if history.counts:
        with writing(folder / "epochs.npz") as temporary, temporary.open("wb") as file:
            held_out = np.array([ids[row] for row in chosen.valid])
            np.savez_compressed(file, image_id=held_out, counts=np.stack(history.counts))
    last = kept[-1][1]
    if collapsed := last.get("collapsed"):
        console.print(
            f"[bold red]  WARNING: {escape(member.title)} COLLAPSED, EVERY HELD-OUT IMAGE IS PREDICTED "
            f"{escape(collapsed.upper())}: do not submit this; try a smaller learning rate or another loss, and check "
            "the masks.[/bold red]"
        )
    if not (run.budget and run.name.endswith(FIRST)):  # after so few batches it is no surprise
        warn_batchnorm_gap(rows[-1], member.title)
    batches = sum(row.get("batches", len(train)) for row in rows)  # rows of earlier versions do not have it
    images, seconds = batches * run.recipe.train.batch_size, sum(row["train_seconds"] for row in rows)
    write_json(folder / "fold.json", {
        "fold": member.fold,
        "seed": member.seed,
        "best_epoch": int(last["epoch"]),
        "best_score": last.get("valid/score"),
        "best_loss": last.get("valid/loss"),
        "collapsed": last.get("collapsed", ""),
        "epochs": len(rows),
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "images": len(train.dataset),
        "images_per_second": round(images / max(seconds, 1e-9), 2),
        "parameters": models.parameter_count(network),
        "memory_gib": peak_memory(),
        "gpu_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if torch.cuda.is_initialized() else None,
        "weights": {"asked": run.recipe.model.weights, "file": str(source) if source else None,
                    "sha256": freshness.hash_file(source) if source else None},
        "pixels": _pixels(run, train.dataset, network),
        "compute": {"accelerator": compute.accelerator, "precision": compute.precision, "reason": compute.reason},
        "sha256": [freshness.hash_file(path) for path in run.weights(member)],
        "environment": freshness.environment(),
        "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
    })  # fmt: skip


def _pixels(run: Run, dataset: Any, network: Any) -> dict[str, Any]:
    """Returns the dtype of the training pixels and their normalisation: `mean` and `std` per channel, in raw pixels."""
    image, statistics = run.recipe.image, {}
    if image.normalize != "image":
        statistics = {name: getattr(network, name).flatten().tolist() for name in ("mean", "std")}
    return {"type": str(dataset.images.dtype), "channels": image.channels, "normalize": image.normalize, **statistics}


def warn_batchnorm_gap(row: dict[str, Any], title: str) -> None:
    """Warns if the Dice of held-out images is far below that of training images, a sign of lagging BatchNorm."""
    train, valid = row.get("train/dice", 0.0), row.get("valid/dice", 1.0)
    if train > 0.2 and valid < train / 4:
        console.print(
            f"[bold red]  WARNING: {escape(title)}: in the last epoch, Dice is {train:.2f} on training images and "
            f"{valid:.2f} on held-out images. If the fold is like the others, BatchNorm's running statistics lag: "
            "train longer, or use an encoder whose statistics adapt faster (timm-efficientnet-b1 instead of "
            "efficientnet-b1).[/bold red]"
        )


def write_weights(checkpoint: Path, path: Path) -> None:
    """Writes the network's weights from a checkpoint to a safetensors file."""
    state = read_checkpoint(checkpoint)["state_dict"]
    prefix = "network."
    with writing(path) as temporary:
        save_file({
            key.removeprefix(prefix): value.contiguous() for key, value in state.items() if key.startswith(prefix)
        }, temporary)  # fmt: skip


def _kept(run: Run, member: Member, rows: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Returns the checkpoint of each file of weights that is kept, and the row of its epoch."""
    settings = run.recipe.train
    if member.fold is not None and settings.snapshots > 1:
        cycle = settings.epochs // settings.snapshots
        return [(f"snapshot_{epoch}.ckpt", rows[epoch]) for epoch in range(cycle - 1, settings.epochs, cycle)]
    if member.fold is None or settings.keep != "best":
        return [("last.ckpt", rows[-1])]
    # the best row is not used, because a GPU may repeat an epoch after a kill with a different score
    best = read_checkpoint(run.fold_folder(member.fold, member.seed) / "best.ckpt")
    return [("best.ckpt", rows[best["epoch"]])]
