"""Small regressions, held against scikit-learn's."""

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression

from pipeline.tune.regression import linear, logistic, sigmoid


def data(number: int, strength: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A design whose last column is 1, successes and weights."""
    random = np.random.default_rng([number, int(strength)])
    features = random.standard_normal((number, 4)) * [5, 3, 0.2, 0.2]
    happened = features @ [1, 1, 1, 0] * strength / 5 + random.standard_normal(number) > 0
    return np.column_stack([features, np.ones(number)]), happened, random.uniform(0.5, 2, number)


@pytest.mark.parametrize("number", [25, 300])
@pytest.mark.parametrize("strength", [0.5, 3, 100])  # the last is separable: only the ridge holds it
def test_a_logistic_regression_is_that_of_scikit_learn(number: int, strength: float) -> None:
    design, happened, weights = data(number, strength)
    found = logistic(design, weights * happened, weights, np.array([0.01] * 4 + [0.0]))
    model = LogisticRegression(C=100.0, solver="newton-cholesky", tol=1e-8).fit(design[:, :4], happened, weights)
    np.testing.assert_allclose(found, np.append(model.coef_, model.intercept_), rtol=1e-4, atol=1e-5)


def test_coefficients_are_held_where_they_are_told_to_be() -> None:
    design, happened, weights = data(300, 3)
    towards = np.array([1.0, -2.0, 3.0, 0.0, 0.5])
    nothing = np.zeros(300)
    np.testing.assert_allclose(logistic(design, nothing, nothing, np.ones(5), towards), towards, atol=1e-9)
    loose, tight = (logistic(design, weights * happened, weights, np.full(5, ridge), towards) for ridge in (1e-6, 1e6))
    np.testing.assert_allclose(tight, towards, atol=1e-2)
    assert np.abs(loose - towards).max() > 0.5


def test_a_fit_that_starts_far_off_converges() -> None:
    design, happened, weights = data(300, 3)
    ridge = np.full(5, 1e-6)
    near, far = (logistic(design, weights * happened, weights, ridge, start * np.ones(5)) for start in (0, 40))
    np.testing.assert_allclose(near, far, rtol=1e-3, atol=1e-3)


def test_weighted_least_squares_are_those_of_scikit_learn() -> None:
    design, _, weights = data(40, 1)
    values = np.random.default_rng(0).standard_normal(40)
    model = LinearRegression().fit(design[:, :4], values, weights)
    np.testing.assert_allclose(linear(design, values, weights), np.append(model.coef_, model.intercept_), rtol=1e-8)
    assert np.isfinite(linear(design[:3], values[:3], weights[:3])).all()  # fewer rows than coefficients


def test_a_sigmoid_does_not_overflow() -> None:
    np.testing.assert_allclose(sigmoid(np.array([-1e4, 0.0, 1e4])), [0, 0.5, 1])
