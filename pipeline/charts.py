"""Charts of the data, of training, of tuning and of scores.

Each takes tables that a stage wrote and returns a matplotlib figure: a notebook shows it as it is, a page holds its SVG.

Lines have the text's colour and fills are told apart by colour-blind eyes, on light and on dark ground.
"""

import io
import re
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipeline.competition import Competition
from pipeline.plots import CLASS_COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (6.0, 2.8)
"""Inches of one panel of a chart."""
COLOURS = [tuple(channel / 255 for channel in CLASS_COLOURS[number]) for number in (6, 0, 2, 4, 3, 1)]
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.alpha": 0.25, "legend.frameon": False, "figure.autolayout": False,
}  # fmt: skip


def mask_areas(images: pd.DataFrame, competition: Competition) -> "Figure":
    """How much of an image its masks cover, for images with a mask; the share of empty ones stands in the legend.

    Args:
        images: the training rows of images.parquet.
        competition: its classes.
    """
    figure, (axes,) = _panels(1)
    pixels = images["height"] * images["width"]
    shares = {name: (images[f"area_{name}"] / pixels).to_numpy() for name in competition.foreground}
    labels = [f"{name}: {np.mean(share == 0):.0%} empty" for name, share in shares.items()]
    present = [100 * share[share > 0] for share in shares.values()]
    axes.hist(present, bins=30, histtype="stepfilled", alpha=0.6, label=labels, color=_colours(len(present)))
    _finish(axes, "share of the image, %", "images")
    return figure


def image_sizes(images: pd.DataFrame) -> "Figure":
    """Height against width; a point's area grows with the number of images of its size.

    Args:
        images: rows of images.parquet.
    """
    figure, (axes,) = _panels(1)
    for number, (subset, rows) in enumerate(images.groupby("subset", sort=True)):
        sizes = rows.groupby(["width", "height"]).size().reset_index(name="count")
        area = 12 + 300 * sizes["count"] / max(1, sizes["count"].max())
        axes.scatter(
            sizes["width"], sizes["height"], area, color=COLOURS[number], alpha=0.5, label=f"{subset}, {len(rows)}"
        )
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    _finish(axes, "width, px", "height, px")
    return figure


def learning_curves(histories: dict[str, pd.DataFrame], kept: dict[str, int], metric: str) -> "Figure":
    """Loss and score of every epoch; training dotted, held-out solid, a point where the weights were kept.

    Args:
        histories: history.csv of each training, by its title.
        kept: the epoch, from 0, that each training kept.
        metric: what valid/score is.
    """
    figure, (losses, scores) = _panels(2)
    for number, (title, history) in enumerate(histories.items()):
        colour, epochs = COLOURS[number % len(COLOURS)], history["epoch"] + 1
        losses.plot(epochs, history["train/loss"], ":", color=colour)
        for axes, name in ((losses, "valid/loss"), (scores, "valid/score")):
            if name in history:
                axes.plot(epochs, history[name], color=colour, label=title)
                axes.plot(epochs[kept[title]], history[name][kept[title]], "o", color=colour)
    _finish(losses, "epoch", "loss")
    _finish(scores, "epoch", f"{metric}, untuned")
    return figure


def tuning_curves(curves: dict[str, dict[str, Any]], rules: dict[str, dict[str, Any]], metric: str) -> "Figure":
    """The out-of-fold score against threshold and minimum area, all else as tuned; a line at what was chosen.

    Args:
        curves: `curves` of postprocess.json.
        rules: `rules` of postprocess.json.
        metric: what the score is.
    """
    figure, panels = _panels(2)
    for axes, name, unit in zip(
        panels, ("threshold", "min_area"), ("threshold, of 255", "minimum area, px"), strict=True
    ):
        for number, (title, found) in enumerate(curves.items()):
            if found.get(name):
                axes.plot(*np.array(found[name]).T, color=COLOURS[number % len(COLOURS)], label=title)
                axes.axvline(rules[title][name], color=COLOURS[number % len(COLOURS)], linestyle="--", linewidth=1)
        if name == "min_area":
            axes.set_xscale("symlog", linthresh=10)
        _finish(axes, unit, metric)
    return figure


def score_by_area(scores: pd.DataFrame, metric: str) -> "Figure":
    """Every held-out image's score against the size of its true mask, their mean in ten equal parts, empty masks apart.

    Args:
        scores: oof_scores.csv.
        metric: what the score is.
    """
    figure, (axes,) = _panels(1)
    present = scores[scores["true_area"] > 0].sort_values("true_area")
    axes.plot(present["true_area"], present["score"], ".", color=COLOURS[0], alpha=0.25)
    parts = [part for part in np.array_split(np.arange(len(present)), 10) if len(part)]
    means = [present.iloc[part][["true_area", "score"]].mean() for part in parts]
    axes.plot(*np.array(means).reshape(-1, 2).T, color=COLOURS[1], label="mean of a tenth")
    empty = scores.loc[scores["true_area"] == 0, "score"]
    if len(empty):
        axes.axhline(empty.mean(), color=COLOURS[2], linestyle="--", label=f"mean of {len(empty)} with an empty mask")
    axes.set_xscale("log")
    _finish(axes, "true area, px", metric)
    return figure


def score_by_group(scores: pd.DataFrame, metric: str, most: int = 60) -> "Figure":
    """The mean score of every group, the lowest first, at most `most`.

    Args:
        scores: oof_scores.csv.
        metric: what the score is.
        most: how many bars fit.
    """
    figure, (axes,) = _panels(1)
    means = scores.groupby("group")["score"].agg(["mean", "size"]).sort_values("mean").head(most)
    labels = [f"{group} ({size})" for group, size in means["size"].items()]
    axes.bar(labels, means["mean"], color=COLOURS[0])
    axes.tick_params("x", labelrotation=90, labelsize=7)
    _finish(axes, "group (images)", f"mean {metric}")
    return figure


def to_svg(figure: "Figure") -> str:
    """Returns a figure as an <svg> element whose lines and letters take the colour of the page's text; a notebook shows
    a chart this way too."""
    import matplotlib

    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "pipeline"}), io.StringIO() as file:
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        text = file.getvalue()
    element = text[text.index("<svg") :].replace("*{stroke-linejoin", "text{fill: currentColor} *{stroke-linejoin")
    return re.sub(r"#000000|(?<=fill: )black", "currentColor", element)


def _panels(count: int) -> tuple["Figure", list["Axes"]]:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure((SIZE[0] * count, SIZE[1]), layout="constrained")
        figure._repr_svg_ = partial(to_svg, figure)  # type: ignore[attr-defined]
        return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _finish(axes: "Axes", across: str, up: str) -> None:
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    if len(axes.get_legend_handles_labels()[1]) > 1 or axes.get_legend_handles_labels()[1][:1] not in ([], [""]):
        axes.legend()


def _colours(count: int) -> list[Any]:
    return [COLOURS[number % len(COLOURS)] for number in range(count)]
