"""Finds folds that kept the wrong epoch, from the held-out loss during training."""

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
"""The share by which the loss must fall over the last four measurements, without a rise, to count as still falling."""
MUCH = 0.02
"""The share of the total fall that this must also be: a fall from 0.006 to 0.004 is no reason to train longer."""
EARLY = 1.5
"""The epoch was kept too early if its loss is more than this many times the lowest later loss."""
LATE = 1.1
"""The epoch was kept too late if its loss is more than this many times the lowest earlier loss."""
GRAVE = 1.5
"""The ratio of the averaged final loss to its minimum above which the user should check it. Smaller increases are
common while masks still improve, because a confident network pays more for its few wrong pixels."""
LONG_AFTER = 3
"""The number of epochs after the lowest loss from which on a chosen epoch counts as late."""
WINDOW = 3
"""The number of epochs over which the loss is averaged if the last weights were kept."""


@dataclass(frozen=True)
class History:
    """The held-out losses of one training."""

    run: Run
    title: str
    loss: np.ndarray
    """The loss after every epoch that ended with a prediction of the held-out images (E,)."""
    numbers: list[int]
    """The numbers of these epochs, counted from 1 (E,): not all epochs of a planned training predict."""
    kept: int
    """The place of the epoch whose weights were kept."""
    total: int
    """The number of epochs of the training."""

    @property
    def smooth(self) -> np.ndarray:
        """The median of every loss and its neighbours (E,), so that a single bad epoch has no effect."""
        padded = np.pad(self.loss, 1, mode="edge")
        return np.median(np.stack([padded[:-2], padded[1:-1], padded[2:]]), axis=0)

    @property
    def means(self) -> np.ndarray:
        """The moving averages over three epochs (E - 2,)."""
        return np.convolve(self.loss, np.full(WINDOW, 1 / WINDOW), "valid")

    @property
    def of_the_end(self) -> bool:
        """Whether the last weights or their average were kept, so that no epoch was chosen."""
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
        """Whether the loss fell much further after the kept epoch."""
        return bool(self.smooth[self.kept] > EARLY * self.smooth[self.kept :].min())

    @property
    def kept_late(self) -> bool:
        """Whether the kept epoch has a higher loss than an earlier one.

        For a chosen epoch, the earlier one must be several epochs before. For the last weights, moving averages over
        three epochs are compared.
        """
        if self.of_the_end:
            return len(self.loss) > WINDOW and bool(self.means[-1] > LATE * self.means.min())
        lowest = int(self.smooth.argmin())
        return self.kept - lowest >= LONG_AFTER and bool(self.smooth[self.kept] > LATE * self.smooth[lowest])


def files(run: Run) -> tuple[Path, ...]:
    """Returns the existing histories and summaries of the folds' trainings."""
    return tuple(path for folder, _, _ in _folders(run) for path in _pair(folder) if path.exists())


def reasons(run: Run) -> list[Reason]:
    """Returns the reasons from the histories of the folds' trainings."""
    known = [history for folder, other, title in _folders(run) if (history := _read(folder, other, title))]
    return [*_early(known), *_falling(known), *_late(known)]


def _folders(run: Run) -> list[tuple[Path, Run, str]]:
    runs = other_runs.runs_of(run)
    return [
        (
            other.fold_folder(fold, member.seed),
            other,
            member.title if len(runs) == 1 else f"{other.name} {member.title}",
        )
        for other in runs
        if other.recipe.train.snapshots == 1
        for fold in run.trained_folds()
        for member in other.members(fold)
    ]


def _pair(folder: Path) -> tuple[Path, Path]:
    return folder / "history.json", folder / "fold.json"


def _read(folder: Path, run: Run, title: str) -> History | None:
    history, summary = _pair(folder)
    everything, kept = epochs_of(history), read_record(summary).get("best_epoch")
    # planned trainings do not predict the held-out images after each epoch
    rows = [row for row in everything if "valid/loss" in row]
    losses, epochs = [row["valid/loss"] for row in rows], [row.get("epoch") for row in rows]
    kept = next((place for place, row in enumerate(rows) if row.get("epoch") == kept), None)
    loss = np.array([value if isinstance(value, int | float) else np.nan for value in losses], np.float64)
    numbers = [epoch + 1 for epoch in epochs if isinstance(epoch, int)]
    if not np.isfinite(loss).all() or kept is None or len(numbers) < len(loss):
        return None
    return History(run, title, loss, numbers, kept, len(everything))


def _early(known: list[History]) -> list[Reason]:
    early = [history for history in known if history.kept_early]
    if not early:
        return []
    details = [f"{fold.title} kept epoch {fold.numbers[fold.kept]} (held-out loss {fold.loss[fold.kept]:.3f}), but "
               f"epoch {fold.numbers[fold.kept + int(fold.loss[fold.kept :].argmin())]} had "
               f"{fold.loss[fold.kept :].min():.3f}" for fold in early]  # fmt: skip
    run = early[0].run
    command = trained_again(run, "loss", "train.monitor=loss")
    if run.recipe.train.monitor == "loss":
        command = longer(run, run.recipe.train.epochs)
    text = f"The kept weights are from an epoch that is too early: {named(details)}."
    return [Reason("check", "stopped too early", text, command)]


def _falling(known: list[History]) -> list[Reason]:
    falling = [history for history in known if history.still_falling]
    if not falling:
        return []
    details = [f"{fold.title} ({fold.loss[-4]:.3f} after epoch {fold.numbers[-4]}, {fold.loss[-1]:.3f} after epoch "
               f"{fold.numbers[-1]} of {fold.total})" for fold in falling]  # fmt: skip
    text = f"Training ended while the held-out loss was still falling: {named(details)}."
    run = falling[0].run
    on_purpose = "--quick" in run.options or run.budget  # the training had to end early
    level: Level = "note" if on_purpose else "check"
    return [Reason(level, "stopped too early", text, longer(run, 2 * falling[0].total))]


def _late(known: list[History]) -> list[Reason]:
    late = [history for history in known if history.kept_late]
    if not late:
        return []
    run = late[0].run
    command = trained_again(run, "loss", "train.monitor=loss", "train.keep=best")
    if not late[0].of_the_end and run.recipe.train.monitor == "loss":
        command = trained_again(run, "shorter", f"train.epochs={late[0].numbers[int(late[0].smooth.argmin())]}")
    details = named(list(map(_late_detail, late)))
    rose = f"The held-out loss rose before the end of training: {details}."
    text = rose if late[0].of_the_end else f"The kept epoch is too late: {details}."
    mild = all(history.of_the_end and history.means[-1] <= GRAVE * history.means.min() for history in late)
    return [Reason("note" if mild else "check", "trained too long", text, command)]


def _late_detail(history: History) -> str:
    if not history.of_the_end:
        lowest = int(history.loss[: history.kept].argmin())
        return (
            f"{history.title} kept epoch {history.numbers[history.kept]} (held-out loss "
            f"{history.loss[history.kept]:.3f}), but the lowest was {history.loss[lowest]:.3f} in epoch "
            f"{history.numbers[lowest]}"
        )
    lowest = int(history.means.argmin())
    return (
        f"in {history.title} its mean was {history.means[-1]:.3f} from epoch {history.numbers[-WINDOW]} to "
        f"{history.numbers[-1]}, but {history.means[lowest]:.3f} from epoch {history.numbers[lowest]} to "
        f"{history.numbers[lowest + WINDOW - 1]}"
    )
