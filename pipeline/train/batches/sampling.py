"""Which images an epoch holds, and in which order they come."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from torch.utils.data import Sampler

from pipeline.core.config.training import SamplerSettings
from pipeline.core.errors import PipelineError
from pipeline.core.run import Member

FINAL = 10**6
"""Stands for the fold of the final model, which has none, where a random draw is derived."""


def derive_seed(*parts: int) -> int:
    """Returns a 31-bit seed that depends on all the parts."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0] >> 1)


def seed_of(member: Member) -> int:
    """Returns the seed that every random draw of a training derives from."""
    return derive_seed(member.seed, FINAL if member.fold is None else member.fold)


class EpochSampler(Sampler[tuple[int, int]]):
    """Gives (epoch, position) pairs, drawn anew each epoch; Lightning calls set_epoch.

    Without weights every position comes once. With them, each comes as often as its share of the weights says, rounded
    down or up, in an epoch of the same length. With groups, each run of `batch_size` positions has one of a group. The
    n-th repetition of a position is given as position + n · length.
    """

    def __init__(
        self, length: int, seed: int, weights: np.ndarray | None = None, groups: np.ndarray | None = None,
        batch_size: int = 1,
    ) -> None:  # fmt: skip
        """Raises PipelineError when there are fewer groups than a batch has images."""
        self.length, self.seed, self.epoch = length, seed, 0
        self.weights, self.groups, self.batch_size = weights, groups, batch_size
        if groups is not None and len(np.unique(groups)) < batch_size:
            raise PipelineError(
                f"train.sampler.one_per_group: a batch has {batch_size} images, and there are {len(np.unique(groups))} "
                "groups to train on; set train.batch_size to no more than that."
            )

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch that the next pass is for."""
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
        # each repetition a number of its own, or its augmentation would be drawn alike
        return order + self.length * pd.Series(order).groupby(order).cumcount().to_numpy()


def resample(weights: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Returns positions (count,) int64, each as often as its share of the weights (N,) says, rounded down or up.

    Systematic resampling: one draw for all, so that no image is missed or repeated by chance more than it must be.
    """
    share = np.cumsum(weights) / np.sum(weights)
    return np.searchsorted(share, (random.random() + np.arange(count)) / count, side="right").clip(0, len(weights) - 1)


def one_per_group(order: np.ndarray, groups: np.ndarray, batch_size: int, random: np.random.Generator) -> np.ndarray:
    """Returns positions (batches · batch_size,) of which each run of `batch_size` has one of a group.

    There are as many batches as whole ones fit into the order. Each takes the groups that have most left, so that small
    groups do not run out; what is left over of a large group waits for another epoch. When too few groups have
    any left, positions are used again; when the order holds too few groups, one of each of some others.

    Args:
        order: positions (M,), each group's are used in this order.
        groups: the group of every position.
        batch_size: at most the number of groups.
        random: breaks ties.
    """
    names, member = np.unique(groups[order], return_inverse=True)
    waiting = [order[member == number] for number in range(len(names))]
    absent = random.permutation(np.setdiff1d(groups, names))[: max(0, batch_size - len(names))]
    waiting += [random.permutation(np.flatnonzero(groups == name))[:1] for name in absent]
    batches, left = len(order) // batch_size, np.array([len(positions) for positions in waiting], np.float64)
    left[len(names) :] = 0
    taken, found = np.zeros(len(waiting), np.int64), []
    for _ in range(batches):
        chosen = np.argsort(-(left + random.random(len(left))), kind="stable")[:batch_size]
        found += [waiting[one][taken[one] % len(waiting[one])] for one in random.permutation(chosen)]
        taken[chosen] += 1
        left[chosen] -= 1
    return np.array(found, np.int64)


def presence_of(images: pd.DataFrame, classes: list[str]) -> np.ndarray:
    """Returns which classes (N, C) bool occur in the images of a table."""
    return (images[[f"area_{name}" for name in classes]] > 0).to_numpy()


def weights_of(settings: SamplerSettings, presence: np.ndarray, foreground: np.ndarray) -> np.ndarray | None:
    """Returns how often each image is drawn (N,) beside the others; None: all alike.

    Args:
        settings: what the recipe says.
        presence: which classes that count occur in each image (N, C) bool.
        foreground: whether each image has a mask (N,) bool.

    Raises:
        PipelineError: a share of positive images is asked for, and all or none have a mask.
    """
    weights = np.ones(len(presence))
    if settings.rare_classes:
        share = presence.mean(0)
        rarest = np.where(presence, share, 1.0).min(1)
        weights = np.where(rarest > 0, rarest, 1.0) ** -settings.rare_classes
    if settings.positive_share is not None:
        if foreground.all() or not foreground.any():
            raise PipelineError(
                f"train.sampler.positive_share is {settings.positive_share}, but of {len(foreground)} training images "
                f"{foreground.sum()} have a mask; leave it out."
            )
        for which, share in ((foreground, settings.positive_share), (~foreground, 1 - settings.positive_share)):
            weights[which] *= share / weights[which].sum()
    uneven = settings.rare_classes or settings.positive_share is not None
    return weights if uneven else None
