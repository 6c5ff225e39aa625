"""What a reader finds in a competition's raw files."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

SubsetName = Literal["train", "test"]


@dataclass(frozen=True)
class Item:
    """One image, and the texts of its masks as the competition wrote them."""

    image_id: str
    subset: SubsetName
    path: Path
    masks: tuple[str, ...] | None = None
    """One run-length text a class, in the competition's convention; None for test images."""
    row: int | None = None
    """Line of the mask table that the texts stand in."""
    group: str | None = None
    extra: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """Something wrong with the raw files: where, and one sentence."""

    file: str
    row: int | None
    message: str
    image_id: str | None = None
    """The training image that can be left out to go on; None when nothing can be left out."""

    def __str__(self) -> str:
        where = self.file if self.row is None else f"{self.file} row {self.row}"
        return f"{where}: {self.message}"


@dataclass(frozen=True)
class Listing:
    """All images of a competition, training first, and all faults found so far."""

    items: list[Item]
    faults: list[Fault]
