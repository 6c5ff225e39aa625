"""Scores a submission against known masks with the competition's metric."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.core.config.competition import Competition
from pipeline.core.errors import PipelineError
from pipeline.core.tables import column_names
from pipeline.decode import table
from pipeline.decode.readers.columns import keys_of, units_by_id
from pipeline.encode import published_scores
from pipeline.encode.class_maps import read_labels
from pipeline.encode.rows import Row, read_frame, rows_of, rows_of_images
from pipeline.masks import rle
from pipeline.masks.geometry import IGNORE
from pipeline.masks.instances import layers_from_texts, regions_of
from pipeline.masks.metrics import metric_of
from pipeline.masks.overlaps import confusion
from pipeline.predictions.format.expected import Expected, Key

USAGE, PARTS = "Usage", ("Public", "Private")
"""The column of a Kaggle solution that gives the part of the leaderboard of each row, and its values."""


@dataclass
class Known:
    """The content of a submission or a truth for one key."""

    where: str
    """The first row or the mask image of the key, for messages."""
    texts: list[str]
    """Run lengths."""
    ignored: str = ""
    """Run lengths of the pixels that do not count."""


Masks = dict[Key, Known]


def score(
    path: Path, truth: Path, competition: Competition, want: Expected, only: Collection[str] | None = None
) -> tuple[float, int]:
    """Returns the competition's metric of a submission over the rows of `truth`, and the number of these rows.

    If rows are instances, the number is that of images.

    Args:
        path: the submission.
        truth: known masks in the submission's format, for some or all of its rows.
        competition: the competition, for its metric.
        want: the expected content of a submission.
        only: the ids of the images to score; None scores all.

    Raises:
        PipelineError: a column is missing, there are no rows, an id is repeated, an id of the truth is missing in the
            submission or among the images, or a mask cannot be decoded.
    """
    if competition.metric_file:
        return published_scores.score(path, truth, competition, want, only)
    if want.settings.format == "labels":
        return _score_labels(path, truth, competition, want, only)
    predictions, truths = _read(path, "the submission", want), _read(truth, "the truth", want, of_truth=True)
    if competition.kind == "multiclass":
        return _score_classes(predictions, truths, competition, want, only)
    scores, total = _scored(predictions, truths, competition, want, only)
    return total, len(scores)


def truth_ids(truth: Path, want: Expected) -> list[str]:
    """Returns the ids of the images in a truth, without repetitions; raises as score does."""
    if want.settings.format == "labels":
        return list(dict.fromkeys(image_id for _, image_id, _ in read_labels(truth, want)))
    return list(dict.fromkeys(image_id for image_id, _ in _read(truth, "the truth", want, of_truth=True)))


def truth_usage(truth: Path, want: Expected) -> dict[str, str] | None:
    """Returns the part of the leaderboard, Public or Private, by image id, from the column `Usage` of a truth.

    Images with the value Ignored are left out. None if the truth has no such column.

    Raises:
        PipelineError: the column has another value, the rows of an image have different values, or a part has no image.
    """
    if want.settings.format != "rle":
        return None
    frame = read_frame(truth, want)
    column = next((name for name in frame if str(name).strip().lower() == USAGE.lower()), None)
    if column is None:
        return None
    parts: dict[str, str] = {}
    images = {text: image_id for image_id, text in want.written.items()}
    keys = keys_of(frame, want.settings, want.labels)
    for row, (name, _), text in zip(frame.index + 2, keys, frame[column], strict=True):
        image_id, part = images.get(str(name), str(name)), text.strip().capitalize()
        if part not in (*PARTS, "Ignored"):
            raise PipelineError(f"{truth} row {row}: {USAGE} is {text!r}; expected Public, Private or Ignored.")
        if parts.setdefault(image_id, part) != part:
            raise PipelineError(f"{truth} row {row}: image {image_id} is {part} here and {parts[image_id]} before.")
    if missing := [part for part in PARTS if part not in parts.values()]:
        raise PipelineError(f"{truth}: no image is {missing[0]} in the column {USAGE}; expected some of both parts.")
    return {image_id: part for image_id, part in parts.items() if part in PARTS}


def row_scores(frame: pd.DataFrame, truth: pd.DataFrame, competition: Competition, want: Expected) -> pd.Series:
    """Returns the competition's metric of every key of `truth`, by image id (and class); raises as score does.

    If the masks of a group are measured together, it is the metric of the group.
    """
    predictions, truths = _texts(frame, "the submission", want), _texts(truth, "the truth", want)
    return _scored(predictions, truths, competition, want)[0]


def _scored(
    predictions: Masks,
    truths: Masks,
    competition: Competition,
    want: Expected,
    only: Collection[str] | None = None,
) -> tuple[pd.Series, float]:
    """Returns the metric of every key of the truth, and of all together."""
    metric = metric_of(competition)
    groups = units_by_id(competition, table.submitted(want.images))
    keys, units, parts = [], [], []
    for key, masks in _pairs(predictions, truths, want, metric.instances, only):
        keys.append(want.name(key))
        # classes are scored separately, and their scores are averaged
        units.append(str(key[1]) if metric.unit == "data_set" else f"{groups[key[0]]}, {key[1]}")
        parts.append(masks[:, None] if metric.together else metric.measured(*masks[:, None, None]))
    if not keys:
        return pd.Series(dtype=np.float64), float("nan")
    of_key = np.array(units)
    if metric.together:
        predicted, true = zip(*parts, strict=True)
        measured = metric.measured_all(predicted, true, of_key)
    else:
        measured = np.concatenate(parts)
    scores = pd.Series(metric.by_class(measured)[:, 0], keys, dtype=np.float64)
    if metric.by_image:
        return scores, float(scores.mean())
    if metric.unit == "data_set":
        return scores, float(np.mean([metric.score_of(measured[of_key == unit]) for unit in dict.fromkeys(units)]))
    return scores, metric.score_of(measured, of_key)


def _score_classes(
    predictions: Masks,
    truths: Masks,
    competition: Competition,
    want: Expected,
    only: Collection[str] | None,
) -> tuple[float, int]:
    """Returns the same as _score_labels for rows that hold one class of an image; pixels of no class are background."""
    maps: dict[str, np.ndarray] = {}
    for key, masks in _pairs(predictions, truths, want, only=only):
        both = maps.setdefault(key[0], np.zeros(masks.shape, np.uint8))
        both[masks == 1] = want.classes[0] if key[1] is None else key[1]
        both[masks == IGNORE] = IGNORE
    matrices = [confusion(both[0], both[1], len(competition.classes)) for both in maps.values()]
    return _score_matrices(dict(zip(maps, matrices, strict=True)), competition, want), len(maps)


def _score_matrices(matrices: dict[str, np.ndarray], competition: Competition, want: Expected) -> float:
    """Returns the competition's metric of confusion matrices, given by image id."""
    groups = units_by_id(competition, table.submitted(want.images))
    units = np.array([groups[image_id] for image_id in matrices])
    return metric_of(competition).score_of(np.stack(list(matrices.values())), units)


def _pairs(
    predictions: Masks,
    truths: Masks,
    want: Expected,
    instances: bool = False,
    only: Collection[str] | None = None,
) -> Iterator[tuple[Key, np.ndarray]]:
    """Yields every key of the truth with the predicted and true mask (2, h, w), or with their instances in layers
    (2, L, h, w). Instances are the rows, or the regions of a mask if rows are not instances."""
    for key, known in truths.items():
        if only is not None and key[0] not in only:
            continue
        if key not in predictions or key[0] not in want.shapes:
            where = "the submission" if key not in predictions else "the competition's images"
            raise PipelineError(f"truth {known.where}: id {want.name(key)} is not in {where}.")
        masks = []
        predicted = predictions[key]
        for where, content in ((f"submission {predicted.where}", predicted), (f"truth {known.where}", known)):
            try:
                masks.append(_drawn(content, want, key[0], instances))
            except rle.RleError as error:
                raise PipelineError(f"{where}: id {want.name(key)}: {error}.") from None
        yield key, _stacked(masks) if instances else np.stack(masks)


def _drawn(content: Known, want: Expected, image_id: str, instances: bool) -> np.ndarray:
    """Returns the mask (h, w) of run lengths, with 255 for ignored pixels; or its instances in layers (L, h, w), with
    -1 for ignored pixels."""
    shape = want.shapes[image_id]
    if instances and want.by_instance:
        return layers_from_texts(content.texts, shape, want.convention)
    mask = np.max([rle.decode(text, shape, want.convention) for text in content.texts], axis=0)
    drawn = regions_of(mask) if instances else mask
    if content.ignored:
        drawn[rle.decode(content.ignored, shape, want.convention) == 1] = -1 if instances else IGNORE
    return drawn[None] if instances else drawn


def _stacked(layers: list[np.ndarray]) -> np.ndarray:
    """Returns instances in layers (L, h, w) as one array; added layers are empty and ignored where the first one is."""
    most = max(map(len, layers))
    return np.stack([np.concatenate([part, np.minimum(part[:1], 0).repeat(most - len(part), 0)]) for part in layers])


def _read(path: Path, name: str, want: Expected, of_truth: bool = False) -> Masks:
    """Returns the masks of a file of any kind."""
    if want.settings.format != "images":
        return _texts(read_frame(path, want), name, want)
    faults: list[str] = []
    masks = _by_key(rows_of_images(path, want, faults, of_truth), name, want)
    if faults:
        raise PipelineError(f"{name}: {faults[0]}.")
    return masks


def _texts(frame: pd.DataFrame, name: str, want: Expected) -> Masks:
    """Returns the masks of a table."""
    missing = [column for column in want.header if column in want.predicted and column not in frame.columns]
    if missing:
        raise PipelineError(f"{name} lacks the column {', '.join(missing)}; found {column_names(frame.columns)}.")
    if frame.empty and want.needed != "nothing":
        raise PipelineError(f"{name} has no rows.")
    return _by_key(rows_of(frame, want), name, want)


def _by_key(rows: Iterable[Row], name: str, want: Expected) -> Masks:
    numbers = {label: number for number, label in enumerate(want.labels)}
    masks: Masks = {}
    for row in rows:
        if row.image_id is None or (row.label is not None and row.label not in numbers):
            raise PipelineError(
                f"{name} {row.where}: {row.value!r} (label {row.label}) does not name an id and a class of the "
                "competition."
            )
        key = row.image_id, None if row.label is None else numbers[row.label]
        if row.fault:
            raise PipelineError(f"{name} {row.where}: id {want.name(want.row_key(key))}: {row.fault}.")
        known = masks.setdefault(key, Known(row.where, [], row.ignored))
        if known.texts and want.settings.row != "instance" and known.where != row.where:
            raise PipelineError(f"{name} {row.where} repeats the id {want.name(want.row_key(key))}.")
        known.texts.append(row.text)
    return masks if want.needed == "keys" else _completed(masks, want)


def _completed(submitted: Masks, want: Expected) -> Masks:
    """Returns the masks with an empty mask added for each class without a row, in all images if none needs a row."""
    images = {image_id for image_id, _ in submitted} if want.needed == "images" else set(want.ids)
    blank = Known("nowhere", [want.convention.empty])
    known = set(want.keys)
    strange = {key: masks for key, masks in submitted.items() if key not in known}
    return {key: submitted.get(key, blank) for key in want.keys if key[0] in images} | strange


def _score_labels(
    path: Path, truth: Path, competition: Competition, want: Expected, only: Collection[str] | None
) -> tuple[float, int]:
    truths: dict[str, np.ndarray] = {}
    for row, image_id, labels in read_labels(truth, want):
        if isinstance(labels, str) or image_id in truths:
            raise PipelineError(f"truth row {row}: id {image_id}: {labels if isinstance(labels, str) else 'repeated'}.")
        if only is None or image_id in only:
            truths[image_id] = labels
    if not truths:
        raise PipelineError("the truth has no rows.")
    matrices: dict[str, np.ndarray] = {}
    left = set(truths)
    for row, image_id, labels in read_labels(path, want):
        if isinstance(labels, str):
            raise PipelineError(f"submission row {row}: id {image_id}: {labels}.")
        if image_id in left:
            left.remove(image_id)
            matrices[image_id] = confusion(labels, truths[image_id], len(want.labels))
    if left:
        raise PipelineError(f"truth id {sorted(left)[0]} is not in the submission.")
    return _score_matrices(matrices, competition, want), len(truths)
