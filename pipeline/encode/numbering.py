"""How runs of submitted masks follow each other, beside those of training masks: few show a wrong order, size or base.

In a mask of one piece each run begins about one line after the run before it: a column further where pixels are
numbered down the columns, a row further where along the rows. Masks that were written in the other order, or at another
size, keep the distance of the lines that they were written with. A mask that touches the border has runs that end with
a line; shifted by one pixel, they reach one pixel into the next.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from pipeline.core.verdict import Level, Reason
from pipeline.encode.submission import Expected
from pipeline.masks import rle

LEAST_RUNS = 4
"""Runs of a mask, below which it says nothing."""
AT_BORDER = 2
"""Runs at the border, from which on a mask says something of the base."""
NEAR = 0.06
"""How far, as a share, the distance of runs may be from the length of a line."""
PLAIN = 0.7
"""The share of training masks that must show their order for submitted ones to be judged."""
CHANCE, DOUBT = 0.001, 0.05
"""The chance of as many masks of another order among right ones, below which it is a fault, or a doubt."""
MOST = 300
"""Masks of either set that are looked at."""
WORDS = {"column": "down the columns", "row": "along the rows"}
OTHER = {"column": "row", "row": "column"}


@dataclass
class Lines:
    """The distances of runs, of the masks that were taken."""

    order: str
    """How the competition numbers pixels: `column` or `row`."""
    distances: list[tuple[float, int, int]] = field(default_factory=list)
    """Of each mask: the usual distance of runs, the length of a line of its image, and that of the other order's."""

    sharp: int = 0
    """Masks whose runs end or begin with a line."""
    leaking: int = 0
    """Masks whose runs reach by one pixel into another line."""

    def add(self, mask: np.ndarray) -> None:
        """Takes a mask (h, w) of 0 and 1, as long as there are few."""
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
        if len(starts) >= LEAST_RUNS:
            self.distances.append((float(np.median(np.diff(starts))), line, lines.shape[0]))

    @property
    def own(self) -> int:
        """How many masks have runs that follow each other by lines of their image."""
        return sum(_near(distance, line) for distance, line, _ in self.distances)

    @property
    def other(self) -> int:
        """How many have runs that follow each other by lines of the other order, and not by lines of their own."""
        return sum(_near(distance, other) and not _near(distance, line) for distance, line, other in self.distances)

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
        base = f"base: {test.sharp} of {edges} masks at the border fit"
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
    if found := _more_than_chance(test.other, count, training.other, known):
        level, sure = found
        text = (
            "Masks look transposed: their runs follow each other as if pixels were numbered "
            f"{WORDS[OTHER[test.order]]} and not {WORDS[test.order]} ({sure})."
        )
        return [Reason(level, "transposed masks", text, "rle.order in the competition's YAML")]
    strange = known - training.own - training.other
    if found := _more_than_chance(_of_one_length(test), count, strange, known):
        level, sure = found
        length = np.median([distance for distance, _, _ in test.distances])
        text = (
            "Masks look as if written at another size: their runs follow each other as in images of "
            f"{length:.0f} {'rows' if test.order == 'column' else 'columns'} ({sure}); resize masks to their images' "
            "own size before they are encoded."
        )
        return [Reason(level, "size of masks' images", text)]
    return []


def _base(test: Lines, training: Lines) -> list[Reason]:
    edges, known = test.sharp + test.leaking, training.sharp + training.leaking
    found = _more_than_chance(test.leaking, edges, training.leaking, known) if known else None
    if not found:
        return []
    level, sure = found
    text = (
        "Masks look shifted by one pixel: at the border their runs go on by one pixel on the other side, as where the "
        f"first pixel has another number ({sure}, of masks at the border)."
    )
    return [Reason(level, "shifted masks", text, "rle.base in the competition's YAML")]


def _more_than_chance(wrong: int, count: int, usual: int, known: int) -> tuple[Level, str] | None:
    """How grave so many wrong masks are, and how sure that is; None where it may be chance."""
    from scipy.special import bdtrc  # scipy.stats has the same, and takes half a second to import

    chance = float(bdtrc(wrong - 1, count, (usual + 1) / (known + 2))) if wrong else 1.0
    if wrong <= count / 2 or chance >= DOUBT:
        return None
    times = 10 ** int(np.log10(1 / max(chance, 1e-9)))
    sure = f"{wrong} of {count} masks, {usual} of {known} training masks; by chance less than once in {times:,}"
    return "stop" if chance < CHANCE else "check", sure


def _true_masks(want: Expected) -> Iterator[np.ndarray]:
    rows = want.images[want.images["subset"] == "train"]
    for column in [name for name in rows.columns if name.startswith("rle_")]:
        for text, height, width in zip(rows[column], rows["height"], rows["width"], strict=True):
            if text:
                yield rle.decode(text, (int(height), int(width)))


def _near(distance: float, line: float) -> bool:
    return abs(distance - line) <= max(2.0, NEAR * line)


def _of_one_length(test: Lines) -> int:
    """How many masks have runs at the same distance, which is that of neither order's lines."""
    strange = [one for one, line, other in test.distances if not _near(one, line) and not _near(one, other)]
    usual = float(np.median(strange)) if strange else 0.0
    return sum(_near(one, usual) for one in strange) if usual >= 2 * LEAST_RUNS else 0
