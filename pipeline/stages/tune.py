"""Chooses on the out-of-fold predictions, at native size, how probabilities become masks, and what that may bring.

    python -m pipeline tune RECIPE

reads   work/<competition>/<run>/predictions/oof_fold_<k>.npy, work/<competition>/images.parquet, outliers.csv
writes  work/<competition>/<run>/postprocess.json (parameters, scores), oof_scores.csv (one row an image)

Masks of binary and multilabel competitions get a threshold and a minimum area a class (thresholds.py); a multiclass
competition gets one bias a class (biases.py). The nested estimate chooses without the fold that it scores.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd

from pipeline import biases, table, workspace
from pipeline.competition import Competition
from pipeline.console import console, track
from pipeline.geometry import Geometry
from pipeline.metrics import class_iou, confusion, mean_iou, pooled_score
from pipeline.postprocess import Biases, Decision, Thresholds, native_probability
from pipeline.probabilities import read_probabilities
from pipeline.recipe import TuneSettings
from pipeline.stages.clean import read_outliers
from pipeline.stages.decode import geometry_of
from pipeline.thresholds import Evidence, histogram_counts, image_scores, search
from pipeline.workspace import Run, Step, shown

PARTS_OF_ONE_FOLD = 5
BOOTSTRAPS = 2000
PIXELS = 10_000_000
"""How many pixels biases are searched on; of more, an equal number is drawn from every image."""

Task = tuple[np.ndarray, pd.Series]
"""An image's probabilities (C, H, W) and its row of images.parquet."""


def steps(run: Run) -> list[Step]:
    """Returns the one step of this stage."""
    inputs = [run.table, run.outliers, *(run.predictions("oof", fold) for fold in run.trained_folds())]
    indices = [path.with_suffix(".csv") for path in inputs[2:]]
    outputs = (run.postprocess, run.folder / "oof_scores.csv")
    settings: dict[str, Any] = {"tune": run.recipe.tune.model_dump(mode="json"), "metric": run.competition.metric}
    settings |= {"reading": run.competition.remark, "never": list(run.never)}
    manifest = run.folder / "postprocess.manifest.json"
    return [Step("tune", "tune", manifest, (*inputs, *indices), outputs, settings)]


def execute(run: Run, waiting: list[Step]) -> Iterator[Step]:
    """Searches, estimates, and writes both files."""
    found, tasks = _out_of_fold(run)
    if run.competition.kind == "multiclass":
        result, rows = tune_labels(found, tasks, geometry_of(run), run.recipe.tune, run.competition, run.never)
    else:
        evidence = collect(found, tasks, geometry_of(run), run.competition.classes)
        result = tune(evidence, run.recipe.tune, run.competition.metric)
        scores = image_scores(evidence, _thresholds(result), run.competition.metric)
        rows = found.assign(true_area=evidence.true.sum(1), score=scores.mean(1))
    result["remark"] = run.competition.remark
    with workspace.writing(run.folder / "oof_scores.csv") as temporary:
        rows.to_csv(temporary, index=False)
    workspace.write_json(run.postprocess, result)
    _print(run, result)
    yield from waiting


def decision_of(result: dict[str, Any]) -> Decision:
    """Returns the decision that postprocess.json holds."""
    if "bias" in result:
        return Biases(tuple(result["bias"].values()), tuple(result["never"]))
    return _thresholds(result)


# --- binary and multilabel: thresholds and areas ---------------------------------------------------------------------


def collect(found: pd.DataFrame, tasks: list[Task], geometry: Geometry, classes: list[str]) -> Evidence:
    """Returns the counts of all out-of-fold images, true masks decoded from their RLE."""

    def count(task: Task) -> tuple[np.ndarray, ...]:
        true = table.true_mask(task[1], classes)
        return histogram_counts(native_probability([task[0]], geometry, true.shape[1:]), true)

    with ThreadPoolExecutor() as pool:
        counted = list(track(pool.map(count, tasks), "tune", len(tasks)))
    return Evidence(found, *(np.stack(part) for part in zip(*counted, strict=True)))


def tune(evidence: Evidence, settings: TuneSettings, metric: str) -> dict[str, Any]:
    """Returns what postprocess.json holds: the decision, and its optimistic, nested and untuned scores."""
    classes = evidence.true.shape[1]
    decision = search(evidence, settings, metric)
    scores = image_scores(evidence, decision, metric).mean(1)
    untuned = image_scores(evidence, Thresholds((128,) * classes, (0,) * classes), metric).mean(1)
    folds = evidence.images["fold"].to_numpy()
    return {
        "metric": metric,
        "method": settings.method,
        "threshold": list(decision.threshold),
        "min_area": list(decision.min_area),
        "score": float(scores.mean()),
        "interval_95": bootstrap_interval(scores, evidence.images["group"].to_numpy()),
        "nested": float(nested_scores(evidence, settings, metric).mean()),
        "untuned": float(untuned.mean()),
        "score_by_fold": {str(fold): float(scores[folds == fold].mean()) for fold in np.unique(folds)},
        "images": len(scores),
        "share_empty_true": float((evidence.true.sum(1) == 0).mean()),
        "mean_true_area": float(evidence.true.sum(1).mean()),
    }


def nested_scores(evidence: Evidence, settings: TuneSettings, metric: str) -> np.ndarray:
    """Returns the score of every image (N,) under the decision chosen without its part."""
    parts = parts_of(evidence.images)
    scores = np.empty(len(parts))
    for part in np.unique(parts):
        held_out = parts == part
        decision = search(evidence.only(~held_out), settings, metric)
        scores[held_out] = image_scores(evidence.only(held_out), decision, metric).mean(1)
    return scores


# --- multiclass: biases ----------------------------------------------------------------------------------------------


def tune_labels(
    found: pd.DataFrame,
    tasks: list[Task],
    geometry: Geometry,
    settings: TuneSettings,
    competition: Competition,
    never: tuple[int, ...],
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Returns what postprocess.json and oof_scores.csv hold."""
    score, parts = pooled_score(competition), parts_of(found)
    pixels, true, owner = _draw_pixels(tasks, geometry, competition)
    plain = Biases((0.0,) * len(competition.classes), never)

    def choose(rows: np.ndarray | slice) -> Biases:
        if settings.method == "fixed":
            return plain
        return Biases(biases.search(pixels[rows], true[rows], score, never), never)

    final = choose(slice(None))
    without = {part: choose(parts[owner] != part) for part in track(np.unique(parts), "tune", len(np.unique(parts)))}
    decisions = [(final, without[part], plain) for part in parts]
    chosen, nested, untuned = _confusions(tasks, geometry, competition.classes, decisions)
    folds, groups = found["fold"].to_numpy(), found["group"].to_numpy()
    by_fold = {str(fold): chosen[folds == fold].sum(0) for fold in np.unique(folds)}
    result = {
        "metric": competition.metric,
        "method": settings.method,
        "bias": dict(zip(competition.classes, final.bias, strict=True)),
        "never": list(never),
        "score": float(score(chosen.sum(0))),
        "interval_95": _interval(bootstrap_pooled(chosen, groups, score, np.random.default_rng(0), BOOTSTRAPS)),
        "nested": float(score(nested.sum(0))),
        "untuned": float(score(untuned.sum(0))),
        "score_by_fold": {fold: float(score(counts)) for fold, counts in by_fold.items()},
        "readings": _readings(chosen.sum(0), by_fold, competition),
        "class_iou": _named(class_iou(chosen.sum(0), competition.ignored), competition),
        "class_iou_by_fold": {
            fold: _named(class_iou(counts, competition.ignored), competition) for fold, counts in by_fold.items()
        },
        "images": len(found),
        "class_share_true": _named(chosen.sum((0, 2)) / chosen.sum(), competition),
    }
    true_area = chosen.sum(2)[:, 1:].sum(1)
    return result, found.assign(true_area=true_area, score=score(chosen))


def bootstrap_pooled(
    counts: np.ndarray, groups: np.ndarray, score: Callable[[np.ndarray], np.ndarray], random: np.random.Generator,
    draws: int,
) -> np.ndarray:  # fmt: skip
    """Returns scores (draws,) of resampled data: counts (N, …) that `score` takes summed, whole groups drawn."""
    _, group = np.unique(groups.astype(str), return_inverse=True)
    total = np.zeros((group.max() + 1, *counts.shape[1:]))
    np.add.at(total, group, counts)
    return score(np.tensordot(_draw(len(total), random, draws), total, 1))


def _draw_pixels(
    tasks: list[Task], geometry: Geometry, competition: Competition
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities (M, C) float32, true classes (M,) uint8 and image numbers (M,) of pixels that count."""
    largest = max(64, PIXELS // max(1, len(tasks)))

    def draw(pair: tuple[int, Task]) -> tuple[np.ndarray, np.ndarray]:
        number, (array, row) = pair
        true = table.true_labels(table.true_mask(row, competition.classes))
        probability = native_probability([array], geometry, true.shape)
        counted = np.flatnonzero((true != biases.IGNORE) & (true != competition.ignored))
        if len(counted) > largest:
            counted = np.random.default_rng([0, number]).choice(counted, largest, replace=False)
        return probability.reshape(len(probability), -1)[:, counted].T, true.ravel()[counted]

    with ThreadPoolExecutor() as pool:
        drawn = list(track(pool.map(draw, enumerate(tasks)), "draw pixels", len(tasks)))
    owner = np.repeat(np.arange(len(drawn), dtype=np.int32), [len(true) for _, true in drawn])
    return np.concatenate([one for one, _ in drawn]), np.concatenate([true for _, true in drawn]), owner


def _confusions(
    tasks: list[Task], geometry: Geometry, classes: list[str], decisions: Sequence[tuple[Biases, ...]]
) -> np.ndarray:
    """Confusion matrices (decisions, N, C, C) of every image under each of its decisions."""

    def count(pair: tuple[Task, tuple[Biases, ...]]) -> list[np.ndarray]:
        (array, row), wanted = pair
        true = table.true_labels(table.true_mask(row, classes))
        probability = native_probability([array], geometry, true.shape)
        maps = [biases.labels(probability, one.bias, one.never) for one in wanted]
        return [confusion(predicted, true, len(classes)) for predicted in maps]

    with ThreadPoolExecutor() as pool:
        counted = track(pool.map(count, zip(tasks, decisions, strict=True)), "tune", len(tasks))
        return np.array(list(counted)).swapaxes(0, 1)


def _readings(counts: np.ndarray, by_fold: dict[str, np.ndarray], competition: Competition) -> dict[str, Any]:
    """The mean IoU in both readings of a predicted ignored class, over all images and by fold."""
    if competition.ignored is None:
        return {}
    return {
        reading: {
            "all": float(mean_iou(counts, competition.ignored, reading)),
            **{fold: float(mean_iou(one, competition.ignored, reading)) for fold, one in by_fold.items()},
        }
        for reading in ("leave_out", "zero")
    }


def _named(values: np.ndarray, competition: Competition) -> dict[str, float | None]:
    pairs = zip(competition.classes, values, strict=True)
    return {name: None if np.isnan(value) else float(value) for name, value in pairs}


# --- both ------------------------------------------------------------------------------------------------------------


def bootstrap_interval(scores: np.ndarray, groups: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Returns the 95 % interval of the mean score (N,), groups resampled whole."""
    return _interval(bootstrap_means(scores, groups, np.random.default_rng(seed), BOOTSTRAPS))


def bootstrap_means(scores: np.ndarray, groups: np.ndarray, random: np.random.Generator, draws: int) -> np.ndarray:
    """Returns mean scores (draws,) of resampled data: scores (N,), whole groups drawn with replacement."""
    _, group = np.unique(groups.astype(str), return_inverse=True)
    size, total = np.bincount(group), np.bincount(group, weights=scores)
    drawn = _draw(len(size), random, draws)
    return (drawn @ total) / (drawn @ size)


def parts_of(images: pd.DataFrame) -> np.ndarray:
    """Returns the part (N,) that the nested estimate leaves out with each image: its fold, or one of five sets of
    groups when there is one fold."""
    _, fold = np.unique(images["fold"], return_inverse=True)
    if fold.max() > 0:
        return fold
    _, group = np.unique(images["group"].astype(str), return_inverse=True)
    return np.random.default_rng(0).permutation(group.max() + 1)[group] % min(PARTS_OF_ONE_FOLD, group.max() + 1)


def _out_of_fold(run: Run) -> tuple[pd.DataFrame, list[Task]]:
    """image_id, fold and group of all out-of-fold images but the broken ones, and their probabilities."""
    images = table.read_table(run.table, "train").set_index("image_id", drop=False)
    broken = set(read_outliers(run).query("reason == 'broken'")["image_id"])
    rows, tasks = [], []
    for fold in run.trained_folds():
        array, ids = read_probabilities(run.predictions("oof", fold))
        for index, image_id in enumerate(ids):
            if image_id not in broken:
                row = images.loc[image_id]
                rows.append({"image_id": image_id, "fold": fold, "group": row["group"] or image_id})
                tasks.append((array[index], row))
    return pd.DataFrame(rows), tasks


def _draw(groups: int, random: np.random.Generator, draws: int) -> np.ndarray:
    return random.multinomial(groups, np.full(groups, 1 / groups), draws)


def _interval(scores: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(scores, [0.025, 0.975])
    return float(low), float(high)


def _thresholds(result: dict[str, Any]) -> Thresholds:
    return Thresholds(tuple(result["threshold"]), tuple(result["min_area"]))


def _print(run: Run, result: dict[str, Any]) -> None:
    low, high = result["interval_95"]
    remark = f" ({result['remark']})" if result["remark"] else ""
    console.print(
        f"  {result['metric']} {result['score']:.4f} out-of-fold [{low:.4f}, {high:.4f}], "
        f"nested {result['nested']:.4f}, untuned {result['untuned']:.4f}{remark} → {shown(run.postprocess)}"
    )
    if "bias" in result:
        values = result["class_iou"].items()
        console.print("  IoU: " + ", ".join(f"{name} {iou:.4f}" for name, iou in values if iou is not None))
        console.print("  bias: " + ", ".join(f"{name} {bias:+.2f}" for name, bias in result["bias"].items()))
    else:
        areas = ", ".join(map(str, result["min_area"]))
        console.print(f"  threshold {', '.join(map(str, result['threshold']))} of 255, minimum area {areas} px")
