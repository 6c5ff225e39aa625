"""Checks of the sizes that file headers state, before memory is allocated. A few bytes can stand for gigabytes."""

import zipfile
from pathlib import Path

import numpy as np

from pipeline.decode.formats.base import OtherKind, Refused

LARGEST, MOST_TIMES = 2**29, 500
"""A picture with more than LARGEST bytes may be at most MOST_TIMES as large as its file. No real picture compresses
better than that."""
LONGEST_HEADER = 2**20
"""Maximum number of bytes of the header of a .npy file."""
SHARE = 0.8
"""The share of free memory that one array may take."""


def check_picture(pixel_bytes: int, file_bytes: int) -> None:
    """Checks that a picture is not unreasonably larger than its file.

    Raises:
        Refused: the picture is too large for its file.
    """
    if pixel_bytes > LARGEST and pixel_bytes > MOST_TIMES * file_bytes:
        raise Refused(
            f"says that it holds {pixel_bytes / 2**30:.1f} GiB of pixels, {pixel_bytes // max(1, file_bytes)} times "
            "the size of the file: it is damaged, or was made to fill the memory"
        )


def check_member(path: Path, key: str) -> None:
    """Checks that an array in a .npz file is as large as its header says, and that it fits into memory.

    Raises:
        OtherKind: the array is smaller than its header says.
        Refused: the array does not fit into memory.
    """
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        name = f"{key}.npy" if f"{key}.npy" in names else key
        if name not in names:
            return
        stored, packed = archive.getinfo(name).file_size, archive.getinfo(name).compress_size
        with archive.open(name) as file:
            head = file.read(12)  # version 1 has two bytes for the length
            if head[6:7] != b"\1" and int.from_bytes(head[8:12], "little") > LONGEST_HEADER:
                raise OtherKind(f"is damaged: the header of {key} is too long")
        with archive.open(name) as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
    needed = dtype.itemsize
    for length in shape:
        needed *= length
    if min(shape, default=0) < 0 or needed > stored:
        text = "×".join(map(str, shape))
        raise OtherKind(f"is damaged: {key} says that its shape is {text}, but holds only {stored} bytes")
    check_picture(needed, packed)
    if needed > (free := SHARE * free_memory()):
        raise Refused(f"holds {key} of {needed / 2**30:.1f} GiB, and only {free / 2**30:.1f} GiB of memory may be used")


def free_memory() -> float:
    """Returns the number of bytes of free memory; infinity if the system does not provide it."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            known = dict(line.split(":", 1) for line in file)
        return 1024.0 * int(known["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return float("inf")
