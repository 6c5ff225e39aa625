"""Predicted masks beside the true ones of the same held-out images: missed, invented, and off by a factor.

Only images whose masks clean believes are looked at. Pairs of masks of the same image differ far less than two samples
do, so that a dozen images show what is wrong.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.core.verdict import Level, Reason
from pipeline.masks.bootstrap import COMPARISONS, bootstrap
from pipeline.tune.findings import Findings, named

LARGE_SHARE = 0.1
"""From this share of the masks on, missed masks and false alarms want a look."""
FEWEST = 3
"""And from this number on."""
FACTOR, WORST_FACTOR = 1.5, 4.0
"""By which factor a mean area or a share of empty masks may be off before somebody should look, or not submit."""
CLASS_FACTOR = 2.0
"""The same of one class of a class map: what a mean IoU rewards most is often more of a rare class than there is."""
MATERIAL, WORST_MATERIAL = 0.05, 0.25
"""By how much a share of empty masks must be off besides: a factor of a small share is little."""
LISTED = 60
"""Images that are listed of missed masks and of false alarms."""
SHOWN = 12
"""Images that are listed of masks that are off by a factor."""
LEAST = 0.01
"""Pixels that are added to mean areas, one of which may be 0."""
ERRORS = 2.0
"""How many standard errors are more than noise."""


@dataclass(frozen=True)
class _Masks:
    """The masks of one class, or of several together, in the images that are believed."""

    name: str
    """How a sentence goes on: ` of the class rock`, or nothing."""
    true: np.ndarray
    """Pixels (n,)."""
    predicted: np.ndarray
    whole: bool
    """Whether these are all the masks that there are."""


def reasons(findings: Findings) -> list[Reason]:
    """Returns what the masks of the held-out images say."""
    found = [*_empty_or_not(findings)] if findings.run.competition.kind != "multiclass" else []
    empties = [reason for masks in _by_class(findings) if (reason := _empties(findings, masks))]
    return [*found, *_areas(findings), *empties]


def _by_class(findings: Findings) -> Iterator[_Masks]:
    """The masks of every class that counts; first those of all classes of a competition with several."""
    competition, rows = findings.run.competition, findings.trusted
    numbers = [number for number in competition.counted if competition.classes[number] in competition.foreground]
    true, predicted = findings.true[rows], findings.predicted[rows]
    if len(numbers) > 1 and competition.ignored is None:
        yield _Masks("", true[:, numbers].sum(1), predicted[:, numbers].sum(1), True)
    for number in numbers:
        name = f" of the class {competition.classes[number]}" if len(numbers) > 1 else ""
        yield _Masks(name, true[:, number], predicted[:, number], len(numbers) == 1)


# --- missed and invented ---------------------------------------------------------------------------------------------


def _empty_or_not(findings: Findings) -> Iterator[Reason]:
    rows = findings.trusted
    true, predicted = findings.true[rows], findings.predicted[rows]
    missed, invented = (true > 0) & (predicted == 0), (true == 0) & (predicted > 0)
    yield from _counted(findings, "missed masks", missed, true, int((true > 0).sum()),
                        "masks that are not empty", "predicted empty")  # fmt: skip
    yield from _counted(findings, "false alarms", invented, predicted, int((true == 0).sum()),
                        "empty masks", "predicted not empty")  # fmt: skip


def _counted(
    findings: Findings, kind: str, where: np.ndarray, area: np.ndarray, among: int, of_what: str, what: str
) -> Iterator[Reason]:
    number = int(where.sum())
    if not number:
        return
    share = number / among
    level: Level = "check" if share > LARGE_SHARE and number >= FEWEST else "note"
    size = np.where(where, area, 0).max(1)
    order = np.argsort(-size, kind="stable")[: min(LISTED, int(where.any(1).sum()))]
    were = "is" if number == 1 else "are"
    text = (f"{number} of {among} {of_what} ({100 * share:.0f} %) {were} {what}, in held-out images that clean kept, "
            f"{findings.how}; the largest has {size.max():,} px.")  # fmt: skip
    yield Reason(level, kind, text, findings.pictures, findings.ids(findings.trusted[order]))


# --- off by a factor -------------------------------------------------------------------------------------------------


def _areas(findings: Findings) -> list[Reason]:
    """Says which mean areas are off by a factor that is more than noise: all masks at once, and one by one the classes
    of several."""
    found = [off for masks in _by_class(findings) if (off := _off(findings, masks))]
    together = [[one for one in found if one.masks.whole], [one for one in found if not one.masks.whole]]
    return [_area_reason(findings, some) for some in together if some]


@dataclass(frozen=True)
class _Off:
    """Masks whose mean area is off."""

    masks: _Masks
    predicted: float
    """Pixels, on average."""
    true: float

    @property
    def factor(self) -> float:
        """How many times too large or too small."""
        return float(np.exp(abs(_log_ratio(np.array([self.predicted, self.true])))))

    @property
    def words(self) -> str:
        """As a sentence holds it."""
        size = f"{self.factor:.1f} times too {'large' if self.predicted > self.true else 'small'}"
        how = size if self.predicted > self.true / 1000 else "nearly all empty" if self.predicted else "all empty"
        return f"{how}{self.masks.name} (mean area {self.predicted:,.0f} px, true masks {self.true:,.0f} px)"


def _off(findings: Findings, masks: _Masks) -> _Off | None:
    """The masks, if their mean area is off by a factor that is more than noise."""
    if not masks.true.any():
        return None
    counts = np.stack([masks.predicted, masks.true], axis=1).astype(np.float64)
    groups = findings.groups[np.isin(findings.counted, findings.trusted)]
    off = _Off(masks, *map(float, counts.mean(0)))
    noise = float(bootstrap(counts / len(counts), _log_ratio, groups, COMPARISONS).std())
    least = CLASS_FACTOR if findings.run.competition.kind == "multiclass" and not masks.whole else FACTOR
    return off if off.factor >= least and np.log(off.factor) >= ERRORS * noise else None


def _area_reason(findings: Findings, some: list[_Off]) -> Reason:
    level: Level = "stop" if any(one.masks.whole and one.factor > WORST_FACTOR for one in some) else "check"
    text = f"The predicted masks, {findings.how}, are {named([one.words for one in some])}, in the same held-out images"
    worst = max(some, key=lambda one: one.factor)
    images = _furthest(findings, worst.masks)
    return Reason(level, "masks off by a factor", f"{text} that clean kept.", findings.pictures, images)


def _log_ratio(total: np.ndarray) -> np.ndarray:
    """The logarithm of the predicted over the true area (…), from mean pixels (…, 2)."""
    return np.log((total[..., 0] + LEAST) / (total[..., 1] + LEAST))


def _empties(findings: Findings, masks: _Masks) -> Reason | None:
    """Says whether the share of empty masks is off by a factor that is more than noise, on either side."""
    if findings.run.competition.kind == "multiclass":
        return None
    true, predicted = masks.true == 0, masks.predicted == 0
    invented, missed = int((true & ~predicted).sum()), int((~true & predicted).sum())
    shares = np.array([predicted.mean(), true.mean()])
    sides = (shares + 0.5 / len(true)) / (1 + 1 / len(true))
    factor = max(float(max(one[0] / one[1], one[1] / one[0])) for one in (sides, 1 - sides))
    off = abs(shares[0] - shares[1])
    if factor < FACTOR or off < MATERIAL or abs(missed - invented) < ERRORS * np.sqrt(missed + invented):
        return None
    level: Level = "stop" if factor > WORST_FACTOR and off > WORST_MATERIAL and masks.whole else "check"
    text = (f"{100 * shares[0]:.0f} % of the predicted masks{masks.name} are empty, {findings.how}, and "
            f"{100 * shares[1]:.0f} % of the true ones of the same held-out images that clean kept.")  # fmt: skip
    one_sided = true != predicted
    return Reason(level, "masks off by a factor", text, findings.pictures, _furthest(findings, masks, one_sided))


def _furthest(findings: Findings, masks: _Masks, among: np.ndarray | None = None) -> list[str]:
    """The ids of the images whose area is furthest from the true one, of those `among` (n,) bool."""
    off = np.abs(masks.predicted - masks.true)
    order = np.argsort(-(off if among is None else off * among), kind="stable")
    number = SHOWN if among is None else min(SHOWN, int(among.sum()))
    return findings.ids(findings.trusted[order[:number]])
