"""Regressions that are fitted by the hundred, on few numbers each: scikit-learn's take ten times as long to set up.

Their tests hold them against scikit-learn's.
"""

import numpy as np

STEPS, SMALLEST = 50, 1e-8
"""Newton steps at most, and the least one."""


def logistic(
    design: np.ndarray, successes: np.ndarray, trials: np.ndarray, ridge: np.ndarray, towards: np.ndarray | None = None
) -> np.ndarray:
    """Returns the coefficients (k,) of a logistic regression, by Newton's method, its steps halved until the
    loss falls.

    Args:
        design: what the logit is a weighted sum of (n, k).
        successes: how many of the trials succeeded (n,), any weights.
        trials: (n,).
        ridge: how strongly each coefficient is held (k,): half of ridge · (coefficient - towards)² joins the log loss.
        towards: (k,), by default 0.
    """
    towards = np.zeros(design.shape[1]) if towards is None else towards

    def loss(coefficients: np.ndarray) -> float:
        logit = design @ coefficients
        misfit = (trials * np.logaddexp(0, logit) - successes * logit).sum()
        return float(misfit + (ridge * (coefficients - towards) ** 2).sum() / 2)

    found, reached = towards.copy(), loss(towards)
    for _ in range(STEPS):
        p = sigmoid(design @ found)
        gradient = design.T @ (trials * p - successes) + ridge * (found - towards)
        curvature = (design * (trials * p * (1 - p))[:, None]).T @ design + np.diag(ridge)
        step = np.linalg.lstsq(curvature, gradient, rcond=None)[0]
        while (after := loss(found - step)) > reached and np.abs(step).max() > SMALLEST:
            step = step / 2  # far from the optimum a whole step may overshoot
        if after >= reached:
            break
        found, reached = found - step, after
        if np.abs(step).max() < SMALLEST:
            break
    return found


def linear(design: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the coefficients (k,) of the weighted least squares of values (n,) on a design (n, k); of equally good
    ones the shortest."""
    root = np.sqrt(weights)
    return np.linalg.lstsq(design * root[:, None], values * root, rcond=None)[0]


def sigmoid(logit: np.ndarray) -> np.ndarray:
    """Returns 1 / (1 + e^-logit), without overflow."""
    return 0.5 * (1 + np.tanh(logit / 2))
