"""Test-time augmentation: what it brings on the held-out images, before it is paid for on the test images.

Every held-out image is scored at native size, plain and as the mean over the views, each at the threshold that suits it
best: averaged probabilities are less confident, and a fixed 0.5 would penalise them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.core import other_runs
from pipeline.core.config.competition import Competition
from pipeline.core.config.recipe import TuneSettings
from pipeline.core.run import Run
from pipeline.decode import table
from pipeline.masks.bootstrap import Gain, Score, gain, mean_counts, mean_score, presence_weights
from pipeline.masks.class_bias import labels
from pipeline.masks.metrics import METRICS, confusion, pooled_score
from pipeline.tune.evidence import histogram_counts
from pipeline.tune.held_out import HeldOut, Weighting

THRESHOLDS = np.arange(16, 256, 16)
"""Thresholds that are tried, of 255."""


@dataclass(frozen=True)
class Measured:
    """Pixel counts of held-out images at each of the THRESHOLDS; of a multiclass competition untuned."""

    plain: np.ndarray
    """(N, T, 3, C) int64: intersection, predicted and true pixels; multiclass (N, 1, C, C), rows are true classes."""
    tta: np.ndarray
    """The same of the mean over the views."""


def count(held: HeldOut) -> list[Measured | None]:
    """Returns the counts of every held-out image for each run that is averaged; None for one without views."""
    runs = other_runs.runs_of(held.run)
    places = [place for place, other in enumerate(runs) if other.recipe.predict.tta != "none"]
    found: list[Measured | None] = [None] * len(runs)
    if not places:
        return found
    alone = np.eye(len(runs))
    both = [tuple(plain and place in places for place in range(len(runs))) for plain in (True, False)]
    weightings = [Weighting(plain, tuple(map(float, alone[place]))) for place in places for plain in both]
    counts = np.array(held.each(weightings, lambda _, probabilities, true: [
        _count_one(held.run, probability, true) for probability in probabilities
    ], "test-time augmentation"), np.int64)  # fmt: skip
    for number, place in enumerate(places):
        found[place] = Measured(counts[:, 2 * number], counts[:, 2 * number + 1])
    return found


def _count_one(run: Run, probability: np.ndarray, true: np.ndarray) -> np.ndarray:
    if run.competition.kind == "multiclass":
        classes = len(run.competition.classes)
        predicted = labels(probability, [0.0] * classes, run.never)
        return confusion(predicted, table.true_labels(true), classes)[None]
    _, predicted, intersection, total = histogram_counts(probability, true)
    some = (intersection[:, THRESHOLDS].T, predicted[:, THRESHOLDS].T, np.tile(total, (len(THRESHOLDS), 1)))
    return np.stack(some, axis=1)


def measure(
    plain: np.ndarray, tta: np.ndarray, groups: np.ndarray, competition: Competition, settings: TuneSettings
) -> tuple[Gain, bool]:
    """Returns what test-time augmentation brings on these images, and whether it is kept.

    It is where tune is `fixed`, or where at least the share `tune.confidence` of the bootstrap draws shows a gain.

    Args:
        plain: counts (N, T, 3, C), or (N, 1, C, C) of a multiclass competition; see Measured.
        tta: the same with test-time augmentation.
        groups: (N,) what is drawn together.
        competition: gives the metric.
        settings: how tune chooses.
    """
    if competition.kind == "multiclass":
        score: Score = pooled_score(competition)
    else:
        score, metric = mean_score, METRICS[competition.metric]
        weights = presence_weights(plain[:, 0, 2], settings.presence_prior)
        plain, tta = (
            np.stack([mean_counts(metric(*one.swapaxes(0, 1)), weights) for one in counts.swapaxes(0, 1)], axis=1)
            for counts in (plain, tta)
        )
    before, after = (counts[:, int(np.argmax(score(counts.sum(0))))] for counts in (plain, tta))
    found = gain(before, after, score, groups)
    return found, settings.method == "fixed" or found.confidence >= settings.confidence


def keeps(held: HeldOut, other: Run, measured: Measured, rows: np.ndarray) -> bool:
    """Returns whether the views of a run that is averaged are kept on the evidence of the images at `rows`."""
    if not len(rows):
        return False
    groups = held.images["group"].to_numpy()[rows]
    return measure(measured.plain[rows], measured.tta[rows], groups, held.run.competition, other.recipe.tune)[1]


def decide(held: HeldOut, measured: Measured, rows: np.ndarray) -> dict[str, Any]:
    """Returns what postprocess.json says of a run's views: whether they are kept, and what they bring on the images at
    `rows`, with its standard error and the share of bootstrap draws in which they are better."""
    run, groups = held.run, held.images["group"].to_numpy()[rows]
    found, kept = measure(measured.plain[rows], measured.tta[rows], groups, run.competition, run.recipe.tune)
    return {
        "views": run.recipe.predict.tta, "kept": kept, "gain": found.value, "standard_error": found.standard_error,
        "confidence": found.confidence, "images": len(rows),
    }  # fmt: skip
