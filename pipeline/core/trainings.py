"""What training leaves beside its weights: which keys fold.json must have, and the epochs of history.json."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from pipeline.core.files import read_json
from pipeline.core.intact import damaged, require_intact
from pipeline.core.written import Part, read_checked

if TYPE_CHECKING:
    import pandas as pd

AtLeastZero = Annotated[float, Field(ge=0)]
AGAIN = "put the file back, or train again with --force"
MEASURED = (
    "epoch", "train/loss", "train/dice", "train/iou", "valid/loss", "valid/dice", "valid/iou", "valid/score",
    "learning_rate",
)  # fmt: skip
"""Columns of history.json that hold numbers. Trainings of earlier versions lack the two of IoU."""


class Weights(Part):
    """What is known of weights."""

    sha256: list[str]
    pixels: dict[str, Any] = {}


class Encoder(Part):
    """The encoder's first weights."""

    asked: str
    file: str | None = None


class Compute(Part):
    """What trained."""

    accelerator: str
    precision: str


class Training(Weights):
    """What the train stage says of a training."""

    best_epoch: Annotated[int, Field(ge=0)]
    best_score: float | None
    epochs: Annotated[int, Field(ge=1)]
    seconds: AtLeastZero
    images_per_second: AtLeastZero
    weights: Encoder
    compute: Compute


class Speed(Part):
    """What a training cost, of which an earlier version may have said less."""

    parameters: Annotated[int, Field(ge=0)] | None = None
    images_per_second: AtLeastZero | None = None
    seconds: AtLeastZero | None = None
    compute: dict[str, Any] | None = None


def read_training(path: Path, what: type[Part] = Training) -> dict[str, Any]:
    """Returns the summary of a training, fold.json, of which `what` is needed.

    Raises:
        PipelineError: it is missing or damaged.
    """
    return read_checked(path, what, AGAIN)


def epochs_of(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of history.json, one per epoch; none where it is missing.

    Raises:
        PipelineError: it is damaged.
    """
    try:
        rows = read_json(path)
    except FileNotFoundError:
        require_intact(path)
        return []
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, error, AGAIN) from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise damaged(path, "it is not a list of epochs", AGAIN)
    require_intact(path)
    return rows


def history_of(path: Path) -> "pd.DataFrame":
    """Returns the numbers of history.json, one row per epoch; none where it is missing.

    Raises:
        PipelineError: it is damaged.
    """
    import pandas as pd  # slow to import

    table = pd.DataFrame(epochs_of(path))
    table = table[[name for name in MEASURED if name in table]].apply(pd.to_numeric, errors="coerce")
    return table.dropna(subset="epoch") if "epoch" in table else pd.DataFrame()
