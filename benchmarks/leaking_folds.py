"""Do folds that leak lie? The sample competition with random folds and with ours, several seeds.

    python -m benchmarks.leaking_folds FOLDER [--seeds 0 1 2]

For each seed, in FOLDER/seed_<n> as benchmarks.sample_seeds (finished runs are not run again): the recipe `sample` with
folds that keep subjects together, and with `folds: random`, which lets frames of one subject stand in all folds. The
test subjects are in no fold, so truth.csv says what either score is worth: a score that promises more flatters.
"""

import argparse
import os
from datetime import date
from pathlib import Path

import numpy as np

from benchmarks.sample_seeds import run_seed
from pipeline import submission
from pipeline.workspace import open_run, read_json

SPLITS: dict[str, list[str]] = {"ours": [], "random": ["--set", "folds=random", "--name", "sample-random"]}


def measure(root: Path, name: str) -> tuple[float, float, dict]:
    """Returns the out-of-fold score, the score against truth.csv, and the audit of the folds."""
    os.environ["PIPELINE_ROOT"] = str(root)
    run = (
        open_run("sample", name="sample-random", assignments=["folds=random"])
        if name == "random"
        else open_run("sample")
    )
    want = submission.expected(run.competition, run.input, run.table)
    truth, _ = submission.score(run.submission, run.input / "truth.csv", run.competition, want)
    return read_json(run.postprocess)["score"], truth, read_json(run.audit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    rows, flattery = [], {name: [] for name in SPLITS}
    for seed in options.seeds:
        root = (options.folder / f"seed_{seed}").absolute()
        root.mkdir(parents=True, exist_ok=True)
        for name, extra in SPLITS.items():
            run_seed(root, seed, *extra)
            held_out, truth, audit = measure(root, name)
            flattery[name].append(held_out - truth)
            leak = audit["leak_remark"] or "no leak"
            rows.append(f"| {seed} | {name} | {held_out:.4f} | {truth:.4f} | {held_out - truth:+.4f} | {leak} |")
    print(f"{date.today()}, {os.cpu_count()} CPU cores")
    print("| seed | folds | out-of-fold | held-out subjects | difference | audit |")
    print("|---|---|---|---|---|---|")
    print("\n".join(rows))
    for name, values in flattery.items():
        print(f"{name}: out-of-fold minus held-out subjects, mean {np.mean(values):+.4f}")
    paired = np.subtract(flattery["random"], flattery["ours"])
    print(
        f"random folds promise {paired.mean():+.4f} more than ours (by seed: {', '.join(f'{x:+.4f}' for x in paired)})"
    )


if __name__ == "__main__":
    main()
