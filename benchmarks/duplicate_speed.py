"""Time and memory of the search for near-duplicates, on synthetic descriptors with planted pairs.

    python -m benchmarks.duplicate_speed [--images 5000 10000 20000 40000] [--repeats 3]

The histograms have the shape of those of 420×580 images (6090 values) and of 101×101 images (250 values). A tenth of
the images are slightly changed copies of others. In the last case all thumbnails are similar, so every histogram is
compared with every other. Each search runs in its own process. The best time and the highest memory of the repeats are
reported.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import cv2
import numpy as np

from benchmarks.rle_speed import processor
from pipeline.clean.duplicates import near_pairs
from pipeline.core.config.cleaning import DuplicateSettings
from pipeline.decode.descriptors import BINS, SIDE, block_grid

SHAPES = ((420, 580), (101, 101))
COARSE = (6, 8)
CHUNK = 64
UNIT = 1024 if sys.platform == "linux" else 1  # bytes, of ru_maxrss


def main() -> None:
    options = parse_arguments()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    print(
        f"{date.today()}, {processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"numpy {np.__version__}, best of {options.repeats}\n"
    )
    print("| images | values | thumbnails | time | peak memory | of it the search | planted | of them found | others |")
    print("|---|---|---|---|---|---|---|---|---|")
    cases = [(count, shape, False) for shape in SHAPES for count in options.images]
    for count, shape, alike in [*cases, (20_000, SHAPES[0], True)]:
        report(count, shape, alike, options.repeats)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time the search for near-duplicates.")
    parser.add_argument("--images", type=int, nargs="+", default=[5_000, 10_000, 20_000, 40_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def report(count: int, shape: tuple[int, int], alike: bool, repeats: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), count, block_grid(shape), alike)
        command = [sys.executable, "-m", "benchmarks.duplicate_speed", "--measure", folder]
        runs = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(repeats)]
    grid, worst = block_grid(shape), max(runs, key=lambda run: run["after"])
    print(
        f"| {count:,} | {grid[0] * grid[1] * BINS} | {'all alike' if alike else 'differ'} | "
        f"{min(run['seconds'] for run in runs):.1f} s | {worst['after'] / 2**20:.0f} MiB | "
        f"{(worst['after'] - worst['before']) / 2**20:.0f} MiB | "
        f"{worst['planted']:,} | {min(run['found'] for run in runs):,} | {worst['others']} |",
        flush=True,
    )


# --- descriptors -----------------------------------------------------------------------------------------------------


def write(folder: Path, count: int, grid: tuple[int, int], alike: bool) -> None:
    """Writes descriptors a few rows at a time, because the memory of a process also counts as its children's peak."""
    generator = np.random.default_rng(0)
    fields = generator.normal(size=(count, *COARSE)).astype(np.float32)
    left, right = generator.permutation(count)[: 2 * (count // 10)].reshape(2, -1)
    fields[right] = fields[left] + generator.normal(scale=0.01, size=(len(left), *COARSE))
    np.save(folder / "planted.npy", np.sort([left, right], axis=0))
    # images of one kind are alike: the correlation of their thumbnails is 0.5, or above 0.9
    common = generator.normal(size=COARSE).astype(np.float32) * (5 if alike else 1)
    with (folder / "histograms").open("wb") as histograms, (folder / "thumbnails").open("wb") as thumbnails:
        for part in chunks(fields):
            smooth_histograms(part, grid).tofile(histograms)
            smooth_thumbnails(part + common).tofile(thumbnails)


def chunks(values: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(values), CHUNK):
        yield values[start : start + CHUNK]


def smooth_histograms(fields: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Returns histograms (rows, blocks · 10) uint8 around a grey value that changes smoothly over the image."""
    centre = np.stack([cv2.resize(field, grid[::-1]) for field in fields])[..., None] * 2 + BINS / 2
    share = np.exp(-((np.arange(BINS, dtype=np.float32) - centre) ** 2) / 2)
    share *= 255 / share.sum(-1, keepdims=True)
    return np.rint(share).astype(np.uint8).reshape(len(fields), -1)


def smooth_thumbnails(fields: np.ndarray) -> np.ndarray:
    small = np.stack([cv2.resize(field, (SIDE, SIDE)).ravel() for field in fields])
    small -= small.mean(1, keepdims=True)
    return (small / np.linalg.norm(small, axis=1, keepdims=True)).astype(np.float16)


# --- in a process of its own -----------------------------------------------------------------------------------------


def measure(folder: Path) -> dict[str, float]:
    thumbnails = np.fromfile(folder / "thumbnails", np.float16).reshape(-1, SIDE * SIDE)
    histograms = np.fromfile(folder / "histograms", np.uint8).reshape(len(thumbnails), -1)
    before = peak_memory()
    started = time.perf_counter()
    pairs = near_pairs(histograms, thumbnails, DuplicateSettings())
    seconds, after = time.perf_counter() - started, peak_memory()
    planted = set(zip(*np.load(folder / "planted.npy").tolist(), strict=True))
    found = planted & set(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True))
    return {
        "seconds": seconds,
        "before": before,
        "after": after,
        "planted": len(planted),
        "found": len(found),
        "others": len(pairs) - len(found),
    }


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT


if __name__ == "__main__":
    main()
