"""What raw files seem to be: guesses with their evidence, and the image files that they rest on."""

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

from pipeline.decode.readers.files import OtherNumbers, evenly, read_image
from pipeline.decode.rle_checks import Certainty
from pipeline.new.guess.forms import form_of, is_plain, size_of, values_of

_ORIENTATION = 0x0112
_SUBFILE_TYPE = 254
_PNG_TEXTS = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}
_TEST = re.compile(r"test|(images|labels)Ts", re.IGNORECASE)
_VALIDATION = re.compile(r"(^|[/_-])(val|valid|validation|dev)(?=$|[/_{-])", re.IGNORECASE)


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
    channels: int
    store: tuple[int, int] | None = None
    """Rows × columns that windows of huge images are stored at."""
    notes: tuple[str, ...] = ()
    """What else a person should know, such as files that are not used."""

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
    id: str | None = None
    """What ids are made of, where the pattern has named parts instead of `{id}`."""
    parts: dict[str, dict[str, str]] = field(default_factory=dict)
    """By id, the named parts of the path beside the id."""
    bands: tuple[str, ...] = ()
    """What `{band}` of the pattern stands for, where an image is one file per band; `paths` has those of the first."""
    all_bands: int = 0
    """How many there are, where these are some of them."""

    @property
    def parts_named(self) -> tuple[str, ...]:
        """The names of the parts."""
        return tuple(next(iter(self.parts.values()), {}))

    @cached_property
    def is_test(self) -> bool:
        """Whether the path says that they are test images."""
        return bool(_TEST.search(self.pattern))

    @property
    def is_validation(self) -> bool:
        """Whether the path says that they are images to validate on."""
        return bool(_VALIDATION.search(self.pattern))


def walk(folder: Path) -> Iterator[Path]:
    """Yields the files in a folder and in the folders in it, in order, hidden ones left out."""
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))


def other_files(paths: Iterable[Path]) -> str:
    """Returns the end of a sentence about a folder without images: what it holds instead; "" with tables alone."""
    endings = Counter(path.suffix.lower() for path in paths if path.suffix.lower() not in ("", ".csv"))
    shown = ", ".join(f"{ending} ({count})" for ending, count in endings.most_common(3))
    return f"; it holds {shown}: save images and masks as PNG or TIFF first" if endings else ""


# --- what the files hold ---------------------------------------------------------------------------------------------


def image_size(path: Path) -> tuple[int, int] | None:
    """Returns rows × columns of an image, from its head alone where it can; None where it cannot be read."""
    if not is_plain(path) and path.suffix.lower() not in (".tif", ".tiff"):
        return size_of(path)
    try:
        with catch_warnings(action="ignore"), Image.open(path) as image:  # decode says what is odd
            described = image.format != "PNG" or _PNG_TEXTS & {str(key) for key in image.info}  # else Pillow reads on
            swapped = described and image.getexif().get(_ORIENTATION, 1) >= 5
            if not swapped and not (image.format == "TIFF" and image.getexif().get(_SUBFILE_TYPE, 0)):  # a thumbnail
                return image.height, image.width
    except Exception:  # Pillow knows no 16-bit colours, and damaged files raise whatever they like
        pass
    try:
        if not is_plain(path) and (form := form_of(path)) is not None and (form.slices > 1 or form.is_huge):
            return form.rows, form.columns
        rows, columns = read_image(path).shape[:2]
        return rows, columns
    except OtherNumbers:
        return size_of(path)
    except ValueError:  # decode says what is wrong with it
        return size_of(path) if not is_plain(path) else None


def channels_of(paths: Iterable[Path]) -> int:
    """Returns 3 where one of some images has colours, else 1, also for grey images that are stored as RGB."""
    for path in evenly(paths, 20):
        try:
            image = values_of(path)
        except ValueError:
            continue
        if image.shape[2] == 3 and (image[..., :1] != image).any():
            return 3
        if image.shape[2] > 3 and (image[..., :1] != image[..., :3]).any():
            return 3
    return 1
