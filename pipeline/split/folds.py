"""Reading of the files that determine what training does with each image: outliers.csv, the folds file and its audit.

Users may write or edit these files, so they are checked each time they are read. Stages that only read them import this
module instead of the stages that write them.
"""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field

from pipeline.core.errors import PipelineError
from pipeline.core.files import shown
from pipeline.core.run import Run
from pipeline.core.tables import as_written, column_names
from pipeline.core.written import Part, read_checked
from pipeline.decode import table
from pipeline.decode.readers.files import read_table as read_csv

ACTIONS = ("drop", "relabel", "soft")
"""The actions of findings other than `keep`. If findings about an image have different actions, the first of these
applies."""
USES = ("train", *ACTIONS)


class Deviation(Part):
    """The largest difference of a fold from all images together."""

    text: str


class Audit(Part):
    """The audit of the folds, as split writes it."""

    folds: Annotated[list[dict[str, float | None]], Field(min_length=1)]
    largest_deviation: Deviation
    leaks: bool
    leak_remark: str
    verdict: Annotated[str, Field(min_length=1)]
    warnings: list[str]


def read_outliers(run: Run) -> pd.DataFrame:
    """Returns the table in outliers.csv with all values as text. The columns score and note may be missing in a
    file that a user wrote; they are then empty.

    Raises:
        PipelineError: a user edited it, and a column is missing, an action is unknown, a score is not a number, or an
            id belongs to no training image.
    """
    findings = as_written(read_csv(run.outliers, []))
    missing = [name for name in ("image_id", "reason", "partner_id", "action") if name not in findings]
    if missing:
        raise PipelineError(
            f"{shown(run.outliers)} lacks {', '.join(missing)}; found {column_names(findings.columns)}."
        )
    actions = ("keep", *ACTIONS)
    _check_cells(run, findings, "action", findings["action"].isin(actions), ", ".join(actions))
    findings = findings.assign(**{name: "" for name in ("score", "note") if name not in findings})
    numbers = pd.to_numeric(findings["score"], errors="coerce").abs() < np.inf
    _check_cells(run, findings, "score", numbers | (findings["score"] == ""), "a number, or nothing")
    known = table.read_table(run.table)["image_id"]  # images that decode could not read have findings too
    _check_cells(run, findings, "image_id", findings["image_id"].isin(known), "the id of a training image")
    return findings


def _check_cells(run: Run, findings: pd.DataFrame, column: str, good: pd.Series, expected: str) -> None:
    bad = findings.index[~good]
    if len(bad):
        value = findings[column][bad[0]]
        raise PipelineError(f"{shown(run.outliers)} row {bad[0] + 2}: {column} is {value[:60]!r}; expected {expected}.")


def uses_of(findings: pd.DataFrame, image_ids: pd.Series) -> np.ndarray:
    """Returns what training does with each image (N,) according to the findings: train, drop, relabel or soft."""
    use = np.full(len(image_ids), "train", dtype=object)
    for action in reversed(ACTIONS):
        use[image_ids.isin(findings["image_id"][findings["action"] == action]).to_numpy()] = action
    return use


def read_folds(run: Run) -> pd.DataFrame:
    """Returns the split in the order of the training table, with the columns image_id, fold (int), use and group.

    Raises:
        PipelineError: a column is missing, the ids are not those of the images, a value of fold or use is not valid, or
            a fold is missing that the run trains.
    """
    folds = read_csv(run.folds_file, [])
    missing = [name for name in ("image_id", "fold") if name not in folds.columns]
    if missing:
        raise PipelineError(f"{shown(run.folds_file)} lacks {', '.join(missing)}; found {column_names(folds.columns)}.")
    images = table.read_table(run.table, "train")[["image_id", "group"]]
    _check_ids(run, set(images["image_id"]), folds["image_id"])
    _check_values(run, folds, "fold", folds["fold"].str.fullmatch("[0-9]{1,9}"), "0, 1, 2, …")
    if "use" in folds:
        _check_values(run, folds, "use", folds["use"].isin(USES), ", ".join(USES))
    folds = images.merge(folds.drop(columns="group", errors="ignore"), on="image_id", how="left")
    if "use" not in folds:
        folds["use"] = uses_of(read_outliers(run), folds["image_id"])
    folds["fold"] = folds["fold"].astype(int)
    _check_numbers(run, sorted(folds["fold"].unique().tolist()))
    return folds


def counted_rows(images: pd.DataFrame, rows: str) -> np.ndarray:
    """Returns which images (N,) bool belong to the `raw` or to the `cleaned` rows."""
    return np.ones(len(images), bool) if rows == "raw" else (images["use"] == "train").to_numpy()


def groups_of(images: pd.DataFrame, folds: pd.DataFrame) -> np.ndarray:
    """Returns the name of the unit (N,) str that bootstrap samples draw as a whole: the image's group, or else its
    cluster of near-duplicates, or else the image.

    Args:
        images: rows of images.parquet, with image_id and group.
        folds: the result of read_folds, possibly with the column cluster, for the same images in the same order.
    """
    alone = images["image_id"].astype(str).to_numpy()
    if "cluster" in folds:
        cluster = folds["cluster"].fillna("").astype(str).to_numpy()
        alone = np.where(cluster != "", "cluster " + cluster.astype(object), alone)
    group = images["group"].fillna("").astype(str).to_numpy()
    return np.where(group != "", group, alone).astype(str)


def drop_list(run: Run) -> tuple[Path, ...]:
    """Returns outliers.csv if training reads it in addition to the folds file, otherwise nothing.

    It does so if the folds file has no column `use`, or if images are relabelled or get soft labels, whose partners are
    in outliers.csv.
    """
    if not run.folds_file.exists():
        return ()
    folds = read_csv(run.folds_file, [])
    alone = "use" in folds and not folds["use"].isin(["relabel", "soft"]).any()
    return () if alone else (run.outliers,)


def read_audit(run: Run) -> dict[str, Any]:
    """Returns the audit of the folds file; {} if there is none yet.

    Raises:
        PipelineError: the file is damaged.
    """
    return read_checked(run.audit, Audit, "run the split stage again") if run.audit.exists() else {}


def leak_remark(run: Run) -> str:
    """Returns the remark that must accompany each score on folds that leak; "" if they do not leak."""
    return read_audit(run).get("leak_remark", "")


def folds_setting(run: Run, count: int) -> str:
    """Returns the text of the setting, in the competition's YAML, for `count` folds of this run's split."""
    setting = f"{{folds: {count}}}"
    return f"splits: {{{run.recipe.folds}: {setting}}}" if run.recipe.folds else f"split: {setting}"


def _check_ids(run: Run, of_images: set[str], listed: pd.Series) -> None:
    in_file, repeated = set(listed), sorted(set(listed[listed.duplicated()]))
    unknown, unlisted = in_file - of_images, of_images - in_file
    faults = [
        f"{words}: {', '.join(sorted(ids)[:3])}{f', … ({len(ids)} in all)' if len(ids) > 3 else ''}"
        for words, ids in (
            ("ids of no training image", unknown),
            ("training images without a row", unlisted),
            ("ids with more than one row", repeated),
        )
        if ids
    ]
    if faults:
        raise PipelineError(
            f"{shown(run.folds_file)} does not fit the images; {'; '.join(faults)}. Correct the file, or delete it "
            "to have it written again."
        )


def _check_values(run: Run, folds: pd.DataFrame, column: str, good: pd.Series, expected: str) -> None:
    bad = folds.index[~good]
    if len(bad):
        value = folds[column][bad[0]]
        raise PipelineError(f"{shown(run.folds_file)} row {bad[0] + 2}: {column} is {value!r}; expected {expected}")


def _check_numbers(run: Run, numbers: list[int]) -> None:
    listed = ", ".join(map(str, numbers[:12])) + (", …" if len(numbers) > 12 else "")
    if len(numbers) == 1:
        raise PipelineError(f"{shown(run.folds_file)} has only one fold ({listed}); expected at least two, 0 and 1.")
    if numbers != list(range(len(numbers))):
        raise PipelineError(
            f"{shown(run.folds_file)} has folds {listed}; expected {len(numbers)} folds with the numbers 0 to "
            f"{len(numbers) - 1}."
        )
    if run.recipe.arrays is None and max(run.trained_folds()) >= len(numbers):
        raise PipelineError(
            f"{shown(run.folds_file)} has folds {listed}, and fold {max(run.trained_folds())} is to be trained; set "
            f"`{folds_setting(run, len(numbers))}` in the competition's YAML, or train.folds in the recipe."
        )
