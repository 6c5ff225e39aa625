"""Charts of the data, of training, of tuning and of scores.

Each takes tables that a stage wrote and returns a chart (svg.py): a notebook shows it, a page holds its SVG and adds
the values under the pointer.
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
"""Of the score's axis where it depends on what was tuned: nothing smaller matters, and it would look like a cliff."""
BINS = 30
FAR = 2.0
"""How many times the 98th percentile the largest mask must be for the histogram to end before it."""
Trainings = dict[str, tuple[dict[str, Any], pd.DataFrame]]
"""What fold.json says, and the epochs of history.csv, by the title of a training."""


def mask_areas(images: pd.DataFrame, competition: Competition) -> Chart:
    """Returns how much of an image its masks cover, for images with a mask; the legend says how many have none.

    Args:
        images: the training rows of images.parquet.
        competition: its classes.
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
    colours = legend(competition)  # those of the pictures
    edges = np.linspace(start if end / 4 < start < end else 0, end, BINS + 1)  # masks of much the same size
    middles = (edges[1:] + edges[:-1]) / 2
    series = [
        Series(
            f"{name}: {share(float((shares[name] == 0).mean()) if len(images) else 0)} empty",
            middles, np.histogram(np.minimum(values, end), edges)[0], "bars" if len(present) == 1 else "line",
            number, key=name, colour=f"rgb{colours[name]}" if len(present) > 1 else "",
        )
        for number, (name, values) in enumerate(present.items())
    ]  # fmt: skip
    more = f"; the last bar holds {beyond} larger ones too" if beyond else ""
    empty = f"; {share(float((shares[competition.foreground[0]] == 0).mean()))} have none" if len(images) else ""
    title = f"How much of an image its mask covers{empty if len(present) == 1 else ''}{more}."
    return Chart(title, "share of the image, %", "images", series, from_zero=True)


def image_sizes(images: pd.DataFrame) -> Chart:
    """Returns height against width, one point per size; the pointer shows how many images have it.

    Args:
        images: rows of images.parquet.
    """
    series = []
    for number, (subset, rows) in enumerate(images.groupby("subset", sort=True)):
        sizes = rows.groupby(["width", "height"]).size().reset_index(name="count")
        ids = [f"{row.width}×{row.height} px: {row.count} images" for row in sizes.itertuples(index=False)]
        series.append(Series(str(subset), sizes["width"], sizes["height"], "points", number, ids=ids))
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
    title = "Mean pixel value of the images: what share of each set has it."
    return Chart(title, "mean pixel value", "share of the images, %", series, from_zero=True)


def loss_curves(trainings: Trainings) -> Chart:
    """Returns the loss of every epoch: training dashed, held-out solid, a point where the weights were kept."""
    title = "Loss of every epoch: training dashed, held out solid; a point where the weights were kept."
    return Chart(title, "epoch", "loss", _both_sets(trainings, "loss"))


def iou_curves(trainings: Trainings) -> Chart:
    """Returns the IoU of every epoch: training dashed, held-out solid, a point where the weights were kept; no curves
    of trainings that did not measure it."""
    title = (
        "IoU of every epoch, at 0.5: training (augmented, dropout on, all pixels together) dashed; held out solid; a "
        "point where the weights were kept."
    )
    return Chart(title, "epoch", "IoU", _both_sets(trainings, "iou"))


def score_curves(trainings: Trainings, metric: str) -> Chart:
    """Returns the held-out score (`metric`) of every epoch, before tuning; a point where the weights were kept."""
    title = f"Held-out {metric} of every epoch, untuned; a point where the weights were kept."
    return Chart(title, "epoch", f"{metric}, untuned", _held_out(trainings, "valid/score"))


def threshold_curve(result: Mapping[str, Any]) -> Chart:
    """Returns the out-of-fold score against the threshold, all else as tuned; a dashed line at what was chosen.

    Args:
        result: postprocess.json of a competition whose classes have thresholds.
    """
    return _sensitivity({"": result}, "threshold", "threshold, of 255")


def area_curve(result: Mapping[str, Any]) -> Chart:
    """Returns the out-of-fold score against the minimum area, all else as tuned; a dashed line at what was chosen.

    Args:
        result: postprocess.json of a competition whose classes have thresholds.
    """
    return _sensitivity({"": result}, "min_area", "minimum area of a mask, px")


def threshold_curves(results: Mapping[str, Mapping[str, Any]]) -> Chart:
    """Returns the threshold curves of several runs over one another, by their names."""
    return _sensitivity(results, "threshold", "threshold, of 255")


def score_by_area(scores: pd.DataFrame, metric: str) -> Chart:
    """Returns every held-out image's score against the size of its true mask, their mean in ten equal parts, and the
    mean of the images without a mask.

    Args:
        scores: oof_scores.csv.
        metric: what the score is.
    """
    present = scores[scores["true_area"] > 0]
    ids = present["image_id"].astype(str).tolist() if "image_id" in present else ()
    series = [
        Series("one image", present["true_area"], present["score"], "cloud", 0, ids=ids),
        Series("mean of a tenth of the images", *_tenths(present), number=1),
    ]
    empty = scores.loc[scores["true_area"] == 0, "score"]
    marks = [Mark(float(empty.mean()), f"mean of {len(empty):,} with an empty mask", False, 2)] if len(empty) else []
    marks = [one for one in marks if np.isfinite(one.value)]
    title = "Score of every held-out image by the size of its true mask: click a point to see the image."
    return Chart(title, "true area, px", metric, series, marks, log=True)


def scores_by_area(runs: Mapping[str, pd.DataFrame], metric: str) -> Chart:
    """Returns the mean score of each tenth of the images that have a mask, by the size of the true mask, one line per
    run.

    Args:
        runs: oof_scores.csv of each run, by its name.
        metric: what the score is.
    """
    series = [
        Series(name, *_tenths(scores[scores["true_area"] > 0]), number=number, key=name)
        for number, (name, scores) in enumerate(runs.items())
    ]
    title = "Mean score of each tenth of the images, by the size of the true mask."
    return Chart(title, "true area, px", metric, series, log=True)


def score_against(first: pd.DataFrame, other: pd.DataFrame, names: tuple[str, str], metric: str) -> Chart:
    """Returns the score of each image that two runs have in common, one run's against the other's, with the line on
    which both are the same.

    Args:
        first: oof_scores.csv of the one run.
        other: that of the other.
        names: of both runs.
        metric: what the scores are.
    """
    both = first[["image_id", "score"]].merge(other[["image_id", "score"]], on="image_id", suffixes=("", "_other"))
    better = int((both["score_other"] > both["score"]).sum())
    worse = int((both["score_other"] < both["score"]).sum())
    title = f"Image by image: {names[1]} is better on {better:,}, worse on {worse:,} of {len(both):,} images."
    cloud = Series("one image", both["score"], both["score_other"], "cloud", 0, ids=both["image_id"].tolist())
    return Chart(title, f"{metric}, {names[0]}", f"{metric}, {names[1]}", [cloud], diagonal=True)


def intervals(found: Mapping[str, tuple[float, float, float]], metric: str) -> Dots:
    """Returns scores of runs with their intervals, the first run on top.

    Args:
        found: score, and the ends of its interval, by the run's name.
        metric: what the score is.
    """
    rows = [
        Row(name, score, min(score, low), max(score, high), name, number)  # a bootstrap's interval need not hold it
        for number, (name, (score, low, high)) in enumerate(found.items())
    ]
    return Dots("Out-of-fold scores with 95 % intervals.", metric, rows)


def fold_scores(scores: pd.DataFrame, result: Mapping[str, Any], by_image: bool) -> Dots:
    """Returns the tuned score of every fold with its 95 % interval (bootstrap over groups), and that of all of them.

    Args:
        scores: the counted rows of oof_scores.csv.
        result: postprocess.json.
        by_image: whether the score is a mean over images; else there are no intervals.
    """
    rows = []
    for number, (fold, score) in enumerate(result["score_by_fold"].items()):
        own = scores[scores["fold"] == int(fold)]
        low, high = _interval(own) if by_image else (None, None)
        rows.append(Row(f"fold {fold}", score, low, high, f"fold {fold}", number))
    whole = result.get("score")
    marks = [Mark(whole, "all folds together")] if whole is not None and len(rows) > 1 else []
    what = "with 95 % intervals (groups drawn anew)" if by_image else "no mean over images, so without intervals"
    return Dots(f"Tuned score of every fold, {what}.", result["metric"], rows, marks)


def score_by_group(scores: pd.DataFrame, metric: str, most: int = 24) -> Dots:
    """Returns the mean score of every group with a 95 % interval, the lowest first, at most `most`.

    Args:
        scores: oof_scores.csv.
        metric: what the score is.
        most: how many rows fit.
    """
    groups = scores.groupby("group")["score"].agg(["mean", "size", "std"]).sort_values("mean")
    least, largest = scores["score"].min(), scores["score"].max()  # no interval leaves what scores can be
    rows = []
    for group, mean, size, spread in groups.head(most).itertuples():
        half = 1.96 * spread / size**0.5 if size > 1 and np.isfinite(spread) else None
        low, high = (None, None) if half is None else (max(least, mean - half), min(largest, mean + half))
        rows.append(Row(f"{group} ({size})", mean, low, high))
    which = f"The {len(rows)} lowest of {len(groups)} groups" if len(groups) > most else "Every group"
    mean = float(scores["score"].mean()) if len(scores) else float("nan")
    marks = [Mark(mean, "mean of all images", number=1)] if np.isfinite(mean) else []
    return Dots(f"{which} (images) and its mean score, with 95 % intervals.", f"mean {metric}", rows, marks)


def public_and_private(board: pd.DataFrame, metric: str) -> Chart:
    """Returns the private score of every submission against its public one, with the line on which both are the same;
    the leaders of either part have colours of their own.

    Args:
        board: public, private, public_rank and private_rank of each submission.
        metric: what the scores are.
    """
    names = board["name"].astype(str).tolist() if "name" in board else ()
    series = [Series("submissions", board["public"], board["private"], "cloud", 0, ids=names)]
    for number, (name, label) in enumerate((("public_rank", "leads in public"), ("private_rank", "best in private"))):
        first = board[board[name] == 1]
        series.append(Series(label, first["public"], first["private"], "points", number + 1))
    title = "Private against public score of every submission; on the dashed line both are the same."
    return Chart(title, f"public {metric}", f"private {metric}", series, diagonal=True)


def to_svg(drawing: Drawing) -> str:
    """Returns a chart as an <svg> element whose lines and letters take the colour of the page's text."""
    return drawing.svg()


def _epochs(name: str, history: pd.DataFrame, column: str, number: int, key: str, dashed: bool = False) -> Series:
    return Series(name, history["epoch"] + 1, history[column], "line", number, dashed, key, listed=not dashed)


def _both_sets(trainings: Trainings, figure: str) -> list[Series]:
    """A dashed line per training of the figure of the training images, and a solid one of the held-out images."""
    column = f"train/{figure}"
    training = [
        _epochs(f"{title}, training", history, column, number, title, dashed=True)
        for number, (title, (_, history)) in enumerate(trainings.items())
        if column in history
    ]
    return [*training, *_held_out(trainings, f"valid/{figure}")]


def _held_out(trainings: Trainings, column: str) -> list[Series]:
    """A line per training; the final model, which holds nothing out, has none."""
    series = []
    for number, (title, (fold, history)) in enumerate(trainings.items()):
        if column in history:
            series.append(_epochs(title, history, column, number, title))
            kept = history[history["epoch"] == fold["best_epoch"]]
            label = f"{title}, kept"
            series.append(Series(label, kept["epoch"] + 1, kept[column], "points", number, key=title, listed=False))
    return series


def _sensitivity(results: Mapping[str, Mapping[str, Any]], name: str, across: str) -> Chart:
    """Curves of one parameter, of one run or of several, and what was chosen."""
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
    title = f"Out-of-fold score by {across.split(',')[0]}, all else as chosen; a dashed line at what was chosen."
    metric = searched_by(dict(next(iter(results.values())))) if results else ""
    return Chart(title, across, metric, series, marks, log=name == "min_area", least_span=LEAST_SPAN)


def _tenths(scores: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Mean area and mean score (10 or fewer) of ten equal parts of the images by their area."""
    ordered = scores[["true_area", "score"]].sort_values("true_area").to_numpy(np.float64)
    found = np.array([part.mean(0) for part in np.array_split(ordered, 10) if len(part)]).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def _interval(scores: pd.DataFrame) -> tuple[float, float] | tuple[None, None]:
    """The 95 % interval of a mean over images, groups drawn whole; none of one group alone."""
    values = scores["score"].to_numpy(np.float64)
    if not np.isfinite(values).all() or scores["group"].nunique() < 2:
        return None, None
    draws = bootstrap(mean_counts(values), mean_score, scores["group"].astype(str).to_numpy(), draws=500)
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)
