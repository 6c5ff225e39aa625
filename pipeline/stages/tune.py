"""Chooses on the out-of-fold predictions, at native size, how probabilities become masks, and what that may bring.

    python -m pipeline tune RECIPE

reads   work/<competition>/<run>/predictions/oof_fold_<k>.npy, work/<competition>/images.parquet, outliers.csv,
        folds/<competition>.csv and its audit
writes  work/<competition>/<run>/postprocess.json (parameters, scores), oof_scores.csv (one row an image), suspects.csv

The score is that of all images but the broken ones, as the test set is not cleaned either; beside it stands that of the
images clean left as they are. `tune.rows: cleaned` turns the two around.

Masks of binary and multilabel competitions get a threshold and a minimum area a class (thresholds.py); a multiclass
competition gets one bias a class (biases.py). The nested estimate chooses without the fold that it scores.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd

from pipeline import biases, suspects, table, workspace
from pipeline.competition import Competition
from pipeline.console import console, track
from pipeline.folds import leak_remark, read_folds, read_outliers
from pipeline.freshness import Step
from pipeline.geometry import Geometry
from pipeline.metrics import class_iou, confusion, mean_iou, pooled_score
from pipeline.postprocess import Biases, Decision, Thresholds, native_probability
from pipeline.probabilities import read_probabilities
from pipeline.recipe import TuneSettings
from pipeline.stages.decode import geometry_of
from pipeline.thresholds import Evidence, histogram_counts, image_scores, search
from pipeline.workspace import Run, shown

PARTS_OF_ONE_FOLD = 5
BOOTSTRAPS = 2000
PIXELS = 10_000_000
"""How many pixels biases are searched on; of more, an equal number is drawn from every image."""

Task = tuple[np.ndarray, pd.Series]
"""An image's probabilities (C, H, W) and its row of images.parquet."""


def steps(run: Run) -> list[Step]:
    """Returns the one step of this stage."""
    predictions = [run.predictions("oof", fold) for fold in run.trained_folds()]
    indices = [path.with_suffix(".csv") for path in predictions]
    inputs = (run.table, run.outliers, run.folds, run.audit, *predictions, *indices)
    outputs = (run.postprocess, run.folder / "oof_scores.csv", run.suspects)
    settings: dict[str, Any] = {"tune": run.recipe.tune.model_dump(mode="json"), "metric": run.competition.metric}
    settings |= {"reading": run.remark, "never": list(run.never)}
    manifest = run.folder / "postprocess.manifest.json"
    return [Step("tune", "tune", manifest, inputs, outputs, settings)]


def execute(run: Run, waiting: list[Step]) -> Iterator[Step]:
    """Searches, estimates, and writes both files."""
    found, tasks = _out_of_fold(run)
    if run.competition.kind == "multiclass":
        result, rows, counts = tune_labels(found, tasks, geometry_of(run), run.recipe.tune, run.competition, run.never)
        suspected = suspects.of_labels(found, counts, run.competition)
    else:
        evidence = collect(found, tasks, geometry_of(run), run.competition.classes)
        result = tune(evidence, run.recipe.tune, run.competition.metric)
        scores = image_scores(evidence, _thresholds(result), run.competition.metric)
        rows = found.assign(true_area=evidence.true.sum(1), score=scores.mean(1))
        suspected = suspects.of_masks(evidence, _thresholds(result), run.competition.classes)
    result["remark"] = "; ".join(filter(None, [run.remark, leak_remark(run)]))
    for path, rows_of in ((run.folder / "oof_scores.csv", rows), (run.suspects, suspected)):
        with workspace.writing(path) as temporary:
            rows_of.to_csv(temporary, index=False)
    workspace.write_json(run.postprocess, result)
    _print(run, result)
    if len(suspected):
        console.print(f"  {len(suspected)} images whose mask may be wrong, the likeliest first → {shown(run.suspects)}")
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
    classes, counted = evidence.true.shape[1], counted_rows(evidence.images, settings.rows)
    everything, evidence = evidence, evidence.only(counted)
    decision = search(evidence, settings, metric)
    scores = image_scores(evidence, decision, metric).mean(1)
    untuned = image_scores(evidence, Thresholds((128,) * classes, (0,) * classes), metric).mean(1)
    folds = evidence.images["fold"].to_numpy()
    return {
        "metric": metric,
        "rows": row_sets(everything.images, lambda rows: image_scores(everything.only(rows), decision, metric).mean()),
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
) -> tuple[dict[str, Any], pd.DataFrame, np.ndarray]:
    """Returns what postprocess.json and oof_scores.csv hold, and the confusion matrix of every image (N, C, C)."""
    score, parts = pooled_score(competition), parts_of(found)
    counted = counted_rows(found, settings.rows)
    pixels, true, owner = _draw_pixels(tasks, counted, geometry, competition)
    plain = Biases((0.0,) * len(competition.classes), never)

    def choose(rows: np.ndarray | slice) -> Biases:
        if settings.method == "fixed":
            return plain
        return Biases(biases.search(pixels[rows], true[rows], score, never), never)

    final = choose(slice(None))
    without = {part: choose(parts[owner] != part) for part in track(np.unique(parts), "tune", len(np.unique(parts)))}
    decisions = [(final, without[part], plain) for part in parts]
    everything, nested, untuned = _confusions(tasks, geometry, competition.classes, decisions)
    chosen, nested, untuned = everything[counted], nested[counted], untuned[counted]
    folds, groups = found["fold"].to_numpy()[counted], found["group"].to_numpy()[counted]
    by_fold = {str(fold): chosen[folds == fold].sum(0) for fold in np.unique(folds)}
    result = {
        "metric": competition.metric,
        "rows": row_sets(found, lambda rows: float(score(everything[rows].sum(0)))),
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
        "images": len(chosen),
        "class_share_true": _named(chosen.sum((0, 2)) / chosen.sum(), competition),
    }
    true_area = everything.sum(2)[:, 1:].sum(1)
    return result, found.assign(true_area=true_area, score=score(everything)), everything


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
    tasks: list[Task], wanted: np.ndarray, geometry: Geometry, competition: Competition
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities (M, C) float32, true classes (M,) uint8 and image numbers (M,) of pixels that count, in
    the images that `wanted` (N,) bool names."""
    numbers = np.flatnonzero(wanted).astype(np.int32)
    largest = max(64, PIXELS // max(1, len(numbers)))

    def draw(number: int) -> tuple[np.ndarray, np.ndarray]:
        array, row = tasks[number]
        true = table.true_labels(table.true_mask(row, competition.classes))
        probability = native_probability([array], geometry, true.shape)
        counted = np.flatnonzero((true != biases.IGNORE) & (true != competition.ignored))
        if len(counted) > largest:
            counted = np.random.default_rng([0, number]).choice(counted, largest, replace=False)
        return probability.reshape(len(probability), -1)[:, counted].T, true.ravel()[counted]

    with ThreadPoolExecutor() as pool:
        drawn = list(track(pool.map(draw, numbers), "draw pixels", len(numbers)))
    owner = np.repeat(numbers, [len(true) for _, true in drawn])
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


def counted_rows(images: pd.DataFrame, rows: str) -> np.ndarray:
    """Returns which images (N,) bool are among the `raw` or the `cleaned` rows."""
    return np.ones(len(images), bool) if rows == "raw" else (images["use"] == "train").to_numpy()


def row_sets(images: pd.DataFrame, score: Callable[[np.ndarray], float]) -> dict[str, Any]:
    """Returns how many raw and how many cleaned images there are, and the score of each set under the decision."""
    sets = {name: counted_rows(images, name) for name in ("raw", "cleaned")}
    return {
        name: {"images": int(rows.sum()), "score": float(score(rows)) if rows.any() else None}
        for name, rows in sets.items()
    }


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
    """All out-of-fold images but the broken ones (image_id, fold, group, use) and their probabilities. The group is
    what is drawn together: the competition's group, or the cluster of near-duplicates, or the image alone."""
    images = table.read_table(run.table, "train").set_index("image_id", drop=False)
    split = read_folds(run).set_index("image_id")
    broken = set(read_outliers(run).query("reason == 'broken' and action == 'drop'")["image_id"])
    rows, tasks = [], []
    for fold in run.trained_folds():
        array, ids = read_probabilities(run.predictions("oof", fold))
        for index, image_id in enumerate(ids):
            if image_id not in broken:
                row, own = images.loc[image_id], split.loc[image_id]
                cluster = f"cluster {own['cluster']}" if own.get("cluster") else image_id
                rows.append({"image_id": image_id, "fold": fold, "group": row["group"] or cluster, "use": own["use"]})
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
    names = {"raw": "all but the broken images", "cleaned": "the images that clean left as they are"}
    for name, rows in result["rows"].items():
        if rows["images"] not in (0, result["images"]):
            console.print(f"  {result['metric']} {rows['score']:.4f} on {names[name]} ({rows['images']})")
    if "bias" in result:
        values = result["class_iou"].items()
        console.print("  IoU: " + ", ".join(f"{name} {iou:.4f}" for name, iou in values if iou is not None))
        console.print("  bias: " + ", ".join(f"{name} {bias:+.2f}" for name, bias in result["bias"].items()))
    else:
        areas = ", ".join(map(str, result["min_area"]))
        console.print(f"  threshold {', '.join(map(str, result['threshold']))} of 255, minimum area {areas} px")
