"""Reader for the Oxford-IIIT Pet layout: photographs, trimaps (1 pet, 2 background, 3 border) and official lists."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.config.places import name_fault
from pipeline.core.config.raw_layouts import OxfordPet
from pipeline.core.errors import PipelineError
from pipeline.core.tables import normal_form
from pipeline.core.version import program
from pipeline.decode.readers.base import (
    SUBSETS,
    Fault,
    Item,
    Listing,
    MaskFault,
    Masks,
    SubsetName,
    counted,
    read_mask,
    repeated_ids,
)
from pipeline.decode.readers.columns import group_of
from pipeline.decode.readers.files import read_image
from pipeline.decode.readers.names import as_on_disk
from pipeline.masks.geometry import IGNORE

IMAGES, TRIMAPS = "images", "annotations/trimaps"
LISTS: dict[SubsetName, str] = {"train": "annotations/trainval.txt", "test": "annotations/test.txt"}
PET, BACKGROUND, BORDER = 1, 2, 3
READINGS = {"foreground": 1, "background": 0, "ignore": IGNORE}


def list_items(competition: OxfordPet, folder: Path, subsets: Sequence[SubsetName] = SUBSETS) -> Listing:
    """Returns all images in the lists of these subsets in `folder`, and the faults of the listing.

    Only images in the lists are used. Test images have masks too if they are scored.

    Raises:
        PipelineError: a folder or a list is missing, or a line of a list has the wrong format.
    """
    needed = dict.fromkeys(path for subset in subsets for path in raw_files(competition, folder, subset))
    missing = [path.relative_to(folder).as_posix() for path in needed if not path.exists()]
    if missing:
        raise PipelineError(
            f"{folder} lacks {', '.join(missing)}; expected {IMAGES}/*.jpg, {TRIMAPS}/*.png, "
            f"{' and '.join(LISTS.values())} of {competition.title}: run `{program()} download "
            f"{competition.name}`, or copy the files there."
        )
    nothing: tuple[list[Item], list[Fault]] = ([], [])
    train, faults = _subset_items(competition, "train", folder) if "train" in subsets else nothing
    test, test_faults = _subset_items(competition, "test", folder) if "test" in subsets else nothing
    return Listing(train + test, faults + test_faults + repeated_ids(train + test, faults, competition.images_together))


def raw_files(competition: OxfordPet, folder: Path, subset: SubsetName) -> tuple[Path, ...]:
    """Returns the list of a subset, the folder of images and, if its masks are read, the folder of trimaps."""
    with_truth = subset == "train" or competition.test.evaluate
    return tuple(folder / name for name in (IMAGES, *([TRIMAPS] if with_truth else []), LISTS[subset]))


def opener(competition: OxfordPet, folder: Path) -> Callable[[Any], np.ndarray]:
    """Returns a function that reads the image (H, W, 3) uint8 of a row of images.parquet."""
    return lambda row: _read_rgb(folder / row["path"])


def _subset_items(competition: OxfordPet, subset: SubsetName, folder: Path) -> tuple[list[Item], list[Fault]]:
    file = LISTS[subset]
    with_truth = subset == "train" or competition.test.evaluate
    first: dict[str, int] = {}
    items: list[Item] = []
    faults: list[Fault] = []
    for row, name, extra in _read_list(folder, file):
        droppable = name if subset == "train" else None
        if first.setdefault(name, row) != row:
            faults.append(Fault(file, row, f"image {name} is already in row {first[name]}", droppable))
            continue
        image, trimap = f"{IMAGES}/{name}.jpg", f"{TRIMAPS}/{name}.png"
        needed = {"image": image} | ({"trimap": trimap} if with_truth else {})
        missing = [
            Fault(file, row, f"image {name} has no {kind}, {path} does not exist", droppable)
            for kind, path in needed.items()
            if not as_on_disk(folder, path).exists()
        ]
        if missing:
            faults += missing
            continue
        read_masks = partial(_masks, competition, folder, name, trimap) if with_truth else None
        group = group_of(competition, name, extra) if subset == "train" else None
        image = as_on_disk(folder, image).relative_to(folder).as_posix()
        items.append(Item(name, subset, image, partial(_read_rgb, as_on_disk(folder, image)), read_masks, group, extra))
    return items, faults


def _read_list(folder: Path, file: str) -> list[tuple[int, str, dict[str, str]]]:
    """Returns row, name and further columns of each image in a list."""
    try:
        lines = normal_form((folder / file).read_text(encoding="utf-8-sig")).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PipelineError(f"{folder / file} is not a readable list: {' '.join(str(error).split())}.") from None
    entries = []
    for row, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, *numbers = line.split()
        if len(numbers) != 3 or not all(number.isdecimal() for number in numbers) or name_fault(name):
            raise PipelineError(
                f"{folder / file} row {row} is {line.strip()!r}; expected a name and three numbers (class, species, "
                "breed), e.g. `Abyssinian_1 1 1 1`: correct the line."
            )
        entries.append((row, name, dict(zip(("class_id", "species", "breed"), numbers, strict=True))))
    if not entries:
        raise PipelineError(f"{folder / file} lists no image; expected lines such as `Abyssinian_1 1 1 1`.")
    return entries


def _read_rgb(path: Path) -> np.ndarray:
    image = read_image(path, orientation="stored")  # the version on which the trimaps were drawn
    if image.dtype != np.uint8:
        raise ValueError(f"holds {image.dtype} pixels; expected uint8")
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image


def _masks(competition: OxfordPet, folder: Path, name: str, file: str, shape: tuple[int, int]) -> Masks:
    trimap = read_mask(folder, file, shape, "stored")
    values = trimap[..., 0]
    if (trimap != values[..., None]).any():
        raise MaskFault(file, None, f"trimap of image {name} has colours; expected one channel, or equal channels")
    unknown = ~np.isin(values, (PET, BACKGROUND, BORDER))
    if unknown.any():
        expected = f"expected {PET} (pet), {BACKGROUND} (background) and {BORDER} (border)"
        raise MaskFault(file, None, f"trimap of image {name} holds {counted(values[unknown])}; {expected}")
    mask = (values == PET).astype(np.uint8)
    mask[values == BORDER] = READINGS[competition.border]
    return Masks(mask[None])
