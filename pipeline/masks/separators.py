"""Separators: what a network learns in addition to masks so that touching objects can be separated. They are computed
from true instances."""

from typing import Literal

import cv2
import numpy as np

from pipeline.masks.geometry import IGNORE

Separator = Literal["border", "distance"]
FULL = 254
"""The stored value of a distance of 1. The value 255 stands for ignored pixels."""
REACHES = ((0, 1), (300, 2), (2000, 3))
"""Pairs of a minimum area of an object and the reach of its border, both in pixels."""


def targets_of(labels: np.ndarray, separator: Separator) -> np.ndarray:
    """Returns the separators (C, h, w) uint8 of label maps (C, h, w) int32, in which ignored pixels are -1. Borders are
    0 and 1, distances 0 to 254, and ignored pixels 255."""
    planes = np.stack([(border_of if separator == "border" else distance_of)(plane) for plane in labels])
    planes[labels < 0] = IGNORE
    return planes


def learned(targets: np.ndarray, separator: Separator) -> np.ndarray:
    """Returns stored separators as training targets: borders as uint8 of 0, 1 and 255, distances as float32 from 0 to
    1, and 255."""
    if separator == "border":
        return targets
    return np.where(targets == IGNORE, np.float32(IGNORE), targets / np.float32(FULL))


def border_of(labels: np.ndarray) -> np.ndarray:
    """Returns the border pixels (h, w) uint8 of 0 and 1 of a label map (h, w) int32: those with at least two instances
    in a square around them.

    The square reaches 1, 2 or 3 pixels to each side, depending on the area of the smallest instance in it (REACHES). A
    border is therefore equally wide on both sides, and seeds that grow at the same speed meet where the instances meet.
    Apart from that, it is the border of the winners of Data Science Bowl 2018 (ods.ai topcoders).
    """
    objects = np.maximum(labels, 0)
    areas = np.bincount(objects.ravel())
    reach = np.select([areas >= least for least, _ in REACHES[::-1]], [far for _, far in REACHES[::-1]])[objects]
    nothing = objects == 0
    highest = objects.astype(np.float32)
    lowest, shortest = (np.where(nothing, np.inf, plane).astype(np.float32) for plane in (objects, reach))
    border = np.zeros(labels.shape, bool)
    for _, far in REACHES:
        square = np.ones((2 * far + 1, 2 * far + 1), np.uint8)
        several = cv2.dilate(highest, square) > cv2.erode(lowest, square)
        border |= several & (cv2.erode(shortest, square) >= far)
    return border.view(np.uint8)


def distance_of(labels: np.ndarray) -> np.ndarray:
    """Returns the depth (h, w) uint8 of each pixel of a label map (h, w) int32 in its instance, from 0 (background) to
    254: its distance to the nearest pixel outside, relative to the largest distance in this instance."""
    from skimage.measure import regionprops  # slow to import, seldom needed

    depths = np.zeros(labels.shape, np.uint8)
    for instance in regionprops(np.maximum(labels, 0)):
        distance = depth(np.pad(instance.image.astype(np.uint8), 1))[1:-1, 1:-1]
        depths[instance.slice][instance.image] = np.rint(FULL * distance[instance.image] / distance.max())
    return depths


def depth(mask: np.ndarray) -> np.ndarray:
    """Returns the distance (h, w) float32, in pixels, of each pixel of a mask (h, w) uint8 of 0 and 1 to the nearest
    pixel outside the mask."""
    distance = cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # the last digit of OpenCV's result varies between calls, but squared distances are integers
    return np.sqrt(np.rint(distance.astype(np.float64) ** 2)).astype(np.float32)
