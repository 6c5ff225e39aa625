"""Rows of masks in the format of a competition's submission, as the two tables that its published metric takes.

Predicted masks of any images, training images among them, and their true ones become rows as encode writes them: one
per image, per class or per instance.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from pipeline.core.config.competition import Competition
from pipeline.decode import table
from pipeline.decode.readers.columns import class_labels, key_text
from pipeline.masks import rle
from pipeline.masks.geometry import IGNORE
from pipeline.masks.instances import labelled
from pipeline.predictions.published import Table, typed

EXTRA = "extra_"
"""What the names of the raw table's further columns begin with in decode's table."""
Texts = tuple[tuple[str, str], ...]
"""The label and the text of every row of an image."""


@dataclass(frozen=True)
class Format:
    """How a competition's submission writes masks."""

    competition: Competition

    @property
    def of_instances(self) -> bool:
        """Whether an instance has a row, or a part of a row, of its own."""
        return self.competition.submission.row == "instance" or self.competition.rle.several is not None

    def texts(self, masks: np.ndarray) -> Texts:
        """Returns the label and the text of every row of an image.

        Args:
            masks: (C, h, w) uint8 of 0 and 1, and 255 where a true pixel is ignored, which is written as 0; or label
                maps (C, h, w) int32 of instances.
        """
        competition, labels = self.competition, class_labels(self.competition)
        if competition.submission.format == "labels":
            values = np.where(masks == IGNORE, 0, masks).argmax(0).ravel().tolist()
            return (("", ",".join(labels[value] for value in values)),)
        rows: list[tuple[str, str]] = []
        for name in competition.foreground:
            number = competition.classes.index(name)
            label = labels[number] if competition.submission.labelled else ""
            rows += [(label, text) for text in self._class_texts(masks[number])]
        return tuple(rows)

    def _class_texts(self, plane: np.ndarray) -> list[str]:
        """The texts of the rows of one class."""
        convention, several = rle.convention_of(self.competition.rle), self.competition.rle.several
        if not self.of_instances:
            return [rle.encode((plane == 1).view(np.uint8), convention)]
        (regions,) = labelled(plane[None])
        parts = [rle.encode((regions == one).view(np.uint8), convention) for one in np.unique(regions[regions > 0])]
        if several is not None:
            return [several.join(parts) or convention.empty]
        return parts or [convention.empty]

    def true_texts(self, row: Any) -> Texts:
        """Returns `texts` of the true masks of a row of decode's table, or of its instances where each has a row."""
        truth = table.scored_instances if self.of_instances else table.scored_mask
        return self.texts(truth(row, self.competition))


def submission(images: pd.DataFrame, texts: Sequence[Texts], groups: np.ndarray, competition: Competition) -> Table:
    """Returns the submission of some images, typed as read from CSV.

    Args:
        images: rows of decode's table.
        texts: what `Format.texts` says of each of them.
        groups: what each is drawn together with (N,).
        competition: the columns.
    """
    places = np.repeat(np.arange(len(images)), [len(one) for one in texts])
    ids = images["image_id"].astype(str).to_numpy()
    frame = typed(_texts_of(ids.tolist(), texts, competition))
    return Table(frame, ids[places], groups.astype(str)[places], (_row_id(competition),))


def solution(images: pd.DataFrame, texts: Sequence[Texts], groups: np.ndarray, competition: Competition) -> Table:
    """Returns what `submission` does of the true masks, with the further columns of the raw table and those of `metric:
    {solution: …}`."""
    found, settings = submission(images, texts, groups, competition), competition.metric_file
    assert settings is not None  # the caller has a published metric
    places = np.repeat(np.arange(len(images)), [len(one) for one in texts])
    extra = {str(name).removeprefix(EXTRA): images[name].tolist() for name in images if str(name).startswith(EXTRA)}
    own = extra | columns_of(images, groups, competition)
    added = {name: [values[place] for place in places] for name, values in own.items() if name not in found.frame}
    named = [key for key, text in settings.solution.items() if "{id}" in text or "{group}" in text]
    named += [key for key, values in extra.items() if values == groups.tolist()]
    frame = pd.concat([found.frame, pd.DataFrame(added, index=found.frame.index)], axis=1)
    return replace(found, frame=typed(frame), named=(*found.named, *named))


def columns_of(images: pd.DataFrame, groups: np.ndarray, competition: Competition) -> dict[str, list[str]]:
    """Returns the columns of `metric: {solution: …}`, with a value for every image of decode's table."""
    known = {str(name).removeprefix(EXTRA): images[name].tolist() for name in images if str(name).startswith(EXTRA)}
    known |= {name: images[name].tolist() for name in ("height", "width")}
    known |= {"id": images["image_id"].tolist(), "group": groups.tolist()}
    cells = [dict(zip(known, values, strict=True)) for values in zip(*known.values(), strict=True)]
    wanted = competition.metric_file.solution if competition.metric_file else {}
    return {column: [_filled(text, one) for one in cells] for column, text in wanted.items()}


def _row_id(competition: Competition) -> str:
    settings = competition.metric_file
    return (settings and settings.row_id) or competition.submission.id


def _filled(template: str, values: dict[str, Any]) -> str:
    """A template with every known name in braces replaced; other braces stay."""
    for name, value in values.items():
        template = template.replace(f"{{{name}}}", str(value))
    return template


def _texts_of(ids: list[str], texts: Sequence[Texts], competition: Competition) -> pd.DataFrame:
    """The rows of images, all cells as text, in the columns of a submission."""
    settings = competition.submission
    if settings.format == "labels":
        cells = [[image_id, *text.split(",")] for image_id, ((_, text),) in zip(ids, texts, strict=True)]
        return pd.DataFrame(cells, columns=[settings.id, *map(str, range(len(cells[0]) - 1))])
    rows = []
    for image_id, own in zip(ids, texts, strict=True):
        for label, text in own:
            row = {settings.id: key_text(settings, image_id, label) if settings.pattern else image_id}
            rows.append(row | ({settings.label: label} if settings.label else {}) | {settings.rle: text})
    return pd.DataFrame(rows)
