"""Detects a wrong order, size or base of run lengths from the distances of runs, compared with training masks.

In a mask with a single region, each run begins about one line after the previous run: one column later if pixels are
numbered down the columns, one row later if they are numbered along the rows. Masks that were written in the other order
or at another size keep the distance of their original lines. A mask that touches the border has runs that end with a
line; if the mask is shifted by one pixel, they reach one pixel into the next line.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from pipeline.core.verdict import Level, Reason, gravest_first
from pipeline.encode.submission import Expected
from pipeline.masks import rle

LEAST_RUNS = 4
"""The smallest number of runs for which a mask is used."""
AT_BORDER = 2
"""The smallest number of runs at the border for which a mask tells something about the base."""
NEAR = 0.06
"""The relative difference that the distance of runs may have from the length of a line."""
EVEN = 0.6
"""The share of runs that must have the usual distance for this to count as the length of a line of another size."""
PLAIN = 0.7
"""The share of training masks that must show their order for submitted masks to be judged."""
CHANCE, DOUBT = 0.001, 0.05
"""If correct masks show as many of another order with a probability below these values, it is a fault or a doubt."""
FEW = 3
"""If at most half of the masks look wrong, the smallest number of them that is reported as a doubt."""
CHANCE_OF_FEW = 0.01
"""Such a doubt is reported if the probability of as many wrong masks by chance is smaller."""
SHARE_OF_FEW, TIMES_OF_FEW = 0.1, 3
"""The smallest share of wrong masks for such a doubt: of all masks, and as a multiple of the share in training."""
EXAMPLES = 3
"""The number of images that a message names."""
MOST = 300
"""The largest number of masks of either set that are used."""
ALL, SOME = "Masks", "Some masks"
WORDS = {"column": "down the columns", "row": "along the rows"}
OTHER = {"column": "row", "row": "column"}


@dataclass
class Lines:
    """The distances of runs in masks."""

    order: str
    """The competition's order of pixels: `column` or `row`."""
    distances: list[tuple[float, int, int]] = field(default_factory=list)
    """For each mask: the usual distance of its runs, the length of a line of its image, and that in the other order."""
    names: list[str] = field(default_factory=list)
    """The image of each mask."""
    even: list[bool] = field(default_factory=list)
    """Whether most runs of each mask have the usual distance, which is not so in masks with many regions."""
    sharp: int = 0
    """The number of masks whose runs begin or end with a line."""
    leaking: int = 0
    """The number of masks whose runs reach one pixel into another line."""
    leaking_names: list[str] = field(default_factory=list)
    """The images of the leaking masks."""

    def add(self, mask: np.ndarray, name: str = "") -> None:
        """Adds a mask (h, w) of 0 and 1 with the name of its image, up to MOST masks."""
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
            self.even.append(bool(np.mean([_near(distance, usual) for distance in distances]) >= EVEN))

    @property
    def own(self) -> int:
        """The number of masks whose runs have the distance of a line of their image."""
        return sum(_near(distance, line) for distance, line, _ in self.distances)

    @property
    def other(self) -> list[str]:
        """The images of the masks whose runs have the distance of a line of the other order and not of their own."""
        measured = zip(self.distances, self.names, strict=True)
        return [name for (usual, line, other), name in measured if _near(usual, other) and not _near(usual, line)]

    @property
    def tell_order(self) -> int:
        """The number of masks on images for which the two orders have different lines."""
        return sum(not _near(line, other) for _, line, other in self.distances)


def of_training(want: Expected) -> Lines:
    """Returns the lines of the true masks of training images."""
    lines = Lines(want.convention.order)
    for mask in _true_masks(want):
        lines.add(mask)
        if len(lines.distances) >= MOST:
            break
    return lines


def find_reasons(test: Lines, training: Lines) -> list[Reason]:
    """Returns a reason if masks are written in another order, at another size or with another first pixel than the
    training masks.

    There is none if the training masks do not show these properties themselves, or if it may be chance.
    """
    return (_order_or_size(test, training) if _plain(training) else []) or _base(test, training)


def certainty(test: Lines, training: Lines) -> str:
    """Returns a sentence on what the masks of a submission tell about its order, size and base."""
    count, edges = len(test.distances), test.sharp + test.leaking
    base = "base cannot be determined: no mask touches the border where runs end"
    if edges:
        base = (
            f"base: in {test.sharp} of {edges} masks at the border, runs end with a line of the image, as they do if "
            "the base is right"
        )
    if not count or not _plain(training):
        why = "no submitted mask has enough runs" if not count else "training masks do not have a single region"
        return f"Order and size cannot be determined from the masks: {why}; {base}."
    fits = (
        f"in {test.own} of {count} masks, runs have the distance of a line of the image, as in {training.own} of "
        f"{len(training.distances)} training masks"
    )
    if not test.tell_order:
        return f"Size: {fits}; in square images, runs do not show their order; {base}."
    return f"Order and size: {fits}; {base}."


def _plain(training: Lines) -> bool:
    return bool(training.distances) and training.own >= PLAIN * len(training.distances)


def _order_or_size(test: Lines, training: Lines) -> list[Reason]:
    count, known = len(test.distances), len(training.distances)
    reasons = []
    if judged := _more_than_chance(test.other, count, len(training.other), known):
        text = (
            f"{judged.masks} look transposed: the distances of their runs are as if pixels were numbered "
            f"{WORDS[OTHER[test.order]]} and not {WORDS[test.order]} ({judged.sure})."
        )
        reasons.append(Reason(judged.level, "transposed masks", text, judged.remedy("rle.order")))
    strange = known - training.own - len(training.other)
    length, names = _of_one_length(test)
    if judged := _more_than_chance(names, count, strange, known):
        text = (
            f"{judged.masks} look as if written at another size: the distances of their runs are those of images of "
            f"{length:.0f} {'rows' if test.order == 'column' else 'columns'} ({judged.sure}); resize masks to the "
            "size of their images before they are encoded."
        )
        reasons.append(Reason(judged.level, "size of masks' images", text))
    return gravest_first(reasons)[:1]


def _base(test: Lines, training: Lines) -> list[Reason]:
    edges, known = test.sharp + test.leaking, training.sharp + training.leaking
    judged = _more_than_chance(test.leaking_names, edges, training.leaking, known) if known else None
    if not judged:
        return []
    text = (
        f"{judged.masks} look shifted by one pixel: at the border their runs continue by one pixel on the other side, "
        f"as where the first pixel has another number ({judged.sure}, of masks at the border)."
    )
    return [Reason(judged.level, "shifted masks", text, judged.remedy("rle.base"))]


@dataclass
class _Judged:
    """The meaning of a number of wrong masks."""

    level: Level
    masks: str
    """The beginning of the sentence, for all masks or for some."""
    sure: str

    def remedy(self, setting: str) -> str:
        """Returns the place to correct it: a setting, if all masks are wrong."""
        return f"{setting} in the competition's YAML" if self.masks == ALL else ""


def _more_than_chance(wrong: list[str], count: int, usual: int, known: int) -> _Judged | None:
    """Returns how serious it is that some of `count` masks look wrong; None if it may be chance.

    Args:
        wrong: the images of the masks that look wrong.
        count: the number of masks that were checked.
        usual: the number of training masks that look wrong in the same way.
        known: the number of training masks that were checked.
    """
    from scipy.special import bdtrc  # scipy.stats has the same function but takes half a second to import

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
    """Returns the most usual distance of runs, in pixels, among masks whose distance fits neither order, and the images
    of the masks with this distance."""
    measured = zip(test.distances, test.names, test.even, strict=True)
    strange = [
        (distance, name)
        for (distance, line, other), name, even in measured
        if even and not _near(distance, line) and not _near(distance, other)
    ]
    usual = float(np.median([distance for distance, _ in strange])) if strange else 0.0
    names = [name for distance, name in strange if _near(distance, usual)]
    return usual, names if usual >= 2 * LEAST_RUNS else []
