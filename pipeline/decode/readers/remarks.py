"""What was noticed while files were read: nothing is wrong with them, but the person should know.

Readers note it, whichever thread they run in; decode collects it and says each kind once, with its count.
"""

from collections import defaultdict
from pathlib import Path
from threading import Lock
from typing import Literal

Remark = Literal["turned", "white_is_zero", "frames"]
"""The pixels are stored turned or mirrored; a TIFF's 0 is white; the first of several frames was read."""
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
