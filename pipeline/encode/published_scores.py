"""Scores a submission against known masks with the competition's published metric."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.core.config.competition import Competition
from pipeline.core.errors import PipelineError
from pipeline.core.tables import column_names
from pipeline.decode import table
from pipeline.decode.readers.columns import keys_of, units_by_id
from pipeline.encode.rows import read_frame
from pipeline.predictions import metric_tables, published
from pipeline.predictions.format.expected import Expected

Key = tuple[str | None, str | None]
"""The image id and the label of a row."""


def score(
    path: Path, truth: Path, competition: Competition, want: Expected, only: Collection[str] | None = None
) -> tuple[float, int]:
    """Returns the published metric of a submission over the rows of `truth`, and their number.

    If rows are instances, the number is that of images. The solution has the columns of the truth and those of
    `metric: {solution: …}` that the truth lacks.

    Args:
        path: the submission.
        truth: known masks, in the submission's format; it may have further columns.
        competition: the competition, for its metric.
        want: the expected content of a submission.
        only: the ids of the images to score; None scores all.

    Raises:
        PipelineError: as encode.scoring.score; or the metric fails; or `metric: {solution: …}` names a column that
            images do not have.
    """
    solution, predicted = read_frame(truth, want), read_frame(path, want)
    true_keys, predicted_keys = _keys(solution, "the truth", want), _keys(predicted, "the submission", want)
    kept = [place for place, (image_id, _) in enumerate(true_keys) if only is None or image_id in only]
    if not kept:
        raise PipelineError("the truth has no rows.")
    places: dict[Key, list[int]] = {}
    for place, key in enumerate(predicted_keys):
        places.setdefault(key, []).append(place)
    known = set(want.images["image_id"].astype(str))
    for place in kept:
        image_id, label = true_keys[place]
        where = "" if true_keys[place] in places else "the submission"
        where = where or ("" if image_id in known else "the competition's images")
        if where:
            named = f"{image_id} with label {label}" if label else image_id
            raise PipelineError(f"truth row {solution.index[place] + 2}: id {named} is not in {where}.")
    keys = list(dict.fromkeys(true_keys[place] for place in kept))
    solution = _completed(solution.iloc[kept], [true_keys[place][0] for place in kept], competition, want)
    # the rows of both tables are in the order of the truth, as on Kaggle
    predicted = predicted.iloc[[place for key in keys for place in places[key]]]
    value = published.load(competition).score(published.typed(solution), published.typed(predicted))
    return value, len(keys)


def _keys(frame: pd.DataFrame, name: str, want: Expected) -> list[Key]:
    """Returns the image id and label of every row."""
    missing = [column for column in want.header if column in want.predicted and column not in frame.columns]
    if missing:
        raise PipelineError(f"{name} lacks the column {', '.join(missing)}; found {column_names(frame.columns)}.")
    if frame.empty:
        raise PipelineError(f"{name} has no rows.")
    images = {text: image_id for image_id, text in want.written.items()}
    return [(images.get(str(name), name), label) for name, label in keys_of(frame, want.settings, want.labels)]


def _completed(solution: pd.DataFrame, ids: list[str | None], competition: Competition, want: Expected) -> pd.DataFrame:
    """Returns the solution with the columns of the YAML that it lacks."""
    images = table.submitted(want.images)
    values = metric_tables.columns_of(images, np.array([*units_by_id(competition, images).values()]), competition)
    places = {image_id: place for place, image_id in enumerate(images["image_id"])}
    lacking = {name: cells for name, cells in values.items() if name not in solution}
    return solution.assign(**{name: [cells[places[image_id]] for image_id in ids] for name, cells in lacking.items()})
