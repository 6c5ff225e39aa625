"""Malicious files and names: code in checkpoints, paths that lead out of the root, and a few bytes that
stand for gigabytes. None of it may run, be written outside of the root, or ask for memory."""

import bz2
import gzip
import importlib
import io
import lzma
import os
import pickle
import shutil
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

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
    "a tag of another kind": "a: !!bool maybe\n",
    "a number without digits": "a: !!int ''\n",
    "a character that is none": 'a: "\\UFFFFFFFF"\n',
    "values without anchors": f"a: [{'1,' * 200_000}]\n",
    "keys of one hash": "{" + ", ".join(f"{n * (2**61 - 1)}: 1" for n in range(9, 12_000)) + "}\n",
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
    """Returns a pickle that makes the folder `mark` when it is loaded."""
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


def packed_table(megabytes: int, opened: Callable[..., Any] = gzip.open, part: bytes = b"0") -> bytes:
    """Returns a table that is compressed by gzip, bz2 or lzma, whose `open` is given: by default one very long line of
    zeros, or a part that repeats."""
    buffer = io.BytesIO()
    with opened(buffer, "wb") as file:
        file.write(b"id,rle\n")
        for _ in range(megabytes):
            file.write(part * (2**20 // len(part)))
    return buffer.getvalue()


# --- all of it, by the command line ----------------------------------------------------------------------------------

USED = (
    ("tune", "predictions/oof_fold_0.npy"), ("validate", "fold_0/last.safetensors"), ("encode", "postprocess.json"),
    ("encode", "mask_statistics.npz"), ("encode", "predictions/test_fold_0.npy"), ("split", "../images.parquet"),
)  # fmt: skip
"""Stages and files of a run that they read."""
Attack = tuple[str, str, Callable[[Path, Path], list[str]]]
"""What kind it is, which one, and what prepares it in a finished root (the recipe's path is given too) and returns the
command."""


def attacks() -> Iterator[Attack]:
    """Yields attacks by means of files, recipes or names."""
    for what, text in YAML.items():
        yield "YAML", what, partial(_yaml, text=text)
    for name in (name for name in NAMES if "\0" not in name and name):
        yield "names", repr(name[:20]), partial(_named, name=name)
        yield "names", f"folds {name[:20]!r}", partial(_competition, folds=name)
    for pattern in PATHS:
        yield "paths", repr(pattern), partial(_competition, images=pattern)
    for stage, file in USED:
        yield "code", file, partial(_planted_artefact, stage=stage, file=file)
    yield "code", "last.ckpt", _planted_training
    yield "memory", "PNG of 16384×16384", lambda root, recipe: _image(root, recipe, png(16384, 16384))
    for ending, opened in (("gz", gzip.open), ("bz2", bz2.open), ("xz", lzma.open)):
        for what, part in (("a line", b"0"), ("rows of nothing", b",\n")):
            yield "memory", f"{ending} of {what}", partial(_table, ending=ending, opened=opened, part=part)
    yield "memory", "PNG of 40000×40000", lambda root, recipe: _image(root, recipe, png_of(40_000, 40_000, b""))


def run(place: Any, seed: int, until: float) -> Any:
    """Tries all attacks once, three at least, until the time (of time.monotonic) is up; returns the Tally of them."""
    warm = importlib.import_module("benchmarks.reliability.warm")
    tally = warm.Tally("Malicious files", logs=place.folder / "faults")
    for number, (kind, which, prepare) in enumerate(attacks()):
        if number >= 3 and time.monotonic() > until:
            break
        root = place.fresh("malicious", finished=True)
        command = prepare(root, place.recipe)
        around = {*os.listdir(root.parent), f"{root.name}.log"}
        ended = warm.command(command, root)
        wrong = "code ran" if (root / "ran").exists() else ended.fault
        if left := set(os.listdir(root.parent)) - around:
            wrong = f"wrote outside of the root: {sorted(left)}"
        if not wrong and ended.code != 2:
            wrong = f"exit code {ended.code}"
        tally.add(kind, "faulty" if wrong else "refused", f"{which}: {wrong}" if wrong else "", ended.text)
    return tally


def _written(path: Path, content: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


def _yaml(root: Path, recipe: Path, text: str) -> list[str]:
    return ["run", _written(root / "evil.yaml", text.encode())]


def _named(root: Path, recipe: Path, name: str) -> list[str]:
    return ["run", str(recipe), f"--name={name}"]


def _competition(root: Path, recipe: Path, folds: str | None = None, images: str | None = None) -> list[str]:
    """The sample under another name, with a split or a pattern that leads out."""
    source = Path(__file__).parents[2] / "pipeline" / "competitions" / "sample.yaml"
    data = {**yaml.safe_load(source.read_text()), "name": "other", "input": "sample"}
    settings = {**yaml.safe_load(recipe.read_text()), "competition": "c.yaml"}
    if folds is not None:
        data, settings = {**data, "splits": {folds: {"folds": 4}}}, {**settings, "folds": folds}
    if images is not None:
        data["train"] = {**data["train"], "images": images}
    _written(root / "c.yaml", yaml.safe_dump(data).encode())
    return ["run", _written(root / "e.yaml", yaml.safe_dump(settings).encode()), "--to", "split"]


def _planted_artefact(root: Path, recipe: Path, stage: str, file: str) -> list[str]:
    """Puts a pickle in the place of an artefact; returns the command of the one stage that reads it."""
    content = planted_array(root / "ran") if file.endswith(".npy") else planted_pickle(root / "ran")
    _written(root / "work" / "sample" / recipe.stem / file, content)
    return [stage, str(recipe), "--force"]


def _planted_training(root: Path, recipe: Path) -> list[str]:
    """An unfinished fold whose checkpoint holds code."""
    folder = root / "work" / "sample" / recipe.stem / "fold_0"
    shutil.move(folder / "manifest.json", folder / "started.json")
    for path in folder.glob("*.safetensors"):
        path.unlink()
    planted_checkpoint(folder / "last.ckpt", root / "ran")
    return ["run", str(recipe)]


def _image(root: Path, recipe: Path, content: bytes) -> list[str]:
    """A folder of one image to predict."""
    _written(root / "images" / "x.png", content)
    return ["predict", str(recipe), "--images", str(root / "images")]


def _table(root: Path, recipe: Path, ending: str, opened: Callable[..., Any], part: bytes) -> list[str]:
    """A submission of a few KiB that unpacks to 256 MiB."""
    path = _written(root / f"s.csv.{ending}", packed_table(256, opened, part))
    return ["check", path, "--competition", "sample"]
