"""Compares predicted masks with the true masks of the same held-out images: missed masks, false alarms, wrong areas.

Only images whose masks clean kept are used. Pairs of masks of the same image vary far less than two samples of images,
so a dozen images suffice to show a fault.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.core.verdict import Level, Reason
from pipeline.masks.bootstrap import COMPARISONS, bootstrap
from pipeline.tune.findings import Findings, named

LARGE_SHARE = 0.1
"""The share of masks above which missed masks and false alarms should be checked."""
FEWEST = 3
"""The smallest number of missed masks or false alarms that should be checked."""
FACTOR, WORST_FACTOR = 1.5, 4.0
"""The factors by which a mean area or a share of empty masks may be wrong before it should be checked, or must not be
submitted."""
CLASS_FACTOR = 2.0
"""The same for one class of class maps, larger because a mean IoU often rewards predicting too much of a rare class."""
MATERIAL, WORST_MATERIAL = 0.05, 0.25
"""The difference by which a share of empty masks must also be wrong, because a factor of a small share is little."""
LISTED = 60
"""The number of images that are listed with missed masks or false alarms."""
SHOWN = 12
"""The number of images that are listed with masks of wrong area."""
LEAST = 0.01
"""Pixels that are added to mean areas, because one of them may be 0."""
ERRORS = 2.0
"""The number of standard errors above which a difference is more than noise."""


@dataclass(frozen=True)
class _Masks:
    """The masks of one class, or of several together, in the trusted images."""

    name: str
    """The end of a phrase: ` of the class rock`, or nothing."""
    true: np.ndarray
    """Pixels of the true masks (n,)."""
    predicted: np.ndarray
    """Pixels of the predicted masks (n,)."""
    whole: bool
    """Whether these are the masks of all classes."""


def reasons(findings: Findings) -> list[Reason]:
    """Returns the reasons from the masks of the held-out images."""
    presence = [*_empty_or_not(findings)] if findings.run.competition.kind != "multiclass" else []
    empties = [reason for masks in _by_class(findings) if (reason := _empties(findings, masks))]
    return [*presence, *_areas(findings), *empties]


def _by_class(findings: Findings) -> Iterator[_Masks]:
    """Yields the masks of every class that counts; with several classes, first those of all classes together."""
    competition, rows = findings.run.competition, findings.trusted
    numbers = [number for number in competition.counted if competition.classes[number] in competition.foreground]
    true, predicted = findings.true[rows], findings.predicted[rows]
    if len(numbers) > 1 and competition.ignored is None:
        yield _Masks("", true[:, numbers].sum(1), predicted[:, numbers].sum(1), True)
    for number in numbers:
        name = f" of the class {competition.classes[number]}" if len(numbers) > 1 else ""
        yield _Masks(name, true[:, number], predicted[:, number], len(numbers) == 1)


# --- missed masks and false alarms -----------------------------------------------------------------------------------


def _empty_or_not(findings: Findings) -> Iterator[Reason]:
    rows = findings.trusted
    true, predicted = findings.true[rows], findings.predicted[rows]
    missed, invented = (true > 0) & (predicted == 0), (true == 0) & (predicted > 0)
    yield from _counted(findings, "missed masks", missed, true, int((true > 0).sum()),
                        "masks that are not empty", "predicted empty")  # fmt: skip
    yield from _counted(findings, "false alarms", invented, predicted, int((true == 0).sum()),
                        "empty masks", "predicted not empty")  # fmt: skip


def _counted(
    findings: Findings, kind: str, where: np.ndarray, area: np.ndarray, among: int, masks: str, fault: str
) -> Iterator[Reason]:
    number = int(where.sum())
    if not number:
        return
    share = number / among
    level: Level = "check" if share > LARGE_SHARE and number >= FEWEST else "note"
    size = np.where(where, area, 0).max(1)
    order = np.argsort(-size, kind="stable")[: min(LISTED, int(where.any(1).sum()))]
    were = "is" if number == 1 else "are"
    text = (f"{number} of {among} {masks} ({100 * share:.0f} %) {were} {fault}, in held-out images that clean kept, "
            f"{findings.how}; the largest has {size.max():,} px.")  # fmt: skip
    yield Reason(level, kind, text, findings.pictures, findings.ids(findings.trusted[order]))


# --- wrong areas -----------------------------------------------------------------------------------------------------


def _areas(findings: Findings) -> list[Reason]:
    """Returns reasons for mean areas that are wrong by more than noise: of all masks together, and of single
    classes."""
    wrong = [off for masks in _by_class(findings) if (off := _off(findings, masks))]
    parts = [[off for off in wrong if off.masks.whole], [off for off in wrong if not off.masks.whole]]
    return [_area_reason(findings, part) for part in parts if part]


@dataclass(frozen=True)
class _Off:
    """Masks whose mean area is wrong."""

    masks: _Masks
    predicted: float
    """The mean area of the predicted masks in pixels."""
    true: float
    """The mean area of the true masks in pixels."""

    @property
    def factor(self) -> float:
        """The factor by which the area is too large or too small."""
        return float(np.exp(abs(_log_ratio(np.array([self.predicted, self.true])))))

    @property
    def words(self) -> str:
        """A phrase that describes the difference."""
        size = f"{self.factor:.1f} times too {'large' if self.predicted > self.true else 'small'}"
        how = size if self.predicted > self.true / 1000 else "nearly all empty" if self.predicted else "all empty"
        return f"{how}{self.masks.name} (mean area {self.predicted:,.0f} px, true masks {self.true:,.0f} px)"


def _off(findings: Findings, masks: _Masks) -> _Off | None:
    """Returns the masks if their mean area is wrong by more than noise."""
    if not masks.true.any():
        return None
    counts = np.stack([masks.predicted, masks.true], axis=1).astype(np.float64)
    groups = findings.groups[np.isin(findings.counted, findings.trusted)]
    off = _Off(masks, *map(float, counts.mean(0)))
    noise = float(bootstrap(counts / len(counts), _log_ratio, groups, COMPARISONS).std())
    least = CLASS_FACTOR if findings.run.competition.kind == "multiclass" and not masks.whole else FACTOR
    return off if off.factor >= least and np.log(off.factor) >= ERRORS * noise else None


def _area_reason(findings: Findings, wrong: list[_Off]) -> Reason:
    level: Level = "stop" if any(off.masks.whole and off.factor > WORST_FACTOR for off in wrong) else "check"
    phrases = named([off.words for off in wrong])
    text = f"The predicted masks, {findings.how}, are {phrases}, in the same held-out images"
    worst = max(wrong, key=lambda off: off.factor)
    images = _furthest(findings, worst.masks)
    return Reason(level, "masks off by a factor", f"{text} that clean kept.", findings.pictures, images)


def _log_ratio(total: np.ndarray) -> np.ndarray:
    """Returns the logarithm of predicted over true area (…), from mean pixels (…, 2)."""
    return np.log((total[..., 0] + LEAST) / (total[..., 1] + LEAST))


def _empties(findings: Findings, masks: _Masks) -> Reason | None:
    """Returns a reason if the share of empty masks is wrong by a factor and by more than noise."""
    if findings.run.competition.kind == "multiclass":
        return None
    true, predicted = masks.true == 0, masks.predicted == 0
    invented, missed = int((true & ~predicted).sum()), int((~true & predicted).sum())
    shares = np.array([predicted.mean(), true.mean()])
    sides = (shares + 0.5 / len(true)) / (1 + 1 / len(true))
    factor = max(float(max(side[0] / side[1], side[1] / side[0])) for side in (sides, 1 - sides))
    off = abs(shares[0] - shares[1])
    if factor < FACTOR or off < MATERIAL or abs(missed - invented) < ERRORS * np.sqrt(missed + invented):
        return None
    level: Level = "stop" if factor > WORST_FACTOR and off > WORST_MATERIAL and masks.whole else "check"
    text = (f"{100 * shares[0]:.0f} % of the predicted masks{masks.name} are empty, {findings.how}, compared with "
            f"{100 * shares[1]:.0f} % of the true masks of the same held-out images that clean kept.")  # fmt: skip
    one_sided = true != predicted
    return Reason(level, "masks off by a factor", text, findings.pictures, _furthest(findings, masks, one_sided))


def _furthest(findings: Findings, masks: _Masks, among: np.ndarray | None = None) -> list[str]:
    """Returns the ids of the images whose area differs most from the true one, among those marked in `among` (n,)."""
    off = np.abs(masks.predicted - masks.true)
    order = np.argsort(-(off if among is None else off * among), kind="stable")
    number = SHOWN if among is None else min(SHOWN, int(among.sum()))
    return findings.ids(findings.trusted[order[:number]])
