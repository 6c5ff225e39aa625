"""How probabilities are stored, and which value stands for 1. This depends on the kind of competition, not on an
array's dtype."""

from dataclasses import dataclass

import numpy as np

from pipeline.core.config.competition import Competition


@dataclass(frozen=True)
class Scale:
    """The format of stored probabilities."""

    dtype: np.dtype
    """The dtype of arrays at the network's size."""
    largest: int
    """The value that stands for probability 1."""
    whole: bool
    """Whether values are integers. This applies at an image's own size too, where they are compared with thresholds."""

    def stored(self, probability: np.ndarray) -> np.ndarray:
        """Returns probabilities from 0 to 1 in the stored format."""
        values = probability * self.largest
        return (np.rint(values) if self.whole else values).astype(self.dtype)

    def native(self, mean: np.ndarray) -> np.ndarray:
        """Returns mean values (C, h, w) float32 at an image's own size in the format for decisions: uint8 if values are
        integers, otherwise float32."""
        return np.rint(mean).astype(self.dtype) if self.whole else mean

    def probability(self, values: np.ndarray) -> np.ndarray:
        """Returns stored or native values as probabilities from 0 to 1, float32 (float64 for float64 values)."""
        return values / np.float32(self.largest)


BYTES = Scale(np.dtype(np.uint8), 255, True)
"""uint8 values p·255, for binary and multilabel competitions, where the rounding has no measurable effect."""
HALVES = Scale(np.dtype(np.float16), 1, False)
"""float16 values p, for multiclass competitions, where uint8 would change the most probable class and erase rare
classes."""


def scale_of(competition: Competition) -> Scale:
    """Returns the format in which a competition's probabilities are stored."""
    return HALVES if competition.kind == "multiclass" else BYTES
