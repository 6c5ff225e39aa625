"""Regressions that are fitted by the hundred, on few numbers each: scikit-learn's take ten times as long to set up.

Their tests hold them against scikit-learn's.
"""

import numpy as np

STEPS = 50
"""Newton steps, at most."""


def logistic(
    design: np.ndarray, successes: np.ndarray, trials: np.ndarray, ridge: np.ndarray, towards: np.ndarray | None = None
) -> np.ndarray:
    """Returns the coefficients (k,) of a logistic regression, by Newton's method with steps of bounded length.

    Args:
        design: what the logit is a weighted sum of (n, k).
        successes: how many of the trials succeeded (n,), any weights.
        trials: (n,).
        ridge: how strongly each coefficient is held (k,): half of ridge · (coefficient - towards)² joins the log loss.
        towards: (k,), by default 0.
    """
    towards = np.zeros(design.shape[1]) if towards is None else towards
    found, loss = towards.copy(), np.inf
    for _ in range(STEPS):
        logit = design @ found
        p = sigmoid(logit)
        gradient = design.T @ (trials * p - successes) + ridge * (found - towards)
        curvature = (design * (trials * p * (1 - p))[:, None]).T @ design + np.diag(ridge)
        step = np.linalg.solve(curvature, gradient)
        scale = 1.0
        while scale > 1e-4:  # halved until the loss falls: far from the optimum a whole step may overshoot
            tried = found - scale * step
            value = _loss(design @ tried, successes, trials) + (ridge * (tried - towards) ** 2).sum() / 2
            if value <= loss:
                break
            scale /= 2
        if scale <= 1e-4 or loss - value < 1e-12 * (1 + abs(value)):
            return tried if value <= loss else found
        found, loss = tried, value
    return found


def linear(design: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the coefficients (k,) of the weighted least squares of values (n,) on a design (n, k); of equally good
    ones the shortest."""
    root = np.sqrt(weights)
    return np.linalg.lstsq(design * root[:, None], values * root, rcond=None)[0]


def sigmoid(logit: np.ndarray) -> np.ndarray:
    """Returns 1 / (1 + e^-logit), without overflow."""
    return 0.5 * (1 + np.tanh(logit / 2))


def _loss(logit: np.ndarray, successes: np.ndarray, trials: np.ndarray) -> float:
    return float((trials * np.logaddexp(0, logit) - successes * logit).sum())
