"""Reads every raw image and mask once, checks them, and puts pixels where training can map them into memory.

    python -m pipeline decode RECIPE

reads   input/<competition>/
writes  work/<competition>/images.parquet; histograms.npy, thumbnails.npy: what images are compared by (descriptors.py)
        work/<competition>/test_images.parquet, test_histograms.npy, test_thumbnails.npy: the same of the test images
        work/<competition>/pixels_<H>x<W>_<fit>_<colour>/{train_images,train_masks,test_images}.npy
        images (N, H, W, C) uint8 or uint16; masks (N, classes, H, W) uint8: 0, 1, 255 = ignored, or of a multiclass
        competition (N, 1, H, W) uint8: class, 255 = ignored

Training and test images are steps of their own: a new test set decodes the test images alone, and needs no training
image.
"""

import hashlib
import re
import unicodedata
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.markup import escape

from pipeline.core.config.competition import Competition, Orientation, RleCsv
from pipeline.core.console import say, track, warn
from pipeline.core.errors import PipelineError
from pipeline.core.files import require_space, shown, writing
from pipeline.core.freshness import Step
from pipeline.core.run import Run
from pipeline.decode import descriptors, rle_checks, table
from pipeline.decode.readers import remarks
from pipeline.decode.readers.base import SUBSETS, Fault, Item, Listing, MaskFault, Masks, SubsetName, listed
from pipeline.decode.readers.files import evenly, packed
from pipeline.decode.readers.registry import reader_of
from pipeline.masks import rle
from pipeline.masks.geometry import IGNORE, Geometry, geometry_of, image_to_network, labels_to_network, mask_to_network

SHARED, READS_RAW = True, True
FAULTS_SHOWN = 30
IRRELEVANT_KEYS = {"clean", "split", "splits", "metric", "title", "kaggle", "ignored_prediction", "forbids_pretrained"}
"""Keys of a competition that change nothing that decode writes."""
OF_TEST = {"test", "sample_submission", "submission"}
"""Keys of a competition that change nothing that decode writes of training images."""
WORDS: dict[SubsetName, str] = {"train": "training", "test": "test"}


@dataclass(frozen=True)
class Decoded:
    """One image read and checked: its table row, its arrays where it has them, its faults."""

    row: dict[str, Any]
    arrays: dict[str, np.ndarray]
    """By name, which begins with train_ or test_: images and masks at network size, histograms, thumbnails."""
    outlines: list[tuple[float, float]]
    """Length of each mask's outline, as it is and as the same text reads in the other order."""
    faults: list[Fault]


def steps(run: Run) -> list[Step]:
    """Returns a table of the training and one of the test images, and, for a run that trains, the pixel arrays of each
    at the recipe's geometry."""
    return [_table_step(run, subset) for subset in SUBSETS] + [
        _pixel_step(run, subset) for subset in SUBSETS if run.recipe.trains
    ]


def _table_step(run: Run, subset: SubsetName) -> Step:
    listed, *_ = outputs = _table_files(run, subset)
    manifest, title = listed.with_suffix(".manifest.json"), f"decode the {WORDS[subset]} table"
    raw = reader_of(run.competition).raw_files(run.competition, run.input, subset)
    return Step("decode", title, manifest, raw, outputs, _settings(run, subset), subset=subset)


def _pixel_step(run: Run, subset: SubsetName) -> Step:
    names, (listed, *_) = ["images", "masks"] if subset == "train" else ["images"], _table_files(run, subset)
    outputs = tuple(run.pixels / f"{subset}_{name}.npy" for name in names)
    geometry = run.recipe.image.model_dump(mode="json", include={"fit", "border", "channels"})
    geometry["size"] = list(run.recipe.image.stored)
    inputs = (*reader_of(run.competition).raw_files(run.competition, run.input, subset), listed)
    settings = _settings(run, subset) | {"image": geometry}
    manifest, title = run.pixels / f"{subset}.manifest.json", f"decode the {WORDS[subset]} pixels"
    return Step("decode", title, manifest, inputs, outputs, settings, subset=subset)


def _is_of_pixels(run: Run, step: Step) -> bool:
    return step.manifest.parent == run.pixels


def _table_files(run: Run, subset: SubsetName) -> tuple[Path, Path, Path]:
    """The table of a subset, its histograms and its thumbnails."""
    if subset == "train":
        return run.table, run.histograms, run.thumbnails
    return run.test_table, run.test_histograms, run.test_thumbnails


def _settings(run: Run, subset: SubsetName) -> dict[str, Any]:
    """The keys of the competition that decide what decode writes of a subset."""
    competition = run.competition
    if subset == "test":
        return competition.model_dump(mode="json", exclude=IRRELEVANT_KEYS | {"train"})
    kept = competition.model_dump(mode="json", exclude=IRRELEVANT_KEYS | OF_TEST)
    return kept | {"images_together": competition.images_together}


def raw_fault(run: Run) -> str:
    """Returns the sentence that decode would stop with before it reads an image, where raw files are missing; empty
    where they are there."""
    try:
        reader_of(run.competition).list_items(run.competition, run.input, SUBSETS)
    except PipelineError as error:
        return str(error)
    return ""


def execute(run: Run, waiting: list[Step]) -> Iterator[Step]:
    """Does the waiting steps in one pass over the raw files of the subsets that they read."""
    subsets = [subset for subset in SUBSETS if any(step.subset == subset for step in waiting)]
    listing = reader_of(run.competition).list_items(run.competition, run.input, subsets)
    if "train" in subsets and not any(item.subset == "train" for item in listing.items):
        example = f"; for instance {listing.faults[0]}" if listing.faults else ""
        hint = f"{_patterns(run)}{example}{packed(run.input)}"
        raise PipelineError(f"No training image in {run.input} fits the competition's YAML{hint}.")
    known = _decoded_before(run, subsets)
    remarks.forget()
    dtype = _pixel_type(listing.items, known)
    tables = [step.subset for step in waiting if not _is_of_pixels(run, step)]
    with ExitStack() as stack:
        arrays = _open_pixels(run, waiting, listing, dtype, stack)
        arrays |= _open_descriptors(run, waiting, listing, stack)
        decoded = _decode_all(run, listing.items, arrays, dtype)
        faults = listing.faults + [fault for one in decoded for fault in one.faults]
        faults += _transposed(run, [one for one in decoded if not one.faults])
        faults += _uniform(run, [one.row for one in decoded if not one.faults])
        faults += _clashes(run.competition, listing.items, known, dtype)
        _judge(run.competition, faults, {item.image_id for item in listing.items if item.subset == "train"})
        rows = _with_faults([one.row for one in decoded], faults, run.competition)
        of = {subset: [row for row in rows if (row["subset"] == "test") == (subset == "test")] for subset in subsets}
        for subset in subsets:
            if subset in tables:
                table.write_table(_table_files(run, subset)[0], of[subset])
        for array in arrays.values():
            array.flush()
        doubts = _doubts(run, rows) + _alike_groups(run.competition, rows) if "train" in tables else []
    yield from waiting
    for text in [*_remarks(run, [item.path for item in listing.items]), *doubts]:
        warn(f"  [yellow]{escape(text)}[/yellow]")
    counts = {name: sum(row["subset"] == name for row in rows) for name in subsets}
    texts = [f"{count} {WORDS[name]} images → {shown(_table_files(run, name)[0])}" for name, count in counts.items()]
    say(f"  {', '.join(texts)}")


def _patterns(run: Run) -> str:
    train = run.competition.train if isinstance(run.competition, RleCsv) else None
    return f" (images {train.images}, masks {train.masks})" if train else ""


def _decoded_before(run: Run, subsets: list[SubsetName]) -> pd.DataFrame | None:
    """The table of the images that are not decoded now, where it is there: id, path and type of each."""
    other = run.test_table if subsets == ["train"] else run.table
    if len(subsets) == len(SUBSETS) or not other.exists():
        return None
    images = pd.read_parquet(other, columns=["image_id", "subset", "path", "dtype"])
    return images[(images["subset"] == "test") == (subsets == ["train"])]  # up to layout 2 one table held all images


def _clashes(competition: Competition, items: list[Item], known: pd.DataFrame | None, dtype: np.dtype) -> list[Fault]:
    """Faults of images that do not go with those of the other subset, which were decoded before."""
    if known is None or not items:
        return []
    ids = set(known["image_id"]) if competition.images_together else set()
    paths = set(zip(known["image_id"], known["path"], strict=True))
    types = [name for name in known["dtype"] if name]
    this, other = ("test", "training") if items[0].subset == "test" else ("training", "test")
    both = [item for item in items if item.image_id in ids or (item.image_id, item.path) in paths]
    faults = [Fault(item.path, None, f"{this} image {item.image_id} is a {other} image too") for item in both]
    if types and types[0] != str(dtype):
        text = f"image is {dtype}, the test images are {types[0]}; convert one of them"
        faults.append(Fault(items[0].path, None, text))
    return faults


def _open_pixels(
    run: Run, waiting: list[Step], listing: Listing, dtype: np.dtype, stack: ExitStack
) -> dict[str, np.memmap]:
    geometry, shapes = geometry_of(run.recipe.image), {}
    planes = 1 if run.competition.kind == "multiclass" else len(run.competition.classes)
    for step in (step for step in waiting if _is_of_pixels(run, step)):
        count = sum(item.subset == step.subset for item in listing.items)
        images, *masks = step.outputs
        shapes[images] = (count, *geometry.size, geometry.channels), dtype
        shapes |= {path: ((count, planes, *geometry.size), np.dtype(np.uint8)) for path in masks}
    needed = sum(int(np.prod(shape)) * kind.itemsize for shape, kind in shapes.values())
    require_space(run.pixels, needed, f"pixel arrays at {geometry.size[0]}×{geometry.size[1]}")
    return {path.stem: _open(stack, path, *shape) for path, shape in shapes.items()}


def _open_descriptors(run: Run, waiting: list[Step], listing: Listing, stack: ExitStack) -> dict[str, np.memmap]:
    arrays: dict[str, np.memmap] = {}
    length = int(np.prod(descriptors.block_grid(run.competition.shape))) * descriptors.BINS
    for step in (step for step in waiting if not _is_of_pixels(run, step)):
        ids = {item.image_id for item in listing.items if item.subset == step.subset}
        if step.subset == "train":  # whose table also has a row for each image that is missing or has no mask
            ids |= {fault.image_id for fault in listing.faults if fault.image_id is not None}
        _, histograms, thumbnails = step.outputs
        require_space(histograms, len(ids) * length, "block histograms")
        side = descriptors.SIDE**2
        arrays |= {
            f"{step.subset}_histogram": _open(stack, histograms, (len(ids), length), np.dtype(np.uint8)),
            f"{step.subset}_thumbnail": _open(stack, thumbnails, (len(ids), side), np.dtype(np.float16)),
        }
    return arrays


def _open(stack: ExitStack, path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap:
    temporary = stack.enter_context(writing(path))
    return np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=shape)


def _pixel_type(items: list[Item], known: pd.DataFrame | None) -> np.dtype:
    """The type of the first image: of the training images, where they are decoded now or were before."""
    types = [] if known is None or items[0].subset == "train" else [name for name in known["dtype"] if name]
    if types:
        return np.dtype(types[0])
    for item in items:
        try:
            return item.read_image().dtype
        except ValueError:
            continue
    return np.dtype(np.uint8)


def _decode_all(run: Run, items: list[Item], arrays: dict[str, np.memmap], dtype: np.dtype) -> list[Decoded]:
    geometry = geometry_of(run.recipe.image)
    offset = {"train": 0, "test": sum(item.subset == "train" for item in items)}

    def place(pair: tuple[int, Item]) -> Decoded:
        index, item = pair
        one = _decode_one(item, run, geometry, dtype)
        for name, array in one.arrays.items():
            if name in arrays:
                arrays[name][index - offset[item.subset]] = array
        return replace(one, arrays={})

    with ThreadPoolExecutor() as pool:
        return list(track(pool.map(place, enumerate(items)), "decode", len(items)))


def _decode_one(item: Item, run: Run, geometry: Geometry, dtype: np.dtype) -> Decoded:
    competition, path = run.competition, run.input / item.path
    row = _empty_row(item.image_id, item.subset, competition) | {"path": item.path}
    row |= {"group": item.group or ""} | {f"extra_{key}": value for key, value in item.extra.items()}
    droppable = item.image_id if item.subset == "train" else None
    try:
        image = item.read_image()
        _check_image(image, competition, dtype, remarks.has("turned", path))
    except ValueError as error:
        return Decoded(row, {}, [], [Fault(row["path"], None, str(error), droppable)])
    values = descriptors.grey(image)
    row |= _statistics(image, values)
    arrays = {f"{item.subset}_images": image_to_network(image, geometry)}
    grid = descriptors.block_grid(competition.shape)
    arrays |= {f"{item.subset}_histogram": descriptors.block_histograms(values, grid)}
    arrays |= {f"{item.subset}_thumbnail": descriptors.thumbnail(values)}
    if item.read_masks is None:
        return Decoded(row, arrays, [], [])
    try:
        masks = item.read_masks(image.shape[:2])
    except MaskFault as error:
        hint = _turned_hint(run) if remarks.has("turned", path) else ""
        return Decoded(row, arrays, [], [Fault(error.file, error.row, f"{error}{hint}", droppable)])
    row |= _mask_columns(masks, competition)
    to_network = labels_to_network if competition.kind == "multiclass" else mask_to_network
    arrays |= {"train_masks": to_network(masks.planes, geometry)} if item.subset == "train" else {}
    return Decoded(row, arrays, _all_outlines(masks, competition), [])


def _mask_columns(masks: Masks, competition: Competition) -> dict[str, Any]:
    row: dict[str, Any] = {"ignore": rle.encode(masks.planes[0] == IGNORE)}
    for number, name in enumerate(competition.classes):
        mask = masks.planes[number] == 1
        row |= {f"rle_{name}": rle.encode(mask), f"area_{name}": int(mask.sum())}
        if masks.instances is not None:
            row[f"instances_{name}"] = "|".join(masks.instances[number])
    return row


def _turned_hint(run: Run) -> str:
    remedy = "if masks are" if _orientation(run) == "upright" else "unless masks are"
    verb = "set" if _orientation(run) == "upright" else "remove"
    return (
        f"; the image is stored turned or mirrored (EXIF orientation): {remedy} of the pixels as stored, {verb} "
        "`orientation: stored` in the competition's YAML"
    )


def _check_image(image: np.ndarray, competition: Competition, dtype: np.dtype, turned: bool) -> None:
    height, width = image.shape[:2]
    if competition.shape and (height, width) != competition.shape:
        expected = f"expected {competition.shape[0]}×{competition.shape[1]} (rows × columns)"
        hint = ": transposed?" if (width, height) == competition.shape else ""
        hint = ": it is stored turned (EXIF orientation); see `orientation` of the YAML" if hint and turned else hint
        raise ValueError(f"image is {height}×{width}; {expected}{hint}")
    if image.dtype != dtype:
        raise ValueError(f"image is {image.dtype}, the first image of the competition is {dtype}; convert one of them")


def _statistics(image: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    height, width, channels = image.shape
    return {
        "height": height, "width": width, "channels": channels, "dtype": str(image.dtype),
        "mean": float(image.mean()), "standard_deviation": float(image.std()),
        "minimum": int(image.min()), "maximum": int(image.max()),
        "entropy": descriptors.entropy(values), "smoothness": descriptors.smoothness(values),
        "pixel_hash": hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).hexdigest(),
    }  # fmt: skip


def _empty_row(image_id: str, subset: str, competition: Competition) -> dict[str, Any]:
    row: dict[str, Any] = {"image_id": image_id, "subset": subset, "path": "", "height": 0, "width": 0, "channels": 0}
    row |= {"dtype": "", "group": "", "fault": "", "mean": 0.0, "standard_deviation": 0.0, "minimum": 0, "maximum": 0}
    row |= {"entropy": 0.0, "smoothness": 0.0, "pixel_hash": "", "ignore": ""}
    for name in competition.classes:
        row |= {f"rle_{name}": "", f"area_{name}": 0}
    return row


def _all_outlines(masks: Masks, competition: Competition) -> list[tuple[float, float]]:
    """Outlines of an image's masks, where they come from run-length text, which can be read in the wrong order."""
    if not isinstance(competition, RleCsv) or competition.train.mask_files:
        return []
    return [_outlines(mask, rle.convention_of(competition.rle)) for mask in masks.planes if mask.any()]


def _outlines(mask: np.ndarray, convention: rle.Convention) -> tuple[float, float]:
    other = rle.Convention("row" if convention.order == "column" else "column")
    text = rle.encode(mask, rle.Convention(convention.order))
    return rle_checks.outline_length(mask), rle_checks.outline_length(rle.decode(text, mask.shape[:2], other))


def _remarks(run: Run, images: list[str]) -> list[str]:
    """What should be known of files that were read well."""
    paths = {run.input / path for path in images}
    turned = remarks.noted("turned") & paths
    masks, frames = remarks.noted("white_is_zero") - paths, remarks.noted("frames") & paths
    texts = []
    if turned and _orientation(run) == "upright":
        texts.append(
            f"{_counted(turned, 'image is', 'images are')} stored turned or mirrored (EXIF orientation) and read "
            "upright, as viewers show them; if the masks were drawn on the pixels as stored, set `orientation: stored` "
            "in the competition's YAML"
        )
    elif turned:
        texts.append(
            f"{_counted(turned, 'image is', 'images are')} stored turned or mirrored (EXIF orientation) and read as "
            "stored, not as viewers show them"
        )
    if masks:
        texts.append(
            f"{_counted(masks, 'mask file is', 'mask files are')} WhiteIsZero and read as viewers show them, where the "
            "stored 0 is white; in such masks ImageJ means the stored 255 as foreground: look at the pictures of the "
            "report, and invert the files if foreground and background are swapped"
        )
    if frames:
        texts.append(f"{_counted(frames, 'image has', 'images have')} several frames, of which the first is read")
    return texts


def _counted(paths: Collection[Path], one: str, several: str) -> str:
    return f"{len(paths)} {one if len(paths) == 1 else several}"


def _orientation(run: Run) -> Orientation:
    return run.competition.orientation if isinstance(run.competition, RleCsv) else "stored"


def _transposed(run: Run, decoded: list[Decoded]) -> list[Fault]:
    """A fault when nearly all masks are smoother read in the other order; on square images the two are the same.

    On images that are stored turned this says that masks were drawn on the other picture: as stored, or upright.
    """
    turned = [one for one in decoded if remarks.has("turned", run.input / one.row["path"])]
    others = [one for one in decoded if not remarks.has("turned", run.input / one.row["path"])]
    return _other_order(run.competition, others) or _other_orientation(run, turned)


def _other_orientation(run: Run, decoded: list[Decoded]) -> list[Fault]:
    outlines = [pair for one in decoded if one.row["height"] != one.row["width"] for pair in one.outlines]
    torn = sum(swapped < plain for plain, swapped in outlines)
    if len(outlines) < 3 or torn < 0.9 * len(outlines):
        return []
    text = f"{torn} of {len(outlines)} masks of images that are stored turned (EXIF orientation) look torn: "
    if _orientation(run) == "upright":
        text += "they were drawn on the pixels as stored: set `orientation: stored` in the competition's YAML"
    else:
        text += "they were drawn on the upright pictures: remove `orientation: stored` from the competition's YAML"
    table = run.competition.train.masks if isinstance(run.competition, RleCsv) else None
    return [Fault(table or "", None, text)]


def _other_order(competition: Competition, decoded: list[Decoded]) -> list[Fault]:
    order = competition.rle.order
    other = "row" if order == "column" else "column"
    outlines = [pair for one in decoded if one.row["height"] != one.row["width"] for pair in one.outlines]
    smoother = sum(swapped < plain for plain, swapped in outlines)
    if len(outlines) < 3 or smoother < 0.9 * len(outlines):
        return []
    text = (
        f"{smoother} of {len(outlines)} masks are smoother when read in {other} order than in {order} order; "
        f"they look transposed: set `rle: {{order: {other}}}` in the competition's YAML"
    )
    table = competition.train.masks if isinstance(competition, RleCsv) else None
    return [Fault(table or "", None, text)]


def _uniform(run: Run, rows: list[dict[str, Any]]) -> list[Fault]:
    """A fault when no training image has a mask, or every mask covers its whole image, unless the YAML allows it."""
    competition = run.competition
    train = [row for row in rows if row["subset"] == "train"]
    if not train or competition.decode.uniform_masks == "allow":
        return []
    masks = [(row, row[f"area_{name}"]) for row in train for name in competition.foreground if row[f"area_{name}"]]
    if not masks:
        what = f"no training image has a mask, all {len(train)} are empty"
    elif all(area == row["height"] * row["width"] - _ignored_area(row) for row, area in masks):
        what = f"every mask covers its whole image, {len(masks)} of {len(train)} images"
        if len(competition.foreground) > 1:
            what = f"every mask covers its whole image, {len(masks)} masks of {len(train)} images"
    else:
        return []
    text = f"{what}: {_causes(run, train[0], not masks)}; where it is so, set `decode: {{uniform_masks: allow}}`"
    table_name = competition.train.masks if isinstance(competition, RleCsv) else getattr(competition, "file", "")
    return [Fault(table_name or "masks", None, text)]


def _ignored_area(row: dict[str, Any]) -> int:
    return int(rle.decode(row["ignore"], (row["height"], row["width"])).sum()) if row["ignore"] else 0


def _causes(run: Run, row: dict[str, Any], empty: bool) -> str:
    """What mostly makes all masks empty or full, with the setting to look at."""
    competition = run.competition
    if not isinstance(competition, RleCsv):
        return "look at the values of the class maps and at `classes`" + (
            " and `border`" if competition.reader == "oxford_pet" else " and `ignore_value`"
        )
    if not competition.train.mask_files:
        return f"look whether `columns: {{rle: {competition.columns.rle}}}` is the column of masks"
    threshold = competition.train.threshold
    ways = [f"`threshold: {threshold}` does not fit their values"] if threshold else []
    ways += ["the mask lies in the alpha channel of its file, which is not read: save it as a grey image"]
    ways += ["the files number instances or classes that `classes` does not name"] if competition.values else []
    ways += ["`ignore_value` takes pixels of the class"] if competition.ignore_value is not None else []
    ways += ["`masks` names files of another kind"]
    ways += ["`columns: {absent: empty}` takes files that are not found for empty masks"] * (
        empty and competition.columns.absent == "empty"
    )
    return "it may be that " + ", or that ".join(ways)


def _doubts(run: Run, rows: list[dict[str, Any]]) -> list[str]:
    """What a sample of the masks and their images says against the order and the base of the YAML."""
    competition = run.competition
    if not isinstance(competition, RleCsv) or competition.train.mask_files:
        return []
    used = rle.Convention(competition.rle.order, competition.rle.base)
    columns = [f"rle_{name}" for name in competition.classes]
    turned = remarks.noted("turned")  # their mirrored masks may be those of the stored picture
    known = [row for row in rows if row["subset"] == "train" and run.input / row["path"] not in turned]
    full = [(row, row[name]) for row in known for name in columns if row[name]]
    sample = []
    for row, text in evenly(full, 2 * rle_checks.MOST_ROWS):
        shape = (row["height"], row["width"])
        own = rle.encode(rle.decode(text, shape), used)
        sample.append(rle_checks.MaskRow(own, run.input / row["path"], shape, orientation=_orientation(run)))
    return rle_checks.doubts(sample, used)


def _alike_groups(competition: Competition, rows: list[dict[str, Any]]) -> list[str]:
    """A doubt about groups whose names differ in spelling alone, such as 7 and 7.0, or P1 and p1."""
    names = dict.fromkeys(row["group"] for row in rows if row["subset"] == "train" and row["group"])
    spellings: dict[str, list[str]] = {}
    for name in names:
        number = re.fullmatch(r"0*(\d+)(\.0*)?", name)
        text = number[1] if number else unicodedata.normalize("NFKC", name).casefold()
        spellings.setdefault(text, []).append(name)
    alike = [" and ".join(same) for same in spellings.values() if len(same) > 1]
    if not alike:
        return []
    return [
        f"`{competition.group}` (group) is written in more than one way: {listed(alike)}. They count as different "
        "groups now, and may stand in different folds; where they are the same, write them alike in the table."
    ]


def _judge(competition: Competition, faults: list[Fault], train: set[str]) -> None:
    dropped = competition.decode.on_error == "drop"
    fatal = [fault for fault in faults if fault.image_id is None or not dropped]
    if fatal:
        lines = "\n".join(f"  {fault}" for fault in fatal[:FAULTS_SHOWN])
        more = f"\n  … and {len(fatal) - FAULTS_SHOWN} more" if len(fatal) > FAULTS_SHOWN else ""
        faulty = {fault.image_id for fault in fatal if fault.image_id}
        hint = "\nMend them, or leave faulty training images out: `decode: {on_error: drop}` in the competition's YAML."
        if train <= faulty:
            hint = "\nNo training image is without one: does the competition's YAML say what these files are?"
        what = "1 fault" if len(fatal) == 1 else f"{len(fatal)} faults"
        raise PipelineError(f"{what} in the raw files:\n{lines}{more}{hint if faulty else ''}")


def _with_faults(rows: list[dict[str, Any]], faults: list[Fault], competition: Competition) -> list[dict[str, Any]]:
    """Rows with their faults; a fault without an image or without a mask gets a row of subset `faulty`, in no array."""
    by_id = {row["image_id"]: row for row in rows if row["subset"] != "test"}  # a fault has the id of a training image
    for fault in faults:
        if fault.image_id is not None:
            row = by_id.setdefault(fault.image_id, _empty_row(fault.image_id, "faulty", competition))
            row["fault"] = str(fault)
    return [*by_id.values(), *(row for row in rows if row["subset"] == "test")]
