"""What a submission scores against known masks, by the competition's metric."""

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.core.config.competition import Competition
from pipeline.core.errors import PipelineError
from pipeline.decode import table
from pipeline.decode.readers.columns import keys_of
from pipeline.decode.readers.files import read_table
from pipeline.encode import published_scores
from pipeline.encode.submission import Expected, Key, read_labels
from pipeline.masks import rle
from pipeline.masks.instances import from_texts, regions_of
from pipeline.masks.metrics import metric_of
from pipeline.masks.overlaps import confusion


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
    frames = read_table(path, [], hint=""), read_table(truth, [], hint="")
    if competition.kind == "multiclass":
        return _score_classes(*frames, competition, want, only)
    scores, total = _scored(*frames, competition, want, only)
    return total, len(scores)


def truth_ids(truth: Path, want: Expected) -> list[str]:
    """Returns the ids of the images whose masks a truth holds, each once; raises as score does."""
    if want.settings.format == "labels":
        return list(dict.fromkeys(image_id for _, image_id, _ in read_labels(truth, want)))
    return list(dict.fromkeys(image_id for image_id, _ in _texts(read_table(truth, [], hint=""), "the truth", want)))


def row_scores(frame: pd.DataFrame, truth: pd.DataFrame, competition: Competition, want: Expected) -> pd.Series:
    """Returns the competition's metric of every key of `truth`, by image id (and class); raises as score does. Where
    masks of a group are measured together, it is that of the group."""
    return _scored(frame, truth, competition, want)[0]


def _scored(
    frame: pd.DataFrame,
    truth: pd.DataFrame,
    competition: Competition,
    want: Expected,
    only: Collection[str] | None = None,
) -> tuple[pd.Series, float]:
    """The metric of every key of the truth, and of all together."""
    metric = metric_of(competition)
    group_of = _groups(want)
    keys, units, parts = [], [], []
    for key, masks in _pairs(frame, truth, want, metric.instances, only):
        keys.append(want.name(key))
        # each class is scored alone, and the mean is over classes
        units.append(str(key[1]) if metric.unit == "data_set" else f"{group_of[key[0]]}, {key[1]}")
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
    frame: pd.DataFrame,
    truth: pd.DataFrame,
    competition: Competition,
    want: Expected,
    only: Collection[str] | None,
) -> tuple[float, int]:
    """As _score_labels, where rows are the classes of an image; pixels of none are background."""
    maps: dict[str, np.ndarray] = {}
    for key, masks in _pairs(frame, truth, want, only=only):
        both = maps.setdefault(key[0], np.zeros(masks.shape, np.uint8))
        both[masks == 1] = want.classes[0] if key[1] is None else key[1]
    matrices = [confusion(both[0], both[1], len(competition.classes)) for both in maps.values()]
    return _score_matrices(dict(zip(maps, matrices, strict=True)), competition, want), len(maps)


def _score_matrices(matrices: dict[str, np.ndarray], competition: Competition, want: Expected) -> float:
    """The competition's metric of confusion matrices by image id."""
    group_of = _groups(want)
    units = np.array([group_of[image_id] for image_id in matrices])
    return metric_of(competition).score_of(np.stack(list(matrices.values())), units)


def _groups(want: Expected) -> dict[str, str]:
    images = table.submitted(want.images)
    return dict(zip(images["image_id"], table.units_of(images), strict=True))


def _pairs(
    frame: pd.DataFrame,
    truth: pd.DataFrame,
    want: Expected,
    instances: bool = False,
    only: Collection[str] | None = None,
) -> Iterator[tuple[Key, np.ndarray]]:
    """Every key of the truth, with the predicted and the true mask (2, h, w); or label maps of their instances, which
    are the rows, or, where a row is no instance, connected regions."""
    predictions, truths = _texts(frame, "the submission", want), _texts(truth, "the truth", want)
    for key, (row, texts) in truths.items():
        if only is not None and key[0] not in only:
            continue
        if key not in predictions or key[0] not in want.shapes:
            where = "the submission" if key not in predictions else "the competition's images"
            raise PipelineError(f"truth row {row}: id {want.name(key)} is not in {where}.")
        masks = []
        for what, lines in (("submission", predictions[key][1]), (f"truth row {row}", texts)):
            try:
                masks.append(_drawn(lines, want, key[0], instances))
            except rle.RleError as error:
                raise PipelineError(f"{what}: id {want.name(key)}: {error}.") from None
        yield key, np.stack(masks)


def _drawn(texts: list[str], want: Expected, image_id: str, instances: bool) -> np.ndarray:
    """The mask of run lengths, or the label map of its instances."""
    shape = want.shapes[image_id]
    if instances and want.settings.row == "instance":
        return from_texts(texts, shape, want.convention)
    mask = np.max([rle.decode(text, shape, want.convention) for text in texts], axis=0)
    return regions_of(mask) if instances else mask


def _texts(frame: pd.DataFrame, name: str, want: Expected) -> dict[Key, tuple[int, list[str]]]:
    """First row and texts of every key of a submission or a truth."""
    missing = [column for column in want.header if column in want.predicted and column not in frame.columns]
    if missing:
        raise PipelineError(f"{name} lacks the column {', '.join(missing)}; found {', '.join(frame.columns)}.")
    if frame.empty:
        raise PipelineError(f"{name} has no rows.")
    numbers = {label: number for number, label in enumerate(want.labels)}
    found: dict[Key, tuple[int, list[str]]] = {}
    rows, keys = frame.index + 2, keys_of(frame, want.settings, want.labels)
    pairs = zip(rows, keys, frame[want.settings.rle], strict=True)
    for place, (row, (image_id, label), text) in enumerate(pairs):
        if image_id is None or (label is not None and label not in numbers):
            value = frame[want.settings.id].iat[place]
            raise PipelineError(
                f"{name} row {row}: {value!r} (label {label}) names no id and class of the competition."
            )
        key = image_id, None if label is None else numbers[label]
        if key in found and want.settings.row != "instance":
            raise PipelineError(f"{name} row {row} repeats the id {want.name(key)}.")
        found.setdefault(key, (row, []))[1].append(text)
    return found


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
