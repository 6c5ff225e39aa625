"""Out-of-fold score and test score of the sample competition, drawn from several seeds.

    python -m benchmarks.sample_seeds FOLDER [--seeds 0 1 2 3 4] [--train-seeds 0] [--precisions auto]

For each seed: `sample`, and for each training seed and number format `run sample` in FOLDER/seed_<n>. Finished runs are
not run again. Prints the out-of-fold score, the nested estimate, the score of the submission against truth.csv, and the
difference of the first and the last with its 95 % bootstrap interval, with whole subjects resampled on both sides. The
number of threads is that of OMP_NUM_THREADS.
"""

import argparse
import os
import subprocess
import sys
import time
from datetime import date
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.core.files import read_json
from pipeline.core.run import Run, open_run
from pipeline.decode.readers.files import read_table
from pipeline.encode import scoring, submission
from pipeline.masks.bootstrap import bootstrap, mean_counts, mean_score

DRAWS = 10_000


def open_seed(folder: Path, seed: int) -> Path:
    """Creates the folder of a seed, makes it this process's PIPELINE_ROOT, and returns it."""
    root = (folder / f"seed_{seed}").absolute()
    root.mkdir(parents=True, exist_ok=True)
    os.environ["PIPELINE_ROOT"] = str(root)
    return root


def run_seed(root: Path, seed: int, *options: str, test: int = 120, recipe: str = "sample") -> float:
    """Runs the pipeline for one seed, with further options of `run`, and returns its wall time in seconds.

    The sample is drawn first, unless it exists: 240 training images and `test` test images.
    """
    environment = {**os.environ, "PIPELINE_ROOT": str(root)}
    environment.pop("PIPELINE_INPUT", None)
    if not (root / "input" / "sample").exists():
        drawn = ["sample", "--seed", str(seed), "--test", str(test)]
        subprocess.run([sys.executable, "-m", "pipeline", *drawn], env=environment, check=True)
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "pipeline", "run", recipe, *options], env=environment, check=True)
    return time.perf_counter() - started


def test_scores(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Returns the score of every image of truth.csv (N,) float64 and its subject (N,)."""
    want = submission.expected(run.competition, run.input, run.competition_folder)
    truth, ours = (read_table(path, [], hint="") for path in (run.input / "truth.csv", run.submission))
    return scoring.row_scores(ours, truth, run.competition, want).to_numpy(), truth["subject"].to_numpy()


def compare(seed: int, run: Run, title: str, seconds: float) -> str:
    """Returns one row of the table."""
    held_out = pd.read_csv(run.folder / "oof_scores.csv", dtype={"group": str})
    test, subjects = test_scores(run)
    groups = held_out["group"].to_numpy()
    ours = bootstrap(mean_counts(held_out["score"].to_numpy()), mean_score, groups, DRAWS, seed=0)
    theirs = bootstrap(mean_counts(test), mean_score, subjects, DRAWS, seed=1)
    low, high = np.quantile(ours - theirs, [0.025, 0.975])
    inside = "yes" if low <= 0 <= high else "no"
    result = read_json(run.postprocess)
    return (
        f"| {seed} | {title} | {result['score']:.4f} | {result['nested']:.4f} | {test.mean():.4f} | "
        f"{result['score'] - test.mean():+.4f} [{low:+.4f}, {high:+.4f}] | {inside} | {seconds / 60:.1f} min |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--train-seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--precisions", nargs="+", choices=["auto", "bf16", "32"], default=["auto"])
    options = parser.parse_args()
    rows = []
    for seed, training, precision in product(options.seeds, options.train_seeds, options.precisions):
        name = "sample" if (training, precision) == (0, "auto") else f"sample-{training}-{precision}"
        own = ["--name", name, "--set", f"train.seeds=[{training}]", "--set", f"train.precision={precision}"]
        seconds = run_seed(open_seed(options.folder, seed), seed, *(own if name != "sample" else []))
        rows.append(compare(seed, open_run("sample", name=name), f"{training}, {precision}", seconds))
        print(rows[-1], flush=True)
    threads = os.environ.get("OMP_NUM_THREADS", os.cpu_count())
    print(f"{date.today()}, {os.cpu_count()} CPU cores, {threads} threads")
    print(
        "| drawn | training seed, format | out-of-fold | nested | truth.csv | difference [95 %] | contains 0 | time |"
    )
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
