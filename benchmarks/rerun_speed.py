"""How long does `run` take when nothing has changed? The fastest and slowest of several calls.

python -m benchmarks.rerun_speed [RECIPE]        after `./run_all.sh RECIPE`
"""

import subprocess
import sys
import time
from datetime import date


def main() -> None:
    command = [sys.executable, "-m", "pipeline", "run", *(sys.argv[1:] or ["sample"])]
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        finished = subprocess.run(command, check=True, capture_output=True, text=True)
        seconds.append(time.perf_counter() - started)
        if finished.stderr.count("up to date") < 8:
            sys.exit(f"something was not up to date:\n{finished.stderr}")
    print(f"{date.today()}: nothing changed: {min(seconds):.2f} s to {max(seconds):.2f} s over {len(seconds)} calls")


if __name__ == "__main__":
    main()
