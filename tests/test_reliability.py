"""The quick part of benchmarks/reliability: kills, a starved machine and odd inputs, a few of each; and its page."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

from benchmarks.reliability import __main__ as reliability
from benchmarks.reliability.warm import Tally


@pytest.mark.skipif(sys.platform != "linux", reason="it forks, mounts and limits as Linux does")
def test_nothing_is_lost_in_a_minute(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.reliability", "--brief", "--seed", "1", "--folder", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


def test_sections_of_parts_that_were_not_run_stay() -> None:
    tally = Tally("Kills")
    tally.add("killed", "byte-identical")
    page = f"# Words\n\n{reliability.MARK}\n\n## Fuzzed\n\nold\n\n## Kills\n\nolder\n"
    text = reliability._page(page, {"kills": (tally, 60.0)}, 3)
    assert text.startswith(f"# Words\n\n{reliability.MARK}\n\n## Fuzzed\n\nold\n\n## Kills\n\nMeasured on ")
    assert "older" not in text and "| killed | 1 |" in text and "seed 3, in 1 min: 1 trials, 0 faults" in text
