"""Finds text files that list the training and the test images, as those of PASCAL VOC."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.tables import normal_form
from pipeline.new.guess.base import Files

_TRAIN, _TEST = ("trainval", "train", "training"), ("test", "testing", "val", "valid", "validation")
LARGEST = 2**26
"""Maximum size in bytes of a text file that is read."""


@dataclass(frozen=True)
class Lists:
    """The files that name the images of a subset, relative to the folder of raw files."""

    train: str | None = None
    test: str | None = None
    counts: tuple[int, int] = (0, 0)

    @property
    def files(self) -> set[str]:
        """The names of the files."""
        return {name for name in (self.train, self.test) if name}


def find_lists(folder: Path, paths: Iterable[Path], images: Files) -> Lists:
    """Returns the lists of training and test images, if both list images of the same group and have none in common."""
    if images.id or "*" in images.pattern:
        return Lists()
    by_folder: dict[Path, dict[str, set[str]]] = {}
    for path in paths:
        if path.suffix.lower() == ".txt" and path.stem.lower() in (*_TRAIN, *_TEST) and path.stat().st_size < LARGEST:
            names = _named(path, images)
            if names:
                by_folder.setdefault(path.parent, {})[path.name] = names
    for place, lists in by_folder.items():
        stems = {Path(name).stem.lower(): name for name in lists}
        for train in (stems[stem] for stem in _TRAIN if stem in stems):
            for test in (stems[stem] for stem in _TEST if stem in stems):
                if not lists[train] & lists[test]:
                    head = place.relative_to(folder)
                    counts = len(lists[train]), len(lists[test])
                    return Lists((head / train).as_posix(), (head / test).as_posix(), counts)
    return Lists()


def _named(path: Path, images: Files) -> set[str]:
    """The images that the lines of a file name; empty if more than a tenth of the lines name none."""
    try:
        lines = [line.split()[0] for line in normal_form(path.read_text("utf-8-sig")).splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError):
        return set()
    names = {Path(line).name for line in lines}
    known = {name for name in names if name in images.paths}
    known |= {Path(name).stem for name in names if Path(name).stem in images.paths}
    return known if len(known) > 0.9 * len(names) else set()
