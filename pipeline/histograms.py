"""Pixel counts of an image under all 256 thresholds at once, from histograms of its probabilities."""

from collections.abc import Sequence

import cv2
import numpy as np

from pipeline.geometry import IGNORE
from pipeline.postprocess import LEVELS


def histogram_counts(probability: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns the area, predicted and intersection pixels (C, 256) of every threshold, and the true pixels (C,).

    `probability` (C, h, w) uint8; `true` (C, h, w) uint8 of 0, 1 and 255 (ignored).
    See thresholds.Evidence.
    """
    everything = _at_least([_histogram(plane) for plane in probability])
    counted = everything
    if (true == IGNORE).any():
        counted = _at_least(_histograms(probability, true != IGNORE))
    inside = _at_least(_histograms(probability, true == 1))
    return everything, counted, inside, inside[:, 0].astype(np.int64)


def _at_least(histograms: Sequence[np.ndarray]) -> np.ndarray:
    """Pixels (C, 256) int32 with probability >= t."""
    return np.cumsum(np.stack(histograms)[:, ::-1], axis=1)[:, ::-1].astype(np.int32)


def _histogram(plane: np.ndarray) -> np.ndarray:
    """The histogram (256,) int64 of a plane (h, w) uint8."""
    # OpenCV skips most of the background where the plane is its own mask; it returns float32, exact up to 2**24 pixels
    rows = max(1, 2**24 // plane.shape[1])
    strips = [plane[top : top + rows] for top in range(0, len(plane), rows)]
    found = [cv2.calcHist([strip], [0], strip, [LEVELS], [0, LEVELS]) for strip in strips]
    histogram = np.sum(found, axis=0, dtype=np.int64).ravel()
    histogram[0] = plane.size - histogram.sum()
    return histogram


def _histograms(probability: np.ndarray, where: np.ndarray) -> list[np.ndarray]:
    """Those (256,) of the pixels at `where` (C, h, w) bool."""
    # decoded run lengths lie in memory column by column
    return [np.bincount(plane.T[own.T], minlength=LEVELS) for plane, own in zip(probability, where, strict=True)]
