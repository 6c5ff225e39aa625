"""Optuna's own plots of a sweep, as PNG. Its plotly figures would add 4 MB of JavaScript to each page."""

import base64
import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import optuna

DOTS = 110
"""Per inch."""


def drawn(study: optuna.Study, metric: str) -> Iterator[tuple[str, str]]:
    """Yields a caption and a base64 PNG of each plot for which there are enough trials.

    Args:
        study: the study of the sweep.
        metric: the name of its values.
    """
    import matplotlib
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as plots

    pyplot.switch_backend("agg")
    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    varied = len({str(trial.params) for trial in complete})
    wanted: list[tuple[str, bool, Callable[[], Any]]] = [
        ("The honest score of each trial, and the best one so far", len(complete) > 0,
         lambda: plots.plot_optimization_history(study, target_name=metric)),
        ("How much each setting matters: its share of the variance of the scores (fANOVA); with few trials only a hint",
         varied >= 4 and len(study.trials[0].params) > 1,
         lambda: plots.plot_param_importances(study, target_name=metric)),
        ("Combinations of values: a line per complete trial, coloured by its score", varied >= 2,
         lambda: plots.plot_parallel_coordinate(study, target_name=metric)),
        ("The score by each setting", varied >= 2, lambda: plots.plot_slice(study, target_name=metric)),
        ("The honest score so far, by the number of folds: lines that end early were pruned",
         any(len(trial.intermediate_values) > 1 for trial in complete),
         lambda: plots.plot_intermediate_values(study)),
    ]  # fmt: skip
    for caption, enough, plot in wanted:
        if not enough:
            continue
        with matplotlib.rc_context(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                axes = plot()
            except (ValueError, RuntimeError):  # for instance: all scores are the same
                continue
            finally:
                figures = [pyplot.figure(number) for number in pyplot.get_fignums()]
            drawn_on = list(getattr(axes, "flat", [axes]))
            _tidy(drawn_on)
            yield caption, _png(drawn_on[0].figure)
            for figure in figures:
                pyplot.close(figure)


def _tidy(axes: list[Any]) -> None:
    """Makes slice plots wide enough for their numbers, and labels folds with whole numbers."""
    from matplotlib.ticker import MaxNLocator, NullFormatter

    if axes[0].get_xlabel() == "Step":
        axes[0].set_xlabel("folds")
        axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(axes) > 1:
        axes[0].figure.set_size_inches(3 * len(axes) + 1, 4)
        for axis in axes:
            if axis.get_xscale() == "log":
                axis.xaxis.set_minor_formatter(NullFormatter())


def _png(figure: Any) -> str:
    with io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=DOTS, bbox_inches="tight", facecolor="white")
        return base64.b64encode(file.getvalue()).decode()
