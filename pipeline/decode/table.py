"""images.parquet and test_images.parquet: one row per training and per test image, in the order of the pixel arrays.

Columns: image_id, subset (train | test | faulty; faulty images have no image or no mask and are in no array), path
(relative to the competition's input folder), height, width, channels, dtype, group, fault ("" or what is wrong with the
image), mean, standard_deviation, minimum, maximum, entropy and smoothness (descriptors.py), pixel_hash, rle_<class>
(the true mask in the internal convention; "" for test images without known truth), area_<class> (in pixels), ignore
(RLE of ignored pixels), instances_<class> (one RLE per instance, joined by "|", if the raw files distinguish
instances), extra_<column> (the raw table's other columns, as text). If an image is not exactly one file: of_files (all
files, joined by "|"), of_slices (numbers of the slices of a volume), of_spacing (millimetres between slices, rows and
columns), of_image (the volume, or the image of which it is a window), of_box (top, left, bottom, right of the window in
that image), of_core (the pixels that belong to the window, in the same form), of_size (rows and columns of that image).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from pipeline.core.config.competition import Competition
from pipeline.core.errors import PipelineError
from pipeline.core.files import shown, writing
from pipeline.core.intact import read_parquet
from pipeline.masks import rle
from pipeline.masks.geometry import IGNORE, label_map, masks_at
from pipeline.masks.instances import from_texts, labelled
from pipeline.masks.metric import Metric
from pipeline.masks.windows import Box


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes the table atomically."""
    table = pd.DataFrame(rows)
    text = [name for name in table.columns if name.startswith(("extra_", "instances_", "of_"))]
    table[text] = table[text].fillna("")  # test images do not have these columns
    with writing(path) as temporary:
        table.to_parquet(temporary, index=False)


def read_table(path: Path, subset: str | None = None) -> pd.DataFrame:
    """Returns a table, or the rows of one subset, numbered as in the pixel arrays.

    Raises:
        PipelineError: the file is missing or damaged.
    """
    table = read_parquet(path)
    return table if subset is None else table[table["subset"] == subset].reset_index(drop=True)


def read_tables(folder: Path) -> pd.DataFrame:
    """Returns the rows of both tables in a competition's folder in work/, training images first. If only one table
    exists, its rows are returned.

    Raises:
        PipelineError: neither exists.
    """
    paths = [path for name in ("images", "test_images") if (path := folder / f"{name}.parquet").exists()]
    if not paths:
        raise PipelineError(
            f"{shown(folder / 'images.parquet')} does not exist; run the decode stage of this competition first."
        )
    parts = list(map(read_table, paths))
    if len(parts) > 1:  # up to layout 2, one table held all images
        parts[0] = parts[0][parts[0]["subset"] != "test"]
    tables = pd.concat(parts, ignore_index=True)
    text = [name for name in tables.columns if name.startswith(("extra_", "instances_", "of_"))]
    tables[text] = tables[text].fillna("")
    return tables


@dataclass(frozen=True)
class Whole:
    """A large image that is cut into windows, which are listed row by row."""

    image_id: str
    shape: tuple[int, int]
    ids: tuple[str, ...]
    """Ids of the windows."""
    boxes: tuple[Box, ...]
    cores: tuple[Box, ...]
    """The pixels that belong to each window."""


def wholes_of(images: pd.DataFrame) -> list[Whole]:
    """Returns the large images whose windows are rows of a table, in their order; an empty list if images are not
    cut."""
    if "of_box" not in images:
        return []
    wholes = []
    for image_id, rows in images[images["of_box"] != ""].groupby("of_image", sort=False):
        boxes, cores = ([_box(text) for text in rows[name]] for name in ("of_box", "of_core"))
        height, width = map(int, rows["of_size"].iat[0].split())
        wholes.append(Whole(str(image_id), (height, width), tuple(rows["image_id"]), tuple(boxes), tuple(cores)))
    return wholes


def submitted(images: pd.DataFrame) -> pd.DataFrame:
    """Returns the images of a table as a submission lists them. Windows are replaced by one row for their image, with
    its id, height and width."""
    if "of_box" not in images:
        return images
    rows = images.drop_duplicates("of_image").copy()
    sizes = rows["of_size"].str.split(" ", expand=True).astype(int)
    return rows.assign(image_id=rows["of_image"], height=sizes[0], width=sizes[1]).reset_index(drop=True)


def _box(text: str) -> Box:
    top, left, bottom, right = map(int, text.split())
    return top, left, bottom, right


def true_mask(row: Any, classes: list[str]) -> np.ndarray:
    """Returns an image's masks at its own size (C, height, width) uint8: 0, 1, and 255 for ignored pixels. In
    multiclass competitions, each pixel is 1 in exactly one plane."""
    shape = (int(row["height"]), int(row["width"]))
    masks = np.stack([rle.decode(row[f"rle_{name}"], shape) for name in classes])
    if row["ignore"]:
        masks[:, rle.decode(row["ignore"], shape) == 1] = IGNORE
    return masks


def true_instances(row: Any, classes: list[str]) -> np.ndarray:
    """Returns an image's instances at its own size (C, height, width) int32, with one number per instance and -1 for
    ignored pixels. If the raw files do not distinguish instances, these are the connected regions of its masks."""
    if not any(row.get(f"instances_{name}") for name in classes):
        return labelled(true_mask(row, classes))
    shape = (int(row["height"]), int(row["width"]))
    labels = np.stack([from_texts((row[f"instances_{name}"] or "").split("|"), shape) for name in classes])
    if row["ignore"]:
        labels[:, rle.decode(row["ignore"], shape) == 1] = -1
    return labels


def scored_mask(row: Any, competition: Competition) -> np.ndarray:
    """Returns an image's true masks (see true_mask) at the size at which they are scored."""
    masks, how = true_mask(row, competition.classes), competition.submission.resize
    shape = competition.scored_shape((masks.shape[1], masks.shape[2]))
    return masks_at(masks, shape, how, competition.kind == "multiclass")


def scored_truth(row: Any, competition: Competition, metric: Metric) -> np.ndarray:
    """Returns the truth in the form that a metric needs: scored_mask, or scored_instances."""
    return scored_instances(row, competition) if metric.instances else scored_mask(row, competition)


def scored_instances(row: Any, competition: Competition) -> np.ndarray:
    """Returns an image's true instances (C, h, w) int32 (see true_instances) at the size at which they are scored."""
    labels = true_instances(row, competition.classes)
    height, width = competition.scored_shape((labels.shape[1], labels.shape[2]))
    if labels.shape[1:] == (height, width):
        return labels
    planes = [cv2.resize(plane, (width, height), interpolation=cv2.INTER_NEAREST_EXACT) for plane in labels]
    return np.stack(planes)


def true_labels(masks: np.ndarray) -> np.ndarray:
    """Returns the class map (h, w) uint8, 255 where ignored, of a multiclass image's masks (C, h, w)."""
    return label_map(masks)


def total_area(table: pd.DataFrame, classes: list[str]) -> np.ndarray:
    """Returns the number of true foreground pixels of each row, summed over classes (N,) int64."""
    return table[[f"area_{name}" for name in classes]].sum(axis=1).to_numpy(np.int64)


def units_of(table: pd.DataFrame) -> np.ndarray:
    """Returns the group of each row (N,), or its image id if it has no group."""
    return table["group"].where(table["group"].astype(bool), table["image_id"]).to_numpy()
