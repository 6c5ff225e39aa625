"""DICOM files, read by pydicom. Pixels are rescaled to their units, and the lowest value is the one that a viewer shows
as black.

For compressed pixels, pydicom needs Pillow (JPEG and JPEG 2000) or python-gdcm (lossless JPEG and others). Both belong
to the extra `medical`.
"""

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.shortage import pass_on
from pipeline.decode.formats.base import OtherKind, Refused, Size, Stored, Wanted, along_axis, needs_extra
from pipeline.decode.formats.limits import check_picture

SUFFIXES = (".dcm", ".dicom")
_DEFLATED, _HEAD = b"1.2.840.10008.1.2.1.99", 2**12
"""The transfer syntax of deflated files, and the number of bytes at the start of a file that are searched for it."""
_BEFORE_LENGTH = 144
"""Number of bytes before the elements of the file meta group that its group length counts."""
_RESCALED_BY_SEQUENCE = "ModalityLUTSequence"


def starts(head: bytes) -> bool:
    """Returns whether a file that starts with these bytes is a DICOM file."""
    return head[128:132] == b"DICM"


def read(path: Path, wanted: Wanted) -> Stored:
    """Returns one picture of a file. Values are in the units given by rescale slope and intercept (Hounsfield units for
    a CT). Colours are converted to RGB, and MONOCHROME1 is inverted, so that black is the lowest value.

    Raises:
        OtherKind: the file is damaged, or is not a DICOM file.
        Refused: the file holds no pixels, or holds several frames and no slice is selected.
    """
    data = _open(path)
    frames, rows, columns = _shape(data)
    if not rows:
        raise Refused("is a DICOM file without pixels")
    if frames > 1 and wanted.slice is None:
        raise Refused(
            f"holds {frames} frames; set `volumes: {{}}` in the competition's YAML, which makes each frame an image"
        )
    wanted.check_size((rows, columns))
    samples, bits = int(data.get("SamplesPerPixel") or 1), int(data.get("BitsAllocated") or 8)
    check_picture(frames * rows * columns * samples * bits // 8, path.stat().st_size)
    pixels = _pixels(data)
    if frames > 1:
        pixels = along_axis(pixels, wanted, 0)
    if data.get("SamplesPerPixel", 1) > 1:
        return Stored(np.ascontiguousarray(pixels))
    low, high = _limits(data)
    values, window = _rescaled(data, pixels, low, high), _window(data)
    if data.get("PhotometricInterpretation") == "MONOCHROME1":
        black, white = wanted.value_range or window or (low, high)
        values = _plain(black + white - values.astype(np.float64), black + white - high, black + white - low)
    return Stored(np.ascontiguousarray(values), value_range=window)


def measure(path: Path, axis: int | None = None, volume: bool = False) -> Size:
    """Returns the size of the picture or volume in a file, with the spacing that the file gives."""
    data = _open(path, header_alone=True)
    spacing = [data.get("SpacingBetweenSlices") or data.get("SliceThickness") or 0, *(data.get("PixelSpacing") or [])]
    try:
        text = " ".join(f"{float(value):g}" for value in spacing) if len(spacing) == 3 else ""
    except (TypeError, ValueError):
        text = ""
    return Size(*_shape(data), spacing=text)


def _open(path: Path, header_alone: bool = False) -> Any:
    try:
        import pydicom
    except ImportError as error:
        raise needs_extra("pydicom", f"{path.name}, a DICOM file,", error) from None
    try:
        _check_deflated(path)
        return pydicom.dcmread(path, stop_before_pixels=header_alone, force=path.suffix.lower() in SUFFIXES)
    except Refused:
        raise
    except Exception as error:  # pydicom raises errors of many types for a damaged file
        pass_on(error)
        raise OtherKind(
            f"cannot be read, it is damaged or not a DICOM file ({type(error).__name__}: {error})"
        ) from error


def _check_deflated(path: Path) -> None:
    """Raises Refused if a deflated file inflates to far more than its size, because pydicom inflates it at once."""
    with path.open("rb") as file:
        if _DEFLATED not in file.read(_HEAD):
            return
    from pydicom.filereader import read_file_meta_info

    length = read_file_meta_info(path).FileMetaInformationGroupLength
    inflating, count = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with path.open("rb") as file:
        file.seek(_BEFORE_LENGTH + length)
        while data := inflating.unconsumed_tail or file.read(2**16):
            count += len(inflating.decompress(data, 2**22))
            check_picture(count, path.stat().st_size)


def _shape(data: Any) -> tuple[int, int, int]:
    try:
        return int(data.get("NumberOfFrames") or 1), int(data.get("Rows") or 0), int(data.get("Columns") or 0)
    except (TypeError, ValueError) as error:
        raise OtherKind(f"cannot be read, its header is damaged ({error})") from error


def _pixels(data: Any) -> np.ndarray:
    from pydicom.pixels import convert_color_space

    try:
        if not hasattr(data.file_meta, "TransferSyntaxUID"):
            # a file without a header does not say how it is compressed
            from pydicom.uid import ImplicitVRLittleEndian

            data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        pixels = data.pixel_array
        interpretation = str(data.get("PhotometricInterpretation", ""))
        if interpretation == "PALETTE COLOR":
            from pydicom.pixels import apply_color_lut

            return np.asarray(apply_color_lut(pixels, data))
        if interpretation.startswith("YBR") and data.file_meta.TransferSyntaxUID.is_compressed is False:
            pixels = convert_color_space(pixels, interpretation, "RGB")
    except Exception as error:
        pass_on(error)
        missing = "handlers" in str(error) or "plugin" in str(error) or "missing dependencies" in str(error)
        if missing:
            name = getattr(data.file_meta.TransferSyntaxUID, "name", "compressed")
            raise Refused(f"holds {name} pixels, which need another package: pip install '.[medical]'") from None
        raise ValueError(f"cannot be read, it is damaged or truncated ({type(error).__name__}: {error})") from error
    return np.asarray(pixels)


def _rescaled(data: Any, pixels: np.ndarray, low: float, high: float) -> np.ndarray:
    """Returns pixels in the units of the file."""
    from pydicom.pixels import apply_modality_lut

    if data.get("RescaleSlope") is None and _RESCALED_BY_SEQUENCE not in data:
        return pixels
    return _plain(np.asarray(apply_modality_lut(pixels, data)), low, high)


def _plain(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Returns values as integers if they can only be integers. The dtype is the same for all files with these
    limits."""
    if low % 1 or high % 1 or (values % 1).any():
        return values.astype(np.float32)
    unsigned = np.uint8 if high <= 255 else np.uint16
    return values.astype(unsigned if low >= 0 and high <= 65535 else np.int32)


def _limits(data: Any) -> tuple[float, float]:
    """Returns the lowest and the highest value that the file could hold, in its units."""
    bits = int(data.get("BitsStored") or 8)
    signed = bool(data.get("PixelRepresentation"))
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    slope, intercept = float(data.get("RescaleSlope") or 1), float(data.get("RescaleIntercept") or 0)
    first, second = sorted((low * slope + intercept, high * slope + intercept))
    return first, second


def _window(data: Any) -> tuple[float, float] | None:
    """Returns the values of black and white in the first window of the file; None if it has no window."""
    centre, width = data.get("WindowCenter"), data.get("WindowWidth")
    first = [value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value
             for value in (centre, width) if value is not None and value != ""]  # fmt: skip
    if len(first) < 2 or float(first[1]) <= 1:
        return None
    middle, half = float(first[0]), float(first[1]) / 2  # DICOM standard, C.11.2.1.2
    return middle - half, middle + half - 1
