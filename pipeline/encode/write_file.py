"""Writes submissions, of any kind of file."""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.core.config.competition import Competition
from pipeline.core.config.submission_settings import File
from pipeline.core.errors import PipelineError
from pipeline.decode.readers.columns import key_text
from pipeline.decode.readers.files import read_table
from pipeline.encode import cells, further_columns, mask_images
from pipeline.encode.expected import Expected, Key, Texts, expected_of
from pipeline.encode.file_kinds import writing_table
from pipeline.encode.texts import Scores


def write(path: Path, texts: Texts, want: Expected, scores: Scores | None = None) -> int:
    """Writes a submission and returns its number of rows, or of mask images.

    Args:
        path: where; the file is written as it goes, so it should be a temporary one.
        texts: what texts_of returned of every image.
        want: the kind of file (`want.file`), its columns and rows.
        scores: what scores_of returned of every image; without them a mask is sure (1), and an empty one 0.

    Raises:
        PipelineError: an id of the sample submission was not predicted.
    """
    if want.settings.format == "images":
        return mask_images.write(path, texts, want)
    if want.settings.format == "labels":
        return _write_labels(path, texts, want)
    rows = _rows(texts, want, scores or {})
    if want.file == "json":
        return _write_results(path, rows, want)
    cells_of_rows = [[row[column] for column in want.header] for row in rows]
    with writing_table(path, want.file) as file:
        csv.writer(file, lineterminator="\n").writerows([want.header, *cells_of_rows])
    return len(cells_of_rows)


def _rows(texts: Texts, want: Expected, scores: Mapping[Key, list[float]]) -> Iterator[dict[str | None, str]]:
    """Every row, by the names of its columns."""
    grouped: dict[Key, list[Key]] = {}
    for key in want.keys:
        if key not in texts:
            raise PipelineError(f"test id {want.name(key)} was not decoded: decode again.")
        grouped.setdefault(want.row_key(key), []).append(key)
    left = _left_out(texts, want)
    for row_key, keys in grouped.items():
        if want.settings.cell:
            every = [score for key in keys for score in scores.get(key, _sure(texts[key], want))]
            yield _row(row_key, keys[0], cells.joined(keys, texts, scores, want), every, want)
        elif row_key not in left:
            own = scores.get(row_key, _sure(texts[row_key], want))
            for text, score in zip(texts[row_key], own, strict=True):
                yield _row(row_key, row_key, text, [score], want)


def _left_out(texts: Texts, want: Expected) -> set[Key]:
    """Keys without instances that need no row: all of COCO's results, and of images that have others, where it is
    enough that every image has a row."""
    if want.needed == "keys":
        return set()
    empty = {key for key in want.keys if texts[key] == [want.convention.empty]}
    if want.needed == "nothing":
        return empty
    filled = {key[0] for key in want.keys if key not in empty}
    first = {key[0]: key for key in reversed(want.keys)}
    return {key for key in empty if key[0] in filled or first[key[0]] != key}


def _sure(texts: list[str], want: Expected) -> list[float]:
    return [float(text != want.convention.empty) for text in texts]


def _row(key: Key, first: Key, text: str, scores: list[float], want: Expected) -> dict[str | None, str]:
    name = want.written.get(key[0], key[0])
    label = "" if key[1] is None else want.labels[key[1]]
    image_id = key_text(want.settings, name, label) if want.settings.pattern else name
    row: dict[str | None, str] = dict(zip(want.copied, want.further.get(first, [""] * len(want.copied)), strict=True))
    if want.made:
        names: dict[str, Any] = {**want.names.get(key[0], {}), "class": label or want.only_label}
        names["score"] = further_columns.score_text(scores)
        row |= {column: further_columns.filled(template, names) for column, template in want.made.items()}
    return row | {want.settings.label: label, want.settings.id: image_id, want.settings.rle: text}


def _write_labels(path: Path, texts: Texts, want: Expected) -> int:
    with writing_table(path, want.file, numbers=True) as file:
        csv.writer(file, lineterminator="\n").writerow(want.header)
        for key in want.keys:
            if key not in texts:
                raise PipelineError(f"test id {want.name(key)} was not decoded: decode again.")
            file.write(f"{want.written.get(key[0], key[0])},{texts[key][0]}\n")
    return len(want.keys)


def _write_results(path: Path, rows: Iterator[dict[str | None, str]], want: Expected) -> int:
    """Writes COCO's results, one entry per line."""
    entries = []
    for row in rows:
        entry = {name: _number(row[name]) for name in want.header}
        entries.append(json.dumps(entry | {want.settings.rle: json.loads(row[want.settings.rle])}))
    path.write_text("[" + ",\n".join(entries) + "]\n", encoding="utf-8")
    return len(entries)


def _number(text: str) -> str | int | float:
    """A value as JSON has it: a number where the text is one that reads the same again."""
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
    """Writes a submission with the same answer for every image, before any of them is read; returns its number of rows.

    Args:
        path: where.
        competition: its format.
        input_folder: where its sample submission lies, which says what rows there are.
        ids: of the test images, which count where there is no sample submission.
        usual: the number of the class that every pixel has; None: masks are empty.
        file: the kind of file; None: the competition's.

    Raises:
        PipelineError: the sample submission cannot be read; or rows are class maps, and there is none, so that the
            images' size is not known; or they are mask images.
    """
    if competition.submission.format == "images":
        raise PipelineError(
            f"competition {competition.name}: mask images have the size of images, which are not read yet."
        )
    images = pd.DataFrame({"image_id": ids, "subset": "test", "height": 0, "width": 0})
    want = expected_of(competition, input_folder, images, complete=False)
    want = replace(want, file=file or want.file)
    if want.is_table:
        return write(path, {key: [want.convention.empty] for key in want.keys}, want)
    if want.sample is None:
        raise PipelineError(
            f"competition {competition.name} has no sample submission: it says how many pixels a row has."
        )
    header = read_table(input_folder / want.sample, [want.settings.id]).columns.tolist()
    text = ",".join([want.labels[usual or 0]] * (len(header) - 1))
    return write(path, {key: [text] for key in want.keys}, replace(want, header=header))
