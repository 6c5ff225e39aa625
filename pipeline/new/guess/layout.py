"""What a folder of raw files seems to be: which reader it is for, and every setting of a competition's YAML."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from pipeline.core.config.competition import METRICS
from pipeline.core.config.raw_files import THRESHOLD
from pipeline.core.errors import PipelineError
from pipeline.decode.readers.files import SUFFIXES, evenly, packed, read_image
from pipeline.decode.rle_checks import MaskRow
from pipeline.decode.value_range import SMALL, extremes, used_range
from pipeline.new.guess.base import (
    Draft,
    Files,
    Guess,
    by_name,
    channels_of,
    image_groups,
    image_size,
    masks_beside,
    other_files,
)
from pipeline.new.guess.groups import guess_group
from pipeline.new.guess.masks import (
    MaskFiles,
    black_and_white,
    classes_of_labels,
    classes_of_values,
    find_mask_files,
    mask_values,
    never_both,
    one_class,
)
from pipeline.new.guess.rle import guess_rle
from pipeline.new.guess.tables import Named, Table, find_key, read_rows, read_tables, rows_of

_OF_MASKS = [name for name, of in METRICS.items() if of == "masks"]
METRIC = Guess("metric", None, "FILL IN", f"{', '.join(_OF_MASKS[:-1])} or {_OF_MASKS[-1]}; the files cannot tell")
MEAN_IOU = Guess("metric", "mean_iou", "sure", "the one metric of kind multiclass")


@dataclass(frozen=True)
class Found:
    """The files that a competition of images in folders is made of: masks are in a table or in files."""

    images: Files
    test: Files
    table: Named | None
    mask_files: MaskFiles | None
    beside: Files | None
    """Masks that lie beside the training images."""
    sample: Named | None
    further: Named | None
    """A table of one row a training image, without masks."""
    unread: Table | None
    """What is called a sample submission, but does not name the test images."""


def look(folder: Path, title: str) -> Draft:
    """Returns settings for the raw files in a folder, each with its evidence.

    Raises:
        PipelineError: no such folder, or no images, masks or test images in it.
    """
    if not folder.is_dir():
        raise PipelineError(f"{folder} is no folder; give the folder of the raw files with --from.")
    for path in sorted([*folder.glob("*.npz"), *folder.glob("*/*.npz")]):
        draft = _npz_labels(folder, path, title)
        if draft:
            return draft
    if (folder / "annotations" / "trimaps").is_dir() and (folder / "images").is_dir():
        return _oxford_pet(folder, title)
    return _images_in_folders(folder, title)


def _head(title: str, reader: str, evidence: str) -> list[Guess]:
    return [Guess("title", title, "guess", "the name"), Guess("reader", reader, "sure", evidence)]


def _npz_labels(folder: Path, path: Path, title: str) -> Draft | None:
    """The draft of an .npz with training_set and test_set; None of another one."""
    try:
        with np.load(path, allow_pickle=False) as content:
            if not {"training_set", "test_set"} <= set(content.files):
                return None
            training, test = content["training_set"], content["test_set"]
    except (OSError, ValueError, EOFError, BadZipFile):
        return None
    if training.ndim != 4 or training.shape[1] != 2:
        return None
    values = [int(value) for value in np.unique(training[:, 1])]
    rows, columns = training.shape[2:]
    name = path.relative_to(folder).as_posix()
    guesses = [
        *_head(title, "npz_labels", f"training_set {training.shape} and test_set {test.shape}"),
        Guess("file", name, "sure", "the one that holds them"),
        Guess("kind", "multiclass", "sure", "one class map an image"),
        Guess("classes", {f"class_{value}": value for value in values}, "guess",
              "all values of the class maps; the first is the background, the names are yours"),
        Guess("shape", [rows, columns], "sure", f"all {len(training) + len(test)} images"),
        Guess("group", None, "guess", "the images have nothing but numbers"),
        MEAN_IOU,
    ]  # fmt: skip
    return Draft(guesses, (rows, columns), 1)


def _oxford_pet(folder: Path, title: str) -> Draft:
    images = sorted((folder / "images").glob("*.jpg"))
    if not images:
        raise PipelineError(f"{folder / 'images'} holds no .jpg, although annotations/trimaps is there.")
    shape, size = _shape(_sizes(images))
    trimaps = mask_values(sorted((folder / "annotations" / "trimaps").glob("*.png")), 50)
    shown = ", ".join(map(str, sorted(trimaps, key=str))) if trimaps else "no few values"
    guesses = [
        *_head(title, "oxford_pet", f"images and annotations/trimaps, which hold {shown}"),
        Guess("border", None, "FILL IN", "foreground, background or ignore: what 3 counts as; it changes every score"),
        Guess("classes", ["pet"], "guess", "1 of the trimaps; the name is yours"),
        shape,
        Guess("group", None, "guess", "the layout has none"),
        Guess("metric", "dice", "guess", "or iou"),
    ]
    return Draft(guesses, size, channels_of(images))


def _sizes(paths: list[Path]) -> dict[Path, tuple[int, int]]:
    """Rows × columns of the images that can be read."""
    sizes = {path: size for path in paths if (size := image_size(path)) is not None}
    if not sizes:
        try:
            read_image(paths[0])
            why = ""
        except ValueError as error:
            why = f": it {error}"
        raise PipelineError(f"None of {len(paths)} images can be read, {paths[0]} for instance{why}.")
    return sizes


def _shape(sizes: dict[Path, tuple[int, int]]) -> tuple[Guess, tuple[int, int]]:
    """The size that all images share, if they do, and a middling one."""
    different = set(sizes.values())
    if len(different) == 1:
        (size,) = different
        return Guess("shape", list(size), "sure", f"all {len(sizes)} images"), size
    rows, columns = np.array(list(sizes.values())).T
    smallest, largest = (f"{side(rows)}×{side(columns)}" for side in (min, max))
    evidence = f"{len(different)} sizes, from {smallest} to {largest}"
    return Guess("shape", None, "sure", evidence), (int(np.median(rows)), int(np.median(columns)))


# --- images in folders -----------------------------------------------------------------------------------------------


def _images_in_folders(folder: Path, title: str) -> Draft:
    found = _find(folder)
    sizes = _sizes([*found.images.paths.values(), *found.test.paths.values()])
    shape, size = _shape(sizes)
    masks = _of_table(found, found.table, sizes) if found.table else _of_mask_files(found)
    group = guess_group(found.table, found.further, list(found.images.paths))
    values = _value_range(found.images)
    guesses = [*_head(title, "rle_csv", "images in folders"), *_subsets(found), *masks, shape, *values, *group]
    return Draft(guesses, size, channels_of(found.images.paths.values()))


def _value_range(images: Files) -> list[Guess]:
    """The range of values, where images use a small part of what their files could hold."""
    lows: list[int] = []
    highs: list[int] = []
    types: set[np.dtype] = set()
    for path in evenly(images.paths.values(), 50):
        try:
            image = read_image(path)
        except ValueError:
            continue
        low, high = extremes(image)
        lows.append(low)
        highs.append(high)
        types.add(image.dtype)
    if len(types) != 1:
        return []
    dtype = types.pop()
    share, own = used_range(dtype, lows, highs)
    if share > SMALL:
        return []
    text = f"{dtype} images with values from {min(lows)} to {max(highs)} in {len(lows)} of them; scaled from this range"
    return [Guess("value_range", own, "guess", text)]


def _find(folder: Path) -> Found:
    """Tells training images, test images, masks and tables apart.

    Raises:
        PipelineError: something is missing.
    """
    apart = [masks_beside(files) for files in image_groups(folder)]
    groups, beside = [images for images, _ in apart], [masks for _, masks in apart if masks]
    if not groups:
        hint = packed(folder) or other_files(folder) or "; give the folder of the raw files with --from"
        raise PipelineError(f"{folder} holds no images ({', '.join(SUFFIXES)}){hint}.")
    tables = read_tables(folder)
    sample = _sample(tables, [*groups, *by_name(groups)])
    rest = [files for files in groups if not (sample and _share_files(files, sample.key.files))]
    table = _mask_table([one for one in tables if not sample or one is not sample.table], [*rest, *by_name(rest)])
    mask_files = None if table else find_mask_files(rest, beside)
    images = table.key.files if table else mask_files.images if mask_files else None
    if images is None:
        raise PipelineError(_no_masks(folder, groups, tables))
    others = [files for files in rest if mask_files is None or not _are_masks(files, mask_files)]
    alike = by_name(others) if images.pattern.endswith("{id}") else others  # ids with endings, as in training
    test = sample.key.files if sample else _test_of(folder, alike, images)
    near = next((masks for one, masks in apart if masks and _share_files(one, images)), None)
    used = {named.table.name for named in (table, sample) if named}
    further = _further([one for one in tables if one.name not in used], images)
    unread = next((one for one in tables if one.is_sample), None) if sample is None else None
    return Found(images, test, table, mask_files, near, sample, further, unread)


def _are_masks(files: Files, masks: MaskFiles) -> bool:
    """Whether files are masks, perhaps of one of several classes, whose names they share."""
    same_names = files.paths.keys() == masks.masks.paths.keys() and "test" not in files.pattern.lower()
    return same_names or _share_files(files, masks.masks)


def _share_files(one: Files, other: Files) -> bool:
    return not set(one.paths.values()).isdisjoint(other.paths.values())


def _sample(tables: list[Table], groups: list[Files]) -> Named | None:
    """The sample submission, by its name, or by the same mask in every row of test images."""
    tests = [files for files in groups if "test" in files.pattern.lower()]
    constant = [table for table in tables if table.rle and table.frame[table.rle].nunique() == 1]
    for table in [table for table in tables if table.is_sample] or constant:
        named = read_rows(table, tests) or read_rows(table, groups)
        if named and named.key.share > 0.5:
            return named
    return None


def _mask_table(tables: list[Table], groups: list[Files]) -> Named | None:
    """The table of run lengths whose rows name most training images."""
    training = [files for files in groups if "test" not in files.pattern.lower()] or groups
    found = [named for table in tables if table.rle and (named := read_rows(table, training, by_file=True))]
    return max(found, key=lambda one: (one.key.share, len(one.key.ids)), default=None)


def _further(tables: list[Table], images: Files) -> Named | None:
    """A table whose first column has the ids of training images, or the names of their files, with one row for most of
    them."""
    for table in tables:
        if table.rle or table.pixels or table.is_sample:
            continue
        first = Table(table.name, table.frame.iloc[:, :1], None)
        key = find_key(first, [images], by_file=True)
        if key and key.pattern is None and len(set(key.ids) & images.paths.keys()) >= 0.9 * len(images.paths):
            own = replace(key, files=images)
            return Named(table, own, rows_of(table, own))
    return None


def _test_of(folder: Path, groups: list[Files], images: Files) -> Files:
    rest = [files for files in groups if not _share_files(files, images) and "*" not in files.pattern]
    if not rest:
        raise PipelineError(
            f"{folder} has training images ({images.pattern}) but no test images; put those in a folder of their own, "
            "for instance test/."
        )
    named = [files for files in rest if "test" in files.pattern.lower()]
    return max(named or rest, key=lambda files: len(files.paths))


def _no_masks(folder: Path, groups: list[Files], tables: list[Table]) -> str:
    shown = ", ".join(f"{files.pattern} ({len(files.paths)})" for files in groups[:5])
    without = ", ".join(table.name for table in tables if not table.rle)
    names = f" (no column of {without} holds any)" if without else ""
    return (
        f"{folder} has images, {shown}, but no masks: neither a CSV of run lengths whose ids are training images"
        f"{names}, nor mask images with the same names{packed(folder)}{_polygons(folder)}."
    )


def _polygons(folder: Path) -> str:
    """The end of a sentence where there are JSON files, in which masks are often polygons."""
    name = min((path.relative_to(folder).as_posix() for path in folder.rglob("*.json")), default=None)
    return f"; masks in JSON files, such as {name}, are not read: draw them as images first" if name else ""


# --- their settings --------------------------------------------------------------------------------------------------


def _subsets(found: Found) -> list[Guess]:
    table, sample, files = found.table, found.sample, found.mask_files
    count, test = f"{len(found.images.paths)} images", f"{len(found.test.paths)} images"
    guesses = []
    if table:
        text = f"{count}; {table.hits} among them"
        guesses.append(Guess("train.images", found.images.pattern, table.certainty, text))
        guesses.append(Guess("train.masks", table.table.name, table.certainty, f"run lengths in `{table.table.rle}`"))
    if files:
        text = f"{len(files.masks.paths)} files named like images, with few values"
        guesses.append(Guess("train.images", found.images.pattern, "sure", f"{count}, which the masks are named like"))
        guesses.append(Guess("train.masks", files.masks.pattern, "guess" if files.classes else "sure", text))
    for subset, images in (("train", found.images), ("test", found.test)):
        if subset == "test":
            text = f"{test}; {sample.hits} among them" if sample else f"{test}, by the folder's name"
            guesses.append(Guess("test.images", images.pattern, sample.certainty if sample else "guess", text))
        if images.exclude:
            text = "the masks beside the images"
            guesses.append(Guess(f"{subset}.exclude", list(images.exclude), "sure", text))
    if not sample:
        text = "there is none: submissions get the columns of `submission`, and run lengths as `rle` says"
        guesses.append(Guess("sample_submission", None, "guess", text))
    if sample:
        guesses.append(Guess("sample_submission", sample.table.name, sample.certainty, "its ids are test images"))
    if found.unread:
        text = f"{found.unread.name} names no test image: {found.unread.frame.iloc[0, 0]!r} is none, for instance"
        guesses.append(Guess("sample_submission", None, "guess", text))
    return guesses


def _of_table(found: Found, masks: Named, sizes: dict[Path, tuple[int, int]]) -> list[Guess]:
    """Columns, convention and classes of a table of masks."""
    columns = _columns(masks)
    absent = len(set(found.images.paths) - set(masks.key.ids))
    if absent:
        text = f"{absent} of {len(found.images.paths)} images have no row"
        columns["absent"] = Guess("absent", "empty", "guess", text)
    submission = _differing(columns, found.sample, masks.table.rle) if found.sample else []
    labels = masks.rows.labels
    if labels and found.sample:
        labels = list(dict.fromkeys([*labels, *found.sample.rows.labels]))
    classes = classes_of_labels(labels) if labels else one_class("rows name no class")
    convention = guess_rle(_mask_rows(found, masks, sizes), _placeholder(found.sample, masks.table.rle))
    return [*_under("columns", columns.values()), *submission, *convention, classes, METRIC]


def _under(parent: str, guesses: Iterable[Guess]) -> list[Guess]:
    return [replace(guess, key=f"{parent}.{guess.key}") for guess in guesses]


def _columns(named: Named, usual: str | None = None) -> dict[str, Guess]:
    """The settings of a table's columns, by name; without run lengths, `usual` or what is left is their column."""
    table, key, rows = named.table, named.key, named.rows
    rest = [str(column) for column in table.frame.columns if column not in (*key.columns, rows.label)]
    lengths = table.rle or (usual if usual in rest else rest[-1] if rest else "")
    guesses = [Guess("id", key.id, named.certainty, f"{named.hits} among the images")]
    if key.pattern:
        guesses.append(Guess("pattern", key.pattern, named.certainty, rows.evidence))
    if rows.label:
        guesses.append(Guess("label", rows.label, "sure" if rows.kind == "class" else "guess", rows.evidence))
    text = "pairs of numbers" if table.rle else "the column that is left"
    guesses.append(Guess("rle", lengths, "sure" if table.rle else "guess", text))
    if rows.kind == "instance":
        guesses.append(Guess("rows", "instance", "guess", rows.evidence))
    return {guess.key: guess for guess in guesses}


def _differing(columns: dict[str, Guess], sample: Named, usual: str | None) -> list[Guess]:
    """What the sample submission has otherwise than the table of masks."""
    own = _columns(sample, usual)
    if sample.table.pixels:
        text = f"{sample.table.name} has {sample.table.pixels} columns 0, 1, 2, …"
        return _under("submission", [Guess("format", "labels", "sure", text), own["id"]])
    guesses = []
    for name in ("id", "pattern", "label", "rle"):
        here, there = own.get(name), columns.get(name)
        if here and (there is None or here.value != there.value):
            guesses.append(here)
    if "rows" in columns and "rows" not in own:
        text = f"as in training; {sample.table.name} has one row per image and may be a placeholder"
        guesses.append(Guess("rows", "instance", "guess", text))
    return _under("submission", guesses)


def _mask_rows(found: Found, masks: Named, sizes: dict[Path, tuple[int, int]]) -> list[MaskRow]:
    """Every row of the table of masks whose image can be read."""
    beside = found.beside.paths if found.beside and masks.rows.kind == "image" else {}
    texts = masks.table.frame[masks.table.rle]
    return [
        MaskRow(text, path, sizes[path], beside.get(name) or beside.get(Path(name).stem))
        for name, text in zip(masks.key.ids, texts, strict=True)
        if (path := found.images.paths.get(name)) in sizes
    ]


def _placeholder(sample: Named | None, usual: str | None) -> str:
    """What the sample submission writes for a mask in all of its rows."""
    column = "" if sample is None else _columns(sample, usual)["rle"].value
    written = set(sample.table.frame[column].str.strip()) if sample and column else set()
    return written.pop() if len(written) == 1 else ""


def _of_mask_files(found: Found) -> list[Guess]:
    """Classes of mask images, and the columns of a submission."""
    assert found.mask_files
    masks = found.mask_files.masks
    guesses = []
    absent = len(set(found.images.paths) - set(masks.paths))
    if absent:
        guesses.append(Guess("columns.absent", "empty", "guess", f"{absent} images have no mask file"))
    if found.sample:
        guesses += _differing({}, found.sample, None)
        if not found.sample.table.pixels:
            guesses.append(Guess("rle.order", "column", "guess", "nothing shows how run lengths are written"))
            guesses.append(Guess("rle.base", 1, "guess", "nothing shows it"))
    if "*" in Path(masks.pattern).name and not (found.sample and found.sample.table.pixels):
        text = "several mask files an image; where an image has one row, leave this out"
        guesses.append(Guess("submission.rows", "instance", "guess", text))
    wavering = black_and_white(masks.paths.values())
    if wavering:
        text = "JPEG: values waver around black and white"
        guesses.append(Guess("train.threshold", THRESHOLD, "guess", text))
    names = list(found.mask_files.classes)
    if wavering and not names:
        return [*guesses, one_class("mask files are black and white"), METRIC]
    values = mask_values(masks.paths.values()) or Counter()
    if not names and set(values) == {0, 1, 255} and never_both(masks.paths.values()):
        text = "mask files hold 0 and 1, or 0 and 255, never all three: 1 and 255 are taken for the same class"
        return [*guesses, one_class(text), METRIC]
    by_value = [] if names else classes_of_values(values)
    if len(names or by_value) > 1 and not found.sample:
        guesses.append(Guess("submission.label", "class", "guess", "no sample submission shows what it looks like"))
    if names:
        return [*guesses, Guess("classes", names, "guess", "files of their own; they may overlap"), METRIC]
    return [*guesses, *by_value, METRIC if len(by_value) == 1 else MEAN_IOU]
