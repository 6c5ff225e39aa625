"""The labelled images of a source, read for a competition that is to be made of them."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.core.config.competition import Competition
from pipeline.core.config.raw_layouts import RleCsv
from pipeline.core.console import track
from pipeline.core.errors import PipelineError
from pipeline.decode import descriptors
from pipeline.decode.readers.base import Item, Masks, listed
from pipeline.decode.readers.registry import reader_of
from pipeline.masks import rle
from pipeline.masks.geometry import IGNORE

FEWEST = 8
"""Labelled images that a competition needs."""
TELLING = 0.1
"""A property of the files tells the masks where it guesses empty masks by so much more often than chance."""


@dataclass(frozen=True)
class Source:
    """Where labelled images come from."""

    competition: Competition
    """How the raw files are read."""
    folder: Path
    """The raw files."""


@dataclass(frozen=True)
class Example:
    """One labelled image."""

    item: Item
    shape: tuple[int, int, int]
    """Rows, columns and channels."""
    dtype: np.dtype
    texts: tuple[str, ...]
    """Run lengths of the mask of each class, in the internal convention."""
    histogram: np.ndarray = field(repr=False)
    thumbnail: np.ndarray = field(repr=False)

    @property
    def present(self) -> np.ndarray:
        """Whether each class occurs (classes,) bool."""
        return np.array([bool(text) for text in self.texts])

    def image(self) -> np.ndarray:
        """Returns the pixels (H, W, C) uint8 or uint16; floats from 0 to 1 become uint16.

        Raises:
            PipelineError: the file cannot be read any more.
        """
        try:
            image = self.item.read_image()
        except ValueError as error:
            raise PipelineError(f"{self.item.path}: {error}. It was read before: leave the source as it is.") from None
        return np.rint(image.astype(np.float64) * 65535).astype(np.uint16) if image.dtype.kind == "f" else image

    def planes(self) -> np.ndarray:
        """Returns the masks (classes, H, W) uint8."""
        return np.stack([rle.decode(text, self.shape[:2]) for text in self.texts])


def read_examples(source: Source) -> list[Example]:
    """Returns every image of a source whose mask is known.

    Raises:
        PipelineError: the raw files have faults, ignored pixels or images cut into windows; or there are too few.
    """
    competition = source.competition
    if isinstance(competition, RleCsv) and competition.windows is not None:
        raise PipelineError(
            f"competition {competition.name} cuts its images into windows: cut them into files of their own first."
        )
    listing = reader_of(competition).list_items(competition, source.folder, ("train", "test"))
    if listing.faults:
        more = f" (and {len(listing.faults) - 1} more)" if len(listing.faults) > 1 else ""
        raise PipelineError(f"{listing.faults[0]}{more}. Correct the raw files first; `decode` lists all faults.")
    items = [item for item in listing.items if item.read_masks is not None]
    if len(items) < FEWEST:
        raise PipelineError(
            f"{source.folder} has {len(items)} images with known masks; a competition needs at least {FEWEST}."
        )
    grid = descriptors.block_grid(competition.shape)
    examples = [_example(item, grid) for item in track(items, "read", len(items))]
    kinds = sorted({example.dtype.name for example in examples})
    if len(kinds) > 1:
        raise PipelineError(f"Images are of different types, {listed(kinds)}: convert them to one, for instance uint8.")
    return examples


def _example(item: Item, grid: tuple[int, int]) -> Example:
    assert item.read_masks is not None  # read_examples asks only then
    try:
        image = item.read_image()
        rows, columns, channels = image.shape
        masks: Masks = item.read_masks((rows, columns))
    except ValueError as error:
        raise PipelineError(f"{item.path}: {error}. Correct the raw files first; `decode` lists all faults.") from None
    if (masks.planes == IGNORE).any():
        raise PipelineError(
            f"{item.path} has pixels that are to be ignored, which a table of run lengths cannot say: give them a "
            "class in the source's YAML (of trimaps: border: background), or leave such images out."
        )
    values = descriptors.grey(image)
    texts = tuple(rle.encode(plane) for plane in masks.planes)
    histogram, thumbnail = descriptors.block_histograms(values, grid), descriptors.thumbnail(values)
    return Example(item, (rows, columns, channels), image.dtype, texts, histogram, thumbnail)


def groups_of(examples: Sequence[Example]) -> list[str]:
    """Returns the group of each image, "" without one."""
    return [example.item.group or "" for example in examples]


def telling_properties(examples: Sequence[Example]) -> list[str]:
    """Returns a sentence on each property of the files that nearly says whether a mask is empty: the size and the
    number of channels, which students see of test images too."""
    empty = np.array([not example.present.any() for example in examples])
    chance = max(empty.mean(), 1 - empty.mean())
    sentences = []
    properties: dict[str, list[Hashable]] = {
        "size": [example.shape[:2] for example in examples],
        "number of channels": [example.shape[2] for example in examples],
    }
    for name, values in properties.items():
        places: dict[Hashable, list[int]] = defaultdict(list)
        for place, value in enumerate(values):
            places[value].append(place)
        if len(places) > len(examples) / 4:  # nearly every image has its own
            continue
        guessed = sum(max(empty[rows].sum(), len(rows) - empty[rows].sum()) for rows in places.values()) / len(examples)
        if guessed > chance + TELLING:
            sentences.append(
                f"The {name} of an image says in {guessed:.0%} of cases whether its mask is empty (chance: "
                f"{chance:.0%}): students will see it. Bring all images to one {name} first."
            )
    return sentences
