"""The image file formats, and detection of the format of a file."""

import logging
import warnings
from pathlib import Path
from types import ModuleType

import cv2

from pipeline.decode.formats import dicom, nifti, numpy_arrays, raster, tiff
from pipeline.decode.formats.base import HEAD, OtherKind, Size, Stored, Wanted

FORMATS: tuple[ModuleType, ...] = (raster, tiff, numpy_arrays, dicom, nifti)
"""`raster` reads all files that no other format reads."""
BY_SUFFIX: dict[str, ModuleType] = {suffix: format_ for format_ in FORMATS for suffix in format_.SUFFIXES}
SUFFIXES: tuple[str, ...] = tuple(BY_SUFFIX)
"""The file name endings of all formats."""

for _name in ("tifffile", "PIL", "nibabel.global", "pydicom"):
    # faults are reported in one sentence, without messages of these libraries
    logging.getLogger(_name).setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module=r"(PIL|tifffile|nibabel|pydicom)\b")


def suffix_of(path: Path) -> str:
    """Returns the ending of a file name in lower case; `.nii.gz` counts as one ending."""
    suffix = path.suffix.lower()
    return suffix if suffix != ".gz" or not path.stem.lower().endswith(".nii") else ".nii.gz"


def read_stored(path: Path, wanted: Wanted) -> Stored:
    """Returns a picture of a file with its pixels in the stored order. The format is determined by the content of the
    file.

    Raises:
        ValueError: the file cannot be read, is too large, or has a format that is not supported. The message is one
            sentence.
        PipelineError: the format needs a package that is not installed.
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
    detected = next((other for other in FORMATS if other not in (raster, named) and other.starts(head)), None)
    return raster.read_data(path, data, wanted) if detected is None else detected.read(path, wanted)


def measure(path: Path, axis: int | None = None, volume: bool = False) -> Size:
    """Returns the size of the picture or volume in a file, reading as little of it as possible.

    Args:
        path: the file.
        axis: the axis along which slices lie; None: the usual axis of the format.
        volume: whether the file is a volume of slices.

    Raises:
        ValueError: see read_stored.
    """
    named = BY_SUFFIX.get(suffix_of(path), raster)
    return named.measure(path, axis, volume)
