"""Reads and checks all raw images and masks once, and writes their pixels to arrays that training can memory-map.

    python -m pipeline decode RECIPE

reads   input/<competition>/
writes  work/<competition>/images.parquet; histograms.npy, thumbnails.npy: descriptors of images (descriptors.py)
        work/<competition>/test_images.parquet, test_histograms.npy, test_thumbnails.npy: the same for test images
        work/<competition>/pixels_<H>x<W>_<fit>_<colour>/{train_images,train_masks,test_images}.npy
        images (N, H, W, C) uint8 or uint16; masks (N, classes, H, W) uint8: 0, 1, 255 = ignored, or in multiclass
        competitions (N, 1, H, W) uint8: class, 255 = ignored
        and train_border.npy or train_distance.npy if model.instances is set (separators.py)

Training and test images are separate steps, so that a new test set is decoded without any training image.
"""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.markup import escape

from pipeline.core.config.competition import Competition
from pipeline.core.config.raw_layouts import RleCsv
from pipeline.core.console import say, track, warn
from pipeline.core.engine import cores
from pipeline.core.errors import PipelineError
from pipeline.core.files import new_array, require_space, shown, writing
from pipeline.core.freshness import Step
from pipeline.core.intact import read_parquet
from pipeline.core.run import Run
from pipeline.decode import checks, descriptors, separators, table
from pipeline.decode.images import Decoded, blank_one, decode_one, empty_row, first_type, usual
from pipeline.decode.readers import remarks
from pipeline.decode.readers.base import SUBSETS, WORDS, Fault, Item, Listing, SubsetName
from pipeline.decode.readers.files import packed
from pipeline.decode.readers.registry import reader_of
from pipeline.masks.geometry import geometry_of

SHARED, READS_RAW = True, True
LESS_MEMORY = (
    "set a smaller image.size or image.store; for large images, set `windows` in the competition's YAML, which cuts "
    "them into windows"
)
FAULTS_SHOWN = 30
IRRELEVANT_KEYS = {
    "baseline", "clean", "split", "splits", "metric", "title", "kaggle", "ignored_prediction", "forbids_pretrained",
}  # fmt: skip
"""Settings of a competition that do not affect the outputs of decode."""
OF_TEST = {"test", "sample_submission", "submission"}
"""Settings of a competition that do not affect the outputs of decode for training images."""
NewArray = tuple[Path, tuple[int, ...], np.dtype]
"""The path, shape and dtype of an array."""
DEFAULTS = {"decode": {"on_test_error": "stop"}, "train": {"empty": []}, "test": {"empty": []}}
"""The behaviour of earlier versions, which did not have these settings."""


def steps(run: Run) -> list[Step]:
    """Returns the steps: a table of the training images and one of the test images and, for a run that trains, the
    pixel arrays of each at the recipe's image settings."""
    subsets = SUBSETS if run.competition.has_test else SUBSETS[:1]
    pixels = [_pixel_step(run, subset) for subset in subsets if run.recipe.trains]
    separators_step = [_separator_step(run)] if run.recipe.trains and run.separators else []
    return [_table_step(run, subset) for subset in subsets] + pixels + separators_step


def _table_step(run: Run, subset: SubsetName) -> Step:
    listed, *_ = outputs = _table_files(run, subset)
    manifest, title = listed.with_suffix(".manifest.json"), f"decode the {WORDS[subset]} table"
    raw = reader_of(run.competition).raw_files(run.competition, run.input, subset)
    return Step("decode", title, manifest, raw, outputs, _settings(run, subset), defaults=DEFAULTS, subset=subset)


def _pixel_step(run: Run, subset: SubsetName) -> Step:
    names, (listed, *_) = ["images", "masks"] if subset == "train" else ["images"], _table_files(run, subset)
    outputs = tuple(run.pixels / f"{subset}_{name}.npy" for name in names)
    geometry = run.recipe.image.model_dump(mode="json", include={"fit", "border", "channels"})
    geometry["size"] = list(run.recipe.image.stored)
    inputs = (*reader_of(run.competition).raw_files(run.competition, run.input, subset), listed)
    settings = _settings(run, subset) | {"image": geometry}
    manifest, title = run.pixels / f"{subset}.manifest.json", f"decode the {WORDS[subset]} pixels"
    return Step("decode", title, manifest, inputs, outputs, settings, defaults=DEFAULTS, subset=subset)


def _separator_step(run: Run) -> Step:
    """Returns the step that writes separators, which depends on the table of training images."""
    assert run.separators  # otherwise there is no such step
    pixels, instances = _pixel_step(run, "train"), run.recipe.model.instances
    return replace(
        pixels,
        title=f"decode the training {instances}s",
        manifest=run.separators.with_suffix(".manifest.json"),
        outputs=(run.separators,),
        settings=pixels.settings | {"instances": instances},
    )


def _is_of_pixels(run: Run, step: Step) -> bool:
    return step.manifest.parent == run.pixels


def _table_files(run: Run, subset: SubsetName) -> tuple[Path, Path, Path]:
    """Returns the paths of the table of a subset, its histograms and its thumbnails."""
    if subset == "train":
        return run.table, run.histograms, run.thumbnails
    return run.test_table, run.test_histograms, run.test_thumbnails


def _settings(run: Run, subset: SubsetName) -> dict[str, Any]:
    """Returns the settings of the competition that affect the outputs of decode for a subset."""
    competition = run.competition
    if subset == "test":
        return competition.model_dump(mode="json", exclude=IRRELEVANT_KEYS | {"train"})
    kept = competition.model_dump(mode="json", exclude=IRRELEVANT_KEYS | OF_TEST)
    del kept["decode"]["on_test_error"]
    return kept | {"images_together": competition.images_together}


def raw_fault(run: Run) -> str:
    """Returns the message with which decode would stop before reading any image because raw files are missing; "" if
    none are missing."""
    try:
        reader_of(run.competition).list_items(run.competition, run.input, SUBSETS)
    except PipelineError as error:
        return str(error)
    return ""


def execute(run: Run, waiting: list[Step]) -> Iterator[Step]:
    """Runs the waiting steps: first those that read raw files, in one pass over the files of their subsets, then those
    that only need the table."""
    separators.check(run)
    raw_steps = [step for step in waiting if run.separators not in step.outputs]
    table_steps = [step for step in waiting if run.separators in step.outputs]
    yield from _read_raw(run, raw_steps) if raw_steps else ()
    for step in table_steps:
        separators.write(run)
        yield step


def _read_raw(run: Run, waiting: list[Step]) -> Iterator[Step]:
    """Runs the steps that read raw files, in one pass over the files of their subsets."""
    subsets = [subset for subset in SUBSETS if any(step.subset == subset for step in waiting)]
    listing = reader_of(run.competition).list_items(run.competition, run.input, subsets)
    if "train" in subsets and not any(item.subset == "train" for item in listing.items):
        example = f"; for instance {listing.faults[0]}" if listing.faults else ""
        hint = f"{_patterns(run)}{example}{packed(run.input)}"
        raise PipelineError(f"No file in {run.input} matches the training images of the competition's YAML{hint}.")
    known = _decoded_before(run, subsets)
    remarks.forget()
    dtype = _pixel_type(run.competition, listing.items, known)
    tables = [step.subset for step in waiting if not _is_of_pixels(run, step)]
    with ExitStack() as stack:
        arrays = _open_arrays(run, waiting, listing, dtype, stack)
        decoded = _decode_all(run, listing.items, arrays, dtype)
        faults = listing.faults + [fault for image in decoded for fault in image.faults]
        faults += checks.find_faults(run, decoded)
        faults += _clashes(run.competition, listing.items, known, dtype)
        if _tolerates(run.competition) and subsets == ["test"]:
            listing.remarks.extend(str(fault) for fault in faults)
            faults = []
        _judge(run.competition, faults, {item.image_id for item in listing.items if item.subset == "train"})
        rows = _with_faults([image.row for image in decoded], faults, run.competition)
        of = {subset: [row for row in rows if (row["subset"] == "test") == (subset == "test")] for subset in subsets}
        for subset in subsets:
            if subset in tables:
                table.write_table(_table_files(run, subset)[0], of[subset])
        for array in arrays.values():
            array.flush()
        doubts = checks.find_doubts(run, rows) if "train" in tables else []
    yield from waiting
    folder = run.input  # a property that is computed at each access
    paths = {folder / item.path for item in listing.items}
    for text in [
        *listing.remarks,
        *remarks.sentences(paths, run.competition.reads_upright, checks.orientation_settled(run, decoded)),
        *doubts,
    ]:
        warn(f"  [yellow]{escape(text)}[/yellow]")
    blank = [row["fault"] for row in rows if row["subset"] == "test" and row["fault"]]
    if blank:
        others = f" (and {len(blank) - 1} more)" if len(blank) > 1 else ""
        warn(
            "  [yellow]a test image that cannot be read is replaced by a black image: "
            f"{escape(blank[0])}{others}[/yellow]"
        )
    counts = {name: sum(row["subset"] == name for row in rows) for name in subsets}
    texts = [f"{count} {WORDS[name]} images → {shown(_table_files(run, name)[0])}" for name, count in counts.items()]
    say(f"  {', '.join(texts)}")


def _patterns(run: Run) -> str:
    train = run.competition.train if isinstance(run.competition, RleCsv) else None
    return f" (images {train.images}, masks {train.masks})" if train else ""


def _decoded_before(run: Run, subsets: list[SubsetName]) -> pd.DataFrame | None:
    """Returns id, path and dtype of the images that are not decoded now, from their table; None if there are none."""
    other = run.test_table if subsets == ["train"] else run.table
    if len(subsets) == len(SUBSETS) or not other.exists():
        return None
    images = read_parquet(other, ["image_id", "subset", "path", "dtype"])
    return images[(images["subset"] == "test") == (subsets == ["train"])]  # up to layout 2 one table held all images


def _clashes(competition: Competition, items: list[Item], known: pd.DataFrame | None, dtype: np.dtype) -> list[Fault]:
    """Returns faults of images that conflict with images of the other subset, which were decoded before."""
    if known is None or not items:
        return []
    ids = set(known["image_id"]) if competition.images_together else set()
    paths = set(zip(known["image_id"], known["path"], strict=True))
    types = [name for name in known["dtype"] if name]
    this, other = ("test", "training") if items[0].subset == "test" else ("training", "test")
    both = [item for item in items if item.image_id in ids or (item.image_id, item.path) in paths]
    faults = [Fault(item.path, None, f"{this} image {item.image_id} is a {other} image too") for item in both]
    if types and types[0] != str(dtype):
        text = f"image is {dtype}, and the test images are {types[0]}; convert one of them"
        faults.append(Fault(items[0].path, None, text))
    return faults


def _open_arrays(
    run: Run, waiting: list[Step], listing: Listing, dtype: np.dtype, stack: ExitStack
) -> dict[str, np.memmap]:
    """Returns the new arrays. Their disk space is checked and allocated before the first image is read."""
    arrays = _pixel_arrays(run, waiting, listing, dtype) | _descriptor_arrays(run, waiting, listing)
    needed = sum(math.prod(shape) * kind.itemsize for _, shape, kind in arrays.values())
    rows, columns = run.recipe.image.stored
    require_space(run.competition_folder, needed, f"pixel arrays at {rows}×{columns} and descriptors of all images")
    return {
        name: new_array(stack.enter_context(writing(path)), shape, kind) for name, (path, shape, kind) in arrays.items()
    }


def _pixel_arrays(run: Run, waiting: list[Step], listing: Listing, dtype: np.dtype) -> dict[str, NewArray]:
    geometry, arrays = geometry_of(run.recipe.image), dict[str, NewArray]()
    planes = 1 if run.competition.kind == "multiclass" else len(run.competition.classes)
    for step in (step for step in waiting if _is_of_pixels(run, step)):
        count = sum(item.subset == step.subset for item in listing.items)
        images, *masks = step.outputs
        arrays[images.stem] = images, (count, *geometry.size, geometry.channels), dtype
        arrays |= {path.stem: (path, (count, planes, *geometry.size), np.dtype(np.uint8)) for path in masks}
    return arrays


def _descriptor_arrays(run: Run, waiting: list[Step], listing: Listing) -> dict[str, NewArray]:
    arrays: dict[str, NewArray] = {}
    length = int(np.prod(descriptors.block_grid(run.competition.shape))) * descriptors.BINS
    for step in (step for step in waiting if not _is_of_pixels(run, step)):
        ids = {item.image_id for item in listing.items if item.subset == step.subset}
        if step.subset == "train":  # their table also has a row for each image that is missing or has no mask
            ids |= {fault.image_id for fault in listing.faults if fault.image_id is not None}
        _, histograms, thumbnails = step.outputs
        arrays |= {
            f"{step.subset}_histogram": (histograms, (len(ids), length), np.dtype(np.uint8)),
            f"{step.subset}_thumbnail": (thumbnails, (len(ids), descriptors.SIDE**2), np.dtype(np.float16)),
        }
    return arrays


def _pixel_type(competition: Competition, items: list[Item], known: pd.DataFrame | None) -> np.dtype:
    """Returns the dtype of the first image; of the first training image if training images are decoded now or were
    before."""
    types = [] if known is None or items[0].subset == "train" else [name for name in known["dtype"] if name]
    if types:
        return np.dtype(types[0])
    most_frequent = usual(items, competition) if _tolerates(competition) and items[0].subset == "test" else None
    return most_frequent[1] if most_frequent else first_type(items)


def _decode_all(run: Run, items: list[Item], arrays: dict[str, np.memmap], dtype: np.dtype) -> list[Decoded]:
    geometry = geometry_of(run.recipe.image)
    offset = {"train": 0, "test": sum(item.subset == "train" for item in items)}
    tests = [item for item in items if item.subset == "test"]
    tolerates = _tolerates(run.competition)
    substitute = usual(tests, run.competition) if tests and tolerates else None

    def place(pair: tuple[int, Item]) -> Decoded:
        index, item = pair
        decoded = decode_one(item, run, geometry, dtype)
        if decoded.faults and tolerates and item.subset == "test":
            blank = blank_one(item, run, geometry, substitute[0], dtype) if substitute else decoded
            decoded = replace(blank, row=blank.row | {"fault": str(decoded.faults[0])})
        for name, array in decoded.arrays.items():
            if name in arrays:
                arrays[name][index - offset[item.subset]] = array
        return replace(decoded, arrays={})

    with ThreadPoolExecutor(_at_once(run.competition)) as pool:
        return list(track(pool.map(place, enumerate(items)), "decode", len(items)))


def _tolerates(competition: Competition) -> bool:
    return competition.decode.on_test_error == "blank"


def _at_once(competition: Competition) -> int | None:
    """Returns how many windows of large images are decoded in parallel, each of which takes about 40 bytes per pixel.
    None: no limit other than that of ThreadPoolExecutor."""
    windows = competition.windows if isinstance(competition, RleCsv) else None
    return None if windows is None else max(1, min(cores(), 2**24 // (windows.size[0] * windows.size[1])))


def _judge(competition: Competition, faults: list[Fault], train: set[str]) -> None:
    dropped = competition.decode.on_error == "drop"
    fatal = [fault for fault in faults if fault.image_id is None or not dropped]
    if fatal:
        lines = "\n".join(f"  {fault}" for fault in fatal[:FAULTS_SHOWN])
        more = f"\n  … and {len(fatal) - FAULTS_SHOWN} more" if len(fatal) > FAULTS_SHOWN else ""
        faulty = {fault.image_id for fault in fatal if fault.image_id}
        hint = (
            "\nCorrect them, or leave out faulty training images with `decode: {on_error: drop}` in the competition's "
            "YAML."
        )
        if train <= faulty:
            hint = "\nEvery training image has a fault: does the competition's YAML describe these files correctly?"
        what = "1 fault" if len(fatal) == 1 else f"{len(fatal)} faults"
        raise PipelineError(f"{what} in the raw files:\n{lines}{more}{hint if faulty else ''}")


def _with_faults(rows: list[dict[str, Any]], faults: list[Fault], competition: Competition) -> list[dict[str, Any]]:
    """Returns the rows with their faults. Training images that are missing or have no mask get a row with the subset
    `faulty`; they are in no array."""
    by_id = {row["image_id"]: row for row in rows if row["subset"] != "test"}  # faults have ids of training images
    for fault in faults:
        if fault.image_id is not None:
            row = by_id.setdefault(fault.image_id, empty_row(fault.image_id, "faulty", competition))
            row["fault"] = str(fault)
    return [*by_id.values(), *(row for row in rows if row["subset"] == "test")]
