"""Overlapping windows of a large image: where each starts, and which pixels belong to it."""

import math
from dataclasses import dataclass

Box = tuple[int, int, int, int]
"""First row, first column, and the row and column after the last ones."""


@dataclass(frozen=True)
class Window:
    """A window of an image."""

    box: Box
    core: Box
    """The pixels that belong to this window. Each pixel of the image belongs to exactly one window."""


def starts(length: int, tile: int, overlap: float) -> list[int]:
    """Returns the first pixel of each tile along a side of `length` pixels, the first 0 and the last length - tile.

    The tiles are distributed evenly, and neighbours share at least overlap * tile pixels, but never a whole tile. A
    side that is not longer than the tile gives [0].

    Raises:
        ValueError: the overlap is below 0, or 1 or more.
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"tiles overlap by at least 0 and less than 1 of their length, but this overlap is {overlap}")
    spare = max(length - tile, 0)
    largest_step = max(tile - math.ceil(overlap * tile), 1)
    steps = -(-spare // largest_step)
    return [0] + [spare * step // steps for step in range(1, steps + 1)]


def cut(shape: tuple[int, int], size: tuple[int, int], overlap: float) -> list[list[Window]]:
    """Returns the windows of an image, row by row. An image that is not larger than a window gives one window.

    Args:
        shape: rows × columns of the image.
        size: rows × columns of a window.
        overlap: the minimum share of a side that neighbours have in common.
    """
    rows, columns = (_parts(length, side, overlap) for length, side in zip(shape, size, strict=True))
    return [
        [Window((top, left, bottom, right), (first, begin, last, end)) for left, right, begin, end in columns]
        for top, bottom, first, last in rows
    ]


def _parts(length: int, side: int, overlap: float) -> list[tuple[int, int, int, int]]:
    """Returns, for the windows along one side, the first pixel and the pixel after the last, of the window and of the
    pixels that belong to it."""
    side = min(side, length)
    firsts = starts(length, side, overlap)
    edges = [0, *((first + side + second) // 2 for first, second in zip(firsts[:-1], firsts[1:], strict=True)), length]
    return [(first, first + side, begin, end) for first, begin, end in zip(firsts, edges[:-1], edges[1:], strict=True)]
