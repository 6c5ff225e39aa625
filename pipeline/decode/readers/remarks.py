"""What was noticed while files were read: nothing is wrong with them, but the person should know.

Readers note it, whichever thread they run in; decode collects it and says each kind once, with its count.
"""

from collections import defaultdict
from collections.abc import Collection, Set
from pathlib import Path
from threading import Lock
from typing import Literal

Remark = Literal["turned", "white_is_zero", "frames", "clipped"]
"""The pixels are stored turned or mirrored; a TIFF's 0 is white; the first of several frames was read;
values outside value_range were clipped."""
_noted: dict[Remark, set[Path]] = defaultdict(set)
_lock = Lock()


def note(remark: Remark, path: Path) -> None:
    """Keeps that a file has this property."""
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
    """Forgets all remarks, before files are read anew."""
    with _lock:
        _noted.clear()


def sentences(images: Set[Path], upright: bool, settled: bool = False) -> list[str]:
    """Returns what was noted of the files read since `forget`, one sentence a kind.

    Args:
        images: the image files; all others are masks.
        upright: whether turned images are read as viewers show them.
        settled: whether the sizes of mask files show that this is right.
    """
    turned, frames, clipped = (noted(kind) & images for kind in ("turned", "frames", "clipped"))
    masks = noted("white_is_zero") - images
    texts = []
    if turned:
        how = "upright, as viewers show them" if upright else "as stored, not as viewers show them"
        if settled:
            how += ", as the sizes of the masks say"
        elif upright:
            how += (
                "; if the masks were drawn on the pixels as stored, set `orientation: stored` in the competition's YAML"
            )
        texts.append(
            f"{_counted(turned, 'image is', 'images are')} stored turned or mirrored (EXIF orientation) and read {how}"
        )
    if masks:
        texts.append(
            f"{_counted(masks, 'mask file is', 'mask files are')} WhiteIsZero and read as viewers show them, where the "
            "stored 0 is white; in such masks ImageJ means the stored 255 as foreground: look at the pictures of the "
            "report, and invert the files if foreground and background are swapped"
        )
    if frames:
        texts.append(f"{_counted(frames, 'image has', 'images have')} several frames, of which the first is read")
    if clipped:
        texts.append(f"{_counted(clipped, 'image has', 'images have')} values outside `value_range`, which are clipped")
    return texts


def _counted(paths: Collection[Path], one: str, several: str) -> str:
    return f"{len(paths)} {one if len(paths) == 1 else several}"
