"""The dtypes of pixel arrays: uint8, uint16, or float16 from 0 to 1 if the raw files hold floats."""

from typing import Any

import numpy as np


def largest_of(dtype: Any) -> int:
    """Returns the value that stands for white: 255, 65535, or 1 for floats."""
    kind: np.dtype = np.dtype(dtype)
    return 1 if kind.kind == "f" else int(np.iinfo(kind).max)


def loaded(stored: np.ndarray) -> np.ndarray:
    """Returns a copy of stored pixels for computations. float16, which few libraries support, becomes float32."""
    return np.array(stored, np.float32 if stored.dtype == np.float16 else stored.dtype)
