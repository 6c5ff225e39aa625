"""What a competition's YAML may say: where its raw files lie, what they mean and how it is scored."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.core.config.cleaning import CleanSettings
from pipeline.core.config.metric_file import MetricFile, taken_apart
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
"""The group of the slices of a volume and of the windows of an image: what they are parts of."""


class Competition(Settings):
    """What every competition's YAML may say, whatever its raw layout."""

    name: PlainName
    """The YAML's file name."""
    title: str
    """What people call it."""
    reader: str
    """What reads its raw files: `rle_csv`, `npz_labels`, `arrays` or `oxford_pet`."""
    input: InsidePath | None = None
    """The folder in input/; default: the name, or where there is none of that name, `kaggle`."""
    classes: list[str] = Field(min_length=1)
    """Their names; or a mapping from each name to what the raw files write for it: a number, a text, [red, green,
    blue], `{any: [7, 8]}` for several values, or in class maps `rest` for all values that nothing else names."""
    values: list[Value | AnyOf] | None = None
    """What the raw files write for each class, where `classes` are names only."""
    kind: Kind = "binary"
    """`binary`, `multilabel` (classes may overlap: one mask each) or `multiclass` (every pixel has one of the classes,
    the first of which is the background). Left out, one class is binary and several may overlap."""
    shape: tuple[Side, Side] | None = None
    """Rows × columns of every image, where the competition promises one."""
    group: str | None = None
    """What must stay in one fold, e.g. the patient: a column of the mask table (or of `train.table`), or a named part
    of `train.images`; several of them in one text, e.g. `{site}_{patient}`; or a pattern of the id that holds
    `{group}`, e.g. `{group}_day{day}_slice_{number}`, where each name in braces takes as little as it can."""
    group_missing: Literal["fault", "own"] = "fault"
    """How an image counts whose group is blank, NA, NaN, null or none: as a fault, or as a group of its `own`."""
    metric: str = Field(json_schema_extra={"one_of": list(METRICS)})
    """What the competition scores by: a metric, with settings in brackets, or a weighted sum, e.g. `dice`,
    `f_beta(beta=0.5, over=data_set)` or `0.5 * dice + 0.5 * iou`; docs/scores.md. Or a mapping with a
    `file`: the competition's own metric as it is published."""
    metric_file: MetricFile | None = None
    """What `metric` says where it is a mapping; not a key of its own."""
    ignore_class: str | None = None
    """Multiclass: pixels whose truth is this class count in no loss and no score."""
    ignored_prediction: Literal["leave_out", "zero"] = "leave_out"
    """What mean_iou does when `ignore_class` is predicted for another class's pixel: nothing but count the miss, or let
    the ignored class join the mean with IoU 0."""
    forbids_pretrained: str | None = None
    """Why encoder weights other than `none` are refused, where the rules say so."""
    rle: RleSettings = RleSettings()
    sample_submission: InsidePath | None = None
    """The file whose columns and ids a submission must have; null: those of `submission`, and the test images' ids."""
    submission: SubmissionSettings = SubmissionSettings()
    decode: DecodeSettings = DecodeSettings()
    clean: CleanSettings = CleanSettings()
    split: SplitSettings = SplitSettings()
    splits: dict[PlainName, SplitSettings] = {}
    """Further splits by name, written to folds/<competition>-<name>.csv for the recipes that ask for them."""
    kaggle: PlainName | None = None
    """The competition's name in its Kaggle address."""
    baseline: dict[str, Any] = {}
    """What the recipe `baseline` says otherwise where `run` is given the name of this competition."""

    @model_validator(mode="before")
    @classmethod
    def _take_classes_apart(cls, data: Any) -> Any:
        classes = data.get("classes")
        if not isinstance(classes, dict):
            return data
        if data.get("values") is not None:
            raise ValueError("give `classes` as a mapping, or `values` beside a list of `classes`, not both")
        for name, value in classes.items():
            colour = isinstance(value, list | tuple) and [type(part) for part in value] == [int, int, int]
            several = isinstance(value, dict) and value.keys() == {"any"}
            if isinstance(value, int) and not -(2**31) <= value < 2**32:
                raise ValueError(f"class {name} is {value}; no file of class maps holds a number of that size")
            if not colour and not several and not isinstance(value, int | str):
                expected = "a number, a text, [red, green, blue], or {any: [7, 8]} for several values"
                raise ValueError(f"class {name} is {value!r}; expected {expected}")
        return {**data, "classes": [str(name) for name in classes], "values": list(classes.values())}

    @model_validator(mode="before")
    @classmethod
    def _complete_kind(cls, data: Any) -> Any:
        classes, usual = data.get("classes"), cls.model_fields["kind"].default
        if data.get("kind") is not None:
            return taken_apart(data, data["kind"])
        several = isinstance(classes, list | dict) and len(classes) > 1
        kind = "multilabel" if several and usual == "binary" else usual
        return taken_apart({**data, "kind": kind}, kind)

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
        values = [one for value in self.values or [] for one in values_of(value)]
        for name, given in (("classes", self.classes), ("values", values)):
            if len(set(given)) != len(given):
                raise ValueError(f"{name} repeats itself: {given}")
        if self.values is not None and len(self.values) != len(self.classes):
            raise ValueError(f"values has {len(self.values)} entries for {len(self.classes)} classes")
        if self.kind == "multiclass" and len(self.classes) < 2:
            raise ValueError("kind multiclass needs at least two classes, the background first")
        if self.kind == "binary" and len(self.classes) != 1:
            raise ValueError(f"kind binary has one class; `classes` has {len(self.classes)}")
        of_maps = [name for name, of in METRICS.items() if of == "class maps"]
        if (parse(self.metric)[0].name in of_maps) != (self.kind == "multiclass"):
            raise ValueError(
                f"metric {self.metric} does not fit kind {self.kind}: "
                f"{', '.join(of_maps)} is for multiclass, and only it"
            )
        images = self.submission.format == "images" or self.submission.file == "json" or self.submission.scored
        if self.metric_file and images:
            raise ValueError(
                "metric.file scores tables of run lengths without {score}, and no mask images or COCO's results: name "
                "a built-in metric"
            )
        if self.ignore_class is not None and (self.ignore_class not in self.classes or self.kind != "multiclass"):
            raise ValueError(f"ignore_class is {self.ignore_class!r}; expected a class of a multiclass competition")
        check(self.submission, self.rle, self.kind, self.foreground, self.sample_submission)
        return self

    @property
    def scored_by(self) -> str:
        """The metric of every final score, as messages name it: that of the competition's own file, or a built-in
        one."""
        return Path(self.metric_file.file).name if self.metric_file else self.metric

    @property
    def folder(self) -> str:
        """Name of the folder of raw files."""
        return self.input or self.name

    @property
    def has_test(self) -> bool:
        """Whether there is a test set."""
        return True

    @property
    def images_are_files(self) -> bool:
        """Whether every image is one whole file."""
        return True

    def scored_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Returns the rows × columns at which the masks of an image of this shape are decided, scored and submitted."""
        return self.submission.size or shape

    @property
    def submission_file(self) -> File:
        """The kind of file of its submissions."""
        return file_of(self.submission, self.sample_submission)

    @property
    def images_together(self) -> bool:
        """Whether training and test images lie in one place, so that an id means one file."""
        return False

    @property
    def reads_upright(self) -> bool:
        """Whether images and masks that are stored turned (EXIF orientation) are read as viewers show them."""
        return False

    @property
    def reading(self) -> dict[str, Any]:
        """How its image files are read: further arguments of `read_image`."""
        return {"orientation": "stored"}

    @property
    def ignored(self) -> int | None:
        """Number of the ignored class."""
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
        """What must stand beside every score for it to mean something."""
        if self.ignore_class is None:
            return ""
        joins = "joins the mean with IoU 0" if self.ignored_prediction == "zero" else "is a miss only"
        return f"true {self.ignore_class} ignored; predicted {self.ignore_class} {joins}"
