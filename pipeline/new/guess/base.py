"""What raw files seem to be: guesses with their evidence, and the image files that they rest on."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from warnings import catch_warnings

from PIL import Image

from pipeline.core.tables import normal_form
from pipeline.decode.readers.files import SUFFIXES, evenly, read_image
from pipeline.decode.readers.names import same_format, split_ending
from pipeline.decode.rle_checks import Certainty

_ORIENTATION = 0x0112
_PNG_TEXTS = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}
_WITH_ENDING = re.compile(r"(.+)([_-][A-Za-z]+)")


@dataclass(frozen=True)
class Guess:
    """One setting of a competition's YAML, how certain it is and why."""

    key: str
    """Dotted, e.g. `rle.order`."""
    value: Any
    certainty: Certainty
    evidence: str


@dataclass(frozen=True)
class Draft:
    """All settings of a competition, and what its recipe must know of the images."""

    guesses: list[Guess]
    size: tuple[int, int]
    """Rows × columns of a middling image."""
    channels: Literal[1, 3]

    def settings(self) -> dict[str, Any]:
        """Returns the guesses as nested mappings, in their order."""
        nested: dict[str, Any] = {}
        for guess in self.guesses:
            *parents, key = guess.key.split(".")
            place = nested
            for parent in parents:
                place = place.setdefault(parent, {})
            place[key] = guess.value
        return nested


@dataclass(frozen=True)
class Files:
    """Image files whose paths differ in an id only."""

    pattern: str
    """Relative to the folder of raw files, e.g. `train/{id}.png`."""
    paths: dict[str, Path]
    """By id; any one of them where the pattern holds `*`."""
    exclude: tuple[str, ...] = ()
    """File name patterns that match but are not among them."""


def image_groups(folder: Path) -> list[Files]:
    """Returns the image files under a folder by pattern, e.g. `train/{id}.png` or `{id}/images/{id}.png`."""
    paths = [path for path in _walk(folder) if path.suffix.lower() in SUFFIXES]
    relative = [path.relative_to(folder) for path in paths]
    own = {part for path in relative for part in path.parts[:-1] if part == path.stem}
    own = own if len(own) > 1 else set()  # a lone folder of an image's name is chance
    found: dict[str, dict[str, Path]] = {}
    for path, name in zip(paths, relative, strict=True):
        image_id = next((part for part in name.parts[:-1] if part in own), name.stem)
        folders = ["{id}" if part == image_id else part for part in name.parts[:-1]]
        pattern = "/".join([*folders, ("{id}" if name.stem == image_id else "*") + name.suffix])
        found.setdefault(pattern, {}).setdefault(normal_form(image_id), path)
    return _across_endings([Files(pattern, found[pattern]) for pattern in sorted(found)])


def _across_endings(groups: list[Files]) -> list[Files]:
    """The groups, where files of one place that differ in their endings alone are one, as decode reads them."""
    merged: dict[str, Files] = {}
    for files in sorted(groups, key=lambda one: (-len(one.paths), split_ending(one.pattern)[1].isupper())):
        head, ending = split_ending(files.pattern)
        known = merged.get(head)
        if known is None:
            merged[head] = files
        elif same_format(ending, split_ending(known.pattern)[1]) or not _belong_to(files, known):
            merged[head] = replace(known, paths=files.paths | known.paths)
        else:
            merged[files.pattern] = files
    return sorted(merged.values(), key=lambda one: one.pattern)


def _belong_to(files: Files, others: Files) -> bool:
    """Whether files have the names of others, or longer ones, as masks and depth maps beside images do."""
    names = (_WITH_ENDING.fullmatch(name) for name in files.paths)
    return any(name in others.paths for name in files.paths) or any(one and one[1] in others.paths for one in names)


def other_files(folder: Path) -> str:
    """Returns the end of a sentence about a folder without images: what it holds instead; "" with tables alone."""
    endings = Counter(path.suffix.lower() for path in _walk(folder) if path.suffix.lower() not in ("", ".csv"))
    shown = ", ".join(f"{ending} ({count})" for ending, count in endings.most_common(3))
    return f"; it holds {shown}: save images and masks as PNG or TIFF first" if endings else ""


def masks_beside(files: Files) -> tuple[Files, Files | None]:
    """Returns the images without the masks beside them, and those masks: `X_mask.tif` is one where `X.tif` exists."""
    matches = {name: match for name in files.paths if (match := _WITH_ENDING.fullmatch(name))}
    endings = Counter(match[2] for match in matches.values() if match[1] in files.paths)
    if not endings or endings.most_common(1)[0][1] < 2 or "*" in files.pattern:
        return files, None
    ending = endings.most_common(1)[0][0]
    images = {name: path for name, path in files.paths.items() if not name.endswith(ending)}
    masks = {name.removesuffix(ending): path for name, path in files.paths.items() if name.endswith(ending)}
    head, suffix = files.pattern.rsplit("{id}", 1)
    beside = Files(f"{head}{{id}}{ending}{suffix}", masks)
    return replace(files, paths=images, exclude=(f"*{ending}{suffix}",)), beside


def by_name(groups: list[Files]) -> list[Files]:
    """Returns the files of plain folders once more, with names such as `x.png` for ids: the pattern is `train/{id}`."""
    found: dict[str, Files] = {}
    for files in groups:
        head, suffix = files.pattern.rsplit("/", 1)[0] if "/" in files.pattern else "", Path(files.pattern).suffix
        if "{id}" in head or "*" in files.pattern:
            continue
        pattern = f"{head}/{{id}}" if head else "{id}"
        known = found.get(pattern, Files(pattern, {}))
        names = {name + suffix: path for name, path in files.paths.items()}
        found[pattern] = Files(pattern, known.paths | names, (*known.exclude, *files.exclude))
    return list(found.values())


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))


# --- what the files hold ---------------------------------------------------------------------------------------------


def image_size(path: Path) -> tuple[int, int] | None:
    """Returns rows × columns of an image, from its head alone where it can; None where it cannot be read."""
    try:
        with catch_warnings(action="ignore"), Image.open(path) as image:  # decode says what is odd
            described = image.format != "PNG" or _PNG_TEXTS & {str(key) for key in image.info}  # else Pillow reads on
            if not described or image.getexif().get(_ORIENTATION, 1) < 5:  # else rows and columns are swapped
                return image.height, image.width
    except Exception:  # Pillow knows no 16-bit colours, and damaged files raise whatever they like
        pass
    try:
        rows, columns = read_image(path).shape[:2]
        return rows, columns
    except ValueError:  # decode says what is wrong with it
        return None


def channels_of(paths: Iterable[Path]) -> Literal[1, 3]:
    """Returns 3 where one of some images has colours, else 1, also for grey images that are stored as RGB."""
    for path in evenly(paths, 20):
        try:
            image = read_image(path)
        except ValueError:
            continue
        if (image[..., :1] != image).any():
            return 3
    return 1
