"""Reader for images in folders (TIFF, PNG, JPEG; 8 or 16 bit; grey, RGB or four channels) with masks as run lengths in
a CSV - one row an image, an image and class, or an instance - or as image files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.config.competition import THRESHOLD, Columns, RleCsv, Subset, Value
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
    listed,
    read_mask,
    repeated_ids,
)
from pipeline.decode.readers.columns import (
    class_numbers,
    group_of,
    is_missing,
    key_columns,
    keys_of,
    own_group,
    template_columns,
)
from pipeline.decode.readers.files import natural, packed, read_image, read_table
from pipeline.decode.readers.names import (
    ImageFiles,
    as_on_disk,
    find_images,
    fixed_part,
    glob_files,
    image_files_under,
    pattern_expression,
    same_format,
    split_ending,
    told,
)
from pipeline.masks import rle
from pipeline.masks.geometry import IGNORE

ROWS_SHOWN = 20
"""Rows without a group that a message names."""


_WORDS: dict[SubsetName, str] = {"train": "training", "test": "test"}
NOISE = 16
"""Grey value below which a JPEG encoder may leave pixels of a black picture."""


@dataclass
class Rows:
    """What the rows of a mask table say of one image."""

    texts: list[tuple[int, int, str]] = field(default_factory=list)
    """Row, class and run-length text."""
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def row(self) -> int | None:
        """The first of them."""
        return self.texts[0][0] if self.texts else None


def list_items(competition: RleCsv, folder: Path, subsets: Sequence[SubsetName] = SUBSETS) -> Listing:
    """Returns every image of these subsets under `folder`, and what is wrong with the listing.

    Raises:
        PipelineError: the folder is empty, nothing matches, or a table cannot be read or lacks a column.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        raise PipelineError(_how_to_get(competition, folder))
    none = Listing([], [])
    train = _subset_items(competition, "train", folder) if "train" in subsets else none
    test = _subset_items(competition, "test", folder) if "test" in subsets else none
    if "test" in subsets and not test.items:
        example = f"; for instance {test.faults[0]}" if test.faults else ""
        raise PipelineError(f"No test image matches {folder / competition.test.images}{example}{packed(folder)}.")
    items = train.items + test.items
    repeated = repeated_ids(items, train.faults, competition.images_together)
    return Listing(items, train.faults + test.faults + repeated, train.remarks + test.remarks)


def raw_files(competition: RleCsv, folder: Path, subset: SubsetName) -> tuple[Path, ...]:
    """Returns the tables and the image folders that the competition's YAML names for a subset, nothing else; the sample
    submission, which lists test images, belongs to them."""
    settings: Subset = getattr(competition, subset)
    names = [competition.sample_submission if subset == "test" else None]
    names += [settings.table, None if settings.mask_files else settings.masks]
    names += [fixed_part(pattern) for pattern in (settings.images, settings.mask_files) if pattern]
    return tuple(dict.fromkeys(folder / name for name in names if name))


def opener(competition: RleCsv, folder: Path) -> Callable[[Any], np.ndarray]:
    """Returns a function from a row of images.parquet to its image (H, W, C)."""
    return lambda row: read_image(folder / row["path"], **competition.reading)


def _subset_items(competition: RleCsv, subset: SubsetName, folder: Path) -> Listing:
    settings: Subset = getattr(competition, subset)
    files = find_images(settings.images, folder, settings.exclude)
    table = None if settings.mask_files else settings.masks
    known, faults = _read_rows(competition, subset, folder / table, files) if table else ({}, [])
    masks = _mask_files(settings, folder, files) if settings.mask_files else {}
    for image_id, double in files.further:
        first, droppable = files.paths[image_id].relative_to(folder).as_posix(), image_id if subset == "train" else None
        text = f"image {image_id} is {first} already: an id has one image"
        faults.append(Fault(double.relative_to(folder).as_posix(), None, text, droppable))
    if subset == "test" and competition.sample_submission:
        wanted, listing_faults = _sample_ids(competition, folder, files)
        faults = faults + listing_faults
    elif subset == "train" and table:
        absent = sorted(files.paths.keys() - known.keys(), key=natural) if competition.columns.absent == "empty" else []
        wanted = [*known, *absent]
    else:
        if not table and not settings.mask_files:
            files.take_likely()
        wanted = sorted(files.paths, key=natural)
    extras = _further_columns(settings, folder)
    group_file = _file_with(competition.group, settings, known, extras) if subset == "train" else None
    groupless: list[tuple[str, int | None]] = []
    items = []
    for image_id in wanted:
        if image_id in files.paths:
            file = files.paths[image_id]
            rows, path = known.get(image_id, Rows()), file.relative_to(folder).as_posix()
            further_row, values = extras.get(image_id, (None, {}))
            extra = {**rows.extra, **values}
            read = partial(read_image, file, **competition.reading)
            read_masks = _masks_reader(competition, settings, folder, image_id, file, rows)
            if group_file and is_missing(extra.get(competition.group or "", "")):
                group: str | None = own_group(image_id)
                groupless.append((image_id, further_row if group_file == settings.table else rows.row))
            else:
                group = group_of(competition, image_id, extra) if subset == "train" else None
            items.append(Item(image_id, subset, path, read, read_masks, group, extra))
    faults += _without_group(competition, group_file or "", groupless)
    without = [item for item in items if _mask_key(settings, item.image_id) not in (masks if not table else known)]
    texts = _told_of_files(competition, subset, folder, files, masks)
    if subset == "train" and without and competition.columns.absent == "empty":
        what = f"row in {table}" if table else "mask file"
        texts.append(f"{len(without)} of {len(items)} training images have no {what} and count as without a mask")
    return Listing(items, faults, texts)


def _mask_files(settings: Subset, folder: Path, files: ImageFiles) -> dict[str, Path]:
    """A mask file of every id that has one, by id or stem; images that end otherwise and have one are taken in."""
    head, _ = split_ending(settings.mask_files or "")
    expression = pattern_expression(head)
    found: dict[str, list[Path]] = {}
    for path in image_files_under(folder / fixed_part(head)):
        if match := expression.fullmatch(path.relative_to(folder).as_posix().removesuffix(path.suffix)):
            found.setdefault(normal_form(match["id"]), []).append(path)
    for image_id in list(files.others):
        if any(path != files.others[image_id] for path in found.get(_mask_key(settings, image_id), [])):
            files.has(image_id)
    images = set(files.paths.values())
    masks = {name: [path for path in paths if path not in images] for name, paths in found.items()}
    return {name: paths[0] for name, paths in masks.items() if paths}


def _mask_key(settings: Subset, image_id: str) -> str:
    """What stands for an image in the path of its mask files."""
    return Path(image_id).stem if "{stem}" in (settings.mask_files or "") else image_id


def _told_of_files(
    competition: RleCsv, subset: SubsetName, folder: Path, files: ImageFiles, masks: dict[str, Path]
) -> list[str]:
    """What a person should know of files that the patterns did not name: how many were taken, and how many were not."""
    settings: Subset = getattr(competition, subset)
    ending = split_ending(settings.images)[1]
    otherwise = [path for path in files.paths.values() if ending and not same_format(path.suffix, ending)]
    texts = []
    if otherwise:
        texts.append(
            told(
                otherwise,
                folder,
                lambda n: f"{n} {_WORDS[subset]} image{'s' * (n > 1)} end otherwise than `{settings.images}`",
            )
            + " and are read too"
        )
    keys = {_mask_key(settings, image_id) for image_id in files.paths}
    alone = [path for name, path in masks.items() if name not in keys]
    if alone:
        text = told(alone, folder, lambda n: f"{n} mask file{'s' * (n > 1)} without an image")
        texts.append(f"{text}; images are `{settings.images}`: are some missing, or elsewhere?")
    unused = _unused(competition, settings, folder, files, set(masks.values()))
    if unused:
        text = told(unused, folder, lambda n: f"{n} image file{'s' * (n > 1)} in {fixed_part(settings.images)}/")
        texts.append(f"{text} not used, because `{settings.images}` does not name them or they have no mask")
    return texts


def _unused(competition: RleCsv, settings: Subset, folder: Path, files: ImageFiles, masks: set[Path]) -> list[Path]:
    """The image files in the folder of a subset's images that are neither images nor masks, nor named by `exclude`."""
    place = fixed_part(settings.images)
    if place == ".":  # the whole competition
        return list(files.others.values())
    patterns = [competition.train.mask_files, competition.test.mask_files]
    of_masks = [pattern_expression(split_ending(pattern)[0]) for pattern in patterns if pattern]
    used = {*files.paths.values(), *(path for _, path in files.further), *masks}
    return [
        path
        for path in image_files_under(folder / place)
        if path not in used
        and not any(fnmatch(path.name, other) for other in settings.exclude)
        and not any(one.fullmatch(path.relative_to(folder).as_posix().removesuffix(path.suffix)) for one in of_masks)
    ]


def _file_with(
    column: str | None, settings: Subset, known: dict[str, Rows], extras: dict[str, tuple[int, dict[str, str]]]
) -> str | None:
    """The table that has this further column; None where there is none."""
    if settings.table and any(column in extra for _, extra in extras.values()):
        return settings.table
    return settings.masks if any(column in rows.extra for rows in known.values()) else None


def _without_group(competition: RleCsv, file: str, groupless: list[tuple[str, int | None]]) -> list[Fault]:
    """One fault that names the rows whose group is missing, and the images that have none."""
    if competition.group_missing == "own" or not groupless:
        return []
    rows = sorted(row for _, row in groupless if row is not None)
    without = [image_id for image_id, row in groupless if row is None]
    parts = [f"row{'s' if len(rows) > 1 else ''} {listed(rows, ROWS_SHOWN)}"] if rows else []
    parts += [f"image{'s' if len(without) > 1 else ''} {listed(without)} without a row"] if without else []
    hint = ", name a table with a row for every image in `train: {table: …}`" if without else ""
    text = (
        f"{' and '.join(parts)} {'has' if len(groupless) == 1 else 'have'} no `{competition.group}` (group; blank, NA, "
        f"NaN, null and none mean that): fill it in{hint}, or set `group_missing: own` in the competition's YAML, "
        "which makes each such image a group of its own"
    )
    return [Fault(file, None, text)]


def _read_rows(
    competition: RleCsv, subset: SubsetName, path: Path, files: ImageFiles
) -> tuple[dict[str, Rows], list[Fault]]:
    columns, numbers, settings = competition.columns, class_numbers(competition), getattr(competition, subset)
    used = [*key_columns(columns), columns.rle]
    table = read_table(path, used)
    faults: list[Fault] = []
    found: dict[str, Rows] = {}
    seen: dict[tuple[str, str | None], int] = {}
    texts, further = table[columns.rle].tolist(), table.drop(columns=[columns.rle, *_plain_keys(columns)])
    extra: list[Any] = further.to_dict("records")
    keys = keys_of(table, columns, numbers)
    for place, (row, (image_id, label)) in enumerate(zip(table.index + 2, keys, strict=True)):
        droppable = image_id if subset == "train" else None
        if image_id is None:
            value = table[columns.id].iat[place]
            faults.append(Fault(path.name, row, f"{columns.id} {value!r} does not fit the pattern {columns.pattern}"))
            continue
        if not files.has(image_id):
            image = settings.images.replace("{id}", image_id)
            faults.append(Fault(path.name, row, f"id {image_id} has no image, {image} does not exist", droppable))
        if label is not None and label not in numbers:
            known = ", ".join(numbers)
            faults.append(Fault(path.name, row, f"label {label!r} is no class of the YAML ({known})", droppable))
            continue
        first = seen.setdefault((image_id, label), row)
        if first != row and columns.row != "instance":
            faults.append(Fault(path.name, row, f"{_name(image_id, label)} stands in row {first} already", droppable))
            continue
        rows = found.setdefault(image_id, Rows(extra=extra[place]))
        rows.texts.append((row, 0 if label is None else numbers[label], texts[place]))
    if columns.absent == "fault" and not competition.images_together:
        for image_id in sorted(files.paths.keys() - found.keys(), key=natural):
            image, droppable = settings.images.replace("{id}", image_id), image_id if subset == "train" else None
            faults.append(Fault(image, None, f"image without a row in {path.name}", droppable))
    return found, faults


def _sample_ids(competition: RleCsv, folder: Path, files: ImageFiles) -> tuple[list[str], list[Fault]]:
    name, columns = competition.sample_submission or "", competition.submission
    lengths = [columns.rle] if columns.format == "rle" else []
    sample, faults = read_table(folder / name, [*key_columns(columns), *lengths], only=True, section="submission"), []
    first: dict[tuple[str, str | None], int] = {}
    ids: dict[str, None] = {}
    numbers = class_numbers(competition)
    keys = keys_of(sample, columns, numbers)
    for place, (row, (image_id, label)) in enumerate(zip(sample.index + 2, keys, strict=True)):
        if image_id is None:
            value = sample[columns.id].iat[place]
            faults.append(Fault(name, row, f"{columns.id} {value!r} does not fit the pattern {columns.pattern}"))
            continue
        if label is not None and label not in numbers:
            text = (
                f"label {label!r} is no class of the YAML ({', '.join(numbers)}); where the file is a placeholder, set "
            )
            faults.append(Fault(name, row, text + "`sample_submission: null`"))
        if not files.has(image_id) and image_id not in ids:
            image = competition.test.images.replace("{id}", image_id)
            faults.append(Fault(name, row, f"id {image_id} has no image, {image} does not exist"))
        if first.setdefault((image_id, label), row) != row and columns.row != "instance":
            faults.append(Fault(name, row, f"{_name(image_id, label)} stands in row {first[image_id, label]} already"))
        ids[image_id] = None
    for image_id in files.paths:
        if image_id not in ids and not competition.images_together:
            image = competition.test.images.replace("{id}", image_id)
            faults.append(Fault(image, None, f"image without a row in {name}"))
    return list(ids), faults


def _plain_keys(columns: Columns) -> list[str]:
    """The key columns that say nothing more than the id and the label; those of a template may be groups."""
    return [name for name in (columns.id, columns.label) if name and template_columns(name) == [name]]


def _further_columns(settings: Subset, folder: Path) -> dict[str, tuple[int, dict[str, str]]]:
    """Row and values of the further table, by id."""
    if settings.table is None:
        return {}
    table = read_table(folder / settings.table, [])
    ids = table.iloc[:, 0]
    doubtful = ids[ids.duplicated() & ~table.duplicated()]
    if len(doubtful):
        image_id, row = doubtful.iloc[0], doubtful.index[0] + 2
        first = table.index[ids == image_id][0] + 2
        raise PipelineError(
            f"{settings.table} row {row}: id {image_id} stands in row {first} already, with other values "
            f"({len(doubtful)} such row{'s' if len(doubtful) > 1 else ''}): an image has one row, remove the others."
        )
    records: list[Any] = table.iloc[:, 1:].to_dict("records")
    return dict(zip(ids, zip(table.index + 2, records, strict=True), strict=True))


# --- masks -----------------------------------------------------------------------------------------------------------


def _masks_reader(
    competition: RleCsv, settings: Subset, folder: Path, image_id: str, image: Path, rows: Rows
) -> Callable[[tuple[int, int]], Masks] | None:
    if settings.mask_files:
        return partial(_masks_of_files, competition, settings, folder, image_id, image)
    if settings.masks is None:
        return None
    return partial(_masks_of_rows, competition, Path(settings.masks).name, image_id, rows.texts)


def _masks_of_rows(
    competition: RleCsv, file: str, image_id: str, texts: list[tuple[int, int, str]], shape: tuple[int, int]
) -> Masks:
    planes = np.zeros((len(competition.classes), *shape), np.uint8)
    instances: list[list[str]] = [[] for _ in competition.classes]
    convention = rle.convention_of(competition.rle)
    for row, number, text in texts:
        try:
            mask = rle.decode(text, shape, convention)
        except rle.RleError as error:
            raise MaskFault(file, row, f"mask of image {image_id}: {error}") from None
        planes[number] |= mask
        if mask.any() and competition.columns.row == "instance":
            instances[number].append(rle.encode(mask))
    kept = tuple(tuple(found) for found in instances) if competition.columns.row == "instance" else None
    return Masks(planes, kept)


def _masks_of_files(
    competition: RleCsv, settings: Subset, folder: Path, image_id: str, image: Path, shape: tuple[int, int]
) -> Masks:
    pattern = (settings.mask_files or "").replace("{id}", image_id).replace("{stem}", Path(image_id).stem)
    if "{class}" not in pattern and "*" not in pattern:
        return Masks(_planes_of_file(competition, settings.threshold, folder, _on_disk(folder, pattern, image), shape))
    planes = np.zeros((len(competition.classes), *shape), np.uint8)
    instances: list[tuple[str, ...]] = []
    for number, value in enumerate(class_numbers(competition)):
        name = pattern.replace("{class}", value)
        files = [_on_disk(folder, name, image)]
        if "*" in name:
            files = [path.relative_to(folder).as_posix() for path in glob_files(folder, name) if path != image]
        may_lack = competition.columns.absent == "empty"
        parts = [_one_class(competition, folder, file, shape, may_lack, settings.threshold) for file in files]
        for part in parts:
            planes[number] |= part
        instances.append(tuple(rle.encode(part) for part in parts if part.any()))
    if "*" in pattern and competition.columns.absent == "fault" and not any(instances):
        raise MaskFault(pattern, None, f"image {image_id} has no mask file")
    return Masks(planes, tuple(instances) if "*" in pattern else None)


def _on_disk(folder: Path, file: str, image: Path) -> str:
    return as_on_disk(folder, file, [image]).relative_to(folder).as_posix()


def _planes_of_file(
    competition: RleCsv, threshold: int | None, folder: Path, file: str, shape: tuple[int, int]
) -> np.ndarray:
    if competition.values is None:
        may_lack = competition.columns.absent == "empty"
        return _one_class(competition, folder, file, shape, may_lack, threshold)[None]
    if competition.columns.absent == "empty" and not (folder / file).exists():
        return np.zeros((len(competition.classes), *shape), np.uint8)
    codes = _codes(read_mask(folder, file, shape, competition.orientation))
    planes = np.stack([codes == _code(value) for value in competition.values]).astype(np.uint8)
    ignored = np.zeros(shape, bool) if competition.ignore_value is None else codes == _code(competition.ignore_value)
    planes[:, ignored] = IGNORE
    known = planes.any(0) | ((codes == 0) & (competition.kind != "multiclass"))
    if not known.all():
        shown = counted(codes[~known], lambda code: _shown(int(code)))
        raise MaskFault(file, None, f"holds {shown}, no class of the YAML ({_known(competition)})")
    return planes


def _one_class(
    competition: RleCsv, folder: Path, file: str, shape: tuple[int, int], may_lack: bool, threshold: int | None
) -> np.ndarray:
    if may_lack and not (folder / file).exists():
        return np.zeros(shape, np.uint8)
    mask = read_mask(folder, file, shape, competition.orientation)
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


# --- sentences -------------------------------------------------------------------------------------------------------


def _name(image_id: str, label: str | None) -> str:
    return f"id {image_id}" if label is None else f"id {image_id} with label {label}"


def _how_to_get(competition: RleCsv, folder: Path) -> str:
    ways = [f"`ln -s /path/to/the/files {folder}`"]
    if competition.kaggle:
        slug = competition.kaggle
        ways.append(f"`kaggle competitions download -c {slug} -p {folder}` and unzip it there")
    if competition.name == "sample":
        ways = [f"`{program()} sample` writes it"]
    train = competition.train
    return (
        f"{folder} is empty. Put the raw files of {competition.title} there ({train.images}, {train.masks}, "
        f"{competition.test.images}): {', or '.join(ways)}."
    )
