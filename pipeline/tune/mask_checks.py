"""Predicted masks beside the true ones of the same held-out images: missed, invented, and off by a factor.

Only images whose masks clean believes are looked at. Pairs of masks of the same image differ far less than two samples
do, so that a dozen images show what is wrong.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.core.verdict import Level, Reason
from pipeline.masks.bootstrap import COMPARISONS, bootstrap
from pipeline.tune.findings import Findings

LARGE_SHARE = 0.1
"""From this share of the masks on, missed masks and false alarms want a look."""
FEWEST = 3
"""And from this number on."""
FACTOR, WORST_FACTOR = 1.5, 4.0
"""By which factor a mean area or a share of empty masks may be off before somebody should look, or not submit."""
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
    wrong = [one for masks in _by_class(findings) for one in (_area(findings, masks), _empties(findings, masks)) if one]
    return [*found, *wrong]


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
            f"tuned; the largest has {size.max():,} px.")  # fmt: skip
    yield Reason(level, kind, text, findings.pictures, findings.ids(findings.trusted[order]))


# --- off by a factor -------------------------------------------------------------------------------------------------


def _area(findings: Findings, masks: _Masks) -> Reason | None:
    """Says whether the mean area is off by a factor that is more than noise."""
    if not masks.true.any():
        return None
    counts = np.stack([masks.predicted, masks.true], axis=1).astype(np.float64)
    groups = findings.groups[np.isin(findings.counted, findings.trusted)]
    ratio = float(_log_ratio(counts.sum(0) / len(counts)))
    noise = float(bootstrap(counts / len(counts), _log_ratio, groups, COMPARISONS).std())
    factor = float(np.exp(abs(ratio)))
    if factor < FACTOR or abs(ratio) < ERRORS * noise:
        return None
    level: Level = "stop" if factor > WORST_FACTOR and masks.whole else "check"
    predicted, true = counts.mean(0)
    how = f"{factor:.1f} times too {'large' if ratio > 0 else 'small'}" if predicted else "all empty"
    text = (f"The predicted masks{masks.name} are {how}: in the same held-out images that clean kept their mean area "
            f"is {predicted:,.0f} px, tuned, and that of the true masks {true:,.0f} px.")  # fmt: skip
    return Reason(level, "masks off by a factor", text, findings.pictures, _furthest(findings, masks))


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
    text = (f"{100 * shares[0]:.0f} % of the predicted masks{masks.name} are empty, tuned, and {100 * shares[1]:.0f} % "
            "of the true ones of the same held-out images that clean kept.")  # fmt: skip
    one_sided = true != predicted
    return Reason(level, "masks off by a factor", text, findings.pictures, _furthest(findings, masks, one_sided))


def _furthest(findings: Findings, masks: _Masks, among: np.ndarray | None = None) -> list[str]:
    """The ids of the images whose area is furthest from the true one, of those `among` (n,) bool."""
    off = np.abs(masks.predicted - masks.true)
    order = np.argsort(-(off if among is None else off * among), kind="stable")
    number = SHOWN if among is None else min(SHOWN, int(among.sum()))
    return findings.ids(findings.trusted[order[:number]])
