"""Guesses the settings for stacked arrays, as used in courses: X_train.npy, y_train.npy and X_test.npy, or one .npz."""

import re
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.config.raw_files import Value
from pipeline.decode.formats.numpy_arrays import load
from pipeline.decode.readers.files import evenly
from pipeline.decode.value_range import extremes
from pipeline.new.guess.base import Draft, Files, Guess
from pipeline.new.guess.columns import differing, under
from pipeline.new.guess.groups import guess_group
from pipeline.new.guess.masks import MOST_VALUES, classes_of_values, one_class
from pipeline.new.guess.metric import MEAN_IOU, METRIC
from pipeline.new.guess.pictures import range_of
from pipeline.new.guess.tables import Key, Named, Rows, Table, read_rows, read_tables

MOST_FILES, SAMPLED = 20, 100
"""With more array files than this, each file is one image; and the number of rows of an array that are examined."""
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")
_IMAGES = {"x", "image", "images", "img", "imgs", "data", "inputs", "input", "pictures", "scans", "features"}
_MASKS = {
    "y",
    "mask",
    "masks",
    "label",
    "labels",
    "target",
    "targets",
    "gt",
    "seg",
    "segmentation",
    "truth",
    "annotations",
}
_TEST, _VALIDATION = {"test", "testing", "ts"}, {"val", "valid", "validation", "dev"}


@dataclass(frozen=True)
class Stack:
    """An array in the raw files whose first axis counts images."""

    name: str
    """The name in the YAML: `X_train.npy`, or `data.npz:X_train`."""
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def words(self) -> set[str]:
        """The words in its name, without those of folders."""
        name = self.name.rpartition(":")[2].rpartition("/")[2].removesuffix(".npy")
        return {word.lower() for word in _WORDS.findall(name)} | {word.lower() for word in name.split("_")}

    @property
    def part(self) -> str:
        """`test`, `validation`, or `train` if its name contains neither word."""
        return "test" if self.words & _TEST else "validation" if self.words & _VALIDATION else "train"

    @property
    def told(self) -> str:
        """Its name, shape and type."""
        return f"{self.name} {'×'.join(map(str, self.shape))} {self.dtype}"

    def rows(self, folder: Path, count: int = SAMPLED) -> np.ndarray:
        """Returns some of its rows."""
        file, _, key = self.name.partition(":")
        array = load(folder / file, key or None)
        return np.array(array[evenly(range(len(array)), count)])


def stacks_in(folder: Path, paths: Iterable[Path]) -> list[Stack]:
    """Returns the arrays in .npy and .npz files, from their headers; nothing if there is one file per image."""
    files = [path for path in paths if path.suffix.lower() in (".npy", ".npz")]
    if len(files) > MOST_FILES:
        return []
    stacks: list[Stack] = []
    for path in files:
        name = path.relative_to(folder).as_posix()
        try:
            if path.suffix.lower() == ".npy":
                with path.open("rb") as file:
                    stacks.append(Stack(name, *_head(file)))
                continue
            with zipfile.ZipFile(path) as archive:
                for member in archive.namelist():
                    with archive.open(member) as inside:
                        stacks.append(Stack(f"{name}:{member.removesuffix('.npy')}", *_head(inside)))
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            continue
    return stacks


def told(folder: Path, paths: Iterable[Path]) -> str:
    """Returns the end of an error message about arrays that are not understood; "" if there are no arrays."""
    stacks = stacks_in(folder, paths)
    if not stacks:
        return ""
    shown = ", ".join(stack.told for stack in stacks[:4]) + f" and {len(stacks) - 4} more" * (len(stacks) > 4)
    return (
        f"; the arrays are {shown}. Arrays of all images need an array of as many masks, with the same rows and "
        "columns and few values. Arrays of single images need separate files for images and masks"
    )


def _head(file: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an array in a file."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def draft_of(folder: Path, paths: list[Path], title: str) -> Draft | None:
    """Returns the settings for stacked arrays; None if no arrays of images and masks match each other."""
    stacks = stacks_in(folder, paths)
    pair = _pair([stack for stack in stacks if stack.part == "train"], folder)
    if pair is None:
        return None
    images, masks = pair
    test = next((stack for stack in stacks if stack.part == "test" and _alike(stack, images)), None)
    truth = next(
        (stack for stack in stacks if test and stack.part == "test" and stack is not test and _mask_of(stack, test)),
        None,
    )
    first = _is_first(images)
    rows, columns = images.shape[2:4] if first else images.shape[1:3]
    certain = "sure" if images.words & _IMAGES and masks.words & _MASKS else "guess"
    guesses = [
        Guess("title", title, "guess", "the name"),
        Guess("reader", "arrays", "sure", "images and masks are stacked in arrays"),
        Guess("train.images", images.name, certain, images.told),  # type: ignore[arg-type]
        Guess("train.masks", masks.name, certain, f"{masks.told}: as many, of the same rows and columns"),  # type: ignore[arg-type]
    ]
    if test is None:
        text = "no array has the name and the shape of test images; a run ends with the report"
        guesses.append(Guess("test", None, "guess", text))
    else:
        guesses.append(Guess("test.images", test.name, "sure", test.told))
    if truth:
        guesses.append(Guess("test.masks", truth.name, "guess", truth.told))
        guesses.append(Guess("test.evaluate", True, "guess", "scored once, at the end"))
    tables, notes = read_tables(folder, paths)
    used, of_tables = _of_tables(folder, tables, images, test)
    made = _pixels(images, folder, first)
    metric_and_classes = _classes(masks, folder, first)
    guesses += [
        *of_tables,
        *metric_and_classes,
        Guess("shape", [rows, columns], "sure", "the shape of the arrays"),
        *made,
    ]
    guesses += used[1]
    notes += _unused(folder, paths, stacks, [images, masks, test, truth], tables, used[0])
    return Draft(guesses, notes=tuple(notes))


# --- which array is which --------------------------------------------------------------------------------------------


def _pair(stacks: list[Stack], folder: Path) -> tuple[Stack, Stack] | None:
    """The arrays of images and masks, found by their names, shapes and values."""
    pairs = [
        (images, other) for images in stacks for other in stacks if images is not other and _mask_of(other, images)
    ]
    pairs = [(images, other) for images, other in pairs if not images.words & _MASKS and not other.words & _IMAGES]
    pairs = [(images, other) for images, other in pairs if images.words & _IMAGES or other.words & _MASKS]
    pairs.sort(key=lambda pair: bool(pair[0].words & _IMAGES) + bool(pair[1].words & _MASKS), reverse=True)
    return next(((images, other) for images, other in pairs if _few_values(other, folder)), None)


def _is_first(images: Stack) -> bool:
    """Whether images are channels × rows × columns."""
    return len(images.shape) == 4 and images.shape[1] <= 32 < min(images.shape[2:])


def _mask_of(masks: Stack, images: Stack) -> bool:
    """Whether an array may contain the masks of images, judged by its shape."""
    if len(images.shape) not in (3, 4) or len(masks.shape) not in (3, 4) or masks.shape[0] != images.shape[0]:
        return False
    sides = images.shape[2:] if _is_first(images) else images.shape[1:3]
    rows_columns = masks.shape[2:] if _is_first(images) and len(masks.shape) == 4 else masks.shape[1:3]
    return rows_columns == sides


def _alike(stack: Stack, other: Stack) -> bool:
    return stack.shape[1:] == other.shape[1:] and stack.dtype == other.dtype and not stack.words & _MASKS


def _few_values(masks: Stack, folder: Path) -> bool:
    try:
        values = np.unique(masks.rows(folder, 20))
    except ValueError:
        return False
    return len(values) <= MOST_VALUES and bool(np.isfinite(values).all() and (values % 1 == 0).all())


# --- settings --------------------------------------------------------------------------------------------------------


def _pixels(images: Stack, folder: Path, first: bool) -> list[Guess]:
    """The guesses for channels and range of values."""
    sample = images.rows(folder, 50)
    count = 1 if sample.ndim == 3 else sample.shape[1 if first else 3]
    guesses = [Guess("channels_first", True, "sure", "the shape of the images")] if first else []
    if count not in (1, 3):
        guesses.append(Guess("channels", count, "guess" if count == 4 else "sure", f"{images.told}"))
    ends = [
        extremes(image.astype(np.float64) if image.dtype.kind == "f" else image)
        for image in sample
        if np.isfinite(image).all()
    ]
    if ends:
        guesses += range_of(
            {sample.dtype},
            [low for low, _ in ends],
            [high for _, high in ends],
            (float(sample.min()), float(sample.max())),
        )
    return guesses


def _classes(masks: Stack, folder: Path, first: bool) -> list[Guess]:
    """The classes, from the planes or the values of masks."""
    sample = masks.rows(folder)
    planes = sample.shape[1 if first else 3] if sample.ndim == 4 else 1
    values, counts = np.unique(sample, return_counts=True)
    if planes > 1:
        by_plane = np.moveaxis(sample, 1, -1) if first else sample
        whole = bool((by_plane.sum(axis=-1) == 1).all())
        names = (["background"] if whole else []) + [f"class_{number}" for number in range(1, planes + (not whole))]
        relation = "exactly one per pixel; the first is assumed to be the background" if whole else "which overlap"
        text = f"{planes} planes, {relation}"
        kind = "multiclass" if whole else "multilabel"
        return [Guess("kind", kind, "guess", text), Guess("classes", names, "guess", "choose the names"),
                MEAN_IOU if whole else METRIC]  # fmt: skip
    pixels_of: dict[Value, int] = {int(value): int(count) for value, count in zip(values, counts, strict=True)}
    if len([value for value in pixels_of if value]) == 1:
        return [one_class("masks hold " + " and ".join(map(str, pixels_of))), METRIC]
    guesses = classes_of_values(Counter(pixels_of))
    return [*guesses, MEAN_IOU]


def _of_tables(
    folder: Path, tables: list[Table], images: Stack, test: Stack | None
) -> tuple[tuple[set[str], list[Guess]], list[Guess]]:
    """The names of the used tables with the guess for a group, and the settings of a sample submission."""
    ids = [str(row) for row in range(images.shape[0])]
    rows_of_test = {str(row): folder / test.name for row in range(test.shape[0])} if test else {}
    sample = next(
        (named for table in tables if table.is_sample and (named := read_rows(table, [Files("", rows_of_test)]))), None
    )
    used: set[str] = set()
    guesses: list[Guess] = []
    if sample and sample.key.share > 0.5:
        used.add(sample.table.name)
        guesses.append(
            Guess("sample_submission", sample.table.name, sample.certainty, "its ids are rows of the test images")
        )
        guesses += differing({}, sample, None)
        if not sample.table.pixels:
            guesses += under("rle", [Guess("order", "column", "guess", "no file shows how run lengths are written"),
                                     Guess("base", 1, "guess", "no file shows it")])  # fmt: skip
    else:
        guesses.append(
            Guess("sample_submission", None, "guess", "no table is a sample submission with rows of test images")
        )
    others = [
        table for table in tables if table.name not in used and not table.is_sample and len(table.frame) == len(ids)
    ]
    further = None
    if others:
        used.add(others[0].name)
        further = Named(
            others[0], Key(str(others[0].frame.columns[0]), None, Files("", {}), ids, None), Rows("image", None, [], "")
        )
    return (used, guess_group(None, further, ids)), guesses


def _unused(
    folder: Path, paths: list[Path], stacks: list[Stack], taken: list[Stack | None], tables: list[Table], used: set[str]
) -> list[str]:
    """Sentences about the files that are not used."""
    names = {stack.name for stack in taken if stack}
    notes = [f"not used: the array {stack.told}" for stack in stacks if stack.name not in names]
    for table in tables:
        if table.name not in used:
            columns = ", ".join(map(str, table.frame.columns[:6]))
            notes.append(f"not used: {table.name} ({len(table.frame)} rows; columns {columns})")
    known = {stack.name.partition(":")[0] for stack in stacks} | {table.name for table in tables}
    others = [name for path in paths if (name := path.relative_to(folder).as_posix()) not in known]
    others = [name for name in others if not name.lower().endswith((".csv", ".txt", ".md"))]
    if others:
        notes.append(f"not used: {', '.join(others[:5])}{f' and {len(others) - 5} more' if len(others) > 5 else ''}")
    return notes
