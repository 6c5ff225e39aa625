"""Assignment of files to images: patterns with `{id}`, variants of file name endings, and forms of Unicode."""

import glob
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from pipeline.core.config.raw_files import names_in
from pipeline.core.tables import as_packed, normal_form
from pipeline.decode.readers.files import SUFFIXES

_SAME_FORMAT = ((".jpg", ".jpeg"), (".tif", ".tiff"))
_ADDITION = re.compile(r"(.+)[_.\- ][^_.\- ]+")


@dataclass
class ImageFiles:
    """The image files of a subset by id, and files in the same folders whose names end differently from the pattern."""

    paths: dict[str, Path]
    further: list[tuple[str, Path]]
    """Further files of ids that already have one."""
    others: dict[str, Path] = field(default_factory=dict)
    """Files with another ending, by ids that have no file yet. `has` adds them to `paths`."""
    bands: set[Path] = field(default_factory=set)
    """The files of images that consist of several files."""
    parts: dict[str, dict[str, str]] = field(default_factory=dict)
    """The named parts of the path of each id, if the pattern has any."""
    left_out: list[Path] = field(default_factory=list)
    """Files that are not in the list of the subset's images."""

    @property
    def all_ids(self) -> set[str]:
        """The ids that have a file, with any ending."""
        return {*self.paths, *self.others}

    def has(self, image_id: str) -> bool:
        """Returns whether an id from a table, a mask or a sample submission has an image. Its file name may end
        differently from the pattern."""
        if image_id not in self.paths and image_id in self.others:
            self.paths[image_id] = self.others.pop(image_id)
        return image_id in self.paths

    def take_likely(self) -> None:
        """Adds files with another ending if no table lists the images. A file is not added if the start of its name is
        the name of another image: `7_depth.png` beside `7.jpg` is not an image."""
        for image_id in list(self.others):
            name = image_id
            while (match := _ADDITION.fullmatch(name)) and (name := match[1]) not in self.paths:
                pass
            if name not in self.paths:
                self.has(image_id)


def find_images(pattern: str, folder: Path, exclude: list[str], template: str | None = None) -> ImageFiles:
    """Returns the files under `folder` that match a pattern such as `train/{id}.png` or `{case}/slice_{slice}_*.png`.

    `.PNG` matches `.png`, and `.jpeg` matches `.jpg`. Files with other endings of images are collected separately. The
    ending `.*` matches all endings of images. Hidden files (`._x`, `.DS_Store`) never match.

    Args:
        pattern: the path pattern of images.
        folder: the competition's folder.
        exclude: patterns of file names to leave out.
        template: how an id is built from the parts, e.g. `{case}_{slice}`; None if the pattern holds `{id}`.
    """
    head, ending = split_ending(pattern)
    expression = pattern_expression(normal_form(head if ending else pattern))
    files = ImageFiles({}, [])
    later: list[tuple[str, Path]] = []
    parts = template is not None or names_in(pattern) != ["id"]
    for path, name in _paths(folder, f"{head}.*" if ending else pattern):
        if any(fnmatch(path.name, other) for other in exclude):
            continue
        suffix = ending_of(path.name)
        match = expression.fullmatch(name[: -len(suffix)] if ending and suffix else name)
        if match is None or (ending and suffix.lower() not in SUFFIXES):
            continue
        image_id = template.format(**match.groupdict()) if template else match["id"]
        if parts:
            named_parts = {part: value for part, value in match.groupdict().items() if part != "id"}
            files.parts.setdefault(image_id, named_parts)
        if ending and not (suffix == ending or same_format(suffix, ending)):
            later.append((image_id, path))
        elif files.paths.setdefault(image_id, path) != path:
            files.further.append((image_id, path))
    for image_id, path in later:
        if image_id not in files.paths:
            files.others.setdefault(image_id, path)
    return files


def _paths(folder: Path, pattern: str) -> Iterable[tuple[Path, str]]:
    """Yields the files under a folder that may match a pattern, sorted and without hidden files, with their relative
    paths in normal form."""
    place = fixed_part(pattern)
    wanted = Path(pattern).relative_to(place).as_posix()
    start = as_on_disk(folder, place)
    wild = glob_pattern(re.sub(r"{\w+}", "*", wanted))
    for path in sorted(start.glob(wild)):
        if not path.name.startswith("."):
            yield path, normal_form(relative_name(path, folder))


def relative_name(path: Path, folder: Path) -> str:
    """Returns the path of a file relative to the folder in which it was found, with `/` between folders."""
    return str(path)[len(str(folder)) + 1 :].replace(os.sep, "/")


def split_ending(pattern: str) -> tuple[str, str]:
    """Returns a pattern without its ending, and the ending, which is that of an image or `.*`; "" if it ends
    differently."""
    suffix = ending_of(pattern)
    known = suffix.lower() in SUFFIXES or suffix == ".*"
    return (pattern.removesuffix(suffix), suffix) if known else (pattern, "")


def ending_of(name: str) -> str:
    """Returns the ending of a file name; `.nii.gz` counts as one ending."""
    return name[-len(".nii.gz") :] if name.lower().endswith(".nii.gz") else Path(name).suffix


def same_format(suffix: str, other: str) -> bool:
    """Returns whether two endings belong to the same format, such as .jpg and .JPEG; `.*` matches any."""
    first, second = suffix.lower(), other.lower()
    return first == second or other == ".*" or any(first in names and second in names for names in _SAME_FORMAT)


def pattern_expression(pattern: str) -> re.Pattern[str]:
    """Returns the regular expression of a path pattern with {id}, {stem}, named parts, {class} and *.

    Its groups have the names of the parts; the group of {id} or {stem} is `id`. An id matches as many characters as
    possible, all other parts as few as possible. A part that occurs twice must match the same text.
    """
    seen: set[str] = set()
    pieces = []
    for text in re.split(r"({\w+}|\*)", pattern):
        name = "id" if text == "{stem}" else text[1:-1]
        if text == "*":
            pieces.append("[^/]*")
        elif text == "{class}":
            pieces.append("[^/]+")
        elif not (text.startswith("{") and text.endswith("}")):
            pieces.append(re.escape(text))
        elif name in seen:
            pieces.append(f"(?P={name})")
        else:
            seen.add(name)
            pieces.append(f"(?P<{name}>[^/]+{'' if name == 'id' else '?'})")
    return re.compile("".join(pieces))


def fixed_part(pattern: str) -> str:
    """Returns the part of a pattern's folder that contains neither {…} nor *."""
    parts = Path(pattern).parent.parts
    fixed = [part for index, part in enumerate(parts) if not any(set("{*") & set(name) for name in parts[: index + 1])]
    return str(Path(*fixed)) if fixed else "."


def image_files_under(folder: Path) -> list[Path]:
    """Returns the image files in a folder and its subfolders, without hidden files."""
    files: list[Path] = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        files += [Path(parent, name) for name in sorted(names) if _is_image(name)]
    return files


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)


def as_on_disk(folder: Path, file: str) -> Path:
    """Returns the path of a file in a folder. On the disk, its name may have another Unicode form or a variant of its
    ending (.PNG, .jpeg), or only its .zip file may exist."""
    path = as_packed(folder / file)
    if path.exists():
        return path
    head, ending = split_ending(file)
    endings = [variant for known in SUFFIXES if same_format(known, ending) for variant in (known, known.upper())]
    for form in _forms(head):
        for other in endings if ending else [""]:
            if (path := folder / f"{form}{other}").exists():
                return path
    path = folder
    for part in Path(file).parts if not file.isascii() else [file]:  # a path may mix several forms
        names = os.listdir(path) if path.is_dir() and not part.isascii() else []
        path /= next((name for name in names if normal_form(name) == normal_form(part)), part)
    return path


def _forms(name: str) -> Iterable[str]:
    if name.isascii():
        return (name,)
    return dict.fromkeys([name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)])


def glob_pattern(pattern: str) -> str:
    """Returns a glob pattern in which only `*` is special, because `[` and `?` may occur in file names."""
    return "*".join(glob.escape(part) for part in pattern.split("*"))


# --- sentences -------------------------------------------------------------------------------------------------------


def told(paths: Collection[Path], folder: Path, what: str) -> str:
    """Returns a text about files: their number, their endings and the first one as an example."""
    endings = Counter(path.suffix for path in paths)
    shown = ", ".join(f"{count} {ending or 'without an ending'}" for ending, count in sorted(endings.items()))
    first = min(paths).relative_to(folder).as_posix()
    return f"{len(paths)} {what} ({shown}; for instance {first})"
