"""Builds the loaders of one training: its training batches and its held-out batches."""

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
"""The number of training images from which `image.normalize: dataset` computes mean and deviation, and
`train.keep: average` the statistics of BatchNorm."""


def loaders(
    run: Run, member: Member, chosen: Chosen, images: pd.DataFrame, tests: pd.DataFrame, compute: Compute,
    rank: int = 0, devices: int = 1,
) -> tuple[Any, Any]:  # fmt: skip
    """Returns a device's part of the training batches and, with a fold, of the held-out batches.

    Args:
        run: the run.
        member: the member to train.
        chosen: the images of the fold.
        images: the table of training images.
        tests: the table of test images, if the recipe uses pseudo-labels.
        compute: the device and number format.
        rank: the number of this device.
        devices: the number of devices.

    Raises:
        PipelineError: augmentation or preprocessing does not suit the images, or a setting does not suit the data.
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
    example = loaded(train.images[(first, *part)])
    if preprocess:
        preprocess.check(loaded(train.images[first]))
    augmentation.check(example, np.array(train.masks[(first, slice(None), *part)]))
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
    """Returns the position of each image of a table in the pixel arrays (N, 4): top, left, height, width."""
    shapes = images[["height", "width"]].astype(int).itertuples(index=False)
    return np.array([box_of((height, width), geometry_of(run.recipe.image)) for height, width in shapes])


def _mixer(run: Run, presence: np.ndarray) -> Mixer | None:
    settings, competition = run.recipe.train.mix, run.competition
    if not (settings.cutmix or settings.mixup or settings.paste):
        return None
    counted = competition.counted
    names = competition.classes
    wanted = [names.index(given) if given in names else given for given in settings.paste_classes]
    wrong = [number for number in wanted if number not in counted]
    if wrong:
        raise PipelineError(
            f"train.mix.paste_classes names {', '.join(map(str, wrong))}; expected some of "
            f"{', '.join(names[number] for number in counted)}, by name or number (0 is the first)."
        )
    occurring = sorted((int(presence[:, number].sum()), number) for number in counted if presence[:, number].any())
    classes = [int(number) for number in wanted] or [number for _, number in occurring[:1]]
    donors = np.flatnonzero(presence[:, classes].any(1))
    return Mixer(settings, competition.kind, len(competition.classes), classes, donors)


def _pseudo(run: Run, member: Member, tests: pd.DataFrame) -> PseudoLabels | None:
    settings, paths = run.recipe.train.pseudo, other_runs.label_files(run, member)
    if settings is None:
        return None
    classes = len(run.competition.classes)
    sources = [read_probabilities(path)[0][:, :classes] for path in paths]  # without the separators
    padded = run.recipe.image.fit == "pad" and run.recipe.image.border == "constant"
    boxes = _boxes(run, tests) if padded else None
    kind, scale = run.competition.kind, scale_of(run.competition)
    return PseudoLabels(sources, settings.weight, settings.min_confidence, kind, scale, boxes)


def _sampler(run: Run, train: TrainDataset, images: Any, presence: np.ndarray) -> sampling.EpochSampler:
    """Returns the order of an epoch. Pseudo-labelled test images have an average weight and each is its own group."""
    settings, competition = run.recipe.train.sampler, run.competition
    samples = train.samples
    positive = np.asarray(presence[:, -len(competition.foreground) :].any(1))
    of_images = sampling.weights_of(settings, presence[:, competition.counted], positive)
    weights = groups = None
    if of_images is not None:
        labelled = np.ones((samples < 0).sum() // train.crops)
        weights = np.tile(np.concatenate([of_images / of_images.mean(), labelled]), train.crops)
    if settings.one_per_group:
        if not images["group"].astype(bool).any():
            raise PipelineError(
                "train.sampler.one_per_group needs groups, but the images have none: set `group` in the competition's "
                "YAML, or remove the setting."
            )
        names = images["group"].to_numpy().astype(str)
        groups = np.array([names[row] if row >= 0 else f"test {row}" for row in samples])
    return sampling.EpochSampler(len(train), train.seed, weights, groups, run.recipe.train.batch_size)


def plain_batches(dataset: TrainDataset, batch_size: int, share: Share) -> DataLoader:
    """Returns this device's part of a fixed set of batches of evenly spread training images, without augmentation."""
    plain = TrainDataset(
        dataset.folder, dataset.rows, Augmentation([]), dataset.seed, dataset.crop, dataset.crops,
        preprocess=dataset.preprocess, separators=dataset.separators,
    )  # fmt: skip
    positions = np.linspace(0, len(plain) - 1, min(STATISTICS_FROM, len(plain))).astype(int).tolist()
    keys: Any = [(0, position) for position in positions]
    return train_loader(plain, batch_size, 0, keys, share.rank, share.devices)


def statistics(dataset: Any) -> tuple[list[float], list[float]]:
    """Returns mean and standard deviation (C,) of the pixels of evenly spread training images after preprocessing."""
    rows = dataset.rows[np.linspace(0, len(dataset.rows) - 1, min(STATISTICS_FROM, len(dataset.rows))).astype(int)]
    count, total, squares = 0, np.zeros(()), np.zeros(())
    for row in rows:
        image = loaded(dataset.images[row])
        image = dataset.preprocess(image) if dataset.preprocess else image
        pixels = image.reshape(-1, image.shape[2]).astype(np.float64)
        count, total, squares = count + len(pixels), total + pixels.sum(0), squares + (pixels**2).sum(0)
    mean = total / count
    return mean.tolist(), np.sqrt(np.maximum(squares / count - mean**2, 0)).tolist()
