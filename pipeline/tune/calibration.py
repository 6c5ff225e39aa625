"""Calibrates the probabilities of each fold's network with two numbers per network, fitted to its held-out images.

Networks that stopped at different epochs have different confidence: one may predict 0.5 for a pixel and another 0.1. A
slope and an intercept of the logit (Platt 1999) bring them to a common scale. They minimise the log loss of pixels over
images *that have the class*, with the same weight for every image. Whether the class is present at all is decided
separately, from more than single pixels.

The fit of a fold is shrunk towards that of all folds together, the more the less certain it is over its groups
(empirical Bayes; DerSimonian & Laird 1986 for the variance between folds).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from pipeline.masks.ranking import LEVELS, Calibration, logits
from pipeline.tune.evidence import Evidence
from pipeline.tune.regression import logistic, sigmoid

RIDGE = 1e-3
"""The strength of the ridge penalty that pulls slopes to 1 and intercepts to 0; each image contributes one log loss."""
NARROWEST = 0.05
"""The smallest slope, so that a network without information, or with inverted predictions, is not inverted."""


@dataclass(frozen=True)
class Levels:
    """Histograms of one class over the 256 levels of probability, as shares of each image's pixels."""

    pixels: np.ndarray
    """Shares of all pixels (N, 256) float64."""
    inside: np.ndarray
    """Shares of the pixels inside the true mask (N, 256) float64."""

    @classmethod
    def of(cls, evidence: Evidence, index: int) -> "Levels":
        """Returns the histograms of class `index`, without ignored pixels."""
        pixels, inside = (_by_level(counts[:, index]) for counts in (evidence.predicted, evidence.intersection))
        total = np.maximum(pixels.sum(1, keepdims=True), 1)
        return cls(pixels / total, inside / total)


@dataclass(frozen=True)
class FoldFits:
    """Fits to the images of each of F folds, and to all images together."""

    names: list[str]
    own: np.ndarray
    """Slope and intercept of each fold (F, 2)."""
    errors: np.ndarray
    """The variances of slope and intercept (F, 2); infinite for a fold with one group."""
    groups: np.ndarray
    """The number of groups that have the class, per fold (F,)."""
    pooled: np.ndarray
    """Slope and intercept (2,) of all folds together."""

    @classmethod
    def of(cls, levels: Levels, present: np.ndarray, folds: np.ndarray, groups: np.ndarray) -> "FoldFits":
        """Returns the fits of the folds that have an image with the class; for the arguments see `calibrate`."""
        pooled = _fit(levels.pixels[present].sum(0), levels.inside[present].sum(0))
        names, fits, errors, counts = [], [], [], []
        for fold in np.unique(folds[present]):
            rows = present & (folds == fold)
            names.append(str(fold))
            fits.append(_fit(levels.pixels[rows].sum(0), levels.inside[rows].sum(0)))
            errors.append(_variance(levels.pixels[rows], levels.inside[rows], groups[rows], fits[-1]))
            counts.append(len(np.unique(groups[rows])))
        return cls(names, np.array(fits).reshape(-1, 2), np.array(errors).reshape(-1, 2), np.array(counts), pooled)

    def shrunk(self) -> np.ndarray:
        """Returns the fit of each fold, shrunk towards the pooled one, (F, 2)."""
        return _shrink(self.own, self.errors, self.groups, self.pooled) if len(self.own) > 1 else self.own


def calibrate(
    levels: Levels, present: np.ndarray, folds: np.ndarray, groups: np.ndarray
) -> tuple[Calibration, dict[str, Calibration]]:
    """Returns the calibration of all folds together, and that of each fold.

    Args:
        levels: the histograms of n images.
        present: whether each image has the class (n,); the others are not used.
        folds: the fold whose network predicted each image (n,).
        groups: the group of each image (n,).
    """
    fits = FoldFits.of(levels, present, folds, groups)
    pooled = _calibration(fits.pooled)
    known = {fold: _calibration(fit) for fold, fit in zip(fits.names, fits.shrunk(), strict=True)}
    return pooled, {str(fold): known.get(str(fold), pooled) for fold in np.unique(folds)}


def by_fold(evidence: Evidence, classes: Sequence[str]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Returns, by class and fold: slope and intercept of the fold's network, the number of images that they are based
    on, and the slope before shrinkage with its standard error. Classes that no image has are left out."""
    folds, groups = (evidence.images[name].to_numpy() for name in ("fold", "group"))
    by_class: dict[str, dict[str, dict[str, float | None]]] = {}
    for index, name in enumerate(classes):
        present = evidence.true[:, index] > 0
        if not present.any():
            continue
        fits = FoldFits.of(Levels.of(evidence, index), present, folds, groups)
        by_class[name] = {
            fold: asdict(_calibration(fit))
            | {"images": int(present[folds.astype(str) == fold].sum()), "own_slope": float(own[0])}
            | {"standard_error": float(error[0] ** 0.5) if np.isfinite(error[0]) else None}
            for fold, fit, own, error in zip(fits.names, fits.shrunk(), fits.own, fits.errors, strict=True)
        }
    return by_class


def _calibration(parameters: np.ndarray) -> Calibration:
    return Calibration(max(NARROWEST, float(parameters[0])), float(parameters[1]))


def _by_level(at_least: np.ndarray) -> np.ndarray:
    """Returns the pixels of each level (N, 256) float64, from counts of the pixels at this level or higher."""
    counts = at_least.astype(np.float64)
    counts[:, :-1] -= at_least[:, 1:]
    return counts


def _fit(pixels: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Returns the slope and intercept (2,) with the smallest log loss over pixels (256,)."""
    return logistic(_design(), inside, pixels, np.full(2, RIDGE), np.array([1.0, 0.0]))


def _design() -> np.ndarray:
    """Returns the design matrix (256, 2): the logit of each level, and 1."""
    return np.stack([logits(), np.ones(LEVELS)], axis=1)


def _variance(pixels: np.ndarray, inside: np.ndarray, groups: np.ndarray, fit: np.ndarray) -> np.ndarray:
    """Returns the variances (2,) of a fit for random groups (the cluster-robust sandwich estimator); infinite for one
    group."""
    _, group = np.unique(groups.astype(str), return_inverse=True)
    count = group.max() + 1
    if count < 2:
        return np.full(2, np.inf)
    design = _design()
    p = sigmoid(design @ fit)
    scores = np.zeros((count, 2))
    np.add.at(scores, group, (pixels * p - inside) @ design)
    bread = np.linalg.inv((design * (pixels.sum(0) * p * (1 - p))[:, None]).T @ design + RIDGE * np.eye(2))
    return np.diag(bread @ (scores.T @ scores) @ bread) * count / (count - 1)


def _shrink(own: np.ndarray, errors: np.ndarray, counts: np.ndarray, pooled: np.ndarray) -> np.ndarray:
    """Returns the fits (F, 2) shrunk towards the pooled one by the share of their variance that is error.

    A fold with one group is assumed to be as uncertain as a single group of the most uncertain other fold. `counts`
    holds the number of groups per fold (F,).
    """
    known = np.isfinite(errors).all(1)
    if not known.any():
        return np.tile(pooled, (len(own), 1))
    between = np.maximum(own.var(0, ddof=1) - errors[known].mean(0), 0)
    of_one = (errors[known] * counts[known, None]).max(0)
    errors = np.where(known[:, None], errors, of_one)
    share = between / np.maximum(between + errors, 1e-12)
    return pooled + share * (own - pooled)
