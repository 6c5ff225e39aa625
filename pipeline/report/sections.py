"""Collects the content of each section of the report from the files that a stage wrote; None if it has not run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from pipeline.clean.outliers import count_findings
from pipeline.core import files, freshness
from pipeline.core.console import duration
from pipeline.core.errors import PipelineError
from pipeline.core.results import read_submission, read_test_scores, read_tuned, searched_by
from pipeline.core.run import Run, describe
from pipeline.core.trainings import Speed, read_training
from pipeline.core.verdict import Reason, as_step, constants, gravest_first, judge, of_what, tuned
from pipeline.core.written import if_sound
from pipeline.decode import table
from pipeline.masks import overlay
from pipeline.masks.decision import in_words
from pipeline.report import charts, explorer, findings, look
from pipeline.report.axes import share
from pipeline.report.svg import Drawing
from pipeline.split.audit import QUARTILES
from pipeline.split.folds import counted_rows, read_audit, read_outliers
from pipeline.tune import selection

Shown = dict[str, Any]
OF_EACH_KIND = 4
SHEET, EMPTY = 24, 4
"""Number of pictures of the data, and the maximum number of them with an empty mask."""
TEST_PICTURES = 8
SUSPECTS = 8
OF_EACH_REASON, OF_REASONS = 6, 30
"""Maximum number of pictures of one reason of the verdict, and of all reasons."""

SECTIONS = {
    "data": "Data", "cleaning": "Cleaning", "folds": "Folds", "training": "Training", "tuning": "Tuning",
    "scores": "Scores", "images": "Images", "predictions": "Examples", "submission": "Submission",
    "settings": "Settings",
}  # fmt: skip
"""Sections that the page's navigation bar links to."""


def everything(run: Run) -> Shown:
    """Returns the variables of the report's template."""
    trainings, rows = look.trainings(run), held_out(run)
    judged = verdict(run)
    named = [name for reason in (judged or {"reasons": []})["reasons"] for name in reason["images"]]
    explored = explorer.explorer(run, rows, named) if rows is not None and run.postprocess.exists() else None
    links = [(name, title) for name, title in SECTIONS.items() if name != "images" or explored]
    return {
        "title": run.name,
        "run": run,
        "sections": links,
        "data": data(run),
        "cleaning": cleaning(run),
        "audit": split(run),
        "learning": learning(run, trainings),
        "tuning": tuning(run),
        "scores": scores(run, rows),
        "explorer": explored,
        "predictions": predictions(run, rows),
        "record": submission(run),
        "test": test_set(run),
        "exact": exact(run),
        "verdict": judged,
        "legend": {name: f"rgb{colour}" for name, colour in overlay.legend(run.competition).items() if colour},
        "poor": explorer.POOR,
        "random": explorer.RANDOM,
        "percent": percent,
        "error_text": explorer.in_words,
    }


def percent(value: float | None) -> str:
    """Returns a percentage formatted for the table of images."""
    return "–" if value is None else share(value / 100)


# --- the verdict -----------------------------------------------------------------------------------------------------


def verdict(run: Run) -> Shown | None:
    """Returns the verdict, the honest score, the scores to compare it with, and the reasons with pictures."""
    judged = judge(run)
    if judged is None:
        return None
    result = judged.result
    scores = result.get("scores", {})
    known = {"score": result["nested"], "interval_95": result.get("nested_interval_95")}
    beside = (
        {"optimistic, tuned on the same images": scores.get("optimistic", result)["score"]} if tuned(result) else {}
    )
    return {
        "word": judged.verdict,
        "result": result,
        "submitted": judged.submitted,
        "of_what": of_what(result),
        "honest": known | scores.get("fold_model", {}),
        "beside": beside | constants(result) | ({"untuned": result["untuned"]} if beside else {}),
        "reasons": _with_pictures(run, gravest_first(judged.reasons)),
    }


def _with_pictures(run: Run, reasons: list[Reason]) -> list[Shown]:
    """The reasons of the verdict with pictures (true mask and held-out prediction) of the first images that each names.
    Each image is drawn once."""
    names = any(reason.images for reason in reasons) and run.table.exists() and (run.folder / "oof_scores.csv").exists()
    paint, drawn, shown = look.painter(run, predicted=True) if names else None, set[str](), []
    for reason in reasons:
        fresh = [name for name in reason.images if name not in drawn][: min(OF_REASONS - len(drawn), OF_EACH_REASON)]
        pictures = _pictures(paint, {name: name for name in fresh}, "true mask and prediction", 240) if paint else []
        drawn.update(fresh)
        this_page = reason.command == files.shown(run.report)
        shown.append({
            "level": reason.level, "text": reason.text, "command": "" if this_page else as_step(reason.command),
            "pictures": pictures, "images": reason.images,
        })  # fmt: skip
    return shown


# --- the data --------------------------------------------------------------------------------------------------------


def data(run: Run) -> Shown | None:
    """Returns numbers, charts of areas and sizes, and images from the smallest mask to the largest."""
    if not run.table.exists():
        return None
    images = table.read_tables(run.competition_folder)
    train = images[(images["subset"] == "train") & (images["fault"] == "")]
    total = table.total_area(train, run.competition.foreground)
    drawn = [charts.mask_areas(train, run.competition)]
    sizes = images.groupby(["height", "width"]).size().sort_values(ascending=False)
    order = train.assign(share=total / (train["height"] * train["width"])).sort_values("share", kind="stable")
    empty = order[order["share"] == 0].head(EMPTY)
    chosen = pd.concat([empty, evenly(order[order["share"] > 0], SHEET - len(empty))])
    captions = {
        name: f"{name}: {share(part) if part else 'no mask'}"
        for name, part in zip(chosen["image_id"], chosen["share"], strict=True)
    }
    groups = train.groupby("group").size().agg(["size", "min", "max"]).to_dict()
    return {
        "subsets": images["subset"].value_counts().to_dict(),
        "sizes": [f"{height}×{width} ({count})" for (height, width), count in sizes.head(3).items()],
        "more_sizes": max(0, len(sizes) - 3),
        "kinds": sorted(f"{dtype}, {channels} channel{'s' * (channels > 1)}" for dtype, channels in set(
            zip(train["dtype"], train["channels"].astype(int), strict=True))),
        "train": len(train),
        "empty_text": f"{share(float((total == 0).mean()) if len(train) else 0)} of the training masks are empty",
        "groups": groups if run.competition.group else None,
        "charts": [*drawn, charts.mean_pixel_values(images[images["fault"] == ""]),
                   *([charts.image_sizes(images)] if len(sizes) > 1 else [])],
        "pictures": _pictures(look.painter(run), captions, "its true mask", 220),
    }  # fmt: skip


def evenly(rows: pd.DataFrame, count: int) -> pd.DataFrame:
    """Returns `count` evenly spaced rows including the first and the last; all rows if there are fewer."""
    return rows.iloc[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int))]


def cleaning(run: Run) -> Shown | None:
    """Returns the findings of clean by reason, with pictures of the clearest and the least clear ones."""
    if not run.outliers.exists():
        return None
    lists = [read_outliers(run), *([look.test_duplicates(run)] if run.test_duplicates.exists() else [])]
    return {
        "findings": [row for listed in lists for row in count_findings(listed)],
        "figures": findings.figures(run) if run.table.exists() else {},
    }


def split(run: Run) -> Shown | None:
    """Returns the audit of the split, with readable column names and formatted values."""
    if not run.audit.exists():
        return None
    audit = read_audit(run)
    return {
        **audit,
        "folds": [{_in_words(key): _figure(value) for key, value in row.items()} for row in audit["folds"]],
    }


def _in_words(key: str) -> str:
    """The heading of a column of the audit."""
    unit, _, name = key.partition("_")
    words = {"images": "images with", "pixels": "pixels of"}
    if key == "components":
        return "groups or sets of duplicates"
    if name and unit in words:
        return f"{words[unit]} {name}"
    return QUARTILES.get(key, key.replace("_", " "))


def _figure(value: Any) -> str:
    return f"{100 * value:.1f}\u00a0%" if isinstance(value, float) else str(value)


# --- training --------------------------------------------------------------------------------------------------------


def learning(run: Run, trainings: charts.Trainings) -> Shown | None:
    """Returns the curves of all trainings with a history, and the summary of each training."""
    if not trainings:
        return None
    histories = [history for _, history in trainings.values()]
    drawn: list[Drawing] = []
    if any(map(len, histories)):
        drawn = [charts.loss_curves(trainings), charts.score_curves(trainings, run.competition.metric)]
    if any("train/iou" in history for history in histories):  # earlier versions did not measure it
        drawn.append(charts.iou_curves(trainings))
    return {
        "charts": drawn,
        "trainings": {title: fold for title, (fold, _) in trainings.items()},
        "figures": {title: kept_figures(fold, history) for title, (fold, history) in trainings.items()},
        "network": look.network(run),
    }


def kept_figures(fold: dict[str, Any], history: pd.DataFrame) -> dict[str, float]:
    """Returns the values in history.csv after the epoch whose weights were kept, by column, without missing ones."""
    if "epoch" not in history:
        return {}
    row = history[history["epoch"] == fold["best_epoch"]].head(1)
    return {name: float(row[name].iat[0]) for name in row if row[name].notna().all()} if len(row) else {}


# --- tuning and scores -----------------------------------------------------------------------------------------------


def tuning(run: Run) -> Shown | None:
    """Returns the tuned rules, the sensitivity of the score to them, and the steps that were tried."""
    if not run.postprocess.exists():
        return None
    result = read_tuned(run)
    ships = (result.get("procedure") or {}).get("ships") != "untuned"
    steps = [
        {**step, "verdict": selection.verdict(step, run.recipe.tune.confidence, ships)}
        for step in result.get("steps", [])
    ]
    return {
        "result": result,
        "steps": steps,
        "rules": {name: in_words(rule) for name, rule in result.get("rules", {}).items()},
        "charts": [charts.threshold_curve(result), charts.area_curve(result)] if result.get("curves") else [],
    }


def held_out(run: Run) -> pd.DataFrame | None:
    """Returns the scores of the held-out images; None before tune has run."""
    return look.scores(run) if (run.folder / "oof_scores.csv").exists() else None


def scores(run: Run, rows: pd.DataFrame | None) -> Shown | None:
    """Returns charts of the score per fold, by mask area and by group."""
    if rows is None:
        return None
    metric, shown = run.competition.metric, list[Drawing]()
    if run.postprocess.exists():
        result, counted = read_tuned(run), rows[counted_rows(rows, run.recipe.tune.rows)]
        metric = searched_by(result)
        by_image = look.metric(run).by_image and "published" not in result
        shown.append(charts.fold_scores(counted, result, by_image))
    shown += [charts.score_by_area(rows, metric)] if "true_area" in rows else []
    if run.competition.group and rows["group"].nunique() > 1:
        shown.append(charts.score_by_group(rows, metric))
    return {"charts": shown}


def predictions(run: Run, rows: pd.DataFrame | None) -> Shown | None:
    """Returns pictures of held-out predictions: the best, median and worst ones, and those with a suspected label.

    Images that clean dropped are left out.
    """
    if rows is None or not run.table.exists():
        return None
    paint, content = look.painter(run, predicted=True), "true mask and prediction"
    kept = counted_rows(rows, run.recipe.tune.rows) & (rows["use"] != "drop").to_numpy()
    chosen = {
        row["image_id"]: f"{row['kind']}: {row['image_id']}, fold {row['fold']}, {row['score']:.4f}"
        for row in pick_examples(rows[kept], look.metric(run).higher_is_better).to_dict("records")
    }
    listed = look.suspects(run).head(SUSPECTS) if run.suspects.exists() else pd.DataFrame()
    doubted = {
        row["image_id"]: f"{row['image_id']}: {row['reason']}; {row['note']}" for row in listed.to_dict("records")
    }
    return {"pictures": _pictures(paint, chosen, content), "suspects": _pictures(paint, doubted, content)}


def pick_examples(scores: pd.DataFrame, higher_is_better: bool = True) -> pd.DataFrame:
    """Returns up to twelve rows of oof_scores.csv with a column `kind`: best, median or worst.

    The best and the median rows are images with a mask. Median and worst rows score lower than the best one. No image
    is listed twice.
    """
    present = scores[scores["true_area"] > 0]
    pool = (present if len(present) >= 3 * OF_EACH_KIND else scores).sort_values(
        "score", ascending=not higher_is_better
    )
    middle = max(0, len(pool) // 2 - OF_EACH_KIND // 2)
    kinds = {
        "best": pool.head(OF_EACH_KIND),
        "median": pool.iloc[middle : middle + OF_EACH_KIND],
        "worst": scores.sort_values("score", ascending=higher_is_better).head(OF_EACH_KIND),
    }
    if len(pool):
        best = pool["score"].iat[0]
        kinds["worst"] = kinds["worst"][kinds["worst"]["score"] != best]  # with equal scores, none is the worst
        kinds["median"] = kinds["median"][kinds["median"]["score"] != best]
    return pd.concat([rows.assign(kind=kind) for kind, rows in kinds.items()]).drop_duplicates("image_id")


# --- the submission, and the record of the run -----------------------------------------------------------------------


def submission(run: Run) -> Shown | None:
    """Returns the record of the submission and pictures of some of its masks."""
    record = read_submission(run) if run.record.exists() else None
    if record is None or not run.test_table.exists():
        return None
    chosen = evenly(look.images(run, "test"), TEST_PICTURES)["image_id"]
    captions = {image_id: image_id for image_id in chosen}
    pictures = _pictures(look.painter(run, subset="test"), captions, "the submitted mask", 220)
    return {**record, "pictures": pictures}


def test_set(run: Run) -> Shown | None:
    """Returns the scores of a test set whose true masks are known."""
    return read_test_scores(run) if (run.folder / "test.json").exists() else None


def exact(run: Run) -> Shown:
    """Returns the command, the settings, the versions, and the duration of every step in the order of finishing."""
    places = [
        *run.competition_folder.glob("*.manifest.json"), *run.pixels.glob("*.manifest.json"),
        *(file.with_suffix(".manifest.json") for file in (run.folds_file, run.audit)),
        *run.folder.rglob("manifest.json"), *run.folder.rglob("*.manifest.json"),
    ]  # fmt: skip
    records = [_of_all_sessions(path, record) for path in sorted(places) if (record := freshness.read_manifest(path))]
    records = [record for record in records if record["stage"] != "report"]
    records.sort(key=lambda record: record["finished"])
    seconds = sum(record["seconds"] for record in records)
    training = sum(record["seconds"] for record in records if record["stage"] == "train")
    return {
        "took": duration(seconds) if seconds else "",
        "trained": duration(training) if training else "",
        "finished": records[-1]["finished"] if records else "",
        "command": run.command(),
        "settings": yaml.safe_dump(describe(run), sort_keys=False, allow_unicode=True),
        "environment": freshness.environment(),
        "times": {record.get("title", record["stage"]): record for record in records},
    }


def _of_all_sessions(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a step; that of a training with the seconds of all its processes, if it was interrupted."""
    if record["stage"] != "train":
        return record
    summary = if_sound(lambda file: read_training(file, Speed), path.with_name("fold.json")) or {}
    return record | {"seconds": max(record["seconds"], summary.get("seconds") or 0)}


# --- pictures --------------------------------------------------------------------------------------------------------


def _pictures(
    paint: Callable[[str], np.ndarray], captions: dict[str, str], content: str, width: int = 360
) -> list[Shown]:
    """Pictures of images with captions (by image id), for images whose files still exist."""
    pictures = []
    for image_id, caption in captions.items():
        try:
            picture = paint(image_id)
        except (PipelineError, ValueError, KeyError, OSError):  # the raw file or the prediction was moved away
            continue
        address = overlay.to_data_address(picture, width)
        alt = f"image {image_id} with {content}"
        pictures.append({"id": image_id, "caption": caption, "address": address, "alt": alt})
    return pictures
