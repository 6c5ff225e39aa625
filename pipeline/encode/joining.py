"""Joins the masks of large images from the predictions of their windows, one strip of windows after another.

No array has the size of an image. A strip is one column of windows if pixels are numbered down the columns, else one
row of windows, and its runs follow those of the previous strip.
"""

from collections import OrderedDict
from concurrent.futures import Executor
from dataclasses import dataclass
from threading import Lock

import numpy as np

from pipeline.decode import table
from pipeline.masks import rle
from pipeline.masks.decision import Decision
from pipeline.masks.scale import Scale
from pipeline.masks.windows import Box
from pipeline.predictions.blends import Blend
from pipeline.predictions.format.expected import Expected, Texts

KEPT = 2**28
"""The number of bytes of probabilities that are cached for overlapping windows."""


@dataclass(frozen=True)
class Joined:
    """The mask of a whole image."""

    runs: list[np.ndarray]
    """Runs of each class (n, 2) int64, 0-based, in the competition's order of pixels; consecutive runs may touch."""
    areas: np.ndarray
    """Mask pixels (windows, C) int64 in the core of each window."""
    highest: list[float]
    """The highest probability in each window."""


def join(
    whole: table.Whole, rows: dict[str, int], blend: Blend, decision: Decision, order: str, pool: Executor
) -> Joined:
    """Returns the mask of an image from its windows.

    Where windows overlap, probabilities are averaged with weights that fall towards the edges of a window. The decision
    is made window by window, as in tune, and each pixel is taken from the window to whose core it belongs.

    Args:
        whole: the image.
        rows: the row of each window in the predictions, by the window's id.
        blend: the predictions.
        decision: the decision that tune chose.
        order: `column` or `row`.
        pool: runs the windows of a strip in parallel.
    """
    probabilities = _Windows(whole, rows, blend)
    axis = 1 if order == "column" else 0
    strips: dict[int, list[int]] = {}
    for number, core in enumerate(whole.cores):
        strips.setdefault(core[axis], []).append(number)
    runs: list[list[np.ndarray]] = []
    areas, highest = [np.zeros(0)] * len(whole.ids), [0.0] * len(whole.ids)
    for first in sorted(strips):
        numbers = strips[first]
        last = whole.cores[numbers[0]][axis + 2]
        height, width = (whole.shape[0], last - first) if axis else (last - first, whole.shape[1])
        strip: np.ndarray | None = None
        decided = pool.map(lambda number: _decide(whole, number, rows, blend, decision, probabilities), numbers)
        for number, (masks, highest[number]) in zip(numbers, decided, strict=True):
            if strip is None:
                strip = np.zeros((len(masks), height, width), np.uint8)
            top, left, bottom, right = whole.cores[number]
            above, before = (0, first) if axis else (first, 0)
            strip[:, top - above : bottom - above, left - before : right - before] = masks
            areas[number] = masks.sum((1, 2), dtype=np.int64)
        assert strip is not None
        begin = first * (height if axis else width)
        in_strip = [rle.runs_of(plane, "column" if axis else "row") for plane in strip]
        runs.append([of_class + [begin, 0] for of_class in in_strip])
    return Joined([np.concatenate(of_class) for of_class in zip(*runs, strict=True)], np.stack(areas), highest)


def _decide(
    whole: table.Whole, number: int, rows: dict[str, int], blend: Blend, decision: Decision, windows: "_Windows"
) -> tuple[np.ndarray, float]:
    """Returns the masks (C, h, w) of the core of a window, and its highest probability."""
    box, core = whole.boxes[number], whole.cores[number]
    probability = windows.blended(number)
    masks = blend.decide(rows[whole.ids[number]], probability, decision)
    inside = slice(core[0] - box[0], core[2] - box[0]), slice(core[1] - box[1], core[3] - box[1])
    return masks[:, *inside], float(probability.max())


class _Windows:
    """Probabilities of the windows of an image at its own size, with a cache of the last ones used."""

    def __init__(self, whole: table.Whole, rows: dict[str, int], blend: Blend) -> None:
        self.whole, self.rows, self.blend = whole, rows, blend
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = Lock()

    def blended(self, number: int) -> np.ndarray:
        """Returns the probabilities (C, h, w) of a window, averaged with those of overlapping windows."""
        box, own = self.whole.boxes[number], self._own(number)
        near = [other for other, its_box in enumerate(self.whole.boxes) if other != number and _common(box, its_box)]
        if not near:
            return own
        weight = _weights(box, self.whole)
        total, weights = own * weight, weight.copy()
        for other in near:
            other_box = self.whole.boxes[other]
            top, left, bottom, right = _common(box, other_box) or box
            here = slice(top - box[0], bottom - box[0]), slice(left - box[1], right - box[1])
            part = slice(top - other_box[0], bottom - other_box[0]), slice(left - other_box[1], right - other_box[1])
            other_weight = _weights(other_box, self.whole)[part]
            total[:, *here] += self._own(other)[:, *part] * other_weight
            weights[here] += other_weight
        scale: Scale = self.blend.scale
        return scale.native(total / weights)

    def _own(self, number: int) -> np.ndarray:
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
        top, left, bottom, right = self.whole.boxes[number]
        probability = self.blend.native(self.rows[self.whole.ids[number]], (bottom - top, right - left))
        with self._lock:
            self._kept[number] = probability
            while len(self._kept) > 1 and sum(array.nbytes for array in self._kept.values()) > KEPT:
                self._kept.popitem(last=False)
        return probability


def _common(first: Box, second: Box) -> Box | None:
    """Returns the intersection of two boxes; None if they do not overlap."""
    top, left, bottom, right = (*map(max, first[:2], second[:2]), *map(min, first[2:], second[2:]))
    return (top, left, bottom, right) if top < bottom and left < right else None


def _weights(box: Box, whole: table.Whole) -> np.ndarray:
    """Returns the weights (h, w) float32 of a window: they fall towards its edges, except at the border of the
    image."""
    sides = []
    for axis in (0, 1):
        first, behind, length = box[axis], box[axis + 2], whole.shape[axis]
        places = np.arange(behind - first, dtype=np.float32) + 0.5
        slope = (behind - first) / 8
        near = np.minimum(places if first else np.inf, (behind - first) - places if behind < length else np.inf)
        sides.append((np.clip(near / slope, 1e-3, 1) if np.ndim(near) else np.ones_like(places)).astype(np.float32))
    return sides[0][:, None] * sides[1]


def texts_of(image_id: str, joined: Joined, want: Expected) -> Texts:
    """Returns the texts of an image's rows, by key; see texts.texts_of."""
    return {
        (image_id, number if want.classed else None): [
            rle.write(joined.runs[number], want.shapes[image_id], want.convention)
        ]
        for number in want.classes
    }
