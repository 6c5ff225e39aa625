"""Writes submissions of any kind of file."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd

from pipeline.core.config.competition import Competition
from pipeline.core.config.submission_settings import File
from pipeline.core.errors import PipelineError
from pipeline.decode.readers.files import read_table
from pipeline.encode import mask_images
from pipeline.encode.file_kinds import writing_table
from pipeline.predictions.format import rows
from pipeline.predictions.format.expected import Expected, Texts, expected_of
from pipeline.predictions.format.rows import Row
from pipeline.predictions.format.texts import Scores


def write(path: Path, texts: Texts, want: Expected, scores: Scores | None = None) -> int:
    """Writes a submission and returns its number of rows, or of mask images.

    Args:
        path: the file to write. It is written in place, so it should be a temporary file.
        texts: the merged results of texts_of for all images.
        want: the kind of file (`want.file`), its columns and rows.
        scores: the merged results of scores_of for all images; without them a mask has confidence 1, an empty one 0.

    Raises:
        PipelineError: an id of the sample submission was not predicted.
    """
    if want.settings.format == "images":
        return mask_images.write(path, texts, want)
    if want.file == "json":
        return _write_results(path, (row for _, row in rows.rows_of(texts, want, scores)), want)
    with writing_table(path, want.file, numbers=want.settings.format == "labels") as file:
        return len(rows.write_csv(file, texts, want, scores))


def _write_results(path: Path, of_submission: Iterator[Row], want: Expected) -> int:
    """Writes COCO results, one entry per line."""
    entries = []
    for row in of_submission:
        entry = {name: _number(row[name]) for name in want.header}
        entries.append(json.dumps(entry | {want.settings.rle: json.loads(row[want.settings.rle])}))
    path.write_text("[" + ",\n".join(entries) + "]\n", encoding="utf-8")
    return len(entries)


def _number(text: str) -> str | int | float:
    """Returns the value of a text for JSON: a number if it is written exactly like the text, else the text."""
    for kind in (int, float):
        try:
            if str(kind(text)) == text:
                return kind(text)
        except ValueError:
            continue
    return text


def write_constant(
    path: Path,
    competition: Competition,
    input_folder: Path,
    ids: list[str],
    usual: int | None,
    file: File | None = None,
) -> int:
    """Writes a submission with the same answer for every image, without reading any image; returns its number of rows.

    Args:
        path: the file to write.
        competition: the competition, for its format.
        input_folder: the folder of its sample submission, which lists the rows.
        ids: the ids of the test images, which are used if there is no sample submission.
        usual: the number of the class that every pixel gets; None writes empty masks.
        file: the kind of file; None is the competition's.

    Raises:
        PipelineError: the sample submission cannot be read; or rows are class maps and there is no sample submission,
            so that the size of the images is not known; or the submission consists of mask images.
    """
    if competition.submission.format == "images":
        raise PipelineError(
            f"competition {competition.name}: mask images need the size of the images, which have not been read yet."
        )
    images = pd.DataFrame({"image_id": ids, "subset": "test", "height": 0, "width": 0})
    want = expected_of(competition, input_folder, images, complete=False)
    want = replace(want, file=file or want.file)
    if want.is_table:
        return write(path, {key: [want.convention.empty] for key in want.keys}, want)
    if want.sample is None:
        raise PipelineError(
            f"competition {competition.name} has no sample submission, which is needed for the number of pixels per "
            "row."
        )
    header = read_table(input_folder / want.sample, [want.settings.id]).columns.tolist()
    text = ",".join([want.labels[usual or 0]] * (len(header) - 1))
    return write(path, {key: [text] for key in want.keys}, replace(want, header=header))
