"""How runs of submitted masks follow each other, beside those of training masks: few show a wrong order, size or base.

In a mask of one piece, each run begins about one line after the run before it: one column later if pixels are numbered
down the columns, one row later if along the rows. Masks written in the other order, or at another size, keep the
distance of the lines they were written with. A mask that touches the border has runs that end with
a line; shifted by one pixel, they reach one pixel into the next.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from pipeline.core.verdict import Level, Reason, gravest_first
from pipeline.encode.submission import Expected
from pipeline.masks import rle

LEAST_RUNS = 4
"""Runs of a mask, below which it says nothing."""
AT_BORDER = 2
"""Runs at the border, from which on a mask says something of the base."""
NEAR = 0.06
"""How far, as a share, the distance of runs may be from the length of a line."""
EVEN = 0.6
"""The share of runs at the usual distance, from which on that may be the length of a line of another size."""
PLAIN = 0.7
"""The share of training masks that must show their order for submitted ones to be judged."""
CHANCE, DOUBT = 0.001, 0.05
"""The chance of as many masks of another order among right ones, below which it is a fault, or a doubt."""
FEW = 3
"""Fewer wrong masks than half of all are a doubt from this many on,"""
CHANCE_OF_FEW = 0.01
"""where chance gives as many less often than this,"""
SHARE_OF_FEW, TIMES_OF_FEW = 0.1, 3
"""and where they are this share of the masks, and this many times the share of training masks that look so, too."""
EXAMPLES = 3
"""Images that a message names."""
MOST = 300
"""Masks of either set that are looked at."""
ALL, SOME = "Masks", "Some masks"
WORDS = {"column": "down the columns", "row": "along the rows"}
OTHER = {"column": "row", "row": "column"}


@dataclass
class Lines:
    """The distances of runs, of the masks that were taken."""

    order: str
    """How the competition numbers pixels: `column` or `row`."""
    distances: list[tuple[float, int, int]] = field(default_factory=list)
    """Of each mask: the usual distance of runs, the length of a line of its image, and that of the other order's."""
    names: list[str] = field(default_factory=list)
    """The image of each of them."""
    even: list[bool] = field(default_factory=list)
    """Whether most of its runs are at that distance, which they are not in masks of many pieces."""
    sharp: int = 0
    """Masks whose runs end or begin with a line."""
    leaking: int = 0
    """Masks whose runs reach by one pixel into another line."""
    leaking_names: list[str] = field(default_factory=list)
    """The images of those."""

    def add(self, mask: np.ndarray, name: str = "") -> None:
        """Takes a mask (h, w) of 0 and 1, and the name of its image, as long as there are few."""
        if len(self.distances) >= MOST:
            return
        lines = mask.T if self.order == "column" else mask
        pixels = np.concatenate([[0], lines.ravel(), [0]])
        starts, ends = (np.flatnonzero(change[1:] > change[:-1]) for change in (pixels, 1 - pixels))
        line = lines.shape[1]
        exact = np.count_nonzero(starts % line == 0) + np.count_nonzero(ends % line == 0)
        long = ends - starts > 1
        leaks = max(np.count_nonzero(long & (ends % line == 1)), np.count_nonzero(long & (starts % line == line - 1)))
        if max(exact, leaks) >= AT_BORDER:
            self.leaking += int(leaks > exact)
            self.sharp += int(leaks <= exact)
            self.leaking_names += [name] if leaks > exact else []
        if len(starts) >= LEAST_RUNS:
            distances = np.diff(starts)
            usual = float(np.median(distances))
            self.distances.append((usual, line, lines.shape[0]))
            self.names.append(name)
            self.even.append(bool(np.mean([_near(one, usual) for one in distances]) >= EVEN))

    @property
    def own(self) -> int:
        """How many masks have runs that follow each other by lines of their image."""
        return sum(_near(distance, line) for distance, line, _ in self.distances)

    @property
    def other(self) -> list[str]:
        """The images of those whose runs follow each other by lines of the other order, and not of their own."""
        measured = zip(self.distances, self.names, strict=True)
        return [name for (one, line, other), name in measured if _near(one, other) and not _near(one, line)]

    @property
    def tell_order(self) -> int:
        """How many are of images on which both orders differ."""
        return sum(not _near(line, other) for _, line, other in self.distances)


def of_training(want: Expected) -> Lines:
    """Returns the lines of the true masks, of the training rows of the table of images."""
    found = Lines(want.convention.order)
    for mask in _true_masks(want):
        found.add(mask)
        if len(found.distances) >= MOST:
            break
    return found


def find_reasons(test: Lines, training: Lines) -> list[Reason]:
    """Returns that masks are written in the other order, at another size or with another first pixel than the training
    masks, and how sure that is; nothing where the training masks do not show it themselves, or where it may be chance.
    """
    return (_order_or_size(test, training) if _plain(training) else []) or _base(test, training)


def certainty(test: Lines, training: Lines) -> str:
    """Returns as a sentence what the masks of a submission say of its order, size and base."""
    count, edges = len(test.distances), test.sharp + test.leaking
    base = "base cannot be told: no mask touches the border where runs end"
    if edges:
        base = (
            f"base: the runs of {test.sharp} of {edges} masks at the border end with a line of their image, as they do "
            "where the base is right"
        )
    if not count or not _plain(training):
        why = "no submitted mask has enough runs" if not count else "training masks are not of single pieces"
        return f"Order and size cannot be told from the masks: {why}; {base}."
    fits = (
        f"the runs of {test.own} of {count} masks fit, as they follow each other by a line of their image, and those "
        f"of {training.own} of {len(training.distances)} training masks"
    )
    if not test.tell_order:
        return f"Size: {fits}; in square images runs do not show their order; {base}."
    return f"Order and size: {fits}; {base}."


def _plain(training: Lines) -> bool:
    return bool(training.distances) and training.own >= PLAIN * len(training.distances)


def _order_or_size(test: Lines, training: Lines) -> list[Reason]:
    count, known = len(test.distances), len(training.distances)
    found = []
    if judged := _more_than_chance(test.other, count, len(training.other), known):
        text = (
            f"{judged.masks} look transposed: their runs follow each other as if pixels were numbered "
            f"{WORDS[OTHER[test.order]]} and not {WORDS[test.order]} ({judged.sure})."
        )
        found.append(Reason(judged.level, "transposed masks", text, judged.remedy("rle.order")))
    strange = known - training.own - len(training.other)
    length, names = _of_one_length(test)
    if judged := _more_than_chance(names, count, strange, known):
        text = (
            f"{judged.masks} look as if written at another size: their runs follow each other as in images of "
            f"{length:.0f} {'rows' if test.order == 'column' else 'columns'} ({judged.sure}); resize masks to their "
            "images' own size before they are encoded."
        )
        found.append(Reason(judged.level, "size of masks' images", text))
    return gravest_first(found)[:1]


def _base(test: Lines, training: Lines) -> list[Reason]:
    edges, known = test.sharp + test.leaking, training.sharp + training.leaking
    judged = _more_than_chance(test.leaking_names, edges, training.leaking, known) if known else None
    if not judged:
        return []
    text = (
        f"{judged.masks} look shifted by one pixel: at the border their runs go on by one pixel on the other side, as "
        f"where the first pixel has another number ({judged.sure}, of masks at the border)."
    )
    return [Reason(judged.level, "shifted masks", text, judged.remedy("rle.base"))]


@dataclass
class _Judged:
    """What so many wrong masks mean."""

    level: Level
    masks: str
    """The beginning of the sentence: all masks, or some."""
    sure: str

    def remedy(self, setting: str) -> str:
        """Returns where to correct it: a setting where it is all masks."""
        return f"{setting} in the competition's YAML" if self.masks == ALL else ""


def _more_than_chance(wrong: list[str], count: int, usual: int, known: int) -> _Judged | None:
    """How grave wrong masks, of these images, are among `count`, and how sure that is; None where it may be chance.

    Args:
        wrong: their images.
        count: the masks that were looked at.
        usual: how many of the training masks look so.
        known: the training masks that were looked at.
    """
    from scipy.special import bdtrc  # scipy.stats has the same, and takes half a second to import

    share, number = (usual + 1) / (known + 2), len(wrong)
    chance = float(bdtrc(number - 1, count, share)) if number else 1.0
    times = 10 ** int(np.log10(1 / max(chance, 1e-9)))
    sure = f"{number} of {count} masks, {usual} of {known} training masks; by chance less than once in {times:,}"
    if number > count / 2:
        level: Level = "stop" if chance < CHANCE else "check"
        return _Judged(level, ALL, sure) if chance < DOUBT else None
    if number < max(FEW, SHARE_OF_FEW * count, TIMES_OF_FEW * share * count) or chance >= CHANCE_OF_FEW:
        return None
    shown = f"those of {', '.join(wrong[:EXAMPLES])}{', …' if number > EXAMPLES else ''}; "
    return _Judged("check", SOME, shown + sure)


def _true_masks(want: Expected) -> Iterator[np.ndarray]:
    rows = want.images[want.images["subset"] == "train"]
    for column in [name for name in rows.columns if name.startswith("rle_")]:
        for text, height, width in zip(rows[column], rows["height"], rows["width"], strict=True):
            if text:
                yield rle.decode(text, (int(height), int(width)))


def _near(distance: float, line: float) -> bool:
    return abs(distance - line) <= max(2.0, NEAR * line)


def _of_one_length(test: Lines) -> tuple[float, list[str]]:
    """The distance of runs, in pixels, that is that of neither order's lines and that most such masks have, and their
    images."""
    measured = zip(test.distances, test.names, test.even, strict=True)
    strange = [
        (one, name)
        for (one, line, other), name, even in measured
        if even and not _near(one, line) and not _near(one, other)
    ]
    usual = float(np.median([one for one, _ in strange])) if strange else 0.0
    return usual, [name for one, name in strange if _near(one, usual)] if usual >= 2 * LEAST_RUNS else []
