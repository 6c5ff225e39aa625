"""Separation of touching objects: a watershed inside a mask, from one seed per object.

Seeds are the connected regions in which a height inside the mask reaches a level. The watershed grows the seeds until
they meet. A region of the mask with fewer than two seeds remains one object, so that no part of the mask is lost and no
pixel belongs to two objects. With a border or distance that a network has learnt, this is the method of the winners of
Data Science Bowl 2018 for nuclei (Caicedo et al., Nature Methods 2019). With the distance transform of the mask, it is
the watershed of Vincent & Soille (1991).
"""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from pipeline.core.errors import PipelineError
from pipeline.masks.instances import regions_of
from pipeline.masks.separators import depth

Source = Literal["shape", "probability", "border", "distance"]


@dataclass(frozen=True)
class Separation:
    """How the objects in a mask are separated."""

    source: Source
    """The height of a pixel. `shape`: its distance to the edge of the mask in pixels. `probability`: the probability of
    the mask in 255ths. `border`: 255 minus the probability of a border between objects in 255ths. `distance`: the
    predicted distance to the edge of its object in 255ths."""
    level: int
    """The minimum height of the pixels of a seed."""
    min_seed: int = 0
    """Seeds with fewer pixels, at the image's own size, are discarded."""


WATERSHEDS: tuple[Separation, ...] = (
    *(Separation("shape", level) for level in (2, 3, 4, 6, 8, 12, 16)),
    *(Separation("probability", level) for level in (192, 224, 240)),
)
"""The separations that tune tries for any network, the simplest first."""
_LEVELS, _LEAST = (64, 96, 128, 160, 192, 224), (0, 32)
SEPARATORS: dict[str, tuple[Separation, ...]] = {
    "border": tuple(Separation("border", level, least) for least in _LEAST for level in _LEVELS),
    "distance": tuple(Separation("distance", level, least) for least in _LEAST for level in _LEVELS),
}
"""The separations that tune tries for networks that predict borders or distances."""


def separated(
    mask: np.ndarray, probability: np.ndarray, separator: np.ndarray | None, wanted: Separation | None
) -> np.ndarray:
    """Returns the objects in a mask as a label map (h, w) int32, numbered from 1. If `wanted` is None, these are its
    regions.

    Args:
        mask: the mask (h, w) uint8 of 0 and 1.
        probability: the probability of the mask's class (h, w) uint8.
        separator: the network's borders or distances (h, w) uint8, which are needed if they are the source.
        wanted: how objects are separated; None: not at all.
    """
    regions = regions_of(mask)
    if wanted is None or not mask.any():
        return regions
    height = _height(mask, probability, separator, wanted.source)
    seeds = _seeds(mask, height, wanted)
    owners = np.zeros(seeds.max() + 1, np.int32)
    owners[seeds] = regions
    owners[0] = 0
    divided = np.bincount(owners[1:], minlength=regions.max() + 1) > 1
    divided[0] = False
    inside = divided[regions]
    if not inside.any():
        return regions
    return _flooded(regions, seeds, height, inside)


def with_gaps(objects: np.ndarray) -> np.ndarray:
    """Returns masks (C, h, w) uint8 of 0 and 1 for drawing. In masks of label maps, the pixels that touch another
    object to their right or below are left out. Masks are returned unchanged."""
    if objects.dtype == np.uint8:
        return objects
    masks = (objects > 0).astype(np.uint8)
    for axis in (1, 2):
        first, second = np.moveaxis(objects, axis, 0)[:-1], np.moveaxis(objects, axis, 0)[1:]
        np.moveaxis(masks, axis, 0)[:-1][(first != second) & (first > 0) & (second > 0)] = 0
    return masks


def in_words(separation: dict[str, str | int]) -> str:
    """Returns a text that describes a separation of postprocess.json."""
    seeds = {
        "shape": f"{separation['level']} px inside the mask's edge",
        "probability": f"the mask's probability reaches {separation['level']} of 255",
        "border": f"the border's probability is at most {255 - int(separation['level'])} of 255",
        "distance": f"the predicted distance reaches {separation['level']} of 255",
    }
    least = f", at least {separation['min_seed']} px" if separation["min_seed"] else ""
    return f"touching objects separated by a watershed from seeds where {seeds[str(separation['source'])]}{least}"


def _height(mask: np.ndarray, probability: np.ndarray, separator: np.ndarray | None, source: Source) -> np.ndarray:
    if source == "shape":
        return depth(mask)
    if source == "probability":
        return probability
    if separator is None:
        raise PipelineError(
            f"objects are to be separated by {source}, which this run's networks do not predict: run the tune stage "
            "again with --force."
        )
    return np.uint8(255) - separator if source == "border" else separator


def _seeds(mask: np.ndarray, height: np.ndarray, wanted: Separation) -> np.ndarray:
    """Returns the seeds as a label map (h, w) int32, numbered from 1 without gaps."""
    seeds = regions_of(((height >= wanted.level) & (mask == 1)).view(np.uint8))
    if wanted.min_seed:
        large = np.bincount(seeds.ravel()) >= wanted.min_seed
        large[0] = False
        seeds = _renumbered(np.where(large[seeds], seeds, 0))
    return seeds


def _flooded(regions: np.ndarray, seeds: np.ndarray, height: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Returns the regions, in which those `inside` (h, w) bool are divided between their seeds."""
    from skimage.segmentation import watershed  # slow to import, seldom needed

    left, top, width, rows = cv2.boundingRect(inside.view(np.uint8))
    box = slice(top, top + rows), slice(left, left + width)
    markers = np.where(inside[box], seeds[box], 0)
    # pixels of a region may touch only by corners, and connectivity 2 reaches all of them
    parts = watershed(-height[box].astype(np.float32), markers, connectivity=2, mask=inside[box])
    labels = np.where(inside, 0, regions)
    labels[box] += np.where(parts > 0, parts + regions.max(), 0).astype(np.int32)
    return _renumbered(labels)


def _renumbered(labels: np.ndarray) -> np.ndarray:
    """Returns a label map whose numbers are replaced by 1, 2, … without gaps."""
    used = np.zeros(labels.max() + 1, bool)
    used[labels] = True
    used[0] = False
    return (np.cumsum(used, dtype=np.int32) * used)[labels]
