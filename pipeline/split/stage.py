"""Splits the training images into folds that are alike and share no group and no near-duplicates, and audits them.

    python -m pipeline split RECIPE

reads   work/<competition>/images.parquet, outliers.csv, histograms.npy, thumbnails.npy
writes  folds/<competition>.csv: image_id, group, cluster (of near-duplicates), stratum, fold,
        use (train | drop | relabel | soft)
        folds/<competition>.audit.json: how evenly the folds are filled, and what stands in two of them

A folds file of your own (image_id and fold are enough) is kept, audited and used; without a column `use`, outliers.csv
says what is dropped. Dropped images keep a fold and get out-of-fold predictions; only training leaves them out.
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
from pipeline.core import freshness
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
"""What earlier versions did."""
ALIKE = 0.02
"""Folds whose largest deviation is below this are alike enough: no further seed is tried."""
MOST_CLASSES = 8
"""Of more, the table printed has no columns; the audit's JSON has them all."""


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
    """Whether the folds file stays: it does when it is somebody's own, or nothing but the code changed."""
    only_code = all(reason.kind == "code" for reason in reasons)
    return run.folds_file in step.outputs and (only_code or freshness.is_user_edited(step, run.folds_file))


def execute(run: Run, waiting: list[Step]) -> Iterator[Step]:
    """Writes the folds file, unless it stays, then its audit, and prints what that says."""
    split, audited = steps(run)
    own = freshness.is_user_edited(split, run.folds_file)
    seed = None if own else read_record(run.audit).get("seed")
    if split in waiting or not (own or read_record(run.audit)):  # killed between the two: the same folds again
        seed = _split(run)
        yield split
    _audit(run, seed)
    yield audited


# --- making the folds ------------------------------------------------------------------------------------------------


def _split(run: Run) -> int:
    """Writes the folds file and returns the seed that was kept."""
    if run.recipe.folds and run.recipe.folds not in run.competition.splits:
        raise PipelineError(
            f"{run.folds_file} does not exist; recipe.folds asks for it. Write it (image_id, fold), or describe it in "
            f"the competition's YAML: `splits: {{{run.recipe.folds}: {{folds: 10}}}}`."
        )
    images, found = table.read_table(run.table, "train"), read_outliers(run)
    split = _material(run, images, found)
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
        "use": uses_of(found, images["image_id"]),
    })  # fmt: skip
    with freshness.writing_editable(run.folds_file) as temporary:
        folds.to_csv(temporary, index=False)
    return seed


def _material(run: Run, images: pd.DataFrame, found: pd.DataFrame) -> Split:
    """What is known about the training images; all in fold 0."""
    group = _together(run, images)
    cluster = audit.clusters_of(images["image_id"], found)
    return Split(
        image_ids=images["image_id"].to_numpy(object),
        fold=np.zeros(len(images), np.int64),
        group=group,
        cluster=cluster,
        unit=audit.hanging_together(group, cluster),
        areas=images[[f"area_{name}" for name in run.competition.foreground]].to_numpy(np.int64),
        sizes=(images["height"] * images["width"]).to_numpy(np.int64),
    )


def _together(run: Run, images: pd.DataFrame) -> np.ndarray:
    """What must stay in one fold with each image (N,): its group, or what `split.together` says; "" for neither."""
    together = run.split.together
    if together is None:
        return images["group"].str.strip().to_numpy(str) if run.competition.group else np.full(len(images), "")
    extra = images[[name for name in images if name.startswith("extra_")]].fillna("")
    records = extra.rename(columns=lambda name: name.removeprefix("extra_")).to_dict("records")
    pairs = zip(images["image_id"], records, strict=True)
    return np.array([set_of(run.competition, together, one, row, "split.together") for one, row in pairs], str)


def _units(run: Run, split: Split) -> np.ndarray | None:
    """The component of each image (N,); None where each may go where it likes.

    Raises:
        PipelineError: an image without a group, or fewer components than folds.
    """
    if run.split.method == "grouped":
        _check_groups(run, split)
    alone = run.split.method == "random" or not (split.group != "").any() and not (split.cluster >= 0).any()
    count = len(split.fold) if alone else len(np.unique(split.unit))
    if count == 1:
        raise PipelineError(
            f"{audit.describe(split, split.unit == 0)} is all there is to train on, {len(split.fold)} images that "
            "must stay in one fold: nothing can be split. Correct `group` or `clean.duplicates` in the competition's "
            "YAML, or set `split: {method: random}`."
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
            f"instance {' and '.join(without[:2])}: fill it in, give each its own, or set `group: null` in the "
            "competition's YAML."
        )


def best_balanced(
    stratum: np.ndarray, units: np.ndarray | None, settings: SplitSettings, split: Split, classes: list[str]
) -> tuple[np.ndarray, int]:
    """Returns a fold for every image (N,) int64 and its seed: of several seeds the one whose largest deviation is
    smallest, the first of equal ones."""
    best: tuple[list[float], np.ndarray, int] | None = None
    overall = audit.whole(split.areas, split.sizes, classes)
    for seed in track(range(settings.seed, settings.seed + settings.seeds), "seeds", settings.seeds):
        fold = assign(stratum, units, settings.folds, seed)
        found = audit.deviations(audit.balance(fold, split.areas, split.sizes, classes), overall)
        # what is bound to be lopsided, such as a class of one image, is so with every seed: then the next decides
        rank = [min(one.value, 1.0) for one in found]
        if best is None or rank < best[0]:
            best = rank, fold, seed
        if rank[0] < ALIKE:
            break
    assert best is not None
    return best[1:]


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


def assign(stratum: np.ndarray, units: np.ndarray | None, folds: int, seed: int) -> np.ndarray:
    """Returns a fold for every image (N,) int64; images of one unit (N,), of which there are enough, share one."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold  # slow to import, seldom needed

    kind = StratifiedKFold if units is None else StratifiedGroupKFold
    splitter = kind(folds, shuffle=True, random_state=seed)
    stratum, fold = _coarse_enough(stratum, folds), np.empty(len(stratum), np.int64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")  # small strata are spread as far as they go
        for number, (_, held_out) in enumerate(splitter.split(stratum, stratum, units)):
            fold[held_out] = number
    return fold if units is None else _without_gaps(fold, units, folds)


def _without_gaps(fold: np.ndarray, units: np.ndarray, folds: int) -> np.ndarray:
    """Of few units scikit-learn may give a fold none: it gets the smallest of the fold that has most."""
    for empty in np.setdiff1d(np.arange(folds), fold):
        rows = fold == pd.Series(units).groupby(fold).nunique().idxmax()
        names, counts = np.unique(units[rows], return_counts=True)
        fold[rows & (units == names[counts.argmin()])] = empty
    return fold


def _coarse_enough(stratum: np.ndarray, folds: int) -> np.ndarray:
    """The strata, or presence alone, or none: the first with an image for every fold in some stratum."""
    for coarser in (stratum, np.minimum(stratum, 1)):
        if np.bincount(coarser).max() >= folds:  # scikit-learn refuses fewer
            return coarser
    return np.zeros_like(stratum)


# --- auditing them ---------------------------------------------------------------------------------------------------


def _audit(run: Run, seed: int | None) -> None:
    """Writes the audit of the folds file, made with this seed or somebody's own, and prints it."""
    folds, found = read_folds(run), read_outliers(run)
    everything = table.read_table(run.table)
    train = (everything["subset"] == "train").to_numpy()
    split = replace(_material(run, everything[train], found), fold=folds["fold"].to_numpy())
    pairs = _leaking(run, split, train, found) if run.competition.clean.duplicates.search else None
    said = audit.audit(split, folds["use"].to_numpy(), run.competition.foreground, pairs)
    said["warnings"] += _unused(run, len(said["folds"]))
    write_json(run.audit, {"seed": seed, "method": None if seed is None else run.split.method, **said})
    _print(run, read_audit(run))


def _leaking(run: Run, split: Split, train: np.ndarray, found: pd.DataFrame) -> Pairs:
    broken = np.isin(split.image_ids, found["image_id"][found["reason"] == "broken"])
    histograms, thumbnails = (read_array(path)[train] for path in (run.histograms, run.thumbnails))
    with counting("near-duplicates") as show:
        return audit.leaking_pairs(split.fold, histograms, thumbnails, broken, run.competition.clean.duplicates, show)


def _unused(run: Run, count: int) -> list[str]:
    """A warning where the competition's YAML speaks of fewer folds than there are: only so many are trained."""
    if count <= run.split.folds:
        return []
    return [
        f"{shown(run.folds_file)} has {count} folds, of which {run.split.folds} are trained unless you set "
        f"`{folds_setting(run, count)}` in the competition's YAML."
    ]


def _print(run: Run, said: dict[str, Any]) -> None:
    console.print(_balance_table(run, said["folds"]))
    maker = "not made by this stage" if said["seed"] is None else f"seed {said['seed']}"
    say(f"  largest deviation ({maker}): {said['largest_deviation']['text']}")
    style = "bold red" if said["leaks"] else "default"
    console.print(f"  [{style}]{escape(said['verdict'])}[/{style}]{escape(_closest_in_words(run, said))}")
    for warning in said["warnings"]:
        warn(f"  [yellow]{escape(warning)}[/yellow]")
    say(
        f"  {sum(fold['images'] for fold in said['folds'])} images in {len(said['folds'])} folds → "
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


def _closest_in_words(run: Run, said: dict[str, Any]) -> str:
    if not said["leaking_pairs"]["closest"]:
        return ""
    left, right, distance, correlation = said["leaking_pairs"]["closest"][0]
    text = f"; the closest pair is {left} and {right} (distance {distance:.4f}, correlation {correlation:.2f})"
    if said["method"] == "grouped" and run.competition.group and run.competition.clean.duplicates.within_groups:
        text += "; `clean: {duplicates: {within_groups: false}}` keeps near-duplicates of different groups together too"
    return text
