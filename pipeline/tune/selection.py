"""Which post-processing steps earn their place, and what the decision is worth on images that chose none of it.

The networks whose held-out predictions are tuned on are those that predict the test images; what is new there are
groups (patients, videos), not networks. So what is left out are groups within every fold, a fifth at a time, over many
partitions into fifths; a whole fold left out would take the only network away that judged its images.

A step is judged on groups that it was not fitted to, and kept if it beats the decision so far, fitted in the same way,
by more than noise; of alternatives within one standard error of the best the plainest is taken (the
one-standard-error rule of Breiman et al. 1984, by paired differences). The nested estimate repeats all of it, the
choice of steps included, without each fifth in turn.

The groups of every fold are dealt into ten cells, and a fifth is two of them. So there are 45 fifths that can be left
out, 210 pairs of them, and whatever was fitted without the same cells before is looked up.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Protocol

import numpy as np

from pipeline.masks.bootstrap import Gain, Score, gain

CELLS = 10
"""Cells that groups are dealt into."""
PARTS = 5
"""Parts of a partition of all cells."""
PARTITIONS = 20
"""Partitions that the final decision is judged and estimated by."""
INNER = 2
"""Partitions that steps are judged by without a part, in the nested estimate."""
TRIES = 50
"""Draws of a partition, at most, until none of its parts is a whole fold."""

Cells = frozenset[int]
Partition = list[Cells]
"""Disjoint sets of cells that hold all images together."""
Path = tuple[str, ...]
"""Steps that were kept, in order."""


class Problem(Protocol):
    """What is tuned: how decisions are fitted to images and what they score."""

    score: Score
    untuned: Any

    def prepare(self, step: str, decisions: Sequence[Any]) -> None:
        """Counts what a step needs before it is fitted, given the decisions that it may be fitted to."""

    def fit(self, step: str, decision: Any, rows: np.ndarray, final: bool) -> Any:
        """Returns the decision with one step more, chosen on the images at `rows`; the same where nothing is better.

        `final`: the decision is to be used, and not only to judge the step.
        """

    def counts(self, decision: Any, rows: np.ndarray) -> np.ndarray:
        """Returns, for the images at `rows` (n, …), what `score` takes the sum of."""


# --- what is left out ------------------------------------------------------------------------------------------------


def deal(folds: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Returns the cell (N,) int64 of every image, from its fold and group: the groups of each fold are dealt in random
    order, going on from fold to fold, so that cells have equally many groups, from as many folds as there are."""
    cells = np.zeros(len(folds), np.int64)
    if not len(folds):
        return cells
    _, group = np.unique(groups.astype(str), return_inverse=True)
    random, dealt = np.random.default_rng(0), 0
    number = np.full(group.max() + 1, -1)
    for fold in np.unique(folds):
        own = np.unique(group[folds == fold])
        own = own[number[own] < 0]  # a group in several folds, as random folds have it, is dealt once
        number[random.permutation(own)] = dealt + np.arange(len(own))
        dealt += len(own)
    return number[group] % CELLS


def partitions_of(
    cells: np.ndarray, folds: np.ndarray, without: Cells = Cells(), count: int = PARTITIONS
) -> list[Partition]:
    """Returns random partitions of the cells that are not in `without` into parts of a fifth of all cells, of one cell
    at least. As far as it can be avoided, no part, with `without`, holds all images of a fold.

    Args:
        cells: cells (n,) of the images.
        folds: their folds (n,).
        without: cells that are left out already.
        count: how many partitions; one where cells are left out one by one.
    """
    all_cells = np.unique(cells).tolist()
    remaining = [cell for cell in all_cells if cell not in without]
    parts = ceil(len(remaining) / max(1, round(len(all_cells) / PARTS)))
    of_folds = [set(cells[folds == fold].tolist()) for fold in np.unique(folds)]
    random = np.random.default_rng([len(remaining), *sorted(without)])
    found: list[Partition] = []
    for _ in range(count if len(remaining) > parts else 1):
        tries = (_partition(random.permutation(remaining), parts) for _ in range(TRIES))
        found.append(_first_or_least(tries, lambda one: _whole_folds(one, without, of_folds)))
    return found


def _partition(cells: np.ndarray, parts: int) -> Partition:
    return [Cells(cells[part::parts].tolist()) for part in range(parts)]


def _whole_folds(partition: Partition, without: Cells, of_folds: Sequence[set[int]]) -> int:
    """How often a part, with what is left out already, takes a fold away that has more than one cell."""
    return sum(len(fold) > 1 and fold <= part | without for part in partition for fold in of_folds)


def _first_or_least(tries: Iterable[Partition], faults: Callable[[Partition], int]) -> Partition:
    """The first without faults, else the one with the fewest."""
    best, least = None, 0
    for one in tries:
        found = faults(one)
        if best is None or found < least:
            best, least = one, found
        if not found:
            break
    assert best is not None  # TRIES is above 0
    return best


# --- fits, each made once --------------------------------------------------------------------------------------------


class Fits:
    """The decisions of a problem along any path of steps, fitted without any cells; each is fitted once."""

    def __init__(self, problem: Problem, rows: np.ndarray, cells: np.ndarray, start: Any = None) -> None:
        """Positions (n,) of the images that are chosen on, in ascending order; cells (N,) of all images; the decision
        that paths start from, by default the untuned one."""
        self.problem, self.rows, self._cells = problem, rows, cells[rows]
        self.start = problem.untuned if start is None else start
        self._inside: dict[Cells, np.ndarray] = {}
        self._decisions: dict[tuple[Path, Cells], Any] = {}
        self._counts: dict[tuple[Path, Cells, Cells], np.ndarray] = {}

    def inside(self, cells: Cells) -> np.ndarray:
        """Returns the positions of the images in some cells."""
        return self.rows[self._marks(cells)]

    def outside(self, cells: Cells) -> np.ndarray:
        """Returns the positions of all other images."""
        return self.rows[~self._marks(cells)]

    def _marks(self, cells: Cells) -> np.ndarray:
        if cells not in self._inside:
            self._inside[cells] = np.isin(self._cells, list(cells))
        return self._inside[cells]

    def decision(self, path: Path, without: Cells) -> Any:
        """Returns the decision of a path, fitted to the images outside some cells."""
        if not path:
            return self.start
        key = path, without
        if key not in self._decisions:
            before = self.decision(path[:-1], without)
            self._decisions[key] = self.problem.fit(path[-1], before, self.outside(without), not without)
        return self._decisions[key]

    def counts(self, path: Path, without: Cells, part: Cells) -> np.ndarray:
        """Returns what the score takes the sum of, of the images in `part`, under the decision fitted outside
        `without`."""
        key = path, without, part
        if key not in self._counts:
            self._counts[key] = self.problem.counts(self.decision(path, without), self.inside(part))
        return self._counts[key]

    def averaged(self, path: Path, without: Cells, partitions: Sequence[Partition]) -> np.ndarray:
        """Returns the counts of every image outside `without`, in the order of their positions, under the decisions
        fitted without its part: their mean over partitions."""
        rows = self.outside(without)
        total: np.ndarray | None = None
        for part in (part for partition in partitions for part in partition):
            counts = self.counts(path, without | part, part)
            if total is None:
                total = np.zeros((len(rows), *counts.shape[1:]))
            total[np.searchsorted(rows, self.inside(part))] += counts
        assert total is not None  # a partition has a part
        return total / len(partitions)


# --- choosing steps --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tried:
    """A step that was tried."""

    step: str
    kept: bool
    gain: Gain
    decision: Any
    """What it would have made of the decision before it."""


@dataclass
class Choice:
    """The steps chosen on the images outside some cells, one after the other."""

    fits: Fits
    groups: np.ndarray
    """Of all images (N,)."""
    partitions: list[Partition]
    """Of the cells that are not left out: what steps are judged by."""
    without: Cells = Cells()
    path: Path = ()
    tried: list[Tried] = field(default_factory=list)

    @property
    def decision(self) -> Any:
        """The decision, fitted to all images outside the cells."""
        return self.fits.decision(self.path, self.without)

    def consider(self, alternatives: Sequence[str], confidence: float) -> None:
        """Fits steps that exclude each other, judges each against the decision so far, and keeps one or none: of those
        within one standard error of the best the first, if it is better than the decision so far by more than noise."""
        paths = {step: (*self.path, step) for step in alternatives}
        fitted = {step: self.fits.decision(path, self.without) for step, path in paths.items()}
        changes = [step for step in alternatives if fitted[step] != self.decision]
        before = self._averaged(self.path) if changes else np.zeros(0)
        after = {step: self._averaged(paths[step]) for step in changes}
        gains = {step: self._gain(before, after[step]) for step in changes}
        kept = self._plainest(after, gains, confidence)
        nothing = Gain(0.0, 0.0, 0.5)
        self.tried += [Tried(step, step == kept, gains.get(step, nothing), fitted[step]) for step in alternatives]
        if kept:
            self.path = paths[kept]

    def decisions(self) -> list[Any]:
        """Returns the decision so far, and those that judge it."""
        parts = {part for partition in self.partitions for part in partition}
        return [self.decision, *(self.fits.decision(self.path, self.without | part) for part in parts)]

    def _plainest(self, after: dict[str, np.ndarray], gains: dict[str, Gain], confidence: float) -> str | None:
        """The first of the alternatives that beats the decision so far, and that the best does not beat by more than
        one standard error."""
        best = max(gains, key=lambda step: gains[step].value, default=None)
        for step, found in gains.items():
            if found.value > 0 and found.confidence >= confidence:
                ahead = self._gain(after[step], after[best]) if best else found
                if ahead.value <= ahead.standard_error:
                    return step
        return None

    def _averaged(self, path: Path) -> np.ndarray:
        return self.fits.averaged(path, self.without, self.partitions)

    def _gain(self, before: np.ndarray, after: np.ndarray) -> Gain:
        return gain(before, after, self.fits.problem.score, self.groups[self.fits.outside(self.without)])


def select(
    choices: Sequence[Choice], steps: Sequence[Sequence[str]], confidence: float, advance: Callable[[], None]
) -> None:
    """Takes all choices through all steps, one after the other, so that what a step needs is counted once.

    Each element of `steps` lists the alternatives of which one at most is kept, the plainest first.
    """
    for alternatives in steps:
        problems = {id(choice.fits.problem): choice.fits.problem for choice in choices}
        for key, problem in problems.items():
            decisions = [one for choice in choices if id(choice.fits.problem) == key for one in choice.decisions()]
            for step in alternatives:
                problem.prepare(step, decisions)
        for choice in choices:
            choice.consider(alternatives, confidence)
            advance()


def verdict(step: dict[str, Any], confidence: float, ships: bool = True) -> str:
    """Returns what became of a step of postprocess.json: kept; refused; outdone, where an alternative was better or as
    good and plainer; or given up, where what was kept does not ship, as all of it together is not better than nothing.
    """
    if step["kept"]:
        return "kept"
    better = step["gain"] > 0 and step["confidence"] >= confidence
    return "refused" if not better else "outdone" if ships else "given up"


# --- what the chosen steps are worth ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Nested:
    """What decisions chosen without an image are worth on it, over several partitions."""

    rows: np.ndarray
    """What the score takes the sum of, one row per image (n, …): the mean over partitions."""
    scores: np.ndarray
    """The problem's score of each partition."""

    @classmethod
    def of(cls, choices: Mapping[Cells, Choice], partitions: Sequence[Partition]) -> "Nested":
        """Returns the estimate, from the choice that was made without each part."""
        first = next(iter(choices.values())).fits
        total: np.ndarray | None = None
        scores = []
        for partition in partitions:
            own = [choices[part] for part in partition]
            counts = [choice.fits.counts(choice.path, part, part) for choice, part in zip(own, partition, strict=True)]
            total = np.zeros((len(first.rows), *counts[0].shape[1:])) if total is None else total
            for part, rows in zip(partition, counts, strict=True):
                total[np.searchsorted(first.rows, first.inside(part))] += rows
            scores.append(first.problem.score(np.concatenate(counts).sum(0)))
        assert total is not None  # there is a partition
        return cls(total / len(partitions), np.array(scores))
