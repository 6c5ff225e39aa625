"""What each recipe of the portfolio scores on every data set within reach, in the same time.

    python -m benchmarks.portfolio FOLDER --data DATA [--minutes 5] [--only RECIPE…] [--on DATA_SET…]
    python -m benchmarks.portfolio --table
    python -m benchmarks.portfolio --leave-one-out

Each data set gets a folder in FOLDER, in which it is decoded and split once; this does not count. Then every recipe
that fits it runs there with `--time`, with the settings that `auto` derives from the data (pipeline/auto/rules.py). A
run appends its row to benchmarks/portfolio.csv when it ends. What is measured already is skipped, so that the
command can be stopped and repeated. Data sets of DATA that are missing are left out, and so are the pretrained recipes
if their weights are not installed.

`--leave-one-out` shows for each data set the score of the recipe that `auto` takes, and that of the best recipe. The
rules know no data set by name, but their thresholds were set with these data sets at hand.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from benchmarks import few_images, touching
from benchmarks.board import _cpu, _threads
from pipeline.auto.fingerprint import Fingerprint, measure
from pipeline.auto.machine import this_machine
from pipeline.auto.rules import choose
from pipeline.core.config.raw_layouts import load_competition
from pipeline.core.config.recipe_files import FOLDER, PORTFOLIO
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json, read_record, write_text, writing
from pipeline.core.run import input_folder

RESULTS = Path(__file__).with_name("portfolio.csv")
COLUMNS = [
    "recipe", "data_set", "minutes", "metric", "nested", "low", "high", "test", "images_per_second",
    "notebook_images_per_second", "auto", "cpu", "date", "commit",
]  # fmt: skip
"""The columns of the table. `auto` is the recipe that `auto` takes for the data set on this machine."""
RECIPES = sorted(path.stem for path in (FOLDER / PORTFOLIO).glob("*.yaml") if path.stem != "common")
NEAR = 0.01
"""The recipe that `auto` takes should score at most this much less than the best recipe."""
DRAWN, TEST_SHARE, SEED = 200, "0.3", "1"
"""Number of cell images that are drawn, and the share and the seed of the test images of made competitions."""
NOTEBOOK_STEPS = 6


@dataclass(frozen=True)
class DataSet:
    """A competition to run the recipes on."""

    competition: str
    """Its name, or the path of its YAML relative to the data set's folder."""
    prepare: Callable[[Path, Path | None], None]
    """Puts the raw files into a folder, from the folder of real data."""
    source: str = ""
    """The folder of real data that is needed; "" if the data are drawn."""
    truth: str = ""
    """The true masks of the test images, relative to the data set's folder; "" if they are not known."""


def _linked(name: str, source: str) -> Callable[[Path, Path | None], None]:
    def prepare(root: Path, data: Path | None) -> None:
        assert data  # otherwise the data set is left out
        (root / "input").mkdir(parents=True, exist_ok=True)
        if not (root / "input" / name).is_symlink():
            (root / "input" / name).symlink_to((data / source).absolute())

    return prepare


def _sample(root: Path, data: Path | None) -> None:
    if not (root / "input/sample/truth.csv").exists():
        call(root, "sample")


def _nuclei(root: Path, data: Path | None) -> None:
    if not (root / "nuclei.yaml").exists():
        touching.draw(root, 0)


def _made(source: Path, name: str, root: Path, *settings: str) -> None:
    """Makes a competition of the images in `source`, with a test set of known masks."""
    if (root / name / "made.json").exists() or (root / name / "teacher/solution.csv").exists():
        return
    options = [
        "--test",
        TEST_SHARE,
        "--seed",
        SEED,
        "--force",
        *(word for text in settings for word in ("--set", text)),
    ]
    call(root, "make-competition", str(root / name), "--from", str(source), *options)
    (root / "input").mkdir(exist_ok=True)
    (root / "input" / name).symlink_to(root / name / "students")


def _made_cells(root: Path, data: Path | None) -> None:
    if not (root / "drawn").exists():
        few_images.draw(root / "drawn", DRAWN, 0)
        shutil.rmtree(root / "drawn" / "test")  # their masks are not in train.csv
    _made(root / "drawn", "made-cells", root, "metric=dice")


def _made_maps(root: Path, data: Path | None) -> None:
    assert data  # otherwise the data set is left out
    _made(data / "mars-format", "made-maps", root)


DATA_SETS = {
    "tgs-salt": DataSet("tgs-salt", _linked("tgs-salt", "tgs-salt"), "tgs-salt"),
    "nerve": DataSet("ultrasound-nerve", _linked("ultrasound-nerve", "ultrasound-nerve"), "ultrasound-nerve"),
    "mars-format": DataSet("mars-terrain", _linked("mars-terrain", "mars-format"), "mars-format"),
    "pets-format": DataSet("oxford-pet", _linked("oxford-pet", "pets-format"), "pets-format"),
    "sample": DataSet("sample", _sample, truth="input/sample/truth.csv"),
    "nuclei": DataSet("nuclei.yaml", _nuclei, truth="input/nuclei/truth.csv"),
    "made-cells": DataSet(
        "made-cells/students/competitions/made-cells.yaml", _made_cells, truth="made-cells/teacher/solution.csv"
    ),
    "made-maps": DataSet(
        "made-maps/students/competitions/made-maps.yaml", _made_maps, "mars-format", "made-maps/teacher/solution.csv"
    ),
}


def main() -> None:
    """Runs the chosen recipes and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="a folder to run in; may hold earlier runs")
    parser.add_argument("--data", type=Path, help="where the folders of real data are")
    parser.add_argument("--minutes", type=int, nargs="+", default=[5])
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=RECIPES, metavar="RECIPE")
    parser.add_argument("--on", nargs="+", choices=list(DATA_SETS), default=list(DATA_SETS), metavar="DATA_SET")
    parser.add_argument("--table", action="store_true", help="print the table, run nothing")
    parser.add_argument("--leave-one-out", action="store_true", help="compare `auto` with the best, run nothing")
    options = parser.parse_args()
    if not (options.table or options.leave_one_out):
        if options.folder is None:
            parser.error("name a folder to run in, or ask for --table or --leave-one-out")
        for name in options.on:
            for minutes in options.minutes:
                run_all(name, options.folder.absolute(), options.data, options.only, minutes)
    results = read_results()
    print(leave_one_out(results) if options.leave_one_out else table(results))


def read_results() -> pd.DataFrame:
    """Returns the rows measured so far; empty cells are ""."""
    if not RESULTS.exists():
        return pd.DataFrame(columns=COLUMNS)
    return pd.read_csv(RESULTS, keep_default_na=False, dtype={"commit": str})


def call(root: Path, *words: str) -> str:
    """Returns what a command of the pipeline prints on standard output, run with `root` as PIPELINE_ROOT."""
    environment = {**os.environ, "PIPELINE_ROOT": str(root)}
    environment.pop("PIPELINE_INPUT", None)
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *words], env=environment, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise RuntimeError(f"`pipeline {' '.join(words)}` ended with exit code {done.returncode}")
    return done.stdout


# --- measuring --------------------------------------------------------------------------------------------------------


def run_all(name: str, folder: Path, data: Path | None, recipes: list[str], minutes: int) -> None:
    """Runs the recipes that fit a data set and are not measured yet, and appends a row for each."""
    data_set, root = DATA_SETS[name], folder / name
    if data_set.source and not (data and (data / data_set.source).is_dir()):
        print(f"{name}: left out, {data or 'DATA'}/{data_set.source} does not exist", file=sys.stderr)
        return
    known = read_results()
    known = known[(known["data_set"] == name) & (known["minutes"] == minutes)]
    left = [recipe for recipe in recipes if recipe not in set(known["recipe"])]
    if not left:
        return
    root.mkdir(parents=True, exist_ok=True)
    data_set.prepare(root, data)
    fingerprint = fingerprint_of(data_set, root)
    for recipe in (recipe for recipe in left if fits(recipe, fingerprint)):
        try:
            row = measured(recipe, name, root, fingerprint, minutes)
        except (
            RuntimeError,
            PipelineError,
            KeyError,
            IndexError,
            OSError,
        ) as error:  # the other recipes are measured all the same
            print(f"{recipe} on {name}: not measured: {error!r}", file=sys.stderr)
            continue
        append(row)


def place_of(data_set: DataSet, root: Path) -> str:
    """Returns the competition's name, or the full path of its YAML."""
    named = data_set.competition
    return str(root / named) if named.endswith(".yaml") else named


def fingerprint_of(data_set: DataSet, root: Path) -> Fingerprint:
    """Returns the fingerprint of a data set whose raw files are in `root`."""
    before = os.environ.get("PIPELINE_ROOT")
    os.environ["PIPELINE_ROOT"] = str(root)
    try:
        competition = load_competition(place_of(data_set, root))
        return measure(competition, input_folder(competition), this_machine())
    finally:
        if before is None:
            del os.environ["PIPELINE_ROOT"]
        else:
            os.environ["PIPELINE_ROOT"] = before


def fits(recipe: str, fingerprint: Fingerprint) -> bool:
    """Returns whether a recipe can be trained on a data set: its losses suit the masks, its weights are installed and
    allowed, borders are scored, and images are larger than crops."""
    family = recipe.removesuffix("-scratch")
    pretrained = family == recipe
    if pretrained and (fingerprint.forbids_pretrained or not fingerprint.machine.has_weights):
        return False
    if family == "instances":
        return fingerprint.scores_objects and fingerprint.instances and not fingerprint.windows
    if family == "tiles" and not choose(fingerprint, f"{PORTFOLIO}/{recipe}").settings["image"].get("store"):
        return False
    return (family == "classes") == (fingerprint.kind == "multiclass")


def measured(recipe: str, name: str, root: Path, fingerprint: Fingerprint, minutes: int) -> dict[str, Any]:
    """Runs a recipe on a data set and returns its row."""
    data_set, run_name = DATA_SETS[name], f"{name}-{recipe}-{minutes}m"
    settings = choose(fingerprint, f"{PORTFOLIO}/{recipe}").settings
    data = {"base": f"{PORTFOLIO}/{recipe}", "competition": place_of(data_set, root), **settings}
    path = root / "recipes" / f"{recipe}.yaml"
    write_text(path, yaml.safe_dump(data, sort_keys=False))
    words = [str(path), "--name", run_name]
    call(root, "run", *words, "--to", "split")
    call(root, "run", *words, "--time", f"{minutes}m")
    record = read_json(root / "submissions" / f"{run_name}.json")
    trainings = [read_json(path) for path in sorted((root / "work").glob(f"*/{run_name}/fold_*/fold.json"))]
    result = record["postprocess"]
    low, high = result["nested_interval_95"] or ("", "")  # a single group has no interval
    size = settings["image"]["size"]
    row = {
        "recipe": recipe, "data_set": name, "minutes": minutes, "metric": fingerprint.metric,
        "nested": result["nested"], "low": low, "high": high, "test": test_score(data_set, root, run_name),
        "images_per_second": float(np.mean([training["images_per_second"] for training in trainings])),
        "notebook_images_per_second": notebook_rate((size[0], size[1])),
        "auto": choose(fingerprint).recipe.removeprefix(f"{PORTFOLIO}/"),
        "cpu": f"{_cpu()}, {_threads()} threads, {trainings[0]['compute']['precision']}",
        "date": date.today().isoformat(),
        "commit": record["code"]["commit"][:7] + ("+" if record["code"]["modified"] else ""),
    }  # fmt: skip
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}


def test_score(data_set: DataSet, root: Path, run_name: str) -> float | str:
    """Returns the score of the submission on test images with known masks; "" if there are none."""
    if data_set.truth:
        submission = next(path for path in (root / "submissions").glob(f"{run_name}.*") if path.suffix != ".json")
        words = [str(submission), str(root / data_set.truth), "--competition", place_of(data_set, root), "--json"]
        return float(json.loads(call(root, "score", *words))["score"])
    evaluated = next((root / "work").glob(f"*/{run_name}/test.json"), None)
    return "" if evaluated is None else float(read_record(evaluated)["score"])


_RATES: dict[tuple[int, int], float] = {}


def notebook_rate(size: tuple[int, int]) -> float:
    """Returns how many images of this size per second the loop of benchmarks/baseline_notebook.py trains on, on this
    machine now."""
    if size not in _RATES:
        from benchmarks.train_speed import notebook_step, write_images

        with tempfile.TemporaryDirectory() as name:
            table = write_images(Path(name), size, size, 64)
            step = notebook_step(Path(name), table, size, 16)
            for _ in range(2):  # a warm-up
                step()
            started = time.perf_counter()
            for _ in range(NOTEBOOK_STEPS):
                step()
            _RATES[size] = 16 * NOTEBOOK_STEPS / (time.perf_counter() - started)
    return _RATES[size]


def append(row: dict[str, Any]) -> None:
    """Appends a row to the CSV file."""
    rows = [*read_results().to_dict("records"), row]
    with writing(RESULTS) as temporary:
        pd.DataFrame(rows, columns=COLUMNS).to_csv(temporary, index=False)


# --- tables -----------------------------------------------------------------------------------------------------------


def table(results: pd.DataFrame) -> str:
    """Returns all rows as Markdown, the best recipe of each data set first."""
    if results.empty:
        return "nothing is measured yet"
    head = ["data set", "minutes", "recipe", "metric", "nested [95 %]", "test set", "images/s", "× the notebook"]
    lines = [_line([*head, "CPU", "date"]), "|" + "---|" * (len(head) + 2)]
    for row in results.sort_values(["data_set", "minutes", "nested"], ascending=[True, True, False]).itertuples():
        ratio = float(row.images_per_second) / float(row.notebook_images_per_second)
        name = f"**{row.recipe}**" if row.recipe == row.auto else str(row.recipe)
        interval = "" if row.low == "" else f" [{float(row.low):.4f}, {float(row.high):.4f}]"
        cells = [row.data_set, row.minutes, name, row.metric, f"{row.nested:.4f}{interval}"]
        test = "" if row.test == "" else f"{float(row.test):.4f}"
        lines.append(_line([*cells, test, f"{row.images_per_second:.1f}", f"{ratio:.1f}", row.cpu, row.date]))
    return "\n".join([*lines, "", "Bold: the recipe that `auto` takes."])


def leave_one_out(results: pd.DataFrame) -> str:
    """Returns, for each data set and time, the score of the recipe that `auto` takes and of the best one, as
    Markdown."""
    if results.empty:
        return "nothing is measured yet"
    head = ["data set", "minutes", "`auto` takes", "nested", "the best", "nested", "difference", f"within {NEAR}"]
    lines = [_line(head), "|" + "---|" * len(head)]
    for (name, minutes), rows in results.groupby(["data_set", "minutes"], sort=True):
        taken, best = rows.iloc[-1]["auto"], rows.loc[rows["nested"].astype(float).idxmax()]
        own = rows[rows["recipe"] == taken]
        if own.empty:
            lines.append(_line([name, minutes, taken, "not measured", best["recipe"], f"{best['nested']:.4f}", "", ""]))
            continue
        score = float(own.iloc[-1]["nested"])
        difference = score - float(best["nested"])
        cells = [name, minutes, taken, f"{score:.4f}", best["recipe"], f"{best['nested']:.4f}", f"{difference:+.4f}"]
        alone = len(rows) == 1
        lines.append(_line([*cells, "only recipe" if alone else "yes" if round(difference, 4) >= -NEAR else "no"]))
    return "\n".join(lines)


def _line(cells: list[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
