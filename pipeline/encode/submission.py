"""The file to upload: what it must look like, how it is written, and whether one is valid."""

import csv
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import cv2
import numpy as np
import pandas as pd

from pipeline.core.config.competition import Competition, load_competition
from pipeline.core.config.raw_files import SubmissionSettings
from pipeline.core.errors import PipelineError
from pipeline.core.files import root
from pipeline.core.run import input_folder
from pipeline.core.tables import as_packed, check_separator, column_names, normal_form, not_utf8, read_csv, unseen
from pipeline.core.verdict import Reason
from pipeline.decode import table
from pipeline.decode.readers.columns import (
    class_labels,
    class_numbers,
    image_finder,
    is_placeholder,
    key_columns,
    key_text,
    keys_of,
    template_columns,
)
from pipeline.decode.readers.files import read_table
from pipeline.masks import rle

COLUMNS_SHOWN = 10
"""Further columns that a note names."""
Key = tuple[str, int | None]
"""An image id, and the number of a class where rows have a label."""
Measure = Callable[[str, int, np.ndarray], None]
"""Takes the mask (h, w) uint8 of 0 and 1 of an image, or of a window of one, and a class, by id and number."""


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
    """Native rows × columns of each of them."""
    convention: rle.Convention
    labels: list[str]
    """What a row writes for each class."""
    classes: list[int]
    """Numbers of the classes that have rows; of class maps, of those that count."""
    further: dict[Key, list[str]] = field(default_factory=dict, repr=False)
    """By key, what the sample submission holds in the columns that are not predicted; they are written as they are."""

    @property
    def predicted(self) -> list[str]:
        """The columns that say what is predicted of which image and class; all others are the sample submission's."""
        return [*key_columns(self.settings), self.settings.rle]

    @property
    def copied(self) -> list[str]:
        """The columns of the sample submission that are not predicted."""
        return [] if self.settings.format == "labels" else [one for one in self.header if one not in self.predicted]

    written: dict[str, str] = field(default_factory=dict)
    """How the sample submission writes ids that are not in normal form."""
    windows: dict[str, table.Whole] = field(default_factory=dict, repr=False)
    """By id, the images that were cut into windows."""

    @property
    def ids(self) -> list[str]:
        """The test images."""
        return list(dict.fromkeys(image_id for image_id, _ in self.keys))

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


def expected_of(competition: Competition, input_folder: Path, images: pd.DataFrame) -> Expected:
    """Returns what `expected` does, of a table of images with their ids, subsets, heights and widths.

    Raises:
        PipelineError: the sample submission lacks a column or names an unknown class.
    """
    # test images come last: of an id in both tables, the test image is meant
    whole = table.submitted(images)
    native = {row.image_id: (int(row.height), int(row.width)) for row in whole.itertuples()}
    shapes = {image_id: competition.scored_shape(shape) for image_id, shape in native.items()}
    settings = competition.submission
    if template_columns(settings.id) != [settings.id]:
        raise PipelineError(f"competition {competition.name}: submission.id is {settings.id}; expected one column.")
    further: dict[Key, list[str]] = {}
    numbers, foreground = class_numbers(competition), [competition.classes.index(one) for one in competition.foreground]
    ids = whole.loc[whole["subset"] == "test", "image_id"].tolist()
    windows = {one.image_id: one for one in table.wholes_of(images[images["subset"] == "test"])}
    written: dict[str, str] = {}
    if competition.sample_submission:
        written = _written(competition, input_folder / competition.sample_submission, numbers)
        keys, header, further = _sample_keys(competition, input_folder / competition.sample_submission, numbers)
    else:
        keys = [(one, number) for one in ids for number in (foreground if settings.labelled else [None])]
        header = [*key_columns(settings), settings.rle]
    classes = sorted({number for _, number in keys if number is not None}) or foreground
    if settings.format == "labels":
        rows, columns = next((shapes[one] for one in ids), (0, 0))
        header, classes = [settings.id, *map(str, range(rows * columns))], competition.counted
    sample, convention = competition.sample_submission, rle.convention_of(competition.rle)
    labels = class_labels(competition)
    return Expected(
        images, sample, settings, header, keys, shapes, convention, labels, classes, further, written, windows
    )


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


def texts_of(image_id: str, masks: np.ndarray, want: Expected) -> dict[Key, list[str]]:
    """Returns what the rows of an image hold, by key, from its masks (C, h, w) of 0 and 1."""
    if want.settings.format == "labels":
        numbers = masks.argmax(0).ravel().tolist()
        return {(image_id, None): [",".join([want.labels[number] for number in numbers])]}
    texts = {}
    for number in want.classes:
        parts = instances_of(masks[number]) if want.settings.row == "instance" else [masks[number]]
        found = [rle.encode(part, want.convention) for part in parts]
        texts[image_id, number if want.settings.labelled else None] = found or [want.convention.empty]
    return texts


def instances_of(mask: np.ndarray) -> list[np.ndarray]:
    """Returns a mask (h, w) of 0 and 1 as one mask per connected region (touching by side or corner)."""
    number, regions = cv2.connectedComponents(mask, connectivity=8)
    return [(regions == region).astype(np.uint8) for region in range(1, number)]


def write(path: Path, texts: dict[Key, list[str]], want: Expected) -> int:
    """Writes a submission and returns its number of rows.

    Raises:
        PipelineError: an id of the sample submission was not predicted.
    """
    rows = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(want.header)
        for key in want.keys:
            if key not in texts:
                raise PipelineError(f"test id {want.name(key)} was not decoded: decode again.")
            for text in texts[key]:
                rows += 1
                name = want.written.get(key[0], key[0])
                if want.settings.format == "labels":
                    file.write(f"{name},{text}\n")
                    continue
                label = "" if key[1] is None else want.labels[key[1]]
                image_id = key_text(want.settings, name, label) if want.settings.pattern else name
                row: dict[str | None, str] = dict(
                    zip(want.copied, want.further.get(key, [""] * len(want.copied)), strict=True)
                )
                row |= {want.settings.label: label, want.settings.id: image_id, want.settings.rle: text}
                writer.writerow([row[column] for column in want.header])
    return rows


def usual_class(result: dict[str, Any]) -> int | None:
    """Returns the number of the commonest true class of the training images, of those that are predicted; None where
    classes are masks of their own, whose commonest answer is an empty one."""
    shares, never = result.get("class_share_true"), set(result.get("never", []))
    if shares is None:
        return None
    known = {number: share or 0.0 for number, share in enumerate(shares.values()) if number not in never}
    return max(known, key=known.__getitem__)


def write_constant(path: Path, competition: Competition, input_folder: Path, ids: list[str], usual: int | None) -> int:
    """Writes a submission with the same answer for every image, before any of them is read; returns its number of rows.

    Args:
        path: where.
        competition: its format.
        input_folder: where its sample submission lies, which says what rows there are.
        ids: of the test images, which count where there is no sample submission.
        usual: the number of the class that every pixel has; None: masks are empty.

    Raises:
        PipelineError: the sample submission cannot be read; or rows are class maps, and there is none, so that the
            images' size is not known.
    """
    images = pd.DataFrame({"image_id": ids, "subset": "test", "height": 0, "width": 0})
    want = expected_of(competition, input_folder, images)
    if want.settings.format == "rle":
        return write(path, {key: [want.convention.empty] for key in want.keys}, want)
    if want.sample is None:
        raise PipelineError(
            f"competition {competition.name} has no sample submission: it says how many pixels a row has."
        )
    header = read_table(input_folder / want.sample, [want.settings.id]).columns.tolist()
    text = ",".join([want.labels[usual or 0]] * (len(header) - 1))
    return write(path, {key: [text] for key in want.keys}, replace(want, header=header))


def examine(path: Path, want: Expected, measure: Measure | None = None) -> tuple[list[str], list[Reason]]:
    """Returns every fault of a submission, each naming its row (none: it is valid), and notes on it.

    Another order of rows than the sample submission's is a note: Kaggle matches rows by their ids. So is what it holds
    in the columns that are not predicted.

    Args:
        path: the submission.
        want: what it must hold.
        measure: is given every sound mask, the instances of an image as one, so that nothing is decoded twice.

    Raises:
        PipelineError: no such file, or not a CSV.
    """
    notes: list[Reason] = []
    if want.settings.format == "labels":
        faults, rows = _label_faults(path, want, measure)
    else:
        frame = read_table(path, [], hint="")
        faults, rows = _rle_faults(frame, want, measure)
        if not faults and want.copied:
            notes = _compare_copied(frame, want)
    if rows is None:  # wrong columns
        return faults, []
    missing = [want.name(key) for key in want.keys if key not in rows]
    if missing:
        faults.append(f"{len(missing)} of {len(want.keys)} test ids are missing: {', '.join(missing[:5])}")
    pairs = zip(rows.items(), want.keys, strict=False)
    moved = next(((key, row, wanted) for (key, row), wanted in pairs if key != wanted), None)
    if faults or moved is None or want.sample is None:
        return faults, [] if faults else notes
    key, row, wanted = moved
    difference = f"row {row} is {want.name(key)}, there it is {want.name(wanted)}"
    return [], [
        Reason("note", "row order", f"Rows stand in another order than in {want.sample}: {difference}."),
        *notes,
    ]


def _compare_copied(frame: pd.DataFrame, want: Expected) -> list[Reason]:
    """Which of the columns that are not predicted hold what the sample submission holds, by id, and which do not."""
    numbers = {label: number for number, label in enumerate(want.labels)}
    keys = [
        (image_id or "", None if label is None else numbers.get(label, -1))
        for image_id, label in keys_of(frame, want.settings, want.labels)
    ]
    blank = [""] * len(want.copied)
    same, others = [], []
    for place, column in enumerate(want.copied):
        wanted = [want.further.get(key, blank)[place] for key in keys]
        values = frame[column].tolist()
        differ = [row for row, pair in enumerate(zip(values, wanted, strict=True)) if pair[0] != pair[1]]
        if not differ:
            same.append(column)
            continue
        row = differ[0]
        example = f"row {frame.index[row] + 2} has {values[row][:40]!r}, there it is {wanted[row][:40]!r}"
        others.append(f"{column} in {len(differ)} of {len(frame)} rows ({example})")
    found = []
    if same:
        text = f"Not predicted, but as they are in {want.sample}: {_some(same)}."
        found.append(Reason("note", "further columns", text))
    if others:
        text = f"Other values than in {want.sample}: {_some(others)}; nothing here can tell whether they are right."
        found.append(Reason("note", "further columns", text))
    return found


def _some(texts: list[str]) -> str:
    more = f" and {len(texts) - COLUMNS_SHOWN} more" if len(texts) > COLUMNS_SHOWN else ""
    return f"{', '.join(texts[:COLUMNS_SHOWN])}{more}"


def faults_of(path: Path, want: Expected) -> list[str]:
    """Returns every fault of a submission, as examine does."""
    return examine(path, want)[0]


# --- run lengths -----------------------------------------------------------------------------------------------------


def _sample_keys(
    competition: Competition, path: Path, numbers: dict[str, int]
) -> tuple[list[Key], list[str], dict[Key, list[str]]]:
    """The keys of the sample submission and its columns, both in its order, and what is in those not predicted."""
    settings = competition.submission
    needed = key_columns(settings) + ([settings.rle] if settings.format == "rle" else [])
    keys: dict[Key, list[str]] = {}
    # of class maps, a column per pixel
    sample = read_table(path, needed, only=settings.format == "labels", section="submission")
    copied = sample[[column for column in sample.columns if column not in needed]].to_numpy().tolist()
    keys_of_rows = list(keys_of(sample, settings, numbers))
    placeholder = is_placeholder(competition, (label for _, label in keys_of_rows))
    foreground = [competition.classes.index(name) for name in competition.foreground]
    for place, (row, (image_id, label)) in enumerate(zip(sample.index + 2, keys_of_rows, strict=True)):
        if image_id is not None and placeholder:  # an image may have instances of every class
            for number in foreground:
                keys.setdefault((image_id, number), copied[place])
            continue
        if image_id is None or (label is not None and label not in numbers):
            raise PipelineError(
                f"{path.name} row {row}: {sample[settings.id].iat[place]!r} names no id and class of the YAML "
                f"(classes: {', '.join(numbers)}; pattern: {settings.pattern})."
            )
        keys.setdefault((image_id, None if label is None else numbers[label]), copied[place])
    return list(keys), sample.columns.tolist(), keys


def _written(competition: Competition, path: Path, numbers: dict[str, int]) -> dict[str, str]:
    """The ids of the sample submission that are not in normal form, as it writes them, by their normal form."""
    settings = competition.submission
    if not as_packed(path).exists():
        return {}  # _sample_keys says so
    sample = read_csv(path, key_columns(settings), normal=False).rename(columns=normal_form)
    if not set(key_columns(settings)) <= set(sample):
        return {}
    ids = (image_id for image_id, _ in keys_of(sample, settings, numbers) if image_id and not image_id.isascii())
    return {name: image_id for image_id in ids if (name := normal_form(image_id)) != image_id}


def _rle_faults(
    frame: pd.DataFrame, want: Expected, measure: Measure | None
) -> tuple[list[str], dict[Key, int] | None]:
    """Faults in the order of their rows, and the first row of every key; None: the columns are others."""
    if list(frame.columns) != want.header:
        of = f" as in {want.sample}" if want.copied else ""
        wanted = f"{', '.join(want.header)}, in this order{of}"
        return [f"columns are {column_names(frame.columns)}; expected {wanted}"], None
    known, numbers = set(want.keys), {label: number for number, label in enumerate(want.labels)}
    lines: dict[Key, list[tuple[int, str]]] = {}
    faults, find = [], image_finder({image_id for image_id, _ in known})
    rows, keys = frame.index + 2, keys_of(frame, want.settings, want.labels)
    pairs = zip(rows, keys, frame[want.settings.rle], strict=True)
    for place, (row, (image_id, label), text) in enumerate(pairs):
        key = image_id or "", None if label is None else numbers.get(label, -1)
        if key not in known:
            value, suffix = frame[want.settings.id].iat[place], f" with label {label!r}" if label else ""
            meant = find(key[0])
            hint = _meant(value, key[0], meant if (meant, key[1]) in known else key[0])
            faults.append((row, f"id {value!r}{suffix} is not in the test set{hint}"))
        elif key in lines and want.settings.row != "instance":
            faults.append((row, f"id {want.name(key)} stands in row {lines[key][0][0]} already"))
        else:
            lines.setdefault(key, []).append((row, text))
    for key, texts in lines.items():
        faults += [(row, f"id {want.name(key)}: {fault}") for row, fault in _mask_faults(key, texts, want, measure)]
    first = {key: rows[0][0] for key, rows in lines.items()}
    return [f"row {row}: {fault}" for row, fault in sorted(faults)], first


def _meant(value: str, image_id: str, meant: str) -> str:
    """The end of a sentence about an id that is not in the test set: what does not show in its value, or what to write
    where it is the name of a test image's file."""
    if odd := unseen(value):
        return f": it is written {odd}"
    if meant == image_id:
        return ""
    if image_id.startswith(meant):
        return f": write {meant}, without {image_id[len(meant) :]}"
    return f": write {meant}"


def _mask_faults(
    key: Key, lines: list[tuple[int, str]], want: Expected, measure: Measure | None
) -> list[tuple[int, str]]:
    """What is wrong with the mask of a key or with its instances, of which no pixel may belong to two, by row."""
    shape = want.shapes.get(key[0])
    if shape is None:
        return [(row, "no such image was decoded") for row, _ in lines]
    if key[0] in want.windows:
        return _faults_of_windows(key, lines, want, measure)
    faults, covered = [], None
    for row, text in lines:
        try:
            # what encoding the decoded mask again would give
            again = rle.convert(text, shape, want.convention, want.convention)
            mask = rle.decode(text, shape, want.convention)
        except rle.RleError as error:
            faults.append((row, _no_mask(text, error, want)))
            continue
        if again != text:
            faults.append((row, _not_canonical(text, again)))
        elif covered is None:
            covered = mask
        elif not mask.any() or not covered.any():
            faults.append((row, "an empty mask stands beside other instances"))
        elif (covered & mask).any():
            faults.append((row, "overlaps another instance of the image"))
        else:
            covered |= mask
    if measure and covered is not None:
        measure(key[0], want.classes[0] if key[1] is None else key[1], covered)
    return faults


def _faults_of_windows(
    key: Key, lines: list[tuple[int, str]], want: Expected, measure: Measure | None
) -> list[tuple[int, str]]:
    """As _mask_faults, of an image whose mask is never made as a whole: its windows are measured one by one."""
    (row, text), whole = lines[0], want.windows[key[0]]
    try:
        again = rle.convert(text, whole.shape, want.convention, want.convention)
    except rle.RleError as error:
        return [(row, _no_mask(text, error, want))]
    if again != text:
        return [(row, _not_canonical(text, again))]
    if measure:
        runs, number = rle.parse(text, want.convention), want.classes[0] if key[1] is None else key[1]
        for window_id, box, core in zip(whole.ids, whole.boxes, whole.cores, strict=True):
            mask = np.zeros((box[2] - box[0], box[3] - box[1]), np.uint8)
            inside = slice(core[0] - box[0], core[2] - box[0]), slice(core[1] - box[1], core[3] - box[1])
            mask[inside] = rle.box_of_runs(runs, core, whole.shape, want.convention.order)
            measure(window_id, number, mask)
    return []


def _no_mask(text: str, error: rle.RleError, want: Expected) -> str:
    empty = f"the text {want.convention.empty!r}" if want.convention.empty else "an empty field"
    return f"{text!r} is no mask; an empty one is {empty}" if rle.is_placeholder(text) else str(error)


def _not_canonical(text: str, again: str) -> str:
    return f"is not in canonical form: {text[:40]!r} should be {again[:40]!r}"


# --- class maps ------------------------------------------------------------------------------------------------------


def read_labels(path: Path, want: Expected) -> Iterator[tuple[int, str, np.ndarray | str]]:
    """Yields row, id, and class numbers (pixels,) or what is wrong with them.

    Line by line: a table of a million rows × 8192 columns would not fit into memory as text.
    """
    values, pixels = _class_of_value(want), len(want.header) - 1
    with _open_text(path) as file:
        next(file, "")
        for row, line in enumerate(file, start=2):
            if not line.strip():
                continue
            image_id, _, text = normal_form(line).rstrip("\r\n").partition(",")
            try:
                numbers = np.array(text.split(","), dtype=np.int64)
            except (ValueError, OverflowError):
                strange = [value for value in text.split(",") if not re.fullmatch(r"\s*-?[0-9]{1,18}\s*", value)]
                words = "is no class" if strange[0].strip().isdecimal() else "is not a whole number"
                yield row, image_id, f"{strange[0][:40]!r} {words}"
                continue
            if len(numbers) != pixels:
                yield row, image_id, f"has {len(numbers)} pixels; expected {pixels}"
                continue
            inside = (numbers >= 0) & (numbers < len(values))
            labels = values[np.where(inside, numbers, 0)]
            unknown = ~inside | (labels < 0)
            if unknown.any():
                yield row, image_id, f"{numbers[unknown][0]} is no class ({', '.join(want.labels)})"
                continue
            yield row, image_id, labels.astype(np.uint8)


@contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    """Opens a CSV of class maps.

    Raises:
        PipelineError: it does not exist, or is no text.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield file
    except FileNotFoundError:
        raise PipelineError(f"{path} does not exist.") from None
    except UnicodeDecodeError as error:
        raise not_utf8(path, error.object, error.start) from None


def _class_of_value(want: Expected) -> np.ndarray:
    """The class number of every value that a file may hold, -1 where there is none."""
    values = [int(label) for label in want.labels]
    table_of = np.full(max(values) + 1, -1)
    table_of[values] = np.arange(len(values))
    return table_of


def _label_faults(path: Path, want: Expected, measure: Measure | None) -> tuple[list[str], dict[Key, int] | None]:
    """As _rle_faults."""
    with _open_text(path) as file:
        header = [column.strip('"') for column in file.readline().rstrip("\r\n").split(",")]
    check_separator(path, header)
    if header != want.header:
        last = f"{column_names(header[:3])}, … ({len(header)} columns)"
        return [f"columns are {last}; expected {want.header[0]}, 0, 1, … {want.header[-1]}"], None
    known, first = set(want.keys), {}  # type: tuple[set[Key], dict[Key, int]]
    faults, find = [], image_finder({one for one, _ in known})
    for row, image_id, labels in read_labels(path, want):
        key = image_id, None
        if key not in known:
            hint = _meant(image_id, image_id, find(image_id))
            faults.append(f"row {row}: id {image_id!r} is not in the test set{hint}")
        elif key in first:
            faults.append(f"row {row}: id {image_id} stands in row {first[key]} already")
        elif isinstance(labels, str):
            faults.append(f"row {row}: id {image_id}: {labels}")
        elif image_id not in want.shapes:
            faults.append(f"row {row}: id {image_id}: no such image was decoded")
        elif measure:
            for number in want.classes:
                measure(image_id, number, (labels == number).view(np.uint8).reshape(want.shapes[image_id]))
        if key in known:
            first.setdefault(key, row)
    return faults, first
