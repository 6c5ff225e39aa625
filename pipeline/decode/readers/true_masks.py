"""Reading of the true masks of an image, from run lengths, mask files or annotations, according to the competition's
YAML."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.core.config.raw_files import REST, THRESHOLD, AnyOf, Subset, Value, values_of
from pipeline.core.config.raw_layouts import RleCsv
from pipeline.decode.formats.numpy_arrays import load
from pipeline.decode.readers.annotations.read import masks_of
from pipeline.decode.readers.annotations.shapes import Annotated
from pipeline.decode.readers.base import WHOLE, MaskFault, Masks, Part, counted, read_mask
from pipeline.decode.readers.columns import class_labels
from pipeline.decode.readers.mask_files import MaskFiles, mask_key
from pipeline.decode.readers.names import ImageFiles, as_on_disk, relative_name
from pipeline.decode.readers.rows import Rows
from pipeline.masks import rle
from pipeline.masks.geometry import IGNORE
from pipeline.masks.windows import Box

MOST_INSTANCES = 4096
"""Maximum number of instances in a mask image. A file with more distinct values is probably a picture."""
NOISE = 16
"""Pixels of a black picture may have grey values below this after JPEG encoding."""


@dataclass(frozen=True)
class MaskSources:
    """The possible sources of the masks of an image."""

    images: ImageFiles
    """The image files of the subset."""
    files: MaskFiles
    rows: Rows
    """The rows of the image in a table of run lengths."""
    annotated: Annotated | None
    """The annotations of the image."""


def masks_reader(
    competition: RleCsv,
    settings: Subset,
    folder: Path,
    image_id: str,
    sources: MaskSources,
    part: Part = WHOLE,
    size: tuple[int, int] | None = None,
) -> Callable[[tuple[int, int]], Masks] | None:
    """Returns a function that reads the masks of an image, given its height and width; it may raise MaskFault. None if
    the masks are not known.

    Args:
        competition: the competition.
        settings: the settings of the subset.
        folder: the competition's folder.
        image_id: the name of the image in the table of masks or in the paths of mask files.
        sources: the possible sources of its masks.
        part: the part of the mask files that is the mask.
        size: rows × columns of the whole image, if the image is a window of it.
    """
    if settings.masks is None:
        return None
    window = None if size is None or part.box is None else (part.box, size)
    if settings.annotations:
        return partial(_annotated, competition, settings, image_id, sources.annotated, window)
    if settings.mask_table:
        file = Path(settings.masks).name
        return partial(_masks_of_rows, competition, file, image_id, sources.rows.texts, window=window)
    key, pattern = mask_key(settings, image_id, sources.images), settings.masks
    values = class_labels(competition) if "{class}" in pattern else [""]
    files = [sources.files.by_key.get((key, value), []) for value in values]
    paths = [[relative_name(path, folder) for path in of_class] for of_class in files]
    parts = {"id": image_id, "stem": Path(image_id).stem, **sources.images.parts.get(image_id, {})}
    for name, text in parts.items():
        pattern = pattern.replace(f"{{{name}}}", text)
    return partial(_masks_of_files, competition, settings, folder, pattern, paths, part=part)


def _annotated(
    competition: RleCsv,
    settings: Subset,
    image_id: str,
    annotated: Annotated | None,
    window: tuple[Box, tuple[int, int]] | None,
    shape: tuple[int, int],
) -> Masks:
    box, whole = window or (None, shape)
    return masks_of(competition, settings, image_id, annotated, whole, box)


def _masks_of_rows(
    competition: RleCsv,
    file: str,
    image_id: str,
    texts: list[tuple[int, int, str]],
    shape: tuple[int, int],
    window: tuple[Box, tuple[int, int]] | None = None,
) -> Masks:
    planes = np.zeros((len(competition.classes), *shape), np.uint8)
    instances: list[list[str]] = [[] for _ in competition.classes]
    convention, several = rle.convention_of(competition.rle), competition.rle.several
    has_instances = competition.columns.row == "instance" or several is not None
    for row, number, text in texts:
        for instance in text.split(several) if several else [text]:
            try:
                mask = (
                    rle.decode(instance, shape, convention)
                    if window is None
                    else rle.decode_box(instance, *window, convention)
                )
            except rle.RleError as error:
                raise MaskFault(file, row, f"mask of image {image_id}: {error}") from None
            planes[number] |= mask
            if has_instances and mask.any():
                instances[number].append(rle.encode(mask))
    return Masks(planes, tuple(tuple(of_class) for of_class in instances) if has_instances else None)


def _masks_of_files(
    competition: RleCsv,
    settings: Subset,
    folder: Path,
    pattern: str,
    paths: list[list[str]],
    shape: tuple[int, int],
    part: Part = WHOLE,
) -> Masks:
    """Returns the masks of an image from its files; `paths` holds the files of each class, or those with all classes.
    In the pattern, the id is already filled in."""
    if "{class}" not in pattern and competition.values is not None:
        return _masks_of_class_maps(competition, settings, folder, paths[0] or [pattern], shape, part)
    planes = np.zeros((len(competition.classes), *shape), np.uint8)
    instances: list[tuple[str, ...]] = []
    may_lack = competition.columns.absent == "empty"
    for number, value in enumerate(class_labels(competition) if "{class}" in pattern else [""]):
        names = paths[number] or [pattern.replace("{class}", value)]
        names = [name for name in names if "*" not in name]
        drawn: list[np.ndarray] = []
        for name in names:
            if settings.instances == "planes":
                drawn += _planes(folder, name, shape, may_lack, part)
            elif settings.instances:
                drawn += _numbered(competition, folder, name, shape, may_lack, part)
            else:
                drawn.append(_one_class(competition, folder, name, shape, may_lack, settings.threshold, part))
        for mask in drawn:
            planes[number] |= mask
        instances.append(tuple(rle.encode(mask) for mask in drawn if mask.any()))
    if "*" in pattern and not may_lack and not any(paths):
        raise MaskFault(pattern, None, "this image has no mask file")
    return Masks(planes, tuple(instances) if "*" in pattern or settings.instances else None)


def _masks_of_class_maps(
    competition: RleCsv,
    settings: Subset,
    folder: Path,
    names: list[str],
    shape: tuple[int, int],
    part: Part,
) -> Masks:
    """Returns the masks from files that hold all classes. The masks of several files are combined."""
    planes = np.zeros((len(competition.classes), *shape), np.uint8)
    instances: list[list[str]] = [[] for _ in competition.classes]
    lacks, each = competition.columns.absent == "empty", "*" in (settings.masks or "")
    for file in names:
        if "*" in file and not lacks:
            raise MaskFault(file, None, "this image has no mask file")
        if "*" in file or (lacks and not (folder / file).exists()):
            continue
        codes = _codes(read_mask(folder, file, shape, competition.orientation, part))
        if settings.class_times:
            for code in np.unique(codes[codes >= settings.class_times]).tolist():
                number = _class_of(competition, code // settings.class_times)
                if number is not None:
                    instances[number].append(rle.encode(codes == code))
            codes = np.where(codes >= settings.class_times, codes // settings.class_times, codes)
        of_file = _planes_of(competition, file, codes)
        for number, plane in enumerate(of_file) if each else ():
            instances[number] += [rle.encode(plane == 1)] * bool((plane == 1).any())
        planes = np.maximum(planes, of_file)
    return Masks(planes, tuple(map(tuple, instances)) if settings.class_times or each else None)


def _class_of(competition: RleCsv, code: int) -> int | None:
    """Returns the number of the class with this value in a class map; None if there is none."""
    values = enumerate(competition.values or [])
    return next((number for number, value in values if code in _codes_of(value)), None)


def _planes_of(competition: RleCsv, file: str, codes: np.ndarray) -> np.ndarray:
    """Returns a class map (h, w) of codes as planes (classes, h, w) of 0, 1 and 255."""
    values = competition.values or []
    ignored = _holds(codes, [code for value in competition.ignored_values for code in _codes_of(value)])
    planes = np.stack([_holds(codes, _codes_of(value)) for value in values]).astype(np.uint8)
    rest = [number for number, value in enumerate(values) if value == REST]
    if rest:
        planes[rest[0]] = ~planes.any(0) & ~ignored
    planes[:, ignored] = IGNORE
    known = planes.any(0) | ((codes == 0) & (competition.kind != "multiclass"))
    if not known.all():
        shown = counted(codes[~known], lambda code: _shown(int(code)))
        raise MaskFault(file, None, f"holds {shown}, which is no class of the YAML ({_known(competition)})")
    return planes


def _holds(codes: np.ndarray, wanted: list[int]) -> np.ndarray:
    return np.logical_or.reduce([codes == code for code in wanted] or [np.zeros(codes.shape, bool)])


def _codes_of(value: Value | AnyOf) -> list[int]:
    return [_code(part) for part in values_of(value) if part != REST]


def _numbered(
    competition: RleCsv, folder: Path, file: str, shape: tuple[int, int], may_lack: bool, part: Part
) -> list[np.ndarray]:
    """Returns the instances that are numbered in a mask image, each as a mask."""
    if may_lack and not (folder / file).exists():
        return []
    codes = _codes(read_mask(folder, file, shape, competition.orientation, part))
    numbers = np.unique(codes[codes != 0])
    if len(numbers) > MOST_INSTANCES:
        text = (
            f"holds {len(numbers)} distinct values, and with `instances: true` each is a separate object: is this file "
            "a picture?"
        )
        raise MaskFault(file, None, text)
    return [(codes == number).astype(np.uint8) for number in numbers]


def _planes(folder: Path, file: str, shape: tuple[int, int], may_lack: bool, part: Part) -> list[np.ndarray]:
    """Returns the instances that are stored as planes of a .npy file, each as a mask."""
    path = as_on_disk(folder, file)
    if not path.exists():
        if may_lack:
            return []
        raise MaskFault(file, None, "mask does not exist")
    try:
        array = load(path, None)
    except ValueError as error:
        raise MaskFault(file, None, f"mask {error}") from None
    planes = array.reshape(-1, *array.shape[-2:]) if array.ndim in (2, 3) else array
    if part.box is not None and planes.ndim == 3:
        top, left, bottom, right = part.box
        planes = planes[:, top:bottom, left:right]
    if planes.shape[1:] != shape:
        expected = f"expected ({shape[0]}, {shape[1]}) of its image, or (n, {shape[0]}, {shape[1]}) of n instances"
        raise MaskFault(file, None, f"mask is an array of shape {array.shape}; {expected}")
    if array.dtype.kind == "f" and (array % 1 != 0).any():  # also detects NaN and infinite values
        raise MaskFault(file, None, f"mask holds {array.dtype} pixels that are not whole numbers; expected 0 and 1")
    for plane in planes:
        if len(values := np.setdiff1d(plane, 0)) > 1:
            shown = ", ".join(f"{value:g}" for value in values[:6])
            raise MaskFault(file, None, f"holds the values {shown} in one plane; expected 0 and one other value")
    return [(plane != 0).astype(np.uint8) for plane in planes]


def _one_class(
    competition: RleCsv,
    folder: Path,
    file: str,
    shape: tuple[int, int],
    may_lack: bool,
    threshold: int | None,
    part: Part,
) -> np.ndarray:
    if may_lack and not (folder / file).exists():
        return np.zeros(shape, np.uint8)
    mask = read_mask(folder, file, shape, competition.orientation, part)
    if threshold is not None:
        _check_threshold(file, mask, threshold)
        return (mask.max(axis=2) >= threshold).astype(np.uint8)
    codes = _codes(mask)
    values = np.unique(codes)
    if len(values) > 2 or (len(values) == 2 and values[0] != 0):
        shown = ", ".join(_shown(int(value)) for value in values[:6])
        text = f"holds {len(values)} values ({shown}); expected 0 and one other value for one class{_hint(values)}"
        raise MaskFault(file, None, text)
    return (codes != 0).astype(np.uint8)


def _check_threshold(file: str, mask: np.ndarray, threshold: int) -> None:
    """Raises MaskFault if no pixel of a mask that is not empty reaches the threshold. A mask counts as empty if it only
    has several low values, which a JPEG encoder produces for black."""
    highest = int(mask.max())
    noise = highest < NOISE and (Path(file).suffix.lower() in (".jpg", ".jpeg") or len(np.unique(mask)) > 2)
    if 0 < highest < threshold and not noise:
        raise MaskFault(
            file, None,
            f"holds values up to {highest}, none of which reaches `threshold: {threshold}`: set `threshold: 1`, so "
            "that every pixel that is not 0 belongs to the class, or remove threshold",
        )  # fmt: skip


def _hint(values: np.ndarray) -> str:
    """Returns the setting to suggest for a mask with more than two values, which may be inexact values of a JPEG file
    or numbers of instances."""
    if len(values) <= 2:
        return ""
    if values[-1] < THRESHOLD or (values[-1] < _COLOUR and values[-1] == len(values) - 1):
        return (
            "; if they are numbers of instances, set `instances: true` beside `masks`: each value except 0 is then an "
            "object"
        )
    return f"; for masks saved as JPEG, set `threshold: {THRESHOLD}` beside `masks`"


def _codes(mask: np.ndarray) -> np.ndarray:
    """Returns one code per pixel: its grey value, or a number for its colour. Grey pixels of an RGB file have the code
    of their grey value."""
    if mask.shape[2] == 1:
        return mask[..., 0].astype(np.int64)
    red, green, blue = (mask[..., channel].astype(np.int64) for channel in range(3))
    return np.where((red == green) & (green == blue), red, _COLOUR | red << 32 | green << 16 | blue)


_COLOUR = 1 << 60


def _code(value: Value) -> int:
    if isinstance(value, tuple):
        red, green, blue = value
        return red if red == green == blue else _COLOUR | red << 32 | green << 16 | blue
    return int(value)


def _shown(code: int) -> str:
    if code < _COLOUR:
        return str(code)
    return str([(code >> shift) & 0xFFFF for shift in (32, 16, 0)])


def _known(competition: RleCsv) -> str:
    pairs = zip(competition.classes, competition.values or [], strict=True)
    return ", ".join(f"{name}: {' or '.join(map(_shown, _codes_of(value))) or REST}" for name, value in pairs)
