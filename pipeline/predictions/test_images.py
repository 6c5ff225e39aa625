"""Checks that test predictions were made from the current raw test images, before predict and encode continue.

Raw test files are inputs of both stages. After a test image was changed, swapped, added or removed, neither stage is up
to date, and results from the old images are not used.
"""

from pathlib import Path
from typing import Any

from pipeline.core import freshness
from pipeline.core.errors import PipelineError
from pipeline.core.files import shown
from pipeline.core.other_runs import runs_of
from pipeline.core.run import Run
from pipeline.core.tables import as_packed
from pipeline.decode.readers.registry import reader_of


def raw_test_files(run: Run) -> tuple[Path, ...]:
    """Returns the raw files and folders from which the test images of a run's competition are read.

    The sample submission is left out: it only selects and orders the images, as test_images.parquet does.
    """
    sample = as_packed(run.input / (run.competition.sample_submission or ""))
    raw = reader_of(run.competition).raw_files(run.competition, run.input, "test")
    return tuple(path for path in raw if path != sample)


def check_decoded(run: Run) -> None:
    """Checks that the pixel array of the test images was made from the current raw files.

    Raises:
        PipelineError: a raw test file was changed, added or removed after decode.
    """
    manifest = run.pixels / "test.manifest.json"
    if record := freshness.read_manifest(manifest):
        _check(run, record, f"{shown(run.pixels)}/test_images.npy was made")


def check_predicted(run: Run) -> None:
    """Checks that the test predictions of a run, or of the runs of an ensemble, were made from the current raw files.

    External predictions are not checked.

    Raises:
        PipelineError: a raw test file was changed, added or removed after predict, or predict was interrupted.
    """
    for other in runs_of(run):
        for path in (other.predictions("test", fold) for fold in other.test_folds() if other.recipe.trains):
            manifest = path.with_suffix(".manifest.json")
            record = freshness.read_manifest(manifest)
            if record is None:  # the predictions may be of earlier test images
                raise PipelineError(
                    f"predict was interrupted: {shown(manifest)} is missing or damaged; "
                    f"run `{other.command('--from', 'predict')}` to continue."
                )
            _check(other, record, f"{shown(path)} was predicted")


def _check(run: Run, record: dict[str, Any], made: str) -> None:
    raw, before = raw_test_files(run), record["inputs"]
    now = freshness.fingerprint(raw, before)
    known = {name for name in before if name in now or _lies_in(name, raw)}
    changed = sorted(
        name for name in known | now.keys() if before.get(name, {}).get("hash") != now.get(name, {}).get("hash")
    )
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise PipelineError(
            f"the raw test images changed after {made} ({', '.join(changed[:3])}{more}): "
            f"run `{run.command('--from', 'predict')}` to predict the current ones."
        )


def _lies_in(name: str, raw: tuple[Path, ...]) -> bool:
    """Returns whether a file, named as in a manifest, is one of these files or is inside one of these folders."""
    return any(name == shown(path) or name.startswith(f"{shown(path)}/") for path in raw)
