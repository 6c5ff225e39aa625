"""What a training keeps while it is unfinished, which goes when it is done: checkpoints, the mark of what it was made
from, temporary files."""

from pathlib import Path

import pandas as pd

from pipeline.core.files import write_text
from pipeline.core.freshness import Step
from pipeline.core.run import Run
from pipeline.core.trainings import epochs_of
from pipeline.core.written import if_sound


def started(step: Step) -> Path:
    """Returns the mark of an unfinished training: a manifest of what it is made from."""
    return step.manifest.with_name("started.json")


def has_weights(step: Step) -> bool:
    """Returns whether training left weights or a checkpoint."""
    return any(path.exists() for path in step.sealed) or any(step.manifest.parent.glob("*.ckpt"))


def remove_unfinished(step: Step) -> None:
    """Removes the checkpoints of a training that is done, and its mark after them: they are known by it."""
    folder = step.manifest.parent
    for path in [*folder.glob("*.ckpt"), *folder.glob(".*.partial"), started(step)]:
        path.unlink(missing_ok=True)


def tidy(run: Run, finished: list[Step]) -> None:
    """Removes what a killed process left of trainings that were finished, and writes history.csv again where it is not
    what history.json says."""
    for step in finished:
        remove_unfinished(step)
        table = step.manifest.with_name("history.csv")
        rows = if_sound(epochs_of, table.with_suffix(".json"))
        text = pd.DataFrame(rows).to_csv(index=False) if rows else ""
        if text and not (table.exists() and table.read_bytes() == text.encode()):
            write_text(table, text)
