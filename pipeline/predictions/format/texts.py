"""The texts and confidences that the rows of a submission hold for the masks of an image."""

import numpy as np

from pipeline.masks import rle
from pipeline.masks.instances import regions_of
from pipeline.predictions.format import cells
from pipeline.predictions.format.expected import Expected, Key, Texts

Scores = dict[Key, list[float]]
"""The confidence of each mask or instance of the texts, from 0 to 1."""


def texts_of(image_id: str, masks: np.ndarray, want: Expected) -> Texts:
    """Returns the texts of an image's rows, by key.

    Args:
        image_id: the image.
        masks: (C, h, w), masks as uint8 of 0 and 1, or label maps of instances as int32.
        want: the format of the submission.
    """
    if want.settings.format == "labels":
        numbers = masks.argmax(0).ravel().tolist()
        return {(image_id, None): [",".join([want.labels[number] for number in numbers])]}
    texts = {}
    for number in want.classes:
        encoded = [rle.encode(part, want.convention) for part in _parts(masks[number], want)]
        texts[image_id, number if want.classed else None] = encoded or [want.convention.empty]
    return texts


def scores_of(image_id: str, masks: np.ndarray, probability: np.ndarray, want: Expected) -> Scores:
    """Returns the confidence of the masks that texts_of returns, in the same order.

    It is the mean probability of a mask's pixels, and 0 for an empty mask. The result is empty if no row of the
    submission holds a confidence.

    Args:
        image_id: the image.
        masks: the same as for texts_of.
        probability: the probabilities of the classes (C, h, w), uint8 up to 255 or float32 up to 1.
        want: the format of the submission.
    """
    if not want.settings.scored:
        return {}
    largest, scores = 255 if probability.dtype == np.uint8 else 1, {}
    for number in want.classes:
        means = [
            float(probability[number].mean(where=part == 1)) / largest
            for part in _parts(masks[number], want)
            if part.any()
        ]
        scores[image_id, number if want.classed else None] = means or [0.0]
    return scores


def cells_of(image_id: str, masks: np.ndarray, want: Expected) -> list[str]:
    """Returns the cells of run lengths of an image's rows, with every confidence 1."""
    texts = texts_of(image_id, masks, want)
    if not want.settings.cell:
        return [text for of_key in texts.values() for text in of_key]
    rows: dict[Key, list[Key]] = {}
    for key in texts:
        rows.setdefault(want.row_key(key), []).append(key)
    return [cells.joined(keys, texts, {}, want) for keys in rows.values()]


def instances_of(mask: np.ndarray) -> list[np.ndarray]:
    """Returns one mask per instance.

    A mask (h, w) uint8 of 0 and 1 has one instance per region, whose pixels are connected by sides or corners. A label
    map (h, w) int32 has one instance per number.
    """
    labels = regions_of(mask) if mask.dtype == np.uint8 else mask
    return [(labels == number).astype(np.uint8) for number in np.unique(labels[labels > 0])]


def _parts(mask: np.ndarray, want: Expected) -> list[np.ndarray]:
    return instances_of(mask) if want.by_instance else [(mask > 0).view(np.uint8)]
