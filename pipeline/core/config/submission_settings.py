"""What a competition's YAML may say of its submissions: the kind of file, its rows and columns, or its mask images."""

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
"""How the name of a submission of each kind ends; `.json` alone is the record beside it."""
RESULTS = {"id": "image_id", "label": "category_id", "rle": "segmentation"}
"""What COCO's results call the columns of a table."""
_IN_CELL = {"class", "score", "rle"}


def file_of_name(name: str) -> File | None:
    """Returns the kind of file that a name's ending means; None: of no submission."""
    lower = name.lower()
    if lower.endswith(".json"):
        return "json"
    return next((kind for kind, ending in ENDINGS.items() if lower.endswith(ending)), None)


class SubmissionSettings(Columns):
    """What a submission looks like."""

    format: Literal["rle", "labels", "images"] = "rle"
    """`rle` is a table of run lengths. `labels` is one row per image: its id, then the class of every pixel, row by
    row, in columns 0, 1, 2, … `images` is a zip of mask images, see `image`."""
    file: File | None = None
    """The kind of file: `csv`, `csv.gz`, `parquet` (columns of text), `zip` (of a CSV, or of mask images), or `json`,
    COCO's results: one entry per instance with `image_id`, `category_id`, `segmentation` and `score`. null: what the
    name of the sample submission ends with, else `csv`, of mask images `zip`."""
    size: tuple[Side, Side] | None = None
    """Rows × columns of submitted masks, where it is another size than the images': masks are predicted, tuned and
    scored at this size. null: each at its image's own size."""
    resize: Literal["area", "nearest"] = "area"
    """How a true mask comes to that size: a pixel is true where at least half of it is (`area`), or by the nearest
    pixel."""
    image: str | None = None
    """Of `format: images`, the name of a mask image, .png or .tif, e.g. `{id}.tif`, with `{class}` where every class
    has an image of its own. Of volumes `{id}` is the volume, whose slices are the pages of one TIFF; the named parts of
    `test.images` may stand there too."""
    values: list[Annotated[int, Field(ge=0, le=65535)]] | None = None
    """Of `format: images`, what a mask image holds for each of `classes`; other pixels are 0. null: 1, and in class
    maps what the raw files hold."""
    columns: dict[str, bool | str | int | float] = {}
    """Further columns, each a constant or made of `{id}`, `{height}`, `{width}` (of the image), `{group}`, `{class}`,
    `{score}` (the mean probability of the mask or instance, 0 to 1; 0 of an empty one) and the named parts or table
    columns of an image, e.g. `{height: "{height}", Usage: Public, confidence: "{score}"}`. They stand in the order of
    the sample submission, or without one in this order, behind id, class and run lengths, which may be named here, too,
    as `"{id}"`, `"{class}"` and `"{rle}"`. An id column may be made of other parts than `{id}`."""
    cell: str | None = None
    """What a cell of run lengths holds for each instance, where all of them stand in one cell: `{rle}`, or e.g.
    `{class} {score} {rle}`, with `rle.several` between instances (a space, where that is not set)."""
    overlap: Literal["none", "classes", "any"] = "classes"
    """Whether masks of an image may share pixels: `none`; those of different `classes`, but no instances of the same
    class; or `any`."""

    @property
    def row(self) -> Literal["image", "class", "instance"]:
        """What a row is."""
        if self.cell:
            return "class" if self.labelled else "image"
        return super().row

    @property
    def classes_in_cell(self) -> bool:
        """Whether a cell says which class an instance is of."""
        return self.cell is not None and "{class}" in self.cell

    @property
    def scored(self) -> bool:
        """Whether rows say how sure a mask is."""
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
                    f'image is {self.image}; format: images needs a name with {{id}}, e.g. image: "{{id}}.tif"'
                )
            if self.file not in (None, "zip"):
                raise ValueError(f"file is {self.file}; mask images go into a zip")
        elif self.image is not None or self.values is not None:
            raise ValueError(f"{'image' if self.image is not None else 'values'} is for format: images")
        if self.format != "rle" and (self.cell or self.columns or self.file == "json"):
            key = "cell" if self.cell else "columns" if self.columns else "file: json"
            raise ValueError(f"{key} is for tables of run lengths (format: rle); format is {self.format}")
        return self

    @model_validator(mode="after")
    def _cell_is_possible(self) -> "SubmissionSettings":
        if self.cell is None:
            return self
        names = re.findall(r"{(\w+)}", self.cell)
        if names.count("rle") != 1 or not set(names) <= _IN_CELL or len(set(names)) != len(names):
            raise ValueError(f'cell is {self.cell!r}; expected {{rle}}, or e.g. "{{class}} {{score}} {{rle}}"')
        if self.classes_in_cell and self.labelled:
            raise ValueError("classes stand in the cell and in `label` or `pattern`; remove one")
        if self.rows == "instance" or self.file == "json":
            raise ValueError("cell holds all instances of an image; with a row per instance there is none")
        return self

    @model_validator(mode="after")
    def _order_of_own_columns(self) -> "SubmissionSettings":
        own = {self.rle: "{rle}", **({self.label: "{class}"} if self.label else {})}
        for name, template in own.items():
            if self.columns.get(name, template) != template:
                raise ValueError(
                    f'columns: {name} is what is predicted; expected {name}: "{template}", or leave it out'
                )
        return self


def completed(data: Any, usual: dict[str, Any]) -> Any:
    """Returns a competition's data in which `submission` says what it leaves out: as in `columns`, or as the layout has
    it (`usual`)."""
    given, columns = data.get("submission") or {}, data.get("columns") or {}
    if not isinstance(given, dict) or not isinstance(columns, dict):
        return data
    usual = usual | columns
    if usual.get("absent") == "leave_out":  # of training images alone
        del usual["absent"]
    if given.get("file") == "json":
        usual = {**RESULTS, "rows": "instance", "overlap": "any"}
        given = given | {"columns": {"score": "{score}"} | (given.get("columns") or {})}
    if "{class}" in str(given.get("cell")):
        usual = {key: value for key, value in usual.items() if key not in ("label", "pattern", "label_until")}
    if given.get("cell"):
        usual.pop("rows", None)
    for one, other in (("label", "pattern"), ("pattern", "label")):
        if one in given:
            usual.pop(other, None)
    return {**data, "submission": usual | given}


def check(settings: SubmissionSettings, rle: RleSettings, kind: str, foreground: list[str], sample: str | None) -> None:
    """Checks that a submission fits its competition.

    Raises:
        ValueError: it does not.
    """
    if settings.format == "labels" and kind != "multiclass":
        raise ValueError("submission.format labels needs kind multiclass")
    several = len(foreground) > 1
    if settings.format == "rle" and several and not settings.labelled and not settings.classes_in_cell:
        raise ValueError(f"{SEVERAL}, or the same keys in submission")
    if settings.format == "images":
        if several and kind != "multiclass" and "{class}" not in str(settings.image):
            raise ValueError(
                "submission.image needs {class}: classes may overlap, so that each has an image of its own"
            )
        count = len(foreground) + (kind == "multiclass")
        if settings.values is not None and len(settings.values) != count:
            raise ValueError(f"submission.values has {len(settings.values)} entries for {count} classes")
    if sample and (settings.format == "images" or settings.file == "json"):
        raise ValueError(
            "sample_submission is for tables; set it to null, and the test images are those that are there"
        )
    spaced = rle.as_json or " " in (rle.separator, rle.run_separator)
    if settings.cell and rle.several in (None, " ") and rle.format not in ("coco", "coco_zlib") and spaced:
        raise ValueError("run lengths hold spaces: say with rle.several what stands between the instances of a cell")


def file_of(settings: SubmissionSettings, sample: str | None) -> File:
    """Returns the kind of file of a competition's submissions."""
    if settings.file or settings.format == "images":
        return settings.file or "zip"
    name = (sample or "").lower().removesuffix(".csv.zip")  # Kaggle packs tables for the download alone
    return file_of_name(name) or "csv"
