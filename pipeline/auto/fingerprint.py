"""The fingerprint of a competition: the properties of its data, its metric and this machine that decide on a recipe.

It is computed from a sample of the training images, read by the competition's reader. Nothing has to be decoded before.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline.auto.machine import Machine
from pipeline.core.config.competition import Competition, Kind
from pipeline.core.config.raw_images import ChannelSettings
from pipeline.core.config.raw_layouts import RleCsv
from pipeline.core.errors import PipelineError
from pipeline.decode.readers.base import Item, Listing, Masks
from pipeline.decode.readers.files import evenly
from pipeline.decode.readers.registry import reader_of
from pipeline.masks.metrics import named

SAMPLE = 300
"""Maximum number of training images that are read."""
SECONDS = 10.0
"""After this time no further images are read, because large images take long."""
STRIDES = 20
"""The sample is read in this many passes, each of which is spread over all images, so that it may end early."""
FEWEST = 8
"""Number of images that are read even if it takes longer."""


@dataclass(frozen=True)
class Fingerprint:
    """What the choice of a recipe depends on. Shares are between 0 and 1; sides and areas are in pixels of the raw
    images."""

    kind: Kind
    classes: tuple[str, ...]
    metric: str
    scores_objects: bool
    """Whether the metric scores objects one by one."""
    by_image: bool
    """Whether the metric scores each image by itself, so that a wrong pixel in an empty image costs the whole score of
    that image."""
    images: int
    """Number of training images."""
    sampled: int
    """Number of training images that were read."""
    groups: int | None
    """Number of groups; None if the images have none."""
    rows: int
    columns: int
    """Rows and columns of the images: medians."""
    one_size: bool
    """Whether all images that were read have the size that the competition guarantees (`shape`)."""
    channels: int
    """Number of channels of the images; 1 for grey images that are stored with three equal channels."""
    photographs: bool
    """Whether the channels are red, green and blue, and images have colours and 8 bits per value."""
    eight_bits: bool
    """Whether pixel values have 8 bits."""
    windows: bool = False
    """Whether huge images are cut into windows, which are then the images."""
    empty_share: float = 0.0
    """Share of the images without foreground."""
    mask_share: float = 0.0
    """Median share of an image that is foreground, over the images with foreground."""
    regions: float = 0.0
    """Median number of connected regions per image with foreground."""
    object_share: float = 0.0
    """Side of a typical object as a share of the image's side: median over images of the square root of the
    area-weighted median area of their regions."""
    class_images: dict[str, float] = field(default_factory=dict)
    """Share of the images in which each class occurs."""
    class_pixels: dict[str, float] = field(default_factory=dict)
    """Share of all pixels of each class."""
    instances: bool = False
    """Whether the raw files distinguish the objects of an image."""
    touching: float = 0.0
    """Share of the objects that are part of a region with other objects."""
    forbids_pretrained: str = ""
    """Why the rules forbid pretrained weights; "" if they do not."""
    ignored_class: str = ""
    """The class that is not scored; "" if there is none."""
    machine: Machine = Machine()

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the images."""
        return self.rows, self.columns

    def to_json(self) -> dict[str, Any]:
        """Returns the fingerprint as a JSON object."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """Yields a short description for a person."""
        groups = "" if self.groups is None else f" of {counted(self.groups, 'group')}"
        colours = "photographs" if self.photographs else counted(self.channels, "channel")
        sizes = f"{self.rows}×{self.columns}" + ("" if self.one_size else " (median)")
        yield f"{counted(self.images, 'training image')}{groups}, {sizes}, {colours}"
        masks = "all masks are empty"
        if self.empty_share < 1:
            masks = (
                f"{percent(self.empty_share)} of the masks are empty; the others cover {percent(self.mask_share)} of "
                f"the image (median), in {self.regions:g} region{'s' * (self.regions != 1)}"
            )
        yield f"{len(self.classes)} class{'es' * (len(self.classes) != 1)} ({self.kind}); {masks}"
        yield f"metric {self.metric}; {self.machine.title}"


def percent(share: float) -> str:
    """Returns a share as a text: whole per cents, or with one digit more than needed to tell it from 0 and 100 %."""
    if 0 < share < 0.01:
        return f"{100 * share:.1g} %"
    if 0.995 <= share < 1:
        return f"{min(100 * share, 99.9):.1f} %"
    return f"{100 * share:.0f} %"


def counted(number: int, word: str) -> str:
    """Returns a number with a noun, which gets an s unless the number is 1."""
    return f"{number} {word}{'s' * (number != 1)}"


def measure(
    competition: Competition, folder: Path, machine: Machine, listing: Listing | None = None, sample: int = SAMPLE
) -> Fingerprint:
    """Returns the fingerprint of a competition.

    Images and masks that cannot be read are left out; decode reports them.

    Args:
        competition: the competition.
        folder: the folder of its raw files.
        machine: where the recipe will be trained.
        listing: all images of the competition; None: they are listed here.
        sample: maximum number of training images that are read.

    Raises:
        PipelineError: the raw files cannot be listed, or no training image and mask can be read.
    """
    listing = listing or reader_of(competition).list_items(competition, folder, ("train",))
    items = [item for item in listing.items if item.subset == "train" and item.read_masks]
    seen = list(_looked_at(evenly(items, sample), competition))
    if not seen:
        fault = f": {listing.faults[0]}" if listing.faults else ""
        raise PipelineError(
            f"No training image of {competition.name} can be read together with its mask, so no recipe can be chosen "
            f"for it{fault}."
        )
    groups = {item.group for item in items if item.group is not None}
    metric = named(competition.metric)
    return Fingerprint(
        competition.kind,
        tuple(competition.classes),
        competition.scored_by,
        scores_objects=metric.instances,
        by_image=metric.by_image and competition.metric_file is None,
        images=len(items),
        sampled=len(seen),
        groups=len(groups) if groups else None,
        windows=isinstance(competition, RleCsv) and competition.windows is not None,
        forbids_pretrained=competition.forbids_pretrained or "",
        ignored_class=competition.ignore_class or "",
        machine=machine,
        **_of_images(seen, competition),
        **_of_masks(seen, competition),
    )


@dataclass(frozen=True)
class _Seen:
    """The properties of one image."""

    shape: tuple[int, int]
    channels: int
    coloured: bool
    eight_bits: bool
    areas: np.ndarray
    """Pixels of each class (C,)."""
    regions: np.ndarray
    """Areas of the connected regions of the foreground, in no order."""
    objects: int | None
    """Number of objects; None if the raw files do not distinguish them."""


def _looked_at(items: list[Item], competition: Competition) -> Iterator[_Seen]:
    deadline = time.monotonic() + SECONDS
    spread = [item for start in range(STRIDES) for item in items[start::STRIDES]]
    for number, item in enumerate(spread):
        if number >= FEWEST and time.monotonic() > deadline:
            return
        assert item.read_masks is not None  # measure leaves out images without masks
        try:
            image = item.read_image()
            yield _seen(image, item.read_masks((image.shape[0], image.shape[1])), competition)
        except ValueError:
            continue


def _seen(image: np.ndarray, masks: Masks, competition: Competition) -> _Seen:
    planes = (masks.planes == 1).astype(np.uint8)
    foreground = [competition.classes.index(name) for name in competition.foreground]
    regions = [_region_areas(planes[index]) for index in foreground]
    objects = None if masks.instances is None else sum(len(masks.instances[index]) for index in foreground)
    colours = image[..., :3]
    return _Seen(
        (image.shape[0], image.shape[1]),
        image.shape[2],
        colours.shape[2] == 3 and bool((colours[..., :1] != colours).any()),
        image.dtype == np.uint8,
        planes.sum((1, 2), dtype=np.int64),
        np.concatenate(regions) if regions else np.zeros(0, np.int64),
        objects,
    )


def _region_areas(plane: np.ndarray) -> np.ndarray:
    count, _, statistics, _ = cv2.connectedComponentsWithStats(plane, connectivity=8)
    return statistics[1:count, cv2.CC_STAT_AREA].astype(np.int64)


def _of_images(seen: list[_Seen], competition: Competition) -> dict[str, Any]:
    shapes = np.array([image.shape for image in seen])
    stored, eight_bits = max(image.channels for image in seen), all(image.eight_bits for image in seen)
    settings = getattr(competition, "channels", None)
    are_colours = stored == 3 and (settings in (None, 3) or settings == ChannelSettings())
    coloured = any(image.coloured for image in seen)
    rows, columns = np.median(shapes, axis=0).round().astype(int)
    return {
        "rows": int(rows),
        "columns": int(columns),
        "one_size": competition.shape is not None and len(np.unique(shapes, axis=0)) == 1,
        "channels": 1 if are_colours and not coloured else stored,
        "photographs": are_colours and coloured and eight_bits,
        "eight_bits": eight_bits,
    }


def _of_masks(seen: list[_Seen], competition: Competition) -> dict[str, Any]:
    areas = np.stack([image.areas for image in seen])
    sizes = np.array([image.shape[0] * image.shape[1] for image in seen])
    filled = [(image, size) for image, size in zip(seen, sizes, strict=True) if len(image.regions)]
    objects = [(image.objects, len(image.regions)) for image in seen if image.objects]
    count = sum(number for number, _ in objects)
    apart = sum(min(number, regions) for number, regions in objects)
    sides = [np.sqrt(_middle(image.regions) / size) for image, size in filled]
    covered = [image.regions.sum() / size for image, size in filled]
    names = competition.classes
    return {
        "empty_share": _rounded(1 - len(filled) / len(seen)),
        "mask_share": _rounded(np.median(covered) if covered else 0),
        "regions": float(np.median([len(image.regions) for image, _ in filled]) if filled else 0),
        "object_share": _rounded(np.median(sides) if sides else 0),
        "class_images": dict(zip(names, map(_rounded, (areas > 0).mean(0)), strict=True)),
        "class_pixels": dict(zip(names, map(_rounded, areas.sum(0) / sizes.sum()), strict=True)),
        "instances": any(image.objects is not None for image in seen),
        "touching": _rounded(1 - apart / count if count else 0),
    }


def _middle(areas: np.ndarray) -> float:
    """Returns the area-weighted median: half of all pixels lie in regions of at least this area. Specks of a few pixels
    hardly change it."""
    ordered = np.sort(areas)
    return float(ordered[np.searchsorted(ordered.cumsum(), ordered.sum() / 2)])


def _rounded(share: float) -> float:
    return float(f"{share:.4g}")
