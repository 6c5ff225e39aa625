"""Where every artefact lives, how it is written, and whether it is up to date.

A file appears whole or not at all: it is written under a temporary name and renamed. A stage's manifest, written
last, lists what went in (content hashes, settings, code) and what came out; a stage is up to date when all of that
still holds.
"""

import ast
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pipeline.competition import Competition, SplitSettings, load_competition
from pipeline.errors import PipelineError
from pipeline.recipe import Recipe, load_recipe
from pipeline.settings import flatten

PACKAGE = Path(__file__).parent


def root() -> Path:
    """Returns the folder of input/, folds/, submissions/ and work/ ($PIPELINE_ROOT, default: the repository)."""
    return Path(os.environ.get("PIPELINE_ROOT") or PACKAGE.parent).expanduser().resolve()


def input_root() -> Path:
    """Returns the folder of raw competition files ($PIPELINE_INPUT, default: input/ under the root)."""
    return Path(os.environ.get("PIPELINE_INPUT") or root() / "input").expanduser().absolute()


def shown(path: Path) -> str:
    """Returns a path as a person wants to read it: relative to the root where it lies inside."""
    return str(path.relative_to(root())) if path.is_relative_to(root()) else str(path)


@dataclass(frozen=True)
class Member:
    """One training: a fold held out, or none (the final model on all images), with one seed."""

    fold: int | None
    seed: int

    @property
    def title(self) -> str:
        """What messages call it."""
        seed = f" seed {self.seed}" if self.seed else ""
        return ("final" if self.fold is None else f"fold {self.fold}") + seed


@dataclass(frozen=True)
class Run:
    """A recipe under a run name, and the place of everything it reads and writes."""

    recipe: Recipe
    competition: Competition
    name: str

    @property
    def input(self) -> Path:
        """Raw files of the competition."""
        return input_root() / self.competition.folder

    @property
    def competition_folder(self) -> Path:
        """Artefacts that all recipes of the competition share."""
        return root() / "work" / self.competition.name

    @property
    def folder(self) -> Path:
        """Artefacts of this run."""
        return self.competition_folder / self.name

    @property
    def table(self) -> Path:
        """One row an image."""
        return self.competition_folder / "images.parquet"

    @property
    def outliers(self) -> Path:
        """One row a finding."""
        return self.competition_folder / "outliers.csv"

    @property
    def outlier_pictures(self) -> Path:
        """Pictures of the findings."""
        return self.competition_folder / "outliers"

    @property
    def histograms(self) -> Path:
        """Block histograms (N, D) uint8 of all images, in the order of the table."""
        return self.competition_folder / "histograms.npy"

    @property
    def thumbnails(self) -> Path:
        """Standardised thumbnails (N, 256) float16 of all images, in the order of the table."""
        return self.competition_folder / "thumbnails.npy"

    @property
    def folds(self) -> Path:
        """The split this run trains on."""
        suffix = f"-{self.recipe.folds}" if self.recipe.folds else ""
        return root() / "folds" / f"{self.competition.name}{suffix}.csv"

    @property
    def audit(self) -> Path:
        """What the split is like, and whether it leaks."""
        return self.folds.with_suffix(".audit.json")

    @property
    def pixels(self) -> Path:
        """Pixel arrays at network size, shared by all recipes with the same geometry."""
        image = self.recipe.image
        colour, (rows, columns) = {1: "grey", 3: "rgb", 4: "four"}[image.channels], image.stored
        border = "-constant" if image.fit == "pad" and image.border == "constant" else ""
        return self.competition_folder / f"pixels_{rows}x{columns}_{image.fit}{border}_{colour}"

    def fold(self, number: int | None, seed: int | None = None) -> Path:
        """Weights and history of one fold (None: of the final model), by default with the first seed."""
        suffix = "" if seed in (None, self.recipe.train.seeds[0]) else f"_seed_{seed}"
        return self.folder / (("final" if number is None else f"fold_{number}") + suffix)

    def weights(self, member: Member) -> tuple[Path, ...]:
        """The weights that one training leaves: several with snapshots."""
        train, folder = self.recipe.train, self.fold(member.fold, member.seed)
        if member.fold is None:
            return (folder / "last.safetensors",)
        if train.snapshots > 1:
            return tuple(folder / f"snapshot_{number}.safetensors" for number in range(1, train.snapshots + 1))
        return (folder / f"{train.keep}.safetensors",)

    def members(self, fold: int | None) -> list[Member]:
        """Returns the trainings of a fold (None: the final ones), whose predictions are averaged."""
        return [Member(fold, seed) for seed in self.recipe.train.seeds]

    def predictions(self, subset: Literal["oof", "test"], fold: int | None) -> Path:
        """Probabilities (N, C, H, W) of one fold (None: of the final model); the row order is in the .csv beside it."""
        return self.folder / "predictions" / (f"{subset}_final.npy" if fold is None else f"{subset}_fold_{fold}.npy")

    def test_folds(self) -> list[int | None]:
        """Returns the folds whose test predictions are averaged: all that are trained, or the final model alone."""
        return [None] if self.recipe.train.final else list(self.trained_folds())

    @property
    def postprocess(self) -> Path:
        """Tuned thresholds and areas, with their scores."""
        return self.folder / "postprocess.json"

    @property
    def suspects(self) -> Path:
        """Images whose out-of-fold prediction disagrees most with their mask."""
        return self.folder / "suspects.csv"

    @property
    def submission(self) -> Path:
        """The file to upload."""
        return root() / "submissions" / f"{self.name}.csv"

    @property
    def record(self) -> Path:
        """How the submission came about."""
        return self.submission.with_suffix(".json")

    @property
    def report(self) -> Path:
        """One page to look at."""
        return self.folder / "report.html"

    @property
    def split(self) -> SplitSettings:
        """How this run's folds file is made."""
        return self.competition.splits.get(self.recipe.folds or "", self.competition.split)

    @property
    def never(self) -> tuple[int, ...]:
        """Numbers of the classes that this run does not predict.

        Raises:
            PipelineError: a class that the competition does not have.
        """
        classes = self.competition.classes
        numbers = [classes.index(one) if one in classes else one for one in self.recipe.predict.never]
        wrong = [one for one in numbers if not isinstance(one, int) or not 0 <= one < len(classes)]
        if wrong or (numbers and self.competition.kind != "multiclass") or len(set(numbers)) == len(classes):
            raise PipelineError(
                f"predict.never is {self.recipe.predict.never}; expected some classes of a multiclass competition, by "
                f"name or number (0 is the first): {', '.join(classes)}."
            )
        return tuple(sorted(set(numbers)))  # type: ignore[arg-type]

    @property
    def remark(self) -> str:
        """What must be said beside every score."""
        final = "the submission is by a final model on all images, which has no out-of-fold score: these are the folds'"
        return "; ".join(filter(None, [self.competition.remark, final if self.recipe.train.final else ""]))

    def trained_folds(self) -> list[int]:
        """Returns the numbers of the folds this run trains."""
        count = self.split.folds
        folds = self.recipe.train.folds
        if folds is None:
            return list(range(count))
        wrong = [fold for fold in folds if not 0 <= fold < count]
        if wrong or not folds:
            raise PipelineError(f"train.folds is {folds}; expected numbers from 0 to {count - 1}, at least one.")
        return sorted(set(folds))


def open_run(recipe: str, quick: bool = False, name: str | None = None, assignments: list[str] | None = None) -> Run:
    """Returns the run of a recipe: named after it, `<recipe>-quick`, or `name`."""
    loaded = load_recipe(recipe, quick, assignments)
    run_name = name or (f"{loaded.name}-quick" if quick else loaded.name)
    if not run_name or set(run_name) & set("/\\ ") or run_name.startswith("."):
        raise PipelineError(f"--name {run_name!r}: expected a plain file name without spaces or slashes.")
    run = Run(loaded, load_competition(loaded.competition), run_name)
    weights, reason = loaded.model.weights, run.competition.forbids_pretrained
    if reason and weights != "none":
        raise PipelineError(f"model.weights is {weights}, but {reason}: set model.weights=none.")
    _ = run.never  # an unknown class shows now
    loaded.loss.terms(run.competition.kind, loaded.model.presence)
    return run


# --- writing ---------------------------------------------------------------------------------------------------------


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path` and renames it to `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None or isinstance(error, FileNotFoundError):
            raise
        raise PipelineError(f"{shown(path)} could not be written: {error.strerror}. Nothing was changed.") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def require_space(path: Path, needed: int, what: str) -> None:
    """Checks that the disk holds `needed` bytes more: arrays are mapped from it, and a full one would kill the process.

    Raises:
        PipelineError: it does not.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise PipelineError(
            f"{what} take {needed / 2**30:.1f} GiB, and the disk of {shown(path.parent)} has {free / 2**30:.1f} GiB "
            "free, which is the limit: make room, or set a smaller image.size or image.store."
        )


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Returns a JSON file's content."""
    return json.loads(path.read_text(encoding="utf-8"))


# --- up to date? -----------------------------------------------------------------------------------------------------


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
    before, now = flatten(record["settings"]), flatten(json.loads(json.dumps(step.settings)))
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


def record(step: Step, seconds: float, manifest: Path | None = None) -> None:
    """Writes the manifest that makes a step up to date."""
    path = manifest or step.manifest
    known = read_json(path)["inputs"] if path.exists() else {}
    write_json(path, {
        "stage": step.stage,
        "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
        "seconds": round(seconds, 2),
        "settings": step.settings,
        "code": code(step.stage),
        "outputs": fingerprint(step.outputs, {}),
        "inputs": fingerprint(step.inputs, known),
    })  # fmt: skip


def fingerprint(paths: tuple[Path, ...], known: dict[str, Any]) -> dict[str, Any]:
    """Returns size, modification time and content hash of every file; hashes in `known` hold while size and time do."""
    files = [file for path in paths for file in (_files_in(path) if path.is_dir() else [path]) if file.exists()]
    with ThreadPoolExecutor() as pool:
        return dict(pool.map(lambda file: _fingerprint_one(file, known), files))


def hash_file(path: Path) -> str:
    """Returns the SHA-256 of a file's content."""
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


def describe(run: Run) -> dict[str, Any]:
    """Returns the resolved recipe and competition, for the record."""
    return {"recipe": run.recipe.model_dump(mode="json"), "competition": run.competition.model_dump(mode="json")}


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
    return sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))


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
