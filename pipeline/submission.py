"""The file to upload: what it must look like, whether one does, and what it scores against known masks."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import rle, table
from pipeline.competition import Competition
from pipeline.competitions.rle_csv import ids_of, read_table, template_columns
from pipeline.errors import PipelineError
from pipeline.metrics import METRICS, counts
from pipeline.workspace import shown


@dataclass(frozen=True)
class Expected:
    """What a submission of a competition must hold."""

    id_column: str
    rle_column: str
    ids: list[str]
    """In the order of the sample submission, or of the test images where there is none."""
    shapes: dict[str, tuple[int, int]]
    """Native rows × columns of every image, training images included."""
    convention: rle.Convention


def expected(competition: Competition, input_folder: Path, table_path: Path) -> Expected:
    """Returns what a submission must hold, from decode's table and the sample submission.

    Raises:
        PipelineError: decode has not run, or the sample submission lacks a column.
    """
    if not table_path.exists():
        raise PipelineError(f"{shown(table_path)} does not exist; run the decode stage of this competition first.")
    images = table.read_table(table_path)
    shapes = {row.image_id: (int(row.height), int(row.width)) for row in images.itertuples()}
    columns = competition.submission_columns
    if template_columns(columns.id) != [columns.id]:
        raise PipelineError(f"competition {competition.name}: submission.id is {columns.id}; expected one column.")
    ids = images.loc[images["subset"] == "test", "image_id"].tolist()
    if competition.sample_submission:
        sample = read_table(input_folder / competition.sample_submission, [columns.id, columns.rle])
        ids = ids_of(sample, columns.id)
    return Expected(columns.id, columns.rle, ids, shapes, competition.rle.convention())


def faults_of(frame: pd.DataFrame, want: Expected) -> list[str]:
    """Returns every fault of a submission (all values as text), each naming its row; an empty list: it is valid."""
    if list(frame.columns) != [want.id_column, want.rle_column]:
        return [f"columns are {', '.join(frame.columns)}; expected {want.id_column}, {want.rle_column}, in this order"]
    known, first = set(want.ids), {}  # type: tuple[set[str], dict[str, int]]
    faults = []
    rows = zip(frame[want.id_column], frame[want.rle_column], strict=True)
    for row, (image_id, text) in enumerate(rows, start=2):
        if image_id not in known:
            faults.append(f"row {row}: id {image_id!r} is not in the test set")
        elif image_id in first:
            faults.append(f"row {row}: id {image_id} stands in row {first[image_id]} already")
        else:
            first[image_id] = row
            faults += [f"row {row}: id {image_id}: {fault}" for fault in _mask_faults(text, image_id, want)]
    missing = [image_id for image_id in want.ids if image_id not in first]
    if missing:
        faults.append(f"{len(missing)} of {len(want.ids)} test ids are missing: {', '.join(missing[:5])}")
    return faults


def read_submission(path: Path) -> pd.DataFrame:
    """Returns a submission with every value as text, an empty mask as ""."""
    return read_table(path, [], hint="")


def row_scores(frame: pd.DataFrame, truth: pd.DataFrame, competition: Competition, want: Expected) -> pd.Series:
    """Returns the competition's metric of every row of `truth` (submission format, some or all rows), by id.

    Raises:
        PipelineError: a missing column, no rows, a repeated id, a truth id that the submission lacks or that no image
            has, a broken mask.
    """
    for name, one in (("the submission", frame), ("the truth", truth)):
        missing = [column for column in (want.id_column, want.rle_column) if column not in one.columns]
        if missing:
            raise PipelineError(f"{name} lacks the column {', '.join(missing)}; found {', '.join(one.columns)}.")
        repeated = np.flatnonzero(one[want.id_column].duplicated())
        if len(repeated) or one.empty:
            fault = f"row {repeated[0] + 2} repeats the id {one[want.id_column].iat[repeated[0]]}" if len(one) else ""
            raise PipelineError(f"{name} {fault or 'has no rows'}.")
    predictions = dict(zip(frame[want.id_column], frame[want.rle_column], strict=True))
    scores = {}
    for row, (image_id, text) in enumerate(zip(truth[want.id_column], truth[want.rle_column], strict=True), start=2):
        if image_id not in predictions or image_id not in want.shapes:
            where = "the submission" if image_id not in predictions else "the competition's images"
            raise PipelineError(f"truth row {row}: id {image_id} is not in {where}.")
        masks = []
        for what, value in (("submission", predictions[image_id]), (f"truth row {row}", text)):
            try:
                masks.append(rle.decode(value, want.shapes[image_id], want.convention)[None])
            except rle.RleError as error:
                raise PipelineError(f"{what}: id {image_id}: {error}.") from None
        scores[image_id] = float(METRICS[competition.metric](*counts(*masks)).mean())
    return pd.Series(scores, dtype=np.float64)


def _mask_faults(text: str, image_id: str, want: Expected) -> list[str]:
    shape = want.shapes.get(image_id)
    if shape is None:
        return ["no such image was decoded"]
    try:
        again = rle.encode(rle.decode(text, shape, want.convention), want.convention)
    except rle.RleError as error:
        return [str(error)]
    return [] if again == text else [f"is not in canonical form: {text[:40]!r} should be {again[:40]!r}"]
