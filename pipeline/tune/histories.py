"""Folds that kept the wrong epoch, by the held-out loss of every epoch that training wrote down."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.core import other_runs
from pipeline.core.files import read_record
from pipeline.core.run import Run
from pipeline.core.trainings import epochs_of
from pipeline.core.verdict import Level, Reason
from pipeline.tune.findings import longer, named, trained_again

FALLING = 0.2
"""By how much of itself the loss must fall over the last three epochs, without a rise, to count as still falling."""
MUCH = 0.02
"""And by how much of what it fell since the first epoch: a fall from 0.006 to 0.004 is no reason to train longer."""
EARLY = 1.5
"""How many times the lowest later loss that of the kept epoch is where the epoch was kept too early."""
LATE = 1.1
"""How many times the lowest earlier loss that of the kept epoch is where the epoch was kept too late."""
GRAVE = 1.5
"""How many times its minimum the averaged loss of weights of the end must be for somebody to look first: it often rises
by less while masks still get better, as a network that is sure of itself pays more for the few pixels it has wrong."""
LONG_AFTER = 3
"""How many epochs after the lowest loss is long after it, for an epoch that was chosen."""
WINDOW = 3
"""Over how many epochs the loss is averaged for weights of the end, which nothing chose."""


@dataclass(frozen=True)
class History:
    """The held-out losses of one training."""

    run: Run
    title: str
    loss: np.ndarray
    """After every epoch (E,)."""
    kept: int
    """The epoch whose weights were kept, counted from 0."""

    @property
    def smooth(self) -> np.ndarray:
        """The median of every loss and its neighbours (E,): one bad epoch says nothing."""
        padded = np.pad(self.loss, 1, mode="edge")
        return np.median(np.stack([padded[:-2], padded[1:-1], padded[2:]]), axis=0)

    @property
    def means(self) -> np.ndarray:
        """The means over three epochs (E - 2,)."""
        return np.convolve(self.loss, np.full(WINDOW, 1 / WINDOW), "valid")

    @property
    def of_the_end(self) -> bool:
        """Whether the last weights were kept, or their average, and none were chosen."""
        return self.run.recipe.train.keep != "best"

    @property
    def still_falling(self) -> bool:
        """Whether the last epochs were kept, and the loss fell clearly in each of them."""
        last = self.loss[-4:]
        if len(last) < 4 or self.kept < len(self.loss) - 2:
            return False
        least = max(FALLING * last[0], MUCH * (self.loss[0] - last[-1]))
        return bool((np.diff(last) < 0).all() and last[0] - last[-1] > least)

    @property
    def kept_early(self) -> bool:
        """Whether the loss fell to far less after the kept epoch."""
        return bool(self.smooth[self.kept] > EARLY * self.smooth[self.kept :].min())

    @property
    def kept_late(self) -> bool:
        """Whether the kept epoch has a higher loss than an earlier one: of a chosen epoch, long before it; of the end,
        as means over three epochs, of which there must be two."""
        if self.of_the_end:
            return len(self.loss) > WINDOW and bool(self.means[-1] > LATE * self.means.min())
        lowest = int(self.smooth.argmin())
        return self.kept - lowest >= LONG_AFTER and bool(self.smooth[self.kept] > LATE * self.smooth[lowest])


def files(run: Run) -> tuple[Path, ...]:
    """Returns the histories and summaries of the folds' trainings, those there are."""
    return tuple(path for folder, _, _ in _folders(run) for path in _pair(folder) if path.exists())


def reasons(run: Run) -> list[Reason]:
    """Returns what the histories of the folds' trainings say."""
    known = [history for folder, one, title in _folders(run) if (history := _read(folder, one, title))]
    return [*_early(known), *_falling(known), *_late(known)]


def _folders(run: Run) -> list[tuple[Path, Run, str]]:
    runs = other_runs.runs_of(run)
    return [
        (one.fold_folder(fold, member.seed), one, member.title if len(runs) == 1 else f"{one.name} {member.title}")
        for one in runs
        if one.recipe.train.snapshots == 1
        for fold in run.trained_folds()
        for member in one.members(fold)
    ]


def _pair(folder: Path) -> tuple[Path, Path]:
    return folder / "history.json", folder / "fold.json"


def _read(folder: Path, run: Run, title: str) -> History | None:
    history, summary = _pair(folder)
    losses, kept = [row.get("valid/loss") for row in epochs_of(history)], read_record(summary).get("best_epoch")
    loss = np.array([one if isinstance(one, int | float) else np.nan for one in losses], np.float64)
    if not np.isfinite(loss).all() or not isinstance(kept, int) or not 0 <= kept < len(loss):
        return None
    return History(run, title, loss, kept)


def _early(known: list[History]) -> list[Reason]:
    found = [one for one in known if one.kept_early]
    if not found:
        return []
    said = [f"{one.title} kept epoch {one.kept + 1} (held-out loss {one.loss[one.kept]:.3f}), and epoch "
            f"{one.kept + int(one.loss[one.kept :].argmin()) + 1} had {one.loss[one.kept :].min():.3f}"
            for one in found]  # fmt: skip
    run = found[0].run
    command = trained_again(run, "loss", "train.monitor=loss")
    if run.recipe.train.monitor == "loss":
        command = longer(run, run.recipe.train.epochs)
    return [Reason("check", "stopped too early", f"The weights are of too early an epoch: {named(said)}.", command)]


def _falling(known: list[History]) -> list[Reason]:
    found = [one for one in known if one.still_falling]
    if not found:
        return []
    said = [f"{one.title} ({one.loss[-4]:.3f} to {one.loss[-1]:.3f} in the last three of {len(one.loss)} epochs)"
            for one in found]  # fmt: skip
    text = f"Training ended while the held-out loss was still falling: {named(said)}."
    run = found[0].run
    level: Level = "note" if "--quick" in run.options else "check"  # which ends early on purpose
    return [Reason(level, "stopped too early", text, longer(run, 2 * len(found[0].loss)))]


def _late(known: list[History]) -> list[Reason]:
    found = [one for one in known if one.kept_late]
    if not found:
        return []
    run = found[0].run
    command = trained_again(run, "loss", "train.monitor=loss", "train.keep=best")
    if not found[0].of_the_end and run.recipe.train.monitor == "loss":
        command = trained_again(run, "shorter", f"train.epochs={int(found[0].smooth.argmin()) + 1}")
    how = "The held-out loss rose before the end" if found[0].of_the_end else "The weights are of too late an epoch"
    text = f"{how}: {named(list(map(_said_late, found)))}."
    mild = all(one.of_the_end and one.means[-1] <= GRAVE * one.means.min() for one in found)
    return [Reason("note" if mild else "check", "trained too long", text, command)]


def _said_late(one: History) -> str:
    if not one.of_the_end:
        lowest = int(one.loss[: one.kept].argmin())
        return (f"{one.title} kept epoch {one.kept + 1} (held-out loss {one.loss[one.kept]:.3f}), and the lowest was "
                f"{one.loss[lowest]:.3f} in epoch {lowest + 1}")  # fmt: skip
    lowest = int(one.means.argmin())
    return (f"in {one.title} it was {one.means[-1]:.3f} over the last {WINDOW} epochs, and "
            f"{one.means[lowest]:.3f} over epochs {lowest + 1} to {lowest + WINDOW}")  # fmt: skip
