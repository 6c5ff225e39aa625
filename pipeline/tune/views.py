"""Measures the gain of test-time augmentation on the held-out images, before it costs time on the test images.

Every held-out image is scored at native size, plain and as the mean over the views. Each of the two has its own best
threshold. Averaged probabilities are less confident, so a fixed threshold of 0.5 would put them at a disadvantage.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.core import other_runs
from pipeline.core.config.competition import Competition
from pipeline.core.config.recipe import TuneSettings
from pipeline.core.run import Run
from pipeline.masks.bootstrap import Gain, gain, presence_weights
from pipeline.masks.class_bias import labels
from pipeline.masks.geometry import label_map
from pipeline.masks.metric import Metric
from pipeline.masks.metrics import metric_of
from pipeline.masks.overlaps import confusion
from pipeline.tune.evidence import histogram_counts
from pipeline.tune.held_out import HeldOut, Weighting

THRESHOLDS = np.arange(16, 256, 16)
"""The thresholds that are tried, out of 255."""


@dataclass(frozen=True)
class Measured:
    """Counts of held-out images at each of the THRESHOLDS; untuned for a multiclass competition."""

    plain: np.ndarray
    """The counts of the competition's metric (N, T, …); for multiclass (N, 1, C, C), whose rows are true classes."""
    tta: np.ndarray
    """The same for the mean over the views."""


def count(held: HeldOut) -> list[Measured | None]:
    """Returns the counts of every held-out image for each run that is averaged; None for a run without views."""
    runs = other_runs.runs_of(held.run)
    places = [place for place, other in enumerate(runs) if other.recipe.predict.tta != "none"]
    measured: list[Measured | None] = [None] * len(runs)
    if not places:
        return measured
    alone = np.eye(len(runs))
    both = [tuple(plain and place in places for place in range(len(runs))) for plain in (True, False)]
    weightings = [Weighting(plain, tuple(map(float, alone[place]))) for place in places for plain in both]
    metric = metric_of(held.run.competition)

    def count_batch(probabilities: Sequence[Sequence[np.ndarray]], true: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack([_count(held.run, metric, images, true) for images in probabilities], axis=1)

    batches = metric.batches(held.images["group"].to_numpy())
    counts = held.each_batch(weightings, batches, count_batch, "test-time augmentation")
    for number, place in enumerate(places):
        measured[place] = Measured(counts[:, 2 * number], counts[:, 2 * number + 1])
    return measured


def _count(run: Run, metric: Metric, probabilities: Sequence[np.ndarray], true: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the counts (n, T, …) of a batch of images."""
    if metric.counted == "confusion":
        classes = len(run.competition.classes)
        predicted = [labels(probability, [0.0] * classes, run.never) for probability in probabilities]
        pairs = zip(predicted, map(label_map, true), strict=True)
        return np.stack([confusion(*pair, classes)[None] for pair in pairs])
    if metric.counted == "pixels":
        return np.stack([_pixel_counts(*pair) for pair in zip(probabilities, true, strict=True)])
    drawn = ([(image >= threshold).astype(np.uint8) for image in probabilities] for threshold in THRESHOLDS)
    return np.stack([metric.measured(masks, true) for masks in drawn], axis=1)


def _pixel_counts(probability: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Returns the counts (T, 3, C) int64 of one image, from its histograms."""
    _, predicted, intersection, total = histogram_counts(probability, true)
    some = (intersection[:, THRESHOLDS].T, predicted[:, THRESHOLDS].T, np.tile(total, (len(THRESHOLDS), 1)))
    return np.stack(some, axis=1).astype(np.int64)


def measure(
    plain: np.ndarray, tta: np.ndarray, groups: np.ndarray, competition: Competition, settings: TuneSettings
) -> tuple[Gain, bool]:
    """Returns the gain of test-time augmentation on these images, and whether it is kept.

    It is kept if tune.method is `fixed`, or if at least the share `tune.confidence` of bootstrap draws shows a gain.

    Args:
        plain: counts (N, T, …), as in Measured.
        tta: the same with test-time augmentation.
        groups: the group of each image (N,).
        competition: the competition, for its metric.
        settings: the settings of tune.
    """
    metric = metric_of(competition)
    # the size of true masks is only known if pixels are counted
    weights = presence_weights(plain[:, 0, 2], settings.presence_prior) if metric.counted == "pixels" else None
    plain, tta = (
        np.stack([metric.rows(measured, weights, groups) for measured in counts.swapaxes(0, 1)], axis=1)
        for counts in (plain, tta)
    )
    before, after = (rows[:, int(np.argmax(metric.objective(rows.sum(0))))] for rows in (plain, tta))
    improvement = gain(before, after, metric.objective, groups)
    return improvement, settings.method == "fixed" or improvement.confidence >= settings.confidence


def keeps(held: HeldOut, other: Run, measured: Measured, rows: np.ndarray) -> bool:
    """Returns whether the views of a run in an ensemble are kept, judged on the images at `rows`."""
    if not len(rows):
        return False
    groups = held.images["group"].to_numpy()[rows]
    return measure(measured.plain[rows], measured.tta[rows], groups, held.run.competition, other.recipe.tune)[1]


def decide(held: HeldOut, measured: Measured, rows: np.ndarray) -> dict[str, Any]:
    """Returns the entry of postprocess.json on a run's views: whether they are kept, and their gain on the images at
    `rows` with its standard error and the share of bootstrap draws in which they are better."""
    run, groups = held.run, held.images["group"].to_numpy()[rows]
    improvement, kept = measure(measured.plain[rows], measured.tta[rows], groups, run.competition, run.recipe.tune)
    return {
        "views": run.recipe.predict.tta,
        "kept": kept,
        "gain": improvement.value,
        "standard_error": improvement.standard_error,
        "confidence": improvement.confidence,
        "images": len(rows),
    }
