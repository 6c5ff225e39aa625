"""What does each setting bring? Variants of a recipe, trained on the same images and seeds, compared in pairs.

    python -m benchmarks.variants benchmarks/experiments/tgs-salt.yaml [--only NAME…] [--jobs 2] [--table] [--full]
                                  [--markdown FILE] [--latex FILE]

The YAML says which recipe, which folds are held out, how many training images there are, which seeds, what is set for
all (`set`, and `reduced`, which --full leaves out), and each variant's own settings (`variants`; `recipe` among them
takes another recipe). Each variant and seed is a run of the pipeline, decode to tune, under work/; finished ones are
not run again, interrupted ones go on. Differences are to the first variant, on the same held-out images, of the same
seed, ± standard error with the 95 % bootstrap interval, groups drawn whole. `--markdown` and `--latex` write the mean
over seeds (variant_tables.py). `--jobs` trains several at once, with as many fewer threads each: their scores are as
good, their speeds are not.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, dataclass, field, fields, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import variant_tables
from benchmarks.variant_tables import difference, read
from pipeline.core.config.settings import assignments_of, read_yaml
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json, root, write_text, writing
from pipeline.core.run import Run, open_run
from pipeline.evaluate.stage import wanted
from pipeline.split.folds import read_folds


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
    name: str = ""
    """How the names of its runs begin; by default with the recipe's."""
    title: str = ""
    """What its tables are of."""
    reduced: dict[str, Any] = field(default_factory=dict)
    """Set besides `set`, so that two CPU cores can do it; `--full` leaves it and `images` out."""
    full: bool = False

    @property
    def used_images(self) -> int | None:
        """`images`, unless nothing is reduced."""
        return None if self.full else self.images

    def trial(self, name: str, seed: int) -> "Trial":
        """Returns one training; a variant's settings come last, and among them those of its own `reduced`."""
        own = dict(self.variants[name])
        own_reduced = own.pop("reduced", {})
        reduced, own_reduced = ({}, {}) if self.full else (self.reduced, own_reduced)
        settings = {**self.set, **reduced, "train.folds": list(self.folds), "train.seeds": [seed], **own, **own_reduced}
        recipe = settings.pop("recipe", self.recipe)
        size = "full" if self.full else self.images or "all"
        return Trial(f"{self.name or recipe}--{name.replace(' ', '-')}--{size}-{seed}", recipe, settings)


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


def write_excluded(run: Run, fold: int, images: int) -> str:
    """Leaves all but so many of a fold's training images out; returns the list's path for `train.exclude`."""
    folds = read_folds(run)
    train = folds[(folds["fold"] != fold) & (folds["use"] == "train")]
    kept = train.sample(images, random_state=0)
    path = run.competition_folder / f"all_but_{images}.csv"
    with writing(path) as temporary:
        train.drop(kept.index)[["image_id"]].to_csv(temporary, index=False)
    return str(path.relative_to(root()))


def exclude(experiment: Experiment) -> str:
    """Returns `train.exclude` of an experiment with fewer images; makes the folds first where there are none.

    Raises:
        PipelineError: the folds could not be made, or several are held out.
    """
    trial = experiment.trial(next(iter(experiment.variants)), experiment.seeds[0])
    run = trial.open()
    if not run.folds_file.exists() and launch(trial, "split"):
        raise PipelineError(f"{run.folds_file.name} could not be made: see {log_of(trial)}.")
    if len(experiment.folds) != 1 or experiment.images is None:
        raise PipelineError("`images` needs one entry in `folds`.")
    return write_excluded(run, experiment.folds[0], experiment.images)


def launch(trial: Trial, last: str, threads: int = 1) -> int:
    """Runs the pipeline for a trial up to the stage `last`, with a log, and returns its exit code."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    options = [part for one in trial.assignments for part in ("--set", one)]
    command = [sys.executable, "-m", "pipeline", "run", trial.recipe, "--name", trial.name, "--to", last, *options]
    log_of(trial).parent.mkdir(parents=True, exist_ok=True)
    with log_of(trial).open("w", encoding="utf-8") as file:
        return subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False).returncode


def log_of(trial: Trial) -> Path:
    """Returns what a trial's run prints."""
    return root() / "work" / f"{trial.name}.log"


def train(trial: Trial, threads: int) -> int:
    """Runs the pipeline for a trial, and returns its exit code."""
    code = launch(trial, "evaluate" if wanted(trial.open().competition) else "tune", threads)
    said = "done" if code == 0 else f"exit code {code}, see {log_of(trial)}"
    print(f"{trial.name}: {said}", file=sys.stderr, flush=True)
    return code


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


def tables(experiment: Experiment, names: list[str]) -> tuple[str, str]:
    """Returns the finished trials averaged over seeds, as Markdown and as LaTeX."""
    opened = {
        name: {
            seed: run for seed in experiment.seeds if (run := experiment.trial(name, seed).open()).postprocess.exists()
        }
        for name in dict.fromkeys([next(iter(experiment.variants)), *names])
    }
    first = next(iter(opened.values()))
    lines = [variant_tables.line_of(name, runs, first, experiment.folds, experiment.present)
             for name, runs in opened.items() if runs]  # fmt: skip
    rows, metric = variant_tables.frame(lines), experiment.trial(next(iter(opened)), 0).open().competition.metric
    caption = (
        f"{experiment.title or experiment.recipe}: {metric}, mean ± standard deviation over seeds; differences to the "
        "first row ± standard error."
    )
    label = f"tab:{experiment.name or experiment.recipe}"
    return f"{caption}\n\n{variant_tables.markdown(rows)}", variant_tables.latex(rows, caption, label)


def load(path: Path, full: bool = False) -> Experiment:
    """Returns what an experiment's YAML says.

    Args:
        path: the YAML.
        full: leave `reduced` out; the runs then have names of their own.

    Raises:
        PipelineError: the file is no mapping, or has a key that Experiment does not have or lacks one.
    """
    data = read_yaml(path)
    known = {one.name: one for one in fields(Experiment)}
    needed = {name for name, one in known.items() if one.default is MISSING and one.default_factory is MISSING}
    if wrong := [*(data.keys() - known.keys()), *(needed - data.keys())]:
        raise PipelineError(f"{path.name}: `{wrong[0]}` is unknown or missing; an experiment has {', '.join(known)}.")
    return replace(Experiment(**data), full=full)


def main() -> None:
    """Trains what is missing, prints the table of all trials, and writes those over seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--only", nargs="+", help="names of variants")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the YAML's")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument("--full", action="store_true", help="without what the YAML reduces for two CPU cores")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table over seeds there")
    parser.add_argument("--latex", type=Path, metavar="FILE", help="the same, for the package booktabs")
    options = parser.parse_args()
    experiment = load(options.experiment, options.full)
    experiment = replace(experiment, seeds=options.seeds or experiment.seeds)
    names = options.only or list(experiment.variants)
    if unknown := [name for name in names if name not in experiment.variants]:
        parser.error(f"--only {unknown[0]}: {options.experiment.name} has {', '.join(experiment.variants)}")
    if experiment.images and not experiment.full:
        experiment = replace(experiment, set=experiment.set | {"train.exclude": exclude(experiment)})
    trials = [experiment.trial(name, seed) for seed in experiment.seeds for name in names]
    if not options.table:
        threads = max(1, len(os.sched_getaffinity(0)) // options.jobs)
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(train, trials, [threads] * len(trials)))
    held_out_folds, images = ", ".join(map(str, experiment.folds)), experiment.used_images or "all"
    print(f"{date.today()}, {experiment.recipe}, fold {held_out_folds}, {images} training images")
    for line in table(experiment, names):
        print(line, flush=True)
    if options.markdown or options.latex:
        for path, text in zip((options.markdown, options.latex), tables(experiment, names), strict=True):
            if path:
                write_text(path, text)
                print(f"{path} written", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except PipelineError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
