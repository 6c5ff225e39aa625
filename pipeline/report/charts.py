"""Charts of the data, of training, of tuning and of scores.

Each function takes tables that a stage wrote and returns a chart (see svg.py). A notebook displays the chart; an HTML
page embeds its SVG and shows the values under the mouse pointer.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from pipeline.core.config.competition import Competition
from pipeline.core.results import searched_by
from pipeline.masks.bootstrap import bootstrap, mean_counts, mean_score
from pipeline.masks.overlay import legend
from pipeline.report.axes import share
from pipeline.report.svg import Chart, Dots, Drawing, Mark, Row, Series

LEAST_SPAN = 0.02
"""Minimum length of the score axis in sensitivity curves: smaller differences are unimportant and should look small."""
BINS = 30
FAR = 2.0
"""The histogram of mask areas is cut off if the largest mask exceeds the 98th percentile by more than this factor."""
Trainings = dict[str, tuple[dict[str, Any], pd.DataFrame]]
"""The content of fold.json and the epochs of history.csv of each training, by its title."""


def mask_areas(images: pd.DataFrame, competition: Competition) -> Chart:
    """Returns a histogram of the share of the image that a mask covers; the legend gives the share of empty masks.

    Args:
        images: the training rows of images.parquet.
        competition: the competition, for its classes.
    """
    pixels = images["height"] * images["width"]
    shares = {name: (100 * images[f"area_{name}"] / pixels).to_numpy(np.float64) for name in competition.foreground}
    present = {name: values[values > 0] for name, values in shares.items()}
    together = np.concatenate([*present.values(), np.zeros(0)])
    end = float(together.max(initial=0)) or 100.0
    usual = 1.1 * float(np.quantile(together, 0.98)) if len(together) else end
    beyond = int((together > usual).sum()) if end > FAR * usual else 0
    end = usual if beyond else end
    start = float(together.min(initial=end))
    colours = legend(competition)  # the same colours as in the pictures
    edges = np.linspace(start if end / 4 < start < end else 0, end, BINS + 1)  # not from 0 if sizes are all similar
    middles = (edges[1:] + edges[:-1]) / 2
    series = [
        Series(
            f"{name}: {share(float((shares[name] == 0).mean()) if len(images) else 0)} empty",
            middles, np.histogram(np.minimum(values, end), edges)[0], "bars" if len(present) == 1 else "line",
            number, key=name, colour=f"rgb{colours[name]}" if len(present) > 1 else "",
        )
        for number, (name, values) in enumerate(present.items())
    ]  # fmt: skip
    more = f"; the last bar includes {beyond} larger masks" if beyond else ""
    empty = f"; {share(float((shares[competition.foreground[0]] == 0).mean()))} are empty" if len(images) else ""
    title = f"Share of the image that a mask covers{empty if len(present) == 1 else ''}{more}."
    return Chart(title, "share of the image, %", "images", series, from_zero=True)


def image_sizes(images: pd.DataFrame) -> Chart:
    """Returns a chart of height against width with one point per image size; those of test images are smaller, and lie
    on those of training images.

    Args:
        images: rows of images.parquet and of test_images.parquet.
    """
    series = []
    for number, (subset, rows) in enumerate(images.groupby("subset", sort=False)):
        sizes = rows.groupby(["width", "height"]).size().reset_index(name="count")
        ids = [f"{row.width}×{row.height} px: {row.count} images" for row in sizes.itertuples(index=False)]
        series.append(
            Series(str(subset), sizes["width"], sizes["height"], "cloud" if number else "points", number, ids=ids)
        )
    return Chart("Sizes of the images.", "width, px", "height, px", series, from_zero=True)


def mean_pixel_values(images: pd.DataFrame) -> Chart:
    """Returns the distribution of the mean pixel value of an image, in the training and in the test set.

    Args:
        images: rows of images.parquet and of test_images.parquet.
    """
    means = {str(name): rows["mean"].to_numpy(np.float64) for name, rows in images.groupby("subset", sort=False)}
    together = np.concatenate([*means.values(), np.zeros(0)])
    edges = np.histogram_bin_edges(together, BINS) if len(together) else np.linspace(0, 1, BINS + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    series = [
        Series(name, middles, 100 * np.histogram(values, edges)[0] / len(values), "line" if len(means) > 1 else "bars",
               number)
        for number, (name, values) in enumerate(means.items())
    ]  # fmt: skip
    title = "Distribution of the mean pixel value per image."
    return Chart(title, "mean pixel value", "share of the images, %", series, from_zero=True)


def loss_curves(trainings: Trainings) -> Chart:
    """Returns the loss per epoch: training dashed, held-out solid, with a point at the epoch of the kept weights."""
    title = "Loss per epoch: training images dashed, held-out images solid; the point marks the kept weights."
    return Chart(title, "epoch", "loss", _both_sets(trainings, "loss"))


def iou_curves(trainings: Trainings) -> Chart:
    """Returns the IoU per epoch, drawn as in `loss_curves`; trainings that did not measure it have no curves."""
    title = (
        "IoU per epoch, at 0.5: training images (augmented, dropout on, all pixels together) dashed, held-out images "
        "solid; the point marks the kept weights."
    )
    return Chart(title, "epoch", "IoU", _both_sets(trainings, "iou"))


def score_curves(trainings: Trainings, metric: str) -> Chart:
    """Returns the untuned held-out score per epoch, with a point at the epoch whose weights were kept."""
    title = f"Held-out {metric} per epoch, untuned; the point marks the kept weights."
    return Chart(title, "epoch", f"{metric}, untuned", _held_out(trainings, "valid/score"))


def threshold_curve(result: Mapping[str, Any]) -> Chart:
    """Returns the out-of-fold score against the threshold, other parameters as tuned; dashed line: the chosen value.

    Args:
        result: postprocess.json of a competition whose classes have thresholds.
    """
    return _sensitivity({"": result}, "threshold", "threshold, of 255")


def area_curve(result: Mapping[str, Any]) -> Chart:
    """Returns the out-of-fold score against the minimum area, other parameters as tuned; dashed line: the chosen area.

    Args:
        result: postprocess.json of a competition whose classes have thresholds.
    """
    return _sensitivity({"": result}, "min_area", "minimum area of a mask, px")


def threshold_curves(results: Mapping[str, Mapping[str, Any]]) -> Chart:
    """Returns the threshold curves of several runs in one chart.

    Args:
        results: postprocess.json of each run, by its name.
    """
    return _sensitivity(results, "threshold", "threshold, of 255")


def score_by_area(scores: pd.DataFrame, metric: str) -> Chart:
    """Returns the score of every held-out image against the area of its true mask.

    Lines show the mean score in ten area groups of equally many images, and the mean of the images with an empty mask.

    Args:
        scores: oof_scores.csv.
        metric: name of the metric.
    """
    present = scores[scores["true_area"] > 0]
    ids = present["image_id"].astype(str).tolist() if "image_id" in present else ()
    series = [
        Series("one image", present["true_area"], present["score"], "cloud", 0, ids=ids),
        Series("mean of 10 % of the images", *_tenths(present), number=1),
    ]
    empty = scores.loc[scores["true_area"] == 0, "score"]
    marks = [Mark(float(empty.mean()), f"mean of {len(empty):,} with an empty mask", False, 2)] if len(empty) else []
    marks = [mark for mark in marks if np.isfinite(mark.value)]
    title = "Score of every held-out image by the area of its true mask. Click a point to see the image."
    return Chart(title, "true area, px", metric, series, marks, log=True)


def scores_by_area(runs: Mapping[str, pd.DataFrame], metric: str) -> Chart:
    """Returns the mean score in ten groups of images by the area of the true mask, one line per run.

    Args:
        runs: oof_scores.csv of each run, by its name.
        metric: name of the metric.
    """
    series = [
        Series(name, *_tenths(scores[scores["true_area"] > 0]), number=number, key=name)
        for number, (name, scores) in enumerate(runs.items())
    ]
    title = "Mean score by the area of the true mask, in ten groups of equally many images."
    return Chart(title, "true area, px", metric, series, log=True)


def score_against(first: pd.DataFrame, other: pd.DataFrame, names: tuple[str, str], metric: str) -> Chart:
    """Returns the scores of two runs on their common images, one against the other, with the line of equal scores.

    Args:
        first: oof_scores.csv of the first run.
        other: oof_scores.csv of the other run.
        names: names of both runs.
        metric: name of the metric.
    """
    both = first[["image_id", "score"]].merge(other[["image_id", "score"]], on="image_id", suffixes=("", "_other"))
    better = int((both["score_other"] > both["score"]).sum())
    worse = int((both["score_other"] < both["score"]).sum())
    title = f"Score per image: of {len(both):,} images, {names[1]} is better on {better:,} and worse on {worse:,}."
    cloud = Series("one image", both["score"], both["score_other"], "cloud", 0, ids=both["image_id"].tolist())
    return Chart(title, f"{metric}, {names[0]}", f"{metric}, {names[1]}", [cloud], diagonal=True)


def intervals(found: Mapping[str, tuple[float, float, float]], metric: str) -> Dots:
    """Returns the scores of several runs with their intervals, the first run on top.

    Args:
        found: score and the two ends of its interval, by the run's name.
        metric: name of the metric.
    """
    rows = [
        Row(name, score, min(score, low), max(score, high), name, number)  # a bootstrap interval may miss the score
        for number, (name, (score, low, high)) in enumerate(found.items())
    ]
    return Dots("Out-of-fold scores with 95 % intervals.", metric, rows)


def fold_scores(scores: pd.DataFrame, result: Mapping[str, Any], by_image: bool) -> Dots:
    """Returns the tuned score per fold with its 95 % interval (bootstrap over groups), and the score of all folds.

    Args:
        scores: the rows of oof_scores.csv that count in the score.
        result: postprocess.json.
        by_image: whether the score is a mean over images; otherwise no intervals are drawn.
    """
    rows = []
    for number, (fold, score) in enumerate(result["score_by_fold"].items()):
        rows_of_fold = scores[scores["fold"] == int(fold)]
        low, high = _interval(rows_of_fold) if by_image else (None, None)
        rows.append(Row(f"fold {fold}", score, low, high, f"fold {fold}", number))
    whole = result.get("score")
    marks = [Mark(whole, "all folds together")] if whole is not None and len(rows) > 1 else []
    note = "with 95 % intervals (bootstrap over groups)" if by_image else "without intervals: it is no mean over images"
    return Dots(f"Tuned score per fold, {note}.", result["metric"], rows, marks)


def score_by_group(scores: pd.DataFrame, metric: str, most: int = 24) -> Dots:
    """Returns the mean score per group with a 95 % interval, the lowest first.

    Args:
        scores: oof_scores.csv.
        metric: name of the metric.
        most: maximum number of groups to draw.
    """
    groups = scores.groupby("group")["score"].agg(["mean", "size", "std"]).sort_values("mean")
    least, largest = scores["score"].min(), scores["score"].max()  # an interval must stay within the possible scores
    rows = []
    for group, mean, size, spread in groups.head(most).itertuples():
        half = 1.96 * spread / size**0.5 if size > 1 and np.isfinite(spread) else None
        low, high = (None, None) if half is None else (max(least, mean - half), min(largest, mean + half))
        rows.append(Row(f"{group} ({size})", mean, low, high))
    which = f"The {len(rows)} lowest of {len(groups)} groups" if len(groups) > most else "Every group"
    mean = float(scores["score"].mean()) if len(scores) else float("nan")
    marks = [Mark(mean, "mean of all images", number=1)] if np.isfinite(mean) else []
    return Dots(f"{which} (with its images): mean score with 95 % interval.", f"mean {metric}", rows, marks)


def public_and_private(board: pd.DataFrame, metric: str) -> Chart:
    """Returns the private score of every submission against its public score, with the line of equal scores.

    The best submission of each part has its own colour.

    Args:
        board: columns public, private, public_rank and private_rank, one row per submission.
        metric: name of the metric.
    """
    names = board["name"].astype(str).tolist() if "name" in board else ()
    series = [Series("submissions", board["public"], board["private"], "cloud", 0, ids=names)]
    for number, (name, label) in enumerate((("public_rank", "public winner"), ("private_rank", "private winner"))):
        first = board[board[name] == 1]
        series.append(Series(label, first["public"], first["private"], "points", number + 1))
    title = "Private against public score of every submission; the dashed line marks equal scores."
    return Chart(title, f"public {metric}", f"private {metric}", series, diagonal=True)


def to_svg(drawing: Drawing) -> str:
    """Returns a chart as an <svg> element; its axes and letters have the colour of the page's text."""
    return drawing.svg()


def _epochs(name: str, history: pd.DataFrame, column: str, number: int, key: str, dashed: bool = False) -> Series:
    known = history[history[column].notna()]  # planned trainings do not predict held-out images in every epoch
    return Series(name, known["epoch"] + 1, known[column], "line", number, dashed, key, listed=not dashed)


def _both_sets(trainings: Trainings, figure: str) -> list[Series]:
    """Two lines per training: the figure of the training images, dashed, and that of the held-out images, solid."""
    column = f"train/{figure}"
    training = [
        _epochs(f"{title}, training", history, column, number, title, dashed=True)
        for number, (title, (_, history)) in enumerate(trainings.items())
        if column in history
    ]
    return [*training, *_held_out(trainings, f"valid/{figure}")]


def _held_out(trainings: Trainings, column: str) -> list[Series]:
    """One line per training. The final model has none, because it holds no images out."""
    series = []
    for number, (title, (fold, history)) in enumerate(trainings.items()):
        if column in history:
            series.append(_epochs(title, history, column, number, title))
            kept = history[history["epoch"] == fold["best_epoch"]]
            label = f"{title}, kept"
            series.append(Series(label, kept["epoch"] + 1, kept[column], "points", number, key=title, listed=False))
    return series


def _sensitivity(results: Mapping[str, Mapping[str, Any]], name: str, across: str) -> Chart:
    """The score against one parameter, for one run or several, with a line at the chosen value."""
    series: list[Series] = []
    marks: list[Mark] = []
    for run, result in results.items():
        for title, curves in result.get("curves", {}).items():
            if curves.get(name) and title in result["rules"]:
                x, y = np.array(curves[name], np.float64).T
                label = ", ".join(filter(None, (run, title if len(result["curves"]) > 1 or not run else "")))
                number = len(marks)
                series.append(Series(label, x, y, "line", number, key=run or title))
                marks.append(Mark(float(result["rules"][title][name]), "", number=number))
    if len(marks) == 1:
        marks = [Mark(marks[0].value, f"chosen: {marks[0].value:,.0f}")]
    title = (
        f"Out-of-fold score by {across.split(',')[0]}, other parameters as chosen; the dashed line marks the choice."
    )
    metric = searched_by(dict(next(iter(results.values())))) if results else ""
    return Chart(title, across, metric, series, marks, log=name == "min_area", least_span=LEAST_SPAN)


def _tenths(scores: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The mean area and mean score of up to ten groups of equally many images, ordered by area."""
    ordered = scores[["true_area", "score"]].sort_values("true_area").to_numpy(np.float64)
    means = np.array([part.mean(0) for part in np.array_split(ordered, 10) if len(part)]).reshape(-1, 2)
    return means[:, 0], means[:, 1]


def _interval(scores: pd.DataFrame) -> tuple[float, float] | tuple[None, None]:
    """The 95 % interval of a mean over images by a bootstrap over groups; none for a single group."""
    values = scores["score"].to_numpy(np.float64)
    if not np.isfinite(values).all() or scores["group"].nunique() < 2:
        return None, None
    draws = bootstrap(mean_counts(values), mean_score, scores["group"].astype(str).to_numpy(), draws=500)
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)
