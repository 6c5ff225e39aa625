"""What a competition's YAML may say: where its raw files lie, what they mean and how it is scored."""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from pipeline import rle
from pipeline.settings import Settings, find_yaml, read_yaml, validate

FOLDER = Path(__file__).parent / "competitions"


class Subset(Settings):
    """The files of the training or the test set, relative to the competition's input folder."""

    images: str
    """Path of an image with `{id}` where its id stands, e.g. `train/images/{id}.png`."""
    masks: str | None = None
    """CSV with one row an image."""
    exclude: list[str] = []
    """File name patterns that match `images` but are none, e.g. `*_mask.tif`."""

    @field_validator("images")
    @classmethod
    def _one_id(cls, value: str) -> str:
        if value.count("{id}") != 1 or "{id}" not in Path(value).name:
            raise ValueError("expected a path whose file name holds {id} once, e.g. train/{id}.png")
        return value


class Columns(Settings):
    """The columns of a table of masks."""

    id: str = "id"
    """A column, or a template over columns such as `{subject}_{img}`."""
    rle: str = "rle"
    """The column of run-length encoded masks."""


class RleSettings(Settings):
    """The competition's run-length convention; inside the pipeline it is always column-major, 1-based, "" for empty."""

    order: Literal["column", "row"] = "column"
    base: Literal[0, 1] = 1
    empty: str = ""

    def convention(self) -> rle.Convention:
        """Returns the codec's form of these settings."""
        return rle.Convention(self.order, self.base, self.empty)


class DecodeSettings(Settings):
    """What decode does about faults in the raw files."""

    on_error: Literal["stop", "drop"] = "stop"
    """`drop` turns a faulty training image into a `broken` row of outliers.csv; a faulty test image always stops."""


class CleanSettings(Settings):
    """Which images clean drops from training."""

    constant: bool = True
    """Drop images whose pixels all have one value."""


class SplitSettings(Settings):
    """How folds/<competition>.csv is made."""

    folds: int = Field(5, ge=2)
    seed: int = 0
    strata: int = Field(4, ge=1)
    """Number of mask-area quantiles told apart among images with a mask."""


class Competition(Settings):
    """One competition, as its YAML describes it."""

    name: str
    """The YAML's file name; names the folder in input/."""
    title: str
    reader: Literal["rle_csv"] = "rle_csv"
    train: Subset
    test: Subset
    sample_submission: str | None = None
    columns: Columns = Columns()
    submission: Columns | None = None
    """The submission's columns, where they differ from `columns`."""
    rle: RleSettings = RleSettings()
    classes: list[str] = Field(min_length=1)
    """One mask a class; several classes may overlap."""
    shape: tuple[int, int] | None = None
    """Rows × columns of every image, where the competition promises one."""
    group: str | None = None
    """Column whose images must stay in one fold, e.g. the patient."""
    metric: Literal["dice", "iou_precision"]
    decode: DecodeSettings = DecodeSettings()
    clean: CleanSettings = CleanSettings()
    split: SplitSettings = SplitSettings()
    kaggle: str | None = None
    """The competition's name in its Kaggle address."""

    @property
    def kind(self) -> Literal["binary", "multilabel"]:
        """One class, or several that may overlap; both are arrays (C, H, W)."""
        return "binary" if len(self.classes) == 1 else "multilabel"

    @property
    def submission_columns(self) -> Columns:
        """The id and mask column of a submission."""
        return self.submission or self.columns


def load_competition(name: str) -> Competition:
    """Returns the competition with this name (pipeline/competitions/<name>.yaml) or at this path.

    Raises:
        PipelineError: no such file, an unknown key or a wrong value.
    """
    path = find_yaml(name, FOLDER, "competition")
    return validate(Competition, {"name": path.stem, **read_yaml(path)}, f"competition {path.name}")
