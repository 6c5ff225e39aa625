"""How optimistic the winner's score is, because the winner was chosen on the images that it is scored on.

All trials are scored on the same units: held-out images, groups of images, or whole folds. The trial with the highest
score often has it partly by chance. Choosing on some units and scoring on the others removes that bias. With several
folds, each fold is left out once (nested selection). With one fold, groups are drawn with replacement, and the score is
computed on the groups that were not drawn: the bootstrap bias correction of Tsamardinos, Greasidou and Borboudakis
(2018).
"""

from dataclasses import dataclass

import numpy as np

DRAWS = 1000
BLOCK = 100
"""Draws at a time: with many images, all draws together would need gigabytes."""
FEWEST_UNITS = 4
"""With fewer groups, the bootstrap is not meaningful."""


@dataclass(frozen=True)
class Optimism:
    """The optimism of the best trial's score from choosing it among several trials."""

    winner: float
    """The best trial's score on all units."""
    elsewhere: float
    """The score on units that were not used for the choice: of trials chosen on other folds, or on the drawn groups."""
    trials: int
    how: str
    """`folds`: each fold was left out once; `groups`: groups were drawn with replacement."""

    @property
    def value(self) -> float:
        """How much higher the winner's score is; it is below 0 only by chance."""
        return self.winner - self.elsewhere


def leave_folds_out(scores: np.ndarray, weights: np.ndarray, folds: np.ndarray) -> Optimism | None:
    """Returns the optimism of the best of T trials, chosen without each fold once; None with fewer than two folds.

    Args:
        scores: (T, U), of each trial on each unit; higher is better.
        weights: (U,), the weight of each unit in the mean.
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
    """Returns the optimism of the best of T trials, chosen on drawn groups and scored on the others; None with fewer
    than FEWEST_UNITS groups.

    Args:
        scores: (T, U), of each trial on each unit; higher is better.
        weights: (U,), the weight of each unit in the mean.
        groups: (U,) names; the units of a group are drawn together.
        draws: the number of draws.
        seed: the seed of the draws.
    """
    names, group = np.unique(groups, return_inverse=True)
    if len(names) < FEWEST_UNITS:
        return None
    rng, chances, values = np.random.default_rng(seed), np.full(len(names), 1 / len(names)), []
    for start in range(0, draws, BLOCK):
        drawn = rng.multinomial(len(names), chances, min(BLOCK, draws - start))[:, group]
        left = weights * (drawn == 0)  # a group is left out of about every third draw
        means = _means(scores, left)
        chosen = _means(scores, weights * drawn).argmax(axis=0)
        # relative to the mean of all trials on the same groups, because some draws are easier than others
        ahead = means[chosen, np.arange(len(drawn))] - means.mean(axis=0)
        values.append(ahead[left.any(axis=1)])
    elsewhere = float(_means(scores, weights[None]).mean() + np.concatenate(values).mean())
    return Optimism(_best(scores, weights), elsewhere, len(scores), "groups")


def _best(scores: np.ndarray, weights: np.ndarray) -> float:
    return float(_means(scores, weights[None]).max())


def _means(scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted means (T, D) of scores (T, U) by weights (D, U); 0 where all weights are 0."""
    return (scores @ weights.T) / np.maximum(weights.sum(axis=1), 1e-12)
