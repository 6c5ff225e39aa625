"""Remarks about files that the user should know about although they are no faults.

Readers note them while reading, in any thread. decode collects them and prints each kind once, with the number of
files.
"""

from collections import defaultdict
from collections.abc import Collection, Set
from pathlib import Path
from threading import Lock
from typing import Literal

Remark = Literal["turned", "white_is_zero", "frames", "clipped"]
"""`turned`: the pixels are stored rotated or mirrored. `white_is_zero`: in a TIFF file, 0 is white. `frames`: only the
first of several frames was read. `clipped`: values outside value_range were clipped."""
_noted: dict[Remark, set[Path]] = defaultdict(set)
_lock = Lock()


def note(remark: Remark, path: Path) -> None:
    """Notes that a file has this property."""
    with _lock:
        _noted[remark].add(path)


def has(remark: Remark, path: Path) -> bool:
    """Returns whether this file was read and has this property."""
    with _lock:
        return path in _noted[remark]


def noted(remark: Remark) -> frozenset[Path]:
    """Returns the files that were read so far and have this property."""
    with _lock:
        return frozenset(_noted[remark])


def forget() -> None:
    """Deletes all remarks, before files are read again."""
    with _lock:
        _noted.clear()


def sentences(images: Set[Path], upright: bool, settled: bool = False) -> list[str]:
    """Returns the remarks about the files read since `forget`, one sentence per kind.

    Args:
        images: the image files; all others are masks.
        upright: whether the EXIF orientation was applied.
        settled: whether the sizes of mask files prove that this is right.
    """
    turned, frames, clipped = (noted(kind) & images for kind in ("turned", "frames", "clipped"))
    masks, turned_masks = noted("white_is_zero") - images, noted("turned") - images
    texts = []
    if turned:
        how = "upright, as viewers show them" if upright else "as stored, not as viewers show them"
        if settled:
            how += ", which agrees with the sizes of the masks"
        elif upright:
            how += (
                "; if the masks were drawn on the pixels as stored, set `orientation: stored` in the competition's YAML"
            )
        texts.append(
            f"{_counted(turned, 'image is', 'images are')} stored turned or mirrored (EXIF orientation) and read {how}"
        )
    if turned_masks:
        how = "upright, as viewers show them" if upright else "as stored, not as viewers show them"
        texts.append(
            f"{_counted(turned_masks, 'mask file is', 'mask files are')} stored turned or mirrored (EXIF orientation) "
            f"and read {how}"
        )
    if masks:
        texts.append(
            f"{_counted(masks, 'mask file is', 'mask files are')} WhiteIsZero and read as viewers show them, where the "
            "stored 0 is white. In such masks, ImageJ uses the stored 255 for foreground: look at the pictures in the "
            "report, and invert the files if foreground and background are swapped"
        )
    if frames:
        texts.append(f"{_counted(frames, 'image has', 'images have')} several frames, of which only the first is read")
    if clipped:
        texts.append(f"{_counted(clipped, 'image has', 'images have')} values outside `value_range`, which are clipped")
    return texts


def _counted(paths: Collection[Path], one: str, several: str) -> str:
    return f"{len(paths)} {one if len(paths) == 1 else several}"
