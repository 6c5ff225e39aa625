"""The true masks of an image, of rows of run lengths or of mask files, as the competition's YAML says."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.core.config.competition import THRESHOLD, RleCsv, Subset, Value
from pipeline.decode.readers.base import WHOLE, MaskFault, Masks, Part, counted, read_mask
from pipeline.decode.readers.columns import class_numbers
from pipeline.decode.readers.mask_files import MaskFiles, mask_key
from pipeline.decode.readers.rows import Rows
from pipeline.masks import rle
from pipeline.masks.geometry import IGNORE
from pipeline.masks.windows import Box

NOISE = 16
"""Grey value below which a JPEG encoder may leave pixels of a black picture."""


def masks_reader(
    competition: RleCsv,
    settings: Subset,
    folder: Path,
    image_id: str,
    files: MaskFiles,
    rows: Rows,
    part: Part = WHOLE,
    size: tuple[int, int] | None = None,
) -> Callable[[tuple[int, int]], Masks] | None:
    """Returns a function from the height and width of an image to its masks, which raises MaskFault; None where nothing
    is known of them.

    Args:
        competition: what the YAML says.
        settings: of the subset.
        folder: the competition's.
        image_id: the name of the image in the table of masks, or in the paths of mask files.
        files: the mask files of the subset.
        rows: the rows of the image.
        part: which part of the mask files is the mask.
        size: rows × columns of the whole image, of which the image is a window.
    """
    if settings.mask_files:
        key = mask_key(settings, image_id)
        values = list(class_numbers(competition)) if "{class}" in settings.mask_files else [""]
        paths = [[path.relative_to(folder).as_posix() for path in files.by_key.get((key, one), [])] for one in values]
        pattern = settings.mask_files.replace("{id}", image_id).replace("{stem}", key)
        return partial(_masks_of_files, competition, settings, folder, pattern, paths, part=part)
    if settings.masks is None:
        return None
    file, window = Path(settings.masks).name, None if size is None or part.box is None else (part.box, size)
    return partial(_masks_of_rows, competition, file, image_id, rows.texts, window=window)


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
    convention = rle.convention_of(competition.rle)
    for row, number, text in texts:
        try:
            mask = rle.decode(text, shape, convention) if window is None else rle.decode_box(text, *window, convention)
        except rle.RleError as error:
            raise MaskFault(file, row, f"mask of image {image_id}: {error}") from None
        planes[number] |= mask
        if mask.any() and competition.columns.row == "instance":
            instances[number].append(rle.encode(mask))
    kept = tuple(tuple(found) for found in instances) if competition.columns.row == "instance" else None
    return Masks(planes, kept)


def _masks_of_files(
    competition: RleCsv,
    settings: Subset,
    folder: Path,
    pattern: str,
    paths: list[list[str]],
    shape: tuple[int, int],
    part: Part = WHOLE,
) -> Masks:
    """The masks of an image from its files (`paths` a class, or all classes in one), whose pattern names its id."""
    if "{class}" not in pattern and "*" not in pattern:
        return Masks(_planes_of_file(competition, settings.threshold, folder, (paths[0] or [pattern])[0], shape, part))
    planes = np.zeros((len(competition.classes), *shape), np.uint8)
    instances: list[tuple[str, ...]] = []
    may_lack = competition.columns.absent == "empty"
    for number, value in enumerate(class_numbers(competition)):
        names = paths[number if "{class}" in pattern else 0] or [pattern.replace("{class}", value)]
        names = [name for name in names if "*" not in name]
        parts = [_one_class(competition, folder, name, shape, may_lack, settings.threshold, part) for name in names]
        for found in parts:
            planes[number] |= found
        instances.append(tuple(rle.encode(found) for found in parts if found.any()))
    if "*" in pattern and not may_lack and not any(instances):
        raise MaskFault(pattern, None, "no mask file of this image")
    return Masks(planes, tuple(instances) if "*" in pattern else None)


def _planes_of_file(
    competition: RleCsv, threshold: int | None, folder: Path, file: str, shape: tuple[int, int], part: Part
) -> np.ndarray:
    if competition.values is None:
        may_lack = competition.columns.absent == "empty"
        return _one_class(competition, folder, file, shape, may_lack, threshold, part)[None]
    if competition.columns.absent == "empty" and not (folder / file).exists():
        return np.zeros((len(competition.classes), *shape), np.uint8)
    codes = _codes(read_mask(folder, file, shape, competition.orientation, part))
    planes = np.stack([codes == _code(value) for value in competition.values]).astype(np.uint8)
    ignored = np.zeros(shape, bool) if competition.ignore_value is None else codes == _code(competition.ignore_value)
    planes[:, ignored] = IGNORE
    known = planes.any(0) | ((codes == 0) & (competition.kind != "multiclass"))
    if not known.all():
        shown = counted(codes[~known], lambda code: _shown(int(code)))
        raise MaskFault(file, None, f"holds {shown}, no class of the YAML ({_known(competition)})")
    return planes


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
        text = f"holds {len(values)} values ({shown}); expected 0 and one other for one class{_hint(values)}"
        raise MaskFault(file, None, text)
    return (codes != 0).astype(np.uint8)


def _check_threshold(file: str, mask: np.ndarray, threshold: int) -> None:
    """Raises MaskFault where no pixel of a mask that is not empty reaches the threshold; what an encoder makes of black
    (low values, several of them) is empty."""
    highest = int(mask.max())
    noise = highest < NOISE and (Path(file).suffix.lower() in (".jpg", ".jpeg") or len(np.unique(mask)) > 2)
    if 0 < highest < threshold and not noise:
        raise MaskFault(
            file, None,
            f"holds values up to {highest}, none of which reaches `threshold: {threshold}`: set `threshold: 1`, with "
            "which every pixel that is not 0 is the class, or remove threshold",
        )  # fmt: skip


def _hint(values: np.ndarray) -> str:
    """What to set for a mask of more than two values: whether they waver, as in JPEG files, or count instances."""
    if len(values) <= 2:
        return ""
    if values[-1] < THRESHOLD or (values[-1] < _COLOUR and values[-1] == len(values) - 1):
        return "; where they number instances set `threshold: 1` beside `masks`: every pixel that is not 0 is the class"
    return f"; for masks saved as JPEG set `threshold: {THRESHOLD}` beside `masks`"


def _codes(mask: np.ndarray) -> np.ndarray:
    """One number a pixel: its grey value, or its colour; a grey pixel of an RGB file is coded by its grey value."""
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
    return ", ".join(f"{name}: {_shown(_code(value))}" for name, value in pairs)
