"""Runs of the twelve tiny images that look finished, with weights that nobody trained, for the tests of bundles."""

from pathlib import Path
from typing import Any

import predicted

from pipeline.core import freshness
from pipeline.core.files import write_json
from pipeline.core.recorded import write_recipe
from pipeline.core.run import Run

TRAINED: dict[str, Any] = {
    "best_epoch": 1,
    "best_score": None,
    "epochs": 1,
    "seconds": 1.0,
    "images_per_second": 1.0,
    "weights": {"asked": "none"},
    "compute": {"accelerator": "cpu", "precision": "32-true"},
    "pixels": {"type": "uint8"},
}
"""What fold.json must hold."""


def with_summaries(run: Run) -> Run:
    """Writes a fold.json beside the weights of every training, and the run's recipe."""
    for member in (one for fold in run.trained_folds() for one in run.members(fold)):
        hashes = [freshness.hash_file(path) for path in run.weights(member)]
        write_json(run.fold_folder(member.fold, member.seed) / "fold.json", TRAINED | {"sha256": hashes})
    write_recipe(run)
    return run


def finished(split: Run, name: str, **changes: Any) -> Run:
    """A run with weights, predictions and a submission."""
    run = predicted.named(split, name, **changes)
    with_summaries(predicted.with_weights(run))
    return predicted.go(run, "validate", "tune", "predict", "encode")


def wheel_folder(folder: Path, *packages: tuple[str, str, str]) -> Path:
    """A folder with wheels of nothing: name, version and tag of each."""
    import zipfile

    folder.mkdir(exist_ok=True)
    for name, version, tag in packages:
        with zipfile.ZipFile(folder / f"{name}-{version}-{tag}.whl", "w") as archive:
            info = f"{name}-{version}.dist-info"
            archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
            archive.writestr(f"{info}/RECORD", "")
    return folder
