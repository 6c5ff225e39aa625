"""Connected regions of masks: which of them stay, and what that does to the counts behind a score.

A region's pixels touch by side or corner (8-connectivity); a hole's pixels, of background, by side (4-connectivity).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.masks.geometry import IGNORE


@dataclass(frozen=True)
class RegionRule:
    """What happens to a mask's connected regions, in this order; by default nothing."""

    fill: bool = False
    """Holes, background that no path of pixels side by side joins to the image's edge, join the mask."""
    largest: bool = False
    """Only the largest region stays; of equal ones the one whose first pixel, row by row, comes first."""
    min_size: int = 0
    """Regions of fewer native pixels go."""


SHORTLIST: tuple[RegionRule, ...] = (
    RegionRule(fill=True),
    RegionRule(largest=True),
    RegionRule(fill=True, largest=True),
    *(RegionRule(min_size=size) for size in (8, 32, 128, 512)),
    *(RegionRule(fill=True, min_size=size) for size in (32, 128, 512)),
)
"""The variants that tune tries; doing nothing is not one of them."""


def clean(mask: np.ndarray, wanted: RegionRule) -> np.ndarray:
    """Returns a mask (h, w) uint8 of 0 and 1 with only what is wanted of its regions; where nothing is, the same array.

    Doing it twice changes nothing more.
    """
    box = _box(mask)
    if wanted == RegionRule() or box is None:
        return mask
    inside = _filled(mask[box]) if wanted.fill else mask[box].copy()
    if wanted.largest or wanted.min_size:
        regions = _regions(inside)
        inside[inside == 1] = regions.stay(wanted)[regions.labels]
    cleaned = np.zeros_like(mask)
    cleaned[box] = inside
    return cleaned


def shortlist_counts(
    probability: np.ndarray, true: np.ndarray, thresholds: Sequence[Sequence[int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pixels of an image's masks, by threshold and variant of the SHORTLIST, and those in the true mask.

    Ignored pixels are in neither count, but belong to regions and their sizes, as they do when a submission is made.

    Args:
        probability: (C, h, w) uint8.
        true: (C, h, w) uint8 of 0, 1 and 255 (ignored).
        thresholds: the same number T of integers for every class; a mask is where the probability is >= one of them.

    Returns:
        Predicted and intersection pixels, (C, T, V) int32 each, of which `overlaps.counts(clean(mask, variant), true)`
        gives one entry.
    """
    counts = np.zeros((2, len(probability), len(thresholds[0]), len(SHORTLIST)), np.int32)
    for index, (plane, truth, levels) in enumerate(zip(probability, true, thresholds, strict=True)):
        for position, level in enumerate(levels):
            mask = (plane >= level).view(np.uint8)
            box = _box(mask)
            if box is not None:
                counts[:, index, position] = _variant_counts(mask[box], truth[box])
    return counts[0], counts[1]


@dataclass(frozen=True)
class _Regions:
    """A mask's connected regions."""

    labels: np.ndarray
    """The region's number, from 1, of every pixel of the mask, row by row (P,)."""
    sizes: np.ndarray
    """Pixels of each region (L,), 0 for the region 0, which is none."""

    def stay(self, wanted: RegionRule) -> np.ndarray:
        """Returns which regions stay (L,) bool."""
        stay = self.sizes >= wanted.min_size
        if wanted.largest:
            equal = self.sizes == self.sizes.max()
            # in which order regions are numbered is OpenCV's choice, and may change with its version
            first = self.labels[equal[self.labels].argmax()] if equal.sum() > 1 else equal.argmax()
            stay &= np.arange(len(stay)) == first
        return stay


def _regions(mask: np.ndarray) -> _Regions:
    # OpenCV's own table of sizes would take longer than finding the regions
    labels = cv2.connectedComponents(mask, connectivity=8)[1][mask.view(bool)]
    return _Regions(labels, np.bincount(labels))


def _filled(mask: np.ndarray) -> np.ndarray:
    """The mask with its holes filled: all that a flood from outside its box does not reach by steps to the side."""
    flooded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    cv2.floodFill(flooded, None, (0, 0), 2, flags=4)
    return (flooded[1:-1, 1:-1] != 2).view(np.uint8)


def _box(mask: np.ndarray) -> tuple[slice, slice] | None:
    """The rows and columns that hold all of a mask; None where it is empty."""
    left, top, width, height = cv2.boundingRect(mask)
    return (slice(top, top + height), slice(left, left + width)) if width else None


def _variant_counts(mask: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Predicted and intersection pixels (2, V) of a mask, cleaned by each of the SHORTLIST."""
    filled = _filled(mask)
    plain = _region_counts(mask, true)
    of_fill = {False: plain, True: plain if np.array_equal(filled, mask) else _region_counts(filled, true)}
    each = []
    for variant in SHORTLIST:
        regions, counts = of_fill[variant.fill]
        each.append(counts[:, regions.stay(variant)].sum(1))
    return np.stack(each, axis=1)


def _region_counts(mask: np.ndarray, true: np.ndarray) -> tuple[_Regions, np.ndarray]:
    """A mask's regions, and the pixels (2, L) of each that are not ignored and that are in the true mask."""
    regions, under = _regions(mask), true[mask.view(bool)]
    ignored, inside = under == IGNORE, under == 1
    count = len(regions.sizes)
    predicted = np.bincount(regions.labels[~ignored], minlength=count) if ignored.any() else regions.sizes
    return regions, np.stack([predicted, np.bincount(regions.labels[inside], minlength=count)])
