"""Forward selection of post-processing steps, with a nested cross-validation estimate.

The networks whose held-out predictions are used for tuning also predict the test images. Only the groups (patients,
videos) of the test images are new, not the networks. Therefore groups within every fold are left out, a fifth at a
time, over many partitions into fifths. Leaving out a whole fold would also leave out the only network that predicted
it.

A step is judged on groups that it was not fitted to. It is kept if it is better than the previous decision, fitted in
the same way, by more than noise. Of alternatives within one standard error of the best, the plainest is taken (the
one-standard-error rule of Breiman et al. 1984, with paired differences). The nested estimate repeats the whole
procedure, including the choice of steps, without each fifth in turn.

The groups of every fold are dealt into ten cells, and a fifth consists of two cells. There are 45 fifths and 210 pairs
of fifths that can be left out. Fits without the same cells are cached.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Protocol

import numpy as np

from pipeline.masks.bootstrap import Gain, Score, gain

CELLS = 10
"""The number of cells into which groups are dealt."""
PARTS = 5
"""The number of parts of a partition of all cells."""
PARTITIONS = 20
"""The number of partitions with which the final decision is judged and estimated."""
INNER = 2
"""The number of partitions with which steps are judged inside the nested estimate."""
TRIES = 50
"""The largest number of random partitions that are tried until no part is a whole fold."""

Cells = frozenset[int]
Partition = list[Cells]
"""Disjoint sets of cells that together contain all images."""
Path = tuple[str, ...]
"""The steps that were kept, in order."""


class Problem(Protocol):
    """A tuning problem, which defines how decisions are fitted to images and scored."""

    score: Score
    untuned: Any

    def prepare(self, step: str, decisions: Sequence[Any]) -> None:
        """Counts what a step needs before it is fitted, given the decisions to which it may be added."""

    def fit(self, step: str, decision: Any, rows: np.ndarray, final: bool) -> Any:
        """Returns the decision with one more step, chosen on the images at `rows`; the same decision if none is better.

        `final` tells whether the decision will be used, and not only judged.
        """

    def counts(self, decision: Any, rows: np.ndarray) -> np.ndarray:
        """Returns the counts of the images at `rows` (n, …) that `score` sums."""


# --- parts to leave out ----------------------------------------------------------------------------------------------


def deal(folds: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Returns the cell (N,) int64 of every image, from its fold and group.

    The groups of each fold are dealt in random order, continuing from fold to fold. Cells therefore have equal numbers
    of groups, from as many folds as possible.
    """
    cells = np.zeros(len(folds), np.int64)
    if not len(folds):
        return cells
    _, group = np.unique(groups.astype(str), return_inverse=True)
    random, dealt = np.random.default_rng(0), 0
    number = np.full(group.max() + 1, -1)
    for fold in np.unique(folds):
        of_fold = np.unique(group[folds == fold])
        of_fold = of_fold[number[of_fold] < 0]  # with random folds, a group may be in several folds; it is dealt once
        number[random.permutation(of_fold)] = dealt + np.arange(len(of_fold))
        dealt += len(of_fold)
    return number[group] % CELLS


def partitions_of(
    cells: np.ndarray, folds: np.ndarray, without: Cells = Cells(), count: int = PARTITIONS
) -> list[Partition]:
    """Returns random partitions of the cells that are not in `without` into parts of a fifth of all cells, but at least
    one cell. If possible, no part together with `without` contains all images of a fold.

    Args:
        cells: the cells of the images (n,).
        folds: the folds of the images (n,).
        without: the cells that are already left out.
        count: the number of partitions; there is only one if parts are single cells.
    """
    all_cells = np.unique(cells).tolist()
    remaining = [cell for cell in all_cells if cell not in without]
    parts = ceil(len(remaining) / max(1, round(len(all_cells) / PARTS)))
    of_folds = [set(cells[folds == fold].tolist()) for fold in np.unique(folds)]
    random = np.random.default_rng([len(remaining), *sorted(without)])
    partitions: list[Partition] = []
    for _ in range(count if len(remaining) > parts else 1):
        tries = (_partition(random.permutation(remaining), parts) for _ in range(TRIES))
        partitions.append(_first_or_least(tries, lambda partition: _whole_folds(partition, without, of_folds)))
    return partitions


def _partition(cells: np.ndarray, parts: int) -> Partition:
    return [Cells(cells[part::parts].tolist()) for part in range(parts)]


def _whole_folds(partition: Partition, without: Cells, of_folds: Sequence[set[int]]) -> int:
    """Returns how many times a part, together with `without`, contains a whole fold of more than one cell."""
    return sum(len(fold) > 1 and fold <= part | without for part in partition for fold in of_folds)


def _first_or_least(tries: Iterable[Partition], faults: Callable[[Partition], int]) -> Partition:
    """Returns the first partition without faults, else the one with the fewest."""
    best, least = None, 0
    for partition in tries:
        count = faults(partition)
        if best is None or count < least:
            best, least = partition, count
        if not count:
            break
    assert best is not None  # TRIES is above 0
    return best


# --- cached fits -----------------------------------------------------------------------------------------------------


class Fits:
    """The decisions of a problem for paths of steps, each fitted without some cells, with a cache."""

    def __init__(self, problem: Problem, rows: np.ndarray, cells: np.ndarray, start: Any = None) -> None:
        """Takes a problem and the images to choose on.

        Args:
            problem: the problem.
            rows: the positions of the images (n,), in ascending order.
            cells: the cells of all images (N,).
            start: the decision from which paths start, by default the untuned one.
        """
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
        """Returns the counts that the score sums for the images in `part`, under the decision fitted outside
        `without`."""
        key = path, without, part
        if key not in self._counts:
            self._counts[key] = self.problem.counts(self.decision(path, without), self.inside(part))
        return self._counts[key]

    def averaged(self, path: Path, without: Cells, partitions: Sequence[Partition]) -> np.ndarray:
        """Returns the counts of every image outside `without`, in the order of positions, under the decisions fitted
        without its part, averaged over partitions."""
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
    """The decision with this step added."""


@dataclass
class Choice:
    """The steps chosen on the images outside some cells, one after another."""

    fits: Fits
    groups: np.ndarray
    """The groups of all images (N,)."""
    partitions: list[Partition]
    """Partitions of the cells that are not left out, with which steps are judged."""
    without: Cells = Cells()
    path: Path = ()
    tried: list[Tried] = field(default_factory=list)

    @property
    def decision(self) -> Any:
        """The decision, fitted to all images outside the cells."""
        return self.fits.decision(self.path, self.without)

    def consider(self, alternatives: Sequence[str], confidence: float) -> None:
        """Fits alternative steps, compares each with the decision so far, and keeps one or none.

        Of the steps within one standard error of the best, the first is kept if it is better than the decision so far
        by more than noise.
        """
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
        """Returns the decision so far, and the decisions without each part that judge it."""
        parts = {part for partition in self.partitions for part in partition}
        return [self.decision, *(self.fits.decision(self.path, self.without | part) for part in parts)]

    def _plainest(self, after: dict[str, np.ndarray], gains: dict[str, Gain], confidence: float) -> str | None:
        """Returns the first alternative that is better than the decision so far and is within one standard error of the
        best."""
        best = max(gains, key=lambda step: gains[step].value, default=None)
        for step, improvement in gains.items():
            if improvement.value > 0 and improvement.confidence >= confidence:
                ahead = self._gain(after[step], after[best]) if best else improvement
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
    """Considers all steps for all choices, step by step, so that the counts that a step needs are made once.

    Each element of `steps` lists alternatives, the plainest first, of which at most one is kept.
    """
    for alternatives in steps:
        problems = {id(choice.fits.problem): choice.fits.problem for choice in choices}
        for key, problem in problems.items():
            of_problem = [choice for choice in choices if id(choice.fits.problem) == key]
            decisions = [decision for choice in of_problem for decision in choice.decisions()]
            for step in alternatives:
                problem.prepare(step, decisions)
        for choice in choices:
            choice.consider(alternatives, confidence)
            advance()


def verdict(step: dict[str, Any], confidence: float, ships: bool = True) -> str:
    """Returns the outcome of a step of postprocess.json.

    It is `kept`; `refused`; `outdone` if an alternative was better, or plainer and about as good; or `given up` if all
    steps together are not better than the untuned decision.
    """
    if step["kept"]:
        return "kept"
    better = step["gain"] > 0 and step["confidence"] >= confidence
    return "refused" if not better else "outdone" if ships else "given up"


# --- nested estimate -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Nested:
    """The nested estimate: every image is scored under decisions chosen without it, over several partitions."""

    rows: np.ndarray
    """The counts that the score sums, one row per image (n, …), averaged over partitions."""
    scores: np.ndarray
    """The problem's score for each partition."""

    @classmethod
    def of(cls, choices: Mapping[Cells, Choice], partitions: Sequence[Partition]) -> "Nested":
        """Returns the estimate, from the choice that was made without each part."""
        first = next(iter(choices.values())).fits
        total: np.ndarray | None = None
        scores = []
        for partition in partitions:
            pairs = [(choices[part], part) for part in partition]
            counts = [choice.fits.counts(choice.path, part, part) for choice, part in pairs]
            total = np.zeros((len(first.rows), *counts[0].shape[1:])) if total is None else total
            for part, rows in zip(partition, counts, strict=True):
                total[np.searchsorted(first.rows, first.inside(part))] += rows
            scores.append(first.problem.score(np.concatenate(counts).sum(0)))
        assert total is not None  # there is at least one partition
        return cls(total / len(partitions), np.array(scores))
