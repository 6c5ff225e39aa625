"""Compares runs: their scores, the paired difference of each from the first run, and their cost.

    python -m pipeline compare RUN…

reads   work/<competition>/<run>/postprocess.json, oof_scores.csv, fold_<k>/manifest.json and */fold.json

Two runs are compared image by image on the images that both have scored, so that the difficulty of an image cancels
out. A metric that pools all pixels is not a mean over images: for it, only the plain difference is given.
"""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table
from rich.text import Text

from pipeline.core import freshness, layout
from pipeline.core.config.recipe_files import FOLDER
from pipeline.core.config.settings import flatten
from pipeline.core.driver import listed
from pipeline.core.errors import PipelineError
from pipeline.core.files import root
from pipeline.core.results import read_scored, searched_by
from pipeline.core.trainings import Speed, read_training
from pipeline.core.version import program
from pipeline.core.written import if_sound
from pipeline.masks.bootstrap import bootstrap, mean_counts, mean_score
from pipeline.masks.metrics import named
from pipeline.report import look
from pipeline.split.folds import counted_rows

NOTE = (
    "A difference is a run's score minus the score of the first run of the same competition, on the images that both "
    "scored. ± is one standard error of the paired difference (bootstrap over groups); a difference of less than two "
    "standard errors may be noise."
)
NAMED = 5
"""Maximum number of runs that an error message lists."""
COLUMNS = {
    "run": "left", "competition, metric": "left", "folds": "left", "out-of-fold [95 %]": "left", "difference": "left",
    "nested": "right", "parameters": "right", "images/s": "right", "training": "right", "remarks": "left",
}  # fmt: skip

COMPARED = {"image_id": str, "fold": int, "group": str, "use": str, "score": float}
"""Columns of oof_scores.csv that the comparison needs, and their types."""
TUNING = {"tune": "tune", "predict.tta": "tta"}
"""Settings of a recipe that tune uses, and their names in tune's manifest."""
SEEDS = ("", "_seed_*")
"""Patterns of the suffix after fold_<k> in the folder names of a fold's networks."""


@dataclass(frozen=True)
class Row:
    """A run compared with the first run of its competition. None stands for values that the run's files do not give."""

    run: str
    competition: str
    metric: str
    folds: tuple[int, ...]
    """The folds whose images are scored."""
    score: float | None
    interval_95: tuple[float, float] | None
    first: str
    """The run that this one is compared with; the first run of a competition names itself."""
    difference: float | None
    """Score minus the score of the first run, on common images."""
    standard_error: float | None
    common_images: int | None
    nested: float | None
    parameters: int | None
    """Number of trainable parameters of one network."""
    images_per_second: float | None
    """Training speed, mean over all networks."""
    accelerator: str | None
    seconds: float | None
    """Training time of all networks together."""
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Scored:
    """The content of a run's folder."""

    folder: Path
    result: dict[str, Any]
    """The content of postprocess.json."""
    images: pd.DataFrame | None
    """The content of oof_scores.csv: image_id, fold, group, use, score; None if the file does not exist."""
    members: tuple[dict[str, Any], ...]
    """The fold.json of every network."""
    splits: frozenset[str]
    """Content hashes of the folds files that the run was trained on; normally one."""
    tuning: dict[str, Any]
    """The settings of `tune` and of the views used in tuning, by dotted keys."""

    @property
    def competition(self) -> str:
        """The name of the competition."""
        return self.folder.parent.name

    @property
    def name(self) -> str:
        """The name of the run."""
        return self.folder.name

    @property
    def folds(self) -> tuple[int, ...]:
        """The folds whose images are scored."""
        return tuple(sorted(map(int, self.result.get("score_by_fold", {}))))

    @property
    def rows(self) -> str:
        """Which rows are scored, raw or cleaned; raw if both are the same."""
        sets = self.result.get("rows", {})
        return next((name for name in ("raw", "cleaned") if _size(sets, name) == self.result.get("images")), "raw")


def compare(names: list[str]) -> list[Row]:
    """Returns one row per run, grouped by competition. Each run is compared with the first run of its competition.

    Args:
        names: names of runs, `competition/name` if two competitions have a run of this name, or paths of recipes.

    Raises:
        PipelineError: a name matches no run with scores, or several.
    """
    return [row_of(group[0], scored) for group in read_runs(names).values() for scored in group]


def read_runs(names: list[str]) -> dict[str, list[Scored]]:
    """Returns the runs of each competition, in the order of `names`; see `compare`.

    Raises:
        PipelineError: a name matches no run with scores, or several.
    """
    layout.check()
    known = _known()
    groups: dict[str, list[Scored]] = {}
    for folder in dict.fromkeys(_find(name, known) for name in names):
        scored = _read(folder)
        groups.setdefault(scored.competition, []).append(scored)
    return groups


def render(rows: list[Row]) -> Table:
    """Returns the rows as a table, with a line between competitions."""
    table = Table()
    for name, justify in COLUMNS.items():
        table.add_column(name, justify="right" if justify == "right" else "left")
    for index, row in enumerate(rows):
        if index and rows[index - 1].competition != row.competition:
            table.add_section()
        table.add_row(*map(Text, cells(row)))  # Text: rich must not interpret brackets in names as markup
    return table


def paired(
    differences: np.ndarray, groups: np.ndarray, weights: np.ndarray | None = None
) -> tuple[float, float | None]:
    """Returns the (weighted) mean of differences (N,) and its standard error.

    The standard error comes from a bootstrap over groups; it is None for a single group.
    """
    mean = float(differences.mean() if weights is None else np.average(differences, weights=weights))
    if len(np.unique(groups)) < 2:
        return mean, None
    draws = bootstrap(mean_counts(differences, weights), mean_score, groups)
    return mean, float(draws.std())


# --- finding and reading runs ----------------------------------------------------------------------------------------


def _known() -> dict[str, list[Path]]:
    """The folders of all runs with scores, by name and by competition/name."""
    folders = sorted(file.parent for file in (root() / "work").glob("*/*/postprocess.json"))
    known: dict[str, list[Path]] = {}
    for folder in folders:
        for name in (folder.name, f"{folder.parent.name}/{folder.name}"):
            known.setdefault(name, []).append(folder)
    return known


def _find(wanted: str, known: dict[str, list[Path]]) -> Path:
    path = wanted.endswith((".yaml", ".yml"))
    name = Path(wanted).stem if path else wanted
    found = known.get(name, [])
    if len(found) > 1:
        full = " or ".join(f"{folder.parent.name}/{folder.name}" for folder in found)
        raise PipelineError(f"{len(found)} competitions have a run `{name}`: give {full}.")
    if not found:
        near = difflib.get_close_matches(name, [other for other in known if ("/" in other) == ("/" in name)], 3)
        suggestion = f"; did you mean {' or '.join(near)}?" if near else ""
        raise PipelineError(f"no run `{name}` has scores{suggestion}{_how_to_get(wanted, known, bool(near))}")
    return found[0]


def _how_to_get(wanted: str, known: dict[str, list[Path]], near: bool) -> str:
    """The end of the error message: the command that makes the scores if the recipe exists, otherwise the runs that
    have scores."""
    path = wanted.endswith((".yaml", ".yml"))
    recipe = wanted if path else wanted.rpartition("/")[2].removesuffix("-quick")
    if Path(recipe).is_file() if path else (FOLDER / f"{recipe}.yaml").is_file():
        quick = " --quick" if not path and wanted.endswith("-quick") else ""
        return f"{'' if near else ':'} `{program()} run {recipe}{quick}` makes them."
    if near:
        return ""
    scored = [name for name in known if "/" in name]
    some = f"{', '.join(scored[:NAMED])}{', …' if len(scored) > NAMED else ''}"
    return f", and there is no recipe {recipe}; {f'runs with scores: {some}' if scored else 'no run has scores yet'}."


def _read(folder: Path) -> Scored:
    scores = folder / "oof_scores.csv"
    images = look.read_written(scores, COMPARED, "tune") if scores.exists() else None
    members = tuple(read_training(file, Speed) for file in sorted(folder.glob("*/fold.json")))
    result = read_scored(folder)
    # only the folds that are scored: folders of other folds may be left over; an ensemble has the folds of its runs
    patterns = [f"fold_{fold}{seed}/manifest.json" for fold in result.get("score_by_fold", {}) for seed in SEEDS]
    trained = [folder.with_name(name) for name in result.get("ensemble", {})] or [folder]
    manifests = [path for place in trained for pattern in patterns for path in place.glob(pattern)]
    splits = frozenset(split for path in manifests if (split := _split_of(path)))
    settings = (freshness.read_manifest(folder / "postprocess.manifest.json") or {}).get("settings", {})
    tuning = flatten({name: settings[key] for name, key in TUNING.items() if key in settings})
    return Scored(folder, result, images, members, splits, tuning)


def _split_of(manifest: Path) -> str | None:
    """The content hash of the folds file among the inputs of a fold: the first input in folds/. A list of excluded
    images may be in that folder too; it comes later."""
    inputs = (freshness.read_manifest(manifest) or {}).get("inputs", {})
    return next((entry["hash"] for name, entry in inputs.items() if name.startswith("folds/")), None)


def _size(sets: dict[str, Any], name: str) -> int | None:
    return sets.get(name, {}).get("images")


# --- differences -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Difference:
    value: float | None = None
    error: float | None = None
    images: int | None = None
    remarks: tuple[str, ...] = ()


def row_of(first: Scored, scored: Scored) -> Row:
    """Returns the row of a run, compared with the first run of its competition."""
    result, members = scored.result, scored.members
    difference = _Difference() if scored is first else _difference(first, scored)
    speeds, seconds = _values(members, "images_per_second"), _values(members, "seconds")
    computes = [member.get("compute") or {} for member in members]
    used = sorted({compute["accelerator"] for compute in computes if compute.get("accelerator")})
    interval = result.get("interval_95")
    return Row(
        run=scored.name,
        competition=scored.competition,
        metric=result["metric"],
        folds=scored.folds,
        score=result.get("score"),
        interval_95=(interval[0], interval[1]) if interval else None,
        first=first.name,
        difference=difference.value,
        standard_error=difference.error,
        common_images=difference.images,
        nested=result.get("nested"),
        parameters=next(iter(_values(members, "parameters")), None),
        images_per_second=sum(speeds) / len(speeds) if speeds else None,
        accelerator=", ".join(used) or None,
        seconds=sum(seconds) if seconds else None,
        remarks=(*difference.remarks, *filter(None, [result.get("remark")])),
    )


def _difference(first: Scored, scored: Scored) -> _Difference:
    """The difference of a run's score from the first run's, on the rows that count in the first run's score."""
    if scored.result["metric"] != first.result["metric"]:
        return _Difference(remarks=("different metric",))
    if not first.splits or not scored.splits:
        return _Difference(remarks=("folds unknown",))
    if not same_folds(first, scored):
        return _Difference(remarks=("different folds",))
    if first.images is None or scored.images is None:
        return _Difference(remarks=("no scores per image",))
    images = [table[counted_rows(table, first.rows)] for table in (first.images, scored.images)]
    common = images[0].merge(images[1][["image_id", "score"]], on="image_id", suffixes=("", "_here"))
    if common.empty:
        return _Difference(images=0, remarks=("no common images",))
    same = len(common) == len(images[0]) == len(images[1])
    remarks = _tuned_otherwise(first, scored)
    if scored.rows != first.rows:
        remarks = (f"score on {scored.rows} rows, difference on {first.rows} rows", *remarks)
    by = [searched_by(run.result) for run in (first, scored)]
    if by[0] != by[1]:
        return _Difference(remarks=(f"tuned for {by[1]}, but {first.name} for {by[0]}",))
    if by[0] != first.result["metric"]:
        remarks = (f"difference in {by[0]}", *remarks)
    metric = if_sound(named, by[0])
    if metric is None or metric.unit == "data_set":
        return _pooled_difference(first, scored, len(common), same, remarks)
    differences = (common["score_here"] - common["score"]).to_numpy(np.float64)
    # the score of a group is repeated at each of its images
    sizes = common.groupby("group")["score"].transform("size").to_numpy(np.float64)
    value, error = paired(
        differences, common["group"].to_numpy(), None if metric.by_image or metric.weigh == "images" else 1 / sizes
    )
    no_error = ("one group: no standard error",) if error is None else ()
    partial = () if same else (f"{len(common)} common image{'s' if len(common) > 1 else ''}",)
    return _Difference(value, error, len(common), (*partial, *no_error, *remarks))


def same_folds(first: Scored, scored: Scored) -> bool:
    """Returns whether two runs hold out the same images in each fold.

    They do if they were trained on the same folds file, or on two files that differ only in the column `use`, as after
    a review.
    """
    if first.splits == scored.splits:
        return True
    if len(first.splits) != 1 or len(scored.splits) != 1 or first.images is None or scored.images is None:
        return False
    held_out = [table.groupby("fold")["image_id"].agg(frozenset).to_dict() for table in (first.images, scored.images)]
    common = held_out[0].keys() & held_out[1].keys()
    return bool(common) and all(held_out[0][fold] == held_out[1][fold] for fold in common)


def _tuned_otherwise(first: Scored, scored: Scored) -> tuple[str, ...]:
    """A remark if a run was tuned with other settings than the first: then training alone does not explain it."""
    keys = [key for key in scored.tuning if scored.tuning[key] != first.tuning.get(key, scored.tuning[key])]
    if not keys:
        return ()
    more = f" and {len(keys) - 2} more" if len(keys) > 2 else ""
    return (f"tuned with other settings: {', '.join(f'{key}={scored.tuning[key]}' for key in keys[:2])}{more}",)


def _pooled_difference(first: Scored, scored: Scored, images: int, same: bool, remarks: tuple[str, ...]) -> _Difference:
    """The difference of two scores that pool all pixels. It needs the same images, as such a score has no parts."""
    if not same:
        return _Difference(images=images, remarks=(f"pooled over different images ({images} common)",))
    scores = [run.result.get("rows", {}).get(first.rows, run.result).get("score") for run in (scored, first)]
    if scores[0] is None or scores[1] is None:
        return _Difference(images=images, remarks=("no score",))
    return _Difference(scores[0] - scores[1], None, images, ("pooled: no standard error", *remarks))


def _values(members: tuple[dict[str, Any], ...], key: str) -> list[Any]:
    return [member[key] for member in members if member.get(key) is not None]


# --- cells -----------------------------------------------------------------------------------------------------------


def cells(row: Row) -> tuple[str, ...]:
    """Returns the texts of a row, one per column of COLUMNS."""
    return (
        row.run,
        f"{row.competition}, {row.metric}",
        listed(list(row.folds)) or "–",
        _number(row.score) + (" [{:.4f}, {:.4f}]".format(*row.interval_95) if row.interval_95 else ""),
        "first" if row.run == row.first else _signed(row.difference, row.standard_error),
        _number(row.nested),
        "–" if row.parameters is None else f"{row.parameters / 1e6:.{1 if row.parameters >= 1e6 else 3}f} M",
        _speed(row.images_per_second, row.accelerator),
        "–" if row.seconds is None else _duration(row.seconds),
        "; ".join(row.remarks),
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _signed(value: float | None, error: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:+.4f}" + ("" if error is None else f" ± {error:.4f}")


def _speed(value: float | None, accelerator: str | None) -> str:
    """Images per second, with the accelerator that they were measured on."""
    if value is None:
        return "–"
    return f"{value:.{0 if value >= 100 else 1}f}" + (f" ({accelerator})" if accelerator else "")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_left} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
