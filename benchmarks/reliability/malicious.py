"""Files and names that somebody may send who means harm: code in checkpoints, paths that lead out, and a few bytes that
stand for gigabytes. None of it may run, be written outside of the root, or ask for memory."""

import gzip
import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

REPEATED = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))
YAML = {
    "anchors that repeat anchors": f"a0: &a0 [x]\n{REPEATED}\n",
    "merged keys that repeat": "\n".join(
        ["a0: &a0 {k: x}", *(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 12))]
    ),
    "an anchor that holds itself": "a: &a [*a]\n",
    "nesting": f"a: {'[' * 20_000}{']' * 20_000}\n",
    "nested mappings": "a: " + "{a: " * 3_000 + "1" + "}" * 3_000 + "\n",
    "a number of many digits": f"a: {'9' * 400_000}\n",
    "a hexadecimal number": f"a: 0x{'f' * 400_000}\n",
    "a number to the base of 60": "a: " + ":".join(["59"] * 30_000) + "\n",
    "a very long text": f"a: {'x ' * 400_000}\n",
    "a tag that makes an object": "a: !!python/object/apply:os.system ['true']\n",
}
"""Texts of YAML, by what is wrong with them."""
NAMES = (
    "../x",
    "a/b",
    "..",
    ".",
    "",
    "a\nb",
    "x" * 300,
    "con\0",
    "a\\b",
    "/etc",
    "~root",
    "-rf",
    ".hidden",
    "a\x1b[31m",
)
"""No names of runs, competitions, folds."""
PATHS = (
    "../../etc/{id}",
    "/etc/{id}",
    "train/../../{id}.png",
    "..\\{id}",
    "C:/x/{id}",
    "~/x/{id}",
    "a\0{id}",
    "{id}/..",
)
"""No patterns of images inside a folder."""
FORMULAS = ("=cmd|' /C calc'!A1", "+1+1", "-2+3", "@SUM(A1)", "\t=1", '=HYPERLINK("http://x")', "'=1")
"""Cells that a spreadsheet would run, and one that looks like a guarded one."""
MARKUP = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{7*7}}")
"""Ids that a page must not take for its own."""


class _Planted:
    """A pickle of it makes a file when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


def planted_pickle(mark: Path) -> bytes:
    """Returns a pickle that makes the folder `mark` when somebody loads it."""
    return pickle.dumps(_Planted(mark))


def planted_checkpoint(path: Path, mark: Path) -> None:
    """Writes a checkpoint of torch that makes the folder `mark` when it is loaded as a pickle."""
    import torch

    torch.save({"state_dict": {}, "epoch": 1, "planted": _Planted(mark)}, path)


def planted_array(mark: Path) -> bytes:
    """Returns an .npy of objects that makes the folder `mark` when it is loaded as a pickle."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.array([_Planted(mark)], object), allow_pickle=True)
    return buffer.getvalue()


# --- a few bytes that stand for gigabytes ----------------------------------------------------------------------------


def png(rows: int, columns: int) -> bytes:
    """Returns a black RGB image as PNG: 16384×16384 pixels are 783 KB, and 0.8 GB in memory."""
    packer, parts = zlib.compressobj(9), []
    line = bytes(1 + 3 * columns)
    for _ in range(rows):
        parts.append(packer.compress(line))
    return png_of(rows, columns, b"".join(parts) + packer.flush())


def png_of(rows: int, columns: int, packed: bytes) -> bytes:
    """Returns a PNG that says so many rows and columns of RGB, whatever its content is."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def npy_of(shape: tuple[int, ...]) -> bytes:
    """Returns an .npy whose header says a shape, negative ones too, and which holds 16 bytes."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return buffer.getvalue() + bytes(16)


def npz_of(shape: tuple[int, ...]) -> bytes:
    """Returns an .npz with such an array, `x`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npy_of(shape))
    return buffer.getvalue()


def nifti_of(shape: tuple[int, int, int]) -> bytes:
    """Returns a .nii.gz whose header says a shape, and which holds 16 bytes."""
    head = bytearray(352)
    struct.pack_into("<i", head, 0, 348)
    struct.pack_into("<8h", head, 40, 3, *shape, 1, 1, 1, 1)
    struct.pack_into("<hh", head, 70, 2, 8)
    struct.pack_into("<8f", head, 76, *[1.0] * 8)
    struct.pack_into("<f", head, 108, 352.0)
    head[344:348] = b"n+1\0"
    return gzip.compress(bytes(head) + bytes(16))


def zip_that_leads_out() -> bytes:
    """Returns a zip whose member lies outside of the folder that it is unpacked into."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("work/../../outside.txt", "x")
    return buffer.getvalue()


def packed_table(megabytes: int) -> bytes:
    """Returns a .csv.gz with one very long line of zeros."""
    buffer = io.BytesIO()
    with gzip.open(buffer, "wb") as file:
        file.write(b"id,rle\n")
        for _ in range(megabytes):
            file.write(b"0" * 2**20)
    return buffer.getvalue()
