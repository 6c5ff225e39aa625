"""Assignment of mask files to the images of a subset, and search for files in its folders that are not used."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from pipeline.core.config.raw_files import Subset, names_in
from pipeline.core.config.raw_layouts import RleCsv
from pipeline.core.tables import normal_form
from pipeline.decode.readers.base import WORDS, SubsetName
from pipeline.decode.readers.columns import class_numbers
from pipeline.decode.readers.names import (
    ImageFiles,
    as_on_disk,
    ending_of,
    fixed_part,
    image_files_under,
    pattern_expression,
    relative_name,
    same_format,
    split_ending,
    told,
)

BETWEEN = "\0"
"""The separator between the parts of a key."""
Key = tuple[str, str]
"""The key of an image in the paths of its mask files (its id or its stem), and the value of a class, "" if one file
holds all classes."""


@dataclass
class MaskFiles:
    """The mask files of a subset."""

    by_key: dict[Key, list[Path]] = field(default_factory=dict)
    """The sorted mask files per key, also for ids without an image. There are several if the pattern holds `*`."""
    unused: list[Path] = field(default_factory=list)
    """Files in the folder of the masks that match no class, or that differ from a used file only in their ending."""

    def names(self) -> set[str]:
        """Returns the keys of the images that have a mask file."""
        return {name for name, _ in self.by_key}


def find_mask_files(competition: RleCsv, settings: Subset, folder: Path, files: ImageFiles) -> MaskFiles:
    """Returns the mask files of a subset. Images whose file name ends differently from their pattern are added to
    `files` if they have a mask file.

    A file belongs to the image with the longest id that matches: `c0_b_1.png` belongs to `c0_b` if this image exists,
    and otherwise to `c0`. If the file of the pattern does not exist, a file of the same name in another format is used.
    """
    pattern = settings.mask_files or ""
    head, ending = split_ending(normal_form(pattern))
    known = {mask_key(settings, image_id, files) for image_id in files.all_ids}
    images = set(files.paths.values())
    place = fixed_part(head)
    files_by_key: dict[Key, list[Path]] = {}
    result = MaskFiles()
    readings = list(_readings(competition, head))
    for path in image_files_under(as_on_disk(folder, place)):
        if path in images:
            continue
        key = _key_of(_name(path, folder), head, readings, known)
        if key is None:
            result.unused += [path] if place != "." else []
        else:
            files_by_key.setdefault(key, []).append(path)
    for image_id in list(files.others):
        name, image = mask_key(settings, image_id, files), files.others[image_id]
        if any(path != image for key, paths in files_by_key.items() if key[0] == name for path in paths):
            files.has(image_id)
    images = set(files.paths.values())
    for key, paths in files_by_key.items():
        paths = sorted((path for path in paths if path not in images), key=lambda path: _rank(path, ending))
        first: dict[Path, Path] = {}  # for each name, the file that ends like the pattern, if there is one
        for path in paths if "*" in head else paths[:1]:
            first.setdefault(path.with_suffix(""), path)
        used = set(first.values())
        result.unused += [path for path in paths if path not in used]
        if used:
            result.by_key[key] = sorted(used)
    return result


def mask_key(settings: Subset, image_id: str, files: ImageFiles) -> str:
    """Returns the key of an image in the paths of its mask files: its id or stem, and the parts of its path that occur
    in the pattern of the masks."""
    parts = {"id": image_id, **files.parts.get(image_id, {})}
    if "{stem}" in (settings.mask_files or ""):
        parts["id"] = Path(image_id).stem
    return BETWEEN.join(parts.get(name, "") for name in _key_names(settings.mask_files or ""))


def _key_names(pattern: str) -> list[str]:
    """Returns the groups of a pattern's regular expression that identify the image of a mask file."""
    names = ("id" if name == "stem" else name for name in names_in(pattern) if name != "class")
    return list(dict.fromkeys(names))


def _readings(competition: RleCsv, head: str) -> Iterator[tuple[str, re.Pattern[str], re.Pattern[str] | None]]:
    """Yields, per class value, the regular expression of the pattern, and that of the part after the id if `*` makes
    the end of the id ambiguous."""
    for value in class_numbers(competition) if "{class}" in head else [""]:
        of_class = head.replace("{class}", normal_form(value))
        tail = re.split(r"{(?:id|stem)}", of_class, maxsplit=1)[-1]
        open_end = "*" in tail and not names_in(tail) and names_in(of_class) in (["id"], ["stem"])
        yield value, pattern_expression(of_class), pattern_expression(tail) if open_end else None


def _key_of(
    name: str, pattern: str, readings: list[tuple[str, re.Pattern[str], re.Pattern[str] | None]], known: set[str]
) -> Key | None:
    """Returns the key of a mask file: that of the known image with the longest id that matches, or else of an id
    without an image; None if the file matches no class."""
    best: Key | None = None
    for value, expression, tail in readings:
        match = expression.fullmatch(name)
        if match is None:
            continue
        key = match.groupdict().get("id", "")
        if tail is not None:
            start = match.start("id")
            end = name.find("/", start) if "/" in name[start:] else len(name)
            ends = (last for last in range(end, start, -1) if name[start:last] in known)
            key = next((name[start:last] for last in ends if tail.fullmatch(name, last)), key)
        groups = match.groupdict() | {"id": key}
        if len(groups) > 1 or "id" not in match.groupdict():
            key = BETWEEN.join(groups[part] for part in _key_names(pattern))
        if best is None or (key in known, len(key)) > (best[0] in known, len(best[0])):
            best = key, value
    return best


def _name(path: Path, folder: Path) -> str:
    """Returns the path of a file in the form of patterns, without its ending."""
    return normal_form(relative_name(path, folder).removesuffix(ending_of(path.name)))


def _rank(path: Path, ending: str) -> tuple[bool, bool, str]:
    return path.suffix != ending, not same_format(path.suffix, ending), path.name


# --- remarks ---------------------------------------------------------------------------------------------------------


def told_of_files(
    competition: RleCsv, subset: SubsetName, folder: Path, files: ImageFiles, masks: MaskFiles
) -> list[str]:
    """Returns remarks for the user about files that do not match the patterns: how many are read, and how many are
    not."""
    settings: Subset = getattr(competition, subset)
    ending = split_ending(settings.images)[1]
    otherwise = [path for path in files.paths.values() if ending and not same_format(ending_of(path.name), ending)]
    texts = []
    if otherwise:
        text = (
            f"{WORDS[subset]} image{'s have' if len(otherwise) > 1 else ' has'} another ending than `{settings.images}`"
        )
        texts.append(f"{told(otherwise, folder, text)}: read too")
    keys = Counter(
        mask_key(settings, image_id, files)
        for image_id, path in files.paths.items()
        if not settings.shows_nothing(relative_name(path, folder))
    )
    if masks.by_key and (shared := [name for name, count in keys.items() if count > 1]):
        first = shared[0].replace(BETWEEN, " ")
        text = f"mask files belong to several images whose names differ only in their ending, for instance {first}"
        texts.append(f"{len(shared)} {text}")
    alone = [path for (name, _), paths in masks.by_key.items() for path in paths if name not in keys]
    if alone and not settings.listed_in:
        text = told(alone, folder, f"mask file{'s' * (len(alone) > 1)} without an image")
        texts.append(f"{text}; images are `{settings.images}`: are some missing, or in another folder?")
    unused = _unused(competition, settings, folder, files, masks)
    if unused:
        text = told(unused, folder, "image files are not used" if len(unused) > 1 else "image file is not used")
        texts.append(f"{text}: they match no pattern, or no image or mask belongs to them")
    return texts


def _unused(competition: RleCsv, settings: Subset, folder: Path, files: ImageFiles, masks: MaskFiles) -> list[Path]:
    """Returns the image files in the folders of a subset's images and masks that are neither of these and do not match
    `exclude`."""
    place = fixed_part(settings.images)
    candidates = [*files.others.values(), *masks.unused]
    if place != ".":  # "." is the folder of the whole competition
        candidates += image_files_under(as_on_disk(folder, place))
    other = competition.test if settings is competition.train else competition.train
    patterns = [competition.train.mask_files, *((other.mask_files, other.images) if other else ())]
    elsewhere = [pattern_expression(split_ending(normal_form(pattern))[0]) for pattern in patterns if pattern]
    used = {*files.paths.values(), *files.left_out, *(path for _, path in files.further)}
    used |= {path for paths in masks.by_key.values() for path in paths} | files.bands
    kept = []
    for path in dict.fromkeys(candidates):
        excluded = any(fnmatch(path.name, pattern) for pattern in settings.exclude)
        if path in used or excluded:
            continue
        if path in masks.unused or not any(expression.fullmatch(_name(path, folder)) for expression in elsewhere):
            kept.append(path)
    return kept
