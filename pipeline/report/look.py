"""Reads the tables that stages wrote, and draws images with masks and predictions, for notebooks and the report.

Nothing in this module changes a file.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from pipeline.core.errors import PipelineError
from pipeline.core.files import shown
from pipeline.core.intact import explained, require_intact
from pipeline.core.results import read_submission, read_tuned, searched_by
from pipeline.core.run import Run
from pipeline.core.tables import as_written
from pipeline.core.trainings import history_of, read_training
from pipeline.core.written import again, damaged
from pipeline.decode import table
from pipeline.decode.readers.registry import reader_of
from pipeline.masks import overlay
from pipeline.masks.decision import decision_of
from pipeline.masks.metric import Metric
from pipeline.masks.metrics import metric_of
from pipeline.masks.separation import with_gaps
from pipeline.predictions import blends
from pipeline.report import charts
from pipeline.split.folds import read_audit, read_folds, read_outliers

Subset = Literal["train", "test"]
EACH = 208
"""Width of one picture on a sheet, in pixels."""
FINDING = {"image_id": str, "reason": str, "partner_id": str, "action": str}
SUSPECT = {"image_id": str, "reason": str, "note": str}
SCORE = {"image_id": str, "fold": int, "group": str, "use": str, "true_area": int, "score": float}
"""Columns that these tables must have, and their types."""


def images(run: Run, subset: str | None = None) -> pd.DataFrame:
    """Returns one row per image, of all images or of one subset (train or test); decode/table.py lists the columns."""
    if subset is None:
        _require(run.table, run, "decode")
        return table.read_tables(run.competition_folder)
    path = run.test_table if subset == "test" else run.table
    _require(path, run, "decode")
    return table.read_table(path, subset)


def findings(run: Run) -> pd.DataFrame:
    """Returns one row per finding of clean: image_id, reason, score, partner_id, action, note."""
    _require(run.outliers, run, "clean")
    return read_outliers(run)


def test_duplicates(run: Run) -> pd.DataFrame:
    """Returns one row per training image that is a near-duplicate of a test image, with the columns of `findings`."""
    _require(run.test_duplicates, run, "clean")
    return read_written(run.test_duplicates, FINDING, "clean")


def folds(run: Run) -> pd.DataFrame:
    """Returns one row per training image: image_id, fold, use, group."""
    _require(run.folds_file, run, "split")
    return read_folds(run)


def audit(run: Run) -> dict[str, Any]:
    """Returns the audit of the split: one row per fold, and whether the folds leak."""
    _require(run.audit, run, "split")
    return read_audit(run)


def trainings(run: Run) -> charts.Trainings:
    """Returns the summary (fold.json) and the epochs (history.json) of every finished training, by its title.

    If history.json is missing, the table of epochs is empty.

    Raises:
        PipelineError: one of these files is damaged.
    """
    of_folds: list[int | None] = [*run.trained_folds(), *([None] if run.recipe.train.final else [])]
    members = [member for fold in of_folds for member in run.members(fold)]
    folders = {member.title: run.fold_folder(member.fold, member.seed) for member in members}
    return {
        title: (read_training(folder / "fold.json"), history_of(folder / "history.json"))
        for title, folder in folders.items()
        if (folder / "fold.json").exists()
    }


def network(run: Run) -> str:
    """Returns the layers of the run's network as text; "" if no training has written them.

    Raises:
        PipelineError: the file is damaged.
    """
    folders = [
        run.fold_folder(member.fold, member.seed) for fold in run.trained_folds() for member in run.members(fold)
    ]
    for path in (folder / "model.txt" for folder in folders):
        if path.exists():
            with explained(path):
                return path.read_text(encoding="utf-8")
    return ""


def result(run: Run) -> dict[str, Any]:
    """Returns the choices of tune and their scores (postprocess.json)."""
    _require(run.postprocess, run, "tune")
    return read_tuned(run)


def metric(run: Run) -> Metric:
    """Returns the built-in metric that scores single images: the competition's metric, or, if the competition brings
    its own function for the final score, the metric used in tuning."""
    name = searched_by(read_tuned(run)) if run.postprocess.exists() else run.competition.metric
    return metric_of(run.competition.model_copy(update={"metric": name}))


def record(run: Run) -> dict[str, Any]:
    """Returns the record of the submission: its statistics, the verdict with its reasons, and the score to expect."""
    _require(run.record, run, "encode")
    return read_submission(run)


def scores(run: Run) -> pd.DataFrame:
    """Returns one row per held-out image: image_id, fold, group, use, true_area, score, untuned."""
    path = run.folder / "oof_scores.csv"
    _require(path, run, "tune")
    return read_written(path, SCORE, "tune")


def suspects(run: Run) -> pd.DataFrame:
    """Returns one row per image whose label the networks contradict, the most likely labelling error first.

    Images that clean dropped are left out.
    """
    _require(run.suspects, run, "tune")
    listed = read_written(run.suspects, SUSPECT, "tune")
    rows = scores(run)
    return listed[~listed["image_id"].isin(rows["image_id"][rows["use"] == "drop"])].reset_index(drop=True)


# --- pictures --------------------------------------------------------------------------------------------------------


def painter(run: Run, predicted: bool = False, subset: Subset = "train") -> Callable[[str], np.ndarray]:
    """Returns a function that draws an image with its masks, given the image's id, as (H, W, 3) uint8.

    Args:
        run: the run.
        predicted: whether to draw the tuned held-out prediction as well as the true mask.
        subset: `train` draws training images with their true masks, `test` draws test images with the submitted masks.
    """
    rows = images(run, subset).set_index("image_id", drop=False)
    read = opener(run)
    predict = predictor(run, subset) if predicted or subset == "test" else None

    def paint(image_id: str) -> np.ndarray:
        row = rows.loc[image_id]
        image = read(row)
        masks = predict(image_id, run.competition.scored_shape(image.shape[:2])).masks if predict else None
        true = table.scored_mask(row, run.competition) if subset == "train" else None
        return overlay.drawn(image, true, masks, run.competition)

    return paint


def sheet(
    run: Run, image_ids: Iterable[str], predicted: bool = False, subset: Subset = "train", across: int = 6
) -> Any:
    """Returns a PIL image of several images drawn by `painter`, for display in a notebook; blank without images.

    Args:
        run: the run.
        image_ids: ids of the images.
        predicted: whether to draw the held-out predictions as well.
        subset: train or test.
        across: number of images per row.
    """
    from PIL import Image

    paint = painter(run, predicted, subset)
    tiles = [([paint(image_id)], image_id) for image_id in image_ids]
    if not tiles:
        return Image.new("RGB", (EACH, 20), "white")
    return Image.fromarray(overlay.contact_sheet(tiles, EACH, across))


def opener(run: Run) -> Callable[[Any], np.ndarray]:
    """Returns a function that reads an image (H, W, C) from the raw files, given its row of images.parquet."""
    return reader_of(run.competition).opener(run.competition, run.input)


@dataclass(frozen=True)
class Predicted:
    """The prediction of a run for one image, at the size at which it is scored."""

    probability: np.ndarray
    """(C, H, W) uint8 (p·255); float32 for multiclass."""
    masks: np.ndarray
    """(C, H, W) uint8 of 0 and 1, by the tuned rule, with a gap between separated objects."""


def predictor(run: Run, subset: Subset) -> Callable[[str, tuple[int, int]], Predicted]:
    """Returns a function that reads the prediction for an image, given its id and its shape (rows, columns).

    Training images are predicted by the models of the fold that held them out.

    Raises:
        PipelineError: tune has not run, or predictions are missing.
    """
    chosen = result(run)
    decision = decision_of(chosen)

    @cache
    def blend_of(fold: int | None) -> tuple[blends.Blend, dict[str, int]]:
        if fold is None:
            blend = blends.test(run, chosen)
        else:
            blend = blends.out_of_fold(run, fold, blends.plain_of(run))
            blend = replace(blend, weights=blends.weights_of(run, chosen))
        return blend, {image_id: row for row, image_id in enumerate(blend.ids)}

    fold_of = scores(run).set_index("image_id")["fold"].to_dict() if subset == "train" else {}

    def predict(image_id: str, shape: tuple[int, int]) -> Predicted:
        blend, row_of = blend_of(fold_of.get(image_id))
        probability = blend.native(row_of[image_id], shape)
        return Predicted(probability, with_gaps(blend.objects(row_of[image_id], probability, decision)))

    return predict


def read_written(path: Path, columns: Mapping[str, type], stage: str) -> pd.DataFrame:
    """Returns a CSV that a stage wrote; empty fields are "".

    Args:
        path: the file.
        columns: columns that it must have, with their types.
        stage: the stage that wrote it.

    Raises:
        PipelineError: the file is damaged.
    """
    try:
        texts = {name: str for name, held in columns.items() if held is str}
        read = pd.read_csv(path, dtype=texts, keep_default_na=False)  # an id may be "NA"
        if lacking := [name for name in columns if name not in read]:
            raise damaged(path, f"the column {lacking[0]} is missing", again(stage))
        numbers = [name for name in ("true_area", "untuned", *columns) if name in read and name not in texts]
        read = as_written(read).assign(**{name: pd.to_numeric(read[name].replace("", np.nan)) for name in numbers})
        read = read.astype({name: held for name, held in columns.items() if held is int})
    except (OSError, ValueError):
        raise damaged(path, "it is not the table that the stage writes", again(stage)) from None
    require_intact(path)
    return read


def _require(path: Any, run: Run, stage: str) -> None:
    if not path.exists():
        raise PipelineError(f"{shown(path)} does not exist yet: `{run.command('--to', stage)}` makes it.")
