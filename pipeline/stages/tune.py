"""Chooses thresholds and minimum areas on the out-of-fold predictions, at native size, and estimates what they bring.

    python -m pipeline tune RECIPE

reads   work/<competition>/<run>/predictions/oof_fold_<k>.npy, work/<competition>/images.parquet, outliers.csv
writes  work/<competition>/<run>/postprocess.json (parameters, scores), oof_scores.csv (one row an image)

Every image is reduced to two histograms over the 256 probabilities: all of its pixels, and those of its true mask. From
their cumulative sums the metric of every threshold follows exactly, and from these the metric of every minimum area, so
the search over all thresholds and areas is exact. The nested estimate chooses without the fold that it scores.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pipeline import table, workspace
from pipeline.console import console, track
from pipeline.geometry import IGNORE
from pipeline.metrics import METRICS
from pipeline.postprocess import Decision, native_probability
from pipeline.probabilities import read_probabilities
from pipeline.recipe import TuneSettings
from pipeline.stages.clean import read_outliers
from pipeline.stages.decode import geometry_of
from pipeline.workspace import Run, Step, shown

LEVELS = 256
PARTS_OF_ONE_FOLD = 5
BOOTSTRAPS = 2000


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


def steps(run: Run) -> list[Step]:
    """Returns the one step of this stage."""
    inputs = [run.table, run.outliers, *(run.predictions("oof", fold) for fold in run.trained_folds())]
    indices = [path.with_suffix(".csv") for path in inputs[2:]]
    outputs = (run.postprocess, run.folder / "oof_scores.csv")
    settings = {"tune": run.recipe.tune.model_dump(mode="json"), "metric": run.competition.metric}
    manifest = run.folder / "postprocess.manifest.json"
    return [Step("tune", "tune", manifest, (*inputs, *indices), outputs, settings)]


def execute(run: Run, waiting: list[Step]) -> Iterator[Step]:
    """Searches, estimates, and writes both files."""
    evidence = collect(run)
    result = tune(evidence, run.recipe.tune, run.competition.metric)
    decision = decision_of(result)
    scores = image_scores(evidence, decision, run.competition.metric)
    rows = evidence.images.assign(true_area=evidence.true.sum(1), score=scores.mean(1))
    with workspace.writing(run.folder / "oof_scores.csv") as temporary:
        rows.to_csv(temporary, index=False)
    workspace.write_json(run.postprocess, result)
    low, high = result["interval_95"]
    console.print(
        f"  {result['metric']} {result['score']:.4f} out-of-fold [{low:.4f}, {high:.4f}], "
        f"nested {result['nested']:.4f}, untuned {result['untuned']:.4f}; threshold {result['threshold']}/255, "
        f"minimum area {result['min_area']} px → {shown(run.postprocess)}"
    )
    yield from waiting


def collect(run: Run) -> Evidence:
    """Returns the counts of all out-of-fold images but the broken ones, true masks decoded from their RLE."""
    images = table.read_table(run.table, "train").set_index("image_id", drop=False)
    broken = set(read_outliers(run).query("reason == 'broken'")["image_id"])
    geometry, classes = geometry_of(run), run.competition.classes
    sources = [(fold, *read_probabilities(run.predictions("oof", fold))) for fold in run.trained_folds()]
    work = [
        (fold, array, row, image_id)
        for fold, array, ids in sources
        for row, image_id in enumerate(ids)
        if image_id not in broken
    ]

    def count(task: tuple[int, np.ndarray, int, str]) -> tuple[np.ndarray, ...]:
        _, array, row, image_id = task
        true = table.true_mask(images.loc[image_id], classes)
        return histogram_counts(native_probability([array[row]], geometry, true.shape[1:]), true)

    with ThreadPoolExecutor() as pool:
        counted = list(track(pool.map(count, work), "tune", len(work)))
    found = pd.DataFrame({"image_id": [task[3] for task in work], "fold": [task[0] for task in work]})
    group = images["group"].reindex(found["image_id"]).to_numpy()
    found["group"] = np.where(group == "", found["image_id"], group)
    return Evidence(found, *(np.stack(part) for part in zip(*counted, strict=True)))


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


def tune(evidence: Evidence, settings: TuneSettings, metric: str) -> dict[str, Any]:
    """Returns what postprocess.json holds: the decision, and its optimistic, nested and untuned scores."""
    classes = evidence.true.shape[1]
    decision = search(evidence, settings, metric)
    scores = image_scores(evidence, decision, metric).mean(1)
    untuned = image_scores(evidence, Decision((128,) * classes, (0,) * classes), metric).mean(1)
    folds = evidence.images["fold"].to_numpy()
    return {
        "metric": metric,
        "method": settings.method,
        "threshold": list(decision.threshold),
        "min_area": list(decision.min_area),
        "score": float(scores.mean()),
        "interval_95": bootstrap_interval(scores, evidence.images["group"].to_numpy()),
        "nested": float(nested_scores(evidence, settings, metric).mean()),
        "untuned": float(untuned.mean()),
        "score_by_fold": {str(fold): float(scores[folds == fold].mean()) for fold in np.unique(folds)},
        "images": len(scores),
        "share_empty_true": float((evidence.true.sum(1) == 0).mean()),
        "mean_true_area": float(evidence.true.sum(1).mean()),
    }


def search(evidence: Evidence, settings: TuneSettings, metric: str) -> Decision:
    """Returns the best threshold and minimum area of every class, or the fixed ones."""
    chosen = []
    for index in range(evidence.true.shape[1]):
        if settings.method == "fixed":
            chosen.append((max(1, round(settings.threshold * (LEVELS - 1))), settings.min_area))
            continue
        areas = _candidate_areas(evidence, settings, index)
        chosen.append(_choose(_score_sums(evidence, metric, index, areas), areas))
    return Decision(*zip(*chosen, strict=True))


def nested_scores(evidence: Evidence, settings: TuneSettings, metric: str) -> np.ndarray:
    """Returns the score of every image (N,) under the decision chosen without its part."""
    parts = _parts(evidence)
    scores = np.empty(len(parts))
    for part in np.unique(parts):
        held_out = parts == part
        decision = search(evidence.only(~held_out), settings, metric)
        scores[held_out] = image_scores(evidence.only(held_out), decision, metric).mean(1)
    return scores


def image_scores(evidence: Evidence, decision: Decision, metric: str) -> np.ndarray:
    """Returns the metric of every image and class (N, C) under a decision."""
    scores = []
    for index, (threshold, area) in enumerate(zip(decision.threshold, decision.min_area, strict=True)):
        predicted = evidence.predicted[:, index, threshold]
        keep = evidence.area[:, index, threshold] >= area
        intersection = evidence.intersection[:, index, threshold]
        scores.append(METRICS[metric](intersection * keep, predicted * keep, evidence.true[:, index]))
    return np.stack(scores, axis=1)


def decision_of(result: dict[str, Any]) -> Decision:
    """Returns the decision that postprocess.json holds."""
    return Decision(tuple(result["threshold"]), tuple(result["min_area"]))


def bootstrap_interval(scores: np.ndarray, groups: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Returns the 95 % interval of the mean score (N,), groups resampled whole."""
    low, high = np.quantile(bootstrap_means(scores, groups, np.random.default_rng(seed), BOOTSTRAPS), [0.025, 0.975])
    return float(low), float(high)


def bootstrap_means(scores: np.ndarray, groups: np.ndarray, random: np.random.Generator, draws: int) -> np.ndarray:
    """Returns mean scores (draws,) of resampled data: scores (N,), whole groups drawn with replacement."""
    _, group = np.unique(groups.astype(str), return_inverse=True)
    size, total = np.bincount(group), np.bincount(group, weights=scores)
    drawn = random.multinomial(len(size), np.full(len(size), 1 / len(size)), draws)
    return (drawn @ total) / (drawn @ size)


def _parts(evidence: Evidence) -> np.ndarray:
    """The parts that the nested estimate leaves out in turn: the folds, or groups of images when there is one fold."""
    _, fold = np.unique(evidence.images["fold"], return_inverse=True)
    if fold.max() > 0:
        return fold
    _, group = np.unique(evidence.images["group"].astype(str), return_inverse=True)
    return np.random.default_rng(0).permutation(group.max() + 1)[group] % min(PARTS_OF_ONE_FOLD, group.max() + 1)


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
