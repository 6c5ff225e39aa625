"""Runs the benchmarks and writes one table of their results.

    python -m benchmarks [FOLDER] [--only NAME…] [--short] [--minutes 60]
    python -m benchmarks --list

FOLDER (default: work/benchmarks) gets one log and one JSON file per benchmark, and results.md with command, date,
device, time and result of each. A benchmark whose data or packages are missing is skipped, and the table says so. One
that fails does not stop the others. `--short` runs each in a minute or less, to see that it works: its figures mean
nothing. `--minutes` skips those that are known to take longer. Exit code 1 if one failed.
"""

import argparse
import platform
import re
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.step_speed import processor
from benchmarks.suite import ELSEWHERE, SUITE, Benchmark
from pipeline.core.errors import PipelineError, did_you_mean
from pipeline.core.files import input_root, make_folder, read_json, root, shown, write_json, write_text


def listed() -> list[str]:
    """Returns the table of all benchmarks."""
    rows = ["| benchmark | measures | needs | time | short form |", "|---|---|---|---|---|"]
    for one in SUITE:
        needs = "; ".join(f"{need.name}{'' if need.met() else f' (missing: {need.remedy})'}" for need in one.needs)
        short = "no" if one.short is None else "yes"
        rows.append(f"| {one.name} | {one.answers} | {needs or 'nothing'} | {_time(one)} | {short} |")
    return [*rows, "", "Not part of the suite:", *(f"  {name}: {why}" for name, why in ELSEWHERE.items())]


def _time(one: Benchmark) -> str:
    return "not measured" if one.minutes is None else f"{one.minutes:g} min"


def chosen(only: list[str]) -> list[Benchmark]:
    """Returns the benchmarks with these names, or all.

    Raises:
        PipelineError: an unknown name.
    """
    names = [one.name for one in SUITE]
    for name in only:
        if name not in names:
            why = f": it {ELSEWHERE[name]}." if name in ELSEWHERE else did_you_mean(name, names)
            raise PipelineError(f"--only {name}: no benchmark of the suite{why}")
    return [one for one in SUITE if one.name in (only or names)]


def reason_to_skip(one: Benchmark, short: bool, minutes: float | None) -> str:
    """Returns why a benchmark cannot run or shall not; "" if it runs."""
    if missing := [need for need in one.needs if not need.met()]:
        return "skipped: " + "; ".join(f"needs {need.name} ({need.remedy})" for need in missing)
    if short and one.short is None:
        return "skipped: it has no short form"
    if minutes is not None and (one.minutes or 0) > minutes:
        return f"skipped: it takes about {_time(one)}"
    return ""


def run(one: Benchmark, folder: Path, short: bool) -> dict[str, Any]:
    """Runs a benchmark in its own process, writes its output to <name>.log, and returns the row of the table."""
    place = folder / one.name
    given = (one.short or "") if short else one.arguments
    arguments = [part.format(folder=place, input=input_root()) for part in given.split()]
    command = ["python", "-m", f"benchmarks.{one.name}", *arguments]
    make_folder(place)
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *command[1:]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seconds = time.perf_counter() - started
    write_text(folder / f"{one.name}.log", done.stdout)
    shown_command = " ".join(command).replace(str(place), "FOLDER").replace(str(input_root()), "input")
    row = {"benchmark": one.name, "command": shown_command, "date": str(date.today()), "device": device()}
    result = result_of(done.stdout, one.result) if not done.returncode else [f"failed: {_last(done.stdout)}"]
    return row | {"seconds": round(seconds, 1), "short": short, "failed": bool(done.returncode), "result": result}


def result_of(output: str, pattern: str) -> list[str]:
    """Returns the lines of an output that match a pattern; if none does, the last line."""
    found = re.findall(pattern, output, re.MULTILINE)
    return found if found and pattern != Benchmark.result else [_last(output)]


def _last(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def device() -> str:
    """Returns the processor or GPU, with its number of cores."""
    import os

    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return (
        gpu
        or f"{processor()}, {len(os.sched_getaffinity(0)) if platform.system() == 'Linux' else os.cpu_count()} core(s)"
    )


def rows_of(folder: Path, skipped: dict[str, str]) -> list[dict[str, Any]]:
    """Returns the rows of the table: the results in a folder, and the reasons of benchmarks that were skipped."""
    rows = []
    for one in SUITE:
        if (path := folder / f"{one.name}.json").exists():
            rows.append(read_json(path))
        elif reason := skipped.get(one.name):
            row = {"benchmark": one.name, "command": f"python -m benchmarks.{one.name}", "date": str(date.today())}
            rows.append(row | {"device": "", "seconds": 0, "result": [reason]})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the Markdown of all results: one table, and below it the tables that benchmarks print."""
    lines = ["| benchmark | command | date | device | seconds | result |", "|---|---|---|---|---|---|"]
    below: list[str] = []
    for row in rows:
        result = row["result"]
        is_table = len(result) > 1 and all(line.startswith("|") for line in result)
        text = "see below" if is_table else "; ".join(result).replace("|", "/")
        short = " (short: the figures mean nothing)" if row.get("short") else ""
        cells = [
            row["benchmark"],
            f"`{row['command']}`",
            row["date"],
            row["device"],
            f"{row['seconds']:g}",
            text + short,
        ]
        lines.append(f"| {' | '.join(cells)} |")
        if is_table:
            head, *others = result
            below += ["", f"**{row['benchmark']}**", "", head, "|---" * (head.count("|") - 1) + "|", *others]
    return "\n".join([*lines, *below]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=root() / "work" / "benchmarks")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--minutes", type=float)
    options = parser.parse_args()
    if options.list:
        print("\n".join(listed()))
        return
    failed, skipped, folder = [], {}, options.folder.absolute()
    for one in chosen(options.only):
        if reason := reason_to_skip(one, options.short, options.minutes):
            print(f"{one.name}: {reason}", flush=True)
            skipped[one.name] = reason
        else:
            print(f"{one.name}: {one.answers} ({_time(one)})", flush=True)
            row = run(one, folder, options.short)
            failed += [one.name] * row["failed"]
            print(f"  {'; '.join(row['result'][-2:])}", flush=True)
            write_json(folder / f"{one.name}.json", row)
        write_text(folder / "results.md", table(rows_of(folder, skipped)))
    print(f"→ {shown(folder / 'results.md')}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    try:
        main()
    except PipelineError as error:
        sys.exit(f"benchmarks: {error}")
