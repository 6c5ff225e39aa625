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
        """Whether an instance has a row, or a part of a cell, of its own."""
        return self.competition.submission.row == "instance" or self.competition.submission.cell is not None

    def texts(self, masks: np.ndarray) -> Texts:
        """Returns the label and the text of every row of an image.

        Args:
            masks: (C, h, w) uint8 of 0 and 1, and 255 where a true pixel is ignored, which is written as 0; or label
                maps (C, h, w) int32 of instances.
        """
        competition, labels = self.competition, class_labels(self.competition)
        settings, empty = competition.submission, competition.rle.empty
        if settings.format == "labels":
            values = np.where(masks == IGNORE, 0, masks).argmax(0).ravel().tolist()
            return (("", ",".join(labels[value] for value in values)),)
        found = {}
        for name in competition.foreground:
            number = competition.classes.index(name)
            found[labels[number]] = self._class_texts(masks[number])
        if settings.cell is None:
            pairs = [(label, texts or [empty]) for label, texts in found.items()]
        else:
            cells = {
                label: [_filled(settings.cell, {"class": label, "rle": text}) for text in texts]
                for label, texts in found.items()
            }
            cells = cells if settings.labelled else {"": sum(cells.values(), [])}
            separator = competition.rle.several or " "
            pairs = [(label, [separator.join(texts) or empty]) for label, texts in cells.items()]
        return tuple((label if settings.labelled else "", text) for label, texts in pairs for text in texts)

    def _class_texts(self, plane: np.ndarray) -> list[str]:
        """The run lengths of one class: of its mask, or of each of its instances."""
        convention = rle.convention_of(self.competition.rle)
        if not self.of_instances:
            mask = plane == 1 if plane.dtype == np.uint8 else plane > 0
            return [rle.encode(mask.view(np.uint8), convention)]
        (regions,) = labelled(plane[None])
        return [rle.encode((regions == one).view(np.uint8), convention) for one in np.unique(regions[regions > 0])]

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
    frame = typed(_texts_of(_names_of(images, groups), texts, competition))
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
    wanted = competition.metric_file.solution if competition.metric_file else {}
    names = _names_of(images, groups)
    return {column: [_filled(text, one) for one in names] for column, text in wanted.items()}


def _names_of(images: pd.DataFrame, groups: np.ndarray) -> list[dict[str, Any]]:
    """What templates may name of each image."""
    known = {str(name).removeprefix(EXTRA): images[name].tolist() for name in images if str(name).startswith(EXTRA)}
    known |= {name: images[name].tolist() for name in ("height", "width")}
    known |= {"id": images["image_id"].astype(str).tolist(), "group": groups.tolist()}
    return [dict(zip(known, values, strict=True)) for values in zip(*known.values(), strict=True)]


def _row_id(competition: Competition) -> str:
    settings = competition.metric_file
    return (settings and settings.row_id) or competition.submission.id


def _filled(template: str, values: dict[str, Any]) -> str:
    """A template with every known name in braces replaced; other braces stay."""
    for name, value in values.items():
        template = template.replace(f"{{{name}}}", str(value))
    return template


def _texts_of(names: list[dict[str, Any]], texts: Sequence[Texts], competition: Competition) -> pd.DataFrame:
    """The rows of images, all cells as text, in the columns of a submission."""
    settings = competition.submission
    if settings.format == "labels":
        cells = [[own["id"], *text.split(",")] for own, ((_, text),) in zip(names, texts, strict=True)]
        return pd.DataFrame(cells, columns=[settings.id, *map(str, range(len(cells[0]) - 1))])
    further = {name: str(text) for name, text in settings.columns.items() if name not in (settings.rle, settings.label)}
    only_label = class_labels(competition)[-1] if len(competition.foreground) == 1 else ""
    rows = []
    for own, of_image in zip(names, texts, strict=True):
        for label, text in of_image:
            image_id = key_text(settings, own["id"], label) if settings.pattern else own["id"]
            row = {settings.id: image_id} | ({settings.label: label} if settings.label else {}) | {settings.rle: text}
            known = own | {"class": label or only_label}
            rows.append(row | {name: _filled(template, known) for name, template in further.items()})
    return pd.DataFrame(rows)
