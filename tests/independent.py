"""Reads and scores tables of run lengths without the package, with NumPy alone, as the pages of competitions say."""

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np

Masks = dict[tuple[str, ...], list[np.ndarray]]


def mask_of(
    text: str, shape: tuple[int, int], order: str = "column", base: int = 1, relative: bool = False
) -> np.ndarray:
    """The mask (h, w) bool of pairs of start and length; a text without two numbers is an empty mask."""
    flat, end = np.zeros(shape[0] * shape[1], bool), 0
    numbers = [int(word) for word in text.split()] if len(text.split()) > 1 else []
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        begin = start + (end if relative else 0) - (base if not relative or not end else 0)
        end = begin + length
        flat[begin:end] = True
    return flat.reshape(shape, order="F" if order == "column" else "C")


def masks_in(
    path: Path, key: tuple[str, ...], column: str, shapes: dict[str, tuple[int, int]], **convention: object
) -> Masks:
    """The masks of a CSV, one per row, by its key columns; `shapes` are by the first of them, up to its last `_`."""
    found: Masks = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            name = tuple(row[one] for one in key)
            shape = shapes.get(name[0]) or shapes[name[0].rsplit("_", 1)[0]]
            found.setdefault(name, []).append(mask_of(row[column], shape, **convention))  # type: ignore[arg-type]
    return found


def dice(predicted: Masks, true: Masks, keys: Iterable[tuple[str, ...]]) -> float:
    """The mean over keys of 2·both / (predicted + true), 1 where both are empty; a key without rows is empty."""
    scores = []
    for key in keys:
        mine, theirs = (np.any(masks.get(key, [np.zeros(1, bool)]), axis=0) for masks in (predicted, true))
        total = mine.sum() + theirs.sum()
        scores.append(1.0 if not total else 2 * np.sum(mine & theirs) / total)
    return float(np.mean(scores))
