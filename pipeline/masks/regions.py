"""Connected regions of masks: which of them a rule keeps, and the pixel counts that result.

The pixels of a region touch by a side or a corner (8-connectivity). The background pixels of a hole touch by a side
(4-connectivity).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.masks.geometry import IGNORE


@dataclass(frozen=True)
class RegionRule:
    """What is done with the connected regions of a mask, in this order. The default does nothing."""

    fill: bool = False
    """Whether holes are filled: background that no path of pixels, side by side, connects with the edge of the
    image."""
    largest: bool = False
    """Whether only the largest region is kept. Among equally large regions, it is the one whose first pixel, row by
    row, comes first."""
    min_size: int = 0
    """Regions with fewer pixels, at the image's own size, are removed."""


SHORTLIST: tuple[RegionRule, ...] = (
    RegionRule(fill=True),
    RegionRule(largest=True),
    RegionRule(fill=True, largest=True),
    *(RegionRule(min_size=size) for size in (8, 32, 128, 512)),
    *(RegionRule(fill=True, min_size=size) for size in (32, 128, 512)),
)
"""The rules that tune tries, in addition to doing nothing."""


def clean(mask: np.ndarray, rule: RegionRule) -> np.ndarray:
    """Returns a mask (h, w) uint8 of 0 and 1 after applying a rule to its regions. If the rule does nothing or the mask
    is empty, the same array is returned.

    Applying the same rule twice has the same result as applying it once.
    """
    box = _box(mask)
    if rule == RegionRule() or box is None:
        return mask
    inside = _filled(mask[box]) if rule.fill else mask[box].copy()
    if rule.largest or rule.min_size:
        regions = _regions(inside)
        inside[inside == 1] = regions.stay(rule)[regions.labels]
    cleaned = np.zeros_like(mask)
    cleaned[box] = inside
    return cleaned


def shortlist_counts(
    probability: np.ndarray, true: np.ndarray, thresholds: Sequence[Sequence[int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the numbers of predicted pixels and of intersection pixels of an image, for each threshold and each rule
    of the SHORTLIST.

    Ignored pixels are not counted. They do belong to regions and their sizes, as in a submission.

    Args:
        probability: (C, h, w) uint8.
        true: (C, h, w) uint8 of 0, 1 and 255 (ignored).
        thresholds: for each class T integers; a mask consists of the pixels whose probability is >= the threshold.

    Returns:
        Two arrays (C, T, V) int32 of predicted and intersection pixels. Each entry is the result of
        `overlaps.counts(clean(mask, rule), true)`.
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
    """The connected regions of a mask."""

    labels: np.ndarray
    """The number of the region, from 1, of each pixel of the mask, row by row (P,)."""
    sizes: np.ndarray
    """The number of pixels of each region (L,). Entry 0 stands for no region and is 0."""

    def stay(self, rule: RegionRule) -> np.ndarray:
        """Returns which regions the rule keeps (L,) bool."""
        kept = self.sizes >= rule.min_size
        if rule.largest:
            equal = self.sizes == self.sizes.max()
            # the order in which OpenCV numbers regions may change with its version
            first = self.labels[equal[self.labels].argmax()] if equal.sum() > 1 else equal.argmax()
            kept &= np.arange(len(kept)) == first
        return kept


def _regions(mask: np.ndarray) -> _Regions:
    # computing the sizes with OpenCV would take longer than finding the regions
    labels = cv2.connectedComponents(mask, connectivity=8)[1][mask.view(bool)]
    return _Regions(labels, np.bincount(labels))


def _filled(mask: np.ndarray) -> np.ndarray:
    """Returns the mask with its holes filled: all pixels that a flood fill from outside the box does not reach."""
    flooded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    cv2.floodFill(flooded, None, (0, 0), 2, flags=4)
    return (flooded[1:-1, 1:-1] != 2).view(np.uint8)


def _box(mask: np.ndarray) -> tuple[slice, slice] | None:
    """Returns the rows and columns of the bounding box of a mask; None if it is empty."""
    left, top, width, height = cv2.boundingRect(mask)
    return (slice(top, top + height), slice(left, left + width)) if width else None


def _variant_counts(mask: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Returns predicted and intersection pixels (2, V) of a mask after applying each rule of the SHORTLIST."""
    filled = _filled(mask)
    plain = _region_counts(mask, true)
    by_fill = {False: plain, True: plain if np.array_equal(filled, mask) else _region_counts(filled, true)}
    counts_of_rules = []
    for rule in SHORTLIST:
        regions, counts = by_fill[rule.fill]
        counts_of_rules.append(counts[:, regions.stay(rule)].sum(1))
    return np.stack(counts_of_rules, axis=1)


def _region_counts(mask: np.ndarray, true: np.ndarray) -> tuple[_Regions, np.ndarray]:
    """Returns the regions of a mask and, per region, the numbers of pixels (2, L) that are not ignored and that are in
    the true mask."""
    regions, under = _regions(mask), true[mask.view(bool)]
    ignored, inside = under == IGNORE, under == 1
    count = len(regions.sizes)
    predicted = np.bincount(regions.labels[~ignored], minlength=count) if ignored.any() else regions.sizes
    return regions, np.stack([predicted, np.bincount(regions.labels[inside], minlength=count)])
