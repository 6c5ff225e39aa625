"""What does each setting bring? Variants of a recipe, trained on the same images and seeds, compared in pairs.

    python -m benchmarks.variants benchmarks/experiments/tgs-salt.yaml [--only NAME…] [--jobs 2] [--table]

The YAML says which recipe, which folds are held out, how many training images there are, which seeds, what is set for
all (`set`), and each variant's own settings (`variants`; `recipe` among them takes another recipe). Each variant and
seed is a run of the pipeline, decode to tune, under work/; finished ones are not run again, interrupted ones go on.
Differences are to the first variant, on the same held-out images, of the same seed, ± standard error with the 95 %
bootstrap interval, groups drawn whole. `--jobs` trains several at once, with as many fewer threads each: their scores
are as good, their speeds are not.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml

from pipeline import label_tuning, sources, workspace
from pipeline.estimates import Score, bootstrap, mean_counts, mean_score
from pipeline.folds import read_folds
from pipeline.held_out import Mix, held_out
from pipeline.metrics import pooled_score
from pipeline.postprocess import Biases, decision_of
from pipeline.recipe import load_recipe
from pipeline.workspace import Run


@dataclass(frozen=True)
class Experiment:
    """What the YAML says."""

    recipe: str
    seeds: list[int]
    set: dict[str, Any]
    variants: dict[str, dict[str, Any]]
    folds: tuple[int, ...] = (0,)
    """Held out, one after the other."""
    images: int | None = None
    """Training images beside one fold, drawn once for all variants and seeds; None: all of the other folds."""
    present: bool = False
    """Score only images that have a mask."""

    def trial(self, name: str, seed: int) -> "Trial":
        """Returns one training; a variant's settings come last."""
        own = dict(self.variants[name])
        settings = {**self.set, "train.folds": list(self.folds), "train.seeds": [seed], **own}
        recipe = settings.pop("recipe", self.recipe)
        return Trial(f"{recipe}--{name.replace(' ', '-')}--{self.images or 'all'}-{seed}", recipe, settings)


@dataclass(frozen=True)
class Trial:
    """One variant with one seed: a run of the pipeline."""

    name: str
    recipe: str
    settings: dict[str, Any]

    @property
    def assignments(self) -> list[str]:
        """`key=value` for --set."""
        return [f"{key}={yaml.safe_dump(value, default_flow_style=True, width=9999).splitlines()[0]}"
                for key, value in self.settings.items()]  # fmt: skip

    def open(self) -> Run:
        """Returns the run."""
        return workspace.open_run(self.recipe, assignments=self.assignments, name=self.name)


class Scores(NamedTuple):
    """Counts of every held-out image, of which `score` takes the sum."""

    untuned: np.ndarray
    tuned: np.ndarray
    groups: np.ndarray
    score: Score


def write_excluded(run: Run, fold: int, images: int) -> str:
    """Leaves all but so many of a fold's training images out; returns the list's path for `train.exclude`."""
    folds = read_folds(run)
    train = folds[(folds["fold"] != fold) & (folds["use"] == "train")]
    kept = train.sample(images, random_state=0)
    path = run.competition_folder / f"all_but_{images}.csv"
    with workspace.writing(path) as temporary:
        train.drop(kept.index)[["image_id"]].to_csv(temporary, index=False)
    return str(path.relative_to(workspace.root()))


def train(trial: Trial, threads: int) -> int:
    """Runs the pipeline for a trial, with a log beside the run's folder, and returns its exit code."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    options = [part for one in trial.assignments for part in ("--set", one)]
    command = [sys.executable, "-m", "pipeline", "run", trial.recipe, "--name", trial.name, "--to", "tune", *options]
    log = workspace.root() / "work" / f"{trial.name}.log"
    with log.open("w", encoding="utf-8") as file:
        code = subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    print(f"{trial.name}: {'done' if code == 0 else f'exit code {code}, see {log}'}", file=sys.stderr, flush=True)
    return code


def read(run: Run, present: bool) -> Scores:
    """Returns the counts of a tuned run, or of its images with a mask alone."""
    if run.competition.kind != "multiclass":
        rows = pd.read_csv(run.folder / "oof_scores.csv", dtype={"group": str}, keep_default_na=False)
        counted = rows[(rows["use"] == "train") | (run.recipe.tune.rows == "raw")]
        counted = counted[(counted["true_area"] > 0) | (not present)]
        untuned, tuned = (mean_counts(counted[name].to_numpy()) for name in ("untuned", "score"))
        return Scores(untuned, tuned, counted["group"].to_numpy(), mean_score)
    held = held_out(run)
    mix = Mix(sources.plain_of(run), sources.weights_of(run))
    plain = Biases((0.0,) * len(run.competition.classes), run.never)
    decision = decision_of(workspace.read_json(run.postprocess))
    assert isinstance(decision, Biases)
    untuned, tuned = label_tuning.confusions(held, [mix, mix], [[plain, decision]] * len(held.rows))
    counted = (held.images["use"] == "train").to_numpy() | (run.recipe.tune.rows == "raw")
    groups = held.images["group"].to_numpy()[counted]
    return Scores(untuned[counted], tuned[counted], groups, pooled_score(run.competition))


def difference(first: np.ndarray, other: np.ndarray, scores: Scores) -> str:
    """Returns how much higher the score of `other` is than that of `first`, counts of the same images."""
    value = scores.score(other.sum(0)) - scores.score(first.sum(0))
    draws = bootstrap(other, scores.score, scores.groups) - bootstrap(first, scores.score, scores.groups)
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{value:+.4f} ± {draws.std():.4f} [{low:+.4f}, {high:+.4f}]"


def rows(experiment: Experiment, names: list[str]) -> Iterator[str]:
    """Yields one row of the table for every finished trial, each beside the first variant of its seed."""
    firsts = {seed: experiment.trial(next(iter(experiment.variants)), seed).open() for seed in experiment.seeds}
    present = experiment.present
    first_scores = {seed: read(run, present) for seed, run in firsts.items() if run.postprocess.exists()}
    for name in names:
        for seed in experiment.seeds:
            run = experiment.trial(name, seed).open()
            if not run.postprocess.exists() or seed not in first_scores:
                continue
            scores, result = read(run, present), workspace.read_json(run.postprocess)
            folds = [workspace.read_json(run.fold(fold, seed) / "fold.json") for fold in experiment.folds]
            pairs = zip(first_scores[seed][:2], scores[:2], strict=True)
            differences = ["first"] * 2 if run.name == firsts[seed].name else [difference(*p, scores) for p in pairs]
            untuned, tuned = (scores.score(counts.sum(0)) for counts in scores[:2])
            epochs = ", ".join(str(fold["best_epoch"] + 1) for fold in folds)
            speed, minutes = (
                np.mean([fold["images_per_second"] for fold in folds]),
                sum(f["seconds"] for f in folds) / 60,
            )
            yield (
                f"| {name} | {seed} | {untuned:.4f} | {differences[0]} | {tuned:.4f} | {differences[1]} | "
                f"{result['nested']:.4f} | {epochs} | {speed:.1f} | {minutes:.1f} min |"
            )


def main() -> None:
    """Trains what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--only", nargs="+", help="names of variants")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the YAML's")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args()
    experiment = Experiment(**yaml.safe_load(options.experiment.read_text(encoding="utf-8")))
    if options.seeds:
        experiment.seeds[:] = options.seeds
    if experiment.images:
        run = workspace.open_run(experiment.recipe, assignments=[])
        (fold,) = experiment.folds
        experiment.set["train.exclude"] = write_excluded(run, fold, experiment.images)
    names = options.only or list(experiment.variants)
    trials = [experiment.trial(name, seed) for seed in experiment.seeds for name in names]
    for recipe in {trial.recipe for trial in trials}:
        load_recipe(recipe)
    if not options.table:
        threads = max(1, len(os.sched_getaffinity(0)) // options.jobs)
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(train, trials, [threads] * len(trials)))
    held_out_folds = ", ".join(map(str, experiment.folds))
    print(f"{date.today()}, {experiment.recipe}, fold {held_out_folds}, {experiment.images or 'all'} training images")
    print("| variant | seed | untuned | difference | tuned | difference | nested | best epoch | images/s | training |")
    print("|---" * 10 + "|")
    for row in rows(experiment, names):
        print(row, flush=True)


if __name__ == "__main__":
    main()
