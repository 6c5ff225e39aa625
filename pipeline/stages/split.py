"""Splits the training images into folds: stratified on the rarest class and its area, and no group in two folds.

    python -m pipeline split RECIPE

reads   work/<competition>/images.parquet, outliers.csv
writes  folds/<competition>.csv: image_id, group, stratum, fold, use (train | drop)

A folds file of your own (image_id and fold are enough) is kept and used; without a column `use`, outliers.csv says what
is dropped. Dropped images keep a fold and get out-of-fold predictions; only training leaves them out.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import table, workspace
from pipeline.competition import SplitSettings
from pipeline.competitions.files import read_table as read_csv
from pipeline.console import console
from pipeline.errors import PipelineError
from pipeline.stages.clean import read_outliers
from pipeline.workspace import Reason, Run, Step, shown, writing


def steps(run: Run) -> list[Step]:
    """Returns the one step of this stage."""
    manifest = run.folds.with_suffix(".manifest.json")
    settings = {**run.split.model_dump(), "group": run.competition.group, "name": run.recipe.folds}
    return [Step("split", "split", manifest, (run.table, run.outliers), (run.folds,), settings)]


def keeps(run: Run, step: Step, reasons: list[Reason]) -> bool:
    """Whether the folds file is somebody's own: not the one this stage wrote."""
    if not run.folds.exists():
        return False
    written = workspace.read_json(step.manifest)["outputs"] if step.manifest.exists() else {}
    return written.get(shown(run.folds), {}).get("hash") != workspace.hash_file(run.folds)


def execute(run: Run, waiting: list[Step]) -> Iterator[Step]:
    """Writes the folds file and prints the balance of the folds."""
    if run.recipe.folds and run.recipe.folds not in run.competition.splits:
        raise PipelineError(
            f"{run.folds} does not exist; recipe.folds asks for it. Write it (image_id, fold), or describe it in the "
            f"competition's YAML: `splits: {{{run.recipe.folds}: {{folds: 10}}}}`."
        )
    images = table.read_table(run.table, "train")
    dropped = set(read_outliers(run).query("action == 'drop'")["image_id"])
    foreground = run.competition.foreground
    area = table.total_area(images, foreground)
    size = np.maximum(images["height"] * images["width"], 1).to_numpy()
    shares = images[[f"area_{name}" for name in foreground]].to_numpy() / size[:, None]
    stratum = _with_column(strata(shares, run.split.strata), images, run)
    groups = images["group"].to_numpy() if run.competition.group else None
    folds = pd.DataFrame({
        "image_id": images["image_id"],
        "group": images["group"],
        "stratum": stratum,
        "fold": assign(stratum, groups, run.split),
        "use": np.where(images["image_id"].isin(dropped), "drop", "train"),
    })  # fmt: skip
    with writing(run.folds) as temporary:
        folds.to_csv(temporary, index=False)
    _print_balance(folds, area)
    console.print(f"  {len(folds)} images in {folds['fold'].nunique()} folds → {shown(run.folds)}")
    yield from waiting


def strata(shares: np.ndarray, quantiles: int) -> np.ndarray:
    """Returns a stratum for every image (N,) int64 from the share of it that each class covers (N, C).

    0 has no class; otherwise the rarest class in the image, the one in fewest images, and the quantile of its share
    among those images. So each fold gets its part of what is rare: few images decide about a rare class.
    """
    stratum, first = np.zeros(len(shares), np.int64), 1
    for number in np.argsort((shares > 0).sum(0), kind="stable"):
        rows = (stratum == 0) & (shares[:, number] > 0)
        if rows.any():
            ranks = pd.Series(shares[rows, number]).rank(method="first").to_numpy()
            stratum[rows] = first + ((ranks - 1) * quantiles // rows.sum()).astype(np.int64)
        first += quantiles
    return stratum


def _with_column(stratum: np.ndarray, images: pd.DataFrame, run: Run) -> np.ndarray:
    column = run.split.stratify
    if column is None:
        return stratum
    if f"extra_{column}" not in images:
        known = ", ".join(name.removeprefix("extra_") for name in images if name.startswith("extra_")) or "none"
        raise PipelineError(f"split.stratify: the mask table has no further column `{column}`; it has: {known}.")
    values = pd.factorize(images[f"extra_{column}"])[0]
    return values * (stratum.max() + 1) + stratum


def assign(stratum: np.ndarray, groups: np.ndarray | None, settings: SplitSettings) -> np.ndarray:
    """Returns a fold for every image (N,) int64; images of a group share one.

    Raises:
        PipelineError: fewer images or groups than folds.
    """
    units, what = (len(stratum), "images") if groups is None else (len(set(groups)), "groups")
    if units < settings.folds:
        raise PipelineError(
            f"{units} {what} cannot fill {settings.folds} folds; set `split: {{folds: {max(2, units)}}}` in the "
            "competition's YAML."
        )
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold  # slow to import, seldom needed

    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    splitter = kind(settings.folds, shuffle=True, random_state=settings.seed)
    stratum, fold = _coarse_enough(stratum, settings.folds), np.empty(len(stratum), np.int64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")  # small strata are spread as far as they go
        for number, (_, held_out) in enumerate(splitter.split(stratum, stratum, groups)):
            fold[held_out] = number
    return fold


def _coarse_enough(stratum: np.ndarray, folds: int) -> np.ndarray:
    """The strata, or presence alone, or none: the first with an image for every fold in some stratum."""
    for coarser in (stratum, np.minimum(stratum, 1)):
        if np.bincount(coarser).max() >= folds:  # scikit-learn refuses fewer
            return coarser
    return np.zeros_like(stratum)


def read_folds(run: Run) -> pd.DataFrame:
    """Returns the split in the order of the training table: image_id, fold (int), use, and group.

    Raises:
        PipelineError: a column is missing, or the file and the images do not list the same ids.
    """
    folds = read_csv(run.folds, [])
    missing = [name for name in ("image_id", "fold") if name not in folds.columns]
    if missing:
        raise PipelineError(f"{shown(run.folds)} lacks {', '.join(missing)}; found {', '.join(folds.columns)}.")
    images = table.read_table(run.table, "train")[["image_id", "group"]]
    here, there = set(images["image_id"]), set(folds["image_id"])
    unknown, unlisted = there - here, here - there
    if unknown or unlisted or folds["image_id"].duplicated().any():
        raise PipelineError(
            f"{shown(run.folds)} does not fit the images: {len(unknown)} unknown ids {sorted(unknown)[:3]}, "
            f"{len(unlisted)} images missing {sorted(unlisted)[:3]}; correct it, or delete it to have it made anew."
        )
    bad = folds.index[~folds["fold"].str.fullmatch(r"\d+")]
    if len(bad):
        value = folds["fold"][bad[0]]
        raise PipelineError(f"{shown(run.folds)} row {bad[0] + 2}: fold is {value!r}; expected 0, 1, 2, …")
    folds = images.merge(folds.drop(columns="group", errors="ignore"), on="image_id", how="left")
    if "use" not in folds:
        dropped = read_outliers(run).query("action == 'drop'")["image_id"]
        folds["use"] = np.where(folds["image_id"].isin(dropped), "drop", "train")
    return folds.assign(fold=folds["fold"].astype(int))


def drop_list(run: Run) -> tuple[Path, ...]:
    """Returns outliers.csv where the folds file does not say itself which images are dropped, else nothing."""
    if not run.folds.exists():
        return ()
    with run.folds.open(encoding="utf-8") as file:
        return () if "use" in file.readline().strip().split(",") else (run.outliers,)


def _print_balance(folds: pd.DataFrame, area: np.ndarray) -> None:
    for number, rows in folds.groupby("fold"):
        empty = float((area[rows.index] == 0).mean())
        groups = f", {rows['group'].nunique()} groups" if rows["group"].any() else ""
        dropped = (rows["use"] == "drop").sum()
        console.print(f"  fold {number}: {len(rows)} images{groups}, {empty:.0%} empty, {dropped} dropped")
