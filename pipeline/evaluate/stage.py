"""Scores the final masks of a test set with known true masks; without known masks, this stage does nothing.

    python -m pipeline evaluate RECIPE

reads   work/<competition>/<run>/predictions/test_fold_<k>.npy, postprocess.json, submissions/<run>.json,
        work/<competition>/test_images.parquet, input/<competition>/
writes  work/<competition>/<run>/test.json (summary), test_scores.csv (one row per image), test_overlays/*.png,
        test_tensorboard/ (loss, Dice, IoU and pictures), and a row of work/<competition>/runs.csv

The masks are those of the submission. No decision is made on the test set, here or afterwards.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.core.config.competition import Competition
from pipeline.core.console import say, track
from pipeline.core.errors import PipelineError
from pipeline.core.files import shown, write_json, write_png
from pipeline.core.freshness import Step
from pipeline.core.intact import read_texts
from pipeline.core.lock import exclusive_lock
from pipeline.core.results import read_submission, read_tuned, searched_by
from pipeline.core.run import Run
from pipeline.core.tables import as_written, write_for_people
from pipeline.decode import table
from pipeline.decode.readers.columns import units_by_id
from pipeline.decode.readers.registry import reader_of
from pipeline.evaluate import tensorboard
from pipeline.masks import metrics, overlaps, overlay
from pipeline.masks.decision import decision_of, disjoint
from pipeline.masks.geometry import IGNORE
from pipeline.masks.scale import scale_of
from pipeline.masks.separation import with_gaps
from pipeline.predictions import blends, published
from pipeline.predictions.metric_tables import MetricTables, metric_tables

NEEDS_TEST, READS_FOLDS = True, "test"
OVERLAYS = 10
EVENTS = f"test_tensorboard/{tensorboard.FILE}"
BATCH = 8
"""Images per batch, for the figures per batch that reports on Oxford-IIIT Pet give."""


def wanted(competition: Competition) -> bool:
    """Returns whether, according to its YAML, the competition's test set has known masks to score against."""
    return bool(getattr(getattr(competition, "test", None), "evaluate", False))


def steps(run: Run) -> list[Step]:
    """Returns the step of this stage; none if the test set has no known masks."""
    if not wanted(run.competition):
        return []
    outputs = (run.folder / "test.json", run.folder / "test_scores.csv")
    settings: dict[str, Any] = {"metric": run.competition.metric, "reading": run.competition.remark}
    if run.competition.submission.size:
        settings["size"] = [*run.competition.submission.size, run.competition.submission.resize]
    if run.competition.metric_file:
        settings["metric_file"] = run.competition.metric_file.model_dump(mode="json")
    inputs = (run.record, run.postprocess, run.test_table, *blends.files(run, "test"))
    inputs += tuple(filter(None, [published.file_of(run.competition)]))
    also = (run.folder / EVENTS,)
    return [Step("evaluate", "evaluate", run.folder / "test.manifest.json", inputs, outputs, settings, also=also)]


def execute(run: Run, waiting: list[Step]) -> Iterator[Step]:
    """Scores every test image, writes the summary and the overlays, and adds a row to runs.csv.

    Raises:
        PipelineError: predictions of a test image are missing, or a file that tune or encode wrote is damaged.
    """
    images = table.read_table(run.test_table)
    result, record = read_tuned(run), read_submission(run)
    if run.competition.metric_file:  # also score with the built-in metric that was used for tuning
        run = replace(run, competition=run.competition.model_copy(update={"metric": searched_by(result)}))
    blend, decision = blends.test(run, result), decision_of(result)
    place = _places(run, images, blend.ids)
    read = reader_of(run.competition).opener(run.competition, run.input)
    folder = _emptied(run.folder / "test_overlays")
    metric, units = metrics.metric_of(run.competition), np.array([*units_by_id(run.competition, images).values()])
    tables = metric_tables(images, units, run.competition) if run.competition.metric_file else None
    pictures = [np.empty(0)] * min(OVERLAYS, len(images))

    def evaluate_one(index: int) -> dict[str, Any]:
        row = images.iloc[index]
        true = table.scored_mask(row, run.competition)
        predicted_as = place[row["image_id"]]
        probability = blend.native(predicted_as, true.shape[1:])
        overlap = run.competition.submission.overlap
        objects = disjoint(blend.objects(predicted_as, probability, decision), probability, overlap)
        predicted = (objects > 0).view(np.uint8)
        if index < OVERLAYS:
            image = read(row)
            picture = overlay.drawn(image, true, with_gaps(objects), run.competition)
            name = f"{index:02}_{row['image_id'].replace('/', '_')}.png"
            write_png(folder / name, overlay.with_legend(picture, run.competition))
            pictures[index] = tensorboard.panels(image, true, probability, predicted, run.competition)
        figures = image_figures(probability, predicted, true, run.competition)
        truth = table.scored_truth(row, run.competition, metric) if metric.instances else true
        texts = tables and (tables.texts(row["image_id"], objects), tables.true_texts(row))
        masks = objects if metric.instances else predicted, truth
        return {"image_id": row["image_id"], "masks": masks, "texts": texts, **figures}

    def evaluate_batch(batch: np.ndarray) -> list[tuple[int, dict[str, Any]]]:
        rows = [evaluate_one(index) for index in batch.tolist()]
        predicted, true = zip(*(row.pop("masks") for row in rows), strict=True)
        measured = metric.measured(predicted, true)
        scores = metric.by_class(measured).reshape(len(rows), -1).mean(1)
        figures = [{"image_id": row["image_id"], metric.name: float(score)} | row | {"measured": counts}
                   for row, score, counts in zip(rows, scores, measured, strict=True)]  # fmt: skip
        return list(zip(batch.tolist(), figures, strict=True))

    batches = metric.batches(units)
    with ThreadPoolExecutor() as pool:
        results = track(pool.map(evaluate_batch, batches), "evaluate", len(batches))
        done = dict(pair for batch in results for pair in batch)
    rows = [done[index] for index in range(len(images))]
    summary = {"run": run.name, "remark": run.competition.remark, **summarise(rows, run.competition, units)}
    if tables:
        summary |= published_score(tables, rows, summary)
    _write(run, rows, summary)
    tensorboard.write(run.folder / EVENTS, summary, batch_figures(rows), pictures)
    _add_to_runs(run, summary, record)
    _print(run, summary)
    yield from waiting


def _write(run: Run, rows: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    """Writes the table of single images and the summary."""
    flat = pd.DataFrame([{key: value for key, value in row.items() if np.isscalar(value)} for row in rows])
    write_for_people(run.folder / "test_scores.csv", flat)
    write_json(run.folder / "test.json", summary)


def _emptied(folder: Path) -> Path:
    """Returns the folder after making it and removing the pictures of an earlier run."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    return folder


def _places(run: Run, images: pd.DataFrame, ids: list[str]) -> dict[str, int]:
    """Returns the position of every test image among the predicted ones."""
    place = {image_id: number for number, image_id in enumerate(ids)}
    if missing := [image_id for image_id in images["image_id"] if image_id not in place]:
        raise PipelineError(
            f"{shown(blends.files(run, 'test')[0])} lacks {len(missing)} test images of {shown(run.test_table)}, for "
            f"instance {missing[0]}; run the predict stage again."
        )
    return place


def published_score(tables: MetricTables, rows: list[dict[str, Any]], by: dict[str, Any]) -> dict[str, Any]:
    """Returns the score by the published metric as `metric` and `score`, and the built-in metric's as `tuned_by`.

    Args:
        tables: makes the tables of the test images.
        rows: one dict per image, with the `texts` of its predicted and its true masks.
        by: the summary by the built-in metric.

    Raises:
        PipelineError: the metric fails.
    """
    predicted, true = zip(*(row["texts"] for row in rows), strict=True)
    competition = tables.competition
    score = published.load(competition).score(tables.solution(true).frame, tables.submission(predicted).frame)
    built_in = {name: by[name] for name in ("metric", "score")}
    return {"metric": competition.scored_by, "score": score, "tuned_by": built_in}


def image_figures(
    probability: np.ndarray, predicted: np.ndarray, true: np.ndarray, competition: Competition
) -> dict[str, Any]:
    """Returns dice, iou and loss of an image at its own size, and the pixel counts for figures over the data set.

    Args:
        probability: (C, h, w) uint8 (p·255) or, multiclass, float32.
        predicted: masks (C, h, w) of 0 and 1.
        true: masks (C, h, w) of 0, 1 and 255 (ignored).
        competition: the competition, for its kind.
    """
    counts = np.stack(overlaps.counts(predicted, true))
    figures = {"dice": overlaps.dice(*counts).mean(), "iou": overlaps.iou(*counts).mean(), "counts": counts}
    if competition.kind == "multiclass":
        labels = table.true_labels(true)
        matrix = overlaps.confusion(predicted.argmax(0).astype(np.uint8), labels, len(true))
        figures |= {"confusion": matrix}
    return figures | {"loss": cross_entropy(probability, true, competition)}


def cross_entropy(probability: np.ndarray, true: np.ndarray, competition: Competition) -> float:
    """Returns the mean cross-entropy over the pixels that count, in nats.

    It is computed from the averaged, resized probabilities, so their resolution (1/255 if they are uint8) bounds it.
    """
    valid = true[0] != IGNORE
    if not valid.any():
        return 0.0
    scale = scale_of(competition)
    if competition.kind == "multiclass":
        p = scale.probability(probability)
        return float(-np.log(np.clip((p * (true == 1)).sum(0)[valid], 1e-6, 1)).mean())
    step = 0.5 / scale.largest
    p = np.clip(scale.probability(probability), step, 1 - step)
    return float(-np.log(np.where(true == 1, p, 1 - p))[:, valid].mean())


def summarise(rows: list[dict[str, Any]], competition: Competition, units: np.ndarray) -> dict[str, Any]:
    """Returns mean and standard deviation over images and over batches (see batch_figures), and figures over all
    pixels."""
    names = list(dict.fromkeys([competition.metric, "dice", "iou", "loss"]))
    counts = np.stack([row["counts"] for row in rows])
    summary: dict[str, Any] = {"images": len(rows), "metric": competition.metric}
    summary["over_images"] = {name: _spread([row[name] for row in rows]) for name in names}
    summary[f"over_batches_of_{BATCH}"] = {name: _spread(values) for name, values in batch_figures(rows).items()}
    summary["data_set_iou"] = float(overlaps.iou(*counts.sum(0)).mean())
    metric = metrics.metric_of(competition)
    summary["score"] = (
        summary["over_images"][metric.name]["mean"]
        if metric.by_image
        else metric.score_of(np.stack([row["measured"] for row in rows]), units)
    )
    if competition.kind == "multiclass":
        total = np.sum([row["confusion"] for row in rows], axis=0)
        values = overlaps.class_iou(total, competition.ignored)
        pairs = zip(competition.classes, values, strict=True)
        summary["class_iou"] = {name: None if np.isnan(value) else float(value) for name, value in pairs}
    return summary


def batch_figures(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Returns Dice, IoU and loss of every batch of eight images, in list order; the last may be smaller. Dice and IoU
    are those of all pixels of the batch together."""
    groups = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    counts = [np.sum([row["counts"] for row in group], axis=0) for group in groups]
    return {
        "dice": [float(overlaps.dice(*total).mean()) for total in counts],
        "iou": [float(overlaps.iou(*total).mean()) for total in counts],
        "loss": [float(np.mean([row["loss"] for row in group])) for group in groups],
    }


def _spread(values: list[Any]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "standard_deviation": float(np.std(values))}


def _add_to_runs(run: Run, summary: dict[str, Any], record: dict[str, Any]) -> None:
    """Adds a row to the table of all evaluations of this competition."""
    path = run.competition_folder / "runs.csv"
    row: dict[str, Any] = {"evaluated": time.strftime("%Y-%m-%d %H:%M:%S"), "run": run.name}
    row |= {"remark": summary["remark"], "metric": summary["metric"], "test": summary["score"]}
    for where in ("over_images", f"over_batches_of_{BATCH}"):
        for name, spread in summary[where].items():
            row |= {f"{where}_{name}": spread["mean"], f"{where}_{name}_std": spread["standard_deviation"]}
    row |= {"data_set_iou": summary["data_set_iou"], "images": summary["images"]}
    row |= {f"out_of_fold_{key}": record["expect"][key] for key in ("score", "nested")}
    model, image = run.recipe.model, run.recipe.image
    row |= {"architecture": model.architecture, "encoder": model.encoder, "weights": model.weights}
    row |= {"size": f"{image.size[0]}x{image.size[1]}", "folds": len(record["folds"])}
    row |= {"seconds": sum(fold["seconds"] for fold in record["folds"].values()), "submission": record["sha256"]}
    with exclusive_lock(run.competition_folder):  # other runs add rows too
        before = as_written(read_texts(path)) if path.exists() else pd.DataFrame()
        write_for_people(path, pd.concat([before, pd.DataFrame([row])]))


def _print(run: Run, summary: dict[str, Any]) -> None:
    remark = f" ({summary['remark']})" if summary["remark"] else ""
    say(f"  test {summary['metric']} {summary['score']:.4f} over {summary['images']} images{remark}")
    for where, units in (("over_images", "images"), (f"over_batches_of_{BATCH}", f"batches of {BATCH}")):
        parts = [f"{name} {s['mean']:.4f} ± {s['standard_deviation']:.4f}" for name, s in summary[where].items()]
        say(f"  mean ± standard deviation over {units}: {', '.join(parts)}")
    say(f"  data-set IoU {summary['data_set_iou']:.4f} → {shown(run.folder / 'test.json')}")
    say(f"  {OVERLAYS} overlays → {shown(run.folder)}/test_overlays/ and test_tensorboard/, all runs → "
                  f"{shown(run.competition_folder / 'runs.csv')}")  # fmt: skip
