"""Scores of a short run with and without a moving average of the weights: the sample's first fold, 209 steps.

    python -m benchmarks.short_ema FOLDER [--seeds 0 1 2] [--decay 0.999]

Three variants of the recipe `sample`, each with its last weights kept: no average, the average with its warm-up as the
pipeline has it, and Lightning's EMAWeightAveraging, which has no warm-up. All follow the same path of weights, so the
differences are due to the average alone. The score is that of the held-out images at threshold 0.5.
"""

import argparse
import os
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
from lightning.pytorch.callbacks import EMAWeightAveraging

from benchmarks.sample_seeds import open_seed
from pipeline.core import driver
from pipeline.core.run import open_run
from pipeline.new.sample import write_sample
from pipeline.train import callbacks


def scores(name: str, decay: float | None, seeds: list[int]) -> list[float]:
    """Returns the score of the last epoch for each seed."""
    settings = ["train.folds=[0]", f"train.seeds={seeds}", "train.keep=last", "train.early_stopping=null"]
    run = open_run("sample", False, name, [*settings, f"train.ema={'null' if decay is None else decay}"])
    for stage in ("decode", "clean", "split", "train"):
        driver.run_stage(run, stage)
    return [float(pd.read_csv(run.fold_folder(0, seed) / "history.csv")["valid/score"].iloc[-1]) for seed in seeds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--decay", type=float, default=0.999)
    options = parser.parse_args()
    drawn = open_seed(options.folder, 0) / "input" / "sample"
    if not drawn.exists():
        write_sample(drawn, 240, 120, 0, lambda *_: None)
    found = {"no average": scores("plain", None, options.seeds)}
    found["average, warmed up"] = scores("average", options.decay, options.seeds)
    setattr(callbacks, "MovingAverage", lambda decay, _: EMAWeightAveraging(decay=decay))  # noqa: B010
    found["average, not warmed up"] = scores("average-cold", options.decay, options.seeds)
    print(f"{date.today()}, {os.cpu_count()} CPU cores, decay {options.decay}")
    print(f"| variant | {' | '.join(f'seed {seed}' for seed in options.seeds)} | minus no average |")
    print(f"|---|{'---|' * len(options.seeds)}---|")
    for name, values in found.items():
        difference = np.subtract(values, found["no average"])
        error = difference.std(ddof=1) / len(difference) ** 0.5
        print(f"| {name} | {' | '.join(f'{value:.4f}' for value in values)} | {difference.mean():+.4f} ± {error:.4f} |")


if __name__ == "__main__":
    main()
