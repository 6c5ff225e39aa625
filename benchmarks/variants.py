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
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml

from pipeline.core.config.settings import assignments_of
from pipeline.core.files import read_json, root, writing
from pipeline.core.run import Run, open_run
from pipeline.evaluate.stage import wanted
from pipeline.masks.bootstrap import Score, bootstrap, mean_counts, mean_score
from pipeline.masks.decision import Biases, decision_of
from pipeline.masks.metrics import metric_of
from pipeline.predictions import blends
from pipeline.split.folds import counted_rows, read_folds
from pipeline.tune import class_biases
from pipeline.tune.held_out import Weighting, held_out


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
        return assignments_of(self.settings)

    def open(self) -> Run:
        """Returns the run."""
        return open_run(self.recipe, assignments=self.assignments, name=self.name)


class Counts(NamedTuple):
    """What the score of some images is a function of."""

    values: np.ndarray
    """(N, …), one entry an image; `score` takes the sum."""
    groups: np.ndarray
    score: Score

    @property
    def mean(self) -> float:
        """The score of all."""
        return float(self.score(self.values.sum(0)))


def write_excluded(run: Run, fold: int, images: int) -> str:
    """Leaves all but so many of a fold's training images out; returns the list's path for `train.exclude`."""
    folds = read_folds(run)
    train = folds[(folds["fold"] != fold) & (folds["use"] == "train")]
    kept = train.sample(images, random_state=0)
    path = run.competition_folder / f"all_but_{images}.csv"
    with writing(path) as temporary:
        train.drop(kept.index)[["image_id"]].to_csv(temporary, index=False)
    return str(path.relative_to(root()))


def train(trial: Trial, threads: int) -> int:
    """Runs the pipeline for a trial, with a log beside the run's folder, and returns its exit code."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    options = [part for one in trial.assignments for part in ("--set", one)]
    last = "evaluate" if wanted(trial.open().competition) else "tune"
    command = [sys.executable, "-m", "pipeline", "run", trial.recipe, "--name", trial.name, "--to", last, *options]
    log = root() / "work" / f"{trial.name}.log"
    with log.open("w", encoding="utf-8") as file:
        code = subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    print(f"{trial.name}: {'done' if code == 0 else f'exit code {code}, see {log}'}", file=sys.stderr, flush=True)
    return code


def read(run: Run, present: bool) -> dict[str, Counts]:
    """Returns the counts of a finished run's held-out images, or those with a mask, and of a test set with truth."""
    found = _labels(run) if run.competition.kind == "multiclass" else _masks(run, present)
    if (run.folder / "test_scores.csv").exists():
        test = pd.read_csv(run.folder / "test_scores.csv", keep_default_na=False)
        found["test set"] = Counts(mean_counts(test[run.competition.metric].to_numpy()), test["image_id"], mean_score)
    return found


def _masks(run: Run, present: bool) -> dict[str, Counts]:
    rows = pd.read_csv(run.folder / "oof_scores.csv", dtype={"group": str}, keep_default_na=False)
    rows = rows[counted_rows(rows, run.recipe.tune.rows) & ((rows["true_area"] > 0) | (not present))]
    groups = rows["group"].to_numpy()
    columns = {"untuned": "untuned", "tuned": "score"}
    return {name: Counts(mean_counts(rows[one].to_numpy()), groups, mean_score) for name, one in columns.items()}


def _labels(run: Run) -> dict[str, Counts]:
    held = held_out(run)
    mix = Weighting(blends.plain_of(run), blends.weights_of(run))
    untuned, tuned = Biases((0.0,) * len(run.competition.classes), run.never), decision_of(read_json(run.postprocess))
    assert isinstance(tuned, Biases)
    both = class_biases.confusions(held, [mix, mix], [[untuned, tuned]] * len(held.rows))
    counted = counted_rows(held.images, run.recipe.tune.rows)
    groups, score = held.images["group"].to_numpy()[counted], metric_of(run.competition).score
    return {name: Counts(one[counted], groups, score) for name, one in zip(("untuned", "tuned"), both, strict=True)}


def difference(first: Counts, other: Counts) -> str:
    """Returns how much higher the score of `other` is than that of `first`, of the same images."""
    draws = np.subtract(*(bootstrap(one.values, one.score, one.groups) for one in (other, first)))
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{other.mean - first.mean:+.4f} ± {draws.std():.4f} [{low:+.4f}, {high:+.4f}]"


def table(experiment: Experiment, names: list[str]) -> Iterator[str]:
    """Yields the lines of a table: every finished trial beside the first variant with its seed."""
    header: list[str] = []
    opened = {seed: experiment.trial(next(iter(experiment.variants)), seed).open() for seed in experiment.seeds}
    firsts = {seed: read(run, experiment.present) for seed, run in opened.items() if run.postprocess.exists()}
    for name in names:
        for seed in firsts:
            run, first = experiment.trial(name, seed).open(), opened[seed]
            if not run.postprocess.exists():
                continue
            scores = firsts[seed] if run.name == first.name else read(run, experiment.present)
            if not header:
                each = [column for one in scores for column in (one, "difference [95 %]")]
                header = ["variant", "seed", *each, "nested", "best epochs", "images/s", "training"]
                yield f"| {' | '.join(header)} |\n{'|---' * len(header)}|"
            cells = [name, str(seed)]
            for column, counts in scores.items():
                beside = "first" if run.name == first.name else difference(firsts[seed][column], counts)
                cells += [f"{counts.mean:.4f}", beside]
            folds = [read_json(run.fold_folder(fold, seed) / "fold.json") for fold in experiment.folds]
            cells += [
                f"{read_json(run.postprocess)['nested']:.4f}",
                ", ".join(str(fold["best_epoch"] + 1) for fold in folds),
                f"{np.mean([fold['images_per_second'] for fold in folds]):.1f}",
                f"{sum(fold['seconds'] for fold in folds) / 60:.1f} min",
            ]
            yield f"| {' | '.join(cells)} |"


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
    experiment = replace(experiment, seeds=options.seeds or experiment.seeds)
    if experiment.images:
        run = open_run(experiment.recipe, assignments=[])
        (fold,) = experiment.folds
        excluded = write_excluded(run, fold, experiment.images)
        experiment = replace(experiment, set=experiment.set | {"train.exclude": excluded})
    names = options.only or list(experiment.variants)
    trials = [experiment.trial(name, seed) for seed in experiment.seeds for name in names]
    if not options.table:
        threads = max(1, len(os.sched_getaffinity(0)) // options.jobs)
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(train, trials, [threads] * len(trials)))
    held_out_folds = ", ".join(map(str, experiment.folds))
    print(f"{date.today()}, {experiment.recipe}, fold {held_out_folds}, {experiment.images or 'all'} training images")
    for line in table(experiment, names):
        print(line, flush=True)


if __name__ == "__main__":
    main()
