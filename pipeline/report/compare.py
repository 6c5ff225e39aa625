"""Sets runs side by side: their scores, how far each is from the first, what they cost.

    python -m pipeline compare RUN…

reads   work/<competition>/<run>/postprocess.json, oof_scores.csv, fold_<k>/manifest.json and */fold.json

Two runs are compared on the images that both have scores of, image by image, so that what makes an image hard for both
cancels out. A metric of all pixels together is no mean over images: there the plain difference stands alone.
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
from pipeline.core.config.recipe import FOLDER
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
    "A difference is a run's score minus the first run's of the same competition, on the images that both scored; ± is "
    "one standard error of the paired difference (bootstrap over groups), and a difference within two of them may be "
    "noise."
)
NAMED = 5
"""Runs that a message names."""
COLUMNS = {
    "run": "left", "competition, metric": "left", "folds": "left", "out-of-fold [95 %]": "left", "difference": "left",
    "nested": "right", "parameters": "right", "images/s": "right", "training": "right", "remarks": "left",
}  # fmt: skip

COMPARED = {"image_id": str, "fold": int, "group": str, "use": str, "score": float}
"""Columns of oof_scores.csv that two runs are compared by, and what they hold."""
TUNING = {"tune": "tune", "predict.tta": "tta"}
"""Settings of a recipe that tune went by, and what its manifest calls them."""
SEEDS = ("", "_seed_*")
"""What follows fold_<k> in the names of its networks' folders."""


@dataclass(frozen=True)
class Row:
    """A run beside the first run of its competition; None is what its files do not say."""

    run: str
    competition: str
    metric: str
    folds: tuple[int, ...]
    """The folds that the score is of."""
    score: float | None
    interval_95: tuple[float, float] | None
    first: str
    """The run that this one is compared with; the run itself where it is the first of its competition."""
    difference: float | None
    """Score minus the first run's, on common images."""
    standard_error: float | None
    common_images: int | None
    nested: float | None
    parameters: int | None
    """Trainable ones, of one network."""
    images_per_second: float | None
    """In training, the mean over all networks."""
    accelerator: str | None
    seconds: float | None
    """Training of all networks together."""
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Scored:
    """A run's folder, read."""

    folder: Path
    result: dict[str, Any]
    """What postprocess.json holds."""
    images: pd.DataFrame | None
    """What oof_scores.csv holds: image_id, fold, group, use, score; None where there is none."""
    members: tuple[dict[str, Any], ...]
    """The fold.json of every network."""
    splits: frozenset[str]
    """Content hashes of the folds files that it was trained on: one, unless something went wrong."""
    tuning: dict[str, Any]
    """The settings of `tune` and of the views that it was tuned with, by dotted keys."""

    @property
    def competition(self) -> str:
        """The name of its competition."""
        return self.folder.parent.name

    @property
    def name(self) -> str:
        """The run's name."""
        return self.folder.name

    @property
    def folds(self) -> tuple[int, ...]:
        """The folds that the score is of."""
        return tuple(sorted(map(int, self.result.get("score_by_fold", {}))))

    @property
    def rows(self) -> str:
        """Which rows its score is of, raw or cleaned; raw where both are the same."""
        sets = self.result.get("rows", {})
        return next((name for name in ("raw", "cleaned") if _size(sets, name) == self.result.get("images")), "raw")


def compare(names: list[str]) -> list[Row]:
    """Returns a row a run, runs of the same competition together, each against the first of them.

    Args:
        names: runs' names, `competition/name` where two competitions have one of that name, or paths of recipes.

    Raises:
        PipelineError: no such run has scores, or several have.
    """
    return [row_of(group[0], scored) for group in read_runs(names).values() for scored in group]


def read_runs(names: list[str]) -> dict[str, list[Scored]]:
    """Returns runs by their competition, each in the order of `names`; see compare.

    Raises:
        PipelineError: no such run has scores, or several have.
    """
    layout.check()
    known = _known()
    groups: dict[str, list[Scored]] = {}
    for folder in dict.fromkeys(_find(name, known) for name in names):
        scored = _read(folder)
        groups.setdefault(scored.competition, []).append(scored)
    return groups


def render(rows: list[Row]) -> Table:
    """Returns the rows as a table, a line between competitions."""
    shown = Table()
    for name, justify in COLUMNS.items():
        shown.add_column(name, justify="right" if justify == "right" else "left")
    for index, row in enumerate(rows):
        if index and rows[index - 1].competition != row.competition:
            shown.add_section()
        shown.add_row(*map(Text, cells(row)))  # Text: a name may hold what rich would read as markup
    return shown


def paired(
    differences: np.ndarray, groups: np.ndarray, weights: np.ndarray | None = None
) -> tuple[float, float | None]:
    """Returns the (weighted) mean of differences (N,) and its standard error, groups resampled whole; None for a single
    group."""
    mean = float(differences.mean() if weights is None else np.average(differences, weights=weights))
    if len(np.unique(groups)) < 2:
        return mean, None
    draws = bootstrap(mean_counts(differences, weights), mean_score, groups)
    return mean, float(draws.std())


# --- finding and reading runs ----------------------------------------------------------------------------------------


def _known() -> dict[str, list[Path]]:
    """Folders of all runs with scores: by name, and by competition/name."""
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
        raise PipelineError(f"`{name}` is a run of {len(found)} competitions: say {full}.")
    if not found:
        near = difflib.get_close_matches(name, [one for one in known if ("/" in one) == ("/" in name)], 3)
        meant = f"; did you mean {' or '.join(near)}?" if near else ""
        raise PipelineError(f"no run `{name}` has scores{meant}{_how_to_get(wanted, known, bool(near))}")
    return found[0]


def _how_to_get(wanted: str, known: dict[str, list[Path]], near: bool) -> str:
    """The end of the sentence: the command that makes a run's scores where its recipe is there, else which runs have
    some."""
    path = wanted.endswith((".yaml", ".yml"))
    recipe = wanted if path else wanted.rpartition("/")[2].removesuffix("-quick")
    if Path(recipe).is_file() if path else (FOLDER / f"{recipe}.yaml").is_file():
        quick = " --quick" if not path and wanted.endswith("-quick") else ""
        return f"{'' if near else ':'} `{program()} run {recipe}{quick}` makes them."
    if near:
        return ""
    scored = [name for name in known if "/" in name]
    some = f"{', '.join(scored[:NAMED])}{', …' if len(scored) > NAMED else ''}"
    return f" and there is no recipe {recipe}; {f'runs with scores: {some}' if scored else 'no run has any yet'}."


def _read(folder: Path) -> Scored:
    scores = folder / "oof_scores.csv"
    images = look.read_written(scores, COMPARED, "tune") if scores.exists() else None
    members = tuple(read_training(file, Speed) for file in sorted(folder.glob("*/fold.json")))
    result = read_scored(folder)
    # only of folds that are scored: another fold's folder may be left from before; an ensemble's are its runs'
    patterns = [f"fold_{fold}{seed}/manifest.json" for fold in result.get("score_by_fold", {}) for seed in SEEDS]
    trained = [folder.with_name(name) for name in result.get("ensemble", {})] or [folder]
    manifests = [path for one in trained for pattern in patterns for path in one.glob(pattern)]
    splits = frozenset(split for path in manifests if (split := _split_of(path)))
    settings = (freshness.read_manifest(folder / "postprocess.manifest.json") or {}).get("settings", {})
    tuning = flatten({name: settings[key] for name, key in TUNING.items() if key in settings})
    return Scored(folder, result, images, members, splits, tuning)


def _split_of(manifest: Path) -> str | None:
    """The content hash of the folds file among a fold's inputs, the first of them in that folder: a list of images to
    exclude may lie there too, and comes later."""
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
    """Returns a run as a row, compared with the first run of its competition."""
    result, members = scored.result, scored.members
    found = _Difference() if scored is first else _difference(first, scored)
    speeds, seconds = _values(members, "images_per_second"), _values(members, "seconds")
    used = sorted({one["compute"]["accelerator"] for one in members if (one.get("compute") or {}).get("accelerator")})
    interval = result.get("interval_95")
    return Row(
        run=scored.name,
        competition=scored.competition,
        metric=result["metric"],
        folds=scored.folds,
        score=result.get("score"),
        interval_95=(interval[0], interval[1]) if interval else None,
        first=first.name,
        difference=found.value,
        standard_error=found.error,
        common_images=found.images,
        nested=result.get("nested"),
        parameters=next(iter(_values(members, "parameters")), None),
        images_per_second=sum(speeds) / len(speeds) if speeds else None,
        accelerator=", ".join(used) or None,
        seconds=sum(seconds) if seconds else None,
        remarks=(*found.remarks, *filter(None, [result.get("remark")])),
    )


def _difference(first: Scored, scored: Scored) -> _Difference:
    """How much better a run is than the first, on the rows that the first one's score is of."""
    if scored.result["metric"] != first.result["metric"]:
        return _Difference(remarks=("other metric",))
    if not first.splits or not scored.splits:
        return _Difference(remarks=("folds unknown",))
    if not same_folds(first, scored):
        return _Difference(remarks=("other folds",))
    if first.images is None or scored.images is None:
        return _Difference(remarks=("no scores by image",))
    images = [one[counted_rows(one, first.rows)] for one in (first.images, scored.images)]
    common = images[0].merge(images[1][["image_id", "score"]], on="image_id", suffixes=("", "_here"))
    if common.empty:
        return _Difference(images=0, remarks=("no common images",))
    same = len(common) == len(images[0]) == len(images[1])
    remarks = _tuned_otherwise(first, scored)
    if scored.rows != first.rows:
        remarks = (f"score of {scored.rows} rows, difference of {first.rows} ones", *remarks)
    by = [searched_by(one.result) for one in (first, scored)]
    if by[0] != by[1]:
        return _Difference(remarks=(f"tuned by {by[1]}, and {first.name} by {by[0]}",))
    if by[0] != first.result["metric"]:
        remarks = (f"difference by {by[0]}", *remarks)
    metric = if_sound(named, by[0])
    if metric is None or metric.unit == "data_set":
        return _pooled_difference(first, scored, len(common), same, remarks)
    differences = (common["score_here"] - common["score"]).to_numpy(np.float64)
    # a group's score stands at each of its images
    sizes = common.groupby("group")["score"].transform("size").to_numpy(np.float64)
    value, error = paired(
        differences, common["group"].to_numpy(), None if metric.by_image or metric.weigh == "images" else 1 / sizes
    )
    alone = ("one group: no standard error",) if error is None else ()
    several = () if same else (f"{len(common)} common image{'s' if len(common) > 1 else ''}",)
    return _Difference(value, error, len(common), (*several, *alone, *remarks))


def same_folds(first: Scored, scored: Scored) -> bool:
    """Returns whether two runs hold out the same images together: by one folds file, or by two that differ in what
    training makes of the images (`use`, as a review decides it), and not in their folds."""
    if first.splits == scored.splits:
        return True
    if len(first.splits) != 1 or len(scored.splits) != 1 or first.images is None or scored.images is None:
        return False
    held_out = [one.groupby("fold")["image_id"].agg(frozenset).to_dict() for one in (first.images, scored.images)]
    common = held_out[0].keys() & held_out[1].keys()
    return bool(common) and all(held_out[0][fold] == held_out[1][fold] for fold in common)


def _tuned_otherwise(first: Scored, scored: Scored) -> tuple[str, ...]:
    """Says where a run was tuned with other settings than the first: then the difference is not training's alone."""
    keys = [key for key in scored.tuning if scored.tuning[key] != first.tuning.get(key, scored.tuning[key])]
    if not keys:
        return ()
    more = f" and {len(keys) - 2} more" if len(keys) > 2 else ""
    return (f"tuned with other settings: {', '.join(f'{key}={scored.tuning[key]}' for key in keys[:2])}{more}",)


def _pooled_difference(first: Scored, scored: Scored, images: int, same: bool, remarks: tuple[str, ...]) -> _Difference:
    """The difference of scores over all pixels, which say nothing about a part of the images."""
    if not same:
        return _Difference(images=images, remarks=(f"pooled over other images ({images} common)",))
    here, there = (one.result.get("rows", {}).get(first.rows, one.result).get("score") for one in (scored, first))
    if here is None or there is None:
        return _Difference(images=images, remarks=("no score",))
    return _Difference(here - there, None, images, ("pooled: no standard error", *remarks))


def _values(members: tuple[dict[str, Any], ...], key: str) -> list[Any]:
    return [one[key] for one in members if one.get(key) is not None]


# --- cells -----------------------------------------------------------------------------------------------------------


def cells(row: Row) -> tuple[str, ...]:
    """Returns a row as texts, one a column of COLUMNS."""
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
    """Images a second, and on what: the number says nothing about another machine."""
    if value is None:
        return "–"
    return f"{value:.{0 if value >= 100 else 1}f}" + (f" ({accelerator})" if accelerator else "")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_left} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
