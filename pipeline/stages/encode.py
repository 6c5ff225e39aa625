"""Turns test probabilities into the submission, by the decision that tune chose, and checks it.

    python -m pipeline encode RECIPE

reads   work/<competition>/<run>/predictions/test_fold_<k>.npy, postprocess.json, fold_<k>/fold.json,
        work/<competition>/images.parquet, the sample submission
writes  submissions/<run>.csv, and submissions/<run>.json: how it came about
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline import freshness, submission, table, workspace
from pipeline.console import console, track
from pipeline.errors import PipelineError
from pipeline.freshness import Step
from pipeline.postprocess import decide, native_probability
from pipeline.probabilities import read_probabilities
from pipeline.stages.decode import geometry_of
from pipeline.stages.tune import decision_of
from pipeline.workspace import Run, shown


def steps(run: Run) -> list[Step]:
    """Returns the one step of this stage."""
    tests = [run.predictions("test", fold) for fold in run.test_folds()]
    folds = list(_trainings(run).values())
    sample = [run.input / run.competition.sample_submission] if run.competition.sample_submission else []
    inputs = (run.postprocess, run.table, *tests, *(path.with_suffix(".csv") for path in tests), *folds, *sample)
    settings = run.competition.model_dump(mode="json", include={"submission", "rle", "classes", "values"})
    manifest = run.folder / "submission.manifest.json"
    return [Step("encode", "encode", manifest, inputs, (run.submission, run.record), settings)]


def execute(run: Run, waiting: list[Step]) -> Iterator[Step]:
    """Writes the submission and its record.

    Raises:
        PipelineError: what was made is not a valid submission; nothing is written then.
    """
    want = submission.expected(run.competition, run.input, run.table)
    images = table.read_table(run.table, "test").set_index("image_id", drop=False)
    sources = [read_probabilities(run.predictions("test", fold)) for fold in run.test_folds()]
    _check_ids(run, images.index.tolist(), [ids for _, ids in sources])
    result = workspace.read_json(run.postprocess)
    decision, geometry = decision_of(result), geometry_of(run)

    def encode_one(pair: tuple[int, str]) -> tuple[dict[submission.Key, list[str]], np.ndarray]:
        row, image_id = pair
        shape = (int(images["height"].iat[row]), int(images["width"].iat[row]))
        masks = decide(native_probability([array[row] for array, _ in sources], geometry, shape), decision)
        return submission.texts_of(image_id, masks, want), masks.sum((1, 2))

    with ThreadPoolExecutor() as pool:
        encoded = list(track(pool.map(encode_one, enumerate(images.index)), "encode", len(images)))
    texts = {key: text for one, _ in encoded for key, text in one.items()}
    with workspace.writing(run.submission) as temporary:
        rows = submission.write(temporary, texts, want)
        faults = submission.faults_of(temporary, want)
        if faults:
            raise PipelineError(f"the submission would not be valid, nothing was written: {'; '.join(faults[:5])}.")
    test = _summary(np.stack([areas for _, areas in encoded]), images, run)
    workspace.write_json(run.record, _record(run, result, test, rows))
    _compare_with_training(test, result)
    console.print(f"  {rows} rows, valid → {shown(run.submission)}")
    yield from waiting


def _trainings(run: Run) -> dict[str, Path]:
    """The fold.json of every training, by its folder's name without `fold_`."""
    folds = dict.fromkeys([*run.trained_folds(), *run.test_folds()])
    folders = [run.fold(member.fold, member.seed) for fold in folds for member in run.members(fold)]
    return {folder.name.removeprefix("fold_"): folder / "fold.json" for folder in folders}


def _check_ids(run: Run, ids: list[str], indices: list[list[str]]) -> None:
    for fold, index in zip(run.test_folds(), indices, strict=True):
        if index != ids:
            raise PipelineError(
                f"{shown(run.predictions('test', fold))} does not hold the test images of {shown(run.table)}; "
                "run the predict stage with --force."
            )


def _summary(areas: np.ndarray, images: pd.DataFrame, run: Run) -> dict[str, Any]:
    """What the predicted masks of the test images look like as a whole; areas (N, C) in pixels."""
    pixels = (images["height"] * images["width"]).to_numpy()
    if run.competition.kind == "multiclass":
        shares = areas.sum(0) / pixels.sum()
        return {"class_share": dict(zip(run.competition.classes, map(float, shares), strict=True))}
    total = areas.sum(1)
    full = (areas == pixels[:, None]).all(1).mean()
    return {
        "share_empty": float((total == 0).mean()), "share_full": float(full), "mean_area": float(total.mean())
    }  # fmt: skip


def _compare_with_training(test: dict[str, Any], result: dict[str, Any]) -> None:
    if "class_share" in test:
        true = result["class_share_true"]
        parts = [f"{name} {share:.1%} (training {true[name]:.1%})" for name, share in test["class_share"].items()]
        console.print(f"  pixels: {', '.join(parts)}")
        alarming = max(test["class_share"].values()) == 1
    else:
        console.print(
            f"  empty masks: {test['share_empty']:.0%} (training {result['share_empty_true']:.0%}); "
            f"mean area {test['mean_area']:.0f} px (training {result['mean_true_area']:.0f})"
        )
        alarming = test["share_empty"] == 1 or test["share_full"] > 0.5
    if alarming:
        console.print("[bold red]  WARNING: ALL MASKS ARE EMPTY, OR MOST ARE FULL; LOOK BEFORE YOU UPLOAD[/bold red]")


def _record(run: Run, result: dict[str, Any], test: dict[str, Any], rows: int) -> dict[str, Any]:
    folds = {name: workspace.read_json(path) for name, path in _trainings(run).items()}
    kept = ("best_epoch", "best_score", "epochs", "seconds", "weights", "compute", "sha256")
    return {
        "run": run.name,
        "made": time.strftime("%Y-%m-%d %H:%M:%S"),
        "sha256": freshness.hash_file(run.submission),
        "rows": rows,
        "expect": {key: result[key] for key in ("metric", "remark", "score", "interval_95", "nested", "untuned")},
        "test": test,
        "postprocess": result,
        "folds": {number: {key: fold[key] for key in kept} for number, fold in folds.items()},
        "environment": freshness.environment(),
        **workspace.describe(run),
    }
