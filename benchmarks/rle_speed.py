"""Time of pipeline.masks.rle and of the snippet that most notebooks copy, on every row of a CSV file of masks.

    python -m benchmarks.rle_speed PATH/train_masks_full.csv [--height 420] [--width 580] [--column pixels]

Both run in one process on the same texts and the same C-contiguous uint8 masks, in batches, and take turns at going
first. The best time of each batch is used. The results are compared before anything is timed.
"""

import argparse
import platform
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pipeline.masks import rle

BATCH = 256


def snippet_encode(mask: np.ndarray) -> str:
    pixels = mask.flatten(order="F")
    pixels = np.concatenate([[0], pixels, [0]])
    runs = np.where(pixels[1:] != pixels[:-1])[0] + 1
    runs[1::2] -= runs[::2]
    return " ".join(str(x) for x in runs)


def snippet_decode(text: str, shape: tuple[int, int]) -> np.ndarray:
    s = text.split()
    starts, lengths = [np.asarray(x, dtype=int) for x in (s[0::2], s[1::2])]
    starts -= 1
    ends = starts + lengths
    img = np.zeros(shape[0] * shape[1], dtype=np.uint8)
    for lo, hi in zip(starts, ends, strict=True):
        img[lo:hi] = 1
    return img.reshape(shape, order="F")


class Times(NamedTuple):
    """Seconds of the snippet and of pipeline.masks.rle for the same work."""

    snippet: float
    ours: float


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    if not options.csv.is_file():
        print(f"There is no file {options.csv}: give the path of a CSV file of run-length masks.", file=sys.stderr)
        return 2
    texts = pd.read_csv(options.csv, usecols=[options.column], keep_default_na=False)[options.column].tolist()
    shape = (options.height, options.width)
    assert_equal_results(texts, shape)
    print_header(options, len(texts))
    report("all", texts, shape, options.repeats)
    report("non-empty", [text for text in texts if text], shape, options.repeats)
    return 0


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time run-length encoding and decoding against the usual snippet.")
    parser.add_argument("csv", type=Path)
    parser.add_argument("--column", default="pixels")
    parser.add_argument("--height", type=int, default=420)
    parser.add_argument("--width", type=int, default=580)
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args(arguments)


def assert_equal_results(texts: list[str], shape: tuple[int, int]) -> None:
    for text in texts:
        mask = snippet_decode(text, shape)
        ours = rle.decode(text, shape)
        assert ours.dtype == mask.dtype and np.array_equal(ours, mask)
        mask = np.ascontiguousarray(mask)
        assert snippet_encode(mask) == rle.encode(mask)


def print_header(options: argparse.Namespace, rows: int) -> None:
    print(
        f"{date.today()}, {processor()}, Python {platform.python_version()}, numpy {np.__version__}: "
        f"{options.csv.name}, {rows} masks of {options.height}×{options.width}, best of {options.repeats}, "
        "equal results on every row.\n"
    )
    print("| masks | number | direction | snippet | pipeline.masks.rle | ratio |")
    print("|---|---|---|---|---|---|")


def processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def report(name: str, texts: list[str], shape: tuple[int, int], repeats: int) -> None:
    encoding, decoding = [], []
    for batch in batches(texts):
        masks = [np.ascontiguousarray(rle.decode(text, shape)) for text in batch]
        encoding.append(race(snippet_encode, rle.encode, [(mask,) for mask in masks], repeats))
        decoding.append(race(snippet_decode, rle.decode, [(text, shape) for text in batch], repeats))
    for direction, parts in (("encode", encoding), ("decode", decoding)):
        snippet, ours = (sum(times) for times in zip(*parts, strict=True))
        print(
            f"| {name} | {len(texts)} | {direction} | {1e6 * snippet / len(texts):.0f} µs | "
            f"{1e6 * ours / len(texts):.0f} µs | {snippet / ours:.1f}× |"
        )


def batches(texts: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(texts), BATCH):
        yield texts[start : start + BATCH]


def race(snippet: Callable[..., Any], ours: Callable[..., Any], calls: list[tuple], repeats: int) -> Times:
    """Returns the best time of each function over the calls; they take turns at going first."""
    best = {snippet: float("inf"), ours: float("inf")}
    for turn in range(repeats):
        for contestant in (snippet, ours) if turn % 2 == 0 else (ours, snippet):
            best[contestant] = min(best[contestant], seconds(contestant, calls))
    return Times(best[snippet], best[ours])


def seconds(contestant: Callable[..., Any], calls: list[tuple]) -> float:
    start = time.perf_counter()
    for call in calls:
        contestant(*call)
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
