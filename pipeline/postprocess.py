"""The decision map: from network probabilities to the mask that is scored or submitted.

`tune` and `encode` call the same two functions, so encoding the out-of-fold predictions reproduces tune's score to the
last digit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.geometry import Geometry, to_native


@dataclass(frozen=True)
class Decision:
    """Per class: the lowest probability (of 255) that counts, and the fewest native pixels a mask may have."""

    threshold: tuple[int, ...]
    min_area: tuple[int, ...]


def native_probability(members: Sequence[np.ndarray], geometry: Geometry, shape: tuple[int, int]) -> np.ndarray:
    """Returns probabilities (C, h, w) uint8 (p·255) at the image's own size.

    Args:
        members: one array (C, H, W) uint8 a model, at network size; their mean is taken there.
        geometry: how the image was fitted to the network.
        shape: the image's own rows × columns.
    """
    mean = np.asarray(np.mean(members, axis=0, dtype=np.float32))
    return np.rint(to_native(mean, geometry, shape)).astype(np.uint8)


def decide(probability: np.ndarray, decision: Decision) -> np.ndarray:
    """Returns masks (C, h, w) uint8 of 0 and 1 from probabilities (C, h, w) uint8."""
    mask = probability >= np.array(decision.threshold)[:, None, None]
    small = mask.sum(axis=(1, 2)) < np.array(decision.min_area)
    mask[small] = False
    return mask.astype(np.uint8)
