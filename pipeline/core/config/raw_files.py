"""The settings of a competition for its raw files: where images and masks lie, and how tables encode masks."""

import re
from fnmatch import fnmatch
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.core.config.places import InsidePath
from pipeline.core.config.settings import Settings

Code = Annotated[int, Field(ge=-(2**31), lt=2**32)]
"""A number in a class map. No image file can hold numbers outside this range."""
Value = Code | str | tuple[Code, Code, Code]
ANNOTATIONS = (".json", ".jsonl", ".ndjson", ".geojson")
"""File name endings of polygons and of COCO annotations."""
THRESHOLD = 128
"""Pixels of a black and white mask image are white from this grey value on."""
SEVERAL = "several classes need columns.label (a column) or columns.pattern (e.g. {id}_{label})"
REST = "rest"
"""In class maps, the value of the class that takes all values that no other class has."""


def names_in(pattern: str) -> list[str]:
    """Returns the names in braces in a pattern, in order and without repetitions."""
    return list(dict.fromkeys(re.findall(r"{(\w+)}", pattern)))


class AnyOf(Settings):
    """Several values in the raw files that stand for the same class."""

    any: tuple[Value, ...] = Field(min_length=1)
    """The values of the class."""


def values_of(value: Value | AnyOf) -> tuple[Value, ...]:
    """Returns the values that stand for a class in the raw files, one or several."""
    return value.any if isinstance(value, AnyOf) else (value,)


class Subset(Settings):
    """The files of the training or the test set, relative to the competition's input folder."""

    images: InsidePath
    """Path pattern of the images, with `{id}` in place of the image's id, e.g. `train/images/{id}.png` or
    `{id}/images/{id}.png`; or with named parts from which `id` is built, e.g.
    `train/{case}/{case}_{day}/scans/slice_{slice}_*.png`. Each part matches as few characters as possible. `*` matches
    any text within a file or folder name. The parts become further columns, by which images can be grouped or
    stratified."""
    id: str | None = None
    """How an id is built from the named parts of `images`, e.g. `{case}_{day}_slice_{slice}`. Default for the test set:
    the `id` of the training set."""
    listed_in: InsidePath | None = None
    """A text file with one id or file name per line, or a CSV file with them in its first column. Only these images
    belong to the subset."""
    masks: InsidePath | None = None
    """Where the masks are. A CSV file of run lengths. Or the path pattern of mask images, with `{id}`, `{stem}` (the id
    without its file name extension) or the named parts of `images`, with `{class}` if each class has its own file, and
    with `*` if each instance has its own file. Or a file of polygons or COCO annotations (.json, .jsonl, .geojson),
    which holds all images, or one image if its name holds `{id}`."""
    threshold: int | None = Field(None, ge=1)
    """For mask images with one class per file: pixels of at least this value belong to the class. Use it (mostly with
    128) for masks saved as JPEG, whose values are not exact. null: all pixels that are not 0, which must all have the
    same value."""
    instances: bool | Literal["planes"] = False
    """Whether mask images number instances, so that each value except 0 is a separate object. `planes`: masks are .npy
    files of one class with shape (n, rows, columns), one plane per instance, or (rows, columns) for a single
    instance."""
    class_times: int | None = Field(None, ge=2)
    """For mask images whose values are `class_times` × class + number of the instance, as in the instanceIds of
    Cityscapes (1000). A smaller value is a class without instances."""
    outlines: bool | None = None
    """For polygons: whether pixels under the outline belong to the mask. true: they do, as OpenCV and labelme draw
    (points are pixel centres). false: they do not, as COCO draws (points are pixel corners). null: the usual convention
    of the format."""
    table: InsidePath | None = None
    """A CSV file with one row per image and further columns, by which images can be grouped or stratified. Its first
    column holds the ids or the file names."""
    exclude: list[str] = []
    """Patterns of file names that match `images` but are not images, e.g. `*_mask.tif`."""
    empty: list[str] = []
    """Path patterns of images whose masks are empty, regardless of mask files, e.g. `authentic/*`."""
    evaluate: bool = False
    """Only for the test set: whether the final masks are scored against its `masks`."""

    @field_validator("images")
    @classmethod
    def _has_id(cls, value: str) -> str:
        if not names_in(value):
            raise ValueError("expected a path with {id} in place of the image's id, e.g. train/{id}.png")
        if invalid := [name for name in names_in(value) if not name.isidentifier()]:
            raise ValueError(
                f"{{{invalid[0]}}} is not a valid name of a part; expected letters, digits and _, e.g. {{case}}"
            )
        if reserved := sorted({"stem", "class", "group", "label"} & set(names_in(value))):
            raise ValueError(
                f"{{{reserved[0]}}} is reserved and cannot be a part of images: give the part another name"
            )
        return value

    @model_validator(mode="after")
    def _parts_make_an_id(self) -> "Subset":
        parts = names_in(self.images)
        if "id" in parts and self.id is not None:
            raise ValueError(
                "images already holds {id}: remove the setting `id`, or give that part of images another name"
            )
        if "id" not in parts and self.id is None:
            example = "_".join(f"{{{part}}}" for part in parts)
            raise ValueError(f'images has no {{id}}: set how ids are built from its parts, e.g. id: "{example}"')
        wrong = [name for name in names_in(self.id or "") if name not in parts]
        if wrong or (self.id is not None and not names_in(self.id)):
            named = ", ".join(f"{{{part}}}" for part in parts)
            raise ValueError(f"id is {self.id}; expected parts of images: {named}")
        known = {*parts, "id", "stem", "class"}
        if unknown := [name for name in names_in(self.masks or "") if name not in known]:
            shown = ", ".join(f"{{{name}}}" for name in sorted(known))
            raise ValueError(f"masks holds {{{unknown[0]}}}, which is not a part of images; expected {shown}")
        if (self.instances or self.class_times or self.threshold) and not self.mask_files:
            key = "threshold" if self.threshold else "instances" if self.instances else "class_times"
            raise ValueError(f"{key} can only be used with mask images; masks is {self.masks}")
        if self.instances == "planes" and not str(self.masks).endswith(".npy"):
            raise ValueError(f"instances: planes can only be used with masks in .npy files; masks is {self.masks}")
        if self.empty and not self.mask_files:
            raise ValueError(f"empty can only be used with mask images; masks is {self.masks}")
        if self.outlines is not None and not self.annotations:
            raise ValueError(f"outlines can only be used with polygons; masks is {self.masks}")
        return self

    def shows_nothing(self, path: str) -> bool:
        """Returns whether `empty` says that the masks of the image at this path are empty."""
        return any(fnmatch(path, pattern) for pattern in self.empty)

    @property
    def annotations(self) -> str | None:
        """The path or path pattern of polygons or COCO annotations; None if masks are something else."""
        return self.masks if self.masks and self.masks.lower().endswith(ANNOTATIONS) else None

    @property
    def mask_files(self) -> str | None:
        """The path pattern of mask images; None if masks are a table or annotations, or if there are none."""
        return self.masks if self.masks and "{" in self.masks and not self.annotations else None

    @property
    def mask_table(self) -> str | None:
        """The path of the CSV file of run lengths; None if masks are something else."""
        return None if self.mask_files or self.annotations else self.masks


class Columns(Settings):
    """The columns of a table of masks, and what one of its rows stands for."""

    id: str = "id"
    """The column of image ids, or a template of several columns such as `{subject}_{img}`."""
    pattern: str | None = None
    """The pattern of the id column's values if they hold more than the id, e.g. `{id}_{label}`."""
    label: str | None = None
    """The column with the class of a row."""
    label_until: str | None = None
    """The text at which a label ends, e.g. `_` if `6_18_73` is class 6 with two attributes."""
    rle: str = "rle"
    """The column of run-length encoded masks."""
    rows: Literal["image", "class", "instance"] | None = None
    """What a row stands for: an `image`, a `class` of an image, or one `instance` of an image. Default: `class` if rows
    have a label, otherwise `image`."""
    absent: Literal["fault", "empty", "leave_out"] = "fault"
    """How an image without any row, mask file or annotation is handled. `fault`: as a fault. `empty`: as an image with
    an empty mask. `leave_out`: as an unlabelled image, which is left out of the training set."""

    @model_validator(mode="after")
    def _consistent(self) -> "Columns":
        if self.pattern and not re.fullmatch(
            r"[^{}]*{id}[^{}]+{label}[^{}]*|[^{}]*{label}[^{}]+{id}[^{}]*", self.pattern
        ):
            raise ValueError("pattern must hold {id} and {label} with some text between them, e.g. {id}_{label}")
        if self.pattern and self.label:
            raise ValueError("give `label` (a column) or `pattern` (parts of the id column), not both")
        if self.label_until and not self.label:
            raise ValueError("label_until needs `label`, the column whose values start with the label")
        if self.rows == "class" and not self.labelled:
            raise ValueError("rows: class needs `label` (a column) or `pattern` (e.g. {id}_{label})")
        return self

    @property
    def labelled(self) -> bool:
        """Whether a row names its class."""
        return bool(self.label or self.pattern)

    @property
    def row(self) -> Literal["image", "class", "instance"]:
        """What a row stands for, with the default filled in."""
        return self.rows or ("class" if self.labelled else "image")


class RleSettings(Settings):
    """The competition's convention for run lengths. Inside the pipeline they are always column-major and 1-based, with
    "" for an empty mask."""

    order: Literal["column", "row"] = "column"
    """Whether pixels are numbered column by column or row by row."""
    base: Literal[0, 1] = 1
    """The number of the first pixel."""
    empty: str = ""
    """The text that stands for an empty mask."""
    offsets: Literal["absolute", "relative"] = "absolute"
    """How the start of a run is counted: from the first pixel (`absolute`), or from the end of the run before it
    (`relative`, as in SIIM-ACR Pneumothorax)."""
    format: Literal["pairs", "counts", "coco", "coco_zlib"] = "pairs"
    """What the numbers mean. `pairs`: start and length of each run. `counts`: numbers of pixels alternately outside and
    inside the mask (COCO's uncompressed counts). `coco`: COCO's compressed text of these counts. `coco_zlib`: this text
    compressed with zlib and encoded in base64 (Human Protein Atlas, Open Images)."""
    separator: str = Field(" ", min_length=1)
    """The separator between two numbers, e.g. `,`."""
    run_separator: str | None = Field(None, min_length=1)
    """The separator between two runs, if it differs from `separator`, e.g. `;` in `1,3;10,5`."""
    as_json: Literal["list", "pairs", "coco"] | None = None
    """How the numbers are written as JSON: `list` as [1, 3, 10, 5], `pairs` as [[1, 3], [10, 5]], and `coco` as
    {"size": [rows, columns], "counts": …}. null: not as JSON."""
    several: str | None = Field(None, min_length=1)
    """The separator between the masks of several instances in one cell, e.g. `|`."""

    @model_validator(mode="after")
    def _consistent(self) -> "RleSettings":
        if self.format != "pairs" and (self.offsets == "relative" or self.run_separator):
            raise ValueError(f"offsets and run_separator need format: pairs; format is {self.format}")
        if self.as_json == "pairs" and self.format != "pairs":
            raise ValueError(f"as_json: pairs needs format: pairs; format is {self.format}")
        if self.as_json == "coco" and self.format not in ("counts", "coco"):
            raise ValueError(f"as_json: coco needs format: counts or coco; format is {self.format}")
        if self.as_json == "list" and self.format in ("coco", "coco_zlib"):
            raise ValueError(f"as_json: list needs format: pairs or counts; format is {self.format}, which is a text")
        return self
