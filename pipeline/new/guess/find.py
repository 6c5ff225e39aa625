"""Finds training images, masks, test images and tables among the raw files, and lists the files that are not used."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.core.config.raw_files import names_in
from pipeline.core.errors import PipelineError
from pipeline.decode.readers.base import listed
from pipeline.decode.readers.files import SUFFIXES, packed
from pipeline.decode.readers.names import find_images, split_ending
from pipeline.new.guess import annotations
from pipeline.new.guess.annotations import Annotations, Json
from pipeline.new.guess.bands import several_to_a_mask
from pipeline.new.guess.base import Files, other_files
from pipeline.new.guess.class_names import Named as ClassNames
from pipeline.new.guess.class_names import from_json
from pipeline.new.guess.ids import fit_ids
from pipeline.new.guess.lists import Lists, find_lists
from pipeline.new.guess.masks import MaskFiles, find_mask_files, kind_of, pictures, place_of
from pipeline.new.guess.paths import by_name, image_groups, masks_beside, without_ending
from pipeline.new.guess.tables import Named, Table, find_key, read_rows, read_tables, rows_of

_SWAPS = (
    ("training", "testing"), ("training", "test"), ("train", "test"), ("Training", "Testing"), ("Training", "Test"),
    ("Train", "Test"), ("TRAIN", "TEST"), ("Tr/", "Ts/"), ("training", "validation"), ("train", "valid"),
    ("train", "val"), ("train", "validation"), ("Train", "Val"), ("Training", "Validation"), ("train", "dev"),
)  # fmt: skip
"""Words in the paths of training files, each with the word that replaces it in paths of test or validation files."""
NOTED = 8
"""Maximum number of unused files of one kind that are named."""


@dataclass(frozen=True)
class Found:
    """The files of a competition with images in folders. Masks are in a table, in image files or in annotations."""

    images: Files
    test: Files | None
    table: Named | None
    mask_files: MaskFiles | None
    annotations: Annotations | None
    beside: Files | None
    """Masks in the same folder as the training images."""
    sample: Named | None
    further: Named | None
    """A table with one row per training image, without masks."""
    unread: Table | None
    """A table that is named like a sample submission but does not list the test images."""
    truth: str | None = None
    """True masks of the test images: a pattern, or a file of annotations."""
    of_test: Annotations | None = None
    lists: Lists = field(default_factory=Lists)
    names: tuple[Table, ...] = ()
    """Tables that may give names to the values of class maps."""
    single: tuple[Table, ...] = ()
    """Tables of run lengths that each describe only the image next to them."""
    named: ClassNames | None = None
    """Names of values from a JSON file."""
    notes: tuple[str, ...] = ()
    """Sentences about files that are not used."""
    rivals: tuple[str, ...] = ()
    """Patterns of other pictures that could also be the training images."""


def find(folder: Path, paths: list[Path]) -> Found:
    """Returns the training images, test images, masks and tables among the raw files.

    Raises:
        PipelineError: there are no images or no masks.
    """
    apart = [masks_beside(files) for files in image_groups(folder, paths)]
    groups, beside = [images for images, _ in apart], [masks for _, masks in apart if masks]
    if not groups:
        hint = packed(folder, known=False) or other_files(paths) or "; give the folder of the raw files with --from"
        raise PipelineError(f"{folder} contains no images ({', '.join(SUFFIXES)}){hint}.")
    tables, table_notes = read_tables(folder, paths)
    full = [table for table in tables if not table.frame.empty]
    sample = _sample(full, [*groups, *by_name(groups)])
    rest = [files for files in groups if not (sample and _share_files(files, sample.key.files))]
    tests = [files for files in groups if files.is_test or (sample and _share_files(files, sample.key.files))]
    table, rest = _mask_table(
        [candidate for candidate in full if not sample or candidate is not sample.table], rest, tests, folder
    )
    mask_files = None if table else find_mask_files(rest, beside)
    found_json = annotations.look_into(folder, paths)
    in_json = from_json(folder, found_json.unread) if mask_files else None
    if in_json:
        found_json.unread.pop(in_json.source)
    annotated = None if table or mask_files else _annotated(found_json, rest, folder)
    images = table.key.files if table else mask_files.images if mask_files else annotated.images if annotated else None
    if images is None:
        raise PipelineError(_no_masks(folder, groups, (tables, table_notes), found_json))
    used = [*([mask_files.masks] if mask_files else []), *beside]
    others = [files for files in rest if not _share_files(files, images) and not _are_masks(files, mask_files)]
    alike = by_name(others) if images.pattern.endswith("{id}") else others  # ids with endings, as in training
    lists = find_lists(folder, paths, images) if sample is None else Lists()
    test = sample.key.files if sample else None if lists.test else _test_of(alike, images, folder)
    if sample is None and test is not None:  # images of several files, whose ids were not known before
        sample = _sample(full, [test])
    truth, of_test = (
        (None, None) if test is None or sample else _truth(test, mask_files, annotated, rest, found_json, folder)
    )
    named = {named_table.table.name for named_table in (table, sample) if named_table}
    further = _further([candidate for candidate in full if candidate.name not in named], images)
    unread = next((candidate for candidate in tables if candidate.is_sample), None) if sample is None else None
    near = next((masks for files, masks in apart if masks and _share_files(files, images)), None)
    found = Found(images, test, table, mask_files, annotated, near, sample, further, unread, truth, of_test, lists)
    left = [*table_notes, *_left_over(found, [*groups, *used], tables, found_json)]
    lengths = [candidate for candidate in full if candidate.rle and not candidate.is_sample]
    single = tuple(candidate for candidate in lengths if candidate not in _of_all_images(lengths)) if mask_files else ()
    rivals = tuple(files.pattern for files in others if _is_rival(files, images))
    if table:
        rivals = tuple(_rivals_of_table(images, others, test))
    return replace(
        found,
        notes=tuple(left),
        names=tuple(candidate for candidate in full if candidate.name not in named),
        rivals=rivals,
        named=in_json,
        single=single,
    )


def _is_rival(files: Files, images: Files) -> bool:
    """Whether files are pictures in the same top folder as the training images, and not test or validation images."""
    place = images.pattern.split("/", 1)[0]
    return not files.is_test and not files.is_validation and files.pattern.startswith(f"{place}/") and pictures(files)


def _rivals_of_table(images: Files, others: list[Files], test: Files | None) -> Iterator[str]:
    """Other pictures that a table could describe, if no test images confirm the choice by a similar path."""
    if test is not None and place_of(test.pattern) == place_of(images.pattern):
        return
    for files in others:
        shared = len(files.paths.keys() & images.paths.keys())
        if not files.is_test and shared > 0.9 * len(images.paths) and kind_of(files) is None:
            yield files.pattern


def _share_files(files: Files, other: Files) -> bool:
    return not set(files.paths.values()).isdisjoint(other.paths.values())


def _are_masks(files: Files, masks: MaskFiles | None) -> bool:
    """Whether files are the masks, or the masks of another class with the same names."""
    if masks is None:
        return False
    same_names = files.paths.keys() == masks.masks.paths.keys() and not files.is_test
    return same_names or _share_files(files, masks.masks)


# --- tables ----------------------------------------------------------------------------------------------------------


def _sample(tables: list[Table], groups: list[Files]) -> Named | None:
    """The sample submission: found by its name, or as a table of test images with the same mask in every row."""
    groups = [files for files in groups if pictures(files)] or groups
    tests = [files for files in groups if files.is_test]
    constant = [table for table in tables if table.rle and table.frame[table.rle].nunique() == 1]
    for table in [table for table in tables if table.is_sample] or constant:
        named = read_rows(table, tests) or read_rows(table, groups)
        if named and named.key.share > 0.5:
            return named
    return None


def _likeliest(training: list[Files], tests: list[Files]) -> list[Files]:
    """The groups that may be training images: pictures rather than masks, first those with a path like test images."""
    shown = [files for files in training if kind_of(files) is None and pictures(files)] or training
    places = {place_of(files.pattern) for files in [*tests, *by_name(tests)]}
    return sorted(shown, key=lambda files: place_of(files.pattern) not in places)


def _mask_table(
    tables: list[Table], groups: list[Files], tests: list[Files], folder: Path
) -> tuple[Named | None, list[Files]]:
    """The table of run lengths whose rows name most training images, and the groups of images.

    One of the groups may get new ids, built from parts of its paths as the table writes them.

    Args:
        tables: tables except the sample submission.
        groups: images that the sample submission does not name.
        tests: test images according to the sample submission or their path.
        folder: folder of the raw files.
    """
    known = [*groups, *by_name(groups)]
    training = [files for files in known if not files.is_test] or known
    if sum(not files.is_test for files in groups) > 1:
        training = _likeliest(training, tests)
    masks = _of_all_images([table for table in tables if table.rle and not table.is_sample])
    readings = [named for table in masks if (named := read_rows(table, training, by_file=True))]
    best = max(readings, key=lambda reading: (reading.key.share, len(reading.key.ids)), default=None)
    if best and best.key.share > 0.5:
        return _of_several_files(best, groups, tests), groups
    for table in masks:
        shown = _likeliest(sorted(groups, key=lambda group: (group.is_test, -len(group.paths))), tests)
        for files in shown:
            for column in table.frame.columns.drop([table.rle or ""]):
                fitted = fit_ids(files, table.frame[column].tolist(), folder)
                named = read_rows(table, [fitted]) if fitted else None
                if fitted and named:
                    return named, [fitted if group is files else group for group in groups]
    return best, groups


def _of_several_files(named: Named, groups: list[Files], tests: list[Files]) -> Named:
    """The table, with images that consist of several files each if that is how the test images are stored."""
    places = {place_of(files.pattern) for files in tests if pictures(files)}
    if not places or place_of(named.key.files.pattern) in places:
        return named
    for files in groups:
        if files.is_test or place_of(files.pattern) not in places or not pictures(files):
            continue
        if joined := several_to_a_mask(files, named.key.files):
            return replace(named, key=replace(named.key, files=joined))
    return named


def _of_all_images(tables: list[Table]) -> list[Table]:
    """The tables without those that describe only the image next to them."""
    alike = Counter((Path(table.name).name, tuple(table.frame.columns)) for table in tables)
    return [table for table in tables if alike[Path(table.name).name, tuple(table.frame.columns)] == 1]


def _further(tables: list[Table], images: Files) -> Named | None:
    """A table without masks whose first column has ids or file names of most training images."""
    for table in tables:
        if table.rle or table.pixels or table.is_sample or len(table.frame.columns) < 2:
            continue
        first = Table(table.name, table.frame.iloc[:, :1], None)
        key = find_key(first, [images], by_file=True)
        if key and key.pattern is None and len(set(key.ids) & images.paths.keys()) >= 0.9 * len(images.paths):
            fitted = replace(key, files=images)
            return Named(table, fitted, rows_of(table, fitted))
    return None


# --- test images -----------------------------------------------------------------------------------------------------


def _annotated(found: Json, groups: list[Files], folder: Path) -> Annotations | None:
    """The annotations of the training images: those of most images, except test and validation images."""
    candidates = annotations.of_images(found, groups, folder)
    training = [
        candidate for candidate in candidates if not candidate.images.is_test and not candidate.images.is_validation
    ]
    return max(training or candidates, key=lambda candidate: candidate.count, default=None)


def _test_of(groups: list[Files], images: Files, folder: Path) -> Files | None:
    """The test images, whose path is that of the training images with another word; None if there are none."""
    pictures = [files for files in groups if "*" not in files.pattern]
    by_pattern = {files.pattern: files for files in pictures}
    whole = images.pattern
    for old, new in _SWAPS:
        if old not in whole or (other := _swapped(whole, old, new)) == whole:
            continue
        if other in by_pattern:
            return by_pattern[other]
        listed = find_images(other.replace("{band}", [*images.bands, ""][0]), folder, [], images.id)
        if listed.paths:
            return Files(other, listed.paths, images.exclude, images.id, listed.parts, images.bands)
    shape = _shape(whole)
    named = [files for files in pictures if files.is_test and kind_of(files) is None]
    same = [group for files in named for group in (files, *without_ending(files)) if _shape(group.pattern) == shape]
    return max(same, key=lambda files: len(files.paths), default=None)


def _shape(pattern: str) -> str:
    """The file name in a pattern without the names of its parts and without its suffix."""
    return re.sub(r"{\w+}", "{}", split_ending(pattern.rsplit("/", 1)[-1])[0])


def _swapped(pattern: str, old: str, new: str) -> str:
    """A pattern in which a word is replaced, except inside the names of parts."""
    parts = re.split(r"({\w+})", pattern)
    return "".join(part if part.startswith("{") else part.replace(old, new) for part in parts)


def _truth(
    test: Files, masks: MaskFiles | None, annotated: Annotations | None, groups: list[Files], found: Json, folder: Path
) -> tuple[str | None, Annotations | None]:
    """The true masks of the test images, if there are any like those of the training images."""
    if annotated:
        of_test = next(iter(annotations.of_images(found, [test], folder)), None)
        sound = of_test and of_test.pattern != annotated.pattern and set(of_test.labels) <= set(annotated.labels)
        if of_test and (sound or of_test.pattern == annotated.pattern) and of_test.count > 0.9 * len(test.paths):
            return of_test.pattern, of_test
        return None, None
    if masks is None or masks.classes:
        return None, None
    for old, new in _SWAPS:
        pattern = _swapped(masks.masks.pattern, old, new)
        if pattern == masks.masks.pattern or _swapped(masks.images.pattern, old, new) != test.pattern:
            continue
        names = {name for name in names_in(pattern) if name not in (*test.parts_named, "id")}
        paths = {} if names else find_images(pattern, folder, []).paths
        if len(paths.keys() & test.paths.keys()) > 0.9 * len(test.paths):
            return (pattern, None) if kind_of(Files(pattern, paths)) == masks.kind else (None, None)
    return None, None


# --- unused files ----------------------------------------------------------------------------------------------------


def _why_not(groups: list[Files], tables: list[Table], notes: list[str]) -> str:
    """The end of an error message: why each CSV contains no masks of the images."""
    faults = [note.removeprefix("not used: ").removesuffix(".") for note in notes if note.startswith("not used: ")]
    known = [name for files in groups for name in list(files.paths)[:1]]
    for table in tables:
        if table.is_sample:
            continue
        if table.frame.empty:
            faults.append(f"{table.name} has a header but no rows")
        elif not table.rle:
            faults.append(f"no column of {table.name} contains any")
        else:
            column = next((column for column in table.frame.columns if column != table.rle), None)
            if column is not None:
                example = table.frame[column].iloc[0]
                text = f"`{column}` of {table.name} holds {example!r}, and images are called {listed(known)}"
                faults.append(f"{text}: rename the images, or write the ids as text with their zeros")
    return f" ({'; '.join(faults[:NOTED])})" if faults else ""


def _no_masks(folder: Path, groups: list[Files], csvs: tuple[list[Table], list[str]], found: Json) -> str:
    shown = ", ".join(f"{files.pattern} ({len(files.paths)})" for files in groups[:5])
    shown += f" and {len(groups) - 5} more" if len(groups) > 5 else ""
    names = _why_not(groups, *csvs)
    unread = next(iter(found.unread.items()), None)
    more = f"; {unread[0]} is not read: {unread[1]}" if unread else ""
    if found.formats and not unread:
        more = f"; {next(iter(found.formats))} ({next(iter(found.formats.values()))}) names none of these images"
    return (
        f"{folder} has images, {shown}, but no masks: neither a CSV of run lengths whose ids are training images"
        f"{names}, nor mask images with the same names, nor annotations of them{packed(folder, known=False)}{more}."
    )


def _left_over(found: Found, groups: Iterable[Files], tables: list[Table], jsons: Json) -> Iterator[str]:
    """Yields a sentence about each kind of file that is not used."""
    used = [found.images, *([found.test] if found.test else []), *([found.beside] if found.beside else [])]
    used += [found.mask_files.masks] if found.mask_files else []
    taken = {path for files in used for path in files.paths.values()}
    others = {files.pattern: files for files in groups if not taken.intersection(files.paths.values())}
    if found.mask_files and found.truth:
        others.pop(found.truth, None)
        others = {key: files for key, files in others.items() if _like(found.truth, key) is False}
    if found.test is None and (tests := [files for files in others.values() if files.is_test]):
        yield (
            f"images that match {tests[0].pattern} look like test images by name, but their paths differ from those of "
            "the training images"
        )
    if others:
        names = [f"{pattern} ({len(files.paths)})" for pattern, files in others.items()]
        yield f"not used: images that match {_several(names)}"
    named = {used_table.table.name for used_table in (found.table, found.sample, found.further) if used_table}
    named |= {found.unread.name} if found.unread else set()
    alike: dict[tuple[str, str], list[Table]] = defaultdict(list)
    for table in tables:
        if table.name not in named and table.name not in found.lists.files:
            more = ", …" * (len(table.frame.columns) > 6)
            columns = f"{', '.join(map(str, table.frame.columns[:6]))}{more}"
            alike[Path(table.name).name, columns].append(table)
    for (_, columns), same in alike.items():
        like_it = f" and {len(same) - 1} like it" * (len(same) > 1)
        yield f"not used: {same[0].name}{like_it} ({len(same[0].frame)} rows; columns {columns})"
    used_json = {
        used_annotations.pattern for used_annotations in (found.annotations, found.of_test) if used_annotations
    }
    for name, form in jsons.formats.items():
        if name not in used_json and (name in jsons.single or name in jsons.groups):
            yield f"not used: {name} ({form})"
    reasons: dict[str, list[str]] = defaultdict(list)
    for name, why in jsons.unread.items():
        reasons[why].append(name)
    for why, names in reasons.items():
        more = f" and {len(names) - 1} files like it" if len(names) > 1 else ""
        yield f"not used: {names[0]}{more}: {why}"


def _like(pattern: str, other: str) -> bool:
    """Whether two patterns match the same files, whatever their ids."""
    return re.sub(r"{\w+}[^/]*", "*", pattern) == re.sub(r"{\w+}[^/]*", "*", other)


def _several(names: list[str]) -> str:
    return ", ".join(names[:NOTED]) + (f" and {len(names) - NOTED} more" if len(names) > NOTED else "")
