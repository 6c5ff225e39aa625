"""What the probabilities of each fold's network mean: two numbers a network, fitted to its held-out images.

Networks that stopped at different epochs are differently sure of themselves: where one says 0.5, another says 0.1 of
the same pixel. A slope and an intercept of the logit (Platt 1999) take them to one scale. They are fitted to the log
loss of pixels, every image with the same weight, of images *that have the class*: whether the class is there at all is
decided apart, by more than single pixels.

A fold's own fit is drawn towards that of all folds together by as much as its groups leave it uncertain (empirical
Bayes; DerSimonian & Laird 1986 for the variance between folds).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from pipeline.masks.ranking import LEVELS, Calibration, logits
from pipeline.tune.evidence import Evidence
from pipeline.tune.regression import logistic, sigmoid

RIDGE = 1e-3
"""How strongly a slope is held at 1 and an intercept at 0, beside losses of which every image has one."""
NARROWEST = 0.05
"""The least slope: a network that says nothing, or the opposite, is not turned round."""


@dataclass(frozen=True)
class Levels:
    """Images of one class as pixels per level, each divided by the image's pixels."""

    pixels: np.ndarray
    """(N, 256) float64."""
    inside: np.ndarray
    """Those of them inside the true mask (N, 256) float64."""

    @classmethod
    def of(cls, evidence: Evidence, index: int) -> "Levels":
        """Returns those of class `index`; ignored pixels are in neither."""
        pixels, inside = (_by_level(one[:, index]) for one in (evidence.predicted, evidence.intersection))
        total = np.maximum(pixels.sum(1, keepdims=True), 1)
        return cls(pixels / total, inside / total)


def calibrate(
    levels: Levels, present: np.ndarray, folds: np.ndarray, groups: np.ndarray
) -> tuple[Calibration, dict[str, Calibration]]:
    """Returns the calibration of all folds together, and that of each fold.

    Args:
        levels: of n images.
        present: whether each (n,) has the class; the others are not used.
        folds: whose network predicted each (n,).
        groups: what is drawn together (n,).
    """
    pooled = _fit(levels.pixels[present].sum(0), levels.inside[present].sum(0))
    names = [fold for fold in np.unique(folds[present])]
    fits, errors = [], []
    for fold in names:
        rows = present & (folds == fold)
        fits.append(_fit(levels.pixels[rows].sum(0), levels.inside[rows].sum(0)))
        errors.append(_variance(levels.pixels[rows], levels.inside[rows], groups[rows], fits[-1]))
    own, counts = np.array(fits).reshape(-1, 2), [len(np.unique(groups[present & (folds == fold)])) for fold in names]
    shrunk = _shrink(own, np.array(errors).reshape(-1, 2), np.array(counts), pooled) if len(own) > 1 else own
    known = {str(fold): _calibration(one) for fold, one in zip(names, shrunk, strict=True)}
    return _calibration(pooled), {str(fold): known.get(str(fold), _calibration(pooled)) for fold in np.unique(folds)}


def by_fold(evidence: Evidence, classes: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Returns, by class and fold, the slope and intercept of the fold's network, and how many images they rest on; of
    classes that some image has."""
    folds, groups = (evidence.images[name].to_numpy() for name in ("fold", "group"))
    found = {}
    for index, name in enumerate(classes):
        present = evidence.true[:, index] > 0
        if present.any():
            own = calibrate(Levels.of(evidence, index), present, folds, groups)[1]
            counts = {str(fold): int(present[folds == fold].sum()) for fold in np.unique(folds)}
            found[name] = {fold: asdict(one) | {"images": counts[fold]} for fold, one in own.items()}
    return found


def _calibration(parameters: np.ndarray) -> Calibration:
    return Calibration(max(NARROWEST, float(parameters[0])), float(parameters[1]))


def _by_level(at_least: np.ndarray) -> np.ndarray:
    """Pixels (N, 256) float64 of each level, from those of it and all higher ones."""
    counts = at_least.astype(np.float64)
    counts[:, :-1] -= at_least[:, 1:]
    return counts


def _fit(pixels: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The slope and intercept (2,) with the least log loss of pixels (256,)."""
    return logistic(_design(), inside, pixels, np.full(2, RIDGE), np.array([1.0, 0.0]))


def _design() -> np.ndarray:
    """What the calibrated logit of each level is a weighted sum of (256, 2): its own logit, and 1."""
    return np.stack([logits(), np.ones(LEVELS)], axis=1)


def _variance(pixels: np.ndarray, inside: np.ndarray, groups: np.ndarray, found: np.ndarray) -> np.ndarray:
    """The variances (2,) of a fit to images whose groups were drawn at random (the sandwich estimator, by groups);
    infinite for one group."""
    _, group = np.unique(groups.astype(str), return_inverse=True)
    count = group.max() + 1
    if count < 2:
        return np.full(2, np.inf)
    design = _design()
    p = sigmoid(design @ found)
    scores = np.zeros((count, 2))
    np.add.at(scores, group, (pixels * p - inside) @ design)
    bread = np.linalg.inv((design * (pixels.sum(0) * p * (1 - p))[:, None]).T @ design + RIDGE * np.eye(2))
    return np.diag(bread @ (scores.T @ scores) @ bread) * count / (count - 1)


def _shrink(own: np.ndarray, errors: np.ndarray, counts: np.ndarray, pooled: np.ndarray) -> np.ndarray:
    """Fits (F, 2) drawn towards the pooled one by their share of variance that is error; a fold of one group is taken
    to be as uncertain as one group of the most uncertain other fold. `counts`: of groups (F,)."""
    known = np.isfinite(errors).all(1)
    if not known.any():
        return np.tile(pooled, (len(own), 1))
    between = np.maximum(own.var(0, ddof=1) - errors[known].mean(0), 0)
    of_one = (errors[known] * counts[known, None]).max(0)
    errors = np.where(known[:, None], errors, of_one)
    share = between / np.maximum(between + errors, 1e-12)
    return pooled + share * (own - pooled)
