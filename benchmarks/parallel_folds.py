"""Time to train the folds of a small model in parallel and one after another.

    python -m benchmarks.parallel_folds RECIPE [--at-once 1 2] [--rounds 2] [--set key=value …]

Trains the recipe's folds anew with `train.parallel` at each number, in turn, `--rounds` times, as separate runs under
work/. The stages before training must be done. Prints the seconds of the command including its start, those of the
epochs alone, and how many times faster both are than with the first number, as medians over the rounds.
"""

import argparse
import subprocess
import sys
import time
from datetime import date
from statistics import median

from pipeline.core.config.settings import assignments_of
from pipeline.core.files import read_json
from pipeline.core.run import open_run


def main() -> None:
    """Prints a table with one row per number of parallel trainings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    found: dict[int, list[tuple[float, float]]] = {number: [] for number in options.at_once}
    for _ in range(options.rounds):
        for number, times in found.items():
            times.append(train(options.recipe, options.assignments, number))
            print(f"{number} at once: {times[-1][0]:.0f} s", file=sys.stderr, flush=True)
    print(f"{date.today()}, {options.recipe} {' '.join(options.assignments)}, {options.rounds} rounds")
    print("| at once | training | times faster | epochs alone | times faster |\n|---|---|---|---|---|")
    first = [median(column) for column in zip(*found[options.at_once[0]], strict=True)]
    for number, times in found.items():
        whole, epochs = (median(column) for column in zip(*times, strict=True))
        print(f"| {number} | {whole:.0f} s | {first[0] / whole:.2f} | {epochs:.0f} s | {first[1] / epochs:.2f} |")


def train(recipe: str, assignments: list[str], number: int) -> tuple[float, float]:
    """Trains all folds, `at_once` in parallel, and returns the seconds of the command and of its epochs."""
    name, own = f"{recipe}-at-once-{number}", [*assignments, *assignments_of({"train.parallel": number})]
    options = [part for one in own for part in ("--set", one)]
    started = time.perf_counter()
    command = [sys.executable, "-m", "pipeline", "train", recipe, "--name", name, "--force", *options]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    run = open_run(recipe, assignments=own, name=name)
    folds = [read_json(file)["seconds"] for file in run.folder.glob("fold_*/fold.json")]
    return seconds, sum(folds) / min(number, len(folds))


if __name__ == "__main__":
    main()
