"""Do two samples of images differ by more than chance explains, if images of one group resemble each other?"""

import numpy as np

ERRORS = 4.0
"""The number of standard errors within which a difference may be chance."""


def shares_differ(test: np.ndarray, training: np.ndarray, groups: np.ndarray, chance: float) -> bool:
    """Returns whether two samples of booleans, (n,) and (m,), differ by more than chance explains.

    One yes and one no are added to each sample (Agresti and Caffo 2000), because a sample without spread would have a
    standard error of 0. Groups (m,) of similar training images reduce the effective number of images. The groups of
    test images are not known, so their number is reduced by the same factor.
    """
    effect = _design_effect(training.astype(np.float64), groups)
    counts = [max(len(sample) / effect, 1) for sample in (test, training)]
    means = [(sample.mean() * count + 1) / (count + 2) for sample, count in zip((test, training), counts, strict=True)]
    error = np.sqrt(sum(mean * (1 - mean) / (count + 2) for mean, count in zip(means, counts, strict=True)))
    return bool(abs(means[0] - means[1]) > _errors(chance, sum(counts)) * error)


def means_differ(test: np.ndarray, training: np.ndarray, groups: np.ndarray, chance: float) -> bool:
    """Returns whether the means of two samples, (n,) and (m,), differ by more than chance explains.

    Groups are treated as in shares_differ. The larger spread of the two samples is used for both, because one may have
    none, for instance if no test image has a rare class. The difference of the means is not part of the spread.
    """
    effect = _design_effect(training, groups)
    counts = [max(len(sample) / effect, 1) for sample in (test, training)]
    spread = max(float(sample.var(ddof=1)) for sample in (test, training) if len(sample) > 1)
    error = np.sqrt(spread * sum(1 / count for count in counts))
    return bool(abs(test.mean() - training.mean()) > _errors(chance, sum(counts)) * error)


def _errors(chance: float, count: float) -> float:
    """Returns the number of standard errors that a difference may have by chance in either direction (Student's t), if
    the error was estimated from `count` independent images."""
    from scipy.special import stdtrit

    return float(stdtrit(max(count - 2, 1), 1 - chance / 2))


def above_noise(gains: np.ndarray, training: np.ndarray, groups: np.ndarray) -> bool:
    """Returns whether the mean of `gains` (n,) is above 0 by more than ERRORS standard errors; groups as in
    shares_differ."""
    error = gains.std() * np.sqrt(_design_effect(training, groups) / len(gains))
    return bool(gains.mean() > ERRORS * error)


def _design_effect(values: np.ndarray, groups: np.ndarray) -> float:
    """Returns the design effect of cluster sampling, at least 1: the variance of the mean of values (n,) relative to
    that of independent values, estimated from the sums over groups."""
    centred = values - values.mean()
    _, group = np.unique(groups, return_inverse=True)
    total, count, among = (centred**2).sum(), len(values), group.max(initial=0) + 1
    if total <= 0 or among < 2:
        return 1.0
    sums = np.bincount(group, weights=centred)
    return max(1.0, float((sums**2).sum() / total * among / (among - 1) * (count - 1) / count))
