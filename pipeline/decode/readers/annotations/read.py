"""Reading of annotation files: their format, the images that they describe, and the masks of an image."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.config.raw_files import REST, Subset, values_of
from pipeline.core.config.raw_layouts import RleCsv
from pipeline.core.errors import PipelineError
from pipeline.core.files import require_regular
from pipeline.core.tables import normal_form
from pipeline.decode.readers.annotations import coco, polygons
from pipeline.decode.readers.annotations.shapes import Annotated, Box, Region, mask_of
from pipeline.decode.readers.base import Fault, MaskFault, Masks, SubsetName, listed
from pipeline.decode.readers.columns import class_numbers, file_finder
from pipeline.decode.readers.files import natural
from pipeline.decode.readers.names import ImageFiles, as_on_disk, fixed_part, glob_pattern, pattern_expression
from pipeline.masks import rle
from pipeline.masks.geometry import IGNORE

FORMATS = {"COCO": (coco.fits, coco.read), **polygons.FORMATS}


def format_of(data: Any) -> str | None:
    """Returns the name of the format of a JSON value; None if it has none of the known formats."""
    return next((name for name, (fits, _) in FORMATS.items() if fits(data)), None)


def read_file(path: Path, file: str) -> list[Annotated]:
    """Returns all images in a file of annotations, with their regions.

    Args:
        path: the file.
        file: the name of the file in messages.

    Raises:
        PipelineError: the file cannot be read, is not JSON, has no known format, or contains an error.
    """
    images: list[Annotated] = []
    for row, data in _values(path, file):
        where = file if row is None else f"{file} row {row}"
        if data in ([], {}):  # an image without regions
            images.append(Annotated(where))
            continue
        name = format_of(data)
        if name is None:
            known = ", ".join(FORMATS)
            keys = f" with the keys {listed(list(data))}" if isinstance(data, dict) else ""
            raise PipelineError(
                f"{where} holds a {type(data).__name__}{keys} and no annotations; expected one of the formats {known}."
            )
        try:
            images += FORMATS[name][1](where, data)
        except ValueError as error:
            raise PipelineError(f"{where}: {error}; correct it.") from None
        except (AttributeError, KeyError, TypeError, IndexError) as error:
            raise PipelineError(
                f"{where} does not follow the format {name} ({type(error).__name__}: {error})."
            ) from None
    return images


def _values(path: Path, file: str) -> Iterator[tuple[int | None, Any]]:
    """Yields the JSON values of a file with their row numbers: one per row for JSON lines, otherwise the single value
    with None."""
    try:
        require_regular(path)
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise PipelineError(f"{path} does not exist; `masks` in the competition's YAML names it.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PipelineError(f"{path} is not a readable text file: {' '.join(str(error).split())}.") from None
    rows = path.suffix.lower() in (".jsonl", ".ndjson")
    parts = enumerate(text.splitlines(), start=1) if rows else [(None, text)]
    for row, part in parts:
        if rows and not part.strip():
            continue
        try:
            yield row, json.loads(part)
        except (ValueError, RecursionError) as error:
            where = file if row is None else f"{file} row {row}"
            raise PipelineError(f"{where} is not JSON: {error}.") from None


# --- images ----------------------------------------------------------------------------------------------------------


def read_annotations(
    competition: RleCsv, subset: SubsetName, folder: Path, files: ImageFiles
) -> tuple[dict[str, Annotated], list[Fault], list[str]]:
    """Returns the annotations of the images of a subset by image id, their faults, and remarks about them.

    Raises:
        PipelineError: a file cannot be read.
    """
    settings: Subset = getattr(competition, subset)
    pattern = settings.annotations or ""
    by_id: dict[str, Annotated] = {}
    faults: list[Fault] = []
    unknown: list[Annotated] = []
    for image_id, annotated in _by_image(settings, pattern, folder, files):
        if image_id is None:
            unknown.append(annotated)
        elif image_id in by_id:
            text = f"image {image_id} is already in {by_id[image_id].file}"
            faults.append(Fault(annotated.file, None, text, image_id if subset == "train" else None))
        else:
            by_id[image_id] = annotated
    faults += [
        fault
        for image_id, annotated in by_id.items()
        for fault in _label_faults(competition, subset, image_id, annotated)
    ]
    texts = []
    if unknown:
        what = f"{len(unknown)} annotated images have no file that matches {settings.images}"
        texts.append(f"{what}, for instance {unknown[0].image or unknown[0].file}: are they in another folder?")
    if not by_id and files.paths:
        raise PipelineError(
            f"{pattern} describes none of the images that match {settings.images}; "
            f"{what if unknown else 'it contains no images'}: correct `masks` or `images`."
        )
    crowds = sum(region.ignored for annotated in by_id.values() for region in annotated.regions)
    if crowds:
        what = f"{crowds} regions of {pattern} are crowds" if crowds > 1 else f"1 region of {pattern} is a crowd"
        texts.append(f"{what} (iscrowd): the pixels of crowds are ignored")
    if competition.columns.absent == "fault":
        for image_id in sorted(files.paths.keys() - by_id.keys(), key=natural):
            text = (
                f"image has no annotations in {pattern}; if such images have an empty mask, set `columns: {{absent: "
                f"empty}}`"
            )
            file = files.paths[image_id].relative_to(folder).as_posix()
            faults.append(Fault(file, None, text, image_id if subset == "train" else None))
    return by_id, faults, texts


def _by_image(
    settings: Subset, pattern: str, folder: Path, files: ImageFiles
) -> Iterator[tuple[str | None, Annotated]]:
    """Yields each annotated image with its id, which is None if it has no file."""
    if "{" not in pattern:
        by_name = file_finder(files, folder)
        for annotated in read_file(as_on_disk(folder, pattern), pattern):
            image_id = by_name(annotated.image)
            yield (image_id if image_id is not None and files.has(image_id) else None), annotated
        return
    expression = pattern_expression(normal_form(pattern))
    names = list(expression.groupindex)
    by_key = {}
    for image_id in files.all_ids:
        parts = {"id": image_id, **files.parts.get(image_id, {})}
        parts |= {"id": Path(image_id).stem} if "{stem}" in pattern else {}
        by_key[tuple(parts.get(name) for name in names)] = image_id
    place = fixed_part(pattern)
    wild = re.sub(r"{\w+}", "*", Path(pattern).relative_to(place).as_posix())
    for path in sorted(as_on_disk(folder, place).glob(glob_pattern(wild))):
        name = normal_form(path.relative_to(folder).as_posix())
        match = expression.fullmatch(name)
        if match is None or path.name.startswith("."):
            continue
        image_id = by_key.get(tuple(match[name] for name in names))
        images = read_file(path, name)
        regions = [region for annotated in images for region in annotated.regions]
        size = next((annotated.size for annotated in images if annotated.size), None)
        known = image_id is not None and files.has(image_id)
        yield (image_id if known else None), Annotated(name, regions, size)


# --- masks -----------------------------------------------------------------------------------------------------------


def _number(competition: RleCsv, numbers: dict[str, int], region: Region) -> int | None:
    """Returns the number of a region's class; IGNORE if it is ignored, None if its label is not a class."""
    ignored = [str(value) for given in competition.ignored_values for value in values_of(given)]
    if region.ignored or region.label in ignored:
        return IGNORE
    if region.label is None:
        return len(competition.classes) - 1 if len(competition.foreground) == 1 else None
    rest = [number for number, value in enumerate(competition.values or []) if value == REST]
    number = numbers.get(region.label, numbers.get(region.code or region.label))
    return rest[0] if number is None and rest else number


def _label_faults(competition: RleCsv, subset: SubsetName, image_id: str, annotated: Annotated) -> Iterator[Fault]:
    if competition.other_labels == "leave_out":
        return
    numbers, told = class_numbers(competition), set()
    for region in annotated.regions:
        if _number(competition, numbers, region) is None and region.label not in told:
            told.add(region.label)
            label = "no label" if region.label is None else f"the label {region.label!r}"
            text = (
                f"{region.name} of image {image_id} has {label}, which is no class of the YAML ({', '.join(numbers)}); "
                "`other_labels: leave_out` leaves such regions out"
            )
            yield Fault(annotated.file, None, text, image_id if subset == "train" else None)


def masks_of(
    competition: RleCsv,
    settings: Subset,
    image_id: str,
    annotated: Annotated | None,
    shape: tuple[int, int],
    box: Box | None = None,
) -> Masks:
    """Returns the masks of an image, which are empty if it has no annotations.

    Args:
        competition: the competition.
        settings: the settings of the image's subset.
        image_id: the id of the image.
        annotated: its annotations.
        shape: its height and width.
        box: the part of the image for which masks are returned; None: the whole image.

    Raises:
        MaskFault: the annotations belong to an image of another size, or run lengths are not a mask of this image.
    """
    top, left, bottom, right = box or (0, 0, *shape)
    planes = np.zeros((len(competition.classes), bottom - top, right - left), np.uint8)
    instances: list[list[str]] = [[] for _ in competition.classes]
    multiclass = competition.kind == "multiclass"
    planes[0] = multiclass  # start with background, which regions then cover
    ignored = np.zeros(planes.shape[1:], bool)
    if annotated is not None and annotated.size not in (None, shape):
        text = f"annotations of image {image_id} are for the size {annotated.size}, and the image is {shape}"
        raise MaskFault(annotated.file, None, f"{text} (rows, columns)")
    numbers = class_numbers(competition)
    for region in annotated.regions if annotated else ():
        number = _number(competition, numbers, region)
        if number is None:
            continue
        try:
            outlines = settings.outlines if settings.outlines is not None else not _is_coco(region)
            mask = mask_of(region, shape, outlines, box)
        except rle.RleError as error:
            raise MaskFault(
                annotated.file if annotated else "", None, f"{region.name} of image {image_id}: {error}"
            ) from None
        if number == IGNORE:
            ignored |= mask == 1
            continue
        if multiclass:
            planes[:, mask == 1] = 0
        planes[number] |= mask
        if mask.any():
            instances[number].append(rle.encode(mask))
    covered = planes[1:].any(0) if multiclass else planes.any(0)
    planes[:, ignored & ~covered] = IGNORE
    return Masks(planes, tuple(tuple(texts) for texts in instances))


def _is_coco(region: Region) -> bool:
    return region.code is not None
