"""The types of pixels that arrays hold: uint8, uint16, and float16 from 0 to 1 where the raw files are floats."""

from typing import Any

import numpy as np


def largest_of(dtype: Any) -> int:
    """Returns the value that is white: 255, 65535, or 1 of floats."""
    kind: np.dtype = np.dtype(dtype)
    return 1 if kind.kind == "f" else int(np.iinfo(kind).max)


def loaded(stored: np.ndarray) -> np.ndarray:
    """Returns a copy of stored pixels that can be computed with: float16, which little else reads, as float32."""
    return np.array(stored, np.float32 if stored.dtype == np.float16 else stored.dtype)
