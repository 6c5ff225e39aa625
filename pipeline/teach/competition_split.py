"""Which images of a made competition are training and test, public and private, and their ids."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.clean.duplicates import connected_groups, near_pairs
from pipeline.core.config.cleaning import DuplicateSettings
from pipeline.core.errors import PipelineError
from pipeline.teach.examples import Example, groups_of

LETTERS = "bcdfghjkmnpqrstvwxz"
"""Of ids: no vowels, which make words; no digits, which spreadsheets take for numbers."""
LENGTH = 8
DRAWS = 300
"""Splits that are drawn; the one that fits best is taken."""


@dataclass(frozen=True)
class Plan:
    """What becomes of each image; every list has one entry per image of the source."""

    ids: list[str]
    """Its new id, drawn at random, so that neither its order, its source nor its mask follows from it."""
    test: np.ndarray
    """Whether it is a test image (N,) bool."""
    public: np.ndarray
    """Whether a test image is scored publicly (N,) bool."""
    clusters: np.ndarray
    """The number of the set of images that stay together (N,) int64: of one group, or near-duplicates."""
    groups: list[str]
    """The name of a training image's group as students see it; "" without groups, and of test images."""

    @property
    def usage(self) -> list[str]:
        """What solution.csv says of each image."""
        return [
            ("Public" if public else "Private") if test else ""
            for test, public in zip(self.test, self.public, strict=True)
        ]


def plan(
    examples: Sequence[Example], test: float, public: float, seed: int, duplicates: DuplicateSettings | None
) -> Plan:
    """Returns a split of images into training and test, and of the test images into public and private.

    Images of one group, and near-duplicates, stay on one side of both. The share of images that show each class is
    alike on both sides.

    Args:
        examples: the images.
        test: the share of them that is test.
        public: the share of test images that is public.
        seed: of the draws; students who know it and the source know the split.
        duplicates: what near-duplicates are; None keeps only groups together.

    Raises:
        PipelineError: too few sets of images for both sides.
    """
    rng = np.random.default_rng(seed)
    clusters = together(examples, duplicates)
    present = np.stack([example.present for example in examples])
    is_test = _chosen(clusters, present, test, rng, "--test")
    places = np.flatnonzero(is_test)
    is_public = np.zeros(len(examples), bool)
    is_public[places] = _chosen(clusters[places], present[places], public, rng, "--public")
    return Plan(
        _drawn_ids(len(examples), rng),
        is_test,
        is_public,
        clusters,
        _renamed(np.where(is_test, "", groups_of(examples)).tolist(), rng),
    )


def together(examples: Sequence[Example], duplicates: DuplicateSettings | None) -> np.ndarray:
    """Returns the number of the set of images that each one stays with (N,) int64."""
    left, right = [], []
    first: dict[str, int] = {}
    for place, group in enumerate(groups_of(examples)):
        if group:
            left.append(first.setdefault(group, place))
            right.append(place)
    edges = np.array(left, np.int64), np.array(right, np.int64)
    if duplicates is not None:
        histograms = np.stack([example.histogram for example in examples])
        thumbnails = np.stack([example.thumbnail for example in examples])
        pairs = near_pairs(histograms, thumbnails, duplicates)
        edges = np.concatenate([edges[0], pairs.left]), np.concatenate([edges[1], pairs.right])
    return connected_groups(len(examples), *edges)


def _chosen(clusters: np.ndarray, present: np.ndarray, share: float, rng: np.random.Generator, key: str) -> np.ndarray:
    """Which images (N,) bool make the share: whole clusters, with classes as often as among the others."""
    numbers, sizes = np.unique(clusters, return_counts=True)
    wanted, count = share * len(clusters), len(clusters)
    if count == 1:
        raise PipelineError(
            f"{key} {share:g}: there is one test image only, and the public and the private part need one each: change "
            "--test."
        )
    if len(numbers) < 2:
        raise PipelineError(
            f"{key} {share:g}: all {count} images must stay together, as they are of one group or near-duplicates of "
            "each other: give more groups, or --keep-apart to split near-duplicates."
        )
    showing = np.stack([present[clusters == number].sum(0) for number in numbers])  # (sets, classes)
    best, least = np.zeros(len(numbers), bool), np.inf
    for _ in range(DRAWS):
        taken = np.zeros(len(numbers), bool)
        total = 0
        for place in rng.permutation(len(numbers)).tolist():
            if abs(total + sizes[place] - wanted) < abs(total - wanted):
                taken[place] = True
                total += int(sizes[place])
        if not 0 < total < count:
            continue
        inside, outside = showing[taken].sum(0) / total, showing[~taken].sum(0) / (count - total)
        if (worth := abs(total - wanted) / count + np.abs(inside - outside).mean()) < least:
            best, least = taken, worth
    if not best.any():  # every set is larger than twice the share
        best[sizes.argmin()] = True
    return np.isin(clusters, numbers[best])


def _drawn_ids(count: int, rng: np.random.Generator) -> list[str]:
    ids: dict[str, None] = {}
    while len(ids) < count:
        ids["".join(rng.choice(list(LETTERS), LENGTH))] = None
    return list(ids)


def _renamed(groups: list[str], rng: np.random.Generator) -> list[str]:
    """Names of groups that say nothing of the source."""
    names = sorted({group for group in groups if group})
    width = len(str(len(names)))
    new = {name: f"g{number + 1:0{width}}" for name, number in zip(names, rng.permutation(len(names)), strict=True)}
    return [new.get(group, "") for group in groups]
