"""Writes the rows of a submission from the masks of its images. No other code writes them."""

import csv
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from pipeline.core.errors import PipelineError
from pipeline.decode.readers.columns import key_text
from pipeline.predictions.format import cells, further_columns
from pipeline.predictions.format.expected import Expected, Key, Texts

Row = dict[str | None, str]
"""The cells of a row, by the names of its columns."""
Known = Mapping[Key, list[float]]
"""The confidence of masks and instances, as texts.scores_of returns it."""


def write_csv(file: TextIO, texts: Texts, want: Expected, scores: Known | None = None) -> list[str]:
    """Writes the header and all rows as CSV, and returns the image id of every row.

    Args:
        file: the file to write to.
        texts: the merged results of texts_of for all images.
        want: the columns and rows.
        scores: as for rows_of.

    Raises:
        PipelineError: the masks of a key are missing; a part of the file may have been written.
    """
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(want.header)
    if want.settings.format == "labels":
        for key in want.keys:
            _check_known(key, texts, want)
            file.write(f"{want.written.get(key[0], key[0])},{texts[key][0]}\n")
        return [image_id for image_id, _ in want.keys]
    ids = []
    for image_id, row in rows_of(texts, want, scores):
        writer.writerow([row[column] for column in want.header])
        ids.append(image_id)
    return ids


def rows_of(texts: Texts, want: Expected, scores: Known | None = None) -> Iterator[tuple[str, Row]]:
    """Yields every row of a table of run lengths, with the id of its image.

    Args:
        texts: the merged results of texts_of for all images.
        want: the columns and rows.
        scores: the merged results of scores_of for all images; without them a mask has confidence 1, an empty one 0.

    Raises:
        PipelineError: the masks of a key are missing.
    """
    grouped: dict[Key, list[Key]] = {}
    known = scores or {}
    for key in want.keys:
        _check_known(key, texts, want)
        grouped.setdefault(want.row_key(key), []).append(key)
    omitted = _left_out(texts, want)
    for row_key, keys in grouped.items():
        if want.settings.cell:
            every = [score for key in keys for score in known.get(key, _sure(texts[key], want))]
            yield row_key[0], _row(row_key, keys[0], cells.joined(keys, texts, known, want), every, want)
        elif row_key not in omitted:
            confidences = known.get(row_key, _sure(texts[row_key], want))
            for text, score in zip(texts[row_key], confidences, strict=True):
                yield row_key[0], _row(row_key, row_key, text, [score], want)


def _check_known(key: Key, texts: Texts, want: Expected) -> None:
    if key not in texts:
        raise PipelineError(f"test id {want.name(key)} was not decoded: decode again.")


def _left_out(texts: Texts, want: Expected) -> set[Key]:
    """Returns the keys without instances that need no row.

    In COCO results these are all such keys. Where every image needs a row, these are the keys of images that have
    another row.
    """
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


def _row(key: Key, first: Key, text: str, scores: list[float], want: Expected) -> Row:
    name = want.written.get(key[0], key[0])
    label = "" if key[1] is None else want.labels[key[1]]
    image_id = key_text(want.settings, name, label) if want.settings.pattern else name
    row: Row = dict(zip(want.copied, want.further.get(first, [""] * len(want.copied)), strict=True))
    if want.made:
        names: dict[str, Any] = {**want.names.get(key[0], {}), "class": label or want.only_label}
        names["score"] = further_columns.score_text(scores)
        row |= {column: further_columns.filled(template, names) for column, template in want.made.items()}
    return row | {want.settings.label: label, want.settings.id: image_id, want.settings.rle: text}
