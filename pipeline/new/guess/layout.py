"""Guesses the layout of a folder of raw files: the reader, and every setting of a competition's YAML."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from pipeline.core.errors import PipelineError
from pipeline.decode.readers.files import evenly, read_image
from pipeline.decode.rle_checks import Certainty, MaskRow, parsed
from pipeline.masks.rle import Convention
from pipeline.new.guess import annotations, stacks
from pipeline.new.guess.base import Draft, Guess, image_size, walk
from pipeline.new.guess.columns import columns_of, differing, placeholder_of, under, unsampled
from pipeline.new.guess.find import Found, find
from pipeline.new.guess.forms import is_plain
from pipeline.new.guess.groups import guess_group
from pipeline.new.guess.masks import classes_of_labels, kind_of, mask_values, one_class, pictures
from pipeline.new.guess.metric import MEAN_IOU, METRIC
from pipeline.new.guess.of_files import of_mask_files
from pipeline.new.guess.pictures import reading_of
from pipeline.new.guess.rle import PAIRS, damaged_rows, guess_rle, other_size
from pipeline.new.guess.tables import Named, Table

MOST_MEASURED = 4000
"""Maximum number of files whose size is read, for formats whose headers take long to read, such as DICOM."""

ANY_FOLDER = ", and `predict --images` predicts any folder"
"""Added for images that are one file each (not slices, windows or several files)."""
MOST_CLASSES = 256
"""Maximum number of different values in class maps."""
MOST_DAMAGED = 5
"""Maximum number of rows with damaged run lengths that are named."""


def look(folder: Path, title: str) -> Draft:
    """Returns the settings for the raw files in a folder, each with its evidence.

    Raises:
        PipelineError: the folder does not exist, or has no images or masks.
    """
    if not folder.is_dir():
        raise PipelineError(f"{folder} is not a folder; give the folder of the raw files with --from.")
    for path in sorted([*folder.glob("*.npz"), *folder.glob("*/*.npz")]):
        draft = _npz_labels(folder, path, title)
        if draft:
            return draft
    if (folder / "annotations" / "trimaps").is_dir() and (folder / "images").is_dir():
        return _oxford_pet(folder, title)
    paths = list(walk(folder))
    return stacks.draft_of(folder, paths, title) or _images_in_folders(folder, paths, title)


def _head(title: str, reader: str, evidence: str) -> list[Guess]:
    return [Guess("title", title, "guess", "the name"), Guess("reader", reader, "sure", evidence)]


def _npz_labels(folder: Path, path: Path, title: str) -> Draft | None:
    """The draft for an .npz file with training_set and test_set; None for other files."""
    try:
        with np.load(path, allow_pickle=False) as content:
            if not {"training_set", "test_set"} <= set(content.files):
                return None
            training, test = content["training_set"], content["test_set"]
    except (OSError, ValueError, EOFError, BadZipFile):
        return None
    if training.ndim != 4 or training.shape[1] != 2:
        return None
    values = _class_numbers(path, training[:, 1])
    rows, columns = training.shape[2:]
    name = path.relative_to(folder).as_posix()
    guesses = [
        *_head(title, "npz_labels", f"training_set {training.shape} and test_set {test.shape}"),
        Guess("file", name, "sure", "the file that contains them"),
        Guess("kind", "multiclass", "sure", "one class map per image"),
        Guess("classes", {f"class_{value}": value for value in values}, "guess",
              "all values of the class maps; the first is the background; choose the names"),
        Guess("shape", [rows, columns], "sure", f"all {len(training) + len(test)} images"),
        Guess("group", None, "guess", "the images have only numbers as ids"),
        MEAN_IOU,
    ]  # fmt: skip
    return Draft(guesses)


def _class_numbers(path: Path, labels: np.ndarray) -> list[int]:
    """The values of class maps (N, H, W), after checking that they are few whole numbers."""
    values = np.unique(labels) if labels.dtype.kind in "biuf" else np.empty(0)
    wrong = [value for value in values if not np.isfinite(value) or value != np.round(value)]
    if wrong or not 0 < len(values) <= MOST_CLASSES:
        holds = f"{wrong[0]:g}" if wrong else f"{len(values)} values" if len(values) else f"{labels.dtype}"
        raise PipelineError(
            f"{path}: the class maps training_set[:, 1] contain {holds}; expected at most {MOST_CLASSES} whole numbers "
            "(the classes): correct the file."
        )
    return [int(value) for value in values]


def _oxford_pet(folder: Path, title: str) -> Draft:
    images = sorted((folder / "images").glob("*.jpg"))
    if not images:
        raise PipelineError(f"{folder / 'images'} contains no .jpg files, although annotations/trimaps exists.")
    shape = _shape(_sizes(images))
    trimaps = mask_values(sorted((folder / "annotations" / "trimaps").glob("*.png")), 50)
    shown = ", ".join(map(str, sorted(trimaps, key=str))) if trimaps else "no few values"
    guesses = [
        *_head(title, "oxford_pet", f"images and annotations/trimaps, which hold {shown}"),
        Guess("border", None, "FILL IN", "foreground, background or ignore: the meaning of 3; it changes every score"),
        Guess("classes", ["pet"], "guess", "the value 1 of the trimaps; choose the name"),
        shape,
        Guess("group", None, "guess", "this layout has no groups"),
        Guess("metric", "dice", "guess", "or iou"),
    ]
    return Draft(guesses)


def _sizes(paths: list[Path]) -> dict[Path, tuple[int, int]]:
    """Rows and columns of the images that can be read."""
    measured = paths if not paths or is_plain(paths[0]) else evenly(paths, MOST_MEASURED)
    sizes = {path: size for path in measured if (size := image_size(path)) is not None}
    if not sizes:
        try:
            read_image(paths[0])
            why = ""
        except ValueError as error:
            why = f": it {error}"
        raise PipelineError(f"None of {len(paths)} images can be read, for instance {paths[0]}{why}.")
    return sizes


def _shape(sizes: dict[Path, tuple[int, int]]) -> Guess:
    """The guess for `shape`, the common size of all images, if there is one."""
    different = set(sizes.values())
    if len(different) == 1:
        (size,) = different
        return Guess("shape", list(size), "sure", f"all {len(sizes)} images")
    rows, columns = np.array(list(sizes.values())).T
    smallest, largest = (f"{side(rows)}×{side(columns)}" for side in (min, max))
    evidence = f"{len(different)} sizes, from {smallest} to {largest}"
    return Guess("shape", None, "sure", evidence)


# --- images in folders -----------------------------------------------------------------------------------------------


def _images_in_folders(folder: Path, paths: list[Path], title: str) -> Draft:
    try:
        found = find(folder, paths)
    except PipelineError as error:
        raise PipelineError(f"{str(error).removesuffix('.')}{stacks.told(folder, paths)}.") from None
    tests = list(found.test.paths.values()) if found.test else []
    sizes = _sizes([*found.images.paths.values(), *tests])
    shape = _shape(sizes)
    count = len(found.images.paths) + len(tests)
    if len(sizes) < count and shape.value:
        shape = replace(shape, certainty="guess", evidence=f"{len(sizes)} of {count} images, which were measured")
    odd: list[str] = []
    if found.table:
        rows = _mask_rows(found, found.table, sizes)
        masks = _of_table(found, found.table, rows)
        odd = [text for text in (other_size(rows, masks),) if text] + list(_damaged(found.table, masks))
    elif found.annotations:
        labelled = found.sample is None or bool(found.sample.rows.label or found.sample.key.pattern)
        masks = [*unsampled(found), *annotations.guesses(found.annotations, found.of_test, labelled), METRIC]
    else:
        masks = of_mask_files(found)
    group = guess_group(found.table, found.further, list(found.images.paths), found.images)
    of_files = found.mask_files.masks if found.mask_files else None
    reading = reading_of(found.images, of_files, sizes.values())
    by_id = reading.size is not None  # images cut into windows keep their ids, slices of volumes get new ones
    known = [
        guess for guess in group if guess.key == "group" and guess.value and (by_id or "{group}" not in guess.value)
    ]
    if reading.group and not known:
        group = [guess for guess in group if guess.key not in ("group", "split.folds")] + reading.group
    if reading.size:  # windows
        shape = replace(shape, value=None, evidence="windows of the images")
        masks = _joined_rows(masks)
    subsets = _subsets(found)
    if found.images.bands or any(guess.key in ("volumes", "windows") for guess in reading.guesses):
        subsets = [replace(guess, evidence=guess.evidence.removesuffix(ANY_FOLDER)) for guess in subsets]
    guesses = [*_head(title, "rle_csv", "images in folders"), *subsets, *masks, shape, *reading.guesses, *group]
    evidence = "; ".join(guess.evidence for guess in masks if guess.key == "classes")
    used = [table.name for table in found.names if evidence.endswith(f"those of {table.name}")]
    notes = [note for note in found.notes if not any(note.startswith(f"not used: {name} ") for name in used)]
    notes += [*odd, *_placeholder_note(found), *_beyond_images(found, sizes)]
    return Draft(guesses, tuple(notes))


def _joined_rows(masks: list[Guess]) -> list[Guess]:
    """The settings of masks for images that are cut into windows: a submission has one mask per image."""
    rows = [guess for guess in masks if guess.key in ("columns.rows", "submission.rows") and guess.value == "instance"]
    kept = [guess for guess in masks if guess.key != "submission.rows"]
    text = "windows are joined to one mask per image; instances across windows cannot be joined"
    return [*kept, *([Guess("submission.rows", "image", "guess", text)] if rows else [])]


def _placeholder_note(found: Found) -> Iterator[str]:
    """Yields a note if the sample submission only has a placeholder for masks."""
    sample = found.sample
    text = placeholder_of(sample, found.table.table.rle if found.table else None)
    if sample and text and not sample.table.pixels and PAIRS.fullmatch(text):
        yield (
            f"{sample.table.name} has the placeholder {text!r} in every row, which shows neither size nor order nor "
            "format of a submission's masks. They are assumed to be like the training masks: check the competition's "
            "page (set another size as `submission: {size: [rows, columns]}`)"
        )


def _beyond_images(found: Found, sizes: dict[Path, tuple[int, int]]) -> Iterator[str]:
    """Yields a note if runs of the sample submission end outside their image, so that it must have another size."""
    sample = found.sample
    if not sample or not sample.table.rle or not sample.table.writing.is_pairs or not found.test:
        return
    for name, text in zip(sample.key.ids, sample.table.frame[sample.table.rle], strict=True):
        path = found.test.paths.get(name)
        runs = parsed(text, Convention(base=0)) if path in sizes else None
        if path is None or runs is None or not len(runs):
            continue
        (height, width), end = sizes[path], int(runs[-1].sum()) - 1
        if end > height * width:
            yield (
                f"{sample.table.name}: a run of {name} ends at pixel {end}, but the image has only {height}×{width} = "
                f"{height * width} pixels: submissions have another size than the images. Set the size given on the "
                "competition's page as `submission: {{size: [rows, columns]}}`"
            )
            return


# --- their settings --------------------------------------------------------------------------------------------------


def _subsets(found: Found) -> list[Guess]:
    table, files, annotated = found.table, found.mask_files, found.annotations
    images, count = found.images, f"{len(found.images.paths)} images"
    guesses = []
    if table:
        text = f"{count}; {table.hits} among them"
        text += f"; {', '.join(found.rivals[:2])} could be meant too" if found.rivals else ""
        doubtful = bool(found.rivals)
        if kind_of(images) or not pictures(images):
            doubtful, text = True, f"{text}; they have few values, like masks: check that they are the images"
        guesses.append(Guess("train.images", images.pattern, "guess" if doubtful else table.certainty, text))
        guesses.append(Guess("train.masks", table.table.name, table.certainty, f"run lengths in `{table.table.rle}`"))
    if files:
        others = f"; {', '.join(files.others[:3])} show them too" if files.others else ""
        text = f"{len(files.masks.paths)} files named like images, with few values{others}"
        if files.alike:
            places = ", ".join(Path(pattern).parent.as_posix() for pattern in files.alike[:3])
            text += f"; those in {places} are empty or nearly the same for every image (perhaps a field of view) and "
            text += "are not used as a class"
        certain: Certainty = "guess" if files.classes or files.others or files.alike else "sure"
        count += f"; {', '.join(found.rivals[:2])} could be meant too" if found.rivals else ""
        text_of_images = f"{count} with the names of the masks"
        guesses.append(Guess("train.images", images.pattern, "guess" if found.rivals else "sure", text_of_images))
        guesses.append(Guess("train.masks", files.masks.pattern, certain, text))
    if annotated:
        text = f"{annotated.format}: annotations of {annotated.count} of {annotated.among} images"
        text += f"; {', '.join(annotated.others[:3])} could be meant too" if annotated.others else ""
        guesses.append(Guess("train.images", images.pattern, "sure", count))
        guesses.append(Guess("train.masks", annotated.pattern, "guess" if annotated.others else "sure", text))
    if images.id:
        example = next(iter(images.paths))
        guesses.insert(1, Guess("train.id", images.id, "sure" if table else "guess", f"built from the path: {example}"))
    if found.lists.train:
        text = f"it lists {found.lists.counts[0]} of the images"
        guesses.append(Guess("train.listed_in", found.lists.train, "guess", text))
    if images.exclude:
        guesses.append(Guess("train.exclude", list(images.exclude), "sure", "the masks in the same folder"))
    return [*guesses, *_test(found), *_sample_guesses(found)]


def _test(found: Found) -> list[Guess]:
    """The settings of the test set; `test: null` if there is none."""
    test, sample, lists = found.test, found.sample, found.lists
    if lists.test:
        guesses = [Guess("test.images", found.images.pattern, "guess", "in the same place as the training images")]
        guesses.append(Guess("test.listed_in", lists.test, "guess", f"it lists {lists.counts[1]} of the images"))
        if found.mask_files and not found.mask_files.classes:
            guesses.append(Guess("test.masks", found.mask_files.masks.pattern, "guess", "their masks are there too"))
            guesses.append(Guess("test.evaluate", True, "guess", "scored once, at the end"))
        return guesses
    if test is None:
        text = f"no images look like test images by name; a run ends with the report{ANY_FOLDER}"
        return [Guess("test", None, "guess", text)]
    text = (
        f"{len(test.paths)} images; {sample.hits} among them" if sample else f"{len(test.paths)} images, by their path"
    )
    guesses = [Guess("test.images", test.pattern, sample.certainty if sample else "guess", text)]
    if found.truth:
        subset = "validation" if test.is_validation else "test"
        guesses.append(
            Guess("test.masks", found.truth, "guess", f"the {subset} images have masks like those of training")
        )
        guesses.append(Guess("test.evaluate", True, "guess", "scored once, at the end"))
    if test.exclude:
        guesses.append(Guess("test.exclude", list(test.exclude), "sure", "the masks in the same folder"))
    return guesses


def _sample_guesses(found: Found) -> list[Guess]:
    sample, unread = found.sample, found.unread
    if sample:
        return [Guess("sample_submission", sample.table.name, sample.certainty, "its ids are test images")]
    if unread is None:
        text = "there is none: submissions get the columns set in `submission`, and run lengths as set in `rle`"
        return [Guess("sample_submission", None, "guess", text)]
    if unread.frame.empty:
        text = f"{unread.name} has no rows, only the columns {', '.join(map(str, unread.frame.columns))}"
    else:
        text = _unknown_ids(found, unread)
    return [Guess("sample_submission", None, "guess", text), *_header_only(found, unread)]


def _unknown_ids(found: Found, unread: Table) -> str:
    """The evidence that a sample submission names images that do not exist."""
    known = found.test.paths if found.test else {}
    named = max(
        (unread.frame[column].tolist() for column in unread.frame), key=lambda ids: sum(value in known for value in ids)
    )
    present = sum(name in known for name in named)
    example = next((name for name in named if name not in known), "")
    if not present:
        return f"{unread.name} names no test image; for instance, {named[0]!r} is not one"
    return (
        f"{unread.name} names {len(named)} images, of which {len(named) - present} (for instance {example!r}) are not "
        f"among the test images here: set it to {unread.name} when they are"
    )


def _header_only(found: Found, unread: Table) -> list[Guess]:
    """The columns of a submission, if the sample has no rows, but has columns like those of the table of masks."""
    columns = list(map(str, unread.frame.columns))
    if not unread.frame.empty or found.table is None:
        return []
    of_masks = columns_of(found.table)
    known = [guess.value for key in ("id", "label") if (guess := of_masks.get(key))]
    rest = [column for column in columns if column not in known]
    if not set(known) <= set(columns) or len(rest) != 1 or rest[0] == of_masks["rle"].value:
        return []
    return [Guess("submission.rle", rest[0], "guess", f"the remaining column of {unread.name}")]


def _of_table(found: Found, masks: Named, rows: list[MaskRow]) -> list[Guess]:
    """Columns, convention and classes of a table of masks."""
    columns = columns_of(masks)
    absent = len(set(found.images.paths) - set(masks.key.ids))
    if absent:
        text = f"{absent} of {len(found.images.paths)} images have no row"
        columns["absent"] = Guess("absent", "empty", "guess", text)
    submission = differing(columns, found.sample, masks.table.rle) if found.sample else []
    labels = masks.rows.labels
    if labels and found.sample and len(found.sample.rows.labels) > 1:  # one alone is a placeholder
        until = masks.rows.until
        more = [label.split(until, 1)[0] if until else label for label in found.sample.rows.labels]
        labels = list(dict.fromkeys([*labels, *more]))
    classes = classes_of_labels(labels) if labels else one_class("rows name no class")
    placeholder = placeholder_of(found.sample, masks.table.rle)
    convention = guess_rle(rows, placeholder, masks.table.writing)
    return [*under("columns", columns.values()), *submission, *convention, classes, METRIC]


def _damaged(masks: Named, guesses: list[Guess]) -> Iterator[str]:
    """Yields a sentence about the rows of the table of masks that decode would reject; all rows are checked."""
    values = {guess.key.removeprefix("rle."): guess.value for guess in guesses if guess.key.startswith("rle.")}
    assert masks.table.rle
    faults = list(damaged_rows(masks.table.frame, masks.table.rle, Convention(**values)))
    if faults:
        more = f"; and {len(faults) - MOST_DAMAGED} more" * (len(faults) > MOST_DAMAGED)
        yield f"{masks.table.name} has damaged run lengths, {'; '.join(faults[:MOST_DAMAGED])}{more}"


def _mask_rows(found: Found, masks: Named, sizes: dict[Path, tuple[int, int]]) -> list[MaskRow]:
    """The rows of the table of masks whose images can be read."""
    beside = found.beside.paths if found.beside and masks.rows.kind == "image" else {}
    texts = masks.table.frame[masks.table.rle]
    return [
        MaskRow(text, path, sizes[path], beside.get(name) or beside.get(Path(name).stem))
        for name, text in zip(masks.key.ids, texts, strict=True)
        if (path := found.images.paths.get(name)) in sizes
    ]
