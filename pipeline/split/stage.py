"""Splits the training images into balanced folds that share neither groups nor near-duplicates, and audits the folds.

    python -m pipeline split RECIPE

reads   work/<competition>/images.parquet, outliers.csv, histograms.npy, thumbnails.npy
writes  folds/<competition>.csv: image_id, group, cluster (of near-duplicates), stratum, fold,
        use (train | drop | relabel | soft)
        folds/<competition>.audit.json: how balanced the folds are, and whether they leak

Your own folds file (with at least the columns image_id and fold) is kept, audited and used. Without a column `use`,
outliers.csv determines which images are dropped. Dropped images keep a fold and get out-of-fold predictions; only
training leaves them out.
"""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from rich.markup import escape
from rich.table import Table

from pipeline.clean.duplicates import Pairs
from pipeline.core import editable
from pipeline.core.config.preparing import SplitSettings
from pipeline.core.console import console, counting, say, track, warn
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_record, shown, write_json
from pipeline.core.freshness import Reason, Step
from pipeline.core.intact import read_array
from pipeline.core.run import Run
from pipeline.decode import table
from pipeline.decode.readers.columns import set_of
from pipeline.split import audit
from pipeline.split.audit import Split
from pipeline.split.folds import folds_setting, read_audit, read_folds, read_outliers, uses_of

LESS_MEMORY = "close other programs, or set clean.duplicates.search to false in the competition's YAML"
SHARED = True
DEFAULTS = {"together": None}
"""The behaviour of earlier versions, which did not have these settings."""
ALIKE = 0.02
"""If the largest deviation of the folds is below this, no further seeds are tried."""
MOST_CLASSES = 8
"""With more classes, the printed table has no columns for them. The audit's JSON file has all of them."""


def steps(run: Run) -> list[Step]:
    """Returns the two steps of this stage: the folds file and its audit."""
    duplicates = run.competition.clean.duplicates.model_dump(exclude={"within_groups", "test"})
    settings = {**run.split.model_dump(), "group": run.competition.group, "name": run.recipe.folds}
    settings |= {"classes": run.competition.foreground, "duplicates": duplicates}
    descriptors = (run.histograms, run.thumbnails)
    made, audited = run.folds_file.with_suffix(".manifest.json"), run.folds_file.with_suffix(".audit.manifest.json")
    return [
        Step(
            "split",
            "split",
            made,
            (run.table, run.outliers),
            (run.folds_file,),
            settings,
            defaults=DEFAULTS,
            editable=(run.folds_file,),
        ),
        Step(
            "split",
            "audit",
            audited,
            (run.folds_file, run.table, run.outliers, *descriptors),
            (run.audit,),
            settings,
            defaults=DEFAULTS,
        ),
    ]


def keeps(run: Run, step: Step, reasons: list[Reason]) -> bool:
    """Returns whether the folds file is kept: if it is the user's own, or if only the code has changed."""
    only_code = all(reason.kind == "code" for reason in reasons)
    return run.folds_file in step.outputs and (only_code or editable.is_user_edited(step, run.folds_file))


def execute(run: Run, waiting: list[Step]) -> Iterator[Step]:
    """Writes the folds file unless it is kept, then writes its audit and prints it."""
    split, audited = steps(run)
    own = editable.is_user_edited(split, run.folds_file)
    seed = None if own else read_record(run.audit).get("seed")
    if split in waiting or not (own or read_record(run.audit)):
        # killed between folds and audit: make the same folds again
        seed = _split(run)
        yield split
    _audit(run, seed)
    yield audited


# --- the folds file --------------------------------------------------------------------------------------------------


def _split(run: Run) -> int:
    """Writes the folds file and returns the chosen seed."""
    if run.recipe.folds and run.recipe.folds not in run.competition.splits:
        raise PipelineError(
            f"{run.folds_file} does not exist, and the recipe's setting `folds` names it. Write this file (with the "
            "columns image_id and fold), or define the split in the competition's YAML: `splits: "
            f"{{{run.recipe.folds}: {{folds: 10}}}}`."
        )
    images, findings = table.read_table(run.table, "train"), read_outliers(run)
    split = _material(run, images, findings)
    units = _units(run, split)
    shares = split.areas / np.maximum(split.sizes, 1)[:, None]
    stratum = _with_column(strata(shares, run.split.strata), images, run)
    fold, seed = best_balanced(stratum, units, run.split, split, run.competition.foreground)
    folds = pd.DataFrame({
        "image_id": images["image_id"],
        "group": images["group"],
        "cluster": np.where(split.cluster >= 0, split.cluster.astype(str), ""),
        "stratum": stratum,
        "fold": fold,
        "use": uses_of(findings, images["image_id"]),
    })  # fmt: skip
    with editable.writing_editable(run.folds_file) as temporary:
        folds.to_csv(temporary, index=False)
    return seed


def _material(run: Run, images: pd.DataFrame, findings: pd.DataFrame) -> Split:
    """Returns the properties of the training images; the fold is 0 for all of them."""
    group = _together(run, images)
    cluster = audit.clusters_of(images["image_id"], findings)
    return Split(
        image_ids=images["image_id"].to_numpy(object),
        fold=np.zeros(len(images), np.int64),
        group=group,
        cluster=cluster,
        unit=audit.components_of(group, cluster),
        areas=images[[f"area_{name}" for name in run.competition.foreground]].to_numpy(np.int64),
        sizes=(images["height"] * images["width"]).to_numpy(np.int64),
    )


def _together(run: Run, images: pd.DataFrame) -> np.ndarray:
    """Returns the name of the set (N,) of each image that must stay in one fold: its group, or the set of
    `split.together`; "" if there is neither."""
    together = run.split.together
    if together is None:
        return images["group"].str.strip().to_numpy(str) if run.competition.group else np.full(len(images), "")
    extra = images[[name for name in images if name.startswith("extra_")]].fillna("")
    records = extra.rename(columns=lambda name: name.removeprefix("extra_")).to_dict("records")
    pairs = zip(images["image_id"], records, strict=True)
    return np.array(
        [set_of(run.competition, together, image_id, row, "split.together") for image_id, row in pairs], str
    )


def _units(run: Run, split: Split) -> np.ndarray | None:
    """Returns the component of each image (N,), which must stay in one fold; None if images are independent.

    Raises:
        PipelineError: an image has no group, or there are fewer components than folds.
    """
    if run.split.method == "grouped":
        _check_groups(run, split)
    alone = run.split.method == "random" or not (split.group != "").any() and not (split.cluster >= 0).any()
    count = len(split.fold) if alone else len(np.unique(split.unit))
    if count == 1:
        raise PipelineError(
            f"All {len(split.fold)} training images belong together ({audit.describe(split, split.unit == 0)}) and "
            "must stay in one fold, so they cannot be split. Correct `group` or `clean.duplicates` in the "
            "competition's YAML, "
            "or set `split: {method: random}`."
        )
    if count < run.split.folds:
        sets = "groups" if (split.cluster < 0).all() else "sets of images (of one group, or near-duplicates)"
        raise PipelineError(
            f"{count} {'images' if alone else sets} cannot fill {run.split.folds} folds; set "
            f"`{folds_setting(run, count)}` in the competition's YAML."
        )
    return None if alone else split.unit


def _check_groups(run: Run, split: Split) -> None:
    without = split.image_ids[split.group == ""]
    if run.competition.group and len(without):
        several = len(without) > 1
        raise PipelineError(
            f"{len(without)} training image{'s have' if several else ' has'} no `{run.competition.group}` (group), for "
            f"instance {' and '.join(without[:2])}: fill it in, give each image its own, or set `group: null` in the "
            "competition's YAML."
        )


def best_balanced(
    stratum: np.ndarray, units: np.ndarray | None, settings: SplitSettings, split: Split, classes: list[str]
) -> tuple[np.ndarray, int]:
    """Returns the fold of each image (N,) int64, and the chosen seed: the one with the smallest largest deviation, and
    the first among equals."""
    best: tuple[list[float], np.ndarray, int] | None = None
    overall = audit.whole(split.areas, split.sizes, classes)
    for seed in track(range(settings.seed, settings.seed + settings.seeds), "seeds", settings.seeds):
        fold = assign(stratum, units, settings.folds, seed)
        deviations = audit.deviations(audit.balance(fold, split.areas, split.sizes, classes), overall)
        # a class in a single image is unbalanced with every seed; then the next largest deviation decides
        rank = [min(deviation.value, 1.0) for deviation in deviations]
        if best is None or rank < best[0]:
            best = rank, fold, seed
        if rank[0] < ALIKE:
            break
    assert best is not None
    return best[1:]


def strata(shares: np.ndarray, quantiles: int) -> np.ndarray:
    """Returns the stratum of each image (N,) int64, from the share of the image that each class covers (N, C).

    Stratum 0 has images without any class. For all others, the stratum is given by the rarest class in the image (the
    one that occurs in the fewest images) and by the quantile of its share among the images with this class. In this way
    each fold gets its part of the rare classes.
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


def assign(stratum: np.ndarray, units: np.ndarray | None, folds: int, seed: int) -> np.ndarray:
    """Returns a fold for each image (N,) int64. Images of the same unit (N,) get the same fold; there must be at least
    as many units as folds."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold  # slow to import, seldom needed

    kind = StratifiedKFold if units is None else StratifiedGroupKFold
    splitter = kind(folds, shuffle=True, random_state=seed)
    stratum, fold = _coarse_enough(stratum, folds), np.empty(len(stratum), np.int64)
    with warnings.catch_warnings():
        # small strata are distributed over as many folds as possible
        warnings.filterwarnings("ignore", "The least populated class")
        for number, (_, held_out) in enumerate(splitter.split(stratum, stratum, units)):
            fold[held_out] = number
    return fold if units is None else _without_gaps(fold, units, folds)


def _without_gaps(fold: np.ndarray, units: np.ndarray, folds: int) -> np.ndarray:
    """Returns the folds without empty ones. With few units, scikit-learn may leave a fold empty; it then gets the
    smallest unit of the fold with the most units."""
    for empty in np.setdiff1d(np.arange(folds), fold):
        rows = fold == pd.Series(units).groupby(fold).nunique().idxmax()
        names, counts = np.unique(units[rows], return_counts=True)
        fold[rows & (units == names[counts.argmin()])] = empty
    return fold


def _coarse_enough(stratum: np.ndarray, folds: int) -> np.ndarray:
    """Returns the strata, or only presence, or no strata: the first of these in which some stratum has at least as many
    images as there are folds."""
    for coarser in (stratum, np.minimum(stratum, 1)):
        if np.bincount(coarser).max() >= folds:  # scikit-learn requires this
            return coarser
    return np.zeros_like(stratum)


# --- the audit -------------------------------------------------------------------------------------------------------


def _audit(run: Run, seed: int | None) -> None:
    """Writes the audit of the folds file and prints it. `seed` is the seed that the file was made with; None for a
    user's own file."""
    folds, findings = read_folds(run), read_outliers(run)
    everything = table.read_table(run.table)
    train = (everything["subset"] == "train").to_numpy()
    split = replace(_material(run, everything[train], findings), fold=folds["fold"].to_numpy())
    pairs = _leaking(run, split, train, findings) if run.competition.clean.duplicates.search else None
    report = audit.audit(split, folds["use"].to_numpy(), run.competition.foreground, pairs)
    report["warnings"] += _unused(run, len(report["folds"]))
    write_json(run.audit, {"seed": seed, "method": None if seed is None else run.split.method, **report})
    _print(run, read_audit(run))


def _leaking(run: Run, split: Split, train: np.ndarray, findings: pd.DataFrame) -> Pairs:
    broken = np.isin(split.image_ids, findings["image_id"][findings["reason"] == "broken"])
    histograms, thumbnails = (read_array(path)[train] for path in (run.histograms, run.thumbnails))
    with counting("near-duplicates") as show:
        return audit.leaking_pairs(split.fold, histograms, thumbnails, broken, run.competition.clean.duplicates, show)


def _unused(run: Run, count: int) -> list[str]:
    """Returns a warning if the competition's YAML sets fewer folds than the file has, because only that many are
    trained."""
    if count <= run.split.folds:
        return []
    return [
        f"{shown(run.folds_file)} has {count} folds, of which only {run.split.folds} are trained unless you set "
        f"`{folds_setting(run, count)}` in the competition's YAML."
    ]


def _print(run: Run, report: dict[str, Any]) -> None:
    console.print(_balance_table(run, report["folds"]))
    maker = "not made by this stage" if report["seed"] is None else f"seed {report['seed']}"
    say(f"  largest deviation ({maker}): {report['largest_deviation']['text']}")
    style = "bold red" if report["leaks"] else "default"
    console.print(f"  [{style}]{escape(report['verdict'])}[/{style}]{escape(_closest_in_words(run, report))}")
    for warning in report["warnings"]:
        warn(f"  [yellow]{escape(warning)}[/yellow]")
    say(
        f"  {sum(fold['images'] for fold in report['folds'])} images in {len(report['folds'])} folds → "
        f"{shown(run.folds_file)}, {shown(run.audit)}"
    )


def _balance_table(run: Run, folds: list[dict[str, Any]]) -> Table:
    classes = run.competition.foreground if 1 < len(run.competition.foreground) <= MOST_CLASSES else []
    together = any(fold["components"] < fold["images"] for fold in folds)
    columns = {"fold": "fold", "images": "images", **({"groups": "components"} if together else {})}
    shares = {
        "empty": "share_empty",
        "median mask": "area_50",
        **{f"{name} pixels": f"pixels_{name}" for name in classes},
    }
    shown_table = Table(box=None, padding=(0, 0, 0, 2))
    for heading in (*columns, *shares, "dropped"):
        shown_table.add_column(escape(heading), justify="right")
    for fold in folds:
        values = ["–" if fold[key] is None else f"{100 * fold[key]:.1f} %" for key in shares.values()]
        shown_table.add_row(*(str(fold[key]) for key in columns.values()), *values, str(fold["dropped"]))
    return shown_table


def _closest_in_words(run: Run, report: dict[str, Any]) -> str:
    if not report["leaking_pairs"]["closest"]:
        return ""
    left, right, distance, correlation = report["leaking_pairs"]["closest"][0]
    text = f"; the closest pair is {left} and {right} (distance {distance:.4f}, correlation {correlation:.2f})"
    if report["method"] == "grouped" and run.competition.group and run.competition.clean.duplicates.within_groups:
        text += "; `clean: {duplicates: {within_groups: false}}` keeps near-duplicates of different groups together too"
    return text
