"""The rows of a submission, from the masks of its images: the only code that writes them."""

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
"""How sure masks and instances are, as texts.scores_of says."""


def write_csv(file: TextIO, texts: Texts, want: Expected, scores: Known | None = None) -> list[str]:
    """Writes the header and all rows as CSV, and returns the image id of every row.

    Args:
        file: where.
        texts: what texts_of returned of every image.
        want: the columns and rows.
        scores: as for rows_of.

    Raises:
        PipelineError: masks of a key are missing; then a part may have been written.
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
        texts: what texts_of returned of every image.
        want: the columns and rows.
        scores: what scores_of returned of every image; without them a mask is sure (1), and an empty one 0.

    Raises:
        PipelineError: masks of a key are missing.
    """
    grouped: dict[Key, list[Key]] = {}
    known = scores or {}
    for key in want.keys:
        _check_known(key, texts, want)
        grouped.setdefault(want.row_key(key), []).append(key)
    left = _left_out(texts, want)
    for row_key, keys in grouped.items():
        if want.settings.cell:
            every = [score for key in keys for score in known.get(key, _sure(texts[key], want))]
            yield row_key[0], _row(row_key, keys[0], cells.joined(keys, texts, known, want), every, want)
        elif row_key not in left:
            own = known.get(row_key, _sure(texts[row_key], want))
            for text, score in zip(texts[row_key], own, strict=True):
                yield row_key[0], _row(row_key, row_key, text, [score], want)


def _check_known(key: Key, texts: Texts, want: Expected) -> None:
    if key not in texts:
        raise PipelineError(f"test id {want.name(key)} was not decoded: decode again.")


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
