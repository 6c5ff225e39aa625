"""The console lines of a training: a table with one row per epoch."""

from typing import Any

from pipeline.core.console import duration
from pipeline.core.run import Run

KEPT = {"last": "the last epoch", "average": "the average of the last tenth of the steps"}
KEPT_BY = {"loss": "the lowest held-out loss", "score": "the best score"}


def header(run: Run) -> str:
    """Returns the header of the table that `line` fills."""
    score = f"{run.competition.metric:>{_score_width(run)}}"
    return f"  {'':{_title_width(run)}}  {'epoch':>7}  {'loss':>6}  {'held out':>8}  {score}   {'took':>6}  {'left':>6}"


def legend(run: Run) -> str:
    """Returns an explanation of the columns, and which epoch is kept."""
    settings = run.recipe.train
    kept = KEPT.get(settings.keep, f"the epoch with {KEPT_BY[settings.monitor]}")
    if settings.snapshots > 1:
        kept = f"the last epoch of each of {settings.snapshots} cycles"
    return (
        f"  loss: on training images; held out, {run.competition.metric}: on held-out images, untuned, at the "
        f"network's size; * best so far; kept: {kept}"
    )


def line(run: Run, title: str, epochs: int, row: dict[str, Any], best: bool, left: float) -> str:
    """Returns the line of an epoch.

    Args:
        run: the run.
        title: the name of the training.
        epochs: the total number of epochs.
        row: the epoch's row of history.csv.
        best: whether its score is the best so far.
        left: the seconds until all trainings are done.
    """
    epoch, width = f"{row['epoch'] + 1}/{epochs}", _score_width(run)
    valid = f"{'':8}  {'':{width}}  "
    if "valid/score" in row:
        valid = f"{row['valid/loss']:8.4f}  {row['valid/score']:{width}.4f} {'*' if best else ' '}"
    remaining = duration(left) if left > 0 else ""
    took = f"{row['seconds']:.1f} s"
    text = f"  {title:{_title_width(run)}}  {epoch:>7}  {row['train/loss']:6.4f}  {valid} {took:>6}  {remaining:>6}"
    return text.rstrip()


def _score_width(run: Run) -> int:
    return max(6, len(run.competition.metric))


def _title_width(run: Run) -> int:
    folds = [*run.trained_folds(), *([None] if run.recipe.train.final else [])]
    return max(len(member.title) for fold in folds for member in run.members(fold))
