"""The class of each pixel from probabilities and one bias per class: argmax(log probability + bias).

The search for biases (class_biases.py) compares the same products, probability · exp(bias), in the same precision and
with the same rule for ties. It therefore scores exactly the class maps that `labels` returns.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np


def labels(probability: np.ndarray, bias: Sequence[float], never: Sequence[int] = ()) -> np.ndarray:
    """Returns the class map uint8, argmax of probability · exp(bias) over the first axis of `probability` (C, …) float.

    Classes in `never` are not chosen, even if all other probabilities are 0. Ties go to the class with the lowest
    number.

    Raises:
        ValueError: `never` names every class.
    """
    return strongest(probability, factors(bias), allowed_classes(len(probability), never))[1]


def strongest(probability: np.ndarray, weights: np.ndarray, among: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns, per pixel, the largest product of `probability` (C, …) and `weights` (C,) from `factors`, float32, and
    the lowest class that has it, uint8. Only the classes `among` are compared."""
    value = np.full(probability.shape[1:], -1, np.float32)
    label = np.zeros(probability.shape[1:], np.uint8)
    for index in among:
        product = np.multiply(probability[index], weights[index], dtype=np.float32)
        np.copyto(label, np.uint8(index), where=product > value)
        np.maximum(value, product, out=value)
    return value, label


def factors(bias: Sequence[float]) -> np.ndarray:
    """Returns exp(bias) (C,) float32, the factor of each class's probability."""
    # NumPy's exp may round differently for arrays of different lengths; the same bias must always give the same factor
    return np.array([math.exp(value) for value in bias], np.float32)


def allowed_classes(classes: int, never: Sequence[int]) -> list[int]:
    """Returns the numbers of the classes that may be chosen.

    Raises:
        ValueError: `never` names every class.
    """
    allowed = [index for index in range(classes) if index not in never]
    if not allowed:
        raise ValueError(f"never names all {classes} classes; leave out at least one")
    return allowed
