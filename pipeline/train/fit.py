"""One training with Lightning, from the first epoch to the kept weights."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy

from pipeline.core import deadline, other_runs
from pipeline.core.config.recipe import Recipe
from pipeline.core.console import say
from pipeline.core.errors import PipelineError
from pipeline.core.files import require_space, shown
from pipeline.core.intact import read_array
from pipeline.core.interruption import Interrupted
from pipeline.core.launch import launched
from pipeline.core.run import Member, Run
from pipeline.core.shortage import pass_on
from pipeline.core.trainings import Weights, epochs_of, read_training
from pipeline.decode import table
from pipeline.masks.metrics import metric_of
from pipeline.networks import models, normalization
from pipeline.networks.device import Compute, explain_memory
from pipeline.networks.weights import read_trained
from pipeline.train import callbacks, collectives, devices, feature_cache, trackers
from pipeline.train.batches import loaders, sampling
from pipeline.train.batches.dataset import TrainDataset
from pipeline.train.batches.sharing import Share
from pipeline.train.batches.targets import Chosen
from pipeline.train.checkpoints import AtomicCheckpointIO
from pipeline.train.devices import Place
from pipeline.train.finish import finish
from pipeline.train.module import SegmentationModule
from pipeline.train.pace import FollowPlan


def fit(
    run: Run, member: Member, chosen: Chosen, source: Path | None, compute: Compute, show: tuple[Any, Any, int]
) -> None:
    """Trains one member, resuming from its last checkpoint, and writes its weights, history and summary.

    Args:
        run: the run.
        member: the member to train.
        chosen: the images of the fold.
        source: the file of the encoder's initial weights, or None.
        compute: the device and number format.
        show: the progress bar, its task, and the number of trainings that come after this one.

    Raises:
        PipelineError: the loss is not finite, memory runs out, there are too few devices, or a setting does not suit
            the data.
        TimeIsUp: the time of `--stop-after` is up; the same call resumes from the last finished epoch.
    """
    deadline.check(member.title)
    job, settings = (run, member, chosen, source, compute), run.recipe.train
    if settings.devices * settings.num_nodes == 1 and launched() is None:
        _fit(*job, show, Place())
    else:
        devices.everywhere(_fit, job, show, settings, compute)


def _fit(
    run: Run, member: Member, chosen: Chosen, source: Path | None, compute: Compute, show: tuple[Any, Any, int],
    place: Place,
) -> None:  # fmt: skip
    """Trains on one of the devices of a training. Only the first device writes files and shows progress."""
    _silence_lightning()
    folder = run.fold_folder(member.fold, member.seed)
    images = table.read_table(run.table, "train")
    tests = table.read_table(run.test_table) if run.recipe.train.pseudo else images[:0]
    network, train, valid = network_and_batches(run, member, chosen, (images, tests), source, compute, place)
    feature_cache.install(network, run, member, len(chosen.train) + len(chosen.valid))
    share = train.batch_sampler.share
    planned = run.recipe.train.planned_epochs(-(-len(train) // run.recipe.train.accumulate))
    epochs, curve = _plan(run, member, planned)
    if run.recipe.train.compile:
        network.compile()
    ids = images["image_id"].tolist()
    units = table.units_of(images)[chosen.valid]
    module = SegmentationModule(network, run, member, (ids, tests["image_id"].tolist()), curve, units, planned, share)
    history = callbacks.History(folder)
    observers: list[Any] = []
    pace = [] if run.budget is None else [FollowPlan(run, member, train, len(chosen.valid), show[2], share)]
    if place.rank == 0:
        _require_space(run, member, network)
        progress = callbacks.ShowProgress(run, member, history, *show, *pace)
        observers = [history, progress, callbacks.Pictures(run.recipe.image.channels, network.largest_pixel)]
    averaging, in_time = _averaging(run, compute, train.dataset, share), callbacks.StopInTime()
    trainer = _trainer(run, member, compute, epochs, [*pace, *observers, *averaging, in_time], place)
    trackers.tell_settings(run, trainer.loggers[1:])
    _train(trainer, module, train, valid, folder / "last.ckpt")
    trackers.finish(trainer.loggers[1:])
    devices.leave(place)
    if in_time.stopped:
        raise deadline.stopped(member.title, in_time.epochs, epochs, in_time.longest)
    if place.rank == 0:
        finish(run, member, chosen, ids, train, history, source, compute, network)


def _train(trainer: Trainer, module: SegmentationModule, train: Any, valid: Any, last: Path) -> None:
    """Trains to the end, from the checkpoint `last` if it exists; explains errors of Lightning and torch.

    Raises:
        PipelineError: as `fit`.
    """
    if last.exists():
        say(f"  {module.member.title}: resuming from {shown(last)}")
    resumed: Any = last if last.exists() else None
    try:
        trainer.fit(module, train, valid, ckpt_path=resumed, weights_only=True)
    except SystemExit as ended:
        if isinstance(ended, Interrupted):
            raise
        raise KeyboardInterrupt from None  # in a notebook, Lightning turns it into SystemExit
    except RuntimeError as error:
        explain_memory(error, module.recipe, module.validating)
        raise
    except ValueError as error:
        explain_batch(error, module.recipe)
        raise


def explain_batch(error: ValueError, recipe: Recipe) -> None:
    """Explains an error of torch about a batch of one image; returns if the error is another one.

    Raises:
        PipelineError: the error is that one.
    """
    if "more than 1 value per channel" in str(error):
        raise PipelineError(
            f"{recipe.model.architecture} normalises over the images of a batch and cannot learn from a batch "
            "of one image: set train.batch_size to 2 or more, and train on at least as many images."
        ) from error


def network_and_batches(
    run: Run, member: Member, chosen: Chosen, tables: tuple[Any, Any], source: Path | None, compute: Compute,
    place: Place = Place(),
) -> tuple[Any, Any, Any]:  # fmt: skip
    """Returns the network before its first step, the loader of training batches, and that of held-out batches (None
    without a fold).

    Args:
        run: the run.
        member: the member to train.
        chosen: the images of the fold.
        tables: the table of training images, and that of test images (without rows, if there are no pseudo-labels).
        source: the file of the encoder's initial weights, or None.
        compute: the device and number format.
        place: the device among the devices of the training.

    Raises:
        PipelineError: weights do not fit, or a setting does not suit the data.
    """
    torch.manual_seed(sampling.seed_of(member))
    stored = read_array(run.pixels / "train_images.npy")
    network = models.build_network(run, source, stored.dtype)
    if run.recipe.image.normalize == "encoder":
        _set_encoder_statistics(network, run)
    if start := other_runs.start_weights(run, member):
        _start(network, start)
    train, valid = loaders.loaders(run, member, chosen, *tables, compute, place.rank, place.devices)
    if run.recipe.image.normalize == "dataset":
        network.set_statistics(*loaders.statistics(train.dataset))
    if place.devices > 1:
        collectives.synchronize_norms(network, compute.accelerator == "cpu")
    return network.to(memory_format=torch.channels_last), train, valid


# --- preparation -----------------------------------------------------------------------------------------------------


def _require_space(run: Run, member: Member, network: Any) -> None:
    """Checks that the disk has space for the checkpoints and weights of a training.

    These are two checkpoints (one in place, one being written) of weights with the optimizer's two moments, the best
    weights, and the kept weights.

    Raises:
        PipelineError: the space is not sufficient.
    """
    weights, folder = (
        sum(value.nbytes for value in network.state_dict().values()),
        run.fold_folder(member.fold, member.seed),
    )
    existing = sum(path.stat().st_size for path in folder.glob("*.ckpt"))
    needed = weights * (2 * 3 + 1 + len(run.weights(member))) - existing
    require_space(folder, needed, f"checkpoints and weights of {member.title}", "network")


def _silence_lightning() -> None:
    """Suppresses Lightning's hints, which do not apply here (logging intervals, other products), but not its errors."""
    import logging
    import warnings

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")


def _plan(run: Run, member: Member, planned: int) -> tuple[int, list[float] | None]:
    """Returns the number of epochs and, for the final model, the learning rate of each as a multiple of the recipe's.

    A fold trains for the planned number of epochs. The final model trains for the mean number of epochs after which the
    folds kept their weights, and follows the mean of their learning rates.
    """
    if member.fold is not None:
        if planned > run.recipe.train.epochs:
            say(f"  {member.title}: {planned} epochs, for the {run.recipe.train.steps} steps of train.steps")
        return planned, None
    folders = [run.fold_folder(fold, member.seed) for fold in run.trained_folds()]
    kept = [read_training(folder / "fold.json")["best_epoch"] + 1 for folder in folders]
    epochs = max(1, round(float(np.mean(kept))))
    histories = [epochs_of(folder / "history.json") for folder in folders]
    rates = [[row["learning_rate"] for row in rows if "learning_rate" in row] for rows in histories]
    for folder, of_fold, count in zip(folders, rates, kept, strict=True):
        if len(of_fold) < count:
            raise PipelineError(
                f"{shown(folder / 'history.json')} is damaged ({len(of_fold)} learning rates, but epoch {count} was "
                "kept): restore the file, or train again with --force."
            )
    base = run.recipe.train.learning_rate
    curve = [float(np.mean([rate[epoch] for rate in rates if epoch < len(rate)])) / base for epoch in range(epochs)]
    say(f"  final: {epochs} epochs, the mean over the folds ({', '.join(map(str, kept))})")
    return epochs, curve


def _set_encoder_statistics(network: Any, run: Run) -> None:
    """Sets the mean and deviation that the encoder's weights expect, in units of raw pixels."""
    expected = normalization.statistics_of(run.recipe.model).of_channels(run.recipe.image.channels)
    mean, std = ((values * network.largest_pixel).tolist() for values in expected)
    network.set_statistics(mean, std)


def _start(network: Any, path: Path) -> None:
    """Loads the weights of another run and, with `normalize: encoder`, its normalisation of the pixels.

    Raises:
        PipelineError: the weights belong to another network or to another normalisation.
    """
    state, initial = read_trained(path), network.state_dict()
    if "mean" in state and "mean" not in initial:
        raise PipelineError(
            f"train.start_from: {shown(path)} contains its own mean and deviation, but image.normalize is "
            f"{network.normalize}: set image.normalize=encoder, which uses them."
        )
    if network.normalize == "encoder" and "mean" not in state:
        pixels = read_training(path.with_name("fold.json"), Weights).get("pixels", {})
        known = {name: torch.tensor(pixels[name]).view_as(initial[name]) for name in ("mean", "std") if name in pixels}
        state |= {name: known.get(name, initial[name]) for name in ("mean", "std")}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        pass_on(error)
        summary = " ".join(str(error).split())[:300]
        raise PipelineError(f"train.start_from: {shown(path)} does not fit this recipe's network: {summary}") from None


def _trainer(run: Run, member: Member, compute: Compute, epochs: int, observers: list[Any], place: Place) -> Trainer:
    settings, folder = run.recipe.train, run.fold_folder(member.fold, member.seed)
    strategy: Any = "auto"
    if place.devices > 1:
        # parts of a network may have no gradient, always or in the epochs of freeze_encoder. Buffers are the same on
        # all devices, and sending them would fail in validation, where devices have different numbers of batches
        strategy = DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)
    return Trainer(
        accelerator=compute.accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=strategy,
        use_distributed_sampler=False,
        precision=compute.precision,
        max_epochs=epochs,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=settings.gradient_clip or None,
        logger=[TensorBoardLogger(folder, name="", version="tensorboard"), *trackers.trackers(run, folder)],
        # Lightning detects torchrun and SLURM by itself
        plugins=[AtomicCheckpointIO(), *([LightningEnvironment()] if place.spawned else [])],
        callbacks=[*observers, *_checkpointing(run, member, epochs)],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=0 if run.budget is None else 1,  # planned epochs differ in length
        log_every_n_steps=10**9,
    )


def _averaging(run: Run, compute: Compute, dataset: TrainDataset, share: Share) -> list[Any]:
    """Returns the callback that averages weights, if the recipe asks for one."""
    settings = run.recipe.train
    if settings.ema:
        return [callbacks.MovingAverage(settings.ema, compute.device)]
    if settings.keep == "average" and settings.snapshots == 1:
        return [callbacks.TailAverage(compute, loaders.plain_batches(dataset, settings.batch_size, share))]
    return []


def _checkpointing(run: Run, member: Member, epochs: int) -> list[Any]:
    settings = run.recipe.train
    best = "max" if metric_of(run.competition).higher_is_better else "min"
    monitor, mode = ("valid/score", best) if settings.monitor == "score" else ("valid/smooth_loss", "min")
    common: dict[str, Any] = {"dirpath": run.fold_folder(member.fold, member.seed), "enable_version_counter": False}
    # Lightning stores the moving average only in full checkpoints; one of weights only would hold the current weights
    weights_only = settings.ema is None
    # written after everything else of an epoch; a killed run resumes from it
    last = callbacks.ModelCheckpoint(filename="last", save_on_train_epoch_end=True, **common)
    if member.fold is None:
        return [last]
    if settings.snapshots > 1:
        cycle = settings.epochs // settings.snapshots
        # Lightning identifies checkpoint callbacks by their settings; the unused mode makes this one differ from `last`
        # if a cycle has one epoch
        every: dict[str, Any] = {
            "every_n_epochs": cycle,
            "save_top_k": -1,
            "auto_insert_metric_name": False,
            "mode": "max",
        }
        kept = callbacks.ModelCheckpoint(
            filename="snapshot_{epoch}", save_on_train_epoch_end=True, save_weights_only=weights_only, **every, **common
        )
        return [kept, last]
    best_kept = callbacks.ModelCheckpoint(
        filename="best", monitor=monitor, mode=mode, save_weights_only=weights_only, **common
    )
    checkpointing: list[Any] = [best_kept] if settings.keep == "best" else []
    if settings.early_stopping:
        # a held-out loss that is not finite counts as no improvement; such a training loss stops the fold
        patience, first = settings.early_stopping, round(settings.half_size * epochs)
        stopping: dict[str, Any] = {"monitor": monitor, "mode": mode, "patience": patience, "check_finite": False}
        checkpointing.insert(0, callbacks.EarlyStopping(first, **stopping))
    return [*checkpointing, last]
