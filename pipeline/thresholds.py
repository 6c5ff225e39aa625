"""Thresholds and minimum areas of binary and multilabel masks, searched exactly on out-of-fold probabilities.

Every image is reduced to two histograms over the 256 probabilities: all of its pixels, and those of its true mask. From
their cumulative sums the metric of every threshold follows exactly, and from these the metric of every minimum area, so
the search over all thresholds and areas is exact.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipeline.geometry import IGNORE
from pipeline.metrics import METRICS
from pipeline.postprocess import Thresholds
from pipeline.recipe import TuneSettings

LEVELS = 256


@dataclass(frozen=True)
class Evidence:
    """Out-of-fold images, reduced to pixel counts under every threshold."""

    images: pd.DataFrame
    """image_id, fold, group, one row an image."""
    area: np.ndarray
    """Pixels with probability >= t, ignored ones too: what a minimum area is held against (N, C, 256) int64."""
    predicted: np.ndarray
    """Those of them that are not ignored (N, C, 256) int64."""
    intersection: np.ndarray
    """Those of them inside the true mask (N, C, 256) int64."""
    true: np.ndarray
    """Pixels of the true mask (N, C) int64."""

    def only(self, rows: np.ndarray) -> "Evidence":
        """Returns the evidence of the images that `rows` (N,) bool names."""
        counts = (self.area, self.predicted, self.intersection, self.true)
        return Evidence(self.images[rows], *(count[rows] for count in counts))


def histogram_counts(probability: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns the area, predicted and intersection pixels (C, 256) of every threshold, and the true pixels (C,).

    `probability` (C, h, w) uint8; `true` (C, h, w) uint8 of 0, 1 and 255 (ignored). See Evidence.
    """
    at_least = []
    for counted in (np.ones_like(true, bool), true != IGNORE, true == 1):
        planes = zip(probability, counted, strict=True)
        histograms = np.stack([np.bincount(plane[where], minlength=LEVELS) for plane, where in planes])
        at_least.append(np.cumsum(histograms[:, ::-1], axis=1)[:, ::-1])
    return *at_least, (true == 1).sum((1, 2))


def search(evidence: Evidence, settings: TuneSettings, metric: str) -> Thresholds:
    """Returns the best threshold and minimum area of every class, or the fixed ones."""
    chosen = []
    for index in range(evidence.true.shape[1]):
        if settings.method == "fixed":
            chosen.append((max(1, round(settings.threshold * (LEVELS - 1))), settings.min_area))
            continue
        areas = _candidate_areas(evidence, settings, index)
        chosen.append(_choose(_score_sums(evidence, metric, index, areas), areas))
    return Thresholds(*zip(*chosen, strict=True))


def image_scores(evidence: Evidence, decision: Thresholds, metric: str) -> np.ndarray:
    """Returns the metric of every image and class (N, C) under a decision."""
    scores = []
    for index, (threshold, area) in enumerate(zip(decision.threshold, decision.min_area, strict=True)):
        predicted = evidence.predicted[:, index, threshold]
        keep = evidence.area[:, index, threshold] >= area
        intersection = evidence.intersection[:, index, threshold]
        scores.append(METRICS[metric](intersection * keep, predicted * keep, evidence.true[:, index]))
    return np.stack(scores, axis=1)


def _candidate_areas(evidence: Evidence, settings: TuneSettings, index: int) -> np.ndarray:
    found, true = evidence.area[:, index, LEVELS // 2], evidence.true[:, index]
    if not true.any():
        return np.array([0])
    # a mask smaller than nearly all true ones may be worth emptying; larger areas would be fitted to these images alone
    sizes = found[(found > 0) & (found <= np.quantile(true[true > 0], 0.1))]
    if not len(sizes):
        return np.array([0])
    return np.unique([0, *np.quantile(sizes, np.linspace(0, 1, settings.min_areas), method="nearest")]).astype(np.int64)


def _score_sums(evidence: Evidence, metric: str, index: int, areas: np.ndarray) -> np.ndarray:
    """Sums of the metric over the images, for every area and threshold (areas, 256)."""
    true = evidence.true[:, index, None]
    kept = METRICS[metric](evidence.intersection[:, index], evidence.predicted[:, index], true)
    emptied = METRICS[metric](np.zeros_like(true), np.zeros_like(true), true)
    return np.stack([np.where(evidence.area[:, index] >= area, kept, emptied).sum(0) for area in areas])


def _choose(sums: np.ndarray, areas: np.ndarray) -> tuple[int, int]:
    """The best (threshold, area); of equal ones the smallest area, then the threshold nearest 0.5."""
    tied = np.argwhere(sums[:, 1:] >= sums[:, 1:].max() - 1e-9)
    area, threshold = min(tied, key=lambda pair: (int(pair[0]), abs(int(pair[1]) + 1 - LEVELS // 2)))
    return int(threshold) + 1, int(areas[area])
