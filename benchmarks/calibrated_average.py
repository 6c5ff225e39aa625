"""Does it help to calibrate the probabilities of two seeds before they are averaged?

    python -m benchmarks.calibrated_average benchmarks/experiments/tricks-tgs-salt.yaml [--only VARIANT…]

For every variant of an experiment of `benchmarks.variants` that is trained, the out-of-fold predictions of each pair of
seeds are averaged three times: as they are; after Platt's calibration, as tune fits it for the step `rank` (slope and
intercept of the logit, on images that have the class); and after isotonic calibration on all images. Each image is
calibrated by a fit to the other half of the groups. Presence probabilities are averaged as they are, because tune
calibrates them itself. `tune` then runs on each average, and the table compares them in pairs. Only for binary
competitions, and one held-out fold.
"""

import argparse
import itertools
import os
import subprocess
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.isotonic import IsotonicRegression

from benchmarks.variant_tables import Counts, over_seeds, read
from benchmarks.variants import Experiment, load
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json, root
from pipeline.core.run import Run, open_run
from pipeline.decode import table
from pipeline.masks.geometry import IGNORE
from pipeline.masks.ranking import LEVELS
from pipeline.split.folds import groups_of, read_folds
from pipeline.tune.calibration import Levels, calibrate

AVERAGES = ("as they are", "Platt", "isotonic")


def histograms(probabilities: np.ndarray, masks: np.ndarray) -> Levels:
    """Returns the histograms of predictions (N, H, W) uint8 over their levels, without pixels of 255 in the masks."""
    counts = np.zeros((2, len(masks), LEVELS))
    for row, (probability, mask) in enumerate(zip(probabilities, masks, strict=True)):
        counts[0, row] = np.bincount(probability[mask != IGNORE], minlength=LEVELS)
        counts[1, row] = np.bincount(probability[mask == 1], minlength=LEVELS)
    total = np.maximum(counts[0].sum(1, keepdims=True), 1)
    return Levels(counts[0] / total, counts[1] / total)


def table_of(kind: str, levels: Levels, groups: np.ndarray) -> np.ndarray:
    """Returns the calibrated probability (256,) float64 of each level, fitted to the images of `levels`."""
    if kind == "isotonic":
        pixels, inside = levels.pixels.sum(0), levels.inside.sum(0)
        seen = pixels > 0
        fit = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
        fit.fit(np.flatnonzero(seen), inside[seen] / pixels[seen], pixels[seen])
        return np.asarray(fit.predict(np.arange(LEVELS)))
    present = levels.inside.sum(1) > 0
    pooled, _ = calibrate(levels, present, np.zeros(len(groups), np.int64), groups)
    return pooled.table() / 65535


def average(kind: str, predictions: list[np.ndarray], masks: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Returns the mean (N, H, W) float32 from 0 to 1 of several predictions (N, H, W) uint8, each calibrated first."""
    if kind == "as they are":
        return np.asarray(np.mean([array / np.float32(LEVELS - 1) for array in predictions], axis=0, dtype=np.float32))
    half = np.random.default_rng(0).permutation(np.arange(len(np.unique(groups))) % 2)
    part = half[np.unique(groups, return_inverse=True)[1]]
    total = np.zeros(masks.shape, np.float32)
    for array in predictions:
        levels = histograms(array, masks)
        for number in (0, 1):
            other = part != number
            table = table_of(kind, Levels(levels.pixels[other], levels.inside[other]), groups[other])
            total[~other] += table.astype(np.float32)[array[~other]]
    return total / len(predictions)


def predicted(run: Run, fold: int, seed: int) -> tuple[np.ndarray, pd.DataFrame]:
    """Returns a run's out-of-fold predictions (N, H, W) uint8 of one class, and their index."""
    path = run.predictions("oof", fold, seed)
    return np.load(path, mmap_mode="r")[:, 0], pd.read_csv(path.with_suffix(".csv"), dtype={"image_id": str})


def masks_of(run: Run, ids: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the masks (N, H, W) uint8 of images at the network's size, and their groups (N,)."""
    images = table.read_table(run.table, "train")
    rows = pd.Index(images["image_id"].astype(str)).get_indexer(ids)
    masks = np.load(run.pixels / "train_masks.npy", mmap_mode="r")[rows, 0]
    return masks, groups_of(images, read_folds(run))[rows]


def tuned(run: Run, name: str, mean: np.ndarray, index: pd.DataFrame, fold: int) -> Run:
    """Runs tune on out-of-fold predictions (N, H, W) as the run `name`, and returns it.

    Raises:
        PipelineError: tune failed.
    """
    path = root() / "work" / "averages" / f"{name}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, mean)
    index.assign(fold=fold).to_csv(path.with_suffix(".csv"), index=False)
    settings = [f"image.{key}={getattr(run.recipe.image, key)}" for key in ("fit", "position")]
    command = [sys.executable, "-m", "pipeline", "tune", name, "--competition", run.recipe.competition]
    command += ["--oof", str(path), *(part for one in settings for part in ("--set", one))]
    done = subprocess.run(command, env=os.environ.copy(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise PipelineError(f"tune of {name} ended with exit code {done.returncode}: {done.stdout}{done.stderr}")
    return open_run(name, competition=run.recipe.competition, oof=str(path), assignments=settings)


def compare(experiment: Experiment, variant: str) -> dict[str, list[tuple[dict[str, Counts], float]]]:
    """Returns, for each kind of average, the counts and the nested estimate of each pair of trained seeds."""
    runs = {seed: experiment.trial(variant, seed).open() for seed in experiment.seeds}
    runs = {seed: run for seed, run in runs.items() if run.postprocess.exists()}
    (fold,) = experiment.folds
    found: dict[str, list[tuple[dict[str, Counts], float]]] = {kind: [] for kind in AVERAGES}
    for pair in itertools.combinations(runs, 2):
        run = runs[pair[0]]
        arrays, indices = zip(*(predicted(runs[seed], fold, seed) for seed in pair), strict=True)
        index = indices[0].copy()
        heads = [name for name in index if name.startswith("presence_")]
        index[heads] = np.mean([one[heads] for one in indices], axis=0)
        masks, groups = masks_of(run, index["image_id"].tolist())
        for kind in AVERAGES:
            name = f"{run.name}-and-{pair[1]}-{kind.replace(' ', '-').lower()}"
            mean = average(kind, list(arrays), masks, groups)
            other = tuned(run, name, mean, index, fold)
            found[kind].append((read(other, experiment.present), read_json(other.postprocess)["nested"]))
            print(f"{name}: nested {found[kind][-1][1]:.4f}", file=sys.stderr, flush=True)
    return found


def lines(variant: str, found: dict[str, list[tuple[dict[str, Counts], float]]]) -> list[str]:
    """Returns the rows of the table for one variant."""
    rows = []
    for kind, pairs in found.items():
        cells = [variant, kind, str(len(pairs))]
        for what in ("untuned", "tuned"):
            firsts, others = ([one[what] for one, _ in found[each]] for each in (AVERAGES[0], kind))
            cells.append(f"{np.mean([one.mean for one in others]):.4f}")
            gain = over_seeds(firsts, others)
            cells.append("first" if kind == AVERAGES[0] else f"{gain.value:+.4f} ± {gain.standard_error:.4f}")
        cells.append(f"{np.mean([nested for _, nested in pairs]):.4f}")
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--only", nargs="+", help="names of variants")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the YAML's")
    options = parser.parse_args()
    experiment = load(options.experiment)
    experiment = replace(experiment, seeds=options.seeds or experiment.seeds)
    print(f"{date.today()}, {experiment.title or experiment.recipe}")
    print("| variant | average of two seeds | pairs | untuned | difference | tuned | difference | nested |")
    print("|---|---|---|---|---|---|---|---|")
    for variant in options.only or experiment.variants:
        print("\n".join(lines(variant, compare(experiment, variant))), flush=True)


if __name__ == "__main__":
    try:
        main()
    except PipelineError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
