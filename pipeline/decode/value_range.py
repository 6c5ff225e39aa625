"""Checks that images use the range of values of their dtype. With 10 or 12 bits in 16-bit files, networks would see
almost black images."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.core.config.competition import Competition
from pipeline.core.config.raw_layouts import RleCsv
from pipeline.decode.readers.base import SUBSETS, WORDS, Fault, SubsetName
from pipeline.masks.pixels import largest_of

NARROW, SMALL = 1 / 15, 1 / 4
"""Shares of the dtype's range. Images that use less than the first share are nearly constant for a network; those that
use less than the second are dark."""
MOST_SAMPLED = 2**14
"""Maximum number of pixels per image from which its lowest and highest values are determined."""
FEW = 0.1
"""Minimum share of images with a smaller range than the others for a warning."""

Row = dict[str, Any]


def extremes(image: np.ndarray) -> tuple[float, float]:
    """Returns the 0.1th and the 99.9th percentile of evenly sampled pixels of an image. A few saturated pixels do not
    affect them."""
    step = max(1, image.size // MOST_SAMPLED) | 1  # odd, so that the samples are not all in the same columns
    low, high = np.percentile(image.reshape(-1)[::step], [0.1, 99.9], method="nearest")
    return low.item(), high.item()


def used_range(dtype: np.dtype, lows: Sequence[float], highs: Sequence[float]) -> tuple[float, list[int]]:
    """Returns the share of the dtype's range that nearly all images use, and a suitable `value_range`.

    Args:
        dtype: uint8, uint16, or float16 of values from 0 to 1.
        lows: the low extreme of each image.
        highs: the high extreme of each image.
    """
    outside = len(lows) // 20 + (len(lows) >= 10)  # ignores a few unusual images
    low, high = sorted(lows)[outside], sorted(highs)[-1 - outside]
    suitable = [0, 2 ** int(high).bit_length() - 1] if low < high / 2 else [int(low), int(high)]
    return (high - low) / largest_of(dtype), suitable


def find_faults(competition: Competition, rows: list[Row]) -> list[Fault]:
    """Returns a fault for the training images and one for the test images, if they use only a small part of their
    dtype's range."""
    shares = {subset: _share(competition, rows, subset) for subset in SUBSETS}
    faults = []
    for subset, share in shares.items():
        if share <= NARROW:
            like_training = subset == "train" or shares["train"] <= NARROW or competition.reading["value_range"]
            text = f"{_told(rows, subset)}, so that networks would see nearly constant images: "
            text += (
                _remedy(competition, rows, subset)
                if like_training
                else ("they were saved with fewer bits than the training images: scale them alike")
            )
            faults.append(Fault(_where(competition, subset), None, text))
    return faults


def find_doubts(competition: Competition, rows: list[Row]) -> list[str]:
    """Returns a warning if the training images use less than a quarter of the range, or if some use far less than
    others."""
    share = _share(competition, rows, "train")
    if NARROW < share <= SMALL:
        return [f"{_told(rows, 'train')}: {_remedy(competition, rows, 'train')}"]
    train = _rows_of(rows, "train")
    narrow = [row for row in train if row["dtype"] == "uint16" and row["high"] - row["low"] <= NARROW * 65535]
    if share <= NARROW or not FEW * len(train) <= len(narrow) < len(train):
        return []
    text = f"{len(narrow)} of {len(train)} training images use less than a fifteenth of the values that the others use"
    return [f"{text}, for instance {narrow[0]['path']}: were they saved with fewer bits?"]


def _rows_of(rows: list[Row], subset: SubsetName) -> list[Row]:
    return [row for row in rows if row["subset"] == subset and row["dtype"]]


def _share(competition: Competition, rows: list[Row], subset: SubsetName) -> float:
    """Returns the share of the dtype's range that the images of a subset use; 1 if there are none, if the reader cannot
    scale them, or if the YAML sets the whole range."""
    of_subset = _rows_of(rows, subset)
    if not of_subset or "value_range" not in competition.reading:
        return 1.0
    dtype: np.dtype = np.dtype(str(of_subset[0]["dtype"]))
    if competition.reading["value_range"] == (0, largest_of(dtype)):
        return 1.0
    return used_range(dtype, [row["low"] for row in of_subset], [row["high"] for row in of_subset])[0]


def _told(rows: list[Row], subset: SubsetName) -> str:
    of_subset = _rows_of(rows, subset)
    low, high = min(row["low"] for row in of_subset), max(row["high"] for row in of_subset)
    largest = largest_of(of_subset[0]["dtype"])
    return f"{WORDS[subset]} images hold values from {low:.6g} to {high:.6g}, and could hold values up to {largest}"


def _remedy(competition: Competition, rows: list[Row], subset: SubsetName) -> str:
    given = competition.reading["value_range"]
    if given is not None:
        pairs = [f"[{low:g}, {high:g}]" for low, high in (given if isinstance(given, list) else [given])]
        shown = pairs[0] if isinstance(given, tuple) else f"[{', '.join(pairs)}]"
        return f"`value_range: {shown}` is not the range of their files: correct it"
    of_subset = _rows_of(rows, subset)
    dtype: np.dtype = np.dtype(str(of_subset[0]["dtype"]))
    _, values = used_range(dtype, [row["low"] for row in of_subset], [row["high"] for row in of_subset])
    return (
        f"set `value_range: {values}` in the competition's YAML, which scales all images, or "
        f"`value_range: [0, {largest_of(dtype)}]` to leave them as they are"
    )


def _where(competition: Competition, subset: SubsetName) -> str:
    return getattr(competition, subset).images if isinstance(competition, RleCsv) else getattr(competition, "file", "")
