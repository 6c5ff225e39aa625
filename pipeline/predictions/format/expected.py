"""What a submission of a competition must hold: its rows or mask images, their columns, and how masks are written."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from pipeline.core.config.competition import Competition
from pipeline.core.config.raw_files import values_of
from pipeline.core.config.raw_layouts import RleCsv, load_competition
from pipeline.core.config.submission_settings import File, SubmissionSettings
from pipeline.core.errors import PipelineError
from pipeline.core.files import root
from pipeline.core.run import input_folder
from pipeline.core.tables import as_packed, normal_form, read_csv
from pipeline.decode import table
from pipeline.decode.readers.columns import (
    class_labels,
    class_numbers,
    is_placeholder,
    key_columns,
    keys_of,
    template_columns,
)
from pipeline.decode.readers.files import read_table
from pipeline.masks import rle
from pipeline.predictions.format import further_columns

Key = tuple[str, int | None]
"""An image id, and the number of a class where each row, cell or mask image holds one class."""
Texts = dict[Key, list[str]]
"""Run lengths in the competition's convention, one text per instance if instances are separate, else one per mask. For
class maps, the text of a whole row."""
Needed = Literal["keys", "images", "nothing"]
COCO = rle.Convention(base=0, format="coco", as_json="coco")


@dataclass(frozen=True)
class Expected:
    """What a submission of a competition must hold."""

    images: pd.DataFrame = field(repr=False, compare=False)
    """The rows of test_images.parquet, and those of images.parquet if it exists."""
    sample: str | None
    """The name of the sample submission; None if there is none."""
    settings: SubmissionSettings
    header: list[str]
    keys: list[Key]
    """One key per mask, in the order of the sample submission, else in the order of the test images. All instances of a
    mask share its key."""
    shapes: dict[str, tuple[int, int]]
    """The submitted size of each image, rows × columns."""
    convention: rle.Convention
    labels: list[str]
    """The text that stands for each class in a row."""
    classes: list[int]
    """The numbers of the classes that have rows; for class maps, of the classes that count."""
    further: dict[Key, list[str]] = field(default_factory=dict, repr=False)
    """For each key, the sample submission's cells in the columns that are not predicted. They are copied unchanged."""
    written: dict[str, str] = field(default_factory=dict)
    """The spelling of those ids that a submission spells differently."""
    windows: dict[str, table.Whole] = field(default_factory=dict, repr=False)
    """The images that were cut into windows, by id."""
    file: File = "csv"
    needed: Needed = "keys"
    """What must have a row: `keys`, every key; `images`, every image, if the sample submission lists instances without
    a class; `nothing`, for COCO results."""
    names: dict[str, further_columns.Names] = field(default_factory=dict, repr=False)
    """For each image id, the names that templates of further columns and of mask image paths may use."""
    values: tuple[int, ...] = ()
    """The pixel value of each class in mask images."""
    ignored: tuple[int, ...] = ()
    """The values of ignored pixels in true mask images."""
    several: str = " "
    """The separator between the instances in one cell."""
    axis: int = 0
    """The axis of a volume of masks along which its slices are stacked."""

    @property
    def predicted(self) -> list[str]:
        """The columns that identify the image and class, and the column of run lengths."""
        return [*key_columns(self.settings), self.settings.rle]

    @property
    def copied(self) -> list[str]:
        """The columns of the sample submission that are neither predicted nor named by the YAML."""
        if self.settings.format != "rle":
            return []
        return [name for name in self.header if name not in self.predicted and name not in self.settings.columns]

    @property
    def made(self) -> dict[str, str]:
        """The templates of the further columns that the YAML names."""
        return {name: str(given) for name, given in self.settings.columns.items() if name not in self.predicted}

    @property
    def ids(self) -> list[str]:
        """The ids of the test images."""
        return list(dict.fromkeys(image_id for image_id, _ in self.keys))

    @property
    def is_table(self) -> bool:
        """Whether rows hold run lengths."""
        return self.settings.format == "rle"

    @property
    def classed(self) -> bool:
        """Whether keys contain the number of a class."""
        several = self.settings.format == "images" and len(self.labels) > 1
        return self.settings.labelled or self.settings.classes_in_cell or several

    @property
    def by_instance(self) -> bool:
        """Whether the instances of a mask are submitted separately."""
        return self.settings.row == "instance" or self.settings.cell is not None

    @property
    def only_label(self) -> str:
        """The label of the class if there is only one class, else an empty text."""
        return self.labels[self.classes[0]] if len(self.classes) == 1 else ""

    def row_key(self, key: Key) -> Key:
        """Returns the key of the row that holds a mask. If cells name the classes, one row holds all classes."""
        return (key[0], None) if self.settings.classes_in_cell else key

    def name(self, key: Key) -> str:
        """Returns a description of a key for messages."""
        return key[0] if key[1] is None else f"{key[0]} with label {self.labels[key[1]]}"


def expected(competition: Competition, input_folder: Path, folder: Path) -> Expected:
    """Returns what a submission must hold, according to the sample submission and decode's tables.

    Args:
        competition: the competition.
        input_folder: the folder of its sample submission.
        folder: the competition's folder in work/, which holds the tables.

    Raises:
        PipelineError: decode has not run, or the sample submission lacks a column or names an unknown class.
    """
    return expected_of(competition, input_folder, table.read_tables(folder))


def expected_of(competition: Competition, input_folder: Path, images: pd.DataFrame, complete: bool = True) -> Expected:
    """Returns the same as `expected`, from a table of images with their ids, subsets, heights and widths.

    Args:
        competition: the competition, for its format.
        input_folder: the folder of its sample submission.
        images: the table.
        complete: whether the table has all columns that decode writes. If not, further columns that need a missing one
            are empty.

    Raises:
        PipelineError: the sample submission lacks a column or names an unknown class, or `submission.columns` names a
            part that images do not have.
    """
    # test images come last, so an id that occurs in both tables refers to the test image
    whole = table.submitted(images)
    native = {row.image_id: (int(row.height), int(row.width)) for row in whole.itertuples()}
    shapes = {image_id: competition.scored_shape(shape) for image_id, shape in native.items()}
    settings = competition.submission
    if template_columns(settings.id) != [settings.id]:
        raise PipelineError(f"competition {competition.name}: submission.id is {settings.id}; expected one column.")
    tests = whole[whole["subset"] == "test"]
    ids, labels = tests["image_id"].tolist(), class_labels(competition)
    names = further_columns.names_of(tests, further_columns.templates_of(settings), complete)
    templated = further_columns.ids_of(settings, names)
    written = {image_id: str(text) for image_id, text in templated.items() if text != image_id}
    sample = _sample(competition, input_folder, {text: image_id for image_id, text in written.items()})
    foreground = [competition.classes.index(name) for name in competition.foreground]
    if sample:
        keys, header, further = list(sample.keys), sample.header, sample.keys
        written |= sample.written
        _check_columns(competition, header)
    else:
        header, further = _header(settings), {}
        classed = settings.labelled or settings.classes_in_cell
        classed |= settings.format == "images" and len(competition.classes) > 1
        keys = [(image_id, number) for image_id in ids for number in (foreground if classed else [None])]
    classes = sorted({number for _, number in keys if number is not None}) or foreground
    if settings.format == "labels":
        rows, columns = next((shapes[image_id] for image_id in ids), (0, 0))
        header, classes = [settings.id, *map(str, range(rows * columns))], competition.counted
    needed: Needed = "nothing" if competition.submission_file == "json" else "keys"
    if sample and sample.placeholder and settings.row == "instance":
        needed = "images"
    convention = COCO if competition.submission_file == "json" else rle.convention_of(competition.rle)
    return Expected(
        images, competition.sample_submission, settings, header, keys, shapes, convention, labels, classes, further,
        written, {cut.image_id: cut for cut in table.wholes_of(images[images["subset"] == "test"])},
        competition.submission_file, needed, names, _values(competition), _ignored(competition),
        competition.rle.several or " ",
        _axis(competition),
    )  # fmt: skip


def format_of(competition: Competition) -> Expected:
    """Returns the format of a submission without its images, for writing and reading masks."""
    images = pd.DataFrame({"image_id": [], "subset": [], "height": [], "width": []})
    return expected_of(competition.model_copy(update={"sample_submission": None}), Path(), images)


def expected_by_name(name: str) -> tuple[Competition, Expected]:
    """Returns a competition, given by its name or the path of its YAML, and what a submission to it must hold.

    Raises:
        PipelineError: the competition has no test set; or as load_competition and expected.
    """
    competition = load_competition(name)
    if not competition.has_test:
        raise PipelineError(
            f"the competition {competition.name} has no test set (`test: null`) and therefore no submissions: "
            "name a test set in its YAML."
        )
    return competition, expected(competition, input_folder(competition), root() / "work" / competition.name)


def _header(settings: SubmissionSettings) -> list[str]:
    """Returns the columns of a submission for which there is no sample submission."""
    if settings.format == "images":
        return []
    predicted = [*key_columns(settings), settings.rle]
    if settings.file == "json":  # the order of entries in JSON has no meaning
        return list(dict.fromkeys([*predicted, *settings.columns]))
    return [*(name for name in predicted if name not in settings.columns), *settings.columns]


def _check_columns(competition: Competition, header: list[str]) -> None:
    if strange := [name for name in competition.submission.columns if name not in header]:
        raise PipelineError(
            f"competition {competition.name}: submission.columns names {', '.join(strange)}, but "
            f"{competition.sample_submission} has {', '.join(header)}: correct one of them."
        )


def _values(competition: Competition) -> tuple[int, ...]:
    """Returns the pixel value of each class in mask images."""
    given = competition.submission.values
    if given is not None:
        return tuple(given)
    if competition.kind != "multiclass" or "{class}" in str(competition.submission.image):
        return (1,) * len(competition.classes)
    raw = competition.values or []
    numbers = [value for value in raw if isinstance(value, int)]
    return tuple(numbers) if len(numbers) == len(competition.classes) else tuple(range(len(competition.classes)))


def _ignored(competition: Competition) -> tuple[int, ...]:
    given = competition.ignored_values if isinstance(competition, RleCsv) else ()
    return tuple(number for value in given for number in values_of(value) if isinstance(number, int))


def _axis(competition: Competition) -> int:
    volumes = competition.volumes if isinstance(competition, RleCsv) else None
    return volumes.axis or 0 if volumes else 0


# --- the sample submission -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sample:
    """The content of a sample submission."""

    keys: dict[Key, list[str]]
    """Its keys in order, each with the cells of the columns that are not predicted."""
    header: list[str]
    written: dict[str, str]
    """By the Unicode normal form of each id that is not in normal form: the id as the file spells it."""
    placeholder: bool
    """Whether it has rows without a class."""


def _sample(competition: Competition, folder: Path, ids: dict[str, str]) -> _Sample | None:
    """Returns the content of the sample submission, or None if there is none; `ids` maps the names that a submission
    gives to images to the ids of these images."""
    settings, numbers = competition.submission, class_numbers(competition)
    if not competition.sample_submission:
        return None
    path = folder / competition.sample_submission
    written = _written(settings, path, numbers)
    needed = key_columns(settings) + ([settings.rle] if settings.format == "rle" else [])
    keys: dict[Key, list[str]] = {}
    # class maps have one column per pixel, of which only the id is read
    sample = read_table(path, needed, only=settings.format == "labels", section="submission")
    made = [*needed, *settings.columns]
    copied = sample[[column for column in sample.columns if column not in made]].to_numpy().tolist()
    keys_of_rows = list(keys_of(sample, settings, numbers))
    placeholder = is_placeholder(competition, (label for _, label in keys_of_rows))
    foreground = [competition.classes.index(name) for name in competition.foreground]
    for place, (row, (name, label)) in enumerate(zip(sample.index + 2, keys_of_rows, strict=True)):
        image_id = ids.get(name, name) if name is not None else None
        if image_id is not None and (placeholder or settings.classes_in_cell):  # instances may be of any class
            for number in foreground:
                keys.setdefault((image_id, number), copied[place])
            continue
        if image_id is None or (label is not None and label not in numbers):
            raise PipelineError(
                f"{path.name} row {row}: {sample[settings.id].iat[place]!r} does not name an id and a class of the "
                f"YAML (classes: {', '.join(numbers)}; pattern: {settings.pattern})."
            )
        keys.setdefault((image_id, None if label is None else numbers[label]), copied[place])
    return _Sample(keys, sample.columns.tolist(), written, placeholder)


def _written(settings: SubmissionSettings, path: Path, numbers: Iterable[str]) -> dict[str, str]:
    """Returns, by normal form, the ids of the sample submission that are not in Unicode normal form."""
    if not as_packed(path).exists():
        return {}  # read_table reports the missing file
    sample = read_csv(path, key_columns(settings), normal=False).rename(columns=normal_form)
    if not set(key_columns(settings)) <= set(sample):
        return {}
    ids = (image_id for image_id, _ in keys_of(sample, settings, numbers) if image_id and not image_id.isascii())
    return {name: image_id for image_id in ids if (name := normal_form(image_id)) != image_id}


def usual_class(result: dict[str, Any]) -> int | None:
    """Returns the number of the most frequent true class of the training images among the classes that are predicted.

    None where each class has its own mask: there the most frequent answer is an empty mask.
    """
    shares, never = result.get("class_share_true"), set(result.get("never", []))
    if shares is None:
        return None
    known = {number: share or 0.0 for number, share in enumerate(shares.values()) if number not in never}
    return max(known, key=known.__getitem__)
