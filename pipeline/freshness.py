"""Is a step up to date?

A step's manifest, written last, lists what went in (content hashes, settings, code) and what came out; the step is up
to date when all of that still holds.
"""

import ast
import hashlib
import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pipeline.settings import flatten
from pipeline.workspace import PACKAGE, read_json, shown, write_json


@dataclass(frozen=True)
class Step:
    """One unit of work of a stage: what it reads, what it writes, and what else decides its result."""

    stage: str
    title: str
    manifest: Path
    inputs: tuple[Path, ...]
    """Files, or folders that stand for all files in them."""
    outputs: tuple[Path, ...]
    settings: dict[str, Any]
    fold: int | None = None
    seed: int = 0
    defaults: dict[str, Any] = field(default_factory=dict)
    """What settings were before they could be set: a manifest that does not know one was made with this."""


@dataclass(frozen=True)
class Reason:
    """Why a step is not up to date."""

    kind: Literal["never", "output", "input", "settings", "code"]
    text: str


def stale(step: Step, manifest: Path | None = None) -> list[Reason]:
    """Returns why a step must run (an empty list: it is up to date), by its own or by another manifest."""
    path = manifest or step.manifest
    if not path.exists():
        return [Reason("never", "not run yet")]
    record = read_json(path)
    missing = [shown(output) for output in step.outputs if not output.exists()]
    reasons = [Reason("output", f"{name} is missing") for name in missing]
    old, new = record["inputs"], fingerprint(step.inputs, record["inputs"])
    reasons += [Reason("input", f"{name} changed") for name in _differing(_hashes(old), _hashes(new))[:3]]
    now, defaults = (flatten(json.loads(json.dumps(one))) for one in (step.settings, step.defaults))
    before = flatten(record["settings"])
    before |= {key: defaults[key] for key in now if key in defaults and key not in before}
    reasons += [Reason("settings", f"{key}: {before.get(key)} → {now.get(key)}") for key in _differing(before, now)]
    changed = _differing(record["code"], code(step.stage))
    if changed:
        reasons.append(Reason("code", f"code changed: {', '.join(changed)}"))
    return reasons


def somebodys_own(step: Step, path: Path) -> bool:
    """Returns whether an output of a step is there and not as the step wrote it."""
    if path not in step.outputs or not path.exists():
        return False
    written = read_json(step.manifest)["outputs"] if step.manifest.exists() else {}
    return written.get(shown(path), {}).get("hash") != hash_file(path)


def record(step: Step, seconds: float, manifest: Path | None = None, inputs: dict[str, Any] | None = None) -> None:
    """Writes the manifest that makes a step up to date; `inputs` is the fingerprint of what it read, by default of what
    lies there now."""
    write_json(manifest or step.manifest, {
        "stage": step.stage,
        "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
        "seconds": round(seconds, 2),
        "settings": step.settings,
        "code": code(step.stage),
        "outputs": fingerprint(step.outputs, {}),
        "inputs": fingerprint(step.inputs, {}) if inputs is None else inputs,
    })  # fmt: skip


class Inputs:
    """What the inputs of steps are as a stage begins to read them: a file that changes while the stage works is not
    what its results were made from."""

    def __init__(self, steps: Iterable[Step]) -> None:
        self.began: dict[Path, dict[str, Any]] = {}
        for step in steps:
            known = read_json(step.manifest)["inputs"] if step.manifest.exists() else {}
            self.began[step.manifest] = fingerprint(step.inputs, known)
        self.written: set[str] = set()

    def of(self, step: Step) -> dict[str, Any]:
        """Returns the fingerprint of a finished step's inputs: as the stage began, or as earlier steps left them."""
        began = self.began.get(step.manifest, {})
        now = fingerprint(step.inputs, began)
        self.written |= {shown(output) for output in step.outputs}
        return now | {name: entry for name, entry in began.items() if name not in self.written}


def fingerprint(paths: tuple[Path, ...], known: dict[str, Any]) -> dict[str, Any]:
    """Returns size, modification time and content hash of every file; hashes in `known` hold while size and time do."""
    files = [file for path in paths for file in (_files_in(path) if path.is_dir() else [path]) if file.exists()]
    with ThreadPoolExecutor() as pool:
        return dict(pool.map(lambda file: _fingerprint_one(file, known), files))


def hash_file(path: Path) -> str:
    """Returns the SHA-256 of a file's content."""
    stat = path.stat()
    return _hash(path, stat.st_size, stat.st_mtime_ns)


@cache
def _hash(path: Path, _size: int, _modified: int) -> str:
    """A file's hash, computed once while its size and time hold."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def code(stage: str) -> dict[str, str]:
    """Returns the content hash of every module of the package that a stage imports, directly or not."""
    seen: dict[str, str] = {}
    waiting = [f"pipeline.stages.{stage}"]
    while waiting:
        file = _module_file(waiting.pop())
        if file is None or file.name == "__init__.py" or (name := str(file.relative_to(PACKAGE))) in seen:
            continue
        seen[name], imported = _hash_and_imports(file)
        waiting += imported
    return dict(sorted(seen.items()))


def environment() -> dict[str, Any]:
    """Returns the versions that shape a result."""
    from importlib.metadata import version

    names = ["torch", "lightning", "segmentation-models-pytorch", "albumentations", "opencv-python-headless", "numpy"]
    return {name: version(name) for name in names}


@cache
def _hash_and_imports(file: Path) -> tuple[str, tuple[str, ...]]:
    """A module's content hash, and the names of what it imports from the package, once for all stages."""
    source, names = file.read_bytes(), []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return hashlib.sha256(source).hexdigest()[:16], tuple(name for name in names if name.startswith("pipeline."))


def _module_file(name: str) -> Path | None:
    if not name.startswith("pipeline."):
        return None
    file = PACKAGE.joinpath(*name.split(".")[1:]).with_suffix(".py")
    return file if file.exists() else None


def _files_in(folder: Path) -> list[Path]:
    found, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:  # a link to what lies around it
            folders.clear()
            continue
        seen.add(real)
        found += [Path(place) / name for name in names if not name.startswith(".")]
    return sorted(file for file in found if file.is_file())


def _fingerprint_one(file: Path, known: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    name, stat = shown(file), file.stat()
    entry = {"size": stat.st_size, "modified": stat.st_mtime_ns}
    old = known.get(name, {})
    unchanged = old.get("size") == entry["size"] and old.get("modified") == entry["modified"]
    return name, {**entry, "hash": old["hash"] if unchanged else hash_file(file)}


def _hashes(entries: dict[str, Any]) -> dict[str, str]:
    return {name: entry["hash"] for name, entry in entries.items()}


def _differing(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))


_by_content = False


def compare_contents() -> None:
    """Lets every file be compared by its content, not only by its size and time."""
    global _by_content
    _by_content = True
