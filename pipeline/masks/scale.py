"""How probabilities are stored, and which value means 1: by the kind of competition, not by an array's dtype."""

from dataclasses import dataclass

import numpy as np

from pipeline.core.config.competition import Competition


@dataclass(frozen=True)
class Scale:
    """The values of stored probabilities."""

    dtype: np.dtype
    """Of the arrays at the network's size."""
    largest: int
    """The value of probability 1."""
    whole: bool
    """Whether values are whole numbers, at an image's own size too, where thresholds are compared with them."""

    def stored(self, probability: np.ndarray) -> np.ndarray:
        """Returns probabilities from 0 to 1 as they are stored."""
        values = probability * self.largest
        return (np.rint(values) if self.whole else values).astype(self.dtype)

    def native(self, mean: np.ndarray) -> np.ndarray:
        """Returns mean values (C, h, w) float32 at an image's own size as decisions read them: uint8 where values are
        whole numbers, else float32."""
        return np.rint(mean).astype(self.dtype) if self.whole else mean

    def probability(self, values: np.ndarray) -> np.ndarray:
        """Returns stored, or native, values as probabilities from 0 to 1, float32 (float64 of float64)."""
        return values / np.float32(self.largest)


BYTES = Scale(np.dtype(np.uint8), 255, True)
"""uint8, p·255: binary and multilabel competitions, where it costs nothing measurable."""
HALVES = Scale(np.dtype(np.float16), 1, False)
"""float16, p: multiclass ones, where uint8 would change which class is the largest and erase rare ones."""


def scale_of(competition: Competition) -> Scale:
    """Returns how probabilities of a competition are stored."""
    return HALVES if competition.kind == "multiclass" else BYTES
