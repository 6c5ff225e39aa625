"""The decision map: from network probabilities to the mask that is scored or submitted.

`tune` and `encode` call the same two functions, so encoding the out-of-fold predictions reproduces tune's score to the
last digit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.biases import labels
from pipeline.geometry import Geometry, to_native


@dataclass(frozen=True)
class Thresholds:
    """Per class: the lowest probability (of 255) that counts, and the fewest native pixels a mask may have."""

    threshold: tuple[int, ...]
    min_area: tuple[int, ...]


@dataclass(frozen=True)
class Biases:
    """Multiclass: what is added to each class's log-probability before the largest wins, and who may not win."""

    bias: tuple[float, ...]
    never: tuple[int, ...] = ()


Decision = Thresholds | Biases


def native_probability(members: Sequence[np.ndarray], geometry: Geometry, shape: tuple[int, int]) -> np.ndarray:
    """Returns probabilities (C, h, w) at the image's own size: uint8 (p·255), or float32 where members are float16.

    Args:
        members: one array (C, H, W) uint8 or float16 a model, at the size of the pixel arrays, where they are averaged.
        geometry: how the image was fitted to that size.
        shape: the image's own rows × columns.
    """
    native = to_native(np.asarray(np.mean(members, axis=0, dtype=np.float32)), geometry, shape)
    return np.rint(native).astype(np.uint8) if members[0].dtype == np.uint8 else native


def decide(probability: np.ndarray, decision: Decision) -> np.ndarray:
    """Returns masks (C, h, w) uint8 of 0 and 1 from probabilities (C, h, w); a multiclass pixel is 1 in one plane."""
    if isinstance(decision, Biases):
        chosen = labels(probability, decision.bias, decision.never)
        return (chosen == np.arange(len(probability), dtype=np.uint8)[:, None, None]).astype(np.uint8)
    mask = probability >= np.array(decision.threshold)[:, None, None]
    small = mask.sum(axis=(1, 2)) < np.array(decision.min_area)
    mask[small] = False
    return mask.astype(np.uint8)
