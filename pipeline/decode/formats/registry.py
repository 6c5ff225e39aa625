"""The formats of image files, and which one a file is."""

import logging
import warnings
from pathlib import Path
from types import ModuleType

import cv2

from pipeline.decode.formats import dicom, nifti, numpy_arrays, raster, tiff
from pipeline.decode.formats.base import HEAD, OtherKind, Size, Stored, Wanted

FORMATS: tuple[ModuleType, ...] = (raster, tiff, numpy_arrays, dicom, nifti)
"""`raster` reads what no other one does."""
BY_SUFFIX: dict[str, ModuleType] = {suffix: one for one in FORMATS for suffix in one.SUFFIXES}
SUFFIXES: tuple[str, ...] = tuple(BY_SUFFIX)
"""Endings of files that can be read."""

for _name in ("tifffile", "PIL", "nibabel.global", "pydicom"):  # what is wrong with a file is said in one sentence
    logging.getLogger(_name).setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module=r"(PIL|tifffile|nibabel|pydicom)\b")


def suffix_of(path: Path) -> str:
    """Returns the ending of a file in lower case; `.nii.gz` is one."""
    suffix = path.suffix.lower()
    return suffix if suffix != ".gz" or not path.stem.lower().endswith(".nii") else ".nii.gz"


def read_stored(path: Path, wanted: Wanted) -> Stored:
    """Returns a picture of a file in the order in which it is stored. What kind of file it is, its content says.

    Raises:
        ValueError: one sentence, when the file cannot be read, is too large, or is of a kind that is not read.
        PipelineError: its format needs a package that is not installed.
    """
    named = BY_SUFFIX.get(suffix_of(path), raster)
    if named is not raster:
        try:
            return named.read(path, wanted)
        except OtherKind:
            if not cv2.haveImageReader(str(path)):
                raise
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error
    if raster.starts(data):
        return raster.read_data(path, data, wanted)
    head = data[:HEAD]
    found = next((one for one in FORMATS if one not in (raster, named) and one.starts(head)), None)
    return raster.read_data(path, data, wanted) if found is None else found.read(path, wanted)


def measure(path: Path, axis: int | None = None, volume: bool = False) -> Size:
    """Returns how large a file is, with as little of it read as possible.

    Args:
        path: the file.
        axis: along which it holds slices; None: as files of its format do.
        volume: whether it holds slices at all.

    Raises:
        ValueError: as read_stored.
    """
    named = BY_SUFFIX.get(suffix_of(path), raster)
    return named.measure(path, axis, volume)
