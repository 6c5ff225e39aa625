"""What a competition's YAML may say of its raw files: where images and masks lie, and how tables write them."""

import re
from fnmatch import fnmatch
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.core.config.places import InsidePath
from pipeline.core.config.settings import Settings

Code = Annotated[int, Field(ge=-(2**31), lt=2**32)]
"""A number of a class map: no file of images holds another."""
Value = Code | str | tuple[Code, Code, Code]
ANNOTATIONS = (".json", ".jsonl", ".ndjson", ".geojson")
"""Endings of files of polygons or of COCO's annotations."""
THRESHOLD = 128
"""Grey value from which a pixel of a black and white mask is white."""
SEVERAL = "several classes need columns.label (a column) or columns.pattern (e.g. {id}_{label})"
REST = "rest"
"""The value of a class of class maps that takes all values that nothing else names."""


def names_in(pattern: str) -> list[str]:
    """Returns the names in braces of a pattern, each once."""
    return list(dict.fromkeys(re.findall(r"{(\w+)}", pattern)))


class AnyOf(Settings):
    """Several values that mean the same class."""

    any: tuple[Value, ...] = Field(min_length=1)
    """The values."""


def values_of(value: Value | AnyOf) -> tuple[Value, ...]:
    """Returns the raw files' values of a class, one or several."""
    return value.any if isinstance(value, AnyOf) else (value,)


class Subset(Settings):
    """The files of the training or the test set, relative to the competition's input folder."""

    images: InsidePath
    """Path of an image with `{id}` where its id stands, e.g. `train/images/{id}.png` or `{id}/images/{id}.png`; or with
    named parts that `id` is made of, e.g. `train/{case}/{case}_{day}/scans/slice_{slice}_*.png`. A part takes as little
    as it can, and `*` is any text, also as the name of a folder. Parts are further columns, to group or stratify by."""
    id: str | None = None
    """What an id is made of where `images` has named parts, e.g. `{case}_{day}_slice_{slice}`. Default for the test
    set: as for the training set."""
    listed_in: InsidePath | None = None
    """A text file, one id or file name per line, or a CSV whose first column holds them: only these images belong to
    the subset."""
    masks: InsidePath | None = None
    """A CSV; or the path of mask images: with `{id}`, `{stem}` (the id without its extension) or the named parts of
    `images`, `{class}` where every class has a file of its own, and `*` where every instance has one; or a file of
    polygons or COCO annotations (.json, .jsonl, .geojson), of all images or, with `{id}` in its name, of one."""
    threshold: int | None = Field(None, ge=1)
    """Mask images of one class per file: pixels of at least this value are the class, for masks saved as JPEG, whose
    values waver (128, mostly). null: all that are not 0, and a file has one other value alone."""
    instances: bool | Literal["planes"] = False
    """Whether mask images number instances: every value but 0 is an object of its own. `planes`: .npy masks of one
    class are (n, rows, columns), one plane per instance, or (rows, columns) of one."""
    class_times: int | None = Field(None, ge=2)
    """Mask images whose values are `class_times` × class + number of the instance, as in Cityscapes' instanceIds
    (1000). A smaller value is a class without instances."""
    outlines: bool | None = None
    """Polygons: whether pixels under the outline belong to the mask, as OpenCV and labelme draw (points are centres of
    pixels), or not, as COCO draws (points are corners). null: as the format is usually read."""
    table: InsidePath | None = None
    """A CSV with one row per image, for further columns (to group or stratify by). Its first column holds the ids or
    the names of the files."""
    exclude: list[str] = []
    """File name patterns that match `images` but are none, e.g. `*_mask.tif`."""
    empty: list[str] = []
    """Path patterns of images whose masks are empty, whatever mask files there are, e.g. `authentic/*`."""
    evaluate: bool = False
    """Of the test set: score the final masks against its `masks`."""

    @field_validator("images")
    @classmethod
    def _has_id(cls, value: str) -> str:
        if not names_in(value):
            raise ValueError("expected a path with {id} where an image's id stands, e.g. train/{id}.png")
        if strange := [name for name in names_in(value) if not name.isidentifier()]:
            raise ValueError(f"{{{strange[0]}}} is no name of a part; expected letters, digits and _, e.g. {{case}}")
        if reserved := sorted({"stem", "class", "group", "label"} & set(names_in(value))):
            raise ValueError(f"{{{reserved[0]}}} cannot be a part of the path of images: give it another name")
        return value

    @model_validator(mode="after")
    def _parts_make_an_id(self) -> "Subset":
        parts = names_in(self.images)
        if "id" in parts and self.id is not None:
            raise ValueError("images holds {id}: remove `id`, or name that part otherwise")
        if "id" not in parts and self.id is None:
            example = "_".join(f"{{{part}}}" for part in parts)
            raise ValueError(f'images has no {{id}}: say what ids are made of, e.g. id: "{example}"')
        wrong = [name for name in names_in(self.id or "") if name not in parts]
        if wrong or (self.id is not None and not names_in(self.id)):
            named = ", ".join(f"{{{part}}}" for part in parts)
            raise ValueError(f"id is {self.id}; expected parts of images: {named}")
        known = {*parts, "id", "stem", "class"}
        if strange := [name for name in names_in(self.masks or "") if name not in known]:
            shown = ", ".join(f"{{{name}}}" for name in sorted(known))
            raise ValueError(f"masks holds {{{strange[0]}}}, which is no part of images; expected {shown}")
        if (self.instances or self.class_times or self.threshold) and not self.mask_files:
            key = "threshold" if self.threshold else "instances" if self.instances else "class_times"
            raise ValueError(f"{key} is for mask images; masks is {self.masks}")
        if self.instances == "planes" and not str(self.masks).endswith(".npy"):
            raise ValueError(f"instances: planes is for masks in .npy files; masks is {self.masks}")
        if self.empty and not self.mask_files:
            raise ValueError(f"empty is for mask images; masks is {self.masks}")
        if self.outlines is not None and not self.annotations:
            raise ValueError(f"outlines is for polygons; masks is {self.masks}")
        return self

    def shows_nothing(self, path: str) -> bool:
        """Returns whether the masks of an image at this path are empty, whatever mask files there are."""
        return any(fnmatch(path, pattern) for pattern in self.empty)

    @property
    def annotations(self) -> str | None:
        """The file of polygons or of COCO annotations, or its pattern; None where masks are something else."""
        return self.masks if self.masks and self.masks.lower().endswith(ANNOTATIONS) else None

    @property
    def mask_files(self) -> str | None:
        """The path of mask images; None where masks are a table or annotations, or there are none."""
        return self.masks if self.masks and "{" in self.masks and not self.annotations else None

    @property
    def mask_table(self) -> str | None:
        """The CSV of run lengths; None where masks are something else."""
        return None if self.mask_files or self.annotations else self.masks


class Columns(Settings):
    """The columns of a table of masks, and what one of its rows is."""

    id: str = "id"
    """A column, or a template over columns such as `{subject}_{img}`."""
    pattern: str | None = None
    """What a value of the id column is made of, where it holds more than the id, e.g. `{id}_{label}`."""
    label: str | None = None
    """The column that names the class of a row."""
    label_until: str | None = None
    """A text at which a label ends, e.g. `_` where `6_18_73` is class 6 with two attributes."""
    rle: str = "rle"
    """The column of run-length encoded masks."""
    rows: Literal["image", "class", "instance"] | None = None
    """What a row is: an image, an image and class, or one of several instances in an image. Default: an image, or an
    image and class where rows have a label."""
    absent: Literal["fault", "empty", "leave_out"] = "fault"
    """What an image without any row (or mask file, or annotation) is: a fault; one without a mask; or, in the training
    set, none that is trained on, as nobody labelled it."""

    @model_validator(mode="after")
    def _consistent(self) -> "Columns":
        if self.pattern and not re.fullmatch(
            r"[^{}]*{id}[^{}]+{label}[^{}]*|[^{}]*{label}[^{}]+{id}[^{}]*", self.pattern
        ):
            raise ValueError("pattern must hold {id} and {label}, apart from each other, e.g. {id}_{label}")
        if self.pattern and self.label:
            raise ValueError("give `label` (a column) or `pattern` (parts of the id column), not both")
        if self.label_until and not self.label:
            raise ValueError("label_until needs `label`, the column that holds the label and more")
        if self.rows == "class" and not self.labelled:
            raise ValueError("rows: class needs `label` (a column) or `pattern` (e.g. {id}_{label})")
        return self

    @property
    def labelled(self) -> bool:
        """Whether a row says which class it is of."""
        return bool(self.label or self.pattern)

    @property
    def row(self) -> Literal["image", "class", "instance"]:
        """What a row is."""
        return self.rows or ("class" if self.labelled else "image")


class RleSettings(Settings):
    """The competition's run-length convention; inside the pipeline it is always column-major, 1-based, "" for empty."""

    order: Literal["column", "row"] = "column"
    """Whether pixels are numbered down the columns or along the rows."""
    base: Literal[0, 1] = 1
    """The number of the first pixel."""
    empty: str = ""
    """The text of an empty mask."""
    offsets: Literal["absolute", "relative"] = "absolute"
    """`relative`: every start but the first counts from the end of the run before it (SIIM-ACR Pneumothorax)."""
    format: Literal["pairs", "counts", "coco", "coco_zlib"] = "pairs"
    """What the numbers are: `pairs` of start and length; `counts` of pixels outside and inside the mask in turn (COCO's
    uncompressed counts); `coco`, COCO's compressed text of these counts; `coco_zlib`, that text compressed with zlib,
    in base64 (Human Protein Atlas, Open Images)."""
    separator: str = Field(" ", min_length=1)
    """What stands between two numbers, e.g. `,`."""
    run_separator: str | None = Field(None, min_length=1)
    """What stands between two runs where it is something else, e.g. `;` in `1,3;10,5`."""
    as_json: Literal["list", "pairs", "coco"] | None = None
    """Numbers as JSON: `list` is [1, 3, 10, 5], `pairs` is [[1, 3], [10, 5]], and `coco` is {"size": [rows, columns],
    "counts": …}."""
    several: str | None = Field(None, min_length=1)
    """What stands between the masks of several instances in one cell, e.g. `|`."""

    @model_validator(mode="after")
    def _consistent(self) -> "RleSettings":
        if self.format != "pairs" and (self.offsets == "relative" or self.run_separator):
            raise ValueError(f"offsets and run_separator are for format: pairs; format is {self.format}")
        if self.as_json == "pairs" and self.format != "pairs":
            raise ValueError(f"as_json: pairs is for format: pairs; format is {self.format}")
        if self.as_json == "coco" and self.format not in ("counts", "coco"):
            raise ValueError(f"as_json: coco needs format: counts or coco; format is {self.format}")
        if self.as_json == "list" and self.format in ("coco", "coco_zlib"):
            raise ValueError(f"as_json: list is for numbers; format: {self.format} is one text")
        return self
