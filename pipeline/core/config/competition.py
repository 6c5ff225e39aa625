"""The settings of a competition: where its raw files lie, what they mean and how it is scored."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.core.config.cleaning import CleanSettings
from pipeline.core.config.metric_file import MetricFile, separate_metric_file
from pipeline.core.config.metric_text import METRICS, parse, written
from pipeline.core.config.places import InsidePath, PlainName, Side
from pipeline.core.config.preparing import DecodeSettings, SplitSettings
from pipeline.core.config.raw_files import (
    AnyOf,
    RleSettings,
    Value,
    values_of,
)
from pipeline.core.config.settings import Settings
from pipeline.core.config.submission_settings import File, SubmissionSettings, check, completed, file_of

Kind = Literal["binary", "multilabel", "multiclass"]
Orientation = Literal["upright", "stored"]
WHOLE = "whole"
"""The column by which slices of a volume and windows of an image are grouped: the volume or image they belong to."""


class Competition(Settings):
    """The settings that all competitions have, regardless of the layout of their raw files."""

    name: PlainName
    """Name of the competition; by default the YAML file's name without its extension."""
    title: str
    """The competition's title."""
    reader: str
    """The reader of its raw files: `rle_csv`, `npz_labels`, `arrays` or `oxford_pet`."""
    input: InsidePath | None = None
    """The folder of its raw files in input/. Default: the competition's name or, if there is no such folder,
    `kaggle`."""
    classes: list[str] = Field(min_length=1)
    """The names of the classes; or a mapping from each name to its value in the raw files: a number, a text, [red,
    green, blue], `{any: [7, 8]}` for several values, or in class maps `rest` for all values that no other class has."""
    values: list[Value | AnyOf] | None = None
    """The value of each class in the raw files, if `classes` is a list of names."""
    kind: Kind = "binary"
    """`binary` (one class), `multilabel` (classes may overlap; one mask per class) or `multiclass` (each pixel has
    exactly one class; the first class is the background). Default: `binary` for one class, `multilabel` for several."""
    shape: tuple[Side, Side] | None = None
    """Rows × columns of all images, if the competition guarantees one size. Other sizes are then reported as faults."""
    group: str | None = None
    """What must stay together in one fold, e.g. a patient. Either a column of the mask table (or of `train.table`) or a
    named part of `train.images`; or several of them in one text, e.g. `{site}_{patient}`; or a pattern of the id with
    `{group}`, e.g. `{group}_day{day}_slice_{number}`, in which each name in braces matches as few characters as
    possible."""
    group_missing: Literal["fault", "own"] = "fault"
    """How an image is handled whose group is blank, NA, NaN, null or none: as a `fault`, or as its `own` group of one
    image."""
    metric: str = Field(json_schema_extra={"one_of": list(METRICS)})
    """The competition's metric: a name, with settings in parentheses, or a weighted sum, e.g. `dice`, `f_beta(beta=0.5,
    over=data_set)` or `0.5 * dice + 0.5 * iou` (see docs/scores.md). Or a mapping with a `file`: the competition's own
    published metric."""
    metric_file: MetricFile | None = None
    """The settings of `metric` if it is a mapping. Not a key of the YAML file."""
    ignore_class: str | None = None
    """Only for multiclass competitions: pixels whose true class is this one are ignored in all losses and scores."""
    ignored_prediction: Literal["leave_out", "zero"] = "leave_out"
    """How mean_iou handles `ignore_class` predicted for a pixel of another class. `leave_out`: only as an error of the
    true class. `zero`: the ignored class also enters the mean with IoU 0."""
    forbids_pretrained: str | None = None
    """If the rules forbid pretrained weights, a text that says why. Encoder weights other than `none` are then refused
    with this text."""
    rle: RleSettings = RleSettings()
    sample_submission: InsidePath | None = None
    """The file whose columns and ids a submission must have. null: the columns of `submission` and the ids of the test
    images."""
    submission: SubmissionSettings = SubmissionSettings()
    decode: DecodeSettings = DecodeSettings()
    clean: CleanSettings = CleanSettings()
    split: SplitSettings = SplitSettings()
    splits: dict[PlainName, SplitSettings] = {}
    """Further splits by name. Each is written to folds/<competition>-<name>.csv when a recipe uses it."""
    kaggle: PlainName | None = None
    """The competition's name in its address on Kaggle."""
    baseline: dict[str, Any] = {}
    """Settings of a recipe that are merged over the recipe `baseline` when `run` is given the name of this competition,
    and over the chosen recipe for `run auto`. The key `base` names another recipe to merge them over."""

    @model_validator(mode="before")
    @classmethod
    def _split_classes_and_values(cls, data: Any) -> Any:
        classes = data.get("classes")
        if not isinstance(classes, dict):
            return data
        if data.get("values") is not None:
            raise ValueError("give `classes` as a mapping, or `values` beside a list of `classes`, not both")
        for name, value in classes.items():
            colour = isinstance(value, list | tuple) and [type(part) for part in value] == [int, int, int]
            several = isinstance(value, dict) and value.keys() == {"any"}
            if isinstance(value, int) and not -(2**31) <= value < 2**32:
                raise ValueError(f"class {name} is {value}; numbers in class maps go from -2147483648 to 4294967295")
            if not colour and not several and not isinstance(value, int | str):
                expected = "a number, a text, [red, green, blue], or {any: [7, 8]} for several values"
                raise ValueError(f"class {name} is {value!r}; expected {expected}")
        return {**data, "classes": [str(name) for name in classes], "values": list(classes.values())}

    @model_validator(mode="before")
    @classmethod
    def _complete_kind(cls, data: Any) -> Any:
        classes, usual = data.get("classes"), cls.model_fields["kind"].default
        if data.get("kind") is not None:
            return separate_metric_file(data, data["kind"])
        several = isinstance(classes, list | dict) and len(classes) > 1
        kind = "multilabel" if several and usual == "binary" else usual
        return separate_metric_file({**data, "kind": kind}, kind)

    @model_validator(mode="before")
    @classmethod
    def _complete_submission(cls, data: Any) -> Any:
        return completed(data, cls.model_fields["submission"].default.model_dump(exclude_unset=True))

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, text: str) -> str:
        return written(parse(text))

    @model_validator(mode="after")
    def _consistent(self) -> "Competition":
        values = [part for value in self.values or [] for part in values_of(value)]
        for name, given in (("classes", self.classes), ("values", values)):
            if len(set(given)) != len(given):
                raise ValueError(f"{name} must all be different; they are {given}")
        if self.values is not None and len(self.values) != len(self.classes):
            raise ValueError(f"values has {len(self.values)} entries; expected {len(self.classes)}, one per class")
        if self.kind == "multiclass" and len(self.classes) < 2:
            raise ValueError("kind multiclass needs at least two classes, of which the first is the background")
        if self.kind == "binary" and len(self.classes) != 1:
            raise ValueError(f"kind binary has one class; `classes` has {len(self.classes)}")
        of_maps = [name for name, of in METRICS.items() if of == "class maps"]
        if (parse(self.metric)[0].name in of_maps) != (self.kind == "multiclass"):
            raise ValueError(
                f"metric {self.metric} does not fit kind {self.kind}: multiclass competitions need "
                f"{', '.join(of_maps)}, and all others need another metric"
            )
        images = self.submission.format == "images" or self.submission.file == "json" or self.submission.scored
        if self.metric_file and images:
            raise ValueError(
                "metric.file can only score tables of run lengths without {score}, not mask images or COCO results: "
                "use a built-in metric"
            )
        if self.ignore_class is not None and (self.ignore_class not in self.classes or self.kind != "multiclass"):
            raise ValueError(f"ignore_class is {self.ignore_class!r}; expected a class of a multiclass competition")
        check(self.submission, self.rle, self.kind, self.foreground, self.sample_submission)
        return self

    @property
    def scored_by(self) -> str:
        """The metric of all final scores, as messages name it: the file name of the competition's own metric, or the
        built-in metric."""
        return Path(self.metric_file.file).name if self.metric_file else self.metric

    @property
    def folder(self) -> str:
        """Name of the folder of raw files in input/."""
        return self.input or self.name

    @property
    def has_test(self) -> bool:
        """Whether the competition has a test set."""
        return True

    @property
    def images_are_files(self) -> bool:
        """Whether each image is exactly one file."""
        return True

    def scored_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Returns the rows × columns at which the masks of an image of this shape are thresholded, scored and
        submitted."""
        return self.submission.size or shape

    @property
    def submission_file(self) -> File:
        """The file type of submissions."""
        return file_of(self.submission, self.sample_submission)

    @property
    def images_together(self) -> bool:
        """Whether training and test images lie in the same folder, so that each id belongs to one file."""
        return False

    @property
    def reads_upright(self) -> bool:
        """Whether images and masks are rotated when read, as their EXIF orientation says."""
        return False

    @property
    def reading(self) -> dict[str, Any]:
        """Further arguments of `read_image` for the competition's image files."""
        return {"orientation": "stored"}

    @property
    def ignored(self) -> int | None:
        """Number of the ignored class; None if there is none."""
        return None if self.ignore_class is None else self.classes.index(self.ignore_class)

    @property
    def counted(self) -> list[int]:
        """Numbers of the classes that are not ignored."""
        return [number for number in range(len(self.classes)) if number != self.ignored]

    @property
    def foreground(self) -> list[str]:
        """The classes whose areas count as foreground: all but a multiclass background."""
        return self.classes[1:] if self.kind == "multiclass" else self.classes

    @property
    def remark(self) -> str:
        """A text that must accompany each score, because the score depends on it; "" if there is none."""
        if self.ignore_class is None:
            return ""
        joins = "joins the mean with IoU 0" if self.ignored_prediction == "zero" else "is a miss only"
        return f"true {self.ignore_class} ignored; predicted {self.ignore_class} {joins}"
