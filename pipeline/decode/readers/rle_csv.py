"""Reader for images in folders (TIFF, PNG, JPEG, …). Masks are run lengths in a CSV file (with one row per image, per
image and class, or per instance), image files, polygons or COCO annotations."""

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.config.raw_files import Subset, names_in
from pipeline.core.config.raw_layouts import RleCsv
from pipeline.core.errors import PipelineError
from pipeline.core.tables import read_header
from pipeline.core.version import program
from pipeline.decode.readers.annotations.read import read_annotations
from pipeline.decode.readers.annotations.shapes import Annotated
from pipeline.decode.readers.base import SUBSETS, Fault, Item, Listing, Masks, Part, SubsetName, listed, repeated_ids
from pipeline.decode.readers.columns import group_of, is_missing, own_group
from pipeline.decode.readers.files import natural, packed
from pipeline.decode.readers.mask_files import MaskFiles, find_mask_files, mask_key, told_of_files
from pipeline.decode.readers.names import ImageFiles, as_on_disk, find_images, fixed_part, relative_name
from pipeline.decode.readers.rows import Rows, further_columns, listed_images, read_rows, sample_ids
from pipeline.decode.readers.sources import ImageSources, Source, read_source, source_of
from pipeline.decode.readers.true_masks import MaskSources, masks_reader
from pipeline.masks.geometry import IGNORE

ROWS_SHOWN = 20
"""Maximum number of rows without a group that a message names."""
FAULTS_TOLD = 5
"""Maximum number of faults of the test set that are printed if they do not stop decode (`decode.on_test_error`)."""


def list_items(competition: RleCsv, folder: Path, subsets: Sequence[SubsetName] = SUBSETS) -> Listing:
    """Returns all images of these subsets in `folder`, and the faults of the listing.

    Raises:
        PipelineError: the folder is empty, no file matches, or a table cannot be read or lacks a column.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        raise PipelineError(_how_to_get(competition, folder))
    nothing = Listing([], [])
    train = _subset_items(competition, "train", folder) if "train" in subsets else nothing
    test = _subset_items(competition, "test", folder) if "test" in subsets and competition.test else nothing
    if "test" in subsets and competition.test and not test.items:
        example = f"; for instance {test.faults[0]}" if test.faults else ""
        raise PipelineError(f"No test image matches {folder / competition.test.images}{example}{packed(folder)}.")
    items = train.items + test.items
    repeated = repeated_ids(items, train.faults, competition.images_together)
    remarks = [*train.remarks, *_without_row(competition, folder, train.items)]
    remarks += [*test.remarks, *_without_row(competition, folder, test.items)]
    return Listing(items, train.faults + test.faults + repeated, remarks)


def raw_files(competition: RleCsv, folder: Path, subset: SubsetName) -> tuple[Path, ...]:
    """Returns the tables and image folders that the competition's YAML names for a subset. For test images, this
    includes the sample submission."""
    settings: Subset | None = getattr(competition, subset)
    if settings is None:
        return ()
    names = [competition.sample_submission if subset == "test" else None]
    names += [settings.table, settings.mask_table, settings.listed_in]
    if settings.annotations and not names_in(settings.annotations):
        names.append(settings.annotations)
    patterns = (settings.images, settings.mask_files, settings.annotations)
    names += [fixed_part(pattern) for pattern in patterns if pattern and names_in(pattern)]
    return tuple(dict.fromkeys(as_on_disk(folder, name) for name in names if name))


def opener(competition: RleCsv, folder: Path) -> Callable[[Any], np.ndarray]:
    """Returns a function that reads the image (H, W, C) of a row of images.parquet."""
    return lambda row: read_source(source_of(row), folder, competition)


def _subset_items(competition: RleCsv, subset: SubsetName, folder: Path) -> Listing:
    settings: Subset = getattr(competition, subset)
    places = ImageSources(competition, settings, folder)
    files, faults = _find_images(settings, places, folder)
    if places.channels.bands and not settings.listed_in:
        faults += _without_first_band(settings, subset, places, folder, files)
    masks = find_mask_files(competition, settings, folder, files) if settings.mask_files else MaskFiles()
    faults = faults + places.expand(files)  # after the search for mask files, which use the names of volumes
    known = dict[str, Rows]()
    if settings.mask_table:
        known, more_faults = read_rows(competition, subset, folder / settings.mask_table, files)
        faults = faults + more_faults
    annotated, texts = dict[str, Annotated](), list[str]()
    if settings.annotations:
        annotated, more_faults, texts = read_annotations(competition, subset, folder, files)
        faults = faults + more_faults
    named = masks.names() if settings.mask_files else {*known, *annotated}
    wanted, more_faults = _wanted_ids(competition, subset, folder, files, known)
    faults = [*faults, *_doubles(folder, files, subset), *more_faults]
    if subset == "train" and competition.columns.absent == "leave_out":
        wanted, more_texts = _labelled(settings, folder, wanted, files, places, named)
        texts += more_texts
    tolerant = subset == "test" and competition.decode.on_test_error == "blank"
    extras = further_columns(competition, settings, folder, {**files.paths, **places.found.paths})
    group_file = _file_with(competition.group, settings, known, extras) if subset == "train" else None
    groupless: list[tuple[str, int | None]] = []
    items, without_masks = [], 0
    for image_id in wanted:
        if image_id in files.paths:
            file = files.paths[image_id]
            rows, path = known.get(image_id, Rows()), relative_name(file, folder)
            further_row, values = extras.get(image_id) or extras.get(places.mask_name(image_id)) or (None, {})
            of_path = files.parts.get(places.mask_name(image_id), {})
            extra = {**of_path, **rows.extra, **values, **places.extra(image_id)}
            sources = MaskSources(files, masks, rows, annotated.get(image_id))
            if group_file and is_missing(extra.get(competition.group or "", "")):
                group: str | None = own_group(image_id)
                groupless.append((image_id, further_row if group_file == settings.table else rows.row))
            else:
                group = group_of(competition, image_id, extra) if subset == "train" else None
            without_masks += not _has_masks(settings, image_id, files, places, named)
            try:
                parts = list(places.parts(image_id, file))
            except ValueError as error:
                if tolerant:
                    items.append(Item(image_id, subset, path, partial(_unreadable, str(error))))
                else:
                    faults.append(Fault(path, None, str(error), image_id if subset == "train" else None))
                continue
            for part_id, source in parts:
                read = partial(read_source, source, folder, competition)
                read_masks = _masks_reader(competition, settings, folder, (image_id, source), places, sources)
                items.append(Item(part_id, subset, path, read, read_masks, group, extra, source.columns()))
        elif tolerant:
            items.append(_item_without_file(image_id, subset, settings))
    faults += _without_group(competition, group_file or "", groupless)
    texts += told_of_files(competition, subset, folder, places.found if competition.volumes else files, masks)
    texts += _told_of_unmasked(competition, subset, without_masks, len(wanted))
    told = [str(fault) for fault in faults[:FAULTS_TOLD]] if tolerant else []
    return Listing(items, [] if tolerant else faults, texts + told)


def _item_without_file(image_id: str, subset: SubsetName, settings: Subset) -> Item:
    unreadable = partial(_unreadable, f"no file fits {settings.images}")
    return Item(image_id, subset, settings.images.replace("{id}", image_id), unreadable)


def _told_of_unmasked(competition: RleCsv, subset: SubsetName, without: int, count: int) -> list[str]:
    """Returns remarks about training images without a mask, if these count as empty."""
    if subset != "train" or not without or competition.columns.absent != "empty":
        return []
    settings = competition.train
    files = "mask file" if settings.mask_files else "annotations"
    missing = f"row in {settings.mask_table}" if settings.mask_table else files
    return [f"{without} of {count} training images have no {missing} and get an empty mask"]


def _find_images(settings: Subset, places: ImageSources, folder: Path) -> tuple[ImageFiles, list[Fault]]:
    """Returns the image files of a subset (with several bands, those of the first band), and the faults of the list of
    images."""
    bands = places.channels.bands
    pattern = settings.images.replace("{band}", bands[0]) if bands else settings.images
    files, faults = find_images(pattern, folder, settings.exclude, settings.id), list[Fault]()
    if settings.listed_in:
        files, faults = listed_images(settings.listed_in, folder, files)
    if bands:
        files.bands = {band for path in files.paths.values() for band in places.bands(path)}
    return files, faults


def _without_first_band(
    settings: Subset, subset: SubsetName, places: ImageSources, folder: Path, files: ImageFiles
) -> list[Fault]:
    """Returns faults of images that have a file of another band but not of the first one, by which images are found."""
    first, *others = places.channels.bands
    lacking = dict[str, Path]()
    for band in others:
        of_band = find_images(settings.images.replace("{band}", band), folder, settings.exclude, settings.id)
        lacking = {
            image_id: path for image_id, path in of_band.paths.items() if image_id not in files.all_ids
        } | lacking
    return [
        Fault(
            relative_name(path, folder), None, f"there is no file of band {first} beside it",
            image_id if subset == "train" else None,
        )
        for image_id, path in lacking.items()
    ]  # fmt: skip


def _wanted_ids(
    competition: RleCsv, subset: SubsetName, folder: Path, files: ImageFiles, known: dict[str, Rows]
) -> tuple[list[str], list[Fault]]:
    """Returns the ids of a subset in order, from the sample submission, from the table of masks or from all files, and
    their faults."""
    settings: Subset = getattr(competition, subset)
    if subset == "test" and competition.sample_submission:
        return sample_ids(competition, folder, files)
    if subset == "train" and settings.mask_table:
        absent = sorted(files.paths.keys() - known.keys(), key=natural) if competition.columns.absent == "empty" else []
        return [*known, *absent], []
    if settings.masks is None:
        files.take_likely()
    return sorted(files.paths, key=natural), []


def _has_masks(
    settings: Subset, image_id: str, files: ImageFiles, places: ImageSources, named: Collection[str]
) -> bool:
    """Returns whether an image has a row, a mask file or annotations, or has an empty mask according to `empty`."""
    if settings.shows_nothing(relative_name(files.paths[image_id], places.folder)):
        return True
    if settings.mask_files is None:
        return image_id in named
    return mask_key(settings, places.mask_name(image_id), files) in named


def _labelled(
    settings: Subset, folder: Path, wanted: list[str], files: ImageFiles, places: ImageSources, named: Collection[str]
) -> tuple[list[str], list[str]]:
    """Returns the ids that are labelled, and remarks about the others."""
    labelled = [
        image_id
        for image_id in wanted
        if image_id not in files.paths or _has_masks(settings, image_id, files, places, named)
    ]
    count = len(files.paths) - len(set(labelled) & files.paths.keys())
    if not count:
        return labelled, []
    first = next(image_id for image_id in files.paths if image_id not in labelled)
    what = f"{count} training images have no masks in {settings.masks} and are left out"
    return labelled, [f"{what}, for instance {relative_name(files.paths[first], folder)}"]


def _doubles(folder: Path, files: ImageFiles, subset: SubsetName) -> Iterator[Fault]:
    """Yields a fault for each further file of an image."""
    for image_id, double in files.further:
        first, droppable = relative_name(files.paths[image_id], folder), image_id if subset == "train" else None
        text = f"image {image_id} is already {first}: each id must have one image file"
        yield Fault(relative_name(double, folder), None, text, droppable)


def _unreadable(why: str) -> np.ndarray:
    raise ValueError(why)


def _masks_reader(
    competition: RleCsv,
    settings: Subset,
    folder: Path,
    image: tuple[str, Source],
    places: ImageSources,
    sources: MaskSources,
) -> Callable[[tuple[int, int]], Masks] | None:
    """Returns the function that reads the masks of an image or of a window of it. Pixels that belong to another window
    are ignored."""
    image_id, source = image
    if settings.shows_nothing(source.files[0]):
        return partial(_no_masks, len(competition.classes))
    name = places.mask_name(image_id) if settings.mask_files else image_id
    axis = competition.volumes.axis if competition.volumes else None
    part = Part(places.mask_slice(image_id), axis, source.box, places.volume(image_id))
    size = source.size if source.box else None
    read = masks_reader(competition, settings, folder, name, sources, part, size)
    return read if read is None or source.box is None else partial(_of_core, read, source)


def _no_masks(classes: int, shape: tuple[int, int]) -> Masks:
    return Masks(np.zeros((classes, *shape), np.uint8), ((),) * classes)


def _of_core(read: Callable[[tuple[int, int]], Masks], source: Source, shape: tuple[int, int]) -> Masks:
    masks = read(shape)
    assert source.box and source.core
    planes, (top, left, *_), (first, begin, last, end) = masks.planes.copy(), source.box, source.core
    outside = np.ones(shape, bool)
    outside[first - top : last - top, begin - left : end - left] = False
    planes[:, outside] = IGNORE
    return Masks(planes)


def _file_with(
    column: str | None, settings: Subset, known: dict[str, Rows], extras: dict[str, tuple[int, dict[str, str]]]
) -> str | None:
    """Returns the table with this further column; None if there is none."""
    if settings.table and any(column in extra for _, extra in extras.values()):
        return settings.table
    return settings.masks if any(column in rows.extra for rows in known.values()) else None


def _without_group(competition: RleCsv, file: str, groupless: list[tuple[str, int | None]]) -> list[Fault]:
    """Returns one fault that names the rows and images without a group; an empty list if there are none."""
    if competition.group_missing == "own" or not groupless:
        return []
    rows = sorted(row for _, row in groupless if row is not None)
    without = [image_id for image_id, row in groupless if row is None]
    parts = [f"row{'s' if len(rows) > 1 else ''} {listed(rows, ROWS_SHOWN)}"] if rows else []
    parts += [f"image{'s' if len(without) > 1 else ''} {listed(without)} without a row"] if without else []
    hint = ", name a table with a row for every image in `train: {table: …}`" if without else ""
    text = (
        f"{' and '.join(parts)} {'has' if len(groupless) == 1 else 'have'} no `{competition.group}` (group; blank, NA, "
        f"NaN, null and none count as missing): fill it in{hint}, or set `group_missing: own` in the competition's "
        "YAML, which makes each such image a separate group"
    )
    return [Fault(file, None, text)]


def _without_row(competition: RleCsv, folder: Path, items: list[Item]) -> list[str]:
    """Returns remarks about images of a subset without a row in its further table."""
    table = getattr(competition, items[0].subset).table if items else None
    columns = set(read_header(folder / table)[1:]) if table else set()
    absent = [item.image_id for item in items if not columns <= item.extra.keys()]
    if not absent:
        return []
    what = f"{len(absent)} of {len(items)} {'training' if items[0].subset == 'train' else 'test'} images"
    return [f"{what} have no row in {table}, {listed(absent)}: their {listed(sorted(columns))} is blank"]


# --- sentences -------------------------------------------------------------------------------------------------------


def _how_to_get(competition: RleCsv, folder: Path) -> str:
    exists = folder.is_dir()
    ways = [f"`ln -s /path/to/the/files/* {folder}/`" if exists else f"`ln -s /path/to/the/files {folder}`"]
    if competition.kaggle:
        ways.append(f"`{program()} download {competition.name}` fetches them from Kaggle")
    if competition.name == "sample":
        ways = [f"`{program()} sample` writes it"]
    train = competition.train
    test = f", {competition.test.images}" if competition.test else ""
    return (
        f"{folder} {'is empty' if exists else 'does not exist'}. Put the raw files of {competition.title} there "
        f"({train.images}, {train.masks}{test}): {', or '.join(ways)}."
    )
