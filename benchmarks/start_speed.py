"""Processor time of `--help`, and of `run` when nothing has changed: the lowest and the highest of several calls.

python -m benchmarks.start_speed [RECIPE]        after `./run_all.sh RECIPE`
"""

import os
import subprocess
import sys
import time
from datetime import date

CALLS = 5


def seconds_of(*words: str) -> tuple[float, float, str]:
    """Returns the CPU seconds, the seconds and the standard error of one command."""
    before, started = os.times(), time.perf_counter()
    command = [sys.executable, "-m", "pipeline", *words]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    after, seconds = os.times(), time.perf_counter() - started
    user, system = after.children_user - before.children_user, after.children_system - before.children_system
    return user + system, seconds, finished.stderr


def measure(title: str, *words: str) -> list[str]:
    """Prints the times of several calls and returns the standard error of each."""
    cpu, wall, said = zip(*(seconds_of(*words) for _ in range(CALLS)), strict=True)
    print(
        f"{date.today()}: {title}: {min(cpu):.2f} to {max(cpu):.2f} s of CPU, "
        f"{min(wall):.2f} to {max(wall):.2f} s over {CALLS} calls"
    )
    return list(said)


def main() -> None:
    measure("--help", "--help")
    for text in measure("nothing changed", "run", *(sys.argv[1:] or ["sample"])):
        if text.count("up to date") < 8:
            sys.exit(f"something was not up to date:\n{text}")


if __name__ == "__main__":
    main()
