"""Files of an unfinished training that are removed when it is done: checkpoints, started.json and temporary files."""

from pathlib import Path

import pandas as pd

from pipeline.core.files import write_text
from pipeline.core.freshness import Step
from pipeline.core.run import Run
from pipeline.core.trainings import epochs_of
from pipeline.core.written import if_sound


def started(step: Step) -> Path:
    """Returns the path of started.json, the manifest of the inputs of an unfinished training."""
    return step.manifest.with_name("started.json")


def has_weights(step: Step) -> bool:
    """Returns whether the folder of a training contains weights or a checkpoint."""
    return any(path.exists() for path in step.sealed) or any(step.manifest.parent.glob("*.ckpt"))


def remove_unfinished(step: Step) -> None:
    """Removes the checkpoints and features of a finished training, and then started.json, which identifies them."""
    folder = step.manifest.parent
    for path in [*folder.glob("*.ckpt"), *folder.glob(".*.partial"), *folder.glob("features_*"), started(step)]:
        path.unlink(missing_ok=True)


def tidy(run: Run, finished: list[Step]) -> None:
    """Removes what a killed process left of finished trainings, and rewrites history.csv if it differs from
    history.json."""
    for step in finished:
        remove_unfinished(step)
        table = step.manifest.with_name("history.csv")
        rows = if_sound(epochs_of, table.with_suffix(".json"))
        text = pd.DataFrame(rows).to_csv(index=False) if rows else ""
        if text and not (table.exists() and table.read_bytes() == text.encode()):
            write_text(table, text)
