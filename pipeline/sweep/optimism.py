"""How much the winner's score flatters it, because it was chosen on the images that it is scored on.

Every trial is scored on the same units: held-out images, groups of images, or whole folds. Noise that a trial has on
them lifts it among its competitors, and its score with it. Choosing on some units and scoring on the others takes that
away. Of several folds each is left out in turn (nested selection); of one fold, groups are drawn with replacement and
the score is that of the groups which were not drawn: the bootstrap bias correction of Tsamardinos, Greasidou and
Borboudakis (2018).
"""

from dataclasses import dataclass

import numpy as np

DRAWS = 1000
BLOCK = 100
"""Draws at a time: of many images, all of them would take gigabytes."""
FEWEST_UNITS = 4
"""With fewer groups, drawing them says nothing."""


@dataclass(frozen=True)
class Optimism:
    """What choosing the best of several trials adds to its score."""

    winner: float
    """The best trial's score on all units."""
    elsewhere: float
    """The score on units that did not choose: of trials chosen on other folds, or on the groups that were drawn."""
    trials: int
    how: str
    """`folds`: each was left out in turn; `groups`: drawn with replacement."""

    @property
    def value(self) -> float:
        """How much higher the winner's score is; below 0 by chance alone."""
        return self.winner - self.elsewhere


def leave_folds_out(scores: np.ndarray, weights: np.ndarray, folds: np.ndarray) -> Optimism | None:
    """Returns the optimism of the best of T trials, chosen without each fold in turn; None of fewer than two folds.

    Args:
        scores: (T, U), higher is better: of each trial on each unit.
        weights: (U,), what a unit counts in the mean.
        folds: (U,), the fold of each unit.
    """
    names = np.unique(folds)
    if len(names) < 2:
        return None
    held_out = folds == names[:, None]  # (F, U)
    chosen = _means(scores, weights * ~held_out).argmax(axis=0)
    total = sum(float(scores[best] @ (weights * rows)) for best, rows in zip(chosen, held_out, strict=True))
    return Optimism(_best(scores, weights), total / float(weights.sum()), len(scores), "folds")


def leave_groups_out(
    scores: np.ndarray, weights: np.ndarray, groups: np.ndarray, draws: int = DRAWS, seed: int = 0
) -> Optimism | None:
    """Returns the optimism of the best of T trials, chosen on drawn groups and scored on the others; None of fewer than
    FEWEST_UNITS groups.

    Args:
        scores: (T, U), higher is better: of each trial on each unit.
        weights: (U,), what a unit counts in the mean.
        groups: (U,) names; units of one group are drawn together.
        draws: how often the groups are drawn.
        seed: of the draws.
    """
    names, group = np.unique(groups, return_inverse=True)
    if len(names) < FEWEST_UNITS:
        return None
    rng, chances, values = np.random.default_rng(seed), np.full(len(names), 1 / len(names)), []
    for start in range(0, draws, BLOCK):
        drawn = rng.multinomial(len(names), chances, min(BLOCK, draws - start))[:, group]
        left = weights * (drawn == 0)  # a group is left out of every third draw
        means = _means(scores, left)
        chosen = _means(scores, weights * drawn).argmax(axis=0)
        # against the mean over trials of the same groups: how hard these are cancels
        ahead = means[chosen, np.arange(len(drawn))] - means.mean(axis=0)
        values.append(ahead[left.any(axis=1)])
    elsewhere = float(_means(scores, weights[None]).mean() + np.concatenate(values).mean())
    return Optimism(_best(scores, weights), elsewhere, len(scores), "groups")


def _best(scores: np.ndarray, weights: np.ndarray) -> float:
    return float(_means(scores, weights[None]).max())


def _means(scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted means (T, D) of scores (T, U) by weights (D, U); 0 where all weights are 0."""
    return (scores @ weights.T) / np.maximum(weights.sum(axis=1), 1e-12)
