"""What readers are fed: damaged files, odd texts, YAMLs with values of other types."""

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

TABLE = b"id,rle,patient\na0,1 3 9 2,p\na1,,p\na2,5 5,q\na3,1 80,q\na4,2 1,r\n"
SAMPLE = b"id,rle\nt0,\nt1,\n"
COMPETITION: dict[str, Any] = {
    "title": "tiny", "reader": "rle_csv", "train": {"images": "train/{id}.png", "masks": "train.csv"},
    "test": {"images": "test/{id}.png"}, "sample_submission": "sample.csv", "columns": {"id": "id", "rle": "rle"},
    "classes": ["c"], "metric": "dice", "split": {"folds": 2},
}  # fmt: skip
RECIPE: dict[str, Any] = {"competition": "tiny.yaml", "image": {"size": [32, 32]},
                          "model": {"weights": "none", "encoder": "resnet18"}}  # fmt: skip
PIECES = [
    "1", "0", "-1", "3", "20", "99", "1e3", "1.5", "nan", "inf", "٣", "²", "1_0", "0x1", "", " ", "\t", "\n", "\r\n",
    "\x00", "\ufeff", "9" * 20, "9223372036854775807", "9" * 400, "+5", "−3", ",", ";", '"', "[1", "a", "\u2028", "𝟙",
    "-0", "True", "None", "1 1", "../x", "/etc/passwd", "{id}", "*", "[/red]", "=1+1", "é", "e\u0301",
]  # fmt: skip
"""Parts of texts at which readers stumble."""


@dataclass(frozen=True)
class Group:
    """Inputs of one kind, and what reads them."""

    name: str
    strategy: SearchStrategy[Any]
    read: Callable[[Any], Any]
    prepare: Callable[[], Any] = lambda: None
    documented: tuple[type[Exception], ...] = ()
    """What it may raise besides PipelineError."""
    batch: int = 0


# --- what is drawn ---------------------------------------------------------------------------------------------------


def _apply(data: bytes, edits: list[tuple[str, float, bytes]]) -> bytes:
    """A file with some edits."""
    for kind, where, inserted in edits:
        place = min(int(where * len(data)), max(0, len(data) - 1))
        if kind == "cut":
            data = data[:place]
        elif kind == "remove":
            data = data[:place] + data[place + max(1, len(inserted)) :]
        elif kind == "insert":
            data = data[:place] + inserted + data[place:]
        elif kind == "repeat":
            data = data[:place] + data[place : place + 40] * 2 + data[place + 40 :]
        else:
            data = data[:place] + inserted + data[place + len(inserted) :]
    return data


def damaged(*files: bytes) -> SearchStrategy[bytes]:
    """Files with a few bytes changed, cut off, removed, inserted or repeated."""
    edit = st.tuples(
        st.sampled_from(["write", "write", "write", "insert", "remove", "repeat", "cut"]),
        st.integers(0, 9999).map(lambda place: place / 10_000),
        st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from(PIECES).map(lambda text: text.encode())),
    )
    return st.builds(_apply, st.sampled_from(files), st.lists(edit, max_size=4))


def pieces(most: int = 8) -> SearchStrategy[str]:
    """Texts of odd parts."""
    text = st.one_of(st.sampled_from(PIECES), st.text(max_size=6), st.integers(-3, 2**63).map(str))
    return st.builds(
        lambda parts, by: by.join(parts), st.lists(text, max_size=most), st.sampled_from([" ", "", ",", "\n"])
    )


def values() -> SearchStrategy[Any]:
    """Values that a YAML may hold."""
    odd = ["id", "rle", "patient", "train/{id}.png", "train.csv", "sample.csv", "{id}_{label}", 10**9, 0, 1, 2, [8, 10],
           ["c", "d"], {"c": 1}, {"c": 10**15}, "mean_iou", "row", "instance"]  # fmt: skip
    numbers = st.one_of(st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats())
    plain = st.one_of(numbers, st.sampled_from(PIECES), st.text(max_size=8), st.sampled_from(odd))
    return st.recursive(
        plain,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(PIECES), inner, max_size=3),
        max_leaves=5,
    )


def _with(data: dict[str, Any], changes: list[tuple[str, Any]]) -> str:
    """A YAML with some dotted keys set."""
    data = json.loads(json.dumps(data))
    for key, value in changes:
        *path, last = key.split(".")
        inner: Any = data
        for name in path:
            if not isinstance(inner.get(name), dict):
                inner[name] = {}
            inner = inner[name]
        inner[last] = value
    try:
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    except yaml.YAMLError:
        return json.dumps(data)


def keys_of(model: Any, prefix: str = "") -> list[str]:
    """The dotted keys of a settings class."""
    import typing

    from pipeline.core.config.settings import Settings

    found = []
    for name, field in model.model_fields.items():
        found.append(prefix + name)
        for part in (field.annotation, *typing.get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, Settings):
                found += keys_of(part, f"{prefix}{name}.")
    return found


def changed(data: dict[str, Any], keys: list[str]) -> SearchStrategy[str]:
    """YAMLs of which one to three keys have other values."""
    change = st.tuples(st.sampled_from(keys), values())
    return st.builds(_with, st.just(data), st.lists(change, min_size=1, max_size=3))


def npy(shape: str, kind: str) -> bytes:
    """The bytes of an .npy whose header says anything, with a few values."""
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (118 - len(header) - 1) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(768)


def zip_of(files: dict[str, bytes]) -> bytes:
    """A zip archive of files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()
