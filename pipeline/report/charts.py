"""Charts of the data, of training, of tuning and of scores.

Each takes tables that a stage wrote and returns a matplotlib figure: a notebook shows it, a page holds its SVG.

Lines have the text's colour and fills are told apart by colour-blind eyes, on light and on dark ground.
"""

import io
import re
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from pipeline.core.config.competition import Competition
from pipeline.core.results import searched_by
from pipeline.masks.overlay import CLASS_COLOURS, legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (6.0, 2.8)
"""Inches of a chart."""
LEAST_SPAN = 0.02
"""Of the score's axis where it depends on what was tuned: nothing smaller matters, and it would look like a cliff."""
ORDER = (6, 0, 2, 4, 3, 1)
"""Of CLASS_COLOURS, the ones for lines: yellow would not be seen on white."""
Trainings = dict[str, tuple[dict[str, Any], pd.DataFrame]]
"""What fold.json says, and the epochs of history.csv, by the title of a training."""
STYLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "pipeline", "font.size": 9}


def mask_areas(images: pd.DataFrame, competition: Competition) -> "Figure":
    """How much of an image its masks cover, for images with a mask; the share of empty ones stands in the legend.

    Args:
        images: the training rows of images.parquet.
        competition: its classes.
    """
    figure, axes = _figure("share of the image, %", "images")
    pixels = images["height"] * images["width"]
    shares = {name: (images[f"area_{name}"] / pixels).to_numpy() for name in competition.foreground}
    labels = [_plain(f"{name}: {(share == 0).sum() / max(len(share), 1):.0%} empty") for name, share in shares.items()]
    present = [100 * share[share > 0] for share in shares.values()]
    several = len(present) > 1  # their fills would hide one another
    colours = [_of_255(colour) for colour in legend(competition).values() if colour] if several else [_colour(0)]
    kind: Literal["step", "stepfilled"] = "step" if several else "stepfilled"
    ends = None if any(map(len, present)) else (0, 100)
    axes.hist(present, bins=30, range=ends, histtype=kind, linewidth=1.5, label=labels, color=colours)
    _legend(axes)
    return figure


def image_sizes(images: pd.DataFrame) -> "Figure":
    """Height against width; a point's area grows with the number of images of its size.

    Args:
        images: rows of images.parquet.
    """
    figure, axes = _figure("width, px", "height, px")
    for number, (subset, rows) in enumerate(images.groupby("subset", sort=True)):
        sizes = rows.groupby(["width", "height"]).size().reset_index(name="count")
        area = 12 + 200 * sizes["count"] / sizes["count"].max()
        axes.scatter(sizes["width"], sizes["height"], area, color=_colour(number), alpha=0.5, label=subset)
    axes.set_xlim(0, 1.1 * max([1, *images["width"]]))
    axes.set_ylim(0, 1.1 * max([1, *images["height"]]))
    if len(images):
        for handle in axes.legend(frameon=False).legend_handles:
            handle.set_sizes([40])  # type: ignore[union-attr]
    return figure


def loss_curves(trainings: Trainings) -> "Figure":
    """The loss of every epoch: training dotted, held-out solid, a point where the weights were kept."""
    figure, axes = _figure("epoch", "loss")
    for number, (_, history) in enumerate(trainings.values()):
        if "train/loss" in history:
            axes.plot(history["epoch"] + 1, history["train/loss"], ":", color=_colour(number))
    return _epochs(figure, axes, trainings, "valid/loss")


def score_curves(trainings: Trainings, metric: str) -> "Figure":
    """The held-out score (`metric`) of every epoch, before tuning; a point where the weights were kept."""
    figure, axes = _figure("epoch", f"{metric}, untuned")
    return _epochs(figure, axes, trainings, "valid/score")


def threshold_curve(result: dict[str, Any]) -> "Figure":
    """The out-of-fold score against the threshold, all else as tuned; a dashed line at what was chosen.

    Args:
        result: postprocess.json of a competition whose classes have thresholds.
    """
    return _sensitivity(*_figure("threshold, of 255", searched_by(result)), result, "threshold")


def area_curve(result: dict[str, Any]) -> "Figure":
    """The out-of-fold score against the minimum area, all else as tuned; a dashed line at what was chosen.

    Args:
        result: postprocess.json of a competition whose classes have thresholds.
    """
    figure, axes = _figure("minimum area, px", searched_by(result))
    axes.set_xscale("symlog", linthresh=10)
    _sensitivity(figure, axes, result, "min_area")
    axes.set_xlim(left=0)
    return figure


def score_by_area(scores: pd.DataFrame, metric: str) -> "Figure":
    """Every held-out image's score against the size of its true mask, their mean in ten equal parts, empty masks apart.

    Args:
        scores: oof_scores.csv.
        metric: what the score is.
    """
    figure, axes = _figure("true area, px", metric)
    present = _with_mask(axes, scores)
    axes.plot(present["true_area"], present["score"], ".", color=_colour(0), alpha=0.25)
    axes.plot(*_tenths(present), color=_colour(1), label="mean of a tenth of the images")
    empty = scores.loc[scores["true_area"] == 0, "score"]
    if len(empty):
        axes.axhline(empty.mean(), color=_colour(2), linestyle="--", label=f"mean of {len(empty)} with an empty mask")
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)  # points stand all over the axes
    return figure


def scores_by_area(runs: dict[str, pd.DataFrame], metric: str) -> "Figure":
    """The mean score of each tenth of the images that have a mask, by the size of the true mask, a line a run.

    Args:
        runs: oof_scores.csv of each run, by its name.
        metric: what the score is.
    """
    figure, axes = _figure("true area, px", metric)
    for number, (name, scores) in enumerate(runs.items()):
        axes.plot(*_tenths(_with_mask(axes, scores)), ".-", color=_colour(number), label=_plain(name))
    _legend(axes)
    return figure


def intervals(found: dict[str, tuple[float, float, float]], metric: str) -> "Figure":
    """Scores of runs with their intervals, the first run on top.

    Args:
        found: score, and the ends of its interval, by the run's name.
        metric: what the score is.
    """
    figure, axes = _figure(metric, "")
    for number, (score, low, high) in enumerate(found.values()):
        ends = [[max(0.0, score - low)], [max(0.0, high - score)]]  # a bootstrap's interval need not hold the score
        axes.errorbar(score, -number, xerr=ends, fmt="o", capsize=3, color=_colour(number))
    axes.set_yticks([-number for number in range(len(found))], [_plain(name) for name in found])
    return figure


def score_by_group(scores: pd.DataFrame, metric: str, most: int = 60) -> "Figure":
    """The mean score of every group, the lowest first, at most `most`.

    Args:
        scores: oof_scores.csv.
        metric: what the score is.
        most: how many bars fit.
    """
    figure, axes = _figure("group (images)", f"mean {metric}")
    means = scores.groupby("group")["score"].agg(["mean", "size"]).sort_values("mean").head(most)
    axes.bar(range(len(means)), means["mean"], color=_colour(0))
    axes.set_xticks(range(len(means)), [_plain(f"{group} ({size})") for group, size in means["size"].items()])
    axes.tick_params("x", labelrotation=90, labelsize=7)
    return figure


def public_and_private(board: pd.DataFrame, metric: str) -> "Figure":
    """The private score of every submission against its public one, with the line on which both are the same; larger
    points are the leaders of either part.

    Args:
        board: public, private, public_rank and private_rank of each submission.
        metric: what the scores are.
    """
    figure, axes = _figure(f"public {metric}", f"private {metric}")
    axes.plot(board["public"], board["private"], "o", color=_colour(0), alpha=0.5, markersize=4)
    for number, (name, label) in enumerate((("public_rank", "leads in public"), ("private_rank", "best in private"))):
        first = board[board[name] == 1]
        axes.plot(first["public"], first["private"], "o", color=_colour(number + 1), markersize=8, label=label)
    axes.axline((board["public"].mean(),) * 2, slope=1, linestyle="--", linewidth=1, color=_colour(3))
    _legend(axes)
    return figure


def to_svg(figure: "Figure") -> str:
    """Returns a figure as an <svg> element whose lines and letters take the colour of the page's text; a notebook shows
    a chart this way too."""
    import matplotlib

    with matplotlib.rc_context(STYLE), io.StringIO() as file:
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        text = file.getvalue()
    element = text[text.index("<svg") :].replace("*{stroke-linejoin", "text{fill: currentColor} *{stroke-linejoin")
    return re.sub(r"#000000|(?<=fill: )black", "currentColor", element)


def _figure(across: str, up: str) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure

    figure = Figure(SIZE, layout="constrained")
    figure._repr_svg_ = partial(to_svg, figure)  # type: ignore[attr-defined]
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    return figure, axes


def _epochs(figure: "Figure", axes: "Axes", trainings: Trainings, name: str) -> "Figure":
    """A line a training; the final model, which holds nothing out, has none."""
    for number, (title, (fold, history)) in enumerate(trainings.items()):
        if name in history:
            axes.plot(history["epoch"] + 1, history[name], color=_colour(number), label=title)
            kept = history[history["epoch"] == fold["best_epoch"]]
            axes.plot(kept["epoch"] + 1, kept[name], "o", color=_colour(number))
    _legend(axes)
    return figure


def _sensitivity(figure: "Figure", axes: "Axes", result: dict[str, Any], name: str) -> "Figure":
    for number, (title, curves) in enumerate(result["curves"].items()):
        if curves.get(name) and title in result["rules"]:
            axes.plot(*np.array(curves[name], np.float64).T, color=_colour(number), label=_plain(title))
            axes.axvline(result["rules"][title][name], color=_colour(number), linestyle="--", linewidth=1)
    low, high = axes.get_ylim()
    missing = max(0.0, LEAST_SPAN - (high - low)) / 2
    axes.set_ylim(low - missing, high + missing)
    if len(result["curves"]) > 1:
        _legend(axes)
    return figure


def _with_mask(axes: "Axes", scores: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows of images with a mask, and makes the axis of their areas logarithmic where there are any."""
    present = scores[scores["true_area"] > 0]
    if len(present):
        axes.set_xscale("log")
    return present


def _legend(axes: "Axes") -> None:
    """Adds a legend where there is something to name."""
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False)


def _plain(text: str) -> str:
    """A name as matplotlib shows it as it is: between two dollar signs it would read a formula."""
    return text.replace("$", r"\$")


def _tenths(scores: pd.DataFrame) -> np.ndarray:
    """Mean area and mean score (2, 10 or fewer) of ten equal parts of the images by their area."""
    ordered = scores[["true_area", "score"]].sort_values("true_area").to_numpy(np.float64)
    return np.array([part.mean(0) for part in np.array_split(ordered, 10) if len(part)]).reshape(-1, 2).T


def _colour(number: int) -> Any:
    return _of_255(CLASS_COLOURS[ORDER[number % len(ORDER)]])


def _of_255(colour: tuple[int, int, int]) -> Any:
    return tuple(channel / 255 for channel in colour)
