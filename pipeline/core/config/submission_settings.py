"""The settings of a competition for its submissions: the file type, the rows and columns, or the mask images."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.core.config.places import Side
from pipeline.core.config.raw_files import SEVERAL, Columns, RleSettings, names_in

File = Literal["csv", "csv.gz", "parquet", "zip", "json"]
ENDINGS: dict[File, str] = {
    "csv": ".csv",
    "csv.gz": ".csv.gz",
    "parquet": ".parquet",
    "zip": ".zip",
    "json": ".results.json",
}
"""The file name ending of submissions of each type. (`.json` alone is the ending of the record beside a submission.)"""
RESULTS = {"id": "image_id", "label": "category_id", "rle": "segmentation"}
"""The names of the columns in the format of COCO results."""
_IN_CELL = {"class", "score", "rle"}


def file_of_name(name: str) -> File | None:
    """Returns the file type for a file name, by its ending; None if submissions do not have this ending."""
    lower = name.lower()
    if lower.endswith(".json"):
        return "json"
    return next((kind for kind, ending in ENDINGS.items() if lower.endswith(ending)), None)


class SubmissionSettings(Columns):
    """The format of a submission."""

    format: Literal["rle", "labels", "images"] = "rle"
    """`rle`: a table of run lengths. `labels`: one row per image with its id, then the class of each pixel, row by row,
    in columns 0, 1, 2, … `images`: a zip file of mask images; see `image`."""
    file: File | None = None
    """The file type: `csv`, `csv.gz`, `parquet` (with text columns), `zip` (of a CSV file or of mask images), or `json`
    (COCO results: one entry per instance with `image_id`, `category_id`, `segmentation` and `score`). null: the type of
    the sample submission; without one `zip` for mask images, otherwise `csv`."""
    size: tuple[Side, Side] | None = None
    """Rows × columns of submitted masks, if they differ from the size of the images. Masks are then thresholded, tuned
    and scored at this size. null: the size of each image."""
    resize: Literal["area", "nearest"] = "area"
    """How true masks are resized to `size`. `area`: a pixel belongs to the mask if at least half of its area does.
    `nearest`: the value of the nearest pixel."""
    image: str | None = None
    """Only with `format: images`: the file name of a mask image, .png or .tif, e.g. `{id}.tif`, with `{class}` if each
    class has its own image. It may hold the named parts of `test.images` too. For volumes, `{id}` is the volume, and
    its slices are the pages of one TIFF file."""
    values: list[Annotated[int, Field(ge=0, le=65535)]] | None = None
    """Only with `format: images`: the pixel value of each of `classes`; all other pixels are 0. null: 1, or in class
    maps the values of the raw files."""
    columns: dict[str, bool | str | int | float] = {}
    """Further columns, e.g. `{height: "{height}", Usage: Public, confidence: "{score}"}`. Each is a constant or a text
    with `{id}`, `{height}`, `{width}` (of the image), `{group}`, `{class}`, `{score}` (the mean probability of the mask
    or instance from 0 to 1; 0 for an empty mask) and the named parts or table columns of the image. Columns have the
    order of the sample submission. Without one, they have the order given here and follow id, class and run lengths,
    unless these are listed here too, as `"{id}"`, `"{class}"` and `"{rle}"`. An id column may be built from other parts
    than `{id}`."""
    cell: str | None = None
    """If one cell holds all instances of an image: the text for each instance, `{rle}` or e.g. `{class} {score} {rle}`.
    Instances are separated by `rle.several` (by a space if that is not set)."""
    overlap: Literal["none", "classes", "any"] = "classes"
    """Which masks of an image may overlap: `none`; those of different `classes`, but not instances of the same class;
    or `any`."""

    @property
    def row(self) -> Literal["image", "class", "instance"]:
        """What a row stands for."""
        if self.cell:
            return "class" if self.labelled else "image"
        return super().row

    @property
    def classes_in_cell(self) -> bool:
        """Whether a cell names the class of each instance."""
        return self.cell is not None and "{class}" in self.cell

    @property
    def scored(self) -> bool:
        """Whether the submission holds a confidence score per mask."""
        return "{score" in " ".join([*map(str, self.columns.values()), self.cell or ""])

    @model_validator(mode="after")
    def _kinds_fit(self) -> "SubmissionSettings":
        if self.format == "images":
            if (
                self.image is None
                or not names_in(self.image)
                or not self.image.lower().endswith((".png", ".tif", ".tiff"))
            ):
                raise ValueError(
                    f"image is {self.image}; format: images needs a .png or .tif file name with {{id}}, "
                    'e.g. image: "{id}.tif"'
                )
            if self.file not in (None, "zip"):
                raise ValueError(
                    f"file is {self.file}; mask images are submitted as a zip file: set file to zip, or leave it out"
                )
        elif self.image is not None or self.values is not None:
            raise ValueError(f"{'image' if self.image is not None else 'values'} needs format: images")
        if self.format != "rle" and (self.cell or self.columns or self.file == "json"):
            key = "cell" if self.cell else "columns" if self.columns else "file: json"
            raise ValueError(f"{key} needs a table of run lengths (format: rle); format is {self.format}")
        return self

    @model_validator(mode="after")
    def _cell_is_possible(self) -> "SubmissionSettings":
        if self.cell is None:
            return self
        names = re.findall(r"{(\w+)}", self.cell)
        if names.count("rle") != 1 or not set(names) <= _IN_CELL or len(set(names)) != len(names):
            raise ValueError(f'cell is {self.cell!r}; expected {{rle}}, or e.g. "{{class}} {{score}} {{rle}}"')
        if self.classes_in_cell and self.labelled:
            raise ValueError("the class is both in cell and in `label` or `pattern`; remove one of them")
        if self.rows == "instance" or self.file == "json":
            raise ValueError(
                "cell holds all instances of an image and cannot be combined with one row per instance: remove cell"
            )
        return self

    @model_validator(mode="after")
    def _own_columns_keep_their_content(self) -> "SubmissionSettings":
        own = {self.rle: "{rle}", **({self.label: "{class}"} if self.label else {})}
        for name, template in own.items():
            if self.columns.get(name, template) != template:
                raise ValueError(f'columns: {name} holds predictions; expected {name}: "{template}", or leave it out')
        return self


def completed(data: Any, usual: dict[str, Any]) -> Any:
    """Returns a competition's data with the defaults of `submission` filled in, from `columns` or from `usual`, the
    defaults of the layout."""
    given, columns = data.get("submission") or {}, data.get("columns") or {}
    if not isinstance(given, dict) or not isinstance(columns, dict):
        return data
    usual = usual | columns
    if usual.get("absent") == "leave_out":  # a setting of training images only
        del usual["absent"]
    if given.get("file") == "json":
        usual = {**RESULTS, "rows": "instance", "overlap": "any"}
        given = given | {"columns": {"score": "{score}"} | (given.get("columns") or {})}
    if "{class}" in str(given.get("cell")):
        usual = {key: value for key, value in usual.items() if key not in ("label", "pattern", "label_until")}
    if given.get("cell"):
        usual.pop("rows", None)
    for key, other in (("label", "pattern"), ("pattern", "label")):
        if key in given:
            usual.pop(other, None)
    return {**data, "submission": usual | given}


def check(settings: SubmissionSettings, rle: RleSettings, kind: str, foreground: list[str], sample: str | None) -> None:
    """Checks that the settings of a submission fit its competition.

    Raises:
        ValueError: they do not.
    """
    if settings.format == "labels" and kind != "multiclass":
        raise ValueError("submission.format labels needs kind multiclass")
    several = len(foreground) > 1
    if settings.format == "rle" and several and not settings.labelled and not settings.classes_in_cell:
        raise ValueError(f"{SEVERAL}, or the same keys in submission")
    if settings.format == "images":
        if several and kind != "multiclass" and "{class}" not in str(settings.image):
            raise ValueError("submission.image needs {class}: classes may overlap, so each class needs its own image")
        count = len(foreground) + (kind == "multiclass")
        if settings.values is not None and len(settings.values) != count:
            raise ValueError(f"submission.values has {len(settings.values)} entries; expected {count}, one per class")
    if sample and (settings.format == "images" or settings.file == "json"):
        raise ValueError(
            "sample_submission can only be a table, and submissions are none here: set it to null, and the ids are "
            "those of the test images found"
        )
    spaced = rle.as_json or " " in (rle.separator, rle.run_separator)
    if settings.cell and rle.several in (None, " ") and rle.format not in ("coco", "coco_zlib") and spaced:
        raise ValueError("run lengths contain spaces: set rle.several to the separator between the instances of a cell")


def file_of(settings: SubmissionSettings, sample: str | None) -> File:
    """Returns the file type of a competition's submissions."""
    if settings.file or settings.format == "images":
        return settings.file or "zip"
    name = (sample or "").lower().removesuffix(".csv.zip")  # Kaggle zips tables only for the download
    return file_of_name(name) or "csv"
