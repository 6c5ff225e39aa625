"""Groups and folds whose held-out images score far below the others, by images whose masks clean believes.

Many groups are looked at, and some are always low by chance: a group is named only where its mean lies below that of
the rest by more than its noise, all comparisons considered, by an amount that matters, and outside the spread of the
groups. A fold is compared without the weak groups in it, groups counting as one image each.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.core.verdict import Reason
from pipeline.tune.findings import Findings, named

FEWEST = 5
"""Images of a group, at least."""
MATERIAL = 0.1
"""How far below the others is far, of a score from 0 to 1; of an error, a quarter of the typical one."""
CHANCE = 0.01
"""The chance of naming a group, or a fold, where none is weak."""
SPREADS = 2.5
"""How many robust standard deviations of the groups' means below their median a weak group lies."""
SHOWN = 12
"""Images that are listed."""


@dataclass(frozen=True)
class _Weak:
    """A group or fold and its images' positions."""

    name: str
    positions: np.ndarray
    score: float
    others: float


def reasons(findings: Findings) -> list[Reason]:
    """Returns the weak groups and folds, the weakest first."""
    positions = findings.trusted
    positions = positions[np.isfinite(findings.scores[positions])]  # not those of no weight
    if findings.run.competition.kind == "multiclass":
        positions = positions[findings.true[positions].sum(1) > 0]  # not those that are ignored altogether
    groups = _not_whole_folds(findings, _weak_groups(findings, positions))
    inside = np.concatenate([np.zeros(0, np.int64), *(one.positions for one in groups)])
    folds = _weak_folds(findings, positions[~np.isin(positions, inside)])
    return [*_reason(findings, "group", groups), *_reason(findings, "fold", folds)]


def _reason(findings: Findings, what: str, weak: list[_Weak]) -> list[Reason]:
    if not weak:
        return []
    said = named([f"{one.name} ({one.score:.2f}, {len(one.positions)} images)" for one in weak])
    subject = f"{what.capitalize()} {said} scores" if len(weak) == 1 else f"{what.capitalize()}s {said} score"
    text = f"{subject} far worse than the other held-out images that clean kept ({weak[0].others:.2f}), {findings.how}."
    positions = np.concatenate([one.positions for one in weak])
    values = findings.metric.sign * findings.scores[positions]
    worst = positions[np.argsort(values, kind="stable")][:SHOWN]
    return [Reason("check", f"weak {what}", text, findings.pictures, findings.ids(worst))]


def _material(findings: Findings, typical: float) -> float:
    return MATERIAL if findings.metric.higher_is_better else MATERIAL * 2.5 * abs(typical)


def _weak_groups(findings: Findings, positions: np.ndarray) -> list[_Weak]:
    """The groups of enough images that are weak."""
    from scipy.special import stdtr

    names = findings.held.images["group"].astype(str).to_numpy()[positions]
    values = findings.metric.sign * findings.scores[positions]
    members = [np.flatnonzero(names == name) for name in np.unique(names)]
    members = [own for own in members if len(own) >= FEWEST and len(values) - len(own) >= FEWEST]
    if len(members) < 2:
        return []
    means = np.array([values[own].mean() for own in members])
    least = values.std() / 2  # a few images may agree by chance
    errors = np.array([max(values[own].std(ddof=1), least) / len(own) ** 0.5 for own in members])
    median = float(np.median(means))
    spread = max(1.4826 * float(np.median(np.abs(means - median))), float(np.median(errors)), 1e-9)
    found = []
    for own, mean, error in zip(members, means, errors, strict=True):
        rest = float(np.delete(values, own).mean())
        chance = stdtr(len(own) - 1, (mean - rest) / max(error, 1e-9)) * len(members)
        if rest - mean > _material(findings, rest) and chance < CHANCE and median - mean > SPREADS * spread:
            sign = findings.metric.sign
            found.append(_Weak(names[own[0]], positions[own], sign * mean, sign * rest))
    return sorted(found, key=lambda one: findings.metric.sign * one.score)


def _not_whole_folds(findings: Findings, weak: list[_Weak]) -> list[_Weak]:
    """The weak groups but for those of folds most of whose groups are weak: there the fold is what is weak."""
    images = findings.held.images.iloc[findings.trusted]
    groups = images.groupby("fold")["group"].nunique()
    folds = [int(findings.held.images["fold"].iloc[one.positions[0]]) for one in weak]
    whole = {fold for fold in folds if groups[fold] > 1 and 2 * folds.count(fold) > groups[fold]}
    return [one for one, fold in zip(weak, folds, strict=True) if fold not in whole]


def _weak_folds(findings: Findings, positions: np.ndarray) -> list[_Weak]:
    """The folds whose groups score below those of the other folds."""
    from scipy.special import stdtr

    images = findings.held.images.iloc[positions]
    names, folds = images["group"].astype(str).to_numpy(), images["fold"].to_numpy()
    values = findings.metric.sign * findings.scores[positions]
    pairs = np.array([f"{fold} {name}" for fold, name in zip(folds, names, strict=True)])
    _, first, number = np.unique(pairs, return_index=True, return_inverse=True)
    means, fold_of = np.bincount(number, values) / np.bincount(number), folds[first]
    different, found = np.unique(fold_of), []
    for fold in different:
        mine, rest = means[fold_of == fold], means[fold_of != fold]
        freedom = len(means) - 2
        if len(different) < 2 or min(len(mine), len(rest)) < 2:
            continue
        pooled = (((mine - mine.mean()) ** 2).sum() + ((rest - rest.mean()) ** 2).sum()) / freedom
        error = max((pooled * (1 / len(mine) + 1 / len(rest))) ** 0.5, 1e-9)
        chance = stdtr(freedom, (mine.mean() - rest.mean()) / error) * len(different)
        if rest.mean() - mine.mean() > _material(findings, rest.mean()) and chance < CHANCE:
            own, sign = positions[folds == fold], findings.metric.sign
            found.append(_Weak(str(fold), own, sign * mine.mean(), sign * rest.mean()))
    return sorted(found, key=lambda one: findings.metric.sign * one.score)
