"""Writes a bundle: all files that a notebook without a network needs to predict a hidden test set.

    python -m pipeline bundle RECIPE…

reads   of each run: weights, fold.json, postprocess.json, mask_statistics.npz; requirements.lock; and for the canary
        work/<competition>/pixels_…/test_images.npy, if it exists
writes  work/<competition>/<run>/bundle/dataset/   bundle.json, dataset-metadata.json, competition.yaml, runs/, wheels/
        work/<competition>/<run>/bundle/kernel/    inference.ipynb, inference.py, server.py, kernel-metadata.json

A bundle contains no training images and never torch. The old bundle is replaced when the new one is complete.
"""

import hashlib
import re
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from packaging.utils import parse_wheel_filename
from rich.markup import escape

from pipeline.core import deadline, driver, freshness
from pipeline.core.config.recipe import Recipe
from pipeline.core.config.settings import validate
from pipeline.core.config.submission_settings import ENDINGS, file_of_name
from pipeline.core.console import say, warn
from pipeline.core.engine import Engine
from pipeline.core.errors import PipelineError
from pipeline.core.files import shown, write_json, write_text, writing
from pipeline.core.other_runs import runs_of
from pipeline.core.recorded import write_recipe
from pipeline.core.results import read_tuned
from pipeline.core.run import Run
from pipeline.core.trainings import Weights, read_training
from pipeline.core.version import VERSION
from pipeline.core.written import Part, read_checked
from pipeline.kaggle.bundle import half, image, notebook, project, script, wheels

MOST_PACKAGES = 5
"""Maximum number of packages that a bundle may add to the image, including this package."""
EXPECT = ("metric", "score", "interval_95", "nested", "nested_interval_95")
TITLE = 50
"""Maximum number of characters of the title of a dataset or kernel."""


@dataclass(frozen=True)
class Options:
    """Options of a bundle."""

    python: str = image.PYTHON
    wheels: Path | None = None
    """Folder of wheels to use; None: wheels are downloaded."""
    limit: str = "8h"
    """Time limit of the notebook; `none`: no limit."""
    target: str | None = None
    """Name of the file that the notebook writes; None: `submission` with the suffix of the competition's format."""
    user: str = "USERNAME"
    """User name on Kaggle, for the metadata."""
    half: bool = False
    """Whether weights are stored in fp16."""
    force: bool = False
    """Whether to bundle a run whose steps are not up to date."""


def folder_of(run: Run) -> Path:
    """Returns the folder of a run's bundle."""
    return run.folder / "bundle"


def write_bundle(run: Run, options: Options, engine: Engine | None = None) -> Path:
    """Writes a run's bundle and returns its folder.

    Raises:
        PipelineError: the run is not finished, or its code or data have changed since; weights are missing or damaged;
            or wheels are not available. Then nothing is written.
    """
    check_options(options)
    if not run.competition.has_test:
        raise PipelineError(
            f"{run.competition.name} has no test set (`test: null`), but a bundle predicts one: name the test images "
            "in its YAML."
        )
    check_finished(run, options.force)
    options = replace(options, target=options.target or f"submission{_ending(run)}")
    _check_kind(run, str(options.target))
    target = folder_of(run)
    with writing(target) as temporary:
        if temporary.exists():
            shutil.rmtree(temporary)
        dataset, kernel = temporary / "dataset", temporary / "kernel"
        dataset.mkdir(parents=True)
        kernel.mkdir()
        project.write_project(run, dataset, half.convert if options.half else None)
        changed = half.measure(run, dataset, engine) if options.half else None
        _write_canaries(run, dataset)
        packages = _write_wheels(run, dataset / "wheels", options)
        about = _about(run, dataset, packages, options) | ({"half": changed} if changed else {})
        write_json(dataset / "bundle.json", about)
        write_json(dataset / "dataset-metadata.json", _dataset(run, options))
        _write_kernel(run, kernel, freshness.hash_file(dataset / "bundle.json"), options)
        if target.exists():
            shutil.rmtree(target)
    _say(target, about)
    return target


def combined(runs: Sequence[Run], name: str | None, engine: Engine | None) -> Run:
    """Returns the ensemble of several runs, with weights fitted to their out-of-fold predictions; runs tune if needed.

    Raises:
        PipelineError: the runs belong to different competitions, or are not finished.
    """
    competitions = {run.competition.name for run in runs}
    if len(competitions) > 1:
        raise PipelineError(
            f"the recipes belong to several competitions ({', '.join(sorted(competitions))}): give recipes of one "
            "competition."
        )
    for run in runs:
        check_finished(run)
        write_recipe(run)
    first, names = runs[0], [run.name for run in runs]
    data: dict[str, Any] = {
        "name": name or "-and-".join(names),
        "competition": first.recipe.competition,
        "ensemble": dict.fromkeys(names),
    }
    data["folds"] = first.recipe.folds
    folds = set.intersection(*(set(run.trained_folds()) for run in runs))
    recipe = validate(Recipe, data | {"train": {"folds": sorted(folds)}}, "ensemble")
    run = replace(first, recipe=recipe, name=recipe.name, options=())
    driver.run_stage(run, "tune", engine=engine)
    return run


def check_finished(run: Run, force: bool = False) -> None:
    """Checks that a run can be bundled: trained and tuned with the current code and data.

    Raises:
        PipelineError: the run cannot be bundled.
    """
    if run.recipe.arrays:
        raise PipelineError(f"{run.name} has external predictions and no networks: there is nothing to bundle.")
    for other in runs_of(run):
        members = [member for fold in other.test_folds() for member in other.members(fold)]
        for path in (path for member in members for path in other.weights(member)):
            if not path.exists():
                raise PipelineError(
                    f"{shown(path)} does not exist: training of {other.name} is not finished; "
                    f"`{other.command()}` continues it."
                )
            if freshness.hash_file(path) not in read_training(path.with_name("fold.json"), Weights)["sha256"]:
                raise PipelineError(
                    f"{shown(path)} is damaged or was replaced: its SHA-256 is not in fold.json. Restore the file, or "
                    "train again with `--force`."
                )
    for bundled in {other.name: other for other in (*runs_of(run), run)}.values():
        if not bundled.postprocess.exists():
            raise PipelineError(
                f"{shown(bundled.postprocess)} does not exist: `{bundled.command('--to', 'tune')}` makes it."
            )
        read_tuned(bundled)
        reasons = [
            reason.text
            for stage in ("validate", "tune")
            for state in driver.unfinished(bundled, stage)
            for reason in state.reasons
        ]
        if reasons and not force:
            raise PipelineError(
                f"{bundled.name} is not up to date ({'; '.join(list(dict.fromkeys(reasons))[:3])}): "
                f"`{bundled.command('--to', 'tune')}` brings it up to date, or --force bundles it as it is."
            )


def check_options(options: Options) -> None:
    """Checks the options of a bundle.

    Raises:
        PipelineError: an option is invalid.
    """
    if not re.fullmatch(r"3\.\d+", options.python):
        raise PipelineError(f"--python {options.python}: expected a version such as 3.12.")
    if options.target and not (re.fullmatch(r"[\w-][\w.-]*", options.target) and file_of_name(options.target)):
        raise PipelineError(
            f"--output {options.target}: expected a file name without a folder that ends in .csv, .parquet, .csv.gz, "
            ".zip or .json."
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", options.user):
        raise PipelineError(
            f"--user {options.user!r}: expected a user name as in Kaggle's addresses: letters, digits and hyphens."
        )
    deadline.limit_of(options.limit)
    if options.wheels and not options.wheels.is_dir():
        raise PipelineError(f"--wheels {options.wheels}: this folder does not exist.")


def _ending(run: Run) -> str:
    file = run.competition.submission_file
    return ".json" if file == "json" else ENDINGS[file]


def _check_kind(run: Run, name: str) -> None:
    """Checks that the file name has a suffix that the competition accepts."""
    file, images = run.competition.submission_file, run.competition.submission.format == "images"
    if file_of_name(name) != file and (images or "json" in (file, file_of_name(name))):
        raise PipelineError(f"--output {name}: submissions to {run.competition.name} must end in {_ending(run)}.")


# --- the content -----------------------------------------------------------------------------------------------------


def _write_canaries(run: Run, dataset: Path) -> None:
    from pipeline.kaggle.bundle import canary

    for bundled in runs_of(run):
        summary = read_training(next(iter((dataset / "runs" / bundled.name).rglob("fold.json"))), Weights)
        canary.write(bundled, dataset / "runs" / bundled.name / "canary.npz", summary["pixels"].get("type", "uint8"))


def _write_wheels(run: Run, folder: Path, options: Options) -> list[dict[str, Any]]:
    """Writes the wheels and returns their entries for bundle.json."""
    folder.mkdir()
    available = image.packages()
    missing = image.lacking(image.requirements(runs_of(run)), available)
    if len(missing) + 1 > MOST_PACKAGES:
        raise PipelineError(
            f"Kaggle's image lacks {len(missing)} packages ({', '.join(package.name for package in missing)}), but a "
            f"bundle may add at most {MOST_PACKAGES - 1} packages besides its own."
        )
    paths = [wheels.write_own(folder), *wheels.gather(missing, folder, options.python, options.wheels, available)]
    named = {path: parse_wheel_filename(path.name) for path in paths}
    versions = {str(name): str(number) for name, number, _, _ in named.values()}
    for path in paths:
        for text in wheels.conflicts(path, available, versions):
            warn(f"[yellow]{escape(text)}[/yellow]")
    return [
        {
            "name": str(name), "version": str(number), "wheel": path.name, "sha256": freshness.hash_file(path),
            "python": wheels.python_of(tags, options.python),
            "instead_of": next((package.why for package in missing if package.name == name), "nothing"),
        }
        for path, (name, number, _, tags) in named.items()
    ]  # fmt: skip


def _about(run: Run, dataset: Path, packages: list[dict[str, Any]], options: Options) -> dict[str, Any]:
    """The content of bundle.json."""
    result = read_tuned(run)
    files = [path for path in sorted(dataset.rglob("*")) if path.is_file()]
    hashes = {path.relative_to(dataset).as_posix(): freshness.hash_file(path) for path in files}
    whole = hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in hashes.items()).encode()).hexdigest()
    return {
        "format": 1,
        "run": run.name,
        "runs": [bundled.name for bundled in runs_of(run)],
        "competition": run.competition.name,
        "kaggle": run.competition.kaggle,
        "made": time.strftime("%Y-%m-%d %H:%M:%S"),
        "version": VERSION,
        **freshness.checkout(),
        "expect": {key: result.get(key) for key in EXPECT},
        "ensemble": result.get("ensemble", {}),
        "python": options.python,
        "image": {"list": image.LIST.name, "date": image.DATE},
        "time": options.limit,
        "output": options.target,
        "weights": "fp16" if options.half else "fp32",
        "package": image.OWN,
        "packages": packages,
        "environment": freshness.environment(),
        "bytes": sum(path.stat().st_size for path in files),
        "sha256": whole,
        "files": hashes,
    }


# --- Kaggle's metadata -----------------------------------------------------------------------------------------------


def slug(text: str) -> str:
    """Returns a name in the form of Kaggle's addresses."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:TITLE].rstrip("-")


def _dataset(run: Run, options: Options) -> dict[str, Any]:
    name = slug(f"{run.name} bundle")
    return {"title": name, "id": f"{options.user}/{name}", "licenses": [{"name": "other"}]}


def _write_kernel(run: Run, folder: Path, digest: str, options: Options) -> None:
    settings = {
        "SHA256": digest,
        "TARGET": str(options.target),
        "LIMIT": "" if options.limit == "none" else options.limit,
    }
    write_text(folder / "inference.py", notebook.script_text(settings))
    write_text(folder / "inference.ipynb", notebook.notebook_text(settings))
    write_text(folder / "server.py", notebook.server_text(settings))
    name = slug(f"{run.name} inference")
    write_json(folder / "kernel-metadata.json", {
        "id": f"{options.user}/{name}",
        "title": name,
        "code_file": "inference.ipynb",
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": True,
        "enable_tpu": False,
        "enable_internet": False,
        "machine_shape": "NvidiaTeslaT4",
        "docker_image_pinning_type": "original",
        "dataset_sources": [f"{options.user}/{slug(f'{run.name} bundle')}"],
        "competition_sources": [run.competition.kaggle] if run.competition.kaggle else [],
        "kernel_sources": [],
        "model_sources": [],
    })  # fmt: skip


def _say(target: Path, about: dict[str, Any]) -> None:
    packages = about["packages"]
    if "half" in about:
        texts = [f"{name} {value['fp16']:.4f} instead of {value['fp32']:.4f}" for name, value in about["half"].items()]
        say(f"  fp16 weights: out-of-fold {', '.join(texts)}")
    listed = ", ".join(f"{package['name']} {package['version']}" for package in packages)
    say(
        f"{shown(target)}: {about['bytes'] / 2**20:.1f} MiB, {len(packages)} packages ({listed}) for Python "
        f"{about['python']}"
    )
    if not all(script.fits(package["python"]) for package in packages):
        running = f"{sys.version_info.major}.{sys.version_info.minor}"
        say(
            f"  the wheels for Python {about['python']} were chosen by their tags; installing them was not tested, "
            f"because Python {running} is running here"
        )


def read_about(run: Run) -> dict[str, Any]:
    """Returns the content of bundle.json of a run's bundle.

    Raises:
        PipelineError: there is no bundle.
    """
    path = folder_of(run) / "dataset" / "bundle.json"
    if not path.exists():
        raise PipelineError(f"{shown(path)} does not exist: write the bundle first.")
    return read_checked(path, Part, "write the bundle again")
