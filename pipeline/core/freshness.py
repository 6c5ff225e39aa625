"""Whether a step is up to date.

The manifest of a step is written last. It lists the inputs (content hashes), the settings, the code and the outputs.
The step is up to date as long as inputs, settings and code are the same, and the outputs are as the step wrote them.
The content of a file is compared if its size or modification time has changed; after `compare_contents`, always.
"""

import ast
import hashlib
import json
import os
import subprocess
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pipeline.core.config.settings import flatten
from pipeline.core.files import PACKAGE, read_json, require_regular, root, shown, write_json
from pipeline.core.version import VERSION

NAMED = 4
"""Maximum number of changed modules that a reason names."""


@dataclass(frozen=True)
class Step:
    """One unit of work of a stage: the files that it reads and writes, and the settings that determine its result."""

    stage: str
    title: str
    manifest: Path
    inputs: tuple[Path, ...]
    """Files, or folders, which stand for all files in them."""
    outputs: tuple[Path, ...]
    """Files."""
    settings: dict[str, Any]
    fold: int | None = None
    seed: int = 0
    defaults: dict[str, Any] = field(default_factory=dict)
    """The values of settings before they existed. A manifest that lacks a setting was made with this value."""
    also: tuple[Path, ...] = ()
    """Optional outputs."""
    editable: tuple[Path, ...] = ()
    """Outputs that the user may edit. They are not compared with what the step wrote."""
    sealed: tuple[Path, ...] = ()
    """Outputs whose content is always compared, even if size and time are unchanged: trained weights."""
    subset: Literal["train", "test"] | None = None
    """For steps of decode, the images that they read. `test` is also used for other steps on which no stage before
    predict depends."""


@dataclass(frozen=True)
class Reason:
    """A reason why a step is not up to date."""

    kind: Literal["never", "output", "damaged", "input", "settings", "code"]
    """`never`: the step has not run. `output`: an output is missing. `damaged`: an output is not what the step wrote.
    `input`, `settings`, `code`: one of these has changed."""
    text: str


def stale(step: Step, manifest: Path | None = None) -> list[Reason]:
    """Returns the reasons why a step must run; an empty list if it is up to date.

    Args:
        step: the step.
        manifest: the manifest to compare with; None: the step's own.
    """
    path = manifest or step.manifest
    record = read_manifest(path)
    if record is None:
        return [Reason("never", f"{shown(path)} cannot be read" if path.exists() else "not run yet")]
    reasons = _output_reasons(step, record["outputs"])
    old, new = record["inputs"], fingerprint(step.inputs, record["inputs"])
    reasons += [Reason("input", f"{name} changed") for name in _differing(_hashes(old), _hashes(new))[:3]]
    now, defaults = (flatten(json.loads(json.dumps(values))) for values in (step.settings, step.defaults))
    before = flatten(record["settings"])
    before |= {key: defaults[key] for key in now if key in defaults and key not in before}
    reasons += [Reason("settings", f"{key}: {before.get(key)} → {now.get(key)}") for key in _differing(before, now)]
    return reasons + _code_reasons(step, record)


def _output_reasons(step: Step, written: dict[str, Any]) -> list[Reason]:
    reasons = []
    for output in (*step.outputs, *(path for path in step.also if shown(path) in written)):
        name = shown(output)
        if not output.is_file():
            reasons.append(Reason("output", f"{name} is missing"))
        elif output not in step.editable and not is_as_written(output, written, by_content=output in step.sealed):
            reasons.append(Reason("damaged", f"{name} is not what {step.stage} wrote"))
    return reasons


def is_as_written(output: Path, written: dict[str, Any], by_content: bool) -> bool:
    """Returns whether a file is unchanged since a manifest recorded it.

    Args:
        output: the file.
        written: the outputs in the manifest.
        by_content: whether the content is compared even if size and time are unchanged.
    """
    name, entry = _fingerprint_one(output, {} if by_content else written, root())
    return written.get(name, {}).get("hash") == entry["hash"]


def _code_reasons(step: Step, record: dict[str, Any]) -> list[Reason]:
    if record.get("source") == _source(record["code"]):  # no byte has changed, so no syntax tree needs to be compared
        return []
    changed = _differing(record["code"], code(step.stage))
    if not changed:
        return []
    made_by = record.get("version", "0.1.0")
    if made_by != VERSION:
        return [Reason("code", f"made by version {made_by}")]
    more = f" and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
    return [Reason("code", f"code changed: {', '.join(changed[:NAMED])}{more}")]


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Returns the content of a manifest; None if it does not exist or is damaged. The seal in a manifest must match its
    content; earlier versions did not write a seal."""
    try:
        record = read_json(path)
        hashes = [entry["hash"] for part in ("inputs", "outputs") for entry in record[part].values()]
        sound = all(isinstance(value, str) for value in (*hashes, *record["code"].values(), record["finished"]))
        sound = sound and isinstance(record["settings"], dict) and isinstance(record["seconds"], int | float)
        sound = sound and record.get("seal") in (None, _seal(record))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if sound else None


def record(step: Step, seconds: float, manifest: Path | None = None, inputs: dict[str, Any] | None = None) -> None:
    """Writes the manifest that makes a step up to date.

    Args:
        step: the finished step.
        seconds: how long it took.
        manifest: where to write; None: the step's own path.
        inputs: fingerprint of the inputs that the step read; None: computed from the files now.
    """
    _write(manifest or step.manifest, {
        "stage": step.stage,
        "title": step.title,
        "version": VERSION,
        "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
        "seconds": round(seconds, 2),
        "settings": step.settings,
        "code": code(step.stage),
        "source": _source(code(step.stage)),
        "outputs": fingerprint((*step.outputs, *step.also), {}),
        "editable": list(map(shown, step.editable)),
        "inputs": fingerprint(step.inputs, {}) if inputs is None else inputs,
    })  # fmt: skip


def rewrote(manifest: Path, output: Path) -> None:
    """Records in a manifest that one of its outputs was extended later, so that the step stays up to date. Does nothing
    if there is no manifest."""
    content = read_manifest(manifest)
    if content is not None:
        content["outputs"] |= fingerprint((output,), {})
        _write(manifest, content)


def _write(manifest: Path, content: dict[str, Any]) -> None:
    write_json(manifest, content | {"seal": _seal(content)})


def _seal(content: dict[str, Any]) -> str:
    """Returns a hash of a manifest's content without the seal itself."""
    text = json.dumps({key: value for key, value in content.items() if key != "seal"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Inputs:
    """The fingerprints of the inputs of steps at the time when a stage starts. If a file changes while the stage runs,
    the results were not made from the changed file."""

    def __init__(self, steps: Iterable[Step]) -> None:
        self.began: dict[Path, dict[str, Any]] = {}
        for step in steps:
            self.began[step.manifest] = fingerprint(step.inputs, known_inputs(step))
        self.written: set[str] = set()

    def of(self, step: Step) -> dict[str, Any]:
        """Returns the fingerprint of a finished step's inputs: as they were when the stage started, or as earlier steps
        of the stage wrote them."""
        began = self.began.get(step.manifest, {})
        now = fingerprint(step.inputs, began)
        self.wrote(step)
        return now | {name: entry for name, entry in began.items() if name not in self.written}

    def wrote(self, step: Step) -> None:
        """Notes that the outputs of a step were written after the stage started, by this process or another."""
        self.written |= {shown(output) for output in (*step.outputs, *step.also)}


def known_inputs(step: Step) -> dict[str, Any]:
    """Returns the fingerprint of a step's inputs in its manifest; empty without a manifest."""
    return (read_manifest(step.manifest) or {}).get("inputs", {})


def fingerprint(paths: tuple[Path, ...], known: dict[str, Any]) -> dict[str, Any]:
    """Returns the size, modification time and content hash of each file, by its path.

    Args:
        paths: files, or folders, which stand for all files in them.
        known: an earlier fingerprint. Its hashes are used for files with unchanged size and time.
    """
    files = [file for path in paths for file in (_files_in(path) if path.is_dir() else [path]) if file.exists()]
    base = root()
    with ThreadPoolExecutor() as pool:
        return dict(pool.map(lambda file: _fingerprint_one(file, known, base), files))


def hash_file(path: Path) -> str:
    """Returns the SHA-256 of a file's content."""
    stat = path.stat()
    return _hash(path, stat.st_size, stat.st_mtime_ns)


@cache
def _hash(path: Path, _size: int, _modified: int) -> str:
    """Returns the hash of a file, computed once as long as its size and time do not change."""
    require_regular(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def code(stage: str) -> dict[str, str]:
    """Returns a hash of each module of the package that a stage imports, directly or indirectly, by relative path.

    The hash is that of the syntax tree without comments and docstrings, so that only changes of the code count. Imports
    inside functions and relative imports are followed, and the `__init__.py` of each package on the way is included.
    That of the root package is only included if a name is imported from it that is not a module; then everything that
    it imports is included too.
    """
    hashes: dict[str, str] = {}
    waiting = _files_of(f"pipeline.{stage}.stage")
    while waiting:
        file = waiting.pop()
        name = file.relative_to(PACKAGE).as_posix()
        if name not in hashes:
            hashes[name], imported = _hash_and_imports(file)
            waiting += [path for module in imported for path in _files_of(module)]
    return dict(sorted(hashes.items()))


def environment() -> dict[str, str | None]:
    """Returns the versions of the packages that affect results; None for packages that are not installed, such as those
    for training in a notebook that only predicts."""
    from importlib.metadata import PackageNotFoundError, version

    versions: dict[str, str | None] = {}
    names = ["torch", "lightning", "segmentation-models-pytorch", "albumentations", "opencv-python-headless", "numpy"]
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def checkout() -> dict[str, Any]:
    """Returns the commit of the package's git repository, and whether files of the package were modified; None for both
    if the package is not in a git repository."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(PACKAGE), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "__init__.py") is None:  # installed, perhaps inside another repository
        return {"commit": None, "modified": None}
    changes = git("status", "--porcelain", "--untracked-files=no", "--", ".")
    return {"commit": git("rev-parse", "HEAD"), "modified": None if changes is None else bool(changes)}


def _source(names: Iterable[str]) -> str:
    """Returns one hash over the bytes of modules, given by relative path. Of modules that no longer exist, only the
    names are hashed."""
    digests = [(name, _bytes_hash(PACKAGE / name)) for name in sorted(names)]
    return hashlib.sha256(repr(digests).encode()).hexdigest()[:16]


@cache
def _bytes_hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


@cache
def _hash_and_imports(file: Path) -> tuple[str, tuple[str, ...]]:
    """Returns the hash of a module's syntax tree, and the dotted names that it imports from the package."""
    tree = ast.parse(file.read_bytes())
    # the __init__ of a package counts as one of its modules
    inside = file.relative_to(PACKAGE.parent).with_suffix("").parts
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = inside[: len(inside) - node.level] if node.level else ()
            module = ".".join([*start, *filter(None, [node.module])])
            names += [f"{module}.{alias.name}" for alias in node.names]
    digest = hashlib.sha256(repr(_without_comments(tree)).encode()).hexdigest()[:16]
    return digest, tuple(name for name in names if name.split(".")[0] == PACKAGE.name)


def _without_comments(node: Any) -> Any:
    """Returns a syntax tree as nested tuples, without docstrings, and without empty fields, which differ between Python
    versions."""
    if isinstance(node, list):
        return [_without_comments(entry) for entry in node if not _is_docstring(entry)]
    if not isinstance(node, ast.AST):
        return node
    fields = [(name, _without_comments(value)) for name, value in ast.iter_fields(node) if value not in (None, [])]
    return type(node).__name__, fields


def _is_docstring(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _files_of(name: str) -> list[Path]:
    """Returns the files of a dotted name: its module, and the `__init__.py` of each package on the way."""
    parts = name.split(".")[1:]
    files: list[Path] = []
    folder = PACKAGE
    for place, part in enumerate(parts):
        module, package = folder / f"{part}.py", folder / part
        if module.is_file():
            return [*files, module]
        if not package.is_dir():
            return files if place else [PACKAGE / "__init__.py"]
        folder = package
        if (folder / "__init__.py").is_file():
            files.append(folder / "__init__.py")
    return files or ([] if parts else [PACKAGE / "__init__.py"])


def _files_in(folder: Path) -> list[Path]:
    paths: list[str] = []
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:  # a link to a folder that contains it
            folders.clear()
            continue
        seen.add(real)
        paths += [os.path.join(place, name) for name in names if not name.startswith(".")]
    return [Path(file) for file in sorted(paths) if os.path.isfile(file)]


_by_content = False


def compare_contents() -> None:
    """Makes all further comparisons of files use their content, even if size and time are unchanged."""
    global _by_content
    _by_content = True


def _fingerprint_one(file: Path, known: dict[str, Any], base: Path) -> tuple[str, dict[str, Any]]:
    name, stat = shown(file, base), file.stat()
    entry = {"size": stat.st_size, "modified": stat.st_mtime_ns}
    old = known.get(name, {})
    unchanged = not _by_content and old.get("size") == entry["size"] and old.get("modified") == entry["modified"]
    return name, {**entry, "hash": old["hash"] if unchanged else hash_file(file)}


def _hashes(entries: dict[str, Any]) -> dict[str, str]:
    return {name: entry["hash"] for name, entry in entries.items()}


def _differing(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
