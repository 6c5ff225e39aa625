"""The metrics that a competition can name: alone, with settings, or in a weighted sum."""

from dataclasses import replace
from functools import partial

import numpy as np

from pipeline.core.config.competition import Competition
from pipeline.core.config.metric_text import Term, parse, written
from pipeline.core.errors import PipelineError
from pipeline.masks.instances import COUNTS, instance_f1, instance_f_beta, instance_precision, matches, optimal_pairs
from pipeline.masks.metric import Metric, Sum
from pipeline.masks.overlaps import dice, f_beta, iou, iou_precision, mean_iou
from pipeline.masks.surfaces import hausdorff, hausdorff_counts, surface_counts, surface_dice


def named(text: str) -> Metric:
    """Returns the metric for the text in a competition's YAML; see core/config/metric_text.py.

    Raises:
        PipelineError: there is no such metric, or the metrics of a sum cannot be added.
    """
    if text in METRICS:
        return METRICS[text]
    try:
        terms = parse(text)
    except ValueError as error:
        raise PipelineError(f"metric: {error}.") from None
    metrics = [_of_term(term) for term in terms]
    first = metrics[0]
    if len(metrics) == 1 and terms[0].weight == 1:
        return first
    if any(metric.counted == "confusion" or metric.sign != first.sign for metric in metrics):
        raise PipelineError(
            f"metric {text}: expected metrics of masks that are all better if higher, or all better if lower."
        )
    weighted = [(term.weight, metric) for term, metric in zip(terms, metrics, strict=True)]
    if any((metric.counted, metric.unit) != ("pixels", first.unit) for metric in metrics):
        return Sum.of(written(terms), weighted)
    # all terms use the same counts, so that every threshold is scored exactly
    return replace(first, name=written(terms), function=partial(_weighted, weighted))


def _of_term(term: Term) -> Metric:
    metric, settings = METRICS[term.name], dict(term.settings)
    unit = settings.pop("over", metric.unit)
    if unit == "data_set" and metric.name == "hausdorff":
        raise PipelineError(
            "metric hausdorff(over=data_set): distances cannot be summed over a data set; expected over=image or "
            "over=group."
        )
    measured = {key: value for key, value in settings.items() if key in OF_MEASURE}
    scored = {key: value for key, value in settings.items() if key not in OF_MEASURE}
    return replace(
        metric,
        name=str(term),
        unit=unit,
        function=partial(metric.function, **scored) if scored else metric.function,
        measure=partial(metric.measure, **measured) if metric.measure and measured else metric.measure,
        together=metric.together or (metric.name in OF_VOLUMES and unit == "group"),
    )


def _weighted(terms: list[tuple[float, Metric]], *counts: np.ndarray) -> np.ndarray:
    return np.asarray(sum(weight * metric.function(*counts) for weight, metric in terms))


def metric_of(competition: Competition) -> Metric:
    """Returns the competition's metric, including its settings for an ignored class.

    Raises:
        PipelineError: the metric is a mean over groups, and the competition has no `group`.
    """
    metric = named(competition.metric)
    if metric.unit == "group" and competition.group is None:
        raise PipelineError(f"metric {metric.name} is a mean over groups: set `group` in the competition's YAML.")
    if metric.counted != "confusion":
        return metric
    reading = {"ignore_class": competition.ignored, "ignored_prediction": competition.ignored_prediction}
    return replace(metric, function=partial(metric.function, **reading))


def final_metric(competition: Competition) -> Metric:
    """Returns the metric of final scores. For a published metric, the result has its name and direction, and scores
    whole data sets."""
    metric, settings = metric_of(competition), competition.metric_file
    if settings is None:
        return metric
    return replace(metric, name=competition.scored_by, unit="data_set", higher_is_better=settings.sign > 0)


OF_MEASURE = ("tolerance", "percentile")
"""Settings of `Metric.measure`. All other settings are those of the score."""
OF_VOLUMES = ("surface_dice", "hausdorff")
"""Metrics that, with over=group, measure all images of a group as one volume."""
_INSTANCES = Metric("", instance_precision, counted="masks", measure=matches, measures=COUNTS, instances=True)

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("dice", dice),
        Metric("iou", iou),
        Metric("f_beta", f_beta),
        Metric("iou_precision", iou_precision),
        replace(_INSTANCES, name="instance_precision", function=instance_precision),
        replace(_INSTANCES, name="instance_f_beta", function=instance_f_beta),
        replace(_INSTANCES, name="instance_f1", function=instance_f1, measure=optimal_pairs, measures=2),
        Metric("surface_dice", surface_dice, counted="masks", measure=surface_counts, measures=4),
        Metric("hausdorff", hausdorff, counted="masks", measure=hausdorff_counts, measures=1),
        Metric("mean_iou", mean_iou, counted="confusion", unit="data_set"),
    )
}
"""The metrics by name. core/config/metric_text.py lists the names and their settings."""
