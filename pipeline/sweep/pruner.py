"""Which trial is stopped after some of its folds."""

import statistics

from optuna.pruners import BasePruner
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

FIRST_TRIALS = 4
"""Trials that must have a score of as many folds before one is stopped."""


class MedianOfSameFolds(BasePruner):
    """Stops a trial whose score is worse than the median of the other trials' on the same folds.

    Optuna's MedianPruner compares with a trial's best score so far: where the first fold is an easy one, that is always
    the score of this fold, and the later ones stop nothing.
    """

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Returns whether the trial is to be stopped."""
        step = trial.last_step
        if step is None:
            return False
        others = [
            other.intermediate_values[step]
            for other in study.get_trials(deepcopy=False)
            if other.number != trial.number and step in other.intermediate_values
        ]
        if len(others) < FIRST_TRIALS:
            return False
        median, own = statistics.median(others), trial.intermediate_values[step]
        return own < median if study.direction == StudyDirection.MAXIMIZE else own > median
