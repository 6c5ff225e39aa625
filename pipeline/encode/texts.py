"""What the rows of a submission hold for the masks of an image."""

import cv2
import numpy as np

from pipeline.encode import cells
from pipeline.encode.expected import Expected, Key, Texts
from pipeline.masks import rle

Scores = dict[Key, list[float]]
"""How sure each mask or instance of the texts is, 0 to 1."""


def texts_of(image_id: str, masks: np.ndarray, want: Expected) -> Texts:
    """Returns what the rows of an image hold, by key, from its masks (C, h, w) of 0 and 1."""
    if want.settings.format == "labels":
        numbers = masks.argmax(0).ravel().tolist()
        return {(image_id, None): [",".join([want.labels[number] for number in numbers])]}
    texts = {}
    for number in want.classes:
        found = [rle.encode(part, want.convention) for part in _parts(masks[number], want)]
        texts[image_id, number if want.classed else None] = found or [want.convention.empty]
    return texts


def scores_of(image_id: str, masks: np.ndarray, probability: np.ndarray, want: Expected) -> Scores:
    """Returns how sure the masks are that texts_of returns, in the same order: the mean probability of their pixels, 0
    for an empty one; nothing where no row says it.

    Args:
        image_id: the image.
        masks: (C, h, w) of 0 and 1.
        probability: of the classes (C, h, w), uint8 up to 255 or float32 up to 1.
        want: says whether rows have scores.
    """
    if not want.settings.scored:
        return {}
    largest, scores = 255 if probability.dtype == np.uint8 else 1, {}
    for number in want.classes:
        found = [
            float(probability[number].mean(where=part == 1)) / largest
            for part in _parts(masks[number], want)
            if part.any()
        ]
        scores[image_id, number if want.classed else None] = found or [0.0]
    return scores


def disjoint(masks: np.ndarray, probability: np.ndarray, want: Expected) -> np.ndarray:
    """Returns masks (C, h, w) of which no two share a pixel, where the competition forbids that: a pixel stays in the
    mask of the most probable of its classes."""
    if want.settings.overlap != "none" or len(masks) == 1:
        return masks
    best = np.where(masks == 1, probability.astype(np.float32), -1).argmax(0)
    return masks * (best == np.arange(len(masks))[:, None, None]).astype(np.uint8)


def cells_of(image_id: str, masks: np.ndarray, want: Expected) -> list[str]:
    """Returns the cells of run lengths of an image's rows, without scores of their own."""
    texts = texts_of(image_id, masks, want)
    if not want.settings.cell:
        return [text for own in texts.values() for text in own]
    rows: dict[Key, list[Key]] = {}
    for key in texts:
        rows.setdefault(want.row_key(key), []).append(key)
    return [cells.joined(keys, texts, {}, want) for keys in rows.values()]


def instances_of(mask: np.ndarray) -> list[np.ndarray]:
    """Returns a mask (h, w) of 0 and 1 as one mask per connected region (touching by side or corner)."""
    number, regions = cv2.connectedComponents(mask, connectivity=8)
    return [(regions == region).astype(np.uint8) for region in range(1, number)]


def _parts(mask: np.ndarray, want: Expected) -> list[np.ndarray]:
    return instances_of(mask) if want.by_instance else [mask]
