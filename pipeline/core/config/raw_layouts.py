"""The raw layouts that a competition's YAML may name as its `reader`, and what it may say of each."""

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
    """Settings in which a CSV of predictions names classes in `class`, where there is no test set."""
    classes, columns, given = data.get("classes"), data.get("columns") or {}, data.get("submission") or {}
    if data.get("test") is None and "test" in data and isinstance(classes, list | dict) and isinstance(given, dict):
        several = len(classes) > (2 if data.get("kind") == "multiclass" else 1)
        if several and not any({"label", "pattern"} & one.keys() for one in (given, columns)):
            return {**data, "submission": given | {"label": "class"}}
    return data


def _ascending(value: Any) -> Any:
    for one in value if isinstance(value, list) else [value]:
        if one is not None and not one[0] < one[1]:
            raise ValueError(f"expected the lowest and the highest value, e.g. [0, 4095]; got {list(one)}")
    return value


class RleCsv(Competition):
    """Images in folders; masks as run lengths in a CSV, as image files, or as polygons and COCO annotations."""

    reader: Literal["rle_csv"] = "rle_csv"
    train: Subset
    """The training set."""
    test: Subset | None
    """The test set; null where there is none: a run ends with the report and the honest estimate, and `predict --images
    FOLDER` predicts any folder later."""
    columns: Columns = Columns()
    channels: Annotated[int, Field(ge=1, le=MOST_CHANNELS)] | ChannelSettings | None = None
    """How many channels images have, up to 32, or what they are made of: several files, neighbouring slices, some
    channels of each. 4 keeps the fourth channel, which is otherwise taken for transparency and left out."""
    volumes: VolumeSettings | None = None
    """`images` (and mask files) are volumes of slices, each of which is an image; `{}` takes the defaults. The volume
    is the group then, unless `group` says otherwise."""
    windows: WindowSettings | None = None
    """Images are cut into windows; `{}` takes the defaults. The image is the group then, unless `group` says
    otherwise."""
    orientation: Orientation = "upright"
    """`upright` follows the EXIF orientation of images and mask images, as viewers do; `stored` leaves their pixels as
    they are stored, for masks that were drawn on those."""
    value_range: Range | list[Range] | None = None
    """The lowest and the highest value that images may hold, e.g. [0, 4095] of 12-bit pixels in 16-bit files, or a list
    of such pairs, one per channel of a file; they are scaled to the whole range of uint16 (of uint8, where files are
    that; to float16 from 0 to 1, where they are floats), and what lies outside is clipped. null: images are uint8 or
    uint16 and use their range; of DICOM files, the window that they name."""
    ignore_value: Value | AnyOf | None = None
    """What mask images write for pixels that count in no loss and no score, `{any: [0, 255]}` for several values; of
    polygons, the label of such a region."""
    other_labels: Literal["fault", "leave_out"] = "fault"
    """What annotations and rows of a table are whose label is no class: faults, or left out."""

    _range_ascends = field_validator("value_range")(_ascending)

    @model_validator(mode="before")
    @classmethod
    def _complete_test(cls, data: Any) -> Any:
        """Test ids are made of the same parts; without a test set, a CSV of predictions names classes in `class`."""
        train, test = data.get("train"), data.get("test")
        both = isinstance(train, dict) and isinstance(test, dict)
        if both and train.get("id") and test.get("id") is None and "{id}" not in str(test.get("images")):
            return {**data, "test": {**test, "id": train["id"]}}
        return _labels_without_test(data)

    @model_validator(mode="before")
    @classmethod
    def _group_of_parts(cls, data: Any) -> Any:
        """Slices of one volume and windows of one image are of one group, where nothing else is said."""
        parts = data.get("volumes") is not None or data.get("windows") is not None
        return {**data, "group": WHOLE} if parts and "group" not in data else data

    @model_validator(mode="after")
    def _parts_are_possible(self) -> "RleCsv":
        made = self.channels if isinstance(self.channels, ChannelSettings) else ChannelSettings()
        for name in ("train", "test"):
            subset: Subset | None = getattr(self, name)
            if subset is not None and bool(made.bands) != ("{band}" in subset.images):
                raise ValueError(
                    f"{name}.images is {subset.images}, and channels.bands is {made.bands}: `{{band}}` is where the "
                    "name of a band stands, and `channels: {bands: […]}` names them"
                )
        if self.windows is not None:
            if self.volumes is not None or made.slices != [0] or made.first:
                raise ValueError("windows cannot be cut of volumes, neighbouring slices, or arrays with channels first")
            if self.metric_file:
                raise ValueError("metric.file scores whole images, not windows of them: name a built-in metric")
            if self.shape is not None:
                raise ValueError("shape would be that of windows, where images are cut into such: leave `shape` out")
            whole = self.submission.format == "rle" and self.submission.row != "instance" and not self.submission.cell
            if not whole or self.submission.size or self.submission.scored:
                raise ValueError("windows are joined to one mask per image and class; `submission` asks for others")
        return self

    @model_validator(mode="after")
    def _masks_say_enough(self) -> "RleCsv":
        train, test = self.train, self.test
        if train.masks is None:
            raise ValueError("train.masks is missing; name the CSV of masks or the path of mask images")
        tables = self.sample_submission and train.mask_table and self.columns.absent == "fault"
        if test and train.images == test.images and not tables and not (train.listed_in and test.listed_in):
            raise ValueError(
                "train.images and test.images are the same; only `listed_in` of both, or a CSV of masks with a row for "
                "every training image and a sample submission could tell them apart"
            )
        if self.sample_submission and test is None:
            raise ValueError("sample_submission names test images; without a test set (`test: null`) set it to null")
        if train.evaluate or (test and test.evaluate and test.masks is None):
            raise ValueError("evaluate is for the test set, and needs test.masks")
        self._check_classes(train)
        texts = [one for value in [*(self.values or []), *self.ignored_values] for one in values_of(value)]
        texts = [one for one in texts if isinstance(one, str) and one != REST]
        if texts and self.has_class_maps:
            raise ValueError(f"{texts[0]!r} is no value of a mask image; expected a number or [red, green, blue]")
        return self

    def _check_classes(self, train: Subset) -> None:
        """Raises ValueError where masks do not say which class a pixel or a row is of."""
        files, several = train.mask_files, len(self.classes) > 1
        if train.mask_table and self.kind == "multiclass":
            raise ValueError("kind multiclass needs mask images; masks of a CSV may overlap: leave kind out")
        if self.ignore_value is not None and (
            train.mask_table or (files and (self.values is None or "{class}" in files))
        ):
            mapping = ", ".join(f"{name}: {number}" for number, name in enumerate(self.classes, start=1))
            raise ValueError(
                "ignore_value does nothing here; it needs mask images with every class in one file, and the value of "
                f"each class: `classes: {{{mapping}}}` with the numbers that the files hold; or remove ignore_value"
            )
        if several and train.mask_table and not self.columns.labelled:
            raise ValueError(SEVERAL)
        if several and files and "{class}" not in files and self.values is None:
            raise ValueError("mask images of several classes need a value a class: `classes: {name: value}`")
        if files and "{class}" in files and any(isinstance(one, AnyOf) for one in self.values or []):
            raise ValueError("a class with files of its own has one name: `any` is for values, not for `{class}`")
        for subset in filter(None, (train, self.test)):
            if (subset.threshold or subset.instances) and self.values and "{class}" not in (subset.mask_files or ""):
                key = "threshold" if subset.threshold else "instances"
                raise ValueError(f"{key} is for mask images of one class per file")
            if subset.class_times and self.values is None:
                raise ValueError("class_times needs the value of each class: `classes: {name: value}`")

    @property
    def has_class_maps(self) -> bool:
        """Whether mask images hold every class in one file, each as a value of its own."""
        return bool(self.train.mask_files and "{class}" not in self.train.mask_files)

    @property
    def ignored_values(self) -> tuple[Value | AnyOf, ...]:
        """`ignore_value`, where it is given."""
        return () if self.ignore_value is None else (self.ignore_value,)

    @property
    def has_test(self) -> bool:
        """Whether `test` names a test set."""
        return self.test is not None

    @property
    def images_are_files(self) -> bool:
        """Whether every image is one whole file."""
        made = self.channels if isinstance(self.channels, ChannelSettings) else ChannelSettings()
        return self.volumes is None and self.windows is None and not made.bands and made.slices == [0]

    @property
    def remark(self) -> str:
        """As for every competition; and that windows are scored one by one, as images are."""
        by_window = self.windows is not None and METRICS[parse(self.metric)[0].name] == "masks"
        said = ["windows of large images scored as images"] if by_window else []
        return ", ".join([*said, *([super().remark] if super().remark else [])])

    @property
    def images_together(self) -> bool:
        """Whether only the tables tell training and test images apart."""
        return self.test is not None and self.train.images == self.test.images

    @property
    def reads_upright(self) -> bool:
        """Whether `orientation` is `upright`."""
        return self.orientation == "upright"

    @property
    def reading(self) -> dict[str, Any]:
        """As for every competition."""
        made = self.channels if isinstance(self.channels, ChannelSettings) else ChannelSettings()
        found: dict[str, Any] = {"channels": self.channels if isinstance(self.channels, int) else None}
        found |= {"orientation": self.orientation, "value_range": self.value_range}
        return (
            found | ({"pick": tuple(made.pick)} if made.pick else {}) | ({"channels_first": True} if made.first else {})
        )


class NpzLabels(Competition):
    """One .npz: `training_set` (N, 2, H, W), images and class maps, and `test_set` (M, H, W)."""

    reader: Literal["npz_labels"] = "npz_labels"
    file: InsidePath
    """The .npz."""
    ignore_value: int | None = None
    """What class maps write for pixels that count in no loss and no score."""
    value_range: tuple[float, float] | None = None
    """The lowest and the highest value that images may hold, e.g. [0, 4095] of 12-bit pixels; they are scaled to
    the whole range of uint16, and what lies outside is clipped. null: whole numbers up to 255 or 65535 that use that
    range, or fractions from 0 to 1."""
    kind: Literal["multiclass"] = "multiclass"
    submission: SubmissionSettings = SubmissionSettings(format="labels")

    _range_ascends = field_validator("value_range")(_ascending)

    @property
    def reading(self) -> dict[str, Any]:
        """As for every competition."""
        return {"orientation": "stored", "value_range": self.value_range}


class ArrayFiles(Settings):
    """The files of the training or the test set, relative to the competition's input folder."""

    images: InsidePath
    """An .npy (N, rows, columns) or (N, rows, columns, channels), or an array of an .npz, e.g. `data.npz:X_train`. The
    id of an image is its row number."""
    masks: InsidePath | None = None
    """The same of masks: (N, rows, columns) of class numbers, or with one plane per class as the last axis."""
    table: InsidePath | None = None
    """A CSV with a row per image, in their order, for further columns (to group or stratify by)."""
    evaluate: bool = False
    """Of the test set: score the final masks against its `masks`."""

    @property
    def mask_files(self) -> str | None:
        """None: masks are no image files."""
        return None


class Arrays(Competition):
    """Stacked arrays: X_train.npy, y_train.npy, X_test.npy."""

    reader: Literal["arrays"] = "arrays"
    train: ArrayFiles
    """The training set."""
    test: ArrayFiles | None
    """The test set; null where there is none."""
    channels: Annotated[int, Field(ge=1, le=MOST_CHANNELS)] | None = None
    """How many channels images have, up to 32."""
    channels_first: bool = False
    """Whether images are channels × rows × columns, as `channels: {first: true}` says of files."""
    value_range: tuple[float, float] | None = None
    """The lowest and the highest value that images may hold; they are scaled as in image files. null: images are uint8
    or uint16 and use their range."""
    ignore_value: int | None = None
    """What masks hold for pixels that count in no loss and no score."""

    _range_ascends = field_validator("value_range")(_ascending)

    @model_validator(mode="before")
    @classmethod
    def _complete_test(cls, data: Any) -> Any:
        return _labels_without_test(data)

    @model_validator(mode="after")
    def _masks_are_known(self) -> "Arrays":
        if self.train.masks is None:
            raise ValueError("train.masks is missing; name the array of masks")
        if self.sample_submission and self.test is None:
            raise ValueError("sample_submission names test images; without a test set (`test: null`) set it to null")
        if self.test and self.train.images == self.test.images:
            raise ValueError(
                f"train.images and test.images are both {self.test.images}; name the array of the test set"
            )
        if self.train.evaluate or (self.test and self.test.evaluate and self.test.masks is None):
            raise ValueError("evaluate is for the test set, and needs test.masks")
        if strange := [value for value in self.class_values if not isinstance(value, int)]:
            raise ValueError(
                f"the value {strange[0]!r} of a class is no whole number: give `classes: {{name: number}}`"
            )
        return self

    @property
    def has_test(self) -> bool:
        """Whether `test` names a test set."""
        return self.test is not None

    @property
    def class_values(self) -> list[Any]:
        """What masks of one plane hold for each class."""
        if self.values is not None:
            return list(self.values)
        first = 0 if self.kind == "multiclass" else 1
        return list(range(first, first + len(self.classes)))

    @property
    def reading(self) -> dict[str, Any]:
        """As for every competition."""
        found: dict[str, Any] = {"channels": self.channels, "orientation": "stored", "value_range": self.value_range}
        return found | ({"channels_first": True} if self.channels_first else {})


class PetTest(Settings):
    """The official test set, which comes with its trimaps."""

    evaluate: bool = True
    """Score the final masks against them."""


class OxfordPet(Competition):
    """The Oxford-IIIT Pet layout: images/*.jpg, annotations/trimaps/*.png, annotations/{trainval,test}.txt."""

    reader: Literal["oxford_pet"] = "oxford_pet"
    border: Literal["foreground", "background", "ignore"]
    """What a trimap's border (3) counts as, in training and in every score."""
    classes: list[str] = Field(["pet"], min_length=1, max_length=1)
    values: None = None
    test: PetTest = PetTest()
    submission: SubmissionSettings = SubmissionSettings(id="image_id", rle="encoded_mask")

    @property
    def images_together(self) -> bool:
        """They do: the lists tell them apart."""
        return True

    @property
    def remark(self) -> str:
        """The border's reading, without which scores on this data cannot be compared."""
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
        PipelineError: no such file, an unknown reader, an unknown key or a wrong value.
    """
    path = find_yaml(name, FOLDER, "competition")
    data = {"name": path.stem, "reader": "rle_csv", **read_yaml(path)}
    layout = LAYOUTS.get(str(data["reader"]))
    if layout is None:
        raise PipelineError(
            f"competition {path.name}: there is no reader `{data['reader']}`; there are {', '.join(LAYOUTS)}."
        )
    return validate(layout, data, f"competition {path.name}")
