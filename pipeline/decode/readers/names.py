"""Which file of a folder belongs to which image: patterns with `{id}`, spellings of endings, forms of Unicode."""

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
    """The image files of a subset by id, and those at the same places that end otherwise than the pattern."""

    paths: dict[str, Path]
    further: list[tuple[str, Path]]
    """Files of an id that has one already."""
    others: dict[str, Path] = field(default_factory=dict)
    """By an id that has no file yet; `has` takes them in."""
    bands: set[Path] = field(default_factory=set)
    """Further files of images that are made of several."""
    parts: dict[str, dict[str, str]] = field(default_factory=dict)
    """By id, the named parts of the path beside the id, where the pattern has some."""
    left_out: list[Path] = field(default_factory=list)
    """Files that a list of the subset's images does not name."""

    @property
    def all_ids(self) -> set[str]:
        """The ids that have a file, however it ends."""
        return {*self.paths, *self.others}

    def has(self, image_id: str) -> bool:
        """Returns whether an id that a table, a mask or a sample submission names has an image, which may end otherwise
        than the pattern."""
        if image_id not in self.paths and image_id in self.others:
            self.paths[image_id] = self.others.pop(image_id)
        return image_id in self.paths

    def take_likely(self) -> None:
        """Takes in the files that no file's name is the beginning of, where nothing names the images: `7_depth.png`
        beside `7.jpg` is none."""
        for image_id in list(self.others):
            name = image_id
            while (match := _ADDITION.fullmatch(name)) and (name := match[1]) not in self.paths:
                pass
            if name not in self.paths:
                self.has(image_id)


def find_images(pattern: str, folder: Path, exclude: list[str], template: str | None = None) -> ImageFiles:
    """Returns the files under `folder` that match a pattern such as `train/{id}.png` or `{case}/slice_{slice}_*.png`.

    `.PNG` matches `.png`, and `.jpeg` `.jpg`; other endings of images are kept apart. An ending `.*` matches those of
    images alone. Hidden files (`._x`, `.DS_Store`) never match.

    Args:
        pattern: the path of an image.
        folder: the competition's.
        exclude: patterns of file names to leave out.
        template: what an id is made of, e.g. `{case}_{slice}`; None where the pattern holds `{id}`.
    """
    head, ending = split_ending(pattern)
    expression = pattern_expression(normal_form(head if ending else pattern))
    found = ImageFiles({}, [])
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
            own = {part: value for part, value in match.groupdict().items() if part != "id"}
            found.parts.setdefault(image_id, own)
        if ending and not (suffix == ending or same_format(suffix, ending)):
            later.append((image_id, path))
        elif found.paths.setdefault(image_id, path) != path:
            found.further.append((image_id, path))
    for image_id, path in later:
        if image_id not in found.paths:
            found.others.setdefault(image_id, path)
    return found


def _paths(folder: Path, pattern: str) -> Iterable[tuple[Path, str]]:
    """The files under a folder that may match a pattern, hidden ones left out, sorted; and their paths in normal form
    relative to it."""
    place = fixed_part(pattern)
    wanted = Path(pattern).relative_to(place).as_posix()
    start = as_on_disk(folder, place)
    wild = glob_pattern(re.sub(r"{\w+}", "*", wanted))
    for path in sorted(start.glob(wild)):
        if not path.name.startswith("."):
            yield path, normal_form(relative_name(path, folder))


def relative_name(path: Path, folder: Path) -> str:
    """Returns the path of a file relative to a folder that it was found in, with `/` between folders."""
    return str(path)[len(str(folder)) + 1 :].replace(os.sep, "/")


def split_ending(pattern: str) -> tuple[str, str]:
    """Returns a pattern without its ending, and the ending of an image or `.*`; "" where it ends otherwise."""
    suffix = ending_of(pattern)
    known = suffix.lower() in SUFFIXES or suffix == ".*"
    return (pattern.removesuffix(suffix), suffix) if known else (pattern, "")


def ending_of(name: str) -> str:
    """Returns the ending of a file's name; `.nii.gz` is one."""
    return name[-len(".nii.gz") :] if name.lower().endswith(".nii.gz") else Path(name).suffix


def same_format(suffix: str, other: str) -> bool:
    """Returns whether two endings are of one format, such as .jpg and .JPEG; `.*` is of any."""
    one, two = suffix.lower(), other.lower()
    return one == two or other == ".*" or any(one in names and two in names for names in _SAME_FORMAT)


def pattern_expression(pattern: str) -> re.Pattern[str]:
    """Returns what matches paths of a pattern with {id}, {stem}, named parts, {class} and *.

    The groups are the names of the parts; that of {id} or {stem} is `id`. An id takes as much as it can, every other
    part as little; one that stands twice is the same text.
    """
    seen: set[str] = set()
    found = []
    for text in re.split(r"({\w+}|\*)", pattern):
        name = "id" if text == "{stem}" else text[1:-1]
        if text == "*":
            found.append("[^/]*")
        elif text == "{class}":
            found.append("[^/]+")
        elif not (text.startswith("{") and text.endswith("}")):
            found.append(re.escape(text))
        elif name in seen:
            found.append(f"(?P={name})")
        else:
            seen.add(name)
            found.append(f"(?P<{name}>[^/]+{'' if name == 'id' else '?'})")
    return re.compile("".join(found))


def fixed_part(pattern: str) -> str:
    """Returns the folder that a path with {id} or * lies in whatever the id."""
    parts = Path(pattern).parent.parts
    fixed = [part for index, part in enumerate(parts) if not any(set("{*") & set(name) for name in parts[: index + 1])]
    return str(Path(*fixed)) if fixed else "."


def image_files_under(folder: Path) -> list[Path]:
    """Returns the image files in a folder and the folders in it, hidden ones left out."""
    found: list[Path] = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        found += [Path(parent, name) for name in sorted(names) if _is_image(name)]
    return found


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)


def as_on_disk(folder: Path, file: str) -> Path:
    """Returns the path of a file in a folder, where its name on the disk may have the composed or the decomposed form
    of what `file` says, or spell its ending otherwise (.PNG, .jpeg); or of the .zip in its place."""
    path = as_packed(folder / file)
    if path.exists():
        return path
    head, ending = split_ending(file)
    endings = [one for known in SUFFIXES if same_format(known, ending) for one in (known, known.upper())]
    for form in _forms(head):
        for other in endings if ending else [""]:
            if (path := folder / f"{form}{other}").exists():
                return path
    path = folder
    for part in Path(file).parts if not file.isascii() else [file]:  # forms mixed in one path
        names = os.listdir(path) if path.is_dir() and not part.isascii() else []
        path /= next((name for name in names if normal_form(name) == normal_form(part)), part)
    return path


def _forms(name: str) -> Iterable[str]:
    if name.isascii():
        return (name,)
    return dict.fromkeys([name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)])


def glob_pattern(pattern: str) -> str:
    """Returns a pattern in which `*` alone is special: `[` and `?` may stand in names of files."""
    return "*".join(glob.escape(part) for part in pattern.split("*"))


# --- sentences -------------------------------------------------------------------------------------------------------


def told(paths: Collection[Path], folder: Path, what: str) -> str:
    """Returns a sentence on files: how many, of which endings, and the first."""
    endings = Counter(path.suffix for path in paths)
    shown = ", ".join(f"{count} {ending or 'without an ending'}" for ending, count in sorted(endings.items()))
    first = min(paths).relative_to(folder).as_posix()
    return f"{len(paths)} {what} ({shown}; {first} for instance)"
