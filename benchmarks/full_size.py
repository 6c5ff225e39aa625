"""Time of every stage for a whole competition of full size.

    python -m benchmarks.full_size FOLDER [--train 5635] [--test 5508] [--epochs 30] [--set KEY=VALUE …]

Draws the synthetic ultrasound competition at the size of the nerve competition, unless FOLDER already has it. Then runs
decode, clean, five folds of a ResNet34-UNet at 224×320 in batches of 64 that are augmented on the device, prediction
with four views, tune, encode and report. An interrupted run continues, and the times still cover every finished step.
"""

import argparse
import os
import time
from collections import Counter
from datetime import date
from pathlib import Path

import yaml

from pipeline.core.config.raw_layouts import FOLDER
from pipeline.core.driver import states
from pipeline.core.files import read_json
from pipeline.core.run import Run, open_run
from pipeline.new.sample import write_sample
from pipeline.report import look
from pipeline.stages import STAGES, run_through

SETTINGS = [
    "image.size=[224,320]", "train.batch_size=64", "train.augment_on=device", "train.schedule.name=cosine",
    "train.early_stopping=null", "predict.tta=flips", "predict.batch_size=128",
]  # fmt: skip


def write_competition(folder: Path) -> Path:
    """Writes the YAML of the sample competition with five folds instead of four, and returns its path."""
    competition = yaml.safe_load((FOLDER / "sample.yaml").read_text(encoding="utf-8"))
    path = folder / "full-size.yaml"
    path.write_text(yaml.safe_dump({**competition, "split": {"folds": 5}, "input": "sample"}), encoding="utf-8")
    return path


def seconds_of(run: Run) -> Counter[str]:
    """Returns the seconds by stage."""
    found = Counter[str]()
    for stage in STAGES:
        for state in states(run, stage):
            found[stage] += read_json(state.step.manifest)["seconds"]
    return found


def main() -> None:
    """Prints one row per stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=5635)
    parser.add_argument("--test", type=int, default=5508)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["PIPELINE_ROOT"] = str(folder)
    os.environ.pop("PIPELINE_INPUT", None)
    settings = [*SETTINGS, f"competition={write_competition(folder)}", f"train.epochs={options.epochs}", *options.set]
    run = open_run("sample", name="full-size", assignments=settings)
    started = time.perf_counter()
    if not run.input.exists():
        write_sample(run.input, options.train, options.test)
    drawn = time.perf_counter()
    run_through(run, STAGES[-1])
    whole, trainings = time.perf_counter() - drawn, [fold for fold, _ in look.trainings(run).values()]
    print(f"{date.today()}, {options.train} + {options.test} images drawn in {drawn - started:.0f} s (not part of it)")
    print(trainings[0]["compute"]["reason"], f"{len(os.sched_getaffinity(0))} cores", sep=", ")
    print("| stage | seconds |\n|---|---|")
    for stage, seconds in seconds_of(run).items():
        print(f"| {stage} | {seconds:.1f} |")
    print(f"| all, by the clock | {whole:.1f} |")
    rates = ", ".join(f"{fold['images_per_second']:.0f}" for fold in trainings)
    print(f"images/s while training, fold by fold: {rates}; dice {look.result(run)['score']:.4f} out-of-fold")


if __name__ == "__main__":
    main()
