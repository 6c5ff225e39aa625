"""Decides which images an epoch contains, and in which order."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from torch.utils.data import Sampler

from pipeline.core.config.training import SamplerSettings
from pipeline.core.errors import PipelineError
from pipeline.core.run import Member

FINAL = 10**6
"""The number that stands for the fold of the final model in the derivation of seeds."""


def derive_seed(*parts: int) -> int:
    """Returns a 31-bit seed that depends on all the parts."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0] >> 1)


def seed_of(member: Member) -> int:
    """Returns the seed from which all random draws of a training are derived."""
    return derive_seed(member.seed, FINAL if member.fold is None else member.fold)


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, position) pairs in a new random order in each epoch; Lightning calls set_epoch.

    Without weights every position occurs once. With weights, an epoch has the same length, and each position occurs in
    proportion to its weight, rounded down or up. With groups, each batch of `batch_size` consecutive positions has at
    most one position per group. The n-th repetition of a position is yielded as position + n · length.
    """

    def __init__(
        self, length: int, seed: int, weights: np.ndarray | None = None, groups: np.ndarray | None = None,
        batch_size: int = 1,
    ) -> None:  # fmt: skip
        """Takes the number of positions, the seed, and optionally the weight (N,) and the group (N,) of each position.

        Raises:
            PipelineError: there are fewer groups than images in a batch.
        """
        self.length, self.seed, self.epoch = length, seed, 0
        self.weights, self.groups, self.batch_size = weights, groups, batch_size
        if groups is not None and len(np.unique(groups)) < batch_size:
            raise PipelineError(
                f"train.sampler.one_per_group: a batch has {batch_size} images, but there are only "
                f"{len(np.unique(groups))} groups to train on; set train.batch_size to at most this number."
            )

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next pass."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.epoch, int(position)) for position in self._order())

    def __len__(self) -> int:
        return self.length if self.groups is None else self.length // self.batch_size * self.batch_size

    def _order(self) -> np.ndarray:
        random = np.random.default_rng(derive_seed(self.seed, self.epoch))
        if self.weights is None:
            order = random.permutation(self.length)
        else:
            order = random.permutation(resample(self.weights, self.length, random))
        if self.groups is not None:
            order = one_per_group(order, self.groups, self.batch_size, random)
        # each repetition has its own number, so that it is augmented differently
        return order + self.length * pd.Series(order).groupby(order).cumcount().to_numpy()


def resample(weights: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Returns positions (count,) int64, each in proportion to its weight (N,), rounded down or up.

    This is systematic resampling, with a single random number for all positions. It varies the number of repetitions of
    an image as little as possible.
    """
    share = np.cumsum(weights) / np.sum(weights)
    return np.searchsorted(share, (random.random() + np.arange(count)) / count, side="right").clip(0, len(weights) - 1)


def one_per_group(order: np.ndarray, groups: np.ndarray, batch_size: int, random: np.random.Generator) -> np.ndarray:
    """Returns positions (batches · batch_size,) in which each batch has at most one position per group.

    There are as many batches as complete ones fit into the order. Each batch takes the groups with the most remaining
    positions, so that small groups do not run out; surplus positions of large groups are left out of this epoch. If too
    few groups have positions left, positions are reused. If the order contains too few groups, each missing place is
    filled with one position of another group.

    Args:
        order: positions (M,); those of each group are used in this order.
        groups: the group of every position.
        batch_size: the number of positions per batch, at most the number of groups.
        random: breaks ties.
    """
    names, member = np.unique(groups[order], return_inverse=True)
    waiting = [order[member == number] for number in range(len(names))]
    absent = random.permutation(np.setdiff1d(groups, names))[: max(0, batch_size - len(names))]
    waiting += [random.permutation(np.flatnonzero(groups == name))[:1] for name in absent]
    batches, left = len(order) // batch_size, np.array([len(of_group) for of_group in waiting], np.float64)
    left[len(names) :] = 0
    taken, positions = np.zeros(len(waiting), np.int64), []
    for _ in range(batches):
        chosen = np.argsort(-(left + random.random(len(left))), kind="stable")[:batch_size]
        positions += [waiting[number][taken[number] % len(waiting[number])] for number in random.permutation(chosen)]
        taken[chosen] += 1
        left[chosen] -= 1
    return np.array(positions, np.int64)


def presence_of(images: pd.DataFrame, classes: list[str]) -> np.ndarray:
    """Returns which classes (N, C) bool occur in the images of a table."""
    return (images[[f"area_{name}" for name in classes]] > 0).to_numpy()


def weights_of(settings: SamplerSettings, presence: np.ndarray, foreground: np.ndarray) -> np.ndarray | None:
    """Returns the relative frequency of each image (N,) in an epoch; None if all are equally frequent.

    Args:
        settings: the sampler settings of the recipe.
        presence: which of the counted classes occur in each image (N, C) bool.
        foreground: whether each image has a mask (N,) bool.

    Raises:
        PipelineError: a share of positive images is set, but all images or none have a mask.
    """
    weights = np.ones(len(presence))
    if settings.rare_classes:
        share = presence.mean(0)
        rarest = np.where(presence, share, 1.0).min(1)
        weights = np.where(rarest > 0, rarest, 1.0) ** -settings.rare_classes
    if settings.positive_share is not None:
        if foreground.all() or not foreground.any():
            raise PipelineError(
                f"train.sampler.positive_share is {settings.positive_share}, but {foreground.sum()} of "
                f"{len(foreground)} training images have a mask; remove the setting."
            )
        for which, share in ((foreground, settings.positive_share), (~foreground, 1 - settings.positive_share)):
            weights[which] *= share / weights[which].sum()
    uneven = settings.rare_classes or settings.positive_share is not None
    return weights if uneven else None
