"""How much processor time do `--help`, and `run` when nothing has changed, take? The least and most of several calls.

python -m benchmarks.start_speed [RECIPE]        after `./run_all.sh RECIPE`
"""

import os
import subprocess
import sys
import time
from datetime import date

CALLS = 5


def seconds_of(*words: str) -> tuple[float, float, str]:
    """Returns CPU seconds and seconds of one command, and what it says on standard error."""
    before, started = os.times(), time.perf_counter()
    command = [sys.executable, "-m", "pipeline", *words]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    after, seconds = os.times(), time.perf_counter() - started
    user, system = after.children_user - before.children_user, after.children_system - before.children_system
    return user + system, seconds, finished.stderr


def measure(title: str, *words: str) -> list[str]:
    """Prints the times of several calls and returns what each said."""
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
