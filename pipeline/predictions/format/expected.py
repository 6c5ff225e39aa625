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
"""An image id, and the number of a class where rows, cells or mask images are of one."""
Texts = dict[Key, list[str]]
"""Run lengths in the competition's convention, one per instance where these are told apart; of class maps a row."""
Needed = Literal["keys", "images", "nothing"]
COCO = rle.Convention(base=0, format="coco", as_json="coco")


@dataclass(frozen=True)
class Expected:
    """What a submission of a competition must hold."""

    images: pd.DataFrame = field(repr=False, compare=False)
    """The rows of test_images.parquet, and of images.parquet where it is there."""
    sample: str | None
    """The name of the sample submission, where there is one."""
    settings: SubmissionSettings
    header: list[str]
    keys: list[Key]
    """In the order of the sample submission, or of the test images where there is none; instances share one."""
    shapes: dict[str, tuple[int, int]]
    """Rows × columns of each of them, as submitted."""
    convention: rle.Convention
    labels: list[str]
    """What a row writes for each class."""
    classes: list[int]
    """Numbers of the classes that have rows; of class maps, of those that count."""
    further: dict[Key, list[str]] = field(default_factory=dict, repr=False)
    """By key, what the sample submission holds in the columns that are not predicted; they are written as they are."""
    written: dict[str, str] = field(default_factory=dict)
    """How a submission writes ids that it writes otherwise."""
    windows: dict[str, table.Whole] = field(default_factory=dict, repr=False)
    """By id, the images that were cut into windows."""
    file: File = "csv"
    needed: Needed = "keys"
    """What must have a row: every key; every image, where the sample submission names instances of no class; nothing,
    in COCO's results."""
    names: dict[str, further_columns.Names] = field(default_factory=dict, repr=False)
    """By image id, what further columns and names of mask images may be made of."""
    values: tuple[int, ...] = ()
    """What mask images hold for each class."""
    ignored: tuple[int, ...] = ()
    """What true mask images hold for pixels that count in no score."""
    several: str = " "
    """What stands between the instances in one cell."""
    axis: int = 0
    """Along which axis of a volume of masks its slices follow each other."""

    @property
    def predicted(self) -> list[str]:
        """The columns that say what is predicted of which image and class."""
        return [*key_columns(self.settings), self.settings.rle]

    @property
    def copied(self) -> list[str]:
        """The columns of the sample submission that are neither predicted nor named by the YAML."""
        if self.settings.format != "rle":
            return []
        return [one for one in self.header if one not in self.predicted and one not in self.settings.columns]

    @property
    def made(self) -> dict[str, str]:
        """The further columns that the YAML names, and what they are made of."""
        return {name: str(given) for name, given in self.settings.columns.items() if name not in self.predicted}

    @property
    def ids(self) -> list[str]:
        """The test images."""
        return list(dict.fromkeys(image_id for image_id, _ in self.keys))

    @property
    def is_table(self) -> bool:
        """Whether rows hold run lengths."""
        return self.settings.format == "rle"

    @property
    def classed(self) -> bool:
        """Whether keys have the number of a class."""
        several = self.settings.format == "images" and len(self.labels) > 1
        return self.settings.labelled or self.settings.classes_in_cell or several

    @property
    def by_instance(self) -> bool:
        """Whether the instances of a mask are told apart."""
        return self.settings.row == "instance" or self.settings.cell is not None

    @property
    def only_label(self) -> str:
        """What a row would write for its class, where there is one class alone; else nothing."""
        return self.labels[self.classes[0]] if len(self.classes) == 1 else ""

    def row_key(self, key: Key) -> Key:
        """Returns the key of the row that holds the masks of a key: one row has all classes where cells name these."""
        return (key[0], None) if self.settings.classes_in_cell else key

    def name(self, key: Key) -> str:
        """Returns a key as a person reads it."""
        return key[0] if key[1] is None else f"{key[0]} with label {self.labels[key[1]]}"


def expected(competition: Competition, input_folder: Path, folder: Path) -> Expected:
    """Returns what a submission must hold, from decode's tables in a competition's folder in work/ and the sample
    submission.

    Raises:
        PipelineError: decode has not run, or the sample submission lacks a column or names an unknown class.
    """
    return expected_of(competition, input_folder, table.read_tables(folder))


def expected_of(competition: Competition, input_folder: Path, images: pd.DataFrame, complete: bool = True) -> Expected:
    """Returns what `expected` does, of a table of images with their ids, subsets, heights and widths.

    Args:
        competition: its format.
        input_folder: where its sample submission lies.
        images: the table.
        complete: whether the table has all columns that decode writes; else further columns that need another one are
            empty.

    Raises:
        PipelineError: the sample submission lacks a column or names an unknown class, or `submission.columns` names a
            part that images do not have.
    """
    # test images come last: of an id in both tables, the test image is meant
    whole = table.submitted(images)
    native = {row.image_id: (int(row.height), int(row.width)) for row in whole.itertuples()}
    shapes = {image_id: competition.scored_shape(shape) for image_id, shape in native.items()}
    settings = competition.submission
    if template_columns(settings.id) != [settings.id]:
        raise PipelineError(f"competition {competition.name}: submission.id is {settings.id}; expected one column.")
    tests = whole[whole["subset"] == "test"]
    ids, labels = tests["image_id"].tolist(), class_labels(competition)
    names = further_columns.names_of(tests, further_columns.templates_of(settings), complete)
    written = {one: str(text) for one, text in further_columns.ids_of(settings, names).items() if text != one}
    sample = _sample(competition, input_folder, {text: one for one, text in written.items()})
    foreground = [competition.classes.index(one) for one in competition.foreground]
    if sample:
        keys, header, further = list(sample.keys), sample.header, sample.keys
        written |= sample.written
        _check_columns(competition, header)
    else:
        header, further = _header(settings), {}
        classed = settings.labelled or settings.classes_in_cell
        classed |= settings.format == "images" and len(competition.classes) > 1
        keys = [(one, number) for one in ids for number in (foreground if classed else [None])]
    classes = sorted({number for _, number in keys if number is not None}) or foreground
    if settings.format == "labels":
        rows, columns = next((shapes[one] for one in ids), (0, 0))
        header, classes = [settings.id, *map(str, range(rows * columns))], competition.counted
    needed: Needed = "nothing" if competition.submission_file == "json" else "keys"
    if sample and sample.placeholder and settings.row == "instance":
        needed = "images"
    convention = COCO if competition.submission_file == "json" else rle.convention_of(competition.rle)
    return Expected(
        images, competition.sample_submission, settings, header, keys, shapes, convention, labels, classes, further,
        written, {one.image_id: one for one in table.wholes_of(images[images["subset"] == "test"])},
        competition.submission_file, needed, names, _values(competition), _ignored(competition),
        competition.rle.several or " ",
        _axis(competition),
    )  # fmt: skip


def format_of(competition: Competition) -> Expected:
    """Returns how a submission writes masks, without saying of which images."""
    images = pd.DataFrame({"image_id": [], "subset": [], "height": [], "width": []})
    return expected_of(competition.model_copy(update={"sample_submission": None}), Path(), images)


def expected_by_name(name: str) -> tuple[Competition, Expected]:
    """Returns a competition, by its name or the path of its YAML, and what a submission to it must hold; raises as
    load_competition and expected do."""
    competition = load_competition(name)
    if not competition.has_test:
        raise PipelineError(
            f"the competition {competition.name} has no test set (`test: null`), and so no submissions: "
            "name a test set in its YAML."
        )
    return competition, expected(competition, input_folder(competition), root() / "work" / competition.name)


def _header(settings: SubmissionSettings) -> list[str]:
    """The columns where no sample submission shows them."""
    if settings.format == "images":
        return []
    own = [*key_columns(settings), settings.rle]
    if settings.file == "json":  # the order of its entries says nothing
        return list(dict.fromkeys([*own, *settings.columns]))
    return [*(one for one in own if one not in settings.columns), *settings.columns]


def _check_columns(competition: Competition, header: list[str]) -> None:
    if strange := [name for name in competition.submission.columns if name not in header]:
        raise PipelineError(
            f"competition {competition.name}: submission.columns names {', '.join(strange)}, and "
            f"{competition.sample_submission} has {', '.join(header)}: correct one of them."
        )


def _values(competition: Competition) -> tuple[int, ...]:
    """What mask images hold for each class."""
    given = competition.submission.values
    if given is not None:
        return tuple(given)
    if competition.kind != "multiclass" or "{class}" in str(competition.submission.image):
        return (1,) * len(competition.classes)
    raw = competition.values or []
    numbers = [one for one in raw if isinstance(one, int)]
    return tuple(numbers) if len(numbers) == len(competition.classes) else tuple(range(len(competition.classes)))


def _ignored(competition: Competition) -> tuple[int, ...]:
    given = competition.ignored_values if isinstance(competition, RleCsv) else ()
    return tuple(one for value in given for one in values_of(value) if isinstance(one, int))


def _axis(competition: Competition) -> int:
    volumes = competition.volumes if isinstance(competition, RleCsv) else None
    return volumes.axis or 0 if volumes else 0


# --- the sample submission -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sample:
    """What a sample submission says."""

    keys: dict[Key, list[str]]
    """In its order, with what stands in the columns that are not predicted."""
    header: list[str]
    written: dict[str, str]
    """Ids that are not in normal form, as it writes them, by their normal form."""
    placeholder: bool
    """Whether it says nothing of classes."""


def _sample(competition: Competition, folder: Path, ids: dict[str, str]) -> _Sample | None:
    """The sample submission, where there is one; `ids` are those of images by what a submission calls them."""
    name, settings, numbers = competition.sample_submission, competition.submission, class_numbers(competition)
    if not name:
        return None
    path = folder / name
    written = _written(settings, path, numbers)
    needed = key_columns(settings) + ([settings.rle] if settings.format == "rle" else [])
    keys: dict[Key, list[str]] = {}
    # of class maps, a column per pixel
    sample = read_table(path, needed, only=settings.format == "labels", section="submission")
    made = [*needed, *settings.columns]
    copied = sample[[column for column in sample.columns if column not in made]].to_numpy().tolist()
    keys_of_rows = list(keys_of(sample, settings, numbers))
    placeholder = is_placeholder(competition, (label for _, label in keys_of_rows))
    foreground = [competition.classes.index(name) for name in competition.foreground]
    for place, (row, (found, label)) in enumerate(zip(sample.index + 2, keys_of_rows, strict=True)):
        image_id = ids.get(found, found) if found is not None else None
        if image_id is not None and (placeholder or settings.classes_in_cell):  # instances may be of every class
            for number in foreground:
                keys.setdefault((image_id, number), copied[place])
            continue
        if image_id is None or (label is not None and label not in numbers):
            raise PipelineError(
                f"{path.name} row {row}: {sample[settings.id].iat[place]!r} names no id and class of the YAML "
                f"(classes: {', '.join(numbers)}; pattern: {settings.pattern})."
            )
        keys.setdefault((image_id, None if label is None else numbers[label]), copied[place])
    return _Sample(keys, sample.columns.tolist(), written, placeholder)


def _written(settings: SubmissionSettings, path: Path, numbers: Iterable[str]) -> dict[str, str]:
    """The ids of the sample submission that are not in normal form, as it writes them, by their normal form."""
    if not as_packed(path).exists():
        return {}  # reading the table says so
    sample = read_csv(path, key_columns(settings), normal=False).rename(columns=normal_form)
    if not set(key_columns(settings)) <= set(sample):
        return {}
    ids = (image_id for image_id, _ in keys_of(sample, settings, numbers) if image_id and not image_id.isascii())
    return {name: image_id for image_id in ids if (name := normal_form(image_id)) != image_id}


def usual_class(result: dict[str, Any]) -> int | None:
    """Returns the number of the commonest true class of the training images, of those that are predicted; None where
    classes are masks of their own, whose commonest answer is an empty one."""
    shares, never = result.get("class_share_true"), set(result.get("never", []))
    if shares is None:
        return None
    known = {number: share or 0.0 for number, share in enumerate(shares.values()) if number not in never}
    return max(known, key=known.__getitem__)
