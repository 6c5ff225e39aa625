"""Time and memory of tune: the exact tables against the loops of notebooks, on synthetic masks of 420×580.

    python -m benchmarks.tune_speed [--images 1000] [--loop 99] [--rounds 3] [--all 5635]

Smooth blobs as in Ultrasound Nerve Segmentation: 59 % of the true masks are empty, and a network of 224×320 misses some
and predicts others that do not exist. All ways start from run-length text and uint8 probabilities at network size, and
look for the best of 100 thresholds × 20 minimum areas. Decoding and resizing are the pipeline's own, once per image,
and are part of every time. In turn, in one process, on one core:

tables           tune's histograms and tables, at those thresholds and areas
double loop      every threshold, every area, every image: cut, count, empty if small, score. Runs on --loop of the
                 images, and is extrapolated to all
threshold loop   every threshold and image: cut, count; the areas from the table of these counts

Each loop runs once with `mask.sum()`, as in notebooks, and once with `np.count_nonzero`, which is faster on bool.
Its optimum and its score, to the last digit, are compared with those of the tables on the same images.

Before that, the whole of tune runs on --all images in its own process: five folds of subjects, all steps including
presence head and connected regions, final and nested choices. Its peak memory includes mapped predictions.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd

from benchmarks.duplicate_speed import UNIT
from benchmarks.rle_speed import processor
from pipeline.core.config.raw_layouts import load_competition
from pipeline.core.config.recipe import ImageSettings, Recipe
from pipeline.core.run import Run
from pipeline.decode import table
from pipeline.masks import rle
from pipeline.masks.decision import Rule, Rules
from pipeline.masks.geometry import Geometry
from pipeline.predictions.blends import Blend, RunPredictions
from pipeline.tune import mask_rules
from pipeline.tune.evidence import Evidence, histogram_counts, image_scores
from pipeline.tune.held_out import HeldOut, Weighting
from pipeline.tune.mask_rules import MaskProblem
from pipeline.tune.procedure import Parts
from pipeline.tune.rule_search import AREAS, RuleSearch
from pipeline.tune.selection import Fits, Nested

NATIVE, NETWORK = (420, 580), (224, 320)
EMPTY = 0.59
SUBJECT = 120
"""Number of consecutive images of one subject."""
FOLDS = 5
THRESHOLDS = np.linspace(3, 252, 100).round().astype(np.int64)
PLACES = np.linspace(0, np.searchsorted(AREAS, 3000), 20).round().astype(np.int64)
"""Indices of the minimum areas in AREAS."""

Count = Callable[[np.ndarray], int]
COUNTS: dict[str, Count] = {"mask.sum()": np.sum, "np.count_nonzero": np.count_nonzero}


class Images(NamedTuple):
    """Probabilities (N, 1, 224, 320) uint8, the presence probabilities (N, 1), and the true masks as text."""

    probability: np.ndarray
    heads: np.ndarray
    texts: list[str]


class Optimum(NamedTuple):
    """The best threshold and minimum area, and their mean Dice."""

    threshold: int
    area: int
    score: float


# --- synthetic images ------------------------------------------------------------------------------------------------


def smooth(random: np.random.Generator, cells: int, scale: float) -> np.ndarray:
    """Returns a random field (224, 320) float32 that changes over about 1/cells of the image."""
    coarse = random.normal(0, scale, (cells, cells)).astype(np.float32)
    return cv2.resize(coarse, NETWORK[::-1], interpolation=cv2.INTER_CUBIC)


def draw(number: int) -> tuple[np.ndarray, float, str]:
    """Returns the probabilities (224, 320) uint8 of an image, its presence probability, and its true mask as text."""
    random = np.random.default_rng(number)
    present = random.random() > EMPTY
    rows, columns = np.mgrid[: NETWORK[0], : NETWORK[1]].astype(np.float32)
    centre, radius = random.uniform((70, 90), (150, 230)), random.uniform((9, 20), (28, 48))
    radius = radius if present else radius / 2  # false objects are smaller
    distance = ((rows - centre[0]) / radius[0]) ** 2 + ((columns - centre[1]) / radius[1]) ** 2
    shape = 1 - distance + smooth(random, 9, 0.15)
    native = cv2.resize(shape, NATIVE[::-1], interpolation=cv2.INTER_LINEAR)
    text = rle.encode((native > 0).astype(np.uint8)) if present else ""
    sure = random.normal(1.5, 1.5) if present else random.normal(-2.5, 1.5)
    seen = np.clip(3 * (shape + smooth(random, 12, 0.3)) - 1, None, 4) + sure
    background = random.normal(-5, 0.8) + smooth(random, 16, 0.5)
    probability = 1 / (1 + np.exp(-np.maximum(seen, background)))
    head = 1 / (1 + np.exp(-random.normal(2 if present else -2, 2)))
    return np.rint(255 * probability).astype(np.uint8), float(head), text


def draw_all(count: int) -> Images:
    drawn = [draw(number) for number in range(count)]
    pixels, heads, texts = zip(*drawn, strict=True)
    return Images(np.stack(pixels)[:, None], np.array(heads, np.float32)[:, None], list(texts))


def blend(images: Images) -> Blend:
    source = RunPredictions((images.probability,), Geometry(NETWORK, "stretch", 1), (images.heads,))
    return Blend([str(number) for number in range(len(images.texts))], (source,), (1.0,))


def some(images: Images, numbers: np.ndarray) -> Images:
    return Images(images.probability[numbers], images.heads[numbers], [images.texts[number] for number in numbers])


def row_of(text: str) -> dict[str, str | int]:
    """Returns the row of images.parquet."""
    return {"height": NATIVE[0], "width": NATIVE[1], "rle_nerve": text, "ignore": ""}


# --- the three ways to the optimum -----------------------------------------------------------------------------------


def both(images: Images) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields every image's probabilities and true masks (1, 420, 580) uint8."""
    native = blend(images)
    for number, text in enumerate(images.texts):
        yield native.native(number, NATIVE), table.true_mask(row_of(text), ["nerve"])


def tables(images: Images) -> Optimum:
    counts = [histogram_counts(probability, true) for probability, true in both(images)]
    everyone = np.arange(len(counts))
    area, predicted, intersection, true_area = (np.stack(part) for part in zip(*counts, strict=True))
    evidence = Evidence(pd.DataFrame(index=everyone), area, predicted, intersection, true_area)
    own = RuleSearch(evidence, 0, "dice", np.ones(len(counts)))
    sums = own.area_sums(everyone, THRESHOLDS)[PLACES]
    threshold, min_area = best(sums)
    scores = image_scores(evidence, Rules((Rule(threshold=threshold, min_area=min_area),)), "dice")
    return Optimum(threshold, min_area, float(scores.mean()))


def double_loop(images: Images, count: Count) -> np.ndarray:
    """Returns the Dice (N, areas, thresholds) of every image."""
    scores = np.empty((len(images.texts), len(PLACES), len(THRESHOLDS)))
    for number, (probability, true) in enumerate(notebook(images)):
        true_area = count(true)
        for column, threshold in enumerate(THRESHOLDS):
            for place, area in enumerate(AREAS[PLACES]):
                mask = probability >= threshold
                predicted = count(mask)
                if predicted < area:
                    mask, predicted = np.zeros_like(mask), 0
                total = predicted + true_area
                scores[number, place, column] = 2.0 * count(mask & true) / total if total else 1.0
    return scores


def threshold_loop(images: Images, count: Count) -> np.ndarray:
    """Returns the Dice (N, areas, thresholds) of every image."""
    predicted, intersection = np.empty((2, len(images.texts), len(THRESHOLDS)), np.int64)
    true_area = np.empty((len(images.texts), 1), np.int64)
    for number, (probability, true) in enumerate(notebook(images)):
        true_area[number] = count(true)
        for column, threshold in enumerate(THRESHOLDS):
            mask = probability >= threshold
            predicted[number, column] = count(mask)
            intersection[number, column] = count(mask & true)
    total = predicted + true_area
    kept = np.where(total == 0, 1.0, 2.0 * intersection / np.maximum(total, 1))
    return np.stack([np.where(predicted >= area, kept, true_area == 0) for area in AREAS[PLACES]], axis=1)


def notebook(images: Images) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields every image's probabilities (420, 580) uint8 and true mask (420, 580) bool, in the same memory layout."""
    for probability, true in both(images):
        yield probability[0], np.ascontiguousarray(true[0]) == 1


def best(sums: np.ndarray) -> tuple[int, int]:
    """Returns the threshold and area of the highest sum (areas, thresholds). Ties go to the smallest area and the
    threshold nearest 0.5."""
    place = int(np.argmax(sums.max(1) >= sums.max() - 1e-9))
    tied = THRESHOLDS[sums[place] >= sums.max() - 1e-9]
    return int(min(tied, key=lambda threshold: abs(int(threshold) - 128))), int(AREAS[PLACES[place]])


def optimum(scores: np.ndarray) -> Optimum:
    threshold, area = best(scores.sum(0))
    place, column = np.searchsorted(AREAS[PLACES], area), np.searchsorted(THRESHOLDS, threshold)
    return Optimum(threshold, area, float(scores[:, place, column].mean()))


# --- racing ----------------------------------------------------------------------------------------------------------


def race(count: int, looped: int, rounds: int) -> None:
    """Compares all results, then prints the table of times."""
    cv2.setNumThreads(1)
    images = draw_all(count)
    ours, subset = tables(images), tables(some(images, np.arange(looped)))
    seconds: dict[str, list[float]] = {}
    doubled: dict[str, list[np.ndarray]] = {name: [] for name in COUNTS}
    for part in np.array_split(np.arange(looped), rounds):
        timed(seconds, "tables", tables, images)
        for name, counter in COUNTS.items():
            found = timed(seconds, f"threshold loop, `{name}`", threshold_loop, images, counter)
            assert optimum(found) == ours, (optimum(found), ours)
            doubled[name].append(timed(seconds, f"double loop, `{name}`", double_loop, some(images, part), counter))
            seconds[f"double loop, `{name}`"][-1] *= count / len(part)
    for name, parts in doubled.items():
        assert optimum(np.concatenate(parts)) == subset, (name, optimum(np.concatenate(parts)), subset)
    zeros, empty = (images.probability == 0).mean(), np.mean([not text for text in images.texts])
    print(f"{count} masks, {empty:.0%} empty, {zeros:.0%} of the network's probabilities 0; "
          f"medians of {rounds} rounds.")  # fmt: skip
    print(f"Equal optima: of all, threshold {ours.threshold}, area {ours.area}, Dice {ours.score!r}; of the "
          f"{looped} of the double loop {subset.threshold}, {subset.area}, {subset.score!r}.\n")  # fmt: skip
    print("| way | time (fastest to slowest round) | tables are faster by |")
    print("|---|---|---|")
    reference = float(np.median(seconds["tables"]))
    for name, values in seconds.items():
        middle, how = float(np.median(values)), f", extrapolated from {looped}" if name.startswith("double") else ""
        print(f"| {name} | {middle:.2f} s ({min(values):.2f} to {max(values):.2f}){how} | {middle / reference:.1f}× |")


def timed(seconds: dict[str, list[float]], name: str, work: Callable, *arguments: Any) -> Any:
    started = time.perf_counter()
    found = work(*arguments)
    seconds.setdefault(name, []).append(time.perf_counter() - started)
    return found


# --- the whole of tune, in its own process ---------------------------------------------------------------------------


def write(folder: Path, count: int) -> None:
    """Writes images one by one, because the memory of a process also counts as its children's peak."""
    heads, texts = [], []
    with (folder / "probability").open("wb") as file:
        for number in range(count):
            probability, head, text = draw(number)
            probability.tofile(file)
            heads.append(head)
            texts.append(text)
    (folder / "rest.json").write_text(json.dumps({"heads": heads, "texts": texts}))


def held_out(folder: Path) -> HeldOut:
    """Returns the images as tune reads them: predictions mapped from disk, fold by fold."""
    rest = json.loads((folder / "rest.json").read_text())
    count = len(rest["texts"])
    every = np.memmap(folder / "probability", np.uint8, "r", shape=(count, 1, *NETWORK))
    heads = np.array(rest["heads"], np.float32)[:, None]
    subject = np.arange(count) // SUBJECT
    fold = subject * FOLDS // (subject[-1] + 1)
    ids = [str(number) for number in range(count)]
    images = pd.DataFrame({"image_id": ids, "fold": fold, "group": subject.astype(str), "use": "train"})
    images["row"] = images.groupby("fold").cumcount()
    ends = np.searchsorted(fold, np.arange(FOLDS + 1))
    blends = {
        number: blend(Images(every[start:end], heads[start:end], ids[start:end]))
        for number, (start, end) in enumerate(zip(ends[:-1], ends[1:], strict=True))
    }
    recipe = Recipe(name="speed", competition="ultrasound-nerve", image=ImageSettings(size=NETWORK))
    run = Run(recipe, load_competition("ultrasound-nerve"), "speed")
    return HeldOut(run, images, [pd.Series(row_of(text)) for text in rest["texts"]], {(False,): blends})


def measure(folder: Path) -> dict[str, Any]:
    """Tunes all images and returns times, memory and the result."""
    import sklearn.linear_model  # noqa: F401 (the step `expected` imports it)

    before, started = peak_memory(), time.perf_counter()
    held, mix, regions = held_out(folder), Weighting((False,), (1.0,)), 0.0
    rows = np.arange(len(held.rows))
    opened = time.perf_counter()
    evidence = mask_rules.collect(held, [mix])[0]
    collected, counter = time.perf_counter(), mask_rules.region_counter(held, mix)

    def count_regions(thresholds: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        nonlocal regions
        began = time.perf_counter()
        found = counter(thresholds)
        regions = time.perf_counter() - began
        return found

    problem = MaskProblem(evidence, "dice", np.ones(evidence.true.shape), count_regions)
    settings, parts = held.run.recipe.tune, Parts.of(held, rows)
    steps = mask_rules.steps_of(settings, evidence, problem.metric)
    fits = [Fits(problem, rows, parts.cells)] * len(parts.left_out)
    final, *others = parts.choices(fits, steps, settings, parts.left_out)
    nested = Nested.of(dict(zip(parts.left_out[1:], others, strict=True)), parts.partitions)
    ended = time.perf_counter()
    return {
        "read the table": opened - started,
        "decode, resize, histograms": collected - opened,
        "connected regions": regions,
        "choose": ended - collected - regions,
        "all": ended - started,
        "before": before,
        "after": peak_memory(),
        "optimistic": float(problem.score(problem.counts(final.decision, rows).sum(0))),
        "nested": float(np.median(nested.scores)),
        "kept": list(final.path),
    }


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT


def tune_all(count: int) -> None:
    """Prints time and memory of the whole of tune."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), count)
        command = [sys.executable, "-m", "benchmarks.tune_speed", "--measure", folder]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    print(f"All of tune, {count} masks, nested {found['nested']:.4f}, out-of-fold {found['optimistic']:.4f}, "
          f"kept: {', '.join(found['kept'])}.\n")  # fmt: skip
    parts = [name for name, value in found.items() if isinstance(value, float) and name not in ("nested", "optimistic")]
    print(f"| {' | '.join(parts)} | peak memory | of it predictions, mapped | imports |")
    print("|---" * (len(parts) + 3) + "|")
    memory = [found["after"], count * NETWORK[0] * NETWORK[1], found["before"]]
    shown = [f"{found[name]:.1f} s" for name in parts] + [f"{size / 2**20:.0f} MiB" for size in memory]
    print(f"| {' | '.join(shown)} |\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--loop", type=int, default=99)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--all", type=int, default=5635)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    print(f"{date.today()}, {processor()}, {os.cpu_count()} cores, numpy {np.__version__}, OpenCV {cv2.__version__}\n")
    if options.all:
        tune_all(options.all)
    if options.images:
        race(options.images, options.loop, options.rounds)


if __name__ == "__main__":
    main()
