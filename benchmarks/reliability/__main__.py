"""Kills, starves, damages, fuzzes and attacks the pipeline, and writes what came of it into docs/reliability.md.

    python -m benchmarks.reliability [--seed N] [--minutes M] [--only kills,damages,fuzz,starved,malicious] [--brief]

The time is divided among the parts. The introduction of the page, and the sections of parts that are not run, stay.
Linux alone: it forks, mounts and limits. Exit code 1 where there was a fault.
"""

import argparse
import importlib
import os
import platform
import re
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from benchmarks.reliability.warm import Place, Tally, prepare

PARTS = {"kills": "kills", "starved": "starved", "fuzz": "fuzz", "damages": "damaged", "malicious": "malicious"}
"""Each part and its module."""
PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
MARK = "<!-- What follows is written by `python -m benchmarks.reliability`. -->"
BRIEF = ("kills", "starved", "fuzz")
FAULTS_SHOWN = 20


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability", description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between them")
    parser.add_argument("--brief", action="store_true", help="a few trials of each part; the page is not written")
    parser.add_argument("--folder", type=Path, help="where to work, and to keep what faulty commands said")
    asked = parser.parse_args()
    parts = [name for name in asked.only.split(",") if name]
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--only {','.join(sorted(unknown))}: the parts are {', '.join(PARTS)}")
    if asked.brief:
        parts = [name for name in parts if name in BRIEF]
    with tempfile.TemporaryDirectory() as scratch:
        place = Place((asked.folder or Path(scratch)).absolute(), asked.brief)
        prepare(place)
        share = 0 if asked.brief else asked.minutes * 60 / len(parts)
        tallies = {name: _run(name, place, asked.seed, share) for name in parts}
    if not asked.brief:
        PAGE.write_text(_page(PAGE.read_text(encoding="utf-8"), tallies, asked.seed), encoding="utf-8")
    faults = sum(len(tally.faults) for tally, _ in tallies.values())
    tried = sum(tally.total() for tally, _ in tallies.values())
    print(f"{tried} trials, {faults} faults")
    sys.exit(1 if faults else 0)


def _run(name: str, place: Place, seed: int, seconds: float) -> tuple[Tally, float]:
    """What a part tried, and how many seconds it took."""
    print(f"{name}, for {seconds:.0f} s", flush=True)
    began = time.monotonic()
    module = importlib.import_module(f"benchmarks.reliability.{PARTS[name]}")
    tally: Tally = module.run(place, seed, began + seconds)
    return tally, time.monotonic() - began


def _page(page: str, tallies: dict[str, tuple[Tally, float]], seed: int) -> str:
    """The page with new sections of the parts that were run."""
    introduction, _, measured = page.partition(MARK)
    sections = {text.partition("\n")[0]: f"## {text}".strip() for text in re.split(r"^## ", measured, flags=re.M)[1:]}
    for tally, seconds in tallies.values():
        sections[tally.title] = _section(tally, seconds, seed)
    return f"{introduction.rstrip()}\n\n{MARK}\n\n" + "\n\n".join(sections.values()) + "\n"


def _section(tally: Tally, seconds: float, seed: int) -> str:
    outcomes = sorted({outcome for _, outcome in tally.counts})
    rows: dict[str, dict[str, int]] = defaultdict(dict)
    for (kind, outcome), count in sorted(tally.counts.items()):
        rows[kind][outcome] = count
    lines = [
        f"## {tally.title}", "",
        f"Measured on {time.strftime('%Y-%m-%d')} ({platform.system()}, {os.cpu_count()} CPU cores, Python "
        f"{platform.python_version()}), seed {seed}, in {seconds / 60:.0f} min: {tally.total():,} trials, "
        f"{len(tally.faults)} faults. {' '.join(f'{note}.' for note in tally.notes)}".rstrip(), "",
        f"| what | {' | '.join(outcomes)} |", f"|---|{'---|' * len(outcomes)}",
    ]  # fmt: skip
    lines += [
        f"| {kind} | {' | '.join(f'{row[one]:,}' if one in row else '' for one in outcomes)} |"
        for kind, row in rows.items()
    ]
    if tally.faults:
        lines += ["", "Faults that are left:", ""]
        lines += [f"- {' '.join(fault.split())[:300].replace('|', '/')}" for fault in tally.faults[:FAULTS_SHOWN]]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
