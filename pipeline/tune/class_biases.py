"""Biases of classes and classes that are never predicted, for multiclass competitions, as a problem for selection.py.

Predicting the most probable class is not optimal for a score such as the mean IoU: a rare class gains more from an
additional pixel than a common class loses. `search` chooses one bias per class so that `class_bias.labels` scores best.

Steps are fitted on a random sample of pixels. The scores of the final decisions in postprocess.json use all pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from pipeline.core.config.competition import Competition
from pipeline.decode import table
from pipeline.masks.bootstrap import Score
from pipeline.masks.class_bias import allowed_classes, factors, labels, strongest
from pipeline.masks.decision import Biases
from pipeline.masks.geometry import IGNORE
from pipeline.masks.metrics import metric_of
from pipeline.masks.overlaps import confusion
from pipeline.tune.held_out import HeldOut, Weighting

STEPS = ("bias", "never")
PIXELS = 10_000_000
"""The largest number of pixels on which final biases are searched, drawn equally from every image."""
JUDGED = 500_000
"""The number of these pixels on which steps are judged, with decisions that are not used later."""
LARGEST_BIAS = 3.0
BIAS_STEP = 0.05
CHUNK = 250_000
"""The number of pixels that are counted at a time; a few megabytes, which fit into the processor's cache."""

_ZERO = round(LARGEST_BIAS / BIAS_STEP)
_GRID = [round((place - _ZERO) * BIAS_STEP, 2) for place in range(2 * _ZERO + 1)]
_HALVINGS = [2**power for power in reversed(range(len(_GRID).bit_length()))]
_PLACES = 2 * _HALVINGS[0]
_GAIN = 1e-6


# --- the problem -----------------------------------------------------------------------------------------------------


class LabelProblem:
    """The choice of biases of classes, on pixels of out-of-fold images."""

    def __init__(self, pixels: np.ndarray, true: np.ndarray, owner: np.ndarray, images: int, competition: Competition,
                 never: tuple[int, ...], groups: np.ndarray | None = None) -> None:  # fmt: skip
        """Takes probabilities (M, C) float32, true classes (M,) uint8 and image numbers (M,) of the pixels that count,
        and the groups (images,); by default each image is its own group."""
        self.metric = metric_of(competition)
        self.score: Score = self.metric.objective
        self._images = images
        self._groups = np.arange(images) if groups is None else groups
        self.untuned = Biases((0.0,) * len(competition.classes), never)
        self._all = pixels, true, owner
        every = max(1, len(true) // JUDGED)
        self._few = pixels[::every], true[::every], owner[::every]

    def prepare(self, step: str, decisions: Sequence[Biases]) -> None:
        """Does nothing, because the pixels are in memory."""

    def fit(self, step: str, decision: Biases, rows: np.ndarray, final: bool) -> Biases:
        """Returns the decision with the best biases (step `bias`) or with one more class that is never predicted (step
        `never`), if this is better."""
        pixels, true, owner = self._all if final else self._few
        mine = self._marks(rows)[owner]
        if step == "bias":
            return Biases(search(pixels[mine], true[mine], self._pooled, decision.never), decision.never)
        allowed = [index for index in range(len(decision.bias)) if index not in decision.never]
        if len(allowed) < 3:
            return decision
        wider = [replace(decision, never=tuple(sorted({*decision.never, index}))) for index in allowed]
        pixels, true, _ = self._few
        mine = self._marks(rows)[self._few[2]]
        tried = (decision, *wider)
        scores = [float(self._pooled(self._confusion(variant, pixels[mine], true[mine]))) for variant in tried]
        best = int(np.argmax(scores))
        return decision if best == 0 else wider[best - 1]

    def counts(self, decision: Biases, rows: np.ndarray) -> np.ndarray:
        """Returns the counts that the metric's score sums over images, one row per image (n, …), on the drawn
        pixels."""
        pixels, true, owner = self._few
        place = np.full(self._images, -1)
        place[rows] = np.arange(len(rows))
        mine = place[owner] >= 0
        predicted = labels(pixels[mine].T, decision.bias, decision.never)
        classes = len(decision.bias)
        cells = (place[owner[mine]] * classes + true[mine]) * classes + predicted
        matrices = np.bincount(cells, minlength=len(rows) * classes**2).reshape(len(rows), classes, classes)
        return self.metric.rows(matrices, units=self._groups[rows])

    def _pooled(self, confusion: np.ndarray) -> np.ndarray:
        """Returns the objective of the search: the metric over all pixels together, even if the metric itself is a mean
        over units."""
        return self.metric.sign * self.metric.by_class(confusion)

    def _marks(self, rows: np.ndarray) -> np.ndarray:
        marks = np.zeros(self._images, bool)
        marks[rows] = True
        return marks

    def _confusion(self, decision: Biases, pixels: np.ndarray, true: np.ndarray) -> np.ndarray:
        return confusion(labels(pixels.T, decision.bias, decision.never), true, len(decision.bias))


def draw_pixels(
    held: HeldOut, weightings: Sequence[Weighting], counted: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Returns, for each weighting, probabilities (M, C) float32, true classes (M,) uint8 and image numbers (M,) of
    pixels that count. They are drawn from the images at the positions `counted`; M is at most PIXELS."""
    largest, ignored = max(64, PIXELS // max(1, len(counted))), held.run.competition.ignored

    def draw(number: int, probabilities: list[np.ndarray], masks: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        true = table.true_labels(masks)
        pixels = np.flatnonzero((true != IGNORE) & (true != (IGNORE if ignored is None else ignored)))
        if len(pixels) > largest:
            pixels = np.random.default_rng([0, number]).choice(pixels, largest, replace=False)
        return [planes.reshape(len(planes), -1)[:, pixels].T for planes in probabilities], true.ravel()[pixels]

    drawn = held.each(weightings, draw, "draw pixels", counted.tolist())
    true = np.concatenate([classes for _, classes in drawn])
    owner = np.repeat(counted, [len(classes) for _, classes in drawn])
    return [(np.concatenate([values[place] for values, _ in drawn]), true, owner) for place in range(len(weightings))]


def confusions(held: HeldOut, weightings: Sequence[Weighting], decisions: Sequence[Sequence[Biases]]) -> np.ndarray:
    """Returns confusion matrices (decisions, N, C, C) over all pixels of every image under each of its decisions (N,
    decisions). The d-th decision is applied to the d-th weighting."""

    def count(number: int, probabilities: list[np.ndarray], masks: np.ndarray) -> list[np.ndarray]:
        true = table.true_labels(masks)
        pairs = zip(probabilities, decisions[number], strict=True)
        return [confusion(labels(planes, biases.bias, biases.never), true, len(masks)) for planes, biases in pairs]

    return np.array(held.each(weightings, count, "score")).swapaxes(0, 1)


# --- the search ------------------------------------------------------------------------------------------------------


def search(
    probability: np.ndarray,
    true: np.ndarray,
    score: Callable[[np.ndarray], np.ndarray],
    never: Sequence[int] = (),
    rounds: int = 3,
) -> tuple[float, ...]:
    """Returns the biases of all classes, in steps of 0.05 from -3 to 3, with which `labels` scores best.

    This is coordinate ascent: one class at a time, with every candidate scored exactly, until no change gains more than
    1e-6. It may end in a local optimum. Only differences of biases matter, so the most frequent allowed class keeps 0,
    and so do the classes in `never`. Of equal candidates, the one nearest 0 is taken.

    Args:
        probability: (M, C) float32, one row per pixel.
        true: the classes of the pixels (M,) uint8; 255 is ignored.
        score: maps confusion matrices (…, C, C), whose rows are true classes, to scores (…).
        never: classes that are never predicted.
        rounds: the largest number of passes over all classes.

    Raises:
        ValueError: `never` names every class, or a true class is neither below C nor 255.
    """
    classes = probability.shape[1]
    allowed = allowed_classes(classes, never)
    frequency = np.bincount(true, minlength=IGNORE + 1)
    if frequency[classes:IGNORE].any():
        raise ValueError(f"a true class is {true[true != IGNORE].max()}; expected 0 to {classes - 1}, or {IGNORE}")
    anchor = max(allowed, key=lambda index: int(frequency[index]))
    places = [_ZERO] * classes
    for _ in range(rounds):
        before = list(places)
        for index in allowed:
            if index == anchor:
                continue
            scores = score(_candidates(probability, true, [_GRID[place] for place in places], index, allowed))
            best = _nearest_to_zero(scores)
            if scores[best] > scores[places[index]] + _GAIN:
                places[index] = best
        if places == before:
            break
    return tuple(_GRID[place] for place in places)


def _candidates(
    probability: np.ndarray, true: np.ndarray, bias: Sequence[float], index: int, allowed: Sequence[int]
) -> np.ndarray:
    """Returns confusion matrices (candidates, C, C) int64 of every candidate for the bias of class `index`.

    With the other biases fixed, each pixel has one strongest other class, which `index` exceeds from some candidate on.
    Pixels are counted by true class, strongest other class and this candidate; cumulative sums give the matrices.
    """
    classes = len(bias)
    weights, steps = factors(bias), factors(_GRID + _GRID[-1:] * (_PLACES - 1 - len(_GRID)))
    others = [other for other in allowed if other != index]
    totals = np.zeros((classes + 1) * classes * _PLACES, np.int64)
    for start in range(0, len(true), CHUNK):
        rows = slice(start, start + CHUNK)
        part = np.ascontiguousarray(probability[rows].T, np.float32)
        rival, other = strongest(part, weights, others)
        # ties go to the lower class, so `index` must exceed a lower class strictly
        needed = np.where(other < index, np.nextafter(rival, np.float32(np.inf)), rival)
        # ignored pixels get their own row, which is dropped below; this is faster than selecting the other pixels
        truth = np.where(true[rows] == IGNORE, classes, true[rows]).astype(np.intp)
        pair = truth * classes + other
        totals += np.bincount(pair * _PLACES + _first(part[index], steps, needed), minlength=len(totals))
    counts = totals.reshape(classes + 1, classes, _PLACES)[:classes]
    won = np.cumsum(counts, axis=2)[..., : len(_GRID)]
    matrices = counts.sum(2)[..., None] - won
    matrices[:, index] = won.sum(1)
    return np.moveaxis(matrices, 2, 0)


def _first(probability: np.ndarray, steps: np.ndarray, needed: np.ndarray) -> np.ndarray:
    """Returns the first position in `steps` (ascending) at which probability · step is at least `needed`, or
    len(steps).

    The bisection uses the products themselves, because rounding keeps their order, unlike the errors of a logarithm.
    """
    first = np.zeros(len(probability), np.intp)
    for half in _HALVINGS:
        first += half * (probability * steps[first + (half - 1)] < needed)
    return first


def _nearest_to_zero(scores: np.ndarray) -> int:
    """Returns the position of the best score; of equal scores, the one with the bias nearest 0."""
    tied = np.flatnonzero(scores >= scores.max() - 1e-9)
    return int(min(tied, key=lambda place: abs(int(place) - _ZERO)))
