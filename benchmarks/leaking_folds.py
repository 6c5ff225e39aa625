"""Scores of the sample competition with random folds and with folds that keep subjects together, for several seeds.

    python -m benchmarks.leaking_folds FOLDER [--seeds 0 1 2]

For each seed, runs the recipe `sample` in FOLDER/seed_<n> with folds that keep subjects together, and with
`folds: random`, which spreads the frames of one subject over all folds. Finished runs are not run again. The 24 test
subjects are in no fold, so truth.csv shows how far each out-of-fold score is too high.
"""

import argparse
import os
from datetime import date
from pathlib import Path

import numpy as np

from benchmarks.sample_seeds import DRAWS, open_seed, run_seed, test_scores
from pipeline.core.files import read_json
from pipeline.core.run import open_run
from pipeline.masks.bootstrap import bootstrap, mean_counts, mean_score

SPLITS = {"ours": ("sample", []), "random": ("sample-random", ["folds=random"])}
TEST_IMAGES = 480


def measure(name: str, assignments: list[str]) -> tuple[float, np.ndarray, np.ndarray, str]:
    """Returns the out-of-fold score, the scores and subjects of the test images, and the leaks that the audit lists."""
    run = open_run("sample", name=name, assignments=assignments)
    return read_json(run.postprocess)["score"], *test_scores(run), read_json(run.audit)["leak_remark"] or "no leak"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    rows: list[str] = []
    promised: dict[str, list[tuple[float, float]]] = {split: [] for split in SPLITS}
    for seed in options.seeds:
        root = open_seed(options.folder, seed)
        for split, (name, assignments) in SPLITS.items():
            settings = [part for one in assignments for part in ("--set", one)]
            run_seed(root, seed, *settings, "--name", name, test=TEST_IMAGES)
            score, test, subjects, leak = measure(name, assignments)
            low, high = np.quantile(bootstrap(mean_counts(test), mean_score, subjects, DRAWS), [0.025, 0.975])
            promised[split].append((score, score - test.mean()))
            truth = f"{test.mean():.4f} [{low:.4f}, {high:.4f}]"
            rows.append(f"| {seed} | {split} | {score:.4f} | {truth} | {score - test.mean():+.4f} | {leak} |")
    print(f"{date.today()}, {os.cpu_count()} CPU cores")
    print("| seed | folds | out-of-fold | held-out subjects [95 %] | difference | audit |")
    print("|---|---|---|---|---|---|")
    print("\n".join(rows))
    scores, flattery = (np.subtract(promised["random"], promised["ours"])[:, column] for column in (0, 1))
    print(f"random folds score {scores.mean():+.4f} more out-of-fold (by seed: {listed(scores)})")
    print(f"and promise {flattery.mean():+.4f} more than they keep, beside ours (by seed: {listed(flattery)})")


def listed(values: np.ndarray) -> str:
    """Returns numbers as text with their signs."""
    return ", ".join(f"{value:+.4f}" for value in values)


if __name__ == "__main__":
    main()
