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


def find_images(pattern: str, folder: Path, exclude: list[str]) -> ImageFiles:
    """Returns the files under `folder` that match a pattern such as `train/{id}.png` or `{id}/images/{id}.png`.

    `.PNG` matches `.png`, and `.jpeg` `.jpg`; other endings of images are kept apart. An ending `.*` matches those of
    images alone. Hidden files (`._x`, `.DS_Store`) never match.
    """
    head, ending = split_ending(pattern)
    expression = pattern_expression(normal_form(head if ending else pattern))
    found = ImageFiles({}, [])
    later: list[tuple[str, Path]] = []
    place = fixed_part(pattern)
    wanted = Path(f"{head}.*" if ending else pattern).relative_to(place).as_posix()
    for path in sorted(as_on_disk(folder, place).glob(glob_pattern(wanted.replace("{id}", "*")))):
        if path.name.startswith(".") or any(fnmatch(path.name, other) for other in exclude):
            continue
        name = normal_form(path.relative_to(folder).as_posix())
        suffix = ending_of(path.name)
        match = expression.fullmatch(name[: -len(suffix)] if ending and suffix else name)
        if match is None or (ending and suffix.lower() not in SUFFIXES):
            continue
        image_id = match["id"]
        if ending and not (suffix == ending or same_format(suffix, ending)):
            later.append((image_id, path))
        elif found.paths.setdefault(image_id, path) != path:
            found.further.append((image_id, path))
    for image_id, path in later:
        if image_id not in found.paths:
            found.others.setdefault(image_id, path)
    return found


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
    """Returns what matches paths of a pattern with {id}, {stem}, {class} and *; the group `id` holds the first."""
    text = re.sub(r"\\{(id|stem)\\}", "(?P<id>[^/]+)", re.escape(pattern), count=1)
    text = re.sub(r"\\{(id|stem)\\}", "(?P=id)", text)
    return re.compile(text.replace(r"\{class\}", "[^/]+").replace(r"\*", "[^/]*"))


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
