"""The two tables that a competition's published metric takes, of any images, training images among them.

Predicted and true masks become rows by the code that writes submissions, and the rows are read back as Kaggle reads
them; only what the sample submission itself holds in further columns is not in them.
"""

import io
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from pipeline.core.config.competition import Competition
from pipeline.core.run import input_folder
from pipeline.decode import table
from pipeline.masks.geometry import IGNORE
from pipeline.predictions.format import further_columns, rows
from pipeline.predictions.format import texts as row_texts
from pipeline.predictions.format.expected import Expected, Texts, expected_of
from pipeline.predictions.published import Table, typed


@dataclass(frozen=True)
class MetricTables:
    """Makes solutions and submissions of some images."""

    competition: Competition
    images: pd.DataFrame
    """Their rows of decode's tables."""
    groups: np.ndarray
    """What each is drawn together with (N,)."""
    want: Expected
    """The rows that they have."""

    def texts(self, image_id: str, masks: np.ndarray) -> Texts:
        """Returns what the rows of an image hold: texts.texts_of."""
        return row_texts.texts_of(image_id, masks, self.want)

    def true_texts(self, row: Any) -> Texts:
        """Returns `texts` of the true masks of a row of decode's table, or of its instances where each has a row or a
        part of a cell; pixels that are ignored are written as background."""
        if self.want.by_instance:
            return self.texts(str(row["image_id"]), table.scored_instances(row, self.competition))
        masks = table.scored_mask(row, self.competition)
        return self.texts(str(row["image_id"]), np.where(masks == IGNORE, 0, masks).astype(np.uint8))

    def submission(self, texts: Iterable[Texts]) -> Table:
        """Returns the rows of all images, typed as read from CSV.

        Args:
            texts: what `texts` says of each of them.
        """
        written = {key: value for own in texts for key, value in own.items()}
        file = io.StringIO(newline="")
        ids = np.array(rows.write_csv(file, written, self.want), dtype=str)
        file.seek(0)
        groups = dict(zip(self.images["image_id"].astype(str), self.groups.astype(str), strict=True))
        settings = self.competition.metric_file
        row_id = (settings and settings.row_id) or self.competition.submission.id
        return Table(pd.read_csv(file), ids, np.array([groups[one] for one in ids], dtype=str), (row_id,))

    def solution(self, texts: Iterable[Texts]) -> Table:
        """Returns what `submission` does of the true masks, with the further columns of the raw table and those of
        `metric: {solution: …}`.

        Raises:
            PipelineError: one of these names a column that images do not have.
        """
        found, settings = self.submission(texts), self.competition.metric_file
        assert settings is not None  # the caller has a published metric
        extra = {
            str(name).removeprefix(further_columns.EXTRA): self.images[name].tolist()
            for name in self.images
            if str(name).startswith(further_columns.EXTRA)
        }
        values = extra | columns_of(self.images, self.groups, self.competition)
        places = {image_id: place for place, image_id in enumerate(self.images["image_id"].astype(str))}
        of_rows = [places[one] for one in found.images]
        added = {name: [own[place] for place in of_rows] for name, own in values.items() if name not in found.frame}
        named = [key for key, text in settings.solution.items() if "{id}" in text or "{group}" in text]
        named += [key for key, own in extra.items() if own == self.groups.tolist()]
        frame = pd.concat([found.frame, pd.DataFrame(added, index=found.frame.index)], axis=1)
        return replace(found, frame=typed(frame), named=(*found.named, *named))


def metric_tables(images: pd.DataFrame, groups: np.ndarray, competition: Competition) -> MetricTables:
    """Returns what makes solutions and submissions of some images.

    Args:
        images: their rows of decode's tables.
        groups: what each is drawn together with (N,).
        competition: the format of its submissions, and its published metric.

    Raises:
        PipelineError: the sample submission is needed, as instances are of several classes, and cannot be read; or
            `submission.columns` calls two images the same.
    """
    submitted = images.assign(subset="test", group=groups)
    without_sample = competition.model_copy(update={"sample_submission": None})
    want = expected_of(without_sample, input_folder(competition), submitted, complete=False)
    if want.by_instance and len(want.classes) > 1 and competition.sample_submission:
        # the sample submission says whether each class of an image has a row
        want = replace(want, needed=expected_of(competition, input_folder(competition), submitted[:0]).needed)
    return MetricTables(competition, images, groups, want)


def columns_of(images: pd.DataFrame, groups: np.ndarray, competition: Competition) -> dict[str, list[str]]:
    """Returns the columns of `metric: {solution: …}`, with a value for every image of decode's table.

    Raises:
        PipelineError: one names a column that images do not have.
    """
    wanted = competition.metric_file.solution if competition.metric_file else {}
    templates = {f"metric.solution.{column}": text for column, text in wanted.items()}
    names = further_columns.names_of(images.assign(group=groups), templates, of_rows=())
    ids = images["image_id"].astype(str)
    return {
        column: [further_columns.filled(text, names.get(one, {})) for one in ids] for column, text in wanted.items()
    }
