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


@dataclass(frozen=True)
class FoldFits:
    """What was fitted to the images of each of F folds alone, and to all of them."""

    names: list[str]
    own: np.ndarray
    """Slope and intercept (F, 2)."""
    errors: np.ndarray
    """Their variances (F, 2); infinite of a fold of one group."""
    groups: np.ndarray
    """How many groups have the class (F,)."""
    pooled: np.ndarray
    """Slope and intercept (2,) of all folds together."""

    @classmethod
    def of(cls, levels: Levels, present: np.ndarray, folds: np.ndarray, groups: np.ndarray) -> "FoldFits":
        """Returns those of the folds that have an image with the class; the arguments are those of `calibrate`."""
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
        """Returns each fold's fit, drawn towards the pooled one (F, 2)."""
        return _shrink(self.own, self.errors, self.groups, self.pooled) if len(self.own) > 1 else self.own


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
    fits = FoldFits.of(levels, present, folds, groups)
    pooled = _calibration(fits.pooled)
    known = {fold: _calibration(one) for fold, one in zip(fits.names, fits.shrunk(), strict=True)}
    return pooled, {str(fold): known.get(str(fold), pooled) for fold in np.unique(folds)}


def by_fold(evidence: Evidence, classes: Sequence[str]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Returns, by class and fold, of classes that some image has: the slope and intercept of the fold's network, how
    many images they rest on, and the slope that these images alone give, with its standard error."""
    folds, groups = (evidence.images[name].to_numpy() for name in ("fold", "group"))
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for index, name in enumerate(classes):
        present = evidence.true[:, index] > 0
        if not present.any():
            continue
        fits = FoldFits.of(Levels.of(evidence, index), present, folds, groups)
        found[name] = {
            fold: asdict(_calibration(one))
            | {"images": int(present[folds.astype(str) == fold].sum()), "own_slope": float(own[0])}
            | {"standard_error": float(error[0] ** 0.5) if np.isfinite(error[0]) else None}
            for fold, one, own, error in zip(fits.names, fits.shrunk(), fits.own, fits.errors, strict=True)
        }
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
