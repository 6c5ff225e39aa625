"""Chooses how several predictions of an image are combined: whether test-time augmentation is used, and the weights of
the runs of an ensemble.

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
    """Returns the weighting chosen on each of several sets of images, and the decision on test-time augmentation.

    The decision (see views.decide) is made on the first set. It is None without test-time augmentation and for an
    ensemble, whose runs have made their own decisions.

    Args:
        held: the held-out images.
        row_sets: the positions of each set of images.
    """
    run, runs = held.run, other_runs.runs_of(held.run)
    fixed, decided = run.recipe.tune.method == "fixed", None
    measured: list[views.Measured | None] = [None] * len(runs)
    if not (fixed and run.recipe.ensemble):
        measured = views.count(held)
    if measured[0] is not None and not run.recipe.ensemble:
        decided = views.decide(held, measured[0], row_sets[0])
    plain_views = blends.plain_of(run) if decided is None else (not decided["kept"],)
    if fixed:
        return [Weighting(plain_views, blends.weights_of(run))] * len(row_sets), decided
    chosen = [
        tuple(
            counts is not None and not views.keeps(held, other, counts, rows)
            for other, counts in zip(runs, measured, strict=True)
        )
        for rows in row_sets[1:]
    ]
    weights = [blends.weights_of(run)] * len(row_sets)
    if None in run.recipe.ensemble.values():
        products = _products(held, Weighting(plain_views, weights[0]))
        weights = [_fit(*(part[rows].sum(0) for part in products)) for rows in row_sets]
    return [Weighting(*pair) for pair in zip([plain_views, *chosen], weights, strict=True)], decided


def _products(held: HeldOut, weighting: Weighting) -> tuple[np.ndarray, np.ndarray]:
    """Returns, for every image, the mean products of the runs' probabilities with each other (N, S, S) and with the
    true mask (N, S)."""
    scale = scale_of(held.run.competition)
    ignored = held.run.competition.ignored
    alone = [Weighting(weighting.plain, tuple(map(float, row))) for row in np.eye(len(weighting.weights))]

    def products(number: int, probabilities: list[np.ndarray], true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        counted = true != IGNORE
        if ignored is not None:
            counted = counted & (true[ignored] != 1)
        values = np.stack([probability[counted] / float(scale.largest) for probability in probabilities])
        pixels = max(1, values.shape[1])
        return values @ values.T / pixels, values @ true[counted] / pixels

    by_image = held.each(alone, products, "ensemble weights")
    return tuple(np.stack(part) for part in zip(*by_image, strict=True))  # type: ignore[return-value]


def _fit(products: np.ndarray, with_truth: np.ndarray) -> tuple[float, ...]:
    """Returns the weights, non-negative with sum 1, for which the mean of probabilities has the smallest squared error.

    They are rounded to twentieths, because they are hardly known more exactly, and because the nested estimate reads
    the images again for every different weighting. This is stacking (Breiman 1996): the error needs only the products
    of the runs with each other (S, S) and with the true mask (S,), summed over images.
    """
    from scipy.optimize import nnls

    if not np.trace(products):  # no images, or all probabilities are 0
        return (1 / len(products),) * len(products)
    scale = 1e3 * np.sqrt(np.trace(products))  # the weight of an extra row that enforces the sum 1
    lower = np.linalg.cholesky(products + 1e-9 * np.trace(products) * np.eye(len(products)))
    system = np.vstack([lower.T, np.full(len(products), scale)])
    weights, _ = nnls(system, np.append(np.linalg.solve(lower, with_truth), scale))
    rounded = np.floor(TWENTIETHS * weights / weights.sum())
    order = np.argsort(rounded - TWENTIETHS * weights / weights.sum(), kind="stable")  # the largest remainders first
    rounded[order[: int(TWENTIETHS - rounded.sum())]] += 1
    return tuple(float(weight) for weight in rounded / TWENTIETHS)
