"""How several predictions of an image become one: with or without test-time augmentation, and the weights of runs.

Both are chosen on out-of-fold images, so the nested estimate chooses them again without the images that it scores.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.core import other_runs
from pipeline.masks.geometry import IGNORE
from pipeline.masks.scale import scale_of
from pipeline.predictions import blends
from pipeline.tune import views
from pipeline.tune.held_out import HeldOut, Weighting

TWENTIETHS = 20


def choose_weightings(held: HeldOut, row_sets: Sequence[np.ndarray]) -> tuple[list[Weighting], dict[str, Any] | None]:
    """Returns the weighting that each of several sets of images (positions) chooses, and what the first set, which
    decides, says of test-time augmentation: see views.decide. None without it, and for an ensemble, whose runs have
    decided."""
    run, runs = held.run, other_runs.runs_of(held.run)
    fixed, decided = run.recipe.tune.method == "fixed", None
    measured: list[views.Measured | None] = [None] * len(runs)
    if not (fixed and run.recipe.ensemble):
        measured = views.count(held)
    if measured[0] is not None and not run.recipe.ensemble:
        decided = views.decide(held, measured[0], row_sets[0])
    told = blends.plain_of(run) if decided is None else (not decided["kept"],)
    if fixed:
        return [Weighting(told, blends.weights_of(run))] * len(row_sets), decided
    chosen = [
        tuple(
            counts is not None and not views.keeps(held, other, counts, rows)
            for other, counts in zip(runs, measured, strict=True)
        )
        for rows in row_sets[1:]
    ]
    weights = [blends.weights_of(run)] * len(row_sets)
    if None in run.recipe.ensemble.values():
        products = _products(held, Weighting(told, weights[0]))
        weights = [_fit(*(part[rows].sum(0) for part in products)) for rows in row_sets]
    return [Weighting(plain, own) for plain, own in zip([told, *chosen], weights, strict=True)], decided


def _products(held: HeldOut, weighting: Weighting) -> tuple[np.ndarray, np.ndarray]:
    """For every image, the mean products of the sources' probabilities (N, S, S), and with the truth (N, S)."""
    scale = scale_of(held.run.competition)
    ignored = held.run.competition.ignored
    alone = [Weighting(weighting.plain, tuple(map(float, row))) for row in np.eye(len(weighting.weights))]

    def products(number: int, probabilities: list[np.ndarray], true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        counted = true != IGNORE
        if ignored is not None:
            counted = counted & (true[ignored] != 1)
        values = np.stack([one[counted] / float(scale.largest) for one in probabilities])
        pixels = max(1, values.shape[1])
        return values @ values.T / pixels, values @ true[counted] / pixels

    found = held.each(alone, products, "ensemble weights")
    return tuple(np.stack(part) for part in zip(*found, strict=True))  # type: ignore[return-value]


def _fit(products: np.ndarray, with_truth: np.ndarray) -> tuple[float, ...]:
    """The weights, 0 or more with sum 1, whose mean of probabilities has the least squared error, in twentieths: they
    are hardly known better, and the nested estimate reads the images anew for every weighting that differs.

    Stacking (Breiman 1996): the error needs only the products of the sources with each other (S, S) and with the truth
    (S,), summed over images.
    """
    from scipy.optimize import nnls

    if not np.trace(products):  # no images, or nothing predicted
        return (1 / len(products),) * len(products)
    scale = 1e3 * np.sqrt(np.trace(products))  # a heavy row that asks for the sum of 1
    lower = np.linalg.cholesky(products + 1e-9 * np.trace(products) * np.eye(len(products)))
    system = np.vstack([lower.T, np.full(len(products), scale)])
    weights, _ = nnls(system, np.append(np.linalg.solve(lower, with_truth), scale))
    rounded = np.floor(TWENTIETHS * weights / weights.sum())
    order = np.argsort(rounded - TWENTIETHS * weights / weights.sum(), kind="stable")  # the largest remainders first
    rounded[order[: int(TWENTIETHS - rounded.sum())]] += 1
    return tuple(float(weight) for weight in rounded / TWENTIETHS)
