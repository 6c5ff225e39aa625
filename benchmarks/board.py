"""The quality board: four competitions run by the same commands, to see whether a change of the code costs score.

    python -m benchmarks.board FOLDER [--data DATA] [--only NAME…] [--note TEXT]
    python -m benchmarks.board --table

Runs each competition from scratch in FOLDER/<name>, which must be empty, and appends a row to benchmarks/board.csv as
soon as it is finished. Then prints all rows, newest last. Each row shows the change of the nested estimate since the
last row of the same competition on the same kind of CPU. `sample` is drawn. The other competitions are linked from
DATA/tgs-salt, DATA/mars-format and DATA/pets-format, and skipped if the folder is missing. Each takes up to 10 minutes
on two cores.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.core.files import read_json, writing

BOARD = Path(__file__).with_name("board.csv")
RUNS: dict[str, tuple[str, str, list[str]]] = {
    "sample": ("sample", "", []),
    "tgs-salt": ("tgs-salt", "tgs-salt", ["--quick", "--set", "model.weights=none"]),
    "mars-format": ("mars-terrain", "mars-format", ["--quick"]),
    "pets-format": ("oxford-pet", "pets-format", ["--quick", "--set", "model.weights=none"]),
}
"""The recipe, the folder in DATA and further options of `run`, by the name of the row."""


def main() -> None:
    """Runs the chosen competitions and prints the board."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="an empty folder to run in")
    parser.add_argument("--data", type=Path, help="where the folders of real data are")
    parser.add_argument("--only", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--note", default="", help="what is new in the code, for the table")
    parser.add_argument("--table", action="store_true", help="print the board, run nothing")
    options = parser.parse_args()
    if not options.table:
        if options.folder is None:
            parser.error("name a folder to run in, or ask for --table")
        for name in options.only:
            _, data, _ = RUNS[name]
            if data and not (options.data and (options.data / data).is_dir()):
                print(f"{name}: left out, {options.data or 'DATA'}/{data} is not there", file=sys.stderr)
                continue
            _add(measured(name, (options.folder / name).absolute(), options.data) | {"note": options.note})
    print(table(pd.read_csv(BOARD, keep_default_na=False)))


def measured(name: str, root: Path, data: Path | None) -> dict[str, Any]:
    """Runs one competition in its own folder and returns its row."""
    recipe, folder, options = RUNS[name]
    if root.exists():
        sys.exit(f"{root} exists already: the board times whole runs, so name a folder that is new")
    (root / "input").mkdir(parents=True)
    environment = {**os.environ, "PIPELINE_ROOT": str(root)}
    environment.pop("PIPELINE_INPUT", None)
    started = time.perf_counter()
    if folder and data:
        (root / "input" / recipe).symlink_to((data / folder).absolute())
    else:
        subprocess.run([sys.executable, "-m", "pipeline", "sample"], env=environment, check=True)
    subprocess.run([sys.executable, "-m", "pipeline", "run", recipe, *options], env=environment, check=True)
    return row_of(name, root, time.perf_counter() - started, environment)


def row_of(name: str, root: Path, seconds: float, environment: dict[str, str]) -> dict[str, Any]:
    """Returns the row of a competition that ran in a folder for `seconds`."""
    recipe = RUNS[name][0]
    record = read_json(next((root / "submissions").glob("*.json")))
    result, fold = record["postprocess"], next(iter(record["folds"].values()))
    low, high = result["nested_interval_95"]
    row = {
        "date": date.today().isoformat(),
        "code": record["code"]["commit"][:7] + ("+" if record["code"]["modified"] else ""),
        "cpu": f"{_cpu()}, {_threads()} threads, {fold['compute']['precision']}",
        "name": name, "untuned": result["untuned"], "out_of_fold": result["score"], "nested": result["nested"],
        "low": low, "high": high, "truth": _truth(root, recipe, environment), "minutes": seconds / 60,
    }  # fmt: skip
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}


def table(board: pd.DataFrame) -> str:
    """Returns the board as Markdown."""
    columns = ["competition", "date", "code", "CPU", "untuned", "out-of-fold", "nested [95 %]", "change", "truth"]
    columns += ["minutes", "what is new"]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for (name, _), rows in board.groupby(["name", "cpu"], sort=False):
        before = None
        for row in rows.itertuples():
            change = "" if before is None else f"{row.nested - before:+.3f}"
            truth = "" if row.truth == "" else f"{float(row.truth):.3f}"
            cells = [name, row.date, row.code, row.cpu, f"{row.untuned:.3f}", f"{row.out_of_fold:.3f}"]
            cells += [
                f"{row.nested:.3f} [{row.low:.3f}, {row.high:.3f}]",
                change,
                truth,
                f"{row.minutes:.1f}",
                row.note,
            ]
            lines.append(f"| {' | '.join(map(str, cells))} |")
            before = row.nested
    return "\n".join(lines)


def _add(row: dict[str, Any]) -> None:
    rows = pd.read_csv(BOARD, keep_default_na=False).to_dict("records") if BOARD.exists() else []
    with writing(BOARD) as temporary:
        pd.DataFrame([*rows, row]).to_csv(temporary, index=False)


def _truth(root: Path, recipe: str, environment: dict[str, str]) -> float | str:
    """Returns the score of the submission against the sample's truth.csv, or on the test images with known masks."""
    truth = root / "input" / recipe / "truth.csv"
    if truth.exists():
        submission = next((root / "submissions").glob("*.csv"))
        call = [
            sys.executable,
            "-m",
            "pipeline",
            "score",
            str(submission),
            str(truth),
            "--competition",
            recipe,
            "--json",
        ]
        done = subprocess.run(call, env=environment, check=True, capture_output=True, text=True)
        return float(json.loads(done.stdout)["score"])
    evaluated = next((root / "work").glob("*/*/test.json"), None)
    return "" if evaluated is None else float(read_json(evaluated)["score"])


def _threads() -> str:
    return os.environ.get("OMP_NUM_THREADS") or str(os.cpu_count())


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "CPU")


if __name__ == "__main__":
    main()
