"""The nested estimate against known truth: predictions tuned on half of their groups and scored on the other half.

    python -m benchmarks.truth_of_scores WORK/COMPETITION/RUN… [--halvings 3] [--processes 2] [--rows FILE.csv]

The groups of a finished run's out-of-fold images are halved several times, within every fold, and each half is used
once for tuning and once for scoring. tune's own search and nested estimate see one half alone, as if it were the
competition. The other half, predicted by the same networks, is its test set with known truth. As on a real test set,
the groups are new there and the networks are not. (The choice of the epoch saw both halves, so it raises both scores
alike. The comparison uses the nested estimate before the optimism of that choice is subtracted.)

z is the estimate minus the truth, divided by the root of the sum of both squared standard errors (bootstrap, groups
drawn whole). An honest estimate has z with mean 0 and spread 1, and the 95 % interval of the difference holds 0 in 95
of 100 halvings. Halves of one pool share its networks, so the errors of these figures draw pools whole.
"""

import argparse
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import date
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from pipeline.core.config.raw_layouts import load_competition
from pipeline.core.config.recipe import Recipe, TuneSettings
from pipeline.core.config.settings import validate
from pipeline.core.console import enable_quiet, track
from pipeline.core.run import Run
from pipeline.masks.bootstrap import bootstrap
from pipeline.split.folds import counted_rows
from pipeline.tune import stage as tune
from pipeline.tune.held_out import HeldOut, held_out

FEWEST_GROUPS = 8
"""Fewest groups on either side."""


@dataclass(frozen=True)
class Compared:
    """The estimates from one half and the score of the other half."""

    pool: str
    groups: int
    """Number of groups of the half that was tuned on."""
    out_of_fold: float
    nested: float
    standard_error: float
    spread: float
    """Highest minus lowest nested estimate over partitions."""
    width: float
    """Width of the nested 95 % interval."""
    untuned: float
    truth: float
    """Score of the other half under the decision that ships."""
    truth_error: float
    truth_untuned: float
    fold_out: float
    steps: str

    @property
    def z(self) -> float:
        """The estimate's error, in standard errors."""
        return (self.nested - self.truth) / float(np.hypot(self.standard_error, self.truth_error))


def open_run(folder: Path) -> Run:
    """Returns a finished run, given as $PIPELINE_ROOT/work/<competition>/<run>, with the folds that were predicted and
    every step of tune."""
    folder = folder.resolve()
    os.environ["PIPELINE_ROOT"] = str(folder.parents[2])
    data = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))["recipe"]
    recipe = validate(Recipe, data, str(folder / "recipe.yaml"))
    files = (folder / "predictions").glob("oof_fold_*.csv")
    folds = sorted({int(file.stem.split("_")[2]) for file in files})
    train = recipe.train.model_copy(update={"folds": folds})
    every = recipe.tune.model_copy(update={"steps": TuneSettings().steps})
    return Run(
        recipe.model_copy(update={"train": train, "tune": every}), load_competition(recipe.competition), folder.name
    )


def halve(folds: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """Returns which images (N,) bool are in the first half: half of the groups of every fold, a left over one in
    turn."""
    random, side, spare = np.random.default_rng(seed), np.zeros(len(folds), bool), seed % 2
    for fold in np.unique(folds):
        own = random.permutation(np.unique(groups[folds == fold]))
        count = (len(own) + spare) // 2
        spare = (spare + len(own)) % 2
        side |= (folds == fold) & np.isin(groups, own[:count])
    return side


def compare(held: HeldOut, name: str, seed: int) -> Compared | None:
    """Tunes on one half and scores the other; returns None if a side has too few groups."""
    counted = counted_rows(held.images, held.run.recipe.tune.rows)
    folds, groups = (held.images[column].to_numpy().astype(str) for column in ("fold", "group"))
    first = halve(folds, groups, seed // 2)
    sides = [np.flatnonzero(counted & side) for side in (first, ~first)][:: 1 if seed % 2 else -1]
    if min(len(np.unique(groups[side])) for side in sides) < FEWEST_GROUPS:
        return None
    tuned, special, _ = tune.choose(held, sides[0])
    score = tuned.metric.score

    def spread(rows: np.ndarray, side: np.ndarray) -> np.ndarray:
        return bootstrap(rows, score, groups[side])

    of_nested, of_truth = spread(tuned.nested, sides[0]), spread(tuned.rows(sides[1]), sides[1])
    low, high = np.quantile(of_nested, [0.025, 0.975])
    partitions, fold_out = tuned.chosen.nested.scores, special["fold_out"]
    return Compared(
        name,
        len(np.unique(groups[sides[0]])),
        float(score(tuned.rows(sides[0]).sum(0))),
        tuned.nested_score,
        float(of_nested.std()),
        float(partitions.max() - partitions.min()),
        float(high - low),
        float(score(tuned.untuned(sides[0]).sum(0))),
        float(score(tuned.rows(sides[1]).sum(0))),
        float(of_truth.std()),
        float(score(tuned.untuned(sides[1]).sum(0))),
        fold_out["score"] if fold_out else np.nan,
        " ".join(tuned.chosen.choice.path) or "none",
    )


def work(job: tuple[Path, int]) -> Compared | None:
    """Compares one halving of one pool."""
    enable_quiet()
    folder, seed = job
    held = held_out(open_run(folder))
    return compare(held, "/".join(folder.parts[-4:-3] + folder.parts[-1:]), seed)


# --- summary ---------------------------------------------------------------------------------------------------------


def with_error(rows: pd.DataFrame, figure: Callable[[pd.DataFrame], float], draws: int = 1000) -> str:
    """Returns a figure over all halvings and its standard error, pools drawn whole."""
    pools = [part for _, part in rows.groupby("pool")]
    random = np.random.default_rng(0)
    drawn = [pd.concat([pools[place] for place in random.integers(len(pools), size=len(pools))]) for _ in range(draws)]
    return f"{figure(rows):+.3f} ± {np.std([figure(one) for one in drawn]):.3f}"


def holds_nothing(rows: pd.DataFrame) -> float:
    """Returns in how many of 100 halvings the 95 % interval of the difference holds 0."""
    return float(100 * (rows["z"].abs() <= 1.96).mean())


def report(found: Iterable[Compared]) -> list[str]:
    """Returns one row per pool, and the figures over all pools."""
    rows = pd.DataFrame([asdict(one) | {"z": one.z} for one in found])
    rows["brings"] = rows["truth"] - rows["truth_untuned"]
    lines = [
        "| pool | halvings | groups | out-of-fold | nested | truth | z, mean | z, worst | width | tuned less untuned, "
        "truth, mean | worst | fold left out | steps kept |",
        "|" + "---|" * 13,
    ]
    for pool, own in rows.groupby("pool", sort=False):
        mean = own.mean(numeric_only=True)
        steps = ", ".join(f"{name} {count}" for name, count in own["steps"].value_counts().items())
        worst = own["z"].iloc[own["z"].abs().argmax()]
        lines.append(
            f"| {pool} | {len(own)} | {mean['groups']:.0f} | {mean['out_of_fold']:.4f} | {mean['nested']:.4f} | "
            f"{mean['truth']:.4f} | {mean['z']:+.2f} | {worst:+.2f} | {mean['width']:.3f} | {mean['brings']:+.4f} | "
            f"{own['brings'].min():+.4f} | {mean['fold_out']:.4f} | {steps} |"
        )
    figures = {
        "z, mean": lambda one: one["z"].mean(),
        "z, spread": lambda one: one["z"].std(),
        "z, largest": lambda one: one["z"].abs().max(),
        "intervals of the difference that hold 0, of 100": holds_nothing,
        "width of the nested interval, median": lambda one: one["width"].median(),
        "out-of-fold less truth, mean": lambda one: (one["out_of_fold"] - one["truth"]).mean(),
        "nested less truth, mean": lambda one: (one["nested"] - one["truth"]).mean(),
        "tuned less untuned on the truth, mean": lambda one: one["brings"].mean(),
        "tuned less untuned on the truth, worst": lambda one: one["brings"].min(),
    }
    lines += ["", f"{len(rows)} halvings of {rows['pool'].nunique()} pools; ± standard errors, pools drawn whole.", ""]
    return lines + [f"- {name}: {with_error(rows, figure)}" for name, figure in figures.items()]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--halvings", type=int, default=3)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--rows", type=Path, help="also write every halving to this CSV")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # one thread each: the processes share the cores
    jobs = [(run.absolute(), seed) for run in options.runs for seed in range(2 * options.halvings)]
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as processes:
        found = [one for one in track(processes.map(work, jobs), "halvings", len(jobs)) if one]
    if options.rows:
        pd.DataFrame([asdict(one) | {"z": one.z} for one in found]).to_csv(options.rows, index=False)
    print(f"{date.today()}\n")
    print("\n".join(report(found)))


if __name__ == "__main__":
    main()
