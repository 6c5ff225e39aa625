"""Imports external predictions into the files that validate and predict write for trained models.

    python -m pipeline encode NAME --competition my.yaml --oof oof.npy --test test.npy

reads   oof.npy and test.npy, and the .csv beside each (core/external_arrays.py); work/<competition>/images.parquet,
        test_images.parquet, folds/<competition>.csv
writes  work/<competition>/<run>/predictions/oof_fold_<k>.npy, test_final.npy: probabilities (N, classes, H, W), uint8,
        or float16 for a multiclass competition; beside each a .csv of its image ids; brought.json: a record of the
        import
        work/<competition>/<run>/recipe.yaml, fold_<k>/manifest.json: for runs that use this one in an ensemble
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from rich.markup import escape

from pipeline.core import external_arrays, freshness
from pipeline.core.console import progress_bar, say, warn
from pipeline.core.errors import PipelineError
from pipeline.core.files import shown, write_json
from pipeline.core.freshness import Step
from pipeline.core.recorded import read_recipe, write_recipe
from pipeline.core.run import Run
from pipeline.decode import table
from pipeline.masks.scale import scale_of
from pipeline.predictions.external import WORDS, ExternalPredictions, check_values, converted, open_external
from pipeline.predictions.files import write_probabilities
from pipeline.split.folds import groups_of, read_folds


def oof_steps(run: Run) -> list[Step]:
    """Returns the step of validate, which imports the out-of-fold predictions."""
    assert run.recipe.arrays
    # all folds of the array, whatever train.folds is
    known = external_arrays.folds_of(Path(run.recipe.arrays.oof), run.folds_file, run.split.folds)
    oof = [run.predictions("oof", fold) for fold in known]
    return [_step(run, "validate", "oof", run.recipe.arrays.oof, oof, (run.table, run.folds_file))]


def test_steps(run: Run) -> list[Step]:
    """Returns the step of predict, which imports the test predictions; no step if there are none."""
    assert run.recipe.arrays
    test = run.recipe.arrays.test
    return [_step(run, "predict", "test", test, [run.predictions("test", None)], (run.test_table,))] if test else []


def execute(run: Run, waiting: list[Step]) -> Iterator[Step]:
    """Checks the arrays of all waiting steps, then writes their files, and yields each finished step.

    The ids and shape of the test array are checked in validate too, before tune spends time on the other array.

    Raises:
        PipelineError: ids, shapes or values do not fit; earlier files are unchanged.
    """
    refuse_trained(run.folder)
    images, classes, work = table.read_tables(run.competition_folder), run.competition.classes, []
    if run.recipe.arrays and run.recipe.arrays.test:
        open_external(Path(run.recipe.arrays.test), "test", run.competition, images)
    for step in waiting:
        external = open_external(step.inputs[0], "test" if _is_test(step) else "train", run.competition, images)
        _check_presence(run, external)
        check_values(external, run.competition)
        work.append((step, external, None if _is_test(step) else _folds_of(run, external)))
    write_recipe(run)
    with progress_bar() as bar:
        task = bar.add_task("import", total=sum(len(external.index) for _, external, _ in work))
        for step, external, folds in work:
            for fold in [None] if folds is None else sorted(set(folds)):
                rows = external.index if folds is None else external.index[folds == fold]
                path = run.predictions("test" if fold is None else "oof", fold)
                shape = (len(rows), *external.array.shape[1:])
                dtype = scale_of(run.competition).dtype
                batches = _batches(run, external, rows)
                write_probabilities(
                    path,
                    shape,
                    dtype,
                    batches,
                    rows["image_id"].tolist(),
                    classes,
                    lambda count: bar.advance(task, count),
                )
            if folds is not None:
                _record(run, step, external, folds, images)
            _print(run, external, "test" if folds is None else "train")
            yield step


def _step(run: Run, stage: str, subset: str, path: str, outputs: list[Path], inputs: tuple[Path, ...]) -> Step:
    array, manifest = Path(path), run.folder / "predictions" / f"{subset}.manifest.json"
    files = [file for output in outputs for file in (output, output.with_suffix(".csv"))]
    settings = {"classes": run.competition.classes, "kind": run.competition.kind}
    sources, more = (array, array.with_suffix(".csv"), *inputs), [run.brought] if subset == "oof" else []
    return Step(stage, f"import {array.name}", manifest, sources, (*files, *more), settings)


def _is_test(step: Step) -> bool:
    return step.manifest.name == "test.manifest.json"


def refuse_trained(folder: Path) -> None:
    """Checks that a run's folder does not hold a trained run.

    Raises:
        PipelineError: it holds one.
    """
    recipe = folder / "recipe.yaml"
    if recipe.exists() and not read_recipe(recipe)["recipe"].get("arrays"):
        raise PipelineError(f"{shown(folder)} holds a trained run; give your predictions another name.")


def _check_presence(run: Run, external: ExternalPredictions) -> None:
    """Checks that either both indices have the presence columns, or neither has."""
    assert run.recipe.arrays
    column = f"presence_{run.competition.classes[0]}"
    for other in filter(None, (run.recipe.arrays.oof, run.recipe.arrays.test)):
        if (column in external.index) != (column in external_arrays.read_index(Path(other))):
            raise PipelineError(
                f"only one of {external.path.with_suffix('.csv')} and {Path(other).with_suffix('.csv')} has {column}; "
                "give it in both or in neither."
            )


def _folds_of(run: Run, external: ExternalPredictions) -> np.ndarray:
    """Returns the fold of each row of the index, (N,) int64."""
    if "fold" in external.index:
        return external.index["fold"].to_numpy()
    return read_folds(run).set_index("image_id")["fold"].loc[external.index["image_id"]].to_numpy()


def _batches(
    run: Run, external: ExternalPredictions, rows: pd.DataFrame
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    columns, start = [f"presence_{name}" for name in run.competition.classes], 0
    presence = rows[columns].to_numpy(np.float32) if columns[0] in rows else None
    for block in converted(external, rows.index.to_numpy(), run.competition):
        yield block, None if presence is None else presence[start : start + len(block)]
        start += len(block)


def _record(run: Run, step: Step, external: ExternalPredictions, folds: np.ndarray, images: pd.DataFrame) -> None:
    """Records the folds of the array, for the note about leaks and for ensembles, and removes files of folds that only
    an earlier array had."""
    numbers, split = sorted(set(folds.tolist())), read_folds(run).set_index("image_id", drop=False)
    ids, index = external.index["image_id"], external.path.with_suffix(".csv")
    same = bool((split["fold"].loc[ids].to_numpy() == folds).all())
    groups = pd.Series(groups_of(images[images["subset"] == "train"], split), split.index).loc[ids].to_numpy()
    apart = 0 if same else int((pd.Series(folds).groupby(groups).nunique() > 1).sum())
    leaks = (
        f"the folds of {index.name} leak: {apart} groups or sets of near-duplicates are split over several folds"
        if apart
        else ""
    )
    if leaks:
        warn(f"  [yellow]{escape(leaks)}: all scores are too optimistic[/yellow]")
    used = shown(run.folds_file) if same else str(index)
    write_json(run.brought, {
        "file": str(external.path), "images": len(ids), "of": external.images, "folds": numbers, "folds_of": used,
        "leak_remark": leaks,
    })  # fmt: skip
    for old in run.predictions("oof", 0).parent.glob("oof_fold_*"):
        if old not in step.outputs:
            old.unlink()
    for old in run.folder.glob("fold_*/manifest.json"):
        old.unlink()
    for fold in numbers:
        of_fold = replace(step, inputs=(run.folds_file,) if same else (), outputs=(run.predictions("oof", fold),))
        freshness.record(of_fold, 0, run.fold_folder(fold) / "manifest.json")


def _print(run: Run, external: ExternalPredictions, subset: str) -> None:
    size, count = "×".join(map(str, external.array.shape[2:])), len(external.index)
    say(
        f"  {external.path.name}: {count:,} of {external.images:,} {WORDS[subset]} images, {size} "
        f"{external.array.dtype} → {shown(run.folder)}/predictions"
    )
