"""Writes test sets that a code competition may use in place of the public one: without images, with one image, or with
other ids, another number of images, other sizes and an unreadable image."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from pipeline.core.config.raw_files import names_in
from pipeline.core.config.raw_layouts import RleCsv
from pipeline.core.errors import PipelineError
from pipeline.core.run import Run
from pipeline.core.tables import is_parquet
from pipeline.decode.readers.base import Item
from pipeline.decode.readers.columns import class_numbers, keys_of
from pipeline.decode.readers.files import read_table
from pipeline.decode.readers.registry import reader_of
from pipeline.kaggle.bundle import project

MOST = 12
"""Maximum number of images in a hidden set."""
SIZE = (13, 7)
"""Rows and columns by which its images are enlarged, if the submission allows several sizes."""


@dataclass(frozen=True)
class HiddenSet:
    """The images of a hidden test set."""

    ids: list[str]
    broken: list[str]
    """Ids of images that cannot be read."""


def why_not(run: Run) -> str:
    """Returns the reason why no hidden test set can be made from a competition's files; "" if it can."""
    competition = run.competition
    if not isinstance(competition, RleCsv) or competition.test is None:
        return "its test images are not one file per id"
    pattern = competition.test.images
    if "*" in pattern or names_in(pattern) != ["id"] or not competition.images_are_files:
        return "its test images are not one file per id"
    if not competition.sample_submission:
        return "it has no sample submission"
    return ""


def write_hidden(run: Run, folder: Path, count: int | None) -> HiddenSet:
    """Writes a hidden test set in the layout of the competition.

    Args:
        run: a run of the competition.
        folder: folder to write to, in place of the competition's input folder.
        count: number of unchanged public images to copy; None: images with other ids, count and sizes, one of them
            broken.

    Raises:
        PipelineError: no hidden test set can be made from the competition's files.
    """
    if reason := why_not(run):
        raise PipelineError(f"no hidden test set can be made for {run.competition.name}: {reason}.")
    competition = run.competition
    assert isinstance(competition, RleCsv) and competition.sample_submission and competition.test
    items = reader_of(competition).list_items(competition, run.input, ["test"]).items
    items = items[: min(MOST, max(3, len(items) // 2 + 1)) if count is None else count]
    known = {item.image_id for item in items}
    names = {item.image_id: item.image_id if count is not None else _other(item.image_id, known) for item in items}
    for number, item in enumerate(items):
        target = folder / (
            item.path if count is not None else competition.test.images.replace("{id}", names[item.image_id])
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        if count is not None:
            shutil.copyfile(run.input / item.path, target)
        elif number == 1:
            target.write_bytes((run.input / item.path).read_bytes()[:20])
        else:
            _write_image(item, target, resize=project.takes_any_size(run))
    sample: pd.DataFrame = read_table(run.input / competition.sample_submission, [], section="submission")
    keys = [image_id or "" for image_id, _ in keys_of(sample, competition.submission, class_numbers(competition))]
    kept = sample[[key in names for key in keys]].copy()
    column = competition.submission.id
    kept[column] = [
        value.replace(key, names[key])
        for value, key in zip(kept[column], filter(names.__contains__, keys), strict=True)
    ]
    path = folder / competition.sample_submission
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_parquet(path):
        kept.to_parquet(path, index=False)
    else:
        kept.to_csv(path, index=False)
    if competition.test.table:
        shutil.copyfile(run.input / competition.test.table, folder / competition.test.table)
    ids = list(names.values())
    return HiddenSet(ids, ids[1:2] if count is None else [])


def _other(image_id: str, known: set[str]) -> str:
    """A new id made of the same kind of characters."""
    other = f"{image_id}7"
    while other in known:
        other += "7"
    return other


def _write_image(item: Item, path: Path, resize: bool) -> None:
    image: np.ndarray = item.read_image()
    if resize:
        height, width = image.shape[0] + SIZE[0], image.shape[1] + SIZE[1]
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR).reshape(height, width, -1)
    order = image[..., ::-1] if image.shape[2] == 3 else image
    path.write_bytes(cv2.imencode(path.suffix, np.ascontiguousarray(order))[1].tobytes())
