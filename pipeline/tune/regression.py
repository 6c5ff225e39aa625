"""Small regressions that are fitted hundreds of times, for which scikit-learn's overhead is ten times as large.

The tests compare them with scikit-learn.
"""

import numpy as np

STEPS, SMALLEST = 50, 1e-8
"""The largest number of Newton steps, and the smallest step."""


def logistic(
    design: np.ndarray, successes: np.ndarray, trials: np.ndarray, ridge: np.ndarray, towards: np.ndarray | None = None
) -> np.ndarray:
    """Returns the coefficients (k,) of a logistic regression, by Newton's method with halved steps until the loss
    falls.

    Args:
        design: the design matrix (n, k).
        successes: the weight of the successes (n,).
        trials: the total weight (n,).
        ridge: the strength of the penalty of each coefficient (k,): ridge · (coefficient - towards)² / 2 is added to
            the log loss.
        towards: the values to which coefficients are pulled (k,), by default 0.
    """
    towards = np.zeros(design.shape[1]) if towards is None else towards

    def loss(coefficients: np.ndarray) -> float:
        logit = design @ coefficients
        misfit = (trials * np.logaddexp(0, logit) - successes * logit).sum()
        return float(misfit + (ridge * (coefficients - towards) ** 2).sum() / 2)

    estimate, lowest_loss = towards.copy(), loss(towards)
    for _ in range(STEPS):
        p = sigmoid(design @ estimate)
        gradient = design.T @ (trials * p - successes) + ridge * (estimate - towards)
        curvature = (design * (trials * p * (1 - p))[:, None]).T @ design + np.diag(ridge)
        step = np.linalg.lstsq(curvature, gradient, rcond=None)[0]
        while (after := loss(estimate - step)) > lowest_loss and np.abs(step).max() > SMALLEST:
            step = step / 2  # far from the optimum, a full step may overshoot
        if after >= lowest_loss:
            break
        estimate, lowest_loss = estimate - step, after
        if np.abs(step).max() < SMALLEST:
            break
    return estimate


def linear(design: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the coefficients (k,) of a weighted least-squares fit of values (n,) on a design (n, k); the solution
    with the smallest norm if there are several."""
    root = np.sqrt(weights)
    return np.linalg.lstsq(design * root[:, None], values * root, rcond=None)[0]


def sigmoid(logit: np.ndarray) -> np.ndarray:
    """Returns 1 / (1 + e^-logit), without overflow."""
    return 0.5 * (1 + np.tanh(logit / 2))
