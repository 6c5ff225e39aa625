"""What a folder of raw files seems to be: which reader it is for, and every setting of a competition's YAML."""

import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.competition import Value
from pipeline.errors import PipelineError
from pipeline.guess import (
    Certainty,
    Draft,
    Files,
    Guess,
    as_masks_of,
    by_name,
    channels_of,
    image_groups,
    image_size,
    mask_values,
    masks_beside,
)
from pipeline.guess_rle import Row, guess_rle
from pipeline.guess_tables import Key, Rows, Table, find_key, guess_group, read_tables, rows_of

FOLDS = 5
SCORES = Guess("metric", None, "FILL IN", "dice, iou or iou_precision: the files cannot tell")
MEAN_IOU = Guess("metric", "mean_iou", "sure", "the one metric of a multiclass competition")


@dataclass(frozen=True)
class Found:
    """The files that a competition of images in folders is made of."""

    folder: Path
    images: Files
    test: Files
    masks: Files | None
    """Mask images, by the ids of the training images."""
    beside: Files | None
    """Masks that lie beside the training images, whether or not they are needed."""
    table: Table | None
    key: Key | None
    sample: Table | None
    sample_key: Key | None


def look(folder: Path, title: str) -> Draft:
    """Returns settings for the raw files in a folder, each with its evidence.

    Raises:
        PipelineError: no such folder, or no images, masks or test images in it.
    """
    if not folder.is_dir():
        raise PipelineError(f"{folder} is no folder; give the folder of the raw files with --from.")
    if not any(folder.iterdir()):
        raise PipelineError(f"{folder} is empty; give the folder of the raw files with --from.")
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
    except (OSError, ValueError):
        return None
    if training.ndim != 4 or training.shape[1] != 2:
        return None
    values = [int(value) for value in np.unique(training[:, 1])]
    rows, columns = training.shape[2:]
    name = path.relative_to(folder).as_posix()
    size = Guess("shape", [rows, columns], "sure", f"all {len(training) + len(test)} images")
    guesses = [
        *_head(title, "npz_labels", f"{name} holds training_set {training.shape} and test_set {test.shape}"),
        Guess("file", name, "sure", "the one that holds them"),
        _classes({f"class_{value}": value for value in values}, "the values of all class maps; the names are yours"),
        Guess("kind", "multiclass", "sure", "one class map an image"),
        *([size] if test.shape[1:] == training.shape[2:] else []),
        Guess("group", None, "guess", "the images have numbers only"),
        MEAN_IOU,
    ]
    return Draft(guesses, (rows, columns), 1)


def _oxford_pet(folder: Path, title: str) -> Draft:
    images = {path.stem: path for path in sorted((folder / "images").glob("*.jpg"))}
    if not images:
        raise PipelineError(f"{folder / 'images'} holds no .jpg, although annotations/trimaps is there.")
    shape, size = _shape(list(images.values()))
    trimaps = mask_values(sorted((folder / "annotations" / "trimaps").glob("*.png")), 50) or {}
    shown = ", ".join(str(value) for value in sorted(trimaps, key=str))
    guesses = [
        *_head(title, "oxford_pet", f"images and annotations/trimaps, which hold {shown or 'nothing'}"),
        Guess("border", None, "FILL IN", "foreground, background or ignore: what 3 counts as; it changes every score"),
        shape,
        Guess("group", None, "guess", "the layout knows none"),
        Guess("metric", "dice", "guess", "or iou; published scores of this layout are both"),
    ]
    return Draft(guesses, size, channels_of(images.values()))


# --- images in folders -----------------------------------------------------------------------------------------------


def _images_in_folders(folder: Path, title: str) -> Draft:
    found = _find(folder)
    channels = channels_of(found.images.paths.values())
    shape, size = _shape([*found.images.paths.values(), *found.test.paths.values()])
    masks = _of_table(found) if found.table else _of_mask_files(found)
    rows = rows_of(found.table, found.key) if found.table and found.key else None
    group, count = guess_group(found.table, found.key, rows, list(found.images.paths))
    folds = Guess("split.folds", count, "guess", f"no more than the {count} groups")
    guesses = [
        *_head(title, "rle_csv", "images in folders"),
        *_subsets(found),
        *masks,
        *([shape] if shape else []),
        group,
        *([folds] if 0 < count < FOLDS else []),
    ]
    return Draft(guesses, size, channels)


def _find(folder: Path) -> Found:
    """Sorts images, masks and tables into what trains and what is predicted.

    Raises:
        PipelineError: something is missing.
    """
    apart = [masks_beside(files) for files in image_groups(folder)]
    groups = [images for images, _ in apart]
    if not groups:
        raise PipelineError(
            f"{folder} holds no images (PNG, JPEG, TIFF); give the folder of the raw files with --from."
        )
    candidates = [*groups, *by_name(groups)]
    tables = read_tables(folder)
    sample, sample_key = _sample(tables, candidates)
    test = sample_key.files if sample_key else None
    others = [files for files in candidates if test is None or not _same_files(files, test)]
    table, key = _mask_table(tables, sample, others)
    if key and table:
        beside = next((masks for images, masks in apart if masks and _same_files(images, key.files)), None)
        return Found(folder, key.files, test or _test_of(folder, groups, key.files), None, beside, table, key, sample,
                     sample_key)  # fmt: skip
    images, masks = _mask_images(folder, groups, [masks for _, masks in apart if masks], test, tables)
    rest = [files for files in groups if files.pattern != masks.pattern]
    return Found(folder, images, test or _test_of(folder, rest, images), masks, None, None, None, sample, sample_key)


def _same_files(one: Files, other: Files) -> bool:
    return bool(set(one.paths.values()) & set(other.paths.values()))


def _sample(tables: list[Table], groups: list[Files]) -> tuple[Table | None, Key | None]:
    """The sample submission, by its name, or by one same mask in every row of test images."""
    tests = [files for files in groups if "test" in files.pattern.lower()]
    constant = [table for table in tables if table.rle and table.frame[table.rle].nunique() == 1]
    for table in [table for table in tables if table.is_sample] or constant:
        key = find_key(table, tests) or find_key(table, groups)
        if key and key.share > 0.5:
            return table, key
    return None, None


def _mask_table(tables: list[Table], sample: Table | None, groups: list[Files]) -> tuple[Table | None, Key | None]:
    """The table of run lengths whose rows name most images that are not test images."""
    training = [files for files in groups if "test" not in files.pattern.lower()] or groups
    keys = [(table, find_key(table, training)) for table in tables if table is not sample and table.rle]
    known = [(table, key) for table, key in keys if key and key.share > 0]
    return max(known, key=lambda pair: (pair[1].share, len(pair[1].ids)), default=(None, None))


def _test_of(folder: Path, groups: list[Files], images: Files) -> Files:
    rest = [files for files in groups if not _same_files(files, images) and "*" not in files.pattern]
    named = [files for files in rest if "test" in files.pattern.lower()]
    if not rest:
        raise PipelineError(
            f"{folder} has training images ({images.pattern}) but no test images; put those in a folder of their own, "
            "for instance test/."
        )
    return max(named or rest, key=lambda files: len(files.paths))


def _mask_images(
    folder: Path, groups: list[Files], beside: list[Files], test: Files | None, tables: list[Table]
) -> tuple[Files, Files]:
    """Training images, and the mask images of the same names that hold few values."""
    best: tuple[Files, Files] | None = None
    for masks in [*beside, *groups]:
        for images in groups:
            fitted = as_masks_of(masks, images)
            if (
                fitted is None
                or (test and _same_files(images, test))
                or len(fitted.paths) <= len(best[1].paths if best else {})
            ):
                continue
            if mask_values(fitted.paths.values(), 20) and not mask_values(images.paths.values(), 20):
                best = images, fitted
    if best:
        return best
    there = ", ".join(f"{files.pattern} ({len(files.paths)})" for files in groups[:5])
    without = [table.name for table in tables if not table.rle]
    names = f" ({', '.join(without)} has no column of run lengths)" if without else ""
    raise PipelineError(
        f"{folder} has images ({there}) but no masks: neither a CSV of run lengths whose ids are training images{names}, "
        "nor mask images with the same names."
    )


# --- settings of images in folders -----------------------------------------------------------------------------------


def _subsets(found: Found) -> list[Guess]:
    count, test = len(found.images.paths), len(found.test.paths)
    known = (
        f"; {found.key.share:.0%} of the ids of {found.table.name} are among them" if found.table and found.key else ""
    )
    guesses = [Guess("train.images", found.images.pattern, _certain(found.key), f"{count} images{known}")]
    if found.table:
        guesses.append(Guess("train.masks", found.table.name, _certain(found.key), f"run lengths in {found.table.rle}"))
    if found.masks:
        text = f"{len(found.masks.paths)} files named like images, with few values"
        guesses.append(Guess("train.masks", found.masks.pattern, "sure", text))
    if found.images.exclude:
        text = f"{len(found.beside.paths) if found.beside else 'some'} of them lie beside the images of their names"
        guesses.append(Guess("train.exclude", list(found.images.exclude), "sure", text))
    if found.sample and found.sample_key:
        text = f"{test} images; {found.sample_key.share:.0%} of the ids of {found.sample.name} are among them"
    else:
        text = f"{test} images, by the name of the folder"
    guesses.append(Guess("test.images", found.test.pattern, _certain(found.sample_key), text))
    if found.test.exclude:
        guesses.append(Guess("test.exclude", list(found.test.exclude), "sure", "masks beside the images"))
    if found.sample:
        guesses.append(
            Guess("sample_submission", found.sample.name, _certain(found.sample_key), "its ids are test images")
        )
    return guesses


def _certain(key: Key | None) -> Certainty:
    return "sure" if key and key.share == 1 else "guess"


def _of_table(found: Found) -> list[Guess]:
    """Columns, convention and classes of a table of masks."""
    assert found.table and found.key
    rows = rows_of(found.table, found.key)
    columns = _columns(found.table, found.key, rows)
    missing = len(set(found.images.paths) - set(found.key.ids))
    if missing:
        text = f"{missing} of {len(found.images.paths)} images have no row"
        columns["absent"] = Guess("absent", "empty", "guess", text)
    labels = rows.labels
    submission: list[Guess] = []
    if found.sample and found.sample_key:
        own = rows_of(found.sample, found.sample_key)
        submission = _differing(
            columns, _columns(found.sample, found.sample_key, own, found.table.rle), own, found.sample
        )
        labels = list(dict.fromkeys([*labels, *own.labels])) if labels else labels
    classes = _label_classes(labels) if labels else _one_class("one mask an image")
    return [
        *_under("columns", list(columns.values())),
        *submission,
        *guess_rle(*_mask_rows(found, rows)),
        classes,
        SCORES,
    ]


def _under(parent: str, guesses: list[Guess]) -> list[Guess]:
    return [replace(guess, key=f"{parent}.{guess.key}") for guess in guesses]


def _columns(table: Table, key: Key, rows: Rows, usual: str | None = None) -> dict[str, Guess]:
    """The settings of a table's columns, by name."""
    rest = [str(column) for column in table.frame.columns if column not in (*key.columns, rows.label)]
    lengths = table.rle or (usual if usual in rest else None) or (rest[-1] if rest else "")
    guesses = [Guess("id", key.id, _certain(key), f"{key.share:.0%} of {len(key.ids)} rows name an image")]
    if key.pattern:
        guesses.append(Guess("pattern", key.pattern, _certain(key), rows.evidence))
    if rows.label:
        guesses.append(Guess("label", rows.label, "sure" if rows.kind == "class" else "guess", rows.evidence))
    guesses.append(
        Guess("rle", lengths, "sure" if table.rle else "guess", "pairs of numbers" if table.rle else "what is left")
    )
    if rows.kind == "instance":
        guesses.append(Guess("rows", "instance", "guess", rows.evidence))
    return {guess.key: guess for guess in guesses}


def _differing(columns: dict[str, Guess], own: dict[str, Guess], rows: Rows, sample: Table) -> list[Guess]:
    """What the sample submission has otherwise than the table of masks."""
    if sample.pixels:
        text = f"{sample.name} has {sample.pixels} columns 0, 1, 2, …"
        return [Guess("submission.format", "labels", "sure", text), *_under("submission", [own["id"]])]
    guesses = []
    for name in ("id", "pattern", "label", "rle"):
        here, there = own.get(name), columns.get(name)
        if (here.value if here else None) != (there.value if there else None):
            guesses.append(here or Guess(name, None, "sure", f"{sample.name} has none"))
    if "rows" in columns and "rows" not in own:
        text = f"as in training; {sample.name} has one row an image: `{rows.kind}` if it must stay so"
        guesses.append(Guess("rows", "instance", "guess", text))
    return _under("submission", guesses)


def _mask_rows(found: Found, rows: Rows) -> tuple[list[Row], str]:
    """Every row of the table of masks whose image can be read, and what the sample submission writes in all of its rows."""
    assert found.table and found.key and found.table.rle
    paths = found.images.paths
    sizes = {name: image_size(paths[name]) for name in dict.fromkeys(found.key.ids) if name in paths}
    masks = found.beside.paths if found.beside and rows.kind == "image" else {}
    texts = found.table.frame[found.table.rle]
    known = [
        Row(text, paths[name], size, masks.get(Path(name).stem))
        for name, text in zip(found.key.ids, texts, strict=True)
        if (size := sizes.get(name)) is not None
    ]
    sample = found.sample
    written = set(sample.frame.iloc[:, -1].str.strip()) if sample and not sample.pixels else set()
    return known, written.pop() if len(written) == 1 else ""


def _of_mask_files(found: Found) -> list[Guess]:
    """Classes of mask images, and the columns of a submission."""
    assert found.masks
    values = mask_values(found.masks.paths.values()) or Counter()
    guesses = _value_classes(values)
    several = guesses[0].key == "kind"
    if found.sample and found.sample_key:
        own = rows_of(found.sample, found.sample_key)
        if found.sample.pixels:
            guesses += _differing({}, _columns(found.sample, found.sample_key, own), own, found.sample)
        else:
            guesses += _under("submission", list(_columns(found.sample, found.sample_key, own).values()))
            guesses.append(Guess("rle.order", "column", "guess", "nothing shows how run lengths are written"))
            guesses.append(Guess("rle.base", 1, "guess", "nothing shows it"))
    missing = len(set(found.images.paths) - set(found.masks.paths))
    if missing:
        guesses.append(Guess("columns.absent", "empty", "guess", f"{missing} images have no mask file"))
    return [*guesses, MEAN_IOU if several else SCORES]


# --- classes ---------------------------------------------------------------------------------------------------------


def _one_class(evidence: str) -> Guess:
    return Guess("classes", ["object"], "guess", f"{evidence}; the name is yours")


def _classes(names: dict[str, Any], evidence: str) -> Guess:
    return Guess("classes", names, "guess", evidence)


def _label_classes(labels: list[str]) -> Guess:
    plain = all(re.fullmatch(r"[A-Za-z][\w -]*", label) for label in labels)
    if plain:
        return Guess("classes", labels, "sure", "all labels of the rows")
    named = {f"class_{label}": int(label) if re.fullmatch(r"0|[1-9]\d*", label) else label for label in labels}
    return Guess("classes", named, "guess", "all labels of the rows; the names are yours")


def _value_classes(values: Counter[Value]) -> list[Guess]:
    """Classes by the values of mask images; `kind` comes first where there are several."""
    if len(values) <= 2 and (len(values) < 2 or 0 in values):
        shown = " and ".join(str(value) for value in sorted(values, key=str))
        return [_one_class(f"mask files hold {shown}")]
    background = 0 if 0 in values else values.most_common(1)[0][0]
    ordered = [background, *sorted((value for value in values if value != background), key=_order)]
    ignored = [255] if ordered == [*range(len(ordered) - 1), 255] else []
    names = {"background": background} | {
        f"class_{value if isinstance(value, int) else number}": value if isinstance(value, int) else list(value)
        for number, value in enumerate(ordered)
        if number and value not in ignored
    }
    whole = sum(values.values())
    shares = ", ".join(f"{values[value] / whole:.1%}" for value in ordered)
    return [
        Guess(
            "kind", "multiclass", "guess", "one value a pixel; `multilabel` (without the background) scores each alone"
        ),
        _classes(names, f"the values of the mask files ({shares} of the pixels); the names are yours"),
        *(Guess("ignore_value", value, "guess", "255 after small numbers is often no class") for value in ignored),
    ]


def _order(value: Value) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (int(value),)


# --- sizes -----------------------------------------------------------------------------------------------------------


def _shape(paths: list[Path]) -> tuple[Guess, tuple[int, int]]:
    """The size that all images share, if they do, and a middling one."""
    sizes = Counter(size for path in paths if (size := image_size(path)) is not None)
    if not sizes:
        raise PipelineError(f"None of {len(paths)} images can be read, {paths[0]} for instance.")
    if len(sizes) == 1:
        (size,) = sizes
        return Guess("shape", list(size), "sure", f"all {sizes[size]} images"), size
    rows, columns = np.array(list(sizes.elements())).T
    smallest, largest = (f"{side(rows)}×{side(columns)}" for side in (min, max))
    evidence = f"{len(sizes)} sizes, from {smallest} to {largest}"
    return Guess("shape", None, "sure", evidence), (int(np.median(rows)), int(np.median(columns)))
