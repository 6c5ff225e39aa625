"""What benchmarks/scale.py measures of a process, what it does not measure again, and what its table says."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks import scale
from benchmarks.scale import Size

HELD = 64
"""MiB that the stage of the test allocates."""


def test_a_stage_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "\n".join([
        "import time",
        f"held = bytearray({HELD} * 2**20)",
        "held[::4096] = bytes([1]) * (len(held) // 4096)",
        "time.sleep(0.3)",
        "open('written.bin', 'wb').write(bytes(1000))",
    ])  # fmt: skip

    def commands(folder: Path, size: Size, again: bool = False) -> Iterator[tuple[str, list[str]]]:
        yield "draw", [sys.executable, "-c", f"import os\nos.chdir({str(folder)!r})\n{code}"]

    monkeypatch.setattr(scale, "commands", commands)
    results = tmp_path / "results.csv"
    for _ in range(2):
        scale.measure_all(tmp_path, [Size(10, 8)], results, rounds=1)
    (row,) = scale.read(results)
    assert HELD <= float(row["allocated_mib"]) < HELD + 30
    assert int(row["written_bytes"]) == 1000
    assert float(row["wall_s"]) >= max(0.3, float(row["cpu_s"]))


def test_the_table_takes_the_least_time_and_what_one_image_more_takes() -> None:
    costs = {(0, 100): (1.5, 50), (1, 100): (1.2, 60), (0, 300): (1.6, 100)}
    rows = [
        dict(zip(scale.FIELDS, map(str, (number, images, 64, "decode", cpu, 9, 80, memory, 0, "")), strict=True))
        for (number, images), (cpu, memory) in costs.items()
    ]
    time, memory, *_ = (part.splitlines()[-1] for part in scale.table(rows).split("\n\n"))
    assert time == "| decode | 1.20 | 1.60 | 1.00 |"  # 0.4 s for 200 training and 200 test images
    assert memory == "| decode | 60.0 | 100 | 102 |"  # 40 MiB for them


def test_a_near_duplicate_differs_in_its_noise_alone() -> None:
    (one, mask, _), (again, same_mask, _), (other, *_) = (scale.draw_one(number, 64) for number in (98, 99, 100))
    assert (mask == same_mask).all() and not (one == again).all()
    assert np.abs(one.astype(int) - again).max() <= 8 < np.abs(one.astype(int) - other).max()
