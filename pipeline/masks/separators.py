"""What a network learns beside the masks, so that touching objects can be separated: from true instances."""

from typing import Literal

import cv2
import numpy as np

from pipeline.masks.geometry import IGNORE

Separator = Literal["border", "distance"]
FULL = 254
"""The stored value of a distance of 1; 255 is an ignored pixel."""
REACHES = ((0, 1), (300, 2), (2000, 3))
"""From which area of an object on, in pixels, its border reaches how far."""


def targets_of(labels: np.ndarray, separator: Separator) -> np.ndarray:
    """Returns what the network learns of label maps (C, h, w) int32, -1 where ignored: (C, h, w) uint8, 255 = ignored;
    of `border` 0 and 1, of `distance` 0 to 254."""
    planes = np.stack([(border_of if separator == "border" else distance_of)(plane) for plane in labels])
    planes[labels < 0] = IGNORE
    return planes


def learned(targets: np.ndarray, separator: Separator) -> np.ndarray:
    """Returns stored targets as they are learnt: uint8 of 0, 1 and 255; of distances float32 from 0 to 1, and 255."""
    if separator == "border":
        return targets
    return np.where(targets == IGNORE, np.float32(IGNORE), targets / np.float32(FULL))


def border_of(labels: np.ndarray) -> np.ndarray:
    """Returns the pixels (h, w) uint8 of 0 and 1 around which a square holds two instances or more of a label map
    (h, w) int32.

    The square reaches 1, 2 or 3 pixels to each side, by the area of the smallest instance in it: see REACHES. So a
    border is as wide on both of its sides, and seeds that grow at the same speed meet where the instances do. Otherwise
    it is the border that the winners of Data Science Bowl 2018 (ods.ai topcoders) learnt.
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
    """Returns how deep each pixel of a label map (h, w) int32 lies in its instance (h, w) uint8: its distance to the
    nearest pixel outside, of the largest in this instance, from 0 (background) to 254."""
    from skimage.measure import regionprops  # slow to import, seldom needed

    found = np.zeros(labels.shape, np.uint8)
    for one in regionprops(np.maximum(labels, 0)):
        distance = depth(np.pad(one.image.astype(np.uint8), 1))[1:-1, 1:-1]
        found[one.slice][one.image] = np.rint(FULL * distance[one.image] / distance.max())
    return found


def depth(mask: np.ndarray) -> np.ndarray:
    """Returns the distance (h, w) float32, in pixels, of each pixel of a mask (h, w) uint8 of 0 and 1 to the nearest
    pixel outside."""
    distance = cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # OpenCV's last digit changes from call to call; squares are whole numbers
    return np.sqrt(np.rint(distance.astype(np.float64) ** 2)).astype(np.float32)
