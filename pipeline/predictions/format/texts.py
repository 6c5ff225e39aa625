"""What the rows of a submission hold for the masks of an image."""

import numpy as np

from pipeline.masks import rle
from pipeline.masks.instances import regions_of
from pipeline.predictions.format import cells
from pipeline.predictions.format.expected import Expected, Key, Texts

Scores = dict[Key, list[float]]
"""How sure each mask or instance of the texts is, 0 to 1."""


def texts_of(image_id: str, masks: np.ndarray, want: Expected) -> Texts:
    """Returns what the rows of an image hold, by key, from its masks (C, h, w) uint8 of 0 and 1, or from label maps
    (C, h, w) int32 of its instances."""
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
        masks: as those of texts_of.
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
    """Returns a mask (h, w) uint8 of 0 and 1 as one mask per connected region (touching by side or corner), or a label
    map (h, w) int32 as one mask per number."""
    labels = regions_of(mask) if mask.dtype == np.uint8 else mask
    return [(labels == number).astype(np.uint8) for number in np.unique(labels[labels > 0])]


def _parts(mask: np.ndarray, want: Expected) -> list[np.ndarray]:
    return instances_of(mask) if want.by_instance else [(mask > 0).view(np.uint8)]
