"""Scores of constant answers, which use no image: empty masks and the mean training mask. A model must beat the better.

Both are scored on the same images as the model with the competition's metric, so that differences can be computed per
image. The mean mask is averaged over these images and cut at the threshold that is best on them, so its score is
slightly optimistic. This is the safe side for a score that has to be beaten.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock

import cv2
import numpy as np

from pipeline.decode import table
from pipeline.masks.bootstrap import presence_weights
from pipeline.masks.decision import LEVELS
from pipeline.masks.metric import Metric
from pipeline.masks.metrics import metric_of
from pipeline.masks.overlaps import confusion
from pipeline.tune.evidence import histogram_counts
from pipeline.tune.held_out import HeldOut

SIDE = 64
"""Rows and columns of the mean mask."""
CUTS = np.arange(8, LEVELS, 8)
"""The thresholds that are tried for the mean mask, which is scaled so that its maximum is 255."""
DRAWN_CUTS = np.arange(32, LEVELS, 64)
"""The same for a metric that needs whole masks, each of which must be drawn."""


@dataclass(frozen=True)
class Constant:
    """An answer that is the same for all images."""

    name: str
    """Its name in messages."""
    score: float
    rows: np.ndarray
    """The counts that the metric's score sums over images, one row per image (n, …)."""


@dataclass(frozen=True)
class Constants:
    """The constant answers for the same images."""

    metric: Metric
    all_empty: Constant | None
    """Empty masks; None if every pixel must have a class."""
    mean_mask: Constant

    @property
    def best(self) -> Constant:
        """The answer that scores better."""
        known = [constant for constant in (self.all_empty, self.mean_mask) if constant is not None]
        return max(known, key=lambda constant: self.metric.sign * constant.score)

    def described(self) -> dict[str, float | None]:
        """Returns the scores as postprocess.json holds them."""
        return {"all_empty": None if self.all_empty is None else self.all_empty.score,
                "mean_mask": self.mean_mask.score}  # fmt: skip


def measure(held: HeldOut, counted: np.ndarray) -> Constants:
    """Returns the constant answers for the images at the positions `counted`."""
    mean = _mean_masks(held, counted)
    if held.run.competition.kind == "multiclass":
        return _labels(held, counted, mean)
    if metric_of(held.run.competition).counted == "masks":
        return _drawn(held, counted, mean)
    return _masks(held, counted, mean)


def _mean_masks(held: HeldOut, counted: np.ndarray) -> np.ndarray:
    """Returns the mean of the images' masks (C, 64, 64) float64, from 0 to 1."""
    total = np.zeros((len(held.run.competition.classes), SIDE, SIDE), np.int64)
    lock = Lock()  # a sum of integers does not depend on the order of threads

    def add(number: int, probabilities: list[np.ndarray], true: np.ndarray) -> None:
        small = [_resized((plane == 1) * np.uint8(255), (SIDE, SIDE), cv2.INTER_AREA) for plane in true]
        with lock:
            total[...] += np.stack(small)

    held.each([], add, "mean mask", counted.tolist())
    return total / (255 * max(1, len(counted)))


def _resized(plane: np.ndarray, shape: tuple[int, int], how: int) -> np.ndarray:
    return cv2.resize(np.ascontiguousarray(plane), shape[::-1], interpolation=how)


def _heights(mean: np.ndarray) -> Callable[[tuple[int, int]], np.ndarray]:
    """Returns a function that gives the mean mask (C, h, w) uint8 for a shape, scaled to a maximum of 255 per class."""
    scaled = (mean / np.maximum(mean.max((1, 2), keepdims=True), 1e-9) * (LEVELS - 1)).astype(np.float32)

    @lru_cache(maxsize=4)
    def of_shape(shape: tuple[int, int]) -> np.ndarray:
        planes = [_resized(plane, shape, cv2.INTER_LINEAR) for plane in scaled]
        return np.rint(np.stack(planes)).astype(np.uint8)

    return of_shape


def _constant(name: str, metric: Metric, rows: np.ndarray) -> Constant:
    return Constant(name, float(metric.score(rows.sum(0))), rows)


# --- binary and multilabel -------------------------------------------------------------------------------------------


def _masks(held: HeldOut, counted: np.ndarray, mean: np.ndarray) -> Constants:
    heights = _heights(mean)

    def count(number: int, probabilities: list[np.ndarray], true: np.ndarray) -> np.ndarray:
        _, predicted, both, area = histogram_counts(heights(true.shape[1:]), true)
        cut = np.stack([both[:, CUTS], predicted[:, CUTS], np.broadcast_to(area[:, None], both[:, CUTS].shape)])
        empty = np.stack([0 * area, 0 * area, area])[..., None]
        return np.concatenate([empty, cut], axis=2).transpose(2, 0, 1)

    return _best_cuts(held, counted, np.stack(held.each([], count, "constants", counted.tolist())), 2)


def _drawn(held: HeldOut, counted: np.ndarray, mean: np.ndarray) -> Constants:
    metric, heights = metric_of(held.run.competition), _heights(mean)
    sub = HeldOut(held.run, held.images.iloc[counted], [held.rows[number] for number in counted])

    def draw(probabilities: Sequence[Sequence[np.ndarray]], true: Sequence[np.ndarray]) -> np.ndarray:
        drawn = [[(heights(mask.shape[1:]) >= cut).astype(np.uint8) for mask in true] for cut in DRAWN_CUTS]
        empty = [np.zeros(mask.shape, np.uint8) for mask in true]
        return np.stack([metric.measured(masks, true) for masks in (empty, *drawn)], axis=1)

    batches = metric.batches(sub.images["group"].to_numpy())
    return _best_cuts(held, counted, sub.each_batch([], batches, draw, "constants"))


def _best_cuts(held: HeldOut, counted: np.ndarray, measured: np.ndarray, true_at: int | None = None) -> Constants:
    """Returns the answers from counts (n, 1 + cuts, K, C), of which the first are those of empty masks. `true_at` is
    the position of the true area along K."""
    metric, groups = metric_of(held.run.competition), held.images["group"].to_numpy()[counted]
    area = measured[:, 0, true_at] if true_at is not None else _areas(held, counted)
    weights = presence_weights(area, held.run.recipe.tune.presence_prior)

    def rows(chosen: np.ndarray, classes: slice = slice(None)) -> np.ndarray:
        return metric.rows(chosen, weights[:, classes], groups)

    best = []
    for place in range(measured.shape[-1]):
        of_class = slice(place, place + 1)
        scores = [metric.objective(rows(cut[..., of_class], of_class).sum(0)) for cut in measured.swapaxes(0, 1)[1:]]
        best.append(1 + int(np.argmax(scores)))
    mean_mask = np.stack([measured[:, cut, :, place] for place, cut in enumerate(best)], axis=-1)
    return Constants(
        metric,
        _constant("an empty mask everywhere", metric, rows(measured[:, 0])),
        _constant("the mean training mask", metric, rows(mean_mask)),
    )


def _areas(held: HeldOut, counted: np.ndarray) -> np.ndarray:
    """Returns 1 for the classes that each image has, else 0, (n, C)."""
    classes = held.run.competition.classes
    return np.array([[int(bool(held.rows[number][f"rle_{name}"])) for name in classes] for number in counted])


# --- multiclass ------------------------------------------------------------------------------------------------------


def _labels(held: HeldOut, counted: np.ndarray, mean: np.ndarray) -> Constants:
    competition, metric = held.run.competition, metric_of(held.run.competition)
    classes = range(len(competition.classes))
    allowed = [number for number in classes if number not in held.run.never]
    of_places = [allowed, [number for number in allowed if number != competition.ignored] or allowed]

    def count(number: int, probabilities: list[np.ndarray], masks: np.ndarray) -> np.ndarray:
        true = table.true_labels(masks)
        by_place = [confusion(_commonest(mean, among, true.shape), true, len(classes)) for among in of_places]
        everywhere = by_place[0].sum(1)[:, None] * np.eye(len(classes), dtype=np.int64)[allowed][:, None]
        return np.concatenate([np.stack(by_place), everywhere])

    measured = np.stack(held.each([], count, "constants", counted.tolist()))
    groups = held.images["group"].to_numpy()[counted]
    answers = [metric.rows(matrices, units=groups) for matrices in measured.swapaxes(0, 1)]
    best = max(range(len(answers)), key=lambda place: float(metric.objective(answers[place].sum(0))))
    names = ["the most frequent class of each position"] * len(of_places)
    names += [f"{competition.classes[number]} everywhere" for number in allowed]
    return Constants(metric, None, _constant(names[best], metric, answers[best]))


def _commonest(mean: np.ndarray, among: list[int], shape: tuple[int, int]) -> np.ndarray:
    """Returns the most frequent of some classes at each position, (h, w) uint8."""
    numbers = np.array(among, np.uint8)[mean[among].argmax(0)]
    return _resized(numbers, shape, cv2.INTER_NEAREST)
