"""Turns test probabilities into the submission, by the decision that tune chose, and checks it.

    python -m pipeline encode RECIPE

reads   work/<competition>/<run>/predictions/test_fold_<k>.npy, postprocess.json, fold_<k>/fold.json,
        work/<competition>/images.parquet, the sample submission
writes  submissions/<run>.csv, and submissions/<run>.json: how it came about
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd

from pipeline import rle, submission, table, workspace
from pipeline.console import console, track
from pipeline.errors import PipelineError
from pipeline.postprocess import decide, native_probability
from pipeline.probabilities import read_probabilities
from pipeline.stages.decode import geometry_of
from pipeline.stages.tune import decision_of
from pipeline.workspace import Run, Step, shown


def steps(run: Run) -> list[Step]:
    """Returns the one step of this stage."""
    tests = [run.predictions("test", fold) for fold in run.trained_folds()]
    folds = [run.fold(fold) / "fold.json" for fold in run.trained_folds()]
    sample = [run.input / run.competition.sample_submission] if run.competition.sample_submission else []
    inputs = (run.postprocess, run.table, *tests, *(path.with_suffix(".csv") for path in tests), *folds, *sample)
    settings = {"submission": run.competition.submission_columns.model_dump(), "rle": run.competition.rle.model_dump()}
    manifest = run.folder / "submission.manifest.json"
    return [Step("encode", "encode", manifest, inputs, (run.submission, run.record), settings)]


def execute(run: Run, waiting: list[Step]) -> Iterator[Step]:
    """Writes the submission and its record.

    Raises:
        PipelineError: what was made is not a valid submission; nothing is written then.
    """
    want = submission.expected(run.competition, run.input, run.table)
    images = table.read_table(run.table, "test").set_index("image_id", drop=False)
    sources = [read_probabilities(run.predictions("test", fold)) for fold in run.trained_folds()]
    _check_ids(run, images.index.tolist(), [ids for _, ids in sources])
    vanished = sorted(set(want.ids) - set(images.index))
    if vanished:
        raise PipelineError(f"{len(vanished)} test ids were not decoded ({', '.join(vanished[:3])}): decode again.")
    result = workspace.read_json(run.postprocess)
    decision, geometry = decision_of(result), geometry_of(run)

    def encode_one(pair: tuple[int, str]) -> tuple[str, str, int]:
        row, image_id = pair
        shape = (int(images["height"].iat[row]), int(images["width"].iat[row]))
        masks = decide(native_probability([array[row] for array, _ in sources], geometry, shape), decision)
        return image_id, rle.encode(masks[0], want.convention), int(masks[0].sum())

    with ThreadPoolExecutor() as pool:
        encoded = list(track(pool.map(encode_one, enumerate(images.index)), "encode", len(images)))
    texts = {image_id: text for image_id, text, _ in encoded}
    frame = pd.DataFrame({want.id_column: want.ids, want.rle_column: [texts[image_id] for image_id in want.ids]})
    faults = submission.faults_of(frame, want)
    if faults:
        raise PipelineError(f"the submission would not be valid, nothing was written: {'; '.join(faults[:5])}.")
    with workspace.writing(run.submission) as temporary:
        frame.to_csv(temporary, index=False)
    areas = np.array([area for _, _, area in encoded])
    workspace.write_json(run.record, _record(run, result, areas))
    _compare_with_training(areas, images, result)
    console.print(f"  {len(frame)} rows, valid → {shown(run.submission)}")
    yield from waiting


def _check_ids(run: Run, ids: list[str], indices: list[list[str]]) -> None:
    for fold, index in zip(run.trained_folds(), indices, strict=True):
        if index != ids:
            raise PipelineError(
                f"{shown(run.predictions('test', fold))} does not hold the test images of {shown(run.table)}; "
                "run the predict stage with --force."
            )


def _compare_with_training(areas: np.ndarray, images: pd.DataFrame, result: dict[str, Any]) -> None:
    empty, full = float((areas == 0).mean()), (areas == (images["height"] * images["width"]).to_numpy()).mean()
    mean = float(areas.mean())
    console.print(
        f"  empty masks: {empty:.0%} (training {result['share_empty_true']:.0%}); "
        f"mean area {mean:.0f} px (training {result['mean_true_area']:.0f})"
    )
    if empty == 1 or full > 0.5:
        console.print("[bold red]  WARNING: THE MASKS ARE ALL EMPTY OR MOSTLY FULL; LOOK BEFORE YOU UPLOAD[/bold red]")


def _record(run: Run, result: dict[str, Any], areas: np.ndarray) -> dict[str, Any]:
    folds = {str(fold): workspace.read_json(run.fold(fold) / "fold.json") for fold in run.trained_folds()}
    kept = ("best_epoch", "best_score", "epochs", "seconds", "weights", "compute", "sha256")
    return {
        "run": run.name,
        "made": time.strftime("%Y-%m-%d %H:%M:%S"),
        "sha256": workspace.hash_file(run.submission),
        "rows": len(areas),
        "expect": {key: result[key] for key in ("metric", "score", "interval_95", "nested", "untuned")},
        "test": {"share_empty": float((areas == 0).mean()), "mean_area": float(areas.mean())},
        "postprocess": result,
        "folds": {number: {key: fold[key] for key in kept} for number, fold in folds.items()},
        "environment": workspace.environment(),
        **workspace.describe(run),
    }
