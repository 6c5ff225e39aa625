"""One bias a class, chosen on out-of-fold probabilities so that argmax(log probability + bias) scores best.

The most probable class is not what a score such as the mean IoU rewards most: a rare class gains more from a found
pixel than a common one loses. `search` and `labels` compare the same products, probability · exp(bias), in the same
precision and with the same rule for ties, so what `search` scores is what `labels` draws, to the last pixel.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from pipeline.geometry import IGNORE

LIMIT = 3.0
STEP = 0.05
CHUNK = 250_000
"""Pixels that are counted at a time: few megabytes, which stay in the processor's cache."""

_ZERO = round(LIMIT / STEP)
_GRID = [round((place - _ZERO) * STEP, 2) for place in range(2 * _ZERO + 1)]
_HALVINGS = [2**power for power in reversed(range(len(_GRID).bit_length()))]
_PLACES = 2 * _HALVINGS[0]
_GAIN = 1e-6


def labels(probability: np.ndarray, bias: Sequence[float], never: Sequence[int] = ()) -> np.ndarray:
    """Returns the class map uint8, argmax of probability · exp(bias) over the first axis of `probability` (C, …) float.

    Classes in `never` are not chosen, even where all others are 0. Ties go to the lowest class.

    Raises:
        ValueError: `never` names every class.
    """
    return _strongest(probability, _weights(bias), _allowed(len(probability), never))[1]


def search(
    probability: np.ndarray,
    true: np.ndarray,
    score: Callable[[np.ndarray], np.ndarray],
    never: Sequence[int] = (),
    rounds: int = 3,
) -> tuple[float, ...]:
    """Returns the bias of every class, in steps of 0.05 from -3 to 3, that `labels` scores best with.

    Coordinate ascent: one class at a time, every candidate exactly, until no move gains more than 1e-6. It may end in a
    local optimum. Only differences matter, so the most frequent allowed class keeps 0; so do the classes in `never`.
    Of equal candidates the one nearest 0 wins.

    Args:
        probability: (M, C) float32, one row a pixel.
        true: the pixels' classes (M,) uint8; 255 is ignored.
        score: from confusion matrices (…, C, C), rows are true classes, to scores (…).
        never: classes that are not chosen.
        rounds: visits to every class, at most.

    Raises:
        ValueError: `never` names every class, or a true class is neither below C nor 255.
    """
    classes = probability.shape[1]
    allowed = _allowed(classes, never)
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
    """Confusion matrices (candidates, C, C) int64 of every candidate for the bias of class `index`.

    Under the other biases a pixel has one strongest other class, and `index` beats it from one candidate on. The
    pixels are counted by true class, strongest other class and that candidate; sums over candidates give the rest.
    """
    classes = len(bias)
    weights, steps = _weights(bias), _weights(_GRID + _GRID[-1:] * (_PLACES - 1 - len(_GRID)))
    others = [other for other in allowed if other != index]
    found = np.zeros((classes + 1) * classes * _PLACES, np.int64)
    for start in range(0, len(true), CHUNK):
        rows = slice(start, start + CHUNK)
        part = np.ascontiguousarray(probability[rows].T, np.float32)
        rival, other = _strongest(part, weights, others)
        # a tie goes to the lower class: over a lower one, `index` needs more than its product
        needed = np.where(other < index, np.nextafter(rival, np.float32(np.inf)), rival)
        # ignored pixels fill a row of their own, dropped below: cheaper than selecting the others
        truth = np.where(true[rows] == IGNORE, classes, true[rows]).astype(np.intp)
        pair = truth * classes + other
        found += np.bincount(pair * _PLACES + _first(part[index], steps, needed), minlength=len(found))
    counts = found.reshape(classes + 1, classes, _PLACES)[:classes]
    won = np.cumsum(counts, axis=2)[..., : len(_GRID)]
    matrices = counts.sum(2)[..., None] - won
    matrices[:, index] = won.sum(1)
    return np.moveaxis(matrices, 2, 0)


def _first(probability: np.ndarray, steps: np.ndarray, needed: np.ndarray) -> np.ndarray:
    """The lowest place in `steps` (ascending) where probability · step is `needed` or more, len(steps) if at none.

    Bisection on the products themselves: rounding keeps their order, and a logarithm's error would not.
    """
    first = np.zeros(len(probability), np.intp)
    for half in _HALVINGS:
        first += half * (probability * steps[first + (half - 1)] < needed)
    return first


def _strongest(probability: np.ndarray, weights: np.ndarray, among: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
    """The largest product of `probability` (C, …) and `weights` (C,), float32, and the lowest class with it, uint8."""
    value = np.full(probability.shape[1:], -1, np.float32)
    label = np.zeros(probability.shape[1:], np.uint8)
    for index in among:
        product = np.multiply(probability[index], weights[index], dtype=np.float32)
        np.copyto(label, np.uint8(index), where=product > value)
        np.maximum(value, product, out=value)
    return value, label


def _weights(bias: Sequence[float]) -> np.ndarray:
    # numpy's exp may round otherwise in an array than alone; one bias must always be the same weight
    return np.array([math.exp(one) for one in bias], np.float32)


def _allowed(classes: int, never: Sequence[int]) -> list[int]:
    allowed = [index for index in range(classes) if index not in never]
    if not allowed:
        raise ValueError(f"never names all {classes} classes; leave one")
    return allowed


def _nearest_to_zero(scores: np.ndarray) -> int:
    """The place of the best score; of equal ones the bias nearest 0."""
    tied = np.flatnonzero(scores >= scores.max() - 1e-9)
    return int(min(tied, key=lambda place: abs(int(place) - _ZERO)))
