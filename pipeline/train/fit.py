"""One training from its first epoch to the weights that are kept, by Lightning."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from rich.markup import escape
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from pipeline.core import freshness, other_runs
from pipeline.core.console import console, peak_memory, say
from pipeline.core.errors import PipelineError
from pipeline.core.files import shown, write_json, writing
from pipeline.core.interruption import Interrupted
from pipeline.core.launch import launched
from pipeline.core.run import Member, Run
from pipeline.core.trainings import Weights, epochs_of, read_training
from pipeline.decode import table
from pipeline.masks.geometry import box_of, geometry_of
from pipeline.masks.metrics import metric_of
from pipeline.masks.scale import scale_of
from pipeline.networks import loader, models, normalization
from pipeline.networks.device import Compute, explain_memory
from pipeline.networks.transforms import Preprocess
from pipeline.networks.weights import read_trained
from pipeline.predictions.files import read_probabilities
from pipeline.train import callbacks, collectives, devices
from pipeline.train.batches import sampling
from pipeline.train.batches.augment import Augmentation
from pipeline.train.batches.dataset import Placing, PseudoLabels, TrainDataset, train_loader
from pipeline.train.batches.mix import Mixer
from pipeline.train.batches.sharing import NoImages, Share
from pipeline.train.batches.targets import Chosen
from pipeline.train.devices import Place
from pipeline.train.module import SegmentationModule

STATISTICS_FROM = 512
"""Of how many training images `image.normalize: dataset` takes mean and deviation, and `train.keep: average` the
statistics of BatchNorm."""


def fit(
    run: Run, member: Member, chosen: Chosen, source: Path | None, compute: Compute, show: tuple[Any, Any, int]
) -> None:
    """Trains one member, going on from its last checkpoint, and leaves its weights, history and summary.

    Args:
        run: the run.
        member: which of its trainings.
        chosen: the images.
        source: the encoder's first weights.
        compute: where and in which number format.
        show: progress bar, its task, and how many trainings come after this one.

    Raises:
        PipelineError: the loss is no number, memory runs out, there are too few devices, or settings that only the data
            can show to be wrong.
    """
    job, settings = (run, member, chosen, source, compute), run.recipe.train
    if settings.devices * settings.num_nodes == 1 and launched() is None:
        _fit(*job, show, Place())
    else:
        devices.everywhere(_fit, job, show, settings, compute)


def _fit(
    run: Run, member: Member, chosen: Chosen, source: Path | None, compute: Compute, show: tuple[Any, Any, int],
    place: Place,
) -> None:  # fmt: skip
    """Trains on one of the devices of a training, the first of which writes and shows."""
    _silence_lightning()
    folder = run.fold_folder(member.fold, member.seed)
    torch.manual_seed(sampling.seed_of(member))
    stored = np.load(run.pixels / "train_images.npy", mmap_mode="r")
    network = models.build_network(run, source, stored.dtype)
    if run.recipe.image.normalize == "encoder":
        _set_encoder_statistics(network, run)
    if start := other_runs.start_weights(run, member):
        _start(network, start)
    images = table.read_table(run.table, "train")
    tests = table.read_table(run.test_table) if run.recipe.train.pseudo else images[:0]
    train, valid = _loaders(run, member, chosen, images, tests, compute, place)
    share = train.batch_sampler.share
    whole = run.recipe.train.planned_epochs(-(-len(train) // run.recipe.train.accumulate))
    epochs, curve = _plan(run, member, whole)
    if run.recipe.image.normalize == "dataset":
        network.set_statistics(*_statistics(train.dataset))
    if place.devices > 1:
        collectives.synchronize_norms(network, compute.accelerator == "cpu")
    network.to(memory_format=torch.channels_last)
    if run.recipe.train.compile:
        network.compile()
    ids = images["image_id"].tolist()
    units = table.units_of(images)[chosen.valid]
    module = SegmentationModule(network, run, member, (ids, tests["image_id"].tolist()), curve, units, whole, share)
    history = callbacks.History(folder)
    watching: list[Any] = []
    if place.rank == 0:
        progress = callbacks.ShowProgress(history, *show[:2], member.title, show[2])
        watching = [history, progress, callbacks.Pictures(run.recipe.image.channels, network.largest_pixel)]
    averaging = _averaging(run, compute, train.dataset, share)
    trainer = _trainer(run, member, compute, epochs, [*watching, *averaging], place)
    _train(trainer, module, train, valid, folder / "last.ckpt")
    for logger in trainer.loggers:
        experiment: Any = getattr(logger, "experiment", None)
        if hasattr(experiment, "finish"):  # or the next fold would write on in this one's W&B run
            experiment.finish()
    devices.leave(place)
    if place.rank == 0:
        _finish(run, member, chosen, ids, train, history, source, compute, network)


def more_loggers(run: Run, folder: Path) -> list[Any]:
    """Returns the loggers that a recipe asks for besides TensorBoard; they write to files and ask no network.

    Raises:
        PipelineError: one is not installed.
    """
    found: list[Any] = []
    for name in run.recipe.train.loggers:
        try:
            if name == "mlflow":
                from lightning.pytorch.loggers import MLFlowLogger

                uri = f"sqlite:///{run.competition_folder / 'mlflow.db'}"
                found.append(MLFlowLogger(run.competition.name, f"{run.name}/{folder.name}", tracking_uri=uri))
            else:
                from lightning.pytorch.loggers import WandbLogger

                title = f"{run.name}/{folder.name}"
                found.append(WandbLogger(title, save_dir=folder, offline=True, project=run.competition.name))
        except ModuleNotFoundError:
            raise PipelineError(
                f"train.loggers asks for {name}, which is not installed: pip install {name}, or leave it out "
                "(TensorBoard is always written)."
            ) from None
    return found


def _train(trainer: Trainer, module: SegmentationModule, train: Any, valid: Any, last: Path) -> None:
    """Trains to the end, from the checkpoint `last` if it exists; explains what Lightning and torch raise.

    Raises:
        PipelineError: as `fit`.
    """
    if last.exists():
        say(f"  {module.member.title}: going on from {shown(last)}")
    resumed: Any = last if last.exists() else None
    try:
        trainer.fit(module, train, valid, ckpt_path=resumed, weights_only=False)
    except SystemExit as ended:
        if isinstance(ended, Interrupted):
            raise
        raise KeyboardInterrupt from None  # which Lightning made this of, in a notebook
    except RuntimeError as error:
        explain_memory(error, module.recipe, module.validating)
        raise
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise PipelineError(
            f"{module.recipe.model.architecture} normalises over the images of a batch and cannot learn from one "
            "alone: set train.batch_size to 2 or more, and train on as many images."
        ) from error


# --- before ----------------------------------------------------------------------------------------------------------


def _silence_lightning() -> None:
    """Lightning's advice does not fit here (logging intervals, other products); its errors still come through."""
    import logging
    import warnings

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")


def _plan(run: Run, member: Member, whole: int) -> tuple[int, list[float] | None]:
    """How many epochs, of `whole` at most for a fold, and, for the final model, the learning rate of each as a multiple
    of the recipe's.

    It trains for as long as the folds did until the weights that they kept, on average, and repeats the mean of their
    learning rates.
    """
    if member.fold is not None:
        if whole > run.recipe.train.epochs:
            say(f"  {member.title}: {whole} epochs, for the {run.recipe.train.steps} steps of train.steps")
        return whole, None
    folders = [run.fold_folder(fold, member.seed) for fold in run.trained_folds()]
    kept = [read_training(folder / "fold.json")["best_epoch"] + 1 for folder in folders]
    epochs = max(1, round(float(np.mean(kept))))
    histories = [epochs_of(folder / "history.json") for folder in folders]
    rates = [[row["learning_rate"] for row in rows if "learning_rate" in row] for rows in histories]
    for folder, found, count in zip(folders, rates, kept, strict=True):
        if len(found) < count:
            raise PipelineError(
                f"{shown(folder / 'history.json')} is damaged ({len(found)} learning rates, and epoch {count} was "
                "kept): put the file back, or train again with --force."
            )
    base = run.recipe.train.learning_rate
    curve = [float(np.mean([one[epoch] for one in rates if epoch < len(one)])) / base for epoch in range(epochs)]
    say(f"  final: {epochs} epochs, the mean of the folds' {', '.join(map(str, kept))}")
    return epochs, curve


def _set_encoder_statistics(network: Any, run: Run) -> None:
    """Sets what the encoder's weights expect, in raw pixels."""
    found = normalization.statistics_of(run.recipe.model).of_channels(run.recipe.image.channels)
    mean, std = ((values * network.largest_pixel).tolist() for values in found)
    network.set_statistics(mean, std)


def _start(network: Any, path: Path) -> None:
    """Takes over another run's weights, and with `normalize: encoder` how that run normalised its pixels.

    Raises:
        PipelineError: they are of another network, or know only pixels that are normalised otherwise.
    """
    state, own = read_trained(path), network.state_dict()
    if "mean" in state and "mean" not in own:
        raise PipelineError(
            f"train.start_from: {shown(path)} has a mean and a deviation of its own, and image.normalize is "
            f"{network.normalize}: set image.normalize=encoder, which takes them over."
        )
    if network.normalize == "encoder" and "mean" not in state:
        pixels = read_training(path.with_name("fold.json"), Weights).get("pixels", {})
        known = {name: torch.tensor(pixels[name]).view_as(own[name]) for name in ("mean", "std") if name in pixels}
        state |= {name: known.get(name, own[name]) for name in ("mean", "std")}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        summary = " ".join(str(error).split())[:300]
        raise PipelineError(f"train.start_from: {shown(path)} does not fit this recipe's network: {summary}") from None


def _loaders(
    run: Run, member: Member, chosen: Chosen, images: pd.DataFrame, tests: pd.DataFrame, compute: Compute, place: Place
) -> tuple[Any, Any]:
    """This device's part of the batches to train on and, with a fold, its held-out batches."""
    settings, image = run.recipe.train, run.recipe.image
    workers = loader.loader_workers(run, compute)
    if workers and settings.workers is None:
        workers = max(1, workers // settings.devices)
    augmentation = Augmentation(run.recipe.augment if settings.augment_on == "loader" else [])
    preprocess = Preprocess(image.preprocess) if image.preprocess else None
    crop, crops = (image.size, settings.crops or image.crops_to_cover) if image.store else (None, 1)
    presence = sampling.presence_of(images, run.competition.classes)[chosen.train]
    train = TrainDataset(
        run.pixels, chosen.train, augmentation, sampling.seed_of(member), crop, crops, chosen.targets,
        preprocess=preprocess, placing=_placing(run, images), mixer=_mixer(run, presence),
        pseudo=_pseudo(run, member, tests),
    )  # fmt: skip
    first = int(chosen.train[0])
    part = (slice(image.size[0]), slice(image.size[1]))
    one = np.array(train.images[(first, *part)])
    if preprocess:
        preprocess.check(np.array(train.images[first]))
    augmentation.check(one, np.array(train.masks[(first, slice(None), *part)]))
    sampler = _sampler(run, train, images, presence)
    training = train_loader(train, settings.batch_size, workers, sampler, place.rank, place.devices)
    if member.fold is None:
        return training, None
    size, share = run.recipe.predict.batch_size, training.batch_sampler.share  # type: ignore[union-attr]
    rows = share.held_out(chosen.valid, size)
    if not len(rows):
        return training, NoImages()
    valid = loader.PlainDataset(run.pixels, "train", rows, with_masks=True, preprocess=preprocess)
    if loader.fits(valid, compute.device):
        return training, loader.ResidentBatches(valid, size, compute.device)
    return training, loader.plain_loader(valid, size, workers)


def _placing(run: Run, images: Any) -> Placing | None:
    if run.recipe.image.position == "fixed":
        return None
    return Placing(_boxes(run, images), run.recipe.image.border)


def _boxes(run: Run, images: Any) -> np.ndarray:
    """Where each image of a table lies in the pixel arrays (N, 4): top, left, height, width."""
    shapes = images[["height", "width"]].astype(int).itertuples(index=False)
    return np.array([box_of((height, width), geometry_of(run.recipe.image)) for height, width in shapes])


def _mixer(run: Run, presence: np.ndarray) -> Mixer | None:
    settings, competition = run.recipe.train.mix, run.competition
    if not (settings.cutmix or settings.mixup or settings.paste):
        return None
    counted = competition.counted
    wanted = [competition.classes.index(one) if one in competition.classes else one for one in settings.paste_classes]
    wrong = [one for one in wanted if one not in counted]
    if wrong:
        raise PipelineError(
            f"train.mix.paste_classes names {', '.join(map(str, wrong))}; expected some of "
            f"{', '.join(competition.classes[one] for one in counted)}, by name or number (0 is the first)."
        )
    occurring = sorted((int(presence[:, one].sum()), one) for one in counted if presence[:, one].any())
    classes = [int(one) for one in wanted] or [one for _, one in occurring[:1]]
    donors = np.flatnonzero(presence[:, classes].any(1))
    return Mixer(settings, competition.kind, len(competition.classes), classes, donors)


def _pseudo(run: Run, member: Member, tests: pd.DataFrame) -> PseudoLabels | None:
    settings, paths = run.recipe.train.pseudo, other_runs.label_files(run, member)
    if settings is None:
        return None
    sources = [read_probabilities(path)[0] for path in paths]
    padded = run.recipe.image.fit == "pad" and run.recipe.image.border == "constant"
    boxes = _boxes(run, tests) if padded else None
    kind, scale = run.competition.kind, scale_of(run.competition)
    return PseudoLabels(sources, settings.weight, settings.min_confidence, kind, scale, boxes)


def _sampler(run: Run, train: TrainDataset, images: Any, presence: np.ndarray) -> sampling.EpochSampler:
    """The order of an epoch; test images with a label count as one that every draw may hold, each its own group."""
    settings, competition = run.recipe.train.sampler, run.competition
    samples = train.samples
    positive = np.asarray(presence[:, -len(competition.foreground) :].any(1))
    found = sampling.weights_of(settings, presence[:, competition.counted], positive)
    weights = groups = None
    if found is not None:
        labelled = np.ones((samples < 0).sum() // train.crops)
        weights = np.tile(np.concatenate([found / found.mean(), labelled]), train.crops)
    if settings.one_per_group:
        if not images["group"].astype(bool).any():
            raise PipelineError(
                "train.sampler.one_per_group needs groups, and the images have none: set `group` in the competition's "
                "YAML, or leave it out."
            )
        names = images["group"].to_numpy().astype(str)
        groups = np.array([names[row] if row >= 0 else f"test {row}" for row in samples])
    return sampling.EpochSampler(len(train), train.seed, weights, groups, run.recipe.train.batch_size)


def _statistics(dataset: Any) -> tuple[list[float], list[float]]:
    """Mean and standard deviation (C,) of training pixels, of evenly spread images, after preprocessing."""
    rows = dataset.rows[np.linspace(0, len(dataset.rows) - 1, min(STATISTICS_FROM, len(dataset.rows))).astype(int)]
    count, total, squares = 0, np.zeros(()), np.zeros(())
    for row in rows:
        image = np.array(dataset.images[row])
        image = dataset.preprocess(image) if dataset.preprocess else image
        pixels = image.reshape(-1, image.shape[2]).astype(np.float64)
        count, total, squares = count + len(pixels), total + pixels.sum(0), squares + (pixels**2).sum(0)
    mean = total / count
    return mean.tolist(), np.sqrt(np.maximum(squares / count - mean**2, 0)).tolist()


def _trainer(run: Run, member: Member, compute: Compute, epochs: int, watching: list[Any], place: Place) -> Trainer:
    settings, folder = run.recipe.train, run.fold_folder(member.fold, member.seed)
    strategy: Any = "auto"
    if place.devices > 1:
        # as on one device, parts of a network may have no gradient, in the epochs of freeze_encoder or always. Buffers
        # are the same everywhere, and would be sent in validation too, where not all predict as many batches
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
        logger=[TensorBoardLogger(folder, name="", version="tensorboard"), *more_loggers(run, folder)],
        # of torchrun and SLURM Lightning knows by itself
        plugins=[callbacks.AtomicCheckpointIO(), *([LightningEnvironment()] if place.spawned else [])],
        callbacks=[*watching, *_checkpointing(run, member, epochs)],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=10**9,
    )


def _averaging(run: Run, compute: Compute, dataset: TrainDataset, share: Share) -> list[Any]:
    """The callback that averages weights, where the recipe asks for one."""
    settings = run.recipe.train
    if settings.ema:
        return [callbacks.MovingAverage(settings.ema, compute.device)]
    if settings.keep == "average" and settings.snapshots == 1:
        return [callbacks.TailAverage(compute, _plain_batches(dataset, settings.batch_size, share))]
    return []


def _plain_batches(dataset: TrainDataset, batch_size: int, share: Share) -> DataLoader:
    """This device's part of batches of evenly spread training images without augmentation, the same ones every time."""
    plain = TrainDataset(
        dataset.folder, dataset.rows, Augmentation([]), dataset.seed, dataset.crop, dataset.crops,
        preprocess=dataset.preprocess,
    )  # fmt: skip
    positions = np.linspace(0, len(plain) - 1, min(STATISTICS_FROM, len(plain))).astype(int).tolist()
    keys: Any = [(0, position) for position in positions]
    return train_loader(plain, batch_size, 0, keys, share.rank, share.devices)


def _checkpointing(run: Run, member: Member, epochs: int) -> list[Any]:
    settings = run.recipe.train
    best = "max" if metric_of(run.competition).higher_is_better else "min"
    monitor, mode = ("valid/score", best) if settings.monitor == "score" else ("valid/smooth_loss", "min")
    common: dict[str, Any] = {"dirpath": run.fold_folder(member.fold, member.seed), "enable_version_counter": False}
    # a checkpoint of weights only holds the current ones: Lightning puts their moving average into whole ones alone
    weights_only = settings.ema is None
    # every epoch, after everything else of that epoch: what a killed run goes on from
    last = callbacks.ModelCheckpoint(filename="last", save_on_train_epoch_end=True, **common)
    if member.fold is None:
        return [last]
    if settings.snapshots > 1:
        cycle = settings.epochs // settings.snapshots
        # Lightning tells checkpoint callbacks apart by their settings: a mode, which nothing asks for, for cycles of 1
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
    found: list[Any] = [best_kept] if settings.keep == "best" else []
    if settings.early_stopping:
        # a held-out loss that is no number counts as one that is no better; a training loss that is none stops the fold
        patience, first = settings.early_stopping, round(settings.half_size * epochs)
        stopping: dict[str, Any] = {"monitor": monitor, "mode": mode, "patience": patience, "check_finite": False}
        found.insert(0, callbacks.EarlyStopping(first, **stopping))
    return [*found, last]


# --- after -----------------------------------------------------------------------------------------------------------


def _finish(
    run: Run, member: Member, chosen: Chosen, ids: list[str], train: Any, history: callbacks.History,
    source: Path | None, compute: Compute, network: Any,
) -> None:  # fmt: skip
    """Writes the weights that are kept, every epoch's counts, and fold.json."""
    folder, rows = run.fold_folder(member.fold, member.seed), history.rows
    kept = _kept(run, member, rows)
    for path, (checkpoint, _) in zip(run.weights(member), kept, strict=True):
        _write_weights(folder / checkpoint, path)
    if history.counts:
        with writing(folder / "epochs.npz") as temporary, temporary.open("wb") as file:
            held_out = np.array([ids[row] for row in chosen.valid])
            np.savez_compressed(file, image_id=held_out, counts=np.stack(history.counts))
    last = kept[-1][1]
    if collapsed := last.get("collapsed"):
        console.print(
            f"[bold red]  WARNING: {escape(member.title)} COLLAPSED, EVERY HELD-OUT IMAGE IS PREDICTED "
            f"{escape(collapsed.upper())}: do not submit this; try a smaller learning rate, another loss, or look "
            "at the masks.[/bold red]"
        )
    _warn_batchnorm_gap(rows[-1], member.title)
    images, seconds = len(rows) * len(train) * run.recipe.train.batch_size, sum(row["train_seconds"] for row in rows)
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
    """What pixels the network knows, and how it normalises them: `mean` and `std` of each channel, in raw pixels."""
    image, known = run.recipe.image, {}
    if image.normalize != "image":
        known = {name: getattr(network, name).flatten().tolist() for name in ("mean", "std")}
    return {"type": str(dataset.images.dtype), "channels": image.channels, "normalize": image.normalize, **known}


def _warn_batchnorm_gap(row: dict[str, Any], title: str) -> None:
    """Says where the network finds in training what it finds in no held-out image."""
    train, valid = row.get("train/dice", 0.0), row.get("valid/dice", 1.0)
    if train > 0.2 and valid < train / 4:
        console.print(
            f"[bold red]  WARNING: {escape(title)}: in its last epoch Dice is {train:.2f} in training and {valid:.2f} "
            "held out. Where the fold is like the others, BatchNorm's running statistics lag: train longer, or take an "
            "encoder whose statistics follow faster (timm-efficientnet-b1, not efficientnet-b1).[/bold red]"
        )


def _write_weights(checkpoint: Path, path: Path) -> None:
    state = torch.load(checkpoint, "cpu", weights_only=False)["state_dict"]
    prefix = "network."
    with writing(path) as temporary:
        save_file({
            key.removeprefix(prefix): value.contiguous() for key, value in state.items() if key.startswith(prefix)
        }, temporary)  # fmt: skip


def _kept(run: Run, member: Member, rows: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """The checkpoint behind each of the weights that are kept, and the row of its epoch."""
    settings = run.recipe.train
    if member.fold is not None and settings.snapshots > 1:
        cycle = settings.epochs // settings.snapshots
        return [(f"snapshot_{epoch}.ckpt", rows[epoch]) for epoch in range(cycle - 1, settings.epochs, cycle)]
    if member.fold is None or settings.keep != "best":
        return [("last.ckpt", rows[-1])]
    # not the best row: a GPU may repeat an epoch after a kill with another score
    best = torch.load(run.fold_folder(member.fold, member.seed) / "best.ckpt", "cpu", weights_only=False)
    return [("best.ckpt", rows[best["epoch"]])]
