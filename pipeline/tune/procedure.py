"""All of tune's choosing, on the images that count and without each part of them: what ships, and what it is worth.

selection.py says how steps are judged; this module says on which images, and whether what was kept ships at all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import repeat

import numpy as np

from pipeline.core.config.recipe import TuneSettings
from pipeline.core.console import progress_bar
from pipeline.masks.bootstrap import Gain, gain
from pipeline.tune.held_out import HeldOut
from pipeline.tune.selection import INNER, Cells, Choice, Fits, Nested, Partition, deal, partitions_of, select

ONE_ERROR = 0.84
"""The share of draws that show a gain of one standard error."""
FEWEST_GROUPS = 3
"""With fewer, what one of them says would be judged by the other."""


@dataclass(frozen=True)
class Parts:
    """What is left out, of the images that count."""

    rows: np.ndarray
    """Their positions (n,), in ascending order."""
    cells: np.ndarray
    """The cell of every image (N,); -1 where it does not count."""
    folds: np.ndarray
    """The fold of every image (N,)."""
    groups: np.ndarray
    """The group of every image (N,)."""
    partitions: list[Partition]

    @classmethod
    def of(cls, held: HeldOut, counted: np.ndarray) -> "Parts":
        """Returns those of the images at `counted` (positions). Of too few groups to leave any out, each image counts
        as one: that flatters, and a reason says so."""
        folds, groups = (held.images[name].to_numpy() for name in ("fold", "group"))
        if len(np.unique(groups[counted].astype(str))) < FEWEST_GROUPS:
            groups = np.arange(len(folds))
        cells = np.full(len(folds), -1)
        cells[counted] = deal(folds[counted], groups[counted])
        return cls(counted, cells, folds, groups, partitions_of(cells[counted], folds[counted]))

    @cached_property
    def left_out(self) -> list[Cells]:
        """Nothing, and every part of the partitions, once."""
        return list(dict.fromkeys([Cells(), *(part for partition in self.partitions for part in partition)]))

    def row_sets(self) -> list[np.ndarray]:
        """Returns the positions of the images that stay when each of `left_out` goes."""
        return [self.rows[~np.isin(self.cells[self.rows], list(without))] for without in self.left_out]

    def choices(
        self, fits: Sequence[Fits], steps: Sequence[Sequence[str]], settings: TuneSettings, without: Sequence[Cells]
    ) -> list[Choice]:
        """Returns the choice made without each of several sets of cells, by its fits."""
        cells, folds = self.cells[self.rows], self.folds[self.rows]
        inner = [partitions_of(cells, folds, one, INNER) if one else self.partitions for one in without]
        opened = [Choice(*one) for one in zip(fits, repeat(self.groups), inner, without, strict=False)]
        if settings.method == "search" and len(self.left_out[-1]) < len(np.unique(cells)):  # else all images go
            with progress_bar() as bar:
                task = bar.add_task("choose", total=len(opened) * len(steps))
                select(opened, steps, settings.confidence, lambda: bar.advance(task))
        return opened


@dataclass(frozen=True)
class Chosen:
    """What was chosen, and what that is worth."""

    choice: Choice
    """On all images that count."""
    without: Mapping[Cells, Choice]
    """Without each part."""
    nested: Nested
    gain: Gain
    """What the whole procedure brings over the untuned decision, on groups that chose neither."""


def choose_steps(parts: Parts, fits: Sequence[Fits], steps: Sequence[Sequence[str]], settings: TuneSettings) -> Chosen:
    """What is chosen on all images, and without each part, by the fits of each of `parts.left_out`; the untuned
    decision where the whole procedure is not better than it by more than one standard error."""
    choices = parts.choices(fits, steps, settings, parts.left_out)
    without = dict(zip(parts.left_out[1:], choices[1:], strict=True))
    nested = Nested.of(without, parts.partitions)
    plain = {part: replace(choice, path=()) for part, choice in without.items()}
    untuned = Nested.of(plain, parts.partitions)
    found = gain(untuned.rows, nested.rows, fits[0].problem.score, parts.groups[parts.rows])
    if choices[0].path and found.value > 0 and found.confidence >= min(settings.confidence, ONE_ERROR):
        return Chosen(choices[0], without, nested, found)
    tried = [replace(one, kept=False) for one in choices[0].tried]
    return Chosen(replace(choices[0], path=(), tried=tried), plain, untuned, found)
