"""The batches of one training, and of the images that it is held against."""

from typing import Any

import numpy as np
import pandas as pd
from torch.utils.data import DataLoader

from pipeline.core import other_runs
from pipeline.core.errors import PipelineError
from pipeline.core.run import Member, Run
from pipeline.masks.geometry import box_of, geometry_of
from pipeline.masks.pixels import loaded
from pipeline.masks.scale import scale_of
from pipeline.networks import loader
from pipeline.networks.device import Compute
from pipeline.networks.transforms import Preprocess
from pipeline.predictions.files import read_probabilities
from pipeline.train.batches import sampling
from pipeline.train.batches.augment import Augmentation
from pipeline.train.batches.dataset import Placing, PseudoLabels, TrainDataset, train_loader
from pipeline.train.batches.mix import Mixer
from pipeline.train.batches.sharing import NoImages, Share
from pipeline.train.batches.targets import Chosen

STATISTICS_FROM = 512
"""Of how many training images `image.normalize: dataset` takes mean and deviation, and `train.keep: average` the
statistics of BatchNorm."""


def loaders(
    run: Run, member: Member, chosen: Chosen, images: pd.DataFrame, tests: pd.DataFrame, compute: Compute,
    rank: int = 0, devices: int = 1,
) -> tuple[Any, Any]:  # fmt: skip
    """Returns a device's part of the batches to train on and, with a fold, of its held-out batches.

    Args:
        run: the run.
        member: which of its trainings.
        chosen: the images.
        images: the table of training images.
        tests: that of test images, where the recipe learns from them.
        compute: where the network runs.
        rank: the number of the device.
        devices: how many there are.

    Raises:
        PipelineError: augmentation or preprocessing that does not fit the images, or settings that only the data can
            show to be wrong.
    """
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
        pseudo=_pseudo(run, member, tests), separators=run.separators,
    )  # fmt: skip
    first = int(chosen.train[0])
    part = (slice(image.size[0]), slice(image.size[1]))
    one = loaded(train.images[(first, *part)])
    if preprocess:
        preprocess.check(loaded(train.images[first]))
    augmentation.check(one, np.array(train.masks[(first, slice(None), *part)]))
    sampler = _sampler(run, train, images, presence)
    training = train_loader(train, settings.batch_size, workers, sampler, rank, devices)
    if member.fold is None:
        return training, None
    size, share = run.recipe.predict.batch_size, training.batch_sampler.share  # type: ignore[union-attr]
    rows = share.held_out(chosen.valid, size)
    if not len(rows):
        return training, NoImages()
    valid = loader.PlainDataset(
        run.pixels, "train", rows, with_masks=True, preprocess=preprocess, separators=run.separators
    )
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
    classes = len(run.competition.classes)
    sources = [read_probabilities(path)[0][:, :classes] for path in paths]  # not what separates objects
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


def plain_batches(dataset: TrainDataset, batch_size: int, share: Share) -> DataLoader:
    """Returns this device's part of batches of evenly spread training images, without augmentation, always the same."""
    plain = TrainDataset(
        dataset.folder, dataset.rows, Augmentation([]), dataset.seed, dataset.crop, dataset.crops,
        preprocess=dataset.preprocess, separators=dataset.separators,
    )  # fmt: skip
    positions = np.linspace(0, len(plain) - 1, min(STATISTICS_FROM, len(plain))).astype(int).tolist()
    keys: Any = [(0, position) for position in positions]
    return train_loader(plain, batch_size, 0, keys, share.rank, share.devices)


def statistics(dataset: Any) -> tuple[list[float], list[float]]:
    """Returns mean and standard deviation (C,) of training pixels, of evenly spread images, after preprocessing."""
    rows = dataset.rows[np.linspace(0, len(dataset.rows) - 1, min(STATISTICS_FROM, len(dataset.rows))).astype(int)]
    count, total, squares = 0, np.zeros(()), np.zeros(())
    for row in rows:
        image = loaded(dataset.images[row])
        image = dataset.preprocess(image) if dataset.preprocess else image
        pixels = image.reshape(-1, image.shape[2]).astype(np.float64)
        count, total, squares = count + len(pixels), total + pixels.sum(0), squares + (pixels**2).sum(0)
    mean = total / count
    return mean.tolist(), np.sqrt(np.maximum(squares / count - mean**2, 0)).tolist()
