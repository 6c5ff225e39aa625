"""Finds groups and folds whose held-out images score far below the others, among images whose masks clean kept.

Among many groups, some always score low by chance. A group is named only if its mean is below that of the others by
more than noise (corrected for the number of comparisons), by an amount that matters, and outside the spread of the
groups. A fold is compared without its weak groups, and each group counts as one image.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.core.verdict import Reason
from pipeline.tune.findings import Findings, named

FEWEST = 5
"""The smallest number of images of a group."""
MATERIAL = 0.1
"""The difference that matters, for a score from 0 to 1; for an error, a quarter of the typical value."""
CHANCE = 0.01
"""The probability of naming a group, or a fold, if none is weak."""
SPREADS = 2.5
"""A weak group is this many robust standard deviations of the groups' means below their median."""
SHOWN = 12
"""The number of images that are listed."""


@dataclass(frozen=True)
class _Weak:
    """A weak group or fold, with the positions of its images."""

    name: str
    positions: np.ndarray
    score: float
    others: float


def reasons(findings: Findings) -> list[Reason]:
    """Returns the weak groups and folds, the weakest first."""
    positions = findings.trusted
    positions = positions[np.isfinite(findings.scores[positions])]  # without images of weight 0
    if findings.run.competition.kind == "multiclass":
        positions = positions[findings.true[positions].sum(1) > 0]  # without completely ignored images
    groups = _not_whole_folds(findings, _weak_groups(findings, positions))
    inside = np.concatenate([np.zeros(0, np.int64), *(group.positions for group in groups)])
    folds = _weak_folds(findings, positions[~np.isin(positions, inside)])
    return [*_reason(findings, "group", groups), *_reason(findings, "fold", folds)]


def _reason(findings: Findings, kind: str, weak: list[_Weak]) -> list[Reason]:
    if not weak:
        return []
    names = named([f"{part.name} ({part.score:.2f}, {len(part.positions)} images)" for part in weak])
    subject = f"{kind.capitalize()} {names} scores" if len(weak) == 1 else f"{kind.capitalize()}s {names} score"
    text = f"{subject} far worse than the other held-out images that clean kept ({weak[0].others:.2f}), {findings.how}."
    positions = np.concatenate([part.positions for part in weak])
    values = findings.metric.sign * findings.scores[positions]
    worst = positions[np.argsort(values, kind="stable")][:SHOWN]
    return [Reason("check", f"weak {kind}", text, findings.pictures, findings.ids(worst))]


def _material(findings: Findings, typical: float) -> float:
    return MATERIAL if findings.metric.higher_is_better else MATERIAL * 2.5 * abs(typical)


def _weak_groups(findings: Findings, positions: np.ndarray) -> list[_Weak]:
    """Returns the weak groups among those with enough images."""
    from scipy.special import stdtr

    names = findings.held.images["group"].astype(str).to_numpy()[positions]
    values = findings.metric.sign * findings.scores[positions]
    members = [np.flatnonzero(names == name) for name in np.unique(names)]
    members = [of_group for of_group in members if len(of_group) >= FEWEST and len(values) - len(of_group) >= FEWEST]
    if len(members) < 2:
        return []
    means = np.array([values[of_group].mean() for of_group in members])
    least = values.std() / 2  # few images may have equal scores by chance
    errors = np.array([max(values[of_group].std(ddof=1), least) / len(of_group) ** 0.5 for of_group in members])
    median = float(np.median(means))
    spread = max(1.4826 * float(np.median(np.abs(means - median))), float(np.median(errors)), 1e-9)
    weak = []
    for of_group, mean, error in zip(members, means, errors, strict=True):
        rest = float(np.delete(values, of_group).mean())
        chance = stdtr(len(of_group) - 1, (mean - rest) / max(error, 1e-9)) * len(members)
        if rest - mean > _material(findings, rest) and chance < CHANCE and median - mean > SPREADS * spread:
            sign = findings.metric.sign
            weak.append(_Weak(names[of_group[0]], positions[of_group], sign * mean, sign * rest))
    return sorted(weak, key=lambda group: findings.metric.sign * group.score)


def _not_whole_folds(findings: Findings, weak: list[_Weak]) -> list[_Weak]:
    """Returns the weak groups without those of folds in which most groups are weak, because there the fold is weak."""
    images = findings.held.images.iloc[findings.trusted]
    groups = images.groupby("fold")["group"].nunique()
    folds = [int(findings.held.images["fold"].iloc[group.positions[0]]) for group in weak]
    whole = {fold for fold in folds if groups[fold] > 1 and 2 * folds.count(fold) > groups[fold]}
    return [group for group, fold in zip(weak, folds, strict=True) if fold not in whole]


def _weak_folds(findings: Findings, positions: np.ndarray) -> list[_Weak]:
    """Returns the folds whose groups score below those of the other folds."""
    from scipy.special import stdtr

    images = findings.held.images.iloc[positions]
    names, folds = images["group"].astype(str).to_numpy(), images["fold"].to_numpy()
    values = findings.metric.sign * findings.scores[positions]
    pairs = np.array([f"{fold} {name}" for fold, name in zip(folds, names, strict=True)])
    _, first, number = np.unique(pairs, return_index=True, return_inverse=True)
    means, fold_of = np.bincount(number, values) / np.bincount(number), folds[first]
    different, weak = np.unique(fold_of), []
    for fold in different:
        mine, rest = means[fold_of == fold], means[fold_of != fold]
        freedom = len(means) - 2
        if len(different) < 2 or min(len(mine), len(rest)) < 2:
            continue
        pooled = (((mine - mine.mean()) ** 2).sum() + ((rest - rest.mean()) ** 2).sum()) / freedom
        error = max((pooled * (1 / len(mine) + 1 / len(rest))) ** 0.5, 1e-9)
        chance = stdtr(freedom, (mine.mean() - rest.mean()) / error) * len(different)
        if rest.mean() - mine.mean() > _material(findings, rest.mean()) and chance < CHANCE:
            in_fold, sign = positions[folds == fold], findings.metric.sign
            weak.append(_Weak(str(fold), in_fold, sign * mine.mean(), sign * rest.mean()))
    return sorted(weak, key=lambda fold: findings.metric.sign * fold.score)
