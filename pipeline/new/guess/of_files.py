"""Guesses the settings for mask files: their classes, their instances, and the format of a submission."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from pipeline.core.config.raw_files import THRESHOLD, Value
from pipeline.decode.readers.files import evenly
from pipeline.decode.rle_checks import MaskRow
from pipeline.new.guess.base import Files, Guess, image_size
from pipeline.new.guess.class_names import Named, from_table, known_names
from pipeline.new.guess.columns import placeholder_of, unsampled
from pipeline.new.guess.find import Found
from pipeline.new.guess.forms import form_of
from pipeline.new.guess.masks import (
    classes_of_values,
    mask_values,
    never_both,
    numbers_instances,
    one_class,
    single_regions,
)
from pipeline.new.guess.metric import MEAN_IOU, METRIC
from pipeline.new.guess.rle import guess_rle
from pipeline.new.guess.tables import find_key


def of_mask_files(found: Found) -> list[Guess]:
    """Returns the classes of mask files, and the columns of a submission."""
    assert found.mask_files
    masks, kind = found.mask_files.masks, found.mask_files.kind
    guesses = []
    absent = 0 if found.lists.train else len(set(found.images.paths) - set(masks.paths))
    if absent:
        guesses.append(Guess("columns.absent", "empty", "guess", f"{absent} images have no mask file"))
    guesses += _as_beside(found, masks, unsampled(found))
    if "*" in Path(masks.pattern).name and not (found.sample and found.sample.table.pixels):
        text = "several mask files per image; remove this if a submission has one row per image"
        guesses.append(Guess("submission.rows", "instance", "guess", text))
    if _in_planes(found, masks):
        text = "masks are arrays of several planes, (n, rows, columns): each is taken for an instance"
        planes = [Guess(f"{subset}.instances", "planes", "guess", text) for subset in _with_masks(found)]
        return [*guesses, *planes, one_class("mask files hold planes"), METRIC]
    if kind == "jpeg":
        text = "JPEG: values waver around black and white"
        guesses += [Guess(f"{subset}.threshold", THRESHOLD, "guess", text) for subset in _with_masks(found)]
    names = list(found.mask_files.classes)
    if kind == "jpeg" and not names:
        return [*guesses, one_class("mask files are black and white"), METRIC]
    if kind == "instances" and not names:
        return [*guesses, *_of_instances(found, masks)]
    values = mask_values(masks.paths.values()) or Counter()
    if not names and set(values) == {0, 1, 255} and never_both(masks.paths.values()):
        text = "mask files hold 0 and 1, or 0 and 255, never all three: 1 and 255 are taken for the same class"
        return [*guesses, one_class(text), METRIC]
    by_value = [] if names else classes_of_values(values, _names_of(found, values))
    if len(names or by_value) > 1 and not found.sample and (found.test or found.lists.test):
        guesses.append(Guess("submission.label", "class", "guess", "no sample submission shows this column"))
    if names:
        return [*guesses, Guess("classes", names, "guess", "each class has separate files; they may overlap"), METRIC]
    return [*guesses, *by_value, METRIC if len(by_value) == 1 else MEAN_IOU]


def _as_beside(found: Found, masks: Files, guesses: list[Guess]) -> list[Guess]:
    """The settings of a submission, with run lengths as in tables that contain the same masks as the mask files."""
    if not found.single or not any(guess.key == "rle.order" for guess in guesses):
        return guesses
    rows = []
    for table in found.single:
        key = find_key(table, [masks])
        for name, text in zip(key.ids, table.frame[table.rle], strict=True) if key else ():
            path = masks.paths.get(name)
            size = image_size(path) if path else None
            rows += [MaskRow(text, path, size, path)] if path and size else []
    if not rows:
        return guesses
    names = ", ".join(table.name for table in found.single[:2]) + ", …" * (len(found.single) > 2)
    conventions = [
        replace(guess, certainty="guess", evidence=f"{names} write masks so: {guess.evidence}")
        for guess in guess_rle(rows, placeholder_of(found.sample, None), found.single[0].writing)
    ]
    return [*(guess for guess in guesses if not guess.key.startswith("rle.")), *conventions]


def _in_planes(found: Found, masks: Files) -> bool:
    """Whether masks are .npy files, some of them with several planes, while images are pictures."""
    if any(path.suffix.lower() != ".npy" for path in masks.paths.values()):
        return False
    picture = form_of(next(iter(found.images.paths.values())))
    forms = [form_of(path) for path in evenly(masks.paths.values(), 20)]
    flat = picture is not None and picture.slices == 1
    return flat and any(form is not None and form.first and form.slices > 1 for form in forms)


def _with_masks(found: Found) -> list[str]:
    return ["train", *(["test"] if found.truth or (found.lists.test and found.mask_files) else [])]


def _of_instances(found: Found, masks: Files) -> list[Guess]:
    """The settings of mask files that number instances, or contain 1000 × class + number as in Cityscapes."""
    values = mask_values(masks.paths.values()) or mask_values(masks.paths.values(), 20)
    if numbers_instances(masks.paths.values()):
        text = "each file has the values 0, 1, 2, … up to a varying number, each a single region"
        guesses = [Guess(f"{subset}.instances", True, "guess", text) for subset in _with_masks(found)]
        return [*guesses, one_class("mask files number instances"), METRIC]
    if not _class_times_1000(values or {}):
        if values and not single_regions(masks.paths.values()):
            return [*_labels_of_submission(found), *classes_of_values(values, _names_of(found, values)), MEAN_IOU]
        text = "16 bits, and not 1000 × class + number as those of Cityscapes: each value is taken for an object"
        guesses = [Guess(f"{subset}.instances", True, "guess", text) for subset in _with_masks(found)]
        return [*guesses, one_class("mask files seem to number instances"), METRIC]
    classes = Counter[Value]()
    for value, count in (values or {}).items():
        classes[value // 1000 if isinstance(value, int) and value >= 1000 else value] += count
    text = "values of 1000 and more, as those of Cityscapes: 1000 × class + number of the instance"
    guesses = [Guess(f"{subset}.class_times", 1000, "guess", text) for subset in _with_masks(found)]
    by_value = classes_of_values(classes, _names_of(found, classes))
    return [*guesses, *_labels_of_submission(found), *by_value, MEAN_IOU]


def _labels_of_submission(found: Found) -> list[Guess]:
    """The column of class names in a submission, if there is no sample submission."""
    text = "no sample submission shows this column"
    return [Guess("submission.label", "class", "guess", text)] if found.test and not found.sample else []


def _class_times_1000(values: Iterable[Value]) -> bool:
    """Whether values are class numbers or, from 1000 on, 1000 × class + number of the instance."""
    numbers = {value for value in values if isinstance(value, int)}
    instances = {value for value in numbers if value >= 1000}
    first = [
        min(value % 1000 for value in instances if value // 1000 == number) for number in {v // 1000 for v in instances}
    ]
    return (
        bool(instances)
        and max(numbers - instances, default=0) < 256
        and sum(number <= 1 for number in first) > (0.5 * len(first))
    )


def _names_of(found: Found, values: Counter[Value]) -> Named | None:
    """The names of the values of class maps, from a table or JSON file, or of a well-known data set."""
    if found.named and all(value in (*found.named.names, *found.named.ignored) for value in values):
        return found.named
    for table in found.names:
        named = from_table(table.name, table.frame)
        if named and sum(value in (*named.names, *named.ignored) for value in values) >= 0.9 * len(values):
            return named
    return known_names(found.mask_files.masks.pattern if found.mask_files else "", values)
