"""The whole procedure of choosing steps, on the images that count and without each part of them, with its nested
estimate.

selection.py defines how steps are judged. This module defines on which images, and whether the chosen steps are used at
all.
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
"""The share of bootstrap draws with a gain if the gain is one standard error."""
FEWEST_GROUPS = 3
"""The smallest number of groups of which some can be left out."""


@dataclass(frozen=True)
class Parts:
    """The parts of the images that count which are left out in turn."""

    rows: np.ndarray
    """The positions of the images that count (n,), in ascending order."""
    cells: np.ndarray
    """The cell of every image (N,); -1 if it does not count."""
    folds: np.ndarray
    """The fold of every image (N,)."""
    groups: np.ndarray
    """The group of every image (N,)."""
    partitions: list[Partition]

    @classmethod
    def of(cls, held: HeldOut, counted: np.ndarray) -> "Parts":
        """Returns the parts of the images at the positions `counted`.

        If there are too few groups to leave any out, each image counts as a group. The scores are then optimistic, and
        a reason says so.
        """
        folds, groups = (held.images[name].to_numpy() for name in ("fold", "group"))
        if len(np.unique(groups[counted].astype(str))) < FEWEST_GROUPS:
            groups = np.arange(len(folds))
        cells = np.full(len(folds), -1)
        cells[counted] = deal(folds[counted], groups[counted])
        return cls(counted, cells, folds, groups, partitions_of(cells[counted], folds[counted]))

    @cached_property
    def left_out(self) -> list[Cells]:
        """The empty part, and every part of the partitions, without repetitions."""
        return list(dict.fromkeys([Cells(), *(part for partition in self.partitions for part in partition)]))

    def row_sets(self) -> list[np.ndarray]:
        """Returns the positions of the remaining images for each element of `left_out`."""
        return [self.rows[~np.isin(self.cells[self.rows], list(without))] for without in self.left_out]

    def choices(
        self, fits: Sequence[Fits], steps: Sequence[Sequence[str]], settings: TuneSettings, without: Sequence[Cells]
    ) -> list[Choice]:
        """Returns the choices made without each of several sets of cells, with the given fits."""
        cells, folds = self.cells[self.rows], self.folds[self.rows]
        inner = [partitions_of(cells, folds, part, INNER) if part else self.partitions for part in without]
        opened = [Choice(*arguments) for arguments in zip(fits, repeat(self.groups), inner, without, strict=False)]
        # without a search, or if a part holds all images, nothing is chosen
        if settings.method == "search" and len(self.left_out[-1]) < len(np.unique(cells)):
            with progress_bar() as bar:
                task = bar.add_task("choose", total=len(opened) * len(steps))
                select(opened, steps, settings.confidence, lambda: bar.advance(task))
        return opened


@dataclass(frozen=True)
class Chosen:
    """The chosen steps with their nested estimate."""

    choice: Choice
    """The choice on all images that count."""
    without: Mapping[Cells, Choice]
    """The choices made without each part."""
    nested: Nested
    gain: Gain
    """The gain of the whole procedure over the untuned decision, on groups that were not used to choose."""


def choose_steps(parts: Parts, fits: Sequence[Fits], steps: Sequence[Sequence[str]], settings: TuneSettings) -> Chosen:
    """Returns the choices on all images and without each part, given the fits for each of `parts.left_out`.

    If the whole procedure is not better than the untuned decision by more than one standard error, the untuned decision
    is returned.
    """
    choices = parts.choices(fits, steps, settings, parts.left_out)
    without = dict(zip(parts.left_out[1:], choices[1:], strict=True))
    nested = Nested.of(without, parts.partitions)
    plain = {part: replace(choice, path=()) for part, choice in without.items()}
    untuned = Nested.of(plain, parts.partitions)
    total_gain = gain(untuned.rows, nested.rows, fits[0].problem.score, parts.groups[parts.rows])
    if choices[0].path and total_gain.value > 0 and total_gain.confidence >= min(settings.confidence, ONE_ERROR):
        return Chosen(choices[0], without, nested, total_gain)
    tried = [replace(step, kept=False) for step in choices[0].tried]
    return Chosen(replace(choices[0], path=(), tried=tried), plain, untuned, total_gain)
