"""Masks of large images, put together from what is predicted of their windows, one strip of windows after the other.

No array ever has the size of an image: a strip is one column of windows where pixels are numbered down the columns,
else one row of them, and its runs follow those of the strip before.
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
"""Bytes of probabilities at the images' own size that are kept for the windows that overlap."""


@dataclass(frozen=True)
class Joined:
    """The mask of a whole image."""

    runs: list[np.ndarray]
    """Of each class (n, 2) int64, 0-based, in the order in which the competition numbers pixels; some touch."""
    areas: np.ndarray
    """Pixels (windows, C) int64 of what belongs to each window."""
    highest: list[float]
    """The highest probability in each window."""


def join(
    whole: table.Whole, rows: dict[str, int], blend: Blend, decision: Decision, order: str, pool: Executor
) -> Joined:
    """Returns the mask of an image from its windows.

    Where windows overlap, probabilities are averaged, with weights that fall towards the edges of a window. The
    decision is made window by window, as tune made it, and each pixel is taken from the window that it belongs to.

    Args:
        whole: the image.
        rows: of each window's id, its row in the predictions.
        blend: the predictions.
        decision: what tune chose.
        order: `column` or `row`.
        pool: runs the windows of a strip.
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
        found = [rle.runs_of(plane, "column" if axis else "row") for plane in strip]
        runs.append([own + [begin, 0] for own in found])
    return Joined([np.concatenate(own) for own in zip(*runs, strict=True)], np.stack(areas), highest)


def _decide(
    whole: table.Whole, number: int, rows: dict[str, int], blend: Blend, decision: Decision, found: "_Windows"
) -> tuple[np.ndarray, float]:
    """The masks (C, h, w) of the pixels that belong to a window, and its highest probability."""
    box, core = whole.boxes[number], whole.cores[number]
    probability = found.blended(number)
    masks = blend.decide(rows[whole.ids[number]], probability, decision)
    inside = slice(core[0] - box[0], core[2] - box[0]), slice(core[1] - box[1], core[3] - box[1])
    return masks[:, *inside], float(probability.max())


class _Windows:
    """Probabilities of the windows of an image at its own size; those that were asked for last are kept."""

    def __init__(self, whole: table.Whole, rows: dict[str, int], blend: Blend) -> None:
        self.whole, self.rows, self.blend = whole, rows, blend
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = Lock()

    def blended(self, number: int) -> np.ndarray:
        """Returns the probabilities (C, h, w) of a window as decisions read them, averaged with its neighbours'."""
        box, own = self.whole.boxes[number], self._own(number)
        near = [other for other, one in enumerate(self.whole.boxes) if other != number and _common(box, one)]
        if not near:
            return own
        weight = _weights(box, self.whole)
        total, weights = own * weight, weight.copy()
        for other in near:
            there = self.whole.boxes[other]
            top, left, bottom, right = _common(box, there) or box
            here = slice(top - box[0], bottom - box[0]), slice(left - box[1], right - box[1])
            part = slice(top - there[0], bottom - there[0]), slice(left - there[1], right - there[1])
            its = _weights(there, self.whole)[part]
            total[:, *here] += self._own(other)[:, *part] * its
            weights[here] += its
        scale: Scale = self.blend.scale
        return scale.native(total / weights)

    def _own(self, number: int) -> np.ndarray:
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
        top, left, bottom, right = self.whole.boxes[number]
        found = self.blend.native(self.rows[self.whole.ids[number]], (bottom - top, right - left))
        with self._lock:
            self._kept[number] = found
            while len(self._kept) > 1 and sum(one.nbytes for one in self._kept.values()) > KEPT:
                self._kept.popitem(last=False)
        return found


def _common(one: Box, other: Box) -> Box | None:
    """The part that two boxes have in common; None where they have none."""
    top, left, bottom, right = (*map(max, one[:2], other[:2]), *map(min, one[2:], other[2:]))
    return (top, left, bottom, right) if top < bottom and left < right else None


def _weights(box: Box, whole: table.Whole) -> np.ndarray:
    """Weights (h, w) float32 of a window: they fall towards its edges, but not towards the image's."""
    sides = []
    for axis in (0, 1):
        first, behind, length = box[axis], box[axis + 2], whole.shape[axis]
        places = np.arange(behind - first, dtype=np.float32) + 0.5
        slope = (behind - first) / 8
        near = np.minimum(places if first else np.inf, (behind - first) - places if behind < length else np.inf)
        sides.append((np.clip(near / slope, 1e-3, 1) if np.ndim(near) else np.ones_like(places)).astype(np.float32))
    return sides[0][:, None] * sides[1]


def texts_of(image_id: str, joined: Joined, want: Expected) -> Texts:
    """Returns what the rows of an image hold, by key; see texts.texts_of."""
    return {
        (image_id, number if want.classed else None): [
            rle.write(joined.runs[number], want.shapes[image_id], want.convention)
        ]
        for number in want.classes
    }
