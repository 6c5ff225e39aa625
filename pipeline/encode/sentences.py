"""Common parts of the checks of submissions: the callback for masks, and parts of messages."""

from collections.abc import Callable

import numpy as np

from pipeline.core.tables import unseen
from pipeline.masks import rle
from pipeline.predictions.format.expected import Expected

Measure = Callable[[str, int, np.ndarray], None]
"""A callback that takes an image id (or a window's), a class number, and the mask (h, w) uint8 of 0 and 1."""


def meant_id(value: str, image_id: str, meant: str) -> str:
    """Returns the end of a sentence about an id that is not in the test set.

    It names invisible characters in the value, or what to write if the value is the file name of a test image.
    """
    if odd := unseen(value):
        return f": it is written {odd}"
    if meant == image_id:
        return ""
    if image_id.startswith(meant):
        return f": write {meant}, without {image_id[len(meant) :]}"
    return f": write {meant}"


def no_mask(text: str, error: rle.RleError, want: Expected) -> str:
    """Returns why a text is not a mask."""
    empty = f"the text {want.convention.empty!r}" if want.convention.empty else "an empty field"
    is_meant = text.strip().lower() == want.convention.empty.strip().lower()
    return f"{text!r} is not a mask; an empty mask is {empty}" if is_meant or rle.is_placeholder(text) else str(error)


def not_canonical(text: str, again: str) -> str:
    """Returns the fault that a text should be written differently."""
    return f"is not in canonical form: {text[:40]!r} should be {again[:40]!r}"
