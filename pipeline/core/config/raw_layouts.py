"""The layouts of raw files, which a competition names as its `reader`, and the settings of each."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.core.config.competition import WHOLE, Competition, Orientation
from pipeline.core.config.metric_text import METRICS, parse
from pipeline.core.config.places import InsidePath
from pipeline.core.config.raw_files import REST, SEVERAL, AnyOf, Columns, Subset, Value, values_of
from pipeline.core.config.raw_images import MOST_CHANNELS, ChannelSettings, Range, VolumeSettings, WindowSettings
from pipeline.core.config.settings import Settings, find_yaml, read_yaml, validate
from pipeline.core.config.submission_settings import SubmissionSettings
from pipeline.core.errors import PipelineError

FOLDER = Path(__file__).parents[2] / "competitions"


def _labels_without_test(data: Any) -> Any:
    """Returns the settings of a competition. Without a test set, a CSV file of predictions names classes in the column
    `class`."""
    classes, columns, given = data.get("classes"), data.get("columns") or {}, data.get("submission") or {}
    if data.get("test") is None and "test" in data and isinstance(classes, list | dict) and isinstance(given, dict):
        several = len(classes) > (2 if data.get("kind") == "multiclass" else 1)
        if several and not any({"label", "pattern"} & settings.keys() for settings in (given, columns)):
            return {**data, "submission": given | {"label": "class"}}
    return data


def _ascending(value: Any) -> Any:
    for pair in value if isinstance(value, list) else [value]:
        if pair is not None and not pair[0] < pair[1]:
            raise ValueError(f"expected the lowest and the highest value, e.g. [0, 4095]; got {list(pair)}")
    return value


class RleCsv(Competition):
    """Images in folders. Masks are run lengths in a CSV file, image files, polygons or COCO annotations."""

    reader: Literal["rle_csv"] = "rle_csv"
    train: Subset
    """The training set."""
    test: Subset | None
    """The test set. null: there is none; a run then ends with the report and the nested estimate, and `predict --images
    FOLDER` predicts any folder of images later."""
    columns: Columns = Columns()
    channels: Annotated[int, Field(ge=1, le=MOST_CHANNELS)] | ChannelSettings | None = None
    """The number of channels of an image, at most 32; or a mapping that says what the channels are made of: several
    files, neighbouring slices, selected channels of each file. 4 keeps the fourth channel, which is otherwise treated
    as transparency and removed."""
    volumes: VolumeSettings | None = None
    """Set this if image files (and mask files) are volumes whose slices become the images; `{}` takes the defaults.
    Slices are then grouped by volume, unless `group` says otherwise."""
    windows: WindowSettings | None = None
    """Set this to cut images into windows; `{}` takes the defaults. Windows are then grouped by image, unless `group`
    says otherwise."""
    orientation: Orientation = "upright"
    """`upright` applies the EXIF orientation of images and mask images, as image viewers do. `stored` ignores it, for
    masks that were drawn on the pixels as they are stored."""
    value_range: Range | list[Range] | None = None
    """The lowest and the highest value of the images, e.g. [0, 4095] for 12-bit pixels in 16-bit files, or a list of
    such pairs, one per channel of a file. Values are clipped to this range and scaled to the whole range of uint16 (of
    uint8 for uint8 files; to float16 from 0 to 1 for float files). null: images are uint8 or uint16 and use their whole
    range; for DICOM files, the window in the file."""
    ignore_value: Value | AnyOf | None = None
    """The value in mask images of pixels that are ignored in all losses and scores, or `{any: [0, 255]}` for several
    values. For polygons, the label of such an area."""
    other_labels: Literal["fault", "leave_out"] = "fault"
    """How annotations and table rows are handled whose label is not one of `classes`: as a `fault`, or left out."""

    _range_ascends = field_validator("value_range")(_ascending)

    @model_validator(mode="before")
    @classmethod
    def _complete_test(cls, data: Any) -> Any:
        """Fills in how test ids are built, and the column of classes in a CSV file of predictions without a test
        set."""
        train, test = data.get("train"), data.get("test")
        both = isinstance(train, dict) and isinstance(test, dict)
        if both and train.get("id") and test.get("id") is None and "{id}" not in str(test.get("images")):
            return {**data, "test": {**test, "id": train["id"]}}
        return _labels_without_test(data)

    @model_validator(mode="before")
    @classmethod
    def _group_of_parts(cls, data: Any) -> Any:
        """Groups slices by volume and windows by image, unless `group` is set."""
        parts = data.get("volumes") is not None or data.get("windows") is not None
        return {**data, "group": WHOLE} if parts and "group" not in data else data

    @model_validator(mode="after")
    def _parts_are_possible(self) -> "RleCsv":
        channels = self.channels if isinstance(self.channels, ChannelSettings) else ChannelSettings()
        for name in ("train", "test"):
            subset: Subset | None = getattr(self, name)
            if subset is not None and bool(channels.bands) != ("{band}" in subset.images):
                raise ValueError(
                    f"{name}.images is {subset.images}, and channels.bands is {channels.bands}: images must hold "
                    f"`{{band}}` in place of the band's name exactly if `channels: {{bands: […]}}` lists the bands"
                )
        if self.windows is not None:
            if self.volumes is not None or channels.slices != [0] or channels.first:
                raise ValueError(
                    "windows cannot be combined with volumes, neighbouring slices, or arrays with channels first"
                )
            if self.metric_file:
                raise ValueError("metric.file scores whole images, not windows: use a built-in metric")
            if self.shape is not None:
                raise ValueError("shape would be the shape of the windows: leave `shape` out")
            whole = self.submission.format == "rle" and self.submission.row != "instance" and not self.submission.cell
            if not whole or self.submission.size or self.submission.scored:
                raise ValueError(
                    "windows are joined to one mask per image and class, at the image's own size: `submission` must be "
                    "a table of run lengths with such rows, without instances, cell, size or score"
                )
        return self

    @model_validator(mode="after")
    def _masks_say_enough(self) -> "RleCsv":
        train, test = self.train, self.test
        if train.masks is None:
            raise ValueError("train.masks is missing; set it to the CSV file of masks or to the path of mask images")
        tables = self.sample_submission and train.mask_table and self.columns.absent == "fault"
        if test and train.images == test.images and not tables and not (train.listed_in and test.listed_in):
            raise ValueError(
                "train.images and test.images are the same. To distinguish them, set `listed_in` for both, or use a "
                "sample submission and a CSV file of masks with a row for every training image"
            )
        if self.sample_submission and test is None:
            raise ValueError(
                "sample_submission lists test images, and there is no test set (`test: null`): set it to null"
            )
        if train.evaluate or (test and test.evaluate and test.masks is None):
            raise ValueError("evaluate can only be set for the test set, and needs test.masks")
        self._check_classes(train)
        texts = [part for value in [*(self.values or []), *self.ignored_values] for part in values_of(value)]
        texts = [part for part in texts if isinstance(part, str) and part != REST]
        if texts and self.has_class_maps:
            raise ValueError(f"{texts[0]!r} cannot be a value of a mask image; expected a number or [red, green, blue]")
        return self

    def _check_classes(self, train: Subset) -> None:
        """Raises ValueError if the settings do not determine the class of a pixel or row."""
        files, several = train.mask_files, len(self.classes) > 1
        if train.mask_table and self.kind == "multiclass":
            raise ValueError(
                "kind multiclass needs mask images, because masks in a CSV file may overlap: leave kind out"
            )
        if self.ignore_value is not None and (
            train.mask_table or (files and (self.values is None or "{class}" in files))
        ):
            mapping = ", ".join(f"{name}: {number}" for number, name in enumerate(self.classes, start=1))
            raise ValueError(
                f"ignore_value has no effect here. It needs mask images with all classes in one file, and the value of "
                f"each class, as in `classes: {{{mapping}}}` with the numbers in the files; otherwise remove "
                f"ignore_value"
            )
        if several and train.mask_table and not self.columns.labelled:
            raise ValueError(SEVERAL)
        if several and files and "{class}" not in files and self.values is None:
            raise ValueError("mask images of several classes need one value per class: `classes: {name: value}`")
        if files and "{class}" in files and any(isinstance(value, AnyOf) for value in self.values or []):
            raise ValueError(
                "`any` cannot be used with `{class}`: a class that has its own files needs exactly one name"
            )
        for subset in filter(None, (train, self.test)):
            if (subset.threshold or subset.instances) and self.values and "{class}" not in (subset.mask_files or ""):
                key = "threshold" if subset.threshold else "instances"
                raise ValueError(f"{key} can only be used with mask images of one class per file")
            if subset.class_times and self.values is None:
                raise ValueError("class_times needs the value of each class: `classes: {name: value}`")

    @property
    def has_class_maps(self) -> bool:
        """Whether one mask image holds all classes, each with its own value."""
        return bool(self.train.mask_files and "{class}" not in self.train.mask_files)

    @property
    def ignored_values(self) -> tuple[Value | AnyOf, ...]:
        """`ignore_value` as a tuple, which is empty if it is not set."""
        return () if self.ignore_value is None else (self.ignore_value,)

    @property
    def has_test(self) -> bool:
        """Whether `test` is set."""
        return self.test is not None

    @property
    def images_are_files(self) -> bool:
        """Whether each image is exactly one file."""
        channels = self.channels if isinstance(self.channels, ChannelSettings) else ChannelSettings()
        return self.volumes is None and self.windows is None and not channels.bands and channels.slices == [0]

    @property
    def remark(self) -> str:
        """The remark of all competitions and, with windows, that each window is scored as an image."""
        by_window = self.windows is not None and METRICS[parse(self.metric)[0].name] == "masks"
        remarks = ["windows of large images scored as images"] if by_window else []
        return ", ".join([*remarks, *([super().remark] if super().remark else [])])

    @property
    def images_together(self) -> bool:
        """Whether training and test images lie in the same folder and only tables distinguish them."""
        return self.test is not None and self.train.images == self.test.images

    @property
    def reads_upright(self) -> bool:
        """Whether `orientation` is `upright`."""
        return self.orientation == "upright"

    @property
    def reading(self) -> dict[str, Any]:
        """Further arguments of `read_image` for the competition's image files."""
        channels = self.channels if isinstance(self.channels, ChannelSettings) else ChannelSettings()
        arguments: dict[str, Any] = {"channels": self.channels if isinstance(self.channels, int) else None}
        arguments |= {"orientation": self.orientation, "value_range": self.value_range}
        return (
            arguments
            | ({"pick": tuple(channels.pick)} if channels.pick else {})
            | ({"channels_first": True} if channels.first else {})
        )


class NpzLabels(Competition):
    """One .npz file with `training_set` (N, 2, H, W), images and their class maps, and `test_set` (M, H, W)."""

    reader: Literal["npz_labels"] = "npz_labels"
    file: InsidePath
    """The .npz file."""
    ignore_value: int | None = None
    """The value in class maps of pixels that are ignored in all losses and scores."""
    value_range: tuple[float, float] | None = None
    """The lowest and the highest value of the images, e.g. [0, 4095] for 12-bit pixels. Values are clipped to this
    range and scaled to the whole range of uint16. null: images hold integers up to 255 or 65535 that use this range, or
    fractions from 0 to 1."""
    kind: Literal["multiclass"] = "multiclass"
    submission: SubmissionSettings = SubmissionSettings(format="labels")

    _range_ascends = field_validator("value_range")(_ascending)

    @property
    def reading(self) -> dict[str, Any]:
        """Further arguments of `read_image` for the competition's image files."""
        return {"orientation": "stored", "value_range": self.value_range}


class ArrayFiles(Settings):
    """The files of the training or the test set, relative to the competition's input folder."""

    images: InsidePath
    """A .npy file of shape (N, rows, columns) or (N, rows, columns, channels), or an array in a .npz file, e.g.
    `data.npz:X_train`. The id of an image is its index in the array."""
    masks: InsidePath | None = None
    """The same for masks: class numbers of shape (N, rows, columns), or one plane per class along the last axis."""
    table: InsidePath | None = None
    """A CSV file with one row per image, in the order of the array, and further columns, by which images can be grouped
    or stratified."""
    evaluate: bool = False
    """Only for the test set: whether the final masks are scored against its `masks`."""

    @property
    def mask_files(self) -> str | None:
        """None, because masks are not image files."""
        return None


class Arrays(Competition):
    """Stacked arrays: X_train.npy, y_train.npy, X_test.npy."""

    reader: Literal["arrays"] = "arrays"
    train: ArrayFiles
    """The training set."""
    test: ArrayFiles | None
    """The test set. null: there is none."""
    channels: Annotated[int, Field(ge=1, le=MOST_CHANNELS)] | None = None
    """The number of channels of an image, at most 32."""
    channels_first: bool = False
    """Whether images have the shape channels × rows × columns."""
    value_range: tuple[float, float] | None = None
    """The lowest and the highest value of the images, which are scaled as by the setting of the same name of `rle_csv`.
    null: images are uint8 or uint16 and use their whole range."""
    ignore_value: int | None = None
    """The value in masks of pixels that are ignored in all losses and scores."""

    _range_ascends = field_validator("value_range")(_ascending)

    @model_validator(mode="before")
    @classmethod
    def _complete_test(cls, data: Any) -> Any:
        return _labels_without_test(data)

    @model_validator(mode="after")
    def _masks_are_known(self) -> "Arrays":
        if self.train.masks is None:
            raise ValueError("train.masks is missing; set it to the array of masks")
        if self.sample_submission and self.test is None:
            raise ValueError(
                "sample_submission lists test images, and there is no test set (`test: null`): set it to null"
            )
        if self.test and self.train.images == self.test.images:
            raise ValueError(
                f"train.images and test.images are both {self.test.images}; set test.images to the array of the test "
                f"set"
            )
        if self.train.evaluate or (self.test and self.test.evaluate and self.test.masks is None):
            raise ValueError("evaluate can only be set for the test set, and needs test.masks")
        if no_integers := [value for value in self.class_values if not isinstance(value, int)]:
            raise ValueError(
                f"the value {no_integers[0]!r} of a class is not an integer; expected `classes: {{name: number}}`"
            )
        return self

    @property
    def has_test(self) -> bool:
        """Whether `test` is set."""
        return self.test is not None

    @property
    def class_values(self) -> list[Any]:
        """The value of each class in masks that are class maps."""
        if self.values is not None:
            return list(self.values)
        first = 0 if self.kind == "multiclass" else 1
        return list(range(first, first + len(self.classes)))

    @property
    def reading(self) -> dict[str, Any]:
        """Further arguments of `read_image` for the competition's image files."""
        arguments: dict[str, Any] = {
            "channels": self.channels,
            "orientation": "stored",
            "value_range": self.value_range,
        }
        return arguments | ({"channels_first": True} if self.channels_first else {})


class PetTest(Settings):
    """The settings of the official test set, whose trimaps are known."""

    evaluate: bool = True
    """Whether the final masks are scored against the trimaps."""


class OxfordPet(Competition):
    """The Oxford-IIIT Pet layout: images/*.jpg, annotations/trimaps/*.png, annotations/{trainval,test}.txt."""

    reader: Literal["oxford_pet"] = "oxford_pet"
    border: Literal["foreground", "background", "ignore"]
    """How the border of a trimap (value 3) is handled, in training and in all scores."""
    classes: list[str] = Field(["pet"], min_length=1, max_length=1)
    values: None = None
    test: PetTest = PetTest()
    submission: SubmissionSettings = SubmissionSettings(id="image_id", rle="encoded_mask")

    @property
    def images_together(self) -> bool:
        """True: training and test images lie in one folder, and lists distinguish them."""
        return True

    @property
    def remark(self) -> str:
        """How the border is handled. Scores on this data can only be compared if it is the same."""
        return f"border: {self.border}"


LAYOUTS: dict[str, type[Competition]] = {
    "rle_csv": RleCsv,
    "npz_labels": NpzLabels,
    "arrays": Arrays,
    "oxford_pet": OxfordPet,
}


def load_competition(name: str) -> Competition:
    """Returns the competition with this name (pipeline/competitions/<name>.yaml) or at this path.

    Raises:
        PipelineError: the file does not exist, or has an unknown reader, an unknown key or a wrong value.
    """
    path = find_yaml(name, FOLDER, "competition")
    data = {"name": path.stem, "reader": "rle_csv", **read_yaml(path)}
    layout = LAYOUTS.get(str(data["reader"]))
    if layout is None:
        raise PipelineError(
            f"competition {path.name}: there is no reader `{data['reader']}`. Known: {', '.join(LAYOUTS)}."
        )
    return validate(layout, data, f"competition {path.name}")
