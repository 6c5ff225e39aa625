"""Reader for images in a folder (TIFF, PNG, JPEG; 8 or 16 bit; grey or RGB) and masks as RLE in a CSV."""

import re
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import tifffile

from pipeline.competition import Competition, Subset
from pipeline.competitions.listing import Fault, Item, Listing
from pipeline.errors import PipelineError


def list_items(competition: Competition, folder: Path) -> Listing:
    """Returns every training and test image under `folder`, and what is wrong with the listing.

    Raises:
        PipelineError: the folder is empty, or a table cannot be read or lacks a column.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        raise PipelineError(_how_to_get(competition, folder))
    train, train_faults = _train_items(competition, folder)
    test, test_faults = _test_items(competition, folder)
    known = {item.image_id for item in train} | {fault.image_id for fault in train_faults}
    both = [item.image_id for item in test if item.image_id in known]
    clashes = [Fault(competition.test.images, None, f"test image {name} is a training image too") for name in both]
    return Listing(train + test, train_faults + test_faults + clashes)


def read_image(path: Path) -> np.ndarray:
    """Returns an image file as (H, W, C) uint8 or uint16; C is 1 or 3 (RGB), an alpha channel is left out.

    Raises:
        ValueError: one sentence, when the file cannot be read whole or holds something else.
    """
    image = _read_tiff(path) if path.suffix.lower() in (".tif", ".tiff") else _read_with_opencv(path)
    if image.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"holds {image.dtype} pixels; expected uint8 or uint16")
    image = image[..., None] if image.ndim == 2 else image
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4):
        raise ValueError(f"has shape {image.shape}; expected rows × columns, grey or RGB")
    return image[..., :3]


def read_table(path: Path, needed: list[str], hint: str = "; the competition's YAML names it") -> pd.DataFrame:
    """Returns a CSV with every value as text, an empty field as "".

    Raises:
        PipelineError: no such file, not a CSV, or one of the `needed` columns is missing.
    """
    if not path.exists():
        raise PipelineError(f"{path} does not exist{hint}.")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, OSError) as error:
        raise PipelineError(f"{path} is not a readable CSV: {' '.join(str(error).split())}.") from None
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes surplus values of every row for an index
        raise PipelineError(f"{path} is not a readable CSV: its rows have more values than its header has columns.")
    missing = [column for column in needed if column not in table.columns]
    if missing:
        raise PipelineError(
            f"{path.name}: column {', '.join(f'`{name}`' for name in missing)} is missing; found "
            f"{', '.join(f'`{name}`' for name in table.columns)}. Correct `columns` in the YAML or the file."
        )
    return table


def ids_of(table: pd.DataFrame, template: str) -> list[str]:
    """Returns the ids of a table's rows by a column name or a template such as `{subject}_{img}`."""
    columns = template_columns(template)
    if columns == [template]:
        return table[template].tolist()
    values = zip(*(table[column] for column in columns), strict=True)
    return [template.format(**dict(zip(columns, row, strict=True))) for row in values]


def template_columns(template: str) -> list[str]:
    """Returns the columns that an id is made of."""
    return re.findall(r"{(\w+)}", template) or [template]


def _train_items(competition: Competition, folder: Path) -> tuple[list[Item], list[Fault]]:
    if competition.train.masks is None:
        raise PipelineError(f"competition {competition.name}: `train.masks` is missing; name the CSV of masks.")
    if len(competition.classes) != 1:
        raise PipelineError(f"competition {competition.name}: reader rle_csv reads one class only.")
    used = [*template_columns(competition.columns.id), competition.columns.rle]
    needed = used + ([competition.group] if competition.group else [])
    table = read_table(folder / competition.train.masks, needed)
    ids = ids_of(table, competition.columns.id)
    files = _find_images(competition.train, folder)
    faults = _listing_faults(ids, files, competition.train, competition.train.masks)
    extra = table.drop(columns=used).to_dict("records")
    items, seen = [], set()
    for index, image_id in enumerate(ids):
        if image_id not in files or image_id in seen:
            continue
        seen.add(image_id)
        masks = (table[competition.columns.rle].iat[index],)
        group = table[competition.group].iat[index] if competition.group else None
        items.append(Item(image_id, "train", files[image_id], masks, index + 2, group, extra[index]))
    return items, faults


def _test_items(competition: Competition, folder: Path) -> tuple[list[Item], list[Fault]]:
    files = _find_images(competition.test, folder)
    if not files:
        raise PipelineError(f"No test image matches {folder / competition.test.images}.")
    faults: list[Fault] = []
    ids = sorted(files, key=_natural)
    if competition.sample_submission:
        columns = competition.submission_columns
        needed = [*template_columns(columns.id), columns.rle]
        listed = ids_of(read_table(folder / competition.sample_submission, needed), columns.id)
        faults = _listing_faults(listed, files, competition.test, competition.sample_submission)
        ids = [image_id for image_id in dict.fromkeys(listed) if image_id in files]
    return [Item(image_id, "test", files[image_id]) for image_id in ids], faults


def _find_images(subset: Subset, folder: Path) -> dict[str, Path]:
    pattern = folder / subset.images
    before, after = pattern.name.split("{id}")
    found: dict[str, Path] = {}
    for path in sorted(pattern.parent.glob("*")) if pattern.parent.is_dir() else []:
        name = path.name
        long_enough = len(name) > len(before) + len(after)
        excluded = name.startswith(".") or any(fnmatch(name, other) for other in subset.exclude)
        if long_enough and name.startswith(before) and name.endswith(after) and not excluded:
            found[name[len(before) : len(name) - len(after)]] = path
    return found


def _listing_faults(ids: list[str], files: dict[str, Path], subset: Subset, table: str) -> list[Fault]:
    faults = []
    repeated, train = Counter(ids), subset.masks is not None
    first: dict[str, int] = {}
    for row, image_id in enumerate(ids, start=2):
        droppable = image_id if train else None
        if image_id not in files:
            image = subset.images.replace("{id}", image_id)
            faults.append(Fault(table, row, f"id {image_id} has no image, {image} does not exist", droppable))
        if repeated[image_id] > 1 and image_id in first:
            faults.append(Fault(table, row, f"id {image_id} stands in row {first[image_id]} already", droppable))
        first.setdefault(image_id, row)
    known = set(ids)
    lonely = [image_id for image_id in files if image_id not in known]
    for image_id in lonely:
        image = subset.images.replace("{id}", image_id)
        faults.append(Fault(image, None, f"image without a row in {table}", image_id if train else None))
    return faults


def _read_tiff(path: Path) -> np.ndarray:
    try:
        image = tifffile.imread(path)
    except Exception as error:  # tifffile and its codecs raise whatever they like on a damaged file
        raise ValueError(f"cannot be read, it is damaged or truncated ({type(error).__name__}: {error})") from error
    if not image.size:  # what tifffile makes of a header alone
        raise ValueError("cannot be read, it is damaged or truncated: it holds no pixels")
    return image


def _read_with_opencv(path: Path) -> np.ndarray:
    data = path.read_bytes()
    ends_well = {".png": b"IEND" in data[-12:], ".jpg": b"\xff\xd9" in data[-64:], ".jpeg": b"\xff\xd9" in data[-64:]}
    if not ends_well.get(path.suffix.lower(), True):
        raise ValueError("cannot be read whole, it is damaged or truncated")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    if image is None:
        raise ValueError("is not an image that can be read")
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_BGRA2RGB if image.shape[2] == 4 else cv2.COLOR_BGR2RGB)
    return image


def _natural(name: str) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part]


def _how_to_get(competition: Competition, folder: Path) -> str:
    ways = [f"`ln -s /path/to/the/files {folder}`"]
    if competition.kaggle:
        slug = competition.kaggle
        ways.append(f"`kaggle competitions download -c {slug} -p {folder}` and unzip it there")
    if competition.name == "sample":
        ways = ["`python -m pipeline sample` writes it"]
    train = competition.train
    return (
        f"{folder} is empty. Put the raw files of {competition.title} there ({train.images}, {train.masks}, "
        f"{competition.test.images}): {', or '.join(ways)}."
    )
