"""The result files of training beside its weights: the keys that fold.json must have, and the epochs in
history.json."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from pipeline.core.files import read_json
from pipeline.core.intact import damaged, require_intact
from pipeline.core.written import Part, read_checked

if TYPE_CHECKING:
    import pandas as pd

AtLeastZero = Annotated[float, Field(ge=0)]
AGAIN = "restore the file, or train again with --force"
MEASURED = (
    "epoch", "train/loss", "train/dice", "train/iou", "valid/loss", "valid/dice", "valid/iou", "valid/score",
    "learning_rate",
)  # fmt: skip
"""The keys of history.json that are numbers. Trainings of earlier versions have no IoU."""


class Weights(Part):
    """What fold.json says about the weights."""

    sha256: list[str]
    pixels: dict[str, Any] = {}


class Encoder(Part):
    """The initial weights of the encoder."""

    asked: str
    file: str | None = None


class Compute(Part):
    """The device and precision of training."""

    accelerator: str
    precision: str


class Training(Weights):
    """The summary of a training in fold.json."""

    best_epoch: Annotated[int, Field(ge=0)]
    best_score: float | None
    epochs: Annotated[int, Field(ge=1)]
    seconds: AtLeastZero
    images_per_second: AtLeastZero
    weights: Encoder
    compute: Compute


class Speed(Part):
    """The cost of a training. Earlier versions wrote fewer of these keys."""

    parameters: Annotated[int, Field(ge=0)] | None = None
    images_per_second: AtLeastZero | None = None
    seconds: AtLeastZero | None = None
    compute: dict[str, Any] | None = None


def read_training(path: Path, what: type[Part] = Training) -> dict[str, Any]:
    """Returns the summary of a training: the content of fold.json, checked by the model `what`.

    Raises:
        PipelineError: the file is missing or damaged.
    """
    return read_checked(path, what, AGAIN)


def epochs_of(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of history.json, one per epoch; an empty list if the file is missing.

    Raises:
        PipelineError: the file is damaged.
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
    """Returns the numbers in history.json, one row per epoch; an empty table if the file is missing.

    Raises:
        PipelineError: the file is damaged.
    """
    import pandas as pd  # slow to import

    table = pd.DataFrame(epochs_of(path))
    table = table[[name for name in MEASURED if name in table]].apply(pd.to_numeric, errors="coerce")
    return table.dropna(subset="epoch") if "epoch" in table else pd.DataFrame()
