"""The metric.py of a made competition: one file that Kaggle's metric notebooks and this pipeline both call."""

from pathlib import Path

import jinja2

from pipeline.core.config.metric_text import Term, parse
from pipeline.core.errors import PipelineError

PAGES = Path(__file__).with_name("pages")
OF_MASKS = ("dice", "iou", "f_beta", "iou_precision")
"""Metrics of masks that metric.py can hold; of class maps it is mean_iou."""
FORMULAS = {
    "dice": "return 1.0 if predicted + true == 0 else 2 * both / (predicted + true)",
    "iou": "return 1.0 if predicted + true == 0 else both / (predicted + true - both)",
    "f_beta": "return 1.0 if predicted + true == 0 else (1 + BETA**2) * both / (predicted + BETA**2 * true)",
    "iou_precision": (
        "union = predicted + true - both\n"
        "    # whole numbers are compared, so that no rounding decides: IoU > 0.50, 0.55, ..., 0.95\n"
        "    return 1.0 if union == 0 else sum(20 * both > step * union for step in range(10, 20)) / 10"
    ),
}
WORDS = {
    "dice": "the Dice coefficient, 2 * both / (predicted + true) in pixels; 1 where both masks are empty, 0 where "
    "one is",
    "iou": "the intersection over union; 1 where both masks are empty, 0 where one is",
    "f_beta": "the F-beta score of the pixels; 1 where both masks are empty, 0 where one is",
    "iou_precision": "the share of the thresholds 0.50, 0.55, ..., 0.95 that the intersection over union exceeds; 1 "
    "where both masks are empty",
    "mean_iou": "the mean over classes, background included, of the intersection over union of all pixels together",
}


def check_metric(text: str, multiclass: bool) -> Term:
    """Returns the metric that metric.py is to hold.

    Args:
        text: as a competition's YAML writes it.
        multiclass: whether masks are class maps.

    Raises:
        PipelineError: metric.py cannot hold it.
    """
    try:
        terms = parse(text)
    except ValueError as error:
        raise PipelineError(f"--metric {text}: {error}.") from None
    known = ("mean_iou",) if multiclass else OF_MASKS
    term = terms[0]
    over = dict(term.settings).get("over", "image")
    if len(terms) > 1 or term.weight != 1 or term.name not in known or over == "group":
        shown = (
            "mean_iou" if multiclass else "dice, iou, iou_precision or f_beta(beta=…), each alone or (over=data_set)"
        )
        raise PipelineError(f"--metric {text}: metric.py can hold {shown}.")
    return term


def sentence(term: Term) -> str:
    """Returns what a metric is, in words."""
    settings = dict(term.settings)
    if term.name == "mean_iou":
        return WORDS["mean_iou"]
    over = (
        "computed of all pixels of a class together, and averaged over classes"
        if _pooled(term)
        else "averaged over all rows"
    )
    beta = f", beta = {settings.get('beta', 1.0):g}" if term.name == "f_beta" else ""
    return f"{WORDS[term.name]}{beta}; {over}"


def _pooled(term: Term) -> bool:
    return dict(term.settings).get("over") == "data_set"


def metric_text(title: str, term: Term, labels: list[str], labelled: bool) -> str:
    """Returns the text of metric.py.

    Args:
        title: of the competition.
        term: the metric.
        labels: the classes that have rows.
        labelled: whether row ids end with the name of a class.
    """
    loader = jinja2.FileSystemLoader(PAGES)
    environment = jinja2.Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    return environment.get_template("metric.py.jinja").render(
        title=title.replace("\\", r"\\").replace('"', r"\""), name=str(term), words=sentence(term),
        formula=FORMULAS.get(term.name, ""), pooled=_pooled(term),
        beta=dict(term.settings).get("beta", 1.0) if term.name == "f_beta" else None,
        labels=labels if labelled else [], maps=term.name == "mean_iou",
    )  # fmt: skip
