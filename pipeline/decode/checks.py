"""Checks of the competition's YAML against all images and masks together. Faults stop decode; doubts are warnings.

A single image or mask can have any property, but some properties of many of them mean that they are read incorrectly.
"""

import re
import unicodedata
from typing import Any

from pipeline.core.config.competition import Competition
from pipeline.core.config.raw_layouts import RleCsv
from pipeline.core.run import Run
from pipeline.decode import rle_checks, value_range
from pipeline.decode.images import Decoded
from pipeline.decode.readers import remarks
from pipeline.decode.readers.base import Fault, listed
from pipeline.decode.readers.files import evenly
from pipeline.masks import rle


def find_faults(run: Run, decoded: list[Decoded]) -> list[Fault]:
    """Returns faults that follow from all images and masks without faults of their own: signs that files are read
    incorrectly."""
    sound = [image for image in decoded if not image.faults]
    rows = [image.row for image in sound]
    uniform = _uniform(run, rows) if len(sound) == len(decoded) else []  # images with faults may have masks
    return _transposed(run, sound) + uniform + value_range.find_faults(run.competition, rows)


def find_doubts(run: Run, rows: list[dict[str, Any]]) -> list[str]:
    """Returns warnings about settings of the YAML that the training images suggest are wrong: the order and base of run
    lengths, groups, the range of values, or classes."""
    competition = run.competition
    return [
        *_convention(run, rows),
        *_alike_groups(competition, rows),
        *value_range.find_doubts(competition, rows),
        *_no_mask_of(competition, rows),
    ]


# --- order and orientation -------------------------------------------------------------------------------------------


def _transposed(run: Run, decoded: list[Decoded]) -> list[Fault]:
    """Returns a fault if nearly all masks are smoother in the other pixel order. For square images both are equally
    smooth.

    For images with an EXIF rotation, this means that masks were drawn on the other version of the image, as stored or
    upright.
    """
    turned, others = _turned_and_others(run, decoded)
    return _other_order(run.competition, others) or _other_orientation(run, turned)


def orientation_settled(run: Run, decoded: list[Decoded]) -> bool:
    """Returns whether the sizes of mask files prove that the EXIF orientation is handled correctly: all rotated
    training images are not square, and have a mask file of their size."""
    turned, _ = _turned_and_others(run, decoded)
    train = [image for image in turned if image.row["subset"] == "train" and image.row["height"] != image.row["width"]]
    has_files = isinstance(run.competition, RleCsv) and run.competition.train.mask_files
    return bool(
        has_files and len(train) == sum(image.row["subset"] == "train" for image in turned) and train
    ) and not any(image.faults for image in turned)


def _turned_and_others(run: Run, decoded: list[Decoded]) -> tuple[list[Decoded], list[Decoded]]:
    """Returns the images with an EXIF rotation, and all others."""
    noted, folder = remarks.noted("turned"), run.input
    if not noted:
        return [], decoded
    turned = [folder / image.row["path"] in noted for image in decoded]
    pairs = list(zip(decoded, turned, strict=True))
    return [image for image, is_turned in pairs if is_turned], [image for image, is_turned in pairs if not is_turned]


def _other_orientation(run: Run, decoded: list[Decoded]) -> list[Fault]:
    outlines = [pair for image in decoded if image.row["height"] != image.row["width"] for pair in image.outlines]
    torn = sum(swapped < plain for plain, swapped in outlines)
    if len(outlines) < 3 or torn < 0.9 * len(outlines):
        return []
    text = f"{torn} of {len(outlines)} masks of images that are stored turned (EXIF orientation) look torn: "
    if run.competition.reads_upright:
        text += "they were drawn on the pixels as stored: set `orientation: stored` in the competition's YAML"
    else:
        text += "they were drawn on the upright pictures: remove `orientation: stored` from the competition's YAML"
    table = run.competition.train.masks if isinstance(run.competition, RleCsv) else None
    return [Fault(table or "", None, text)]


def _other_order(competition: Competition, decoded: list[Decoded]) -> list[Fault]:
    order = competition.rle.order
    other = "row" if order == "column" else "column"
    outlines = [pair for image in decoded if image.row["height"] != image.row["width"] for pair in image.outlines]
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
    """Returns a fault if no training image has a mask, or if every mask covers its whole image, unless the YAML allows
    it."""
    competition = run.competition
    train = [row for row in rows if row["subset"] == "train"]
    if not train or competition.decode.uniform_masks == "allow":
        return []
    masks = [(row, row[f"area_{name}"]) for row in train for name in competition.foreground if row[f"area_{name}"]]
    if not masks:
        what = f"no training image has a mask (all {len(train)} are empty)"
    elif all(area == row["height"] * row["width"] - _ignored_area(row) for row, area in masks):
        what = f"every mask covers its whole image ({len(masks)} of {len(train)} images)"
        if len(competition.foreground) > 1:
            what = f"every mask covers its whole image ({len(masks)} masks of {len(train)} images)"
    else:
        return []
    text = f"{what}: {_causes(run, train[0], not masks)}; if this is correct, set `decode: {{uniform_masks: allow}}`"
    table_name = competition.train.masks if isinstance(competition, RleCsv) else getattr(competition, "file", "")
    return [Fault(table_name or "masks", None, text)]


def _no_mask_of(competition: Competition, rows: list[dict[str, Any]]) -> list[str]:
    """Returns a warning about classes that occur in no training image although others do."""
    train = [row for row in rows if row["subset"] == "train"]
    without = [name for name in competition.foreground if not any(row[f"area_{name}"] for row in train)]
    if not without or len(without) == len(competition.foreground):
        return []
    return [
        f"no training image has a mask of {', '.join(without)}: check `classes`, and the labels or file names of masks"
    ]


def _ignored_area(row: dict[str, Any]) -> int:
    return int(rle.decode(row["ignore"], (row["height"], row["width"])).sum()) if row["ignore"] else 0


def _causes(run: Run, row: dict[str, Any], empty: bool) -> str:
    """Returns the usual causes of masks that are all empty or all full, with the settings to check."""
    competition = run.competition
    if not isinstance(competition, RleCsv):
        return "check the values of the class maps and `classes`" + (
            " and `border`" if competition.reader == "oxford_pet" else " and `ignore_value`"
        )
    if not competition.train.mask_files:
        return f"check whether `columns: {{rle: {competition.columns.rle}}}` is the column of masks"
    threshold = competition.train.threshold
    ways = [f"`threshold: {threshold}` does not fit their values"] if threshold else []
    ways += ["the mask lies in the alpha channel of its file, which is not read: save it as a grey image"]
    ways += (
        ["the files contain numbers of instances or classes that are not in `classes`"] if competition.values else []
    )
    ways += ["`ignore_value` is the value of the class"] if competition.ignore_value is not None else []
    ways += ["`masks` matches files of another kind"]
    ways += ["`columns: {absent: empty}` treats files that are not found as empty masks"] * (
        empty and competition.columns.absent == "empty"
    )
    return "it may be that " + ", or that ".join(ways)


def _convention(run: Run, rows: list[dict[str, Any]]) -> list[str]:
    """Returns warnings about the order and base of run lengths in the YAML, from a sample of masks and images."""
    competition = run.competition
    if not isinstance(competition, RleCsv) or competition.train.mask_files or not competition.images_are_files:
        return []
    used = rle.Convention(competition.rle.order, competition.rle.base)
    columns = [f"rle_{name}" for name in competition.classes]
    # for rotated images, mirrored masks may fit the image as stored
    folder, turned = run.input, remarks.noted("turned")
    known = [row for row in rows if row["subset"] == "train" and not (turned and folder / row["path"] in turned)]
    full = [(row, row[name]) for row in known for name in columns if row[name]]
    sample = []
    for row, text in evenly(full, 2 * rle_checks.MOST_ROWS):
        shape = (row["height"], row["width"])
        encoded = rle.encode(rle.decode(text, shape), used)
        sample.append(rle_checks.MaskRow(encoded, folder / row["path"], shape, orientation=competition.orientation))
    return rle_checks.doubts(sample, used)


def _alike_groups(competition: Competition, rows: list[dict[str, Any]]) -> list[str]:
    """Returns a warning about groups whose names differ only in spelling, such as 7 and 7.0, or P1 and p1."""
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
        f"`{competition.group}` (group) is spelled in more than one way: {listed(alike)}. These count as different "
        "groups and may be in different folds; if they are the same, use one spelling in the table."
    ]
