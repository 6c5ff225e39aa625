"""Finds the built-in metric that is most similar to a competition's published metric, for use in tuning.

A published function scores whole tables but not single images or thresholds, so no search can use it. Its scores for
the masks of a few thresholds are compared with those of the built-in metrics for the same masks.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from pipeline.core.other_runs import runs_of
from pipeline.decode import table
from pipeline.masks.decision import Biases, Decision, Rule, Rules
from pipeline.masks.metric import Metric
from pipeline.masks.metrics import metric_of
from pipeline.predictions import blends, published
from pipeline.predictions.format.expected import Texts
from pipeline.predictions.metric_tables import MetricTables, metric_tables
from pipeline.predictions.published import Published, Table
from pipeline.tune.held_out import HeldOut, Weighting

CANDIDATES = (
    *("dice", "dice(over=data_set)", "iou", "iou(over=data_set)", "iou_precision"),
    *("f_beta(beta=0.5, over=data_set)", "f_beta(beta=0.5)", "f_beta(beta=2)", "f_beta(beta=2, over=data_set)"),
    *("instance_precision", "instance_f_beta(beta=2)", "instance_f1"),
)
"""The built-in metrics that are compared with a published one, the most usual first."""
OVER_GROUPS = ("dice(over=group)", "iou(over=group)")
"""Further metrics for competitions with groups."""
PROBES = (32, 64, 96, 128, 160, 192, 224)
"""The thresholds whose masks both metrics score."""
FEWEST_PROBES = 3
SHARE = 0.15
"""The share of the time for calls that the comparison may use."""


@dataclass(frozen=True)
class Agreement:
    """The differences between built-in metrics and a published one."""

    tuned_by: str
    """The metric that is used for tuning."""
    chosen: bool
    """Whether it was chosen as the most similar one; otherwise the YAML names it."""
    differences: dict[str, float]
    """The mean absolute difference of scores of the same masks, by metric, the smallest first."""
    probes: int
    """The number of sets of masks that both metrics scored."""
    seconds: float
    """The time of one call of the published function."""


def nearest(held: HeldOut, counted: np.ndarray) -> tuple[HeldOut, Agreement]:
    """Returns the held-out images with a built-in metric for tuning, and its agreement with the published metric.

    The built-in metric is the one that the YAML names, else the one most similar to the published metric.

    Args:
        held: the held-out images of a competition with a published metric.
        counted: the positions (n,) of the images that count.

    Raises:
        PipelineError: the published metric cannot be run.
    """
    run, competition = held.run, held.run.competition
    function, settings = published.load(competition), competition.metric_file
    assert settings is not None  # callers check that the metric is a published one
    texts = [settings.tune] if settings.tune else [competition.metric]
    if not settings.tune and competition.kind != "multiclass":
        texts = [*CANDIDATES, *(OVER_GROUPS if competition.group else ())]
    candidates = [metric_of(competition.model_copy(update={"metric": text})) for text in texts]
    alone = [metric for metric in candidates if len(metric.batches(np.zeros(2))) > 1]  # without metrics of volumes
    tables = tables_of(held, counted)
    measured, drawn = _probe(held, counted, alone, tables)
    scores, places, seconds = _scored(function, tables, drawn, settings.seconds)
    differences = {}
    for metric, counts in zip(alone, measured, strict=True):
        values = np.array([metric.score_of(counts[:, place], tables.groups) for place in places])
        expected = scores if function.sign == metric.sign else 1 - scores
        differences[metric.name] = float(np.abs(values - expected).mean())
    differences = dict(sorted(differences.items(), key=lambda pair: round(pair[1], 9)))
    tuned_by = settings.tune or next(iter(differences), competition.metric)
    agreement = Agreement(tuned_by, not settings.tune, differences, len(places), seconds)
    changed = replace(run, competition=competition.model_copy(update={"metric": tuned_by}))
    return replace(held, run=changed), agreement


def _probe(
    held: HeldOut, counted: np.ndarray, candidates: Sequence[Metric], tables: MetricTables
) -> tuple[list[np.ndarray], list[tuple[Texts, ...]]]:
    """Returns the counts of each candidate for the masks at every probe (n, P, …), and the texts of these masks, by
    image."""
    competition = held.run.competition
    weighting = Weighting((False,) * len(runs_of(held.run)), blends.weights_of(held.run))
    decisions = _probes(held)
    folds, places = held.images["fold"].to_numpy(), held.images["row"].to_numpy()

    def work(
        number: int, probabilities: list[np.ndarray], true: np.ndarray
    ) -> tuple[list[np.ndarray], tuple[Texts, ...]]:
        blend = held.blends(weighting)[folds[number]]
        masks = [blend.decide(int(places[number]), probabilities[0], decision) for decision in decisions]
        instances = any(metric.instances for metric in candidates)
        labels = table.scored_instances(held.rows[number], competition) if instances else true
        truths = [labels if metric.instances else true for metric in candidates]
        counts = [
            np.concatenate([metric.measured([mask], [truth]) for mask in masks])
            for metric, truth in zip(candidates, truths, strict=True)
        ]
        return counts, tuple(tables.texts(held.rows[number]["image_id"], mask) for mask in masks)

    counts, texts = zip(*held.each([weighting], work, "compare metrics", counted.tolist()), strict=True)
    return [np.stack(part) for part in zip(*counts, strict=True)], list(texts)


def _probes(held: HeldOut) -> list[Decision]:
    competition = held.run.competition
    if competition.kind == "multiclass":
        return [Biases((0.0,) * len(competition.classes), held.run.never)]
    return [Rules((Rule(threshold=level),) * len(competition.classes)) for level in PROBES]


def _scored(
    function: Published, tables: MetricTables, drawn: Sequence[tuple[Texts, ...]], limit: float
) -> tuple[np.ndarray, list[int], float]:
    """Returns the published scores of as many probes as a share of `limit` seconds allows, the positions of these
    probes, and the seconds per call."""
    number, true = len(drawn[0]), solution_of(tables)
    scores, started = dict[int, float](), time.perf_counter()
    for count, place in enumerate(sorted(range(number), key=lambda place: (place - number // 2) % number)):
        spent = time.perf_counter() - started
        if count >= FEWEST_PROBES and spent + spent / count > SHARE * limit:
            break
        submission = tables.submission(texts[place] for texts in drawn)
        scores[place] = function.score(true.frame, submission.frame)
    seconds = (time.perf_counter() - started) / len(scores)
    return np.array(list(scores.values())), list(scores), seconds


def tables_of(held: HeldOut, counted: np.ndarray) -> MetricTables:
    """Returns the maker of tables for the images at the positions `counted`."""
    images = pd.DataFrame([held.rows[number] for number in counted])
    groups = held.images["group"].to_numpy()[counted].astype(str)
    return metric_tables(images, groups, held.run.competition)


def solution_of(tables: MetricTables) -> Table:
    """Returns the solution table of the images."""
    return tables.solution(tables.true_texts(row) for _, row in tables.images.iterrows())
