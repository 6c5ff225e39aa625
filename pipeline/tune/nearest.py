"""Which built-in metric is nearest to a competition's published one, so that tuning can go by it.

A published function scores whole tables and says nothing of single images or thresholds, so no search can use it. What
it says of the masks of a few thresholds is compared with what the built-in metrics say of the same masks.
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
"""Built-in metrics that are compared with a published one, the usual ones first."""
OVER_GROUPS = ("dice(over=group)", "iou(over=group)")
"""The same, where the competition has groups."""
PROBES = (32, 64, 96, 128, 160, 192, 224)
"""Thresholds whose masks both metrics score."""
FEWEST_PROBES = 3
SHARE = 0.15
"""Of the time for calls."""


@dataclass(frozen=True)
class Agreement:
    """How far built-in metrics are from a published one."""

    tuned_by: str
    """The one that tuning goes by."""
    chosen: bool
    """Whether it is the nearest; else the YAML names it."""
    differences: dict[str, float]
    """Mean absolute difference of the scores of the same masks, by metric, the nearest first."""
    probes: int
    """How many sets of masks both scored."""
    seconds: float
    """What one call of the function takes."""


def nearest(held: HeldOut, counted: np.ndarray) -> tuple[HeldOut, Agreement]:
    """Returns the held-out images of a competition that is scored by the built-in metric which is nearest to its
    published one, or by that which its YAML names, and how near that is.

    Args:
        held: the images, of a competition with a published metric.
        counted: positions (n,) of those that count.

    Raises:
        PipelineError: the published metric cannot be run.
    """
    run, competition = held.run, held.run.competition
    function, settings = published.load(competition), competition.metric_file
    assert settings is not None  # so that there is a function
    texts = [settings.tune] if settings.tune else [competition.metric]
    if not settings.tune and competition.kind != "multiclass":
        texts = [*CANDIDATES, *(OVER_GROUPS if competition.group else ())]
    candidates = [metric_of(competition.model_copy(update={"metric": text})) for text in texts]
    alone = [one for one in candidates if len(one.batches(np.zeros(2))) > 1]  # not those of whole volumes
    tables = tables_of(held, counted)
    measured, drawn = _probe(held, counted, alone, tables)
    scores, places, seconds = _scored(function, tables, drawn, settings.seconds)
    differences = {}
    for metric, counts in zip(alone, measured, strict=True):
        found = np.array([metric.score_of(counts[:, place], tables.groups) for place in places])
        expected = scores if function.sign == metric.sign else 1 - scores
        differences[metric.name] = float(np.abs(found - expected).mean())
    differences = dict(sorted(differences.items(), key=lambda pair: round(pair[1], 9)))
    tuned_by = settings.tune or next(iter(differences), competition.metric)
    agreement = Agreement(tuned_by, not settings.tune, differences, len(places), seconds)
    changed = replace(run, competition=competition.model_copy(update={"metric": tuned_by}))
    return replace(held, run=changed), agreement


def _probe(
    held: HeldOut, counted: np.ndarray, candidates: Sequence[Metric], tables: MetricTables
) -> tuple[list[np.ndarray], list[tuple[Texts, ...]]]:
    """What the candidates count of the masks at every probe (n, P, …), and the texts of these masks, by image."""
    competition = held.run.competition
    weighting = Weighting((False,) * len(runs_of(held.run)), blends.weights_of(held.run))
    decisions = _probes(held)
    folds, places = held.images["fold"].to_numpy(), held.images["row"].to_numpy()

    def work(
        number: int, probabilities: list[np.ndarray], true: np.ndarray
    ) -> tuple[list[np.ndarray], tuple[Texts, ...]]:
        blend = held.blends(weighting)[folds[number]]
        masks = [blend.decide(int(places[number]), probabilities[0], decision) for decision in decisions]
        instances = any(one.instances for one in candidates)
        labels = table.scored_instances(held.rows[number], competition) if instances else true
        truths = [labels if one.instances else true for one in candidates]
        counts = [
            np.concatenate([one.measured([mask], [truth]) for mask in masks])
            for one, truth in zip(candidates, truths, strict=True)
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
    """The published scores of some probes, as many as a share of `limit` seconds allows, which these are, and the
    seconds of a call."""
    number, true = len(drawn[0]), solution_of(tables)
    found, started = dict[int, float](), time.perf_counter()
    for count, place in enumerate(sorted(range(number), key=lambda one: (one - number // 2) % number)):
        spent = time.perf_counter() - started
        if count >= FEWEST_PROBES and spent + spent / count > SHARE * limit:
            break
        own = tables.submission(texts[place] for texts in drawn)
        found[place] = function.score(true.frame, own.frame)
    seconds = (time.perf_counter() - started) / len(found)
    return np.array(list(found.values())), list(found), seconds


def tables_of(held: HeldOut, counted: np.ndarray) -> MetricTables:
    """Returns what makes the rows of the images at `counted` (positions)."""
    images = pd.DataFrame([held.rows[number] for number in counted])
    groups = held.images["group"].to_numpy()[counted].astype(str)
    return metric_tables(images, groups, held.run.competition)


def solution_of(tables: MetricTables) -> Table:
    """Returns the true rows of the images."""
    return tables.solution(tables.true_texts(row) for _, row in tables.images.iterrows())
