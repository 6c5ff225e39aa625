"""The two tables that a competition's published metric takes, for any images, also training images.

Predicted and true masks become rows through the code that writes submissions, and the rows are read back as Kaggle
reads them. Only the further columns that exist in the sample submission alone are missing.
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
    """Makes solution and submission tables for some images."""

    competition: Competition
    images: pd.DataFrame
    """The rows of the images in decode's tables."""
    groups: np.ndarray
    """The group of each image (N,); images of one group are resampled together."""
    want: Expected
    """The format of the rows."""

    def texts(self, image_id: str, masks: np.ndarray) -> Texts:
        """Returns the texts of an image's rows; see texts.texts_of."""
        return row_texts.texts_of(image_id, masks, self.want)

    def true_texts(self, row: Any) -> Texts:
        """Returns the texts of the true masks of a row of decode's table, or of its true instances if instances are
        submitted separately. Ignored pixels are written as background."""
        if self.want.by_instance:
            return self.texts(str(row["image_id"]), table.scored_instances(row, self.competition))
        masks = table.scored_mask(row, self.competition)
        return self.texts(str(row["image_id"]), np.where(masks == IGNORE, 0, masks).astype(np.uint8))

    def submission(self, texts: Iterable[Texts]) -> Table:
        """Returns the rows of all images, with dtypes as read from CSV.

        Args:
            texts: the result of `texts` for each image.
        """
        written = {key: value for of_image in texts for key, value in of_image.items()}
        file = io.StringIO(newline="")
        ids = np.array(rows.write_csv(file, written, self.want), dtype=str)
        file.seek(0)
        groups = dict(zip(self.images["image_id"].astype(str), self.groups.astype(str), strict=True))
        settings = self.competition.metric_file
        row_id = (settings and settings.row_id) or self.competition.submission.id
        return Table(pd.read_csv(file), ids, np.array([groups[image_id] for image_id in ids], dtype=str), (row_id,))

    def solution(self, texts: Iterable[Texts]) -> Table:
        """Returns the same as `submission` for the true masks, with the further columns of the raw table and those of
        `metric: {solution: …}`.

        Raises:
            PipelineError: `metric: {solution: …}` names a column that images do not have.
        """
        rows_of_truth, settings = self.submission(texts), self.competition.metric_file
        assert settings is not None  # the caller has a published metric
        extra = {
            str(name).removeprefix(further_columns.EXTRA): self.images[name].tolist()
            for name in self.images
            if str(name).startswith(further_columns.EXTRA)
        }
        values = extra | columns_of(self.images, self.groups, self.competition)
        places = {image_id: place for place, image_id in enumerate(self.images["image_id"].astype(str))}
        of_rows, frame = [places[image_id] for image_id in rows_of_truth.images], rows_of_truth.frame
        added = {name: [column[place] for place in of_rows] for name, column in values.items() if name not in frame}
        named = [key for key, text in settings.solution.items() if "{id}" in text or "{group}" in text]
        named += [key for key, column in extra.items() if column == self.groups.tolist()]
        frame = pd.concat([frame, pd.DataFrame(added, index=frame.index)], axis=1)
        return replace(rows_of_truth, frame=typed(frame), named=(*rows_of_truth.named, *named))


def metric_tables(images: pd.DataFrame, groups: np.ndarray, competition: Competition) -> MetricTables:
    """Returns the maker of solution and submission tables for some images.

    Args:
        images: the rows of the images in decode's tables.
        groups: the group of each image (N,); images of one group are resampled together.
        competition: the competition, for the format of its submissions and its published metric.

    Raises:
        PipelineError: instances have several classes, which needs the sample submission, and it cannot be read; or
            `submission.columns` gives two images the same id.
    """
    submitted = images.assign(subset="test", group=groups)
    without_sample = competition.model_copy(update={"sample_submission": None})
    want = expected_of(without_sample, input_folder(competition), submitted, complete=False)
    if want.by_instance and len(want.classes) > 1 and competition.sample_submission:
        # the sample submission tells whether each class of an image has a row
        want = replace(want, needed=expected_of(competition, input_folder(competition), submitted[:0]).needed)
    return MetricTables(competition, images, groups, want)


def columns_of(images: pd.DataFrame, groups: np.ndarray, competition: Competition) -> dict[str, list[str]]:
    """Returns the columns of `metric: {solution: …}`, with one value per image of decode's table.

    Raises:
        PipelineError: a column is made from one that images do not have.
    """
    wanted = competition.metric_file.solution if competition.metric_file else {}
    templates = {f"metric.solution.{column}": text for column, text in wanted.items()}
    names = further_columns.names_of(images.assign(group=groups), templates, of_rows=())
    ids = images["image_id"].astype(str)
    return {
        column: [further_columns.filled(text, names.get(image_id, {})) for image_id in ids]
        for column, text in wanted.items()
    }
