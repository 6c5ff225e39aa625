"""Common types of the guesses about raw files, and functions that read sizes of image files."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from warnings import catch_warnings

from PIL import Image

from pipeline.decode.readers.files import OtherNumbers, read_image
from pipeline.decode.rle_checks import Certainty
from pipeline.new.guess.forms import form_of, is_plain, size_of

_ORIENTATION = 0x0112
_SUBFILE_TYPE = 254
_PNG_TEXTS = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}
_TEST = re.compile(r"test|(images|labels)Ts", re.IGNORECASE)
_VALIDATION = re.compile(r"(^|[/_-])(val|valid|validation|dev)(?=$|[/_{-])", re.IGNORECASE)


@dataclass(frozen=True)
class Guess:
    """One setting of a competition's YAML, how certain it is and why."""

    key: str
    """Dotted key, for example `rle.order`."""
    value: Any
    certainty: Certainty
    evidence: str


@dataclass(frozen=True)
class Draft:
    """All settings of a competition."""

    guesses: list[Guess]
    notes: tuple[str, ...] = ()
    """Further information for the user, such as files that are not used."""

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
    """Image files whose paths differ only in an id."""

    pattern: str
    """Pattern of the paths relative to the folder of raw files, for example `train/{id}.png`."""
    paths: dict[str, Path]
    """Path by id; if the pattern contains `*`, one of the matching paths."""
    exclude: tuple[str, ...] = ()
    """Patterns of file names that match `pattern` but do not belong to the group."""
    id: str | None = None
    """Template of the ids, if the pattern has named parts instead of `{id}`."""
    parts: dict[str, dict[str, str]] = field(default_factory=dict)
    """Named parts of the path besides the id, by id."""
    bands: tuple[str, ...] = ()
    """Values of `{band}` in the pattern, if an image has one file per band; `paths` then has the files of the first."""
    all_bands: int = 0
    """Number of all bands, if `bands` is only a part of them."""

    @property
    def parts_named(self) -> tuple[str, ...]:
        """The names of the parts."""
        return tuple(next(iter(self.parts.values()), {}))

    @cached_property
    def is_test(self) -> bool:
        """Whether the path marks these files as test images."""
        return bool(_TEST.search(self.pattern))

    @property
    def is_validation(self) -> bool:
        """Whether the path marks these files as validation images."""
        return bool(_VALIDATION.search(self.pattern))


def walk(folder: Path) -> Iterator[Path]:
    """Yields all files under a folder in sorted order, without hidden ones."""
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))


def other_files(paths: Iterable[Path]) -> str:
    """Returns the end of an error message about a folder without images: the other files in it; "" if only tables."""
    endings = Counter(path.suffix.lower() for path in paths if path.suffix.lower() not in ("", ".csv"))
    shown = ", ".join(f"{ending} ({count})" for ending, count in endings.most_common(3))
    return f"; it contains {shown}: save images and masks as PNG or TIFF first" if endings else ""


# --- sizes ----------------------------------------------------------------------------------------------------------


def image_size(path: Path) -> tuple[int, int] | None:
    """Returns rows and columns of an image, from the file's header if possible; None if it cannot be read."""
    if not is_plain(path) and path.suffix.lower() not in (".tif", ".tiff"):
        return size_of(path)
    try:
        with catch_warnings(action="ignore"), Image.open(path) as image:  # decode reports oddities
            # without such a text, getexif() would read the whole PNG
            described = image.format != "PNG" or _PNG_TEXTS & {str(key) for key in image.info}
            swapped = described and image.getexif().get(_ORIENTATION, 1) >= 5
            if not swapped and not (image.format == "TIFF" and image.getexif().get(_SUBFILE_TYPE, 0)):  # a thumbnail
                return image.height, image.width
    except Exception:  # Pillow cannot read 16-bit colours, and damaged files raise exceptions of any type
        pass
    try:
        if not is_plain(path) and (form := form_of(path)) is not None and (form.slices > 1 or form.is_huge):
            return form.rows, form.columns
        rows, columns = read_image(path).shape[:2]
        return rows, columns
    except OtherNumbers:
        return size_of(path)
    except ValueError:  # decode reports the fault
        return size_of(path) if not is_plain(path) else None
