"""What a submission scores against known masks, by the competition's metric."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.core.config.competition import Competition
from pipeline.core.errors import PipelineError
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
"""The column in which Kaggle's solutions say what a row is used for, and its values."""


@dataclass
class Known:
    """What a submission or a truth holds of one key."""

    where: str
    """Its first row, or its mask image."""
    texts: list[str]
    """Run lengths."""
    ignored: str = ""
    """Run lengths of pixels that do not count."""


Masks = dict[Key, Known]


def score(
    path: Path, truth: Path, competition: Competition, want: Expected, only: Collection[str] | None = None
) -> tuple[float, int]:
    """Returns the competition's metric of a submission over the rows of `truth` (submission format, some or all rows),
    and the number of rows (of images, where a row is an instance).

    Args:
        path: the submission.
        truth: known masks, in the submission's format.
        competition: its metric.
        want: what a submission must hold.
        only: ids of images; no others are scored.

    Raises:
        PipelineError: a missing column, no rows, a repeated id, a truth id that the submission lacks or that no image
            has, a broken mask.
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
    """Returns the ids of the images whose masks a truth holds, each once; raises as score does."""
    if want.settings.format == "labels":
        return list(dict.fromkeys(image_id for _, image_id, _ in read_labels(truth, want)))
    return list(dict.fromkeys(image_id for image_id, _ in _read(truth, "the truth", want, of_truth=True)))


def truth_usage(truth: Path, want: Expected) -> dict[str, str] | None:
    """Returns which part of the leaderboard each image of a truth belongs to, by Kaggle's column `Usage`: Public or
    Private, images that are Ignored left out; None where a truth has no such column.

    Raises:
        PipelineError: the column holds something else, an image has rows of both parts, or a part has no image.
    """
    if want.settings.format != "rle":
        return None
    frame = read_frame(truth, want)
    if USAGE not in frame:
        return None
    found: dict[str, str] = {}
    images = {text: image_id for image_id, text in want.written.items()}
    keys = keys_of(frame, want.settings, want.labels)
    for row, (name, _), text in zip(frame.index + 2, keys, frame[USAGE], strict=True):
        image_id, part = images.get(str(name), str(name)), text.strip().capitalize()
        if part not in (*PARTS, "Ignored"):
            raise PipelineError(f"{truth} row {row}: {USAGE} is {text!r}; expected Public, Private or Ignored.")
        if found.setdefault(image_id, part) != part:
            raise PipelineError(f"{truth} row {row}: image {image_id} is {part} here and {found[image_id]} before.")
    if missing := [part for part in PARTS if part not in found.values()]:
        raise PipelineError(f"{truth}: no image is {missing[0]} in the column {USAGE}; expected some of both parts.")
    return {image_id: part for image_id, part in found.items() if part in PARTS}


def row_scores(frame: pd.DataFrame, truth: pd.DataFrame, competition: Competition, want: Expected) -> pd.Series:
    """Returns the competition's metric of every key of `truth`, by image id (and class); raises as score does. Where
    masks of a group are measured together, it is that of the group."""
    predictions, truths = _texts(frame, "the submission", want), _texts(truth, "the truth", want)
    return _scored(predictions, truths, competition, want)[0]


def _scored(
    predictions: Masks,
    truths: Masks,
    competition: Competition,
    want: Expected,
    only: Collection[str] | None = None,
) -> tuple[pd.Series, float]:
    """The metric of every key of the truth, and of all together."""
    metric = metric_of(competition)
    groups = units_by_id(competition, table.submitted(want.images))
    keys, units, parts = [], [], []
    for key, masks in _pairs(predictions, truths, want, metric.instances, only):
        keys.append(want.name(key))
        # each class is scored alone, and the mean is over classes
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
    """As _score_labels, where rows are the classes of an image; pixels of none are background."""
    maps: dict[str, np.ndarray] = {}
    for key, masks in _pairs(predictions, truths, want, only=only):
        both = maps.setdefault(key[0], np.zeros(masks.shape, np.uint8))
        both[masks == 1] = want.classes[0] if key[1] is None else key[1]
        both[masks == IGNORE] = IGNORE
    matrices = [confusion(both[0], both[1], len(competition.classes)) for both in maps.values()]
    return _score_matrices(dict(zip(maps, matrices, strict=True)), competition, want), len(maps)


def _score_matrices(matrices: dict[str, np.ndarray], competition: Competition, want: Expected) -> float:
    """The competition's metric of confusion matrices by image id."""
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
    """Every key of the truth, with the predicted and true mask (2, h, w); or their instances in layers (2, L, h, w),
    which are the rows, or, where a row is no instance, connected regions."""
    for key, known in truths.items():
        if only is not None and key[0] not in only:
            continue
        if key not in predictions or key[0] not in want.shapes:
            where = "the submission" if key not in predictions else "the competition's images"
            raise PipelineError(f"truth {known.where}: id {want.name(key)} is not in {where}.")
        masks = []
        predicted = predictions[key]
        for what, held in ((f"submission {predicted.where}", predicted), (f"truth {known.where}", known)):
            try:
                masks.append(_drawn(held, want, key[0], instances))
            except rle.RleError as error:
                raise PipelineError(f"{what}: id {want.name(key)}: {error}.") from None
        yield key, _stacked(masks) if instances else np.stack(masks)


def _drawn(held: Known, want: Expected, image_id: str, instances: bool) -> np.ndarray:
    """The mask (h, w) of run lengths, with 255 where pixels do not count, or its instances in layers (L, h, w), with -1
    there."""
    shape = want.shapes[image_id]
    if instances and want.by_instance:
        return layers_from_texts(held.texts, shape, want.convention)
    mask = np.max([rle.decode(text, shape, want.convention) for text in held.texts], axis=0)
    drawn = regions_of(mask) if instances else mask
    if held.ignored:
        drawn[rle.decode(held.ignored, shape, want.convention) == 1] = -1 if instances else IGNORE
    return drawn[None] if instances else drawn


def _stacked(layers: list[np.ndarray]) -> np.ndarray:
    """Instances in layers (L, h, w) as one array; further layers are empty, or ignored where the first one is."""
    most = max(map(len, layers))
    return np.stack([np.concatenate([one, np.minimum(one[:1], 0).repeat(most - len(one), 0)]) for one in layers])


def _read(path: Path, name: str, want: Expected, of_truth: bool = False) -> Masks:
    """What a file of any kind holds."""
    if want.settings.format != "images":
        return _texts(read_frame(path, want), name, want)
    faults: list[str] = []
    found = _by_key(rows_of_images(path, want, faults, of_truth), name, want)
    if faults:
        raise PipelineError(f"{name}: {faults[0]}.")
    return found


def _texts(frame: pd.DataFrame, name: str, want: Expected) -> Masks:
    """What a table holds."""
    missing = [column for column in want.header if column in want.predicted and column not in frame.columns]
    if missing:
        raise PipelineError(f"{name} lacks the column {', '.join(missing)}; found {', '.join(frame.columns)}.")
    if frame.empty and want.needed != "nothing":
        raise PipelineError(f"{name} has no rows.")
    return _by_key(rows_of(frame, want), name, want)


def _by_key(rows: Iterable[Row], name: str, want: Expected) -> Masks:
    numbers = {label: number for number, label in enumerate(want.labels)}
    found: Masks = {}
    for row in rows:
        if row.image_id is None or (row.label is not None and row.label not in numbers):
            raise PipelineError(
                f"{name} {row.where}: {row.value!r} (label {row.label}) names no id and class of the competition."
            )
        key = row.image_id, None if row.label is None else numbers[row.label]
        if row.fault:
            raise PipelineError(f"{name} {row.where}: id {want.name(want.row_key(key))}: {row.fault}.")
        known = found.setdefault(key, Known(row.where, [], row.ignored))
        if known.texts and want.settings.row != "instance" and known.where != row.where:
            raise PipelineError(f"{name} {row.where} repeats the id {want.name(want.row_key(key))}.")
        known.texts.append(row.text)
    return found if want.needed == "keys" else _completed(found, want)


def _completed(found: Masks, want: Expected) -> Masks:
    """With an empty mask for each class that an image has no row of: of all images, where none needs a row."""
    images = {image_id for image_id, _ in found} if want.needed == "images" else set(want.ids)
    blank = Known("nowhere", [want.convention.empty])
    known = set(want.keys)
    strange = {key: masks for key, masks in found.items() if key not in known}
    return {key: found.get(key, blank) for key in want.keys if key[0] in images} | strange


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
