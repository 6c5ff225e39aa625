"""Decides whether a trial is stopped after some of its folds."""

import statistics

from optuna.pruners import BasePruner
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

FIRST_TRIALS = 4
"""The number of other trials that must have a score for the same number of folds before a trial is stopped."""


class MedianOfSameFolds(BasePruner):
    """Stops a trial if its score is worse than the median score of the other trials on the same folds.

    Optuna's MedianPruner uses a trial's best score so far. If the first fold is an easy one, that is always the score
    of this fold, and the later folds never stop a trial.
    """

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Returns whether the trial is stopped."""
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
