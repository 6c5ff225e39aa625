"""Reader for one .npz file that holds all data: grey images with their class maps, and the test images.

If only test images are read, the training set may be missing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.config.raw_layouts import NpzLabels
from pipeline.core.errors import PipelineError
from pipeline.core.shortage import pass_on
from pipeline.core.version import program
from pipeline.decode.formats.base import OtherKind, Refused
from pipeline.decode.formats.limits import check_member
from pipeline.decode.readers.base import SUBSETS, Item, Listing, MaskFault, Masks, SubsetName, counted
from pipeline.decode.readers.columns import group_of
from pipeline.decode.readers.files import scaled
from pipeline.masks.geometry import IGNORE

KEYS = ("training_set", "test_set")
LAYOUT = "training_set (N, 2, H, W), images and class maps, and test_set (M, H, W)"


@dataclass(frozen=True)
class Arrays:
    """The content of the .npz file."""

    images: dict[SubsetName, np.ndarray]
    """Images (N, H, W, 1) per subset, all uint8 or all uint16."""
    labels: np.ndarray
    """Class maps (N, H, W) of the training images with the values of the file, which are not checked yet."""
    names: str
    """The names of the arrays in the file."""


def list_items(competition: NpzLabels, folder: Path, subsets: Sequence[SubsetName] = SUBSETS) -> Listing:
    """Returns all images of these subsets of the .npz file in `folder`.

    Ids are `train_<row>` for training images and `<row>` for test images. Submissions use the plain number, and no id
    may belong to both a training and a test image.

    Raises:
        PipelineError: the .npz file is missing or damaged, or its arrays do not fit the competition's YAML.
    """
    arrays = _arrays(competition, folder, "train" in subsets)
    values = _class_values(competition)
    items = []
    for row, labels in enumerate(arrays.labels if "train" in subsets else []):
        image_id = f"train_{row}"
        read_masks = partial(_masks, competition, values, image_id, labels)
        group = group_of(competition, image_id, {})
        read = partial(_image, arrays, "train", row)
        items.append(Item(image_id, "train", competition.file, read, read_masks, group))
    for row in range(len(arrays.images["test"]) if "test" in subsets else 0):
        items.append(Item(str(row), "test", competition.file, partial(_image, arrays, "test", row)))
    return Listing(items, [])


def raw_files(competition: NpzLabels, folder: Path, subset: SubsetName) -> tuple[Path, ...]:
    """Returns the .npz file, which holds both subsets."""
    return (folder / competition.file,)


def opener(competition: NpzLabels, folder: Path) -> Callable[[Any], np.ndarray]:
    """Returns a function that reads the image (H, W, 1) uint8 or uint16 of a row of images.parquet.

    Raises:
        PipelineError: see `list_items`.
    """
    arrays = _arrays(competition, folder, with_training=False)
    return lambda row: _image(arrays, row["subset"], int(row["image_id"].removeprefix("train_")))


def _image(arrays: Arrays, subset: SubsetName, row: int) -> np.ndarray:
    return arrays.images[subset][row]


# --- masks -----------------------------------------------------------------------------------------------------------


def _class_values(competition: NpzLabels) -> list[int]:
    values = list(range(len(competition.classes))) if competition.values is None else competition.values
    ignored = [] if competition.ignore_value is None else [competition.ignore_value]
    strange = [value for value in [*values, *ignored] if not isinstance(value, int)]
    if strange:
        raise PipelineError(
            f"competition {competition.name}: the value {strange[0]!r} of a class is not a whole number. Class maps in "
            f"a .npz file hold one number per pixel: set `classes: {{name: number}}`."
        )
    return values  # type: ignore[return-value]


def _masks(
    competition: NpzLabels, values: list[int], image_id: str, labels: np.ndarray, shape: tuple[int, int]
) -> Masks:
    """Returns the class map (H, W) of an image as one-hot planes. It has the shape of the image, because both are in
    one array."""
    planes = np.stack([labels == value for value in values]).astype(np.uint8)
    if competition.ignore_value is not None:
        planes[:, labels == competition.ignore_value] = IGNORE
    known = planes.any(0)
    if not known.all():
        classes = ", ".join(f"{name}: {value}" for name, value in zip(competition.classes, values, strict=True))
        text = f"mask of image {image_id} holds {counted(labels[~known])}, which is no class of the YAML ({classes})"
        raise MaskFault(competition.file, None, text)
    return Masks(planes)


# --- the file --------------------------------------------------------------------------------------------------------


def _arrays(competition: NpzLabels, folder: Path, with_training: bool) -> Arrays:
    path = folder / competition.file
    if not path.exists():
        ways = f"link it into the folder, `mkdir -p {folder} && ln -s /path/to/{competition.file} {folder}/`"
        if competition.kaggle:
            ways += f", or run `{program()} download {competition.name}`, which fetches it from Kaggle"
        raise PipelineError(f"{path} does not exist; to get the file of {competition.title}, {ways}.")
    stat = path.stat()
    arrays = _read(path, stat.st_size, stat.st_mtime_ns, competition.value_range)
    if with_training and not len(arrays.labels):
        raise PipelineError(f"{path} holds {arrays.names}; expected {LAYOUT}: save it again with these names.")
    shape = arrays.labels.shape[1:]
    if competition.shape and shape != competition.shape:
        hint = ": transposed?" if shape[::-1] == competition.shape else ""
        raise PipelineError(
            f"{path} holds images of {shape[0]}×{shape[1]}; competition {competition.name} says `shape` is "
            f"{competition.shape[0]}×{competition.shape[1]} (rows × columns){hint}: correct one of them."
        )
    return arrays


@lru_cache(maxsize=1)
def _read(path: Path, size: int, modified: int, value_range: tuple[float, float] | None) -> Arrays:
    """Returns the arrays of a file. Size and modification time are arguments so that a changed file is read again."""
    loaded, names = _load(path)
    test = loaded["test_set"]
    training = loaded.get("training_set", np.zeros((0, 2, *test.shape[1:]), test.dtype))
    empty = not test.size or ("training_set" in loaded and not training.size)
    if training.ndim != 4 or training.shape[1] != 2 or test.ndim != 3 or empty:
        raise PipelineError(
            f"{path}: training_set has shape {training.shape}, test_set {test.shape}; expected {LAYOUT}, none of them "
            "empty: save it again in this layout."
        )
    if training.shape[2:] != test.shape[1:]:
        sizes = [f"{height}×{width}" for height, width in (training.shape[2:], test.shape[1:])]
        raise PipelineError(
            f"{path}: training images are {sizes[0]}, test images {sizes[1]} (rows × columns); expected one size for "
            "both: save it again."
        )
    if not len(training):
        (only,) = _pixels(path, [test], value_range)
        return Arrays({"train": only[:0], "test": only}, training[:, 1].astype(np.uint8), names)
    images, labels = _pixels(path, [training[:, 0], test], value_range), training[:, 1]
    # float64 class maps would take eight times the memory, and would keep the images of the same array in memory
    small = float(labels.min()) >= 0 and float(labels.max()) <= 255 and _all_whole(labels)
    return Arrays({"train": images[0], "test": images[1]}, labels.astype(np.uint8) if small else labels.copy(), names)


def _load(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """Returns the arrays test_set and, if it exists, training_set of a file by name, and the names of all of its
    arrays."""
    try:
        with path.open("rb") as file:
            if file.read(2) != b"PK":  # NumPy would report any other content as a pickle
                raise PipelineError(f"{path} is not a .npz file, judging by its content; expected {LAYOUT}.")
        with np.load(path, allow_pickle=False) as content:
            if "test_set" not in content.files:
                raise PipelineError(
                    f"{path} holds {', '.join(content.files) or 'nothing'}; expected {LAYOUT}: save it again with "
                    "these names."
                )
            names = ", ".join(content.files)
            for key in (key for key in KEYS if key in content.files):
                check_member(path, key)
            arrays = {key: np.asarray(content[key]) for key in KEYS if key in content.files}
    except PipelineError:
        raise
    except (OtherKind, Refused) as error:
        raise PipelineError(f"{path} {error}; get the file again.") from None
    except Exception as error:  # NumPy, zipfile and zlib raise errors of many types for a damaged file
        pass_on(error)
        if "Object arrays" in str(error):
            raise PipelineError(f"{path} holds pickled objects; save it again as plain arrays: {LAYOUT}.") from None
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise PipelineError(
            f"{path} cannot be read, it is damaged or truncated ({reason}); get the file again."
        ) from None
    for key, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise PipelineError(f"{path}: {key} holds {array.dtype}; expected numbers: save it again as plain numbers.")
    return arrays, names


def _pixels(path: Path, sets: list[np.ndarray], value_range: tuple[float, float] | None) -> list[np.ndarray]:
    """Returns the images (N, H, W) of both sets as (N, H, W, 1), all uint8 or all uint16."""
    if value_range is not None:
        try:
            return [np.stack([scaled(image, value_range, path) for image in images])[..., None] for images in sets]
        except ValueError as error:
            raise PipelineError(f"{path}: an image {error}: save them again as numbers.") from None
    lowest = float(np.min([images.min() for images in sets]))
    highest = float(np.max([images.max() for images in sets]))
    if lowest >= 0 and highest <= 65535 and all(map(_all_whole, sets)):
        return [images.astype(np.uint8 if highest <= 255 else np.uint16)[..., None] for images in sets]
    if lowest >= 0 and highest <= 1:
        return [np.stack([_scaled(image) for image in images])[..., None] for images in sets]
    finite = np.concatenate([images[np.isfinite(images)] for images in sets])
    values = f"values from {finite.min():.8g} to {finite.max():.8g}" if finite.size else "no finite value"
    strange = sum(images.size for images in sets) - finite.size
    more = f" and {strange} that are NaN or infinite" if strange else ""
    raise PipelineError(
        f"{path}: images hold {values}{more}; expected whole numbers from 0 to 255 or to 65535, or fractions from "
        "0 to 1: set `value_range: [lowest, highest]` in the competition's YAML, or save them again with such values."
    )


def _all_whole(images: np.ndarray) -> bool:
    # one image at a time, because the arrays may fill half of the memory
    return images.dtype.kind in "biu" or all((np.rint(image) == image).all() for image in images)


def _scaled(image: np.ndarray) -> np.ndarray:
    return np.rint(image.astype(np.float64) * 65535).astype(np.uint16)
