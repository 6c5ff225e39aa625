"""Processor time, memory and disk of each stage, by the number of images.

    python -m benchmarks.scale FOLDER [--sizes 1000x128 4000x128 16000x128 64000x64] [--rounds 3] [--table]

For every size, draws a synthetic competition in FOLDER with that many training and that many test images (PNG, masks as
run-length text in a CSV, twenty images per patient, one image in a hundred a near-duplicate of the one before). The
out-of-fold and test probabilities are made from the masks, so everything except training and prediction runs. Every
stage runs in its own process, by the command that a user would type. FOLDER/results.csv has one row per stage. Rows
that exist are not measured again, and the data are deleted at the end unless --keep is given. Later rounds run all
stages again. --table prints the results as Markdown and measures nothing.

Time is processor time (user and system, all threads). Memory is given twice: the peak of resident memory, which
includes mapped files that the system may drop at any time, and the peak of allocated memory (RssAnon, read from /proc
twenty times per second), which must fit.
"""

import argparse
import csv
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

# numpy, OpenCV and the pipeline are imported only in the process that draws images: on Linux the peak memory of a child
# includes what its parent held when the child was started.

SIZES = ("1000x128", "4000x128", "16000x128", "64000x64")
PER_GROUP, DUPLICATE_EVERY, EMPTY = 20, 100, 0.4
FOLDS = 5
START = "start"
"""A command that only imports; its cost is part of every row."""
OF_BOTH = ("draw", "decode", "status")
"""Commands that process training and test images; the others process only one of both."""
FIELDS = ("round", "images", "side", "stage", "cpu_s", "wall_s", "peak_mib", "allocated_mib", "written_bytes", "date")

RECIPE = """competition: scale.yaml
image: {{size: [{side}, {side}], fit: stretch, channels: 1}}
model: {{architecture: Unet, encoder: resnet18, weights: none}}
"""
COMPETITION = f"""title: Synthetic blobs
reader: rle_csv
train: {{images: "train/{{id}}.png", masks: train.csv}}
test: {{images: "test/{{id}}.png"}}
sample_submission: sample_submission.csv
columns: {{id: image_id, rle: rle}}
rle: {{order: column, base: 1, empty: ""}}
classes: [blob]
group: patient
metric: dice
split: {{folds: {FOLDS}}}
"""


class Size(NamedTuple):
    """Number of training images, which is also that of test images, and side in pixels."""

    images: int
    side: int

    @classmethod
    def of(cls, text: str) -> "Size":
        images, side = text.split("x")
        return cls(int(images), int(side))

    @property
    def name(self) -> str:
        return f"{self.images}x{self.side}"


class Cost(NamedTuple):
    """Seconds and MiB of one command."""

    cpu: float
    wall: float
    peak: float
    allocated: float


# --- the competition -------------------------------------------------------------------------------------------------


def draw(folder: Path, size: Size) -> None:
    """Writes the raw files, the two YAMLs and the predictions of one size."""
    raw, arrays = folder / "input" / "scale", folder / "arrays"
    for path in (raw / "train", raw / "test", arrays):
        path.mkdir(parents=True, exist_ok=True)
    (folder / "scale.yaml").write_text(COMPETITION, encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE.format(side=size.side), encoding="utf-8")
    train = [(f"a{number:06d}", number) for number in range(size.images)]
    test = [(f"b{number:06d}", size.images + number) for number in range(size.images)]
    texts = _draw_subset(raw / "train", arrays / "oof.npy", train, size.side)
    patients = (f"p{number // PER_GROUP}" for _, number in train)
    _write_csv(raw / "train.csv", ("image_id", "patient", "rle"), zip(dict(train), patients, texts, strict=True))
    _draw_subset(raw / "test", arrays / "test.npy", test, size.side)
    _write_csv(raw / "sample_submission.csv", ("image_id", "rle"), ((image_id, "1 1") for image_id, _ in test))


def _draw_subset(folder: Path, predictions: Path, images: Sequence[tuple[str, int]], side: int) -> list[str]:
    """Writes the images of a subset and their predictions, and returns their masks as text."""
    import cv2
    import numpy as np

    from pipeline.masks import rle

    array = np.lib.format.open_memmap(predictions, "w+", np.uint8, (len(images), side, side))
    texts = []
    for row, (image_id, number) in enumerate(images):
        picture, mask, array[row] = draw_one(number, side)
        cv2.imwrite(str(folder / f"{image_id}.png"), picture, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        texts.append(rle.encode(mask, rle.Convention("column", 1)))
    array.flush()
    _write_csv(predictions.with_suffix(".csv"), ("image_id",), ((image_id,) for image_id, _ in images))
    return texts


def draw_one(number: int, side: int):  # type: ignore[no-untyped-def]  # numpy is not imported yet
    """Returns an image, its mask and its predicted probability, each (side, side) uint8; near-duplicates differ in
    their noise."""
    import cv2
    import numpy as np

    again = number % DUPLICATE_EVERY == DUPLICATE_EVERY - 1
    random, noise = np.random.default_rng(number - again), np.random.default_rng([1, number])

    def smooth(cells: int) -> np.ndarray:
        coarse = random.normal(size=(cells, cells)).astype(np.float32)
        return cv2.resize(coarse, (side, side), interpolation=cv2.INTER_LINEAR)

    present = random.random() > EMPTY
    down, across = np.mgrid[:side, :side].astype(np.float32) / side
    centre, radius = random.uniform(0.25, 0.75, 2), random.uniform(0.08, 0.22, 2)
    shape = 1 - ((down - centre[0]) / radius[0]) ** 2 - ((across - centre[1]) / radius[1]) ** 2 + 0.2 * smooth(6)
    mask = (shape > 0).astype(np.uint8) if present else np.zeros((side, side), np.uint8)
    picture = 110 + 25 * smooth(12) + 40 * mask + noise.integers(-4, 5, (side, side))
    sure = random.normal(1.5, 1.5) if present else random.normal(-3, 1.5)
    seen = np.clip(3 * shape + smooth(10), -6, 4) + sure
    probability = 255 / (1 + np.exp(-seen))
    return np.clip(picture, 0, 255).astype(np.uint8), mask, np.rint(probability).astype(np.uint8)


def _write_csv(path: Path, heading: Sequence[str], rows) -> None:  # type: ignore[no-untyped-def]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(heading)
        writer.writerows(rows)


# --- measuring -------------------------------------------------------------------------------------------------------


def commands(folder: Path, size: Size, again: bool = False) -> Iterator[tuple[str, list[str]]]:
    """Yields name and command of every stage in order; `again` skips drawing and forces finished stages."""
    python, pipeline = sys.executable, [sys.executable, "-m", "pipeline"]
    recipe, oof, test = (str(folder / name) for name in ("recipe.yaml", "arrays/oof.npy", "arrays/test.npy"))
    brought = ["mine", "--competition", str(folder / "scale.yaml"), "--oof", oof, "--test", test]
    force = ["--force"] if again else []
    if not again:
        yield "draw", [python, "-m", "benchmarks.scale", str(folder), "--draw", size.name]
    yield START, [python, "-c", "import pipeline.decode.stage, pipeline.tune.stage, scipy.sparse.csgraph, sklearn"]
    for stage in ("decode", "clean", "split"):
        yield stage, [*pipeline, stage, recipe, *force]
    for stage in ("validate", "tune", "predict", "encode"):
        yield stage, [*pipeline, stage, *brought, *force]
    yield "status", [*pipeline, "status", *brought]


def measure(command: Sequence[str], folder: Path) -> Cost:
    """Runs a command in its own process with one thread per library call, and returns its cost.

    Raises:
        SystemExit: the command fails; its last lines say why.
    """
    environment = {**os.environ, "PIPELINE_ROOT": str(folder), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment.pop("PIPELINE_INPUT", None)
    log = folder / "log.txt"
    started = time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
        watcher = _Watcher(process.pid)
        watcher.start()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - started
    watcher.stop()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text()[-2000:]}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Cost(used.ru_utime + used.ru_stime, wall, used.ru_maxrss * unit / 2**20, watcher.highest / 2**10)


class _Watcher(threading.Thread):
    """Samples the allocated memory of a process, in KiB, until it is stopped or the process ends."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.highest, self._status, self._ended = 0, Path(f"/proc/{pid}/status"), threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.05):
            try:
                lines = self._status.read_text().splitlines()
            except OSError:
                return
            found = [int(line.split()[1]) for line in lines if line.startswith("RssAnon")]
            self.highest = max([self.highest, *found])

    def stop(self) -> None:
        self._ended.set()
        self.join()


def written(folder: Path, since: float) -> int:
    """Returns the total bytes of files that were written after a time."""
    stats = (path.stat() for path in folder.rglob("*") if path.is_file() and path.name != "log.txt")
    return sum(stat.st_size for stat in stats if stat.st_mtime >= since)


def measure_all(folder: Path, sizes: Sequence[Size], results: Path, rounds: int) -> None:
    """Measures every stage, round by round and size by size, and appends rows that do not exist yet.

    Raises:
        SystemExit: a stage fails, or a size has only some of its rows and its data were deleted.
    """
    done = {(int(row["round"]), size_of(row), row["stage"]) for row in read(results)}
    for number in range(rounds):
        for size in sizes:
            own = folder / size.name
            waiting = [one for one in commands(own, size, again=number > 0) if (number, size, one[0]) not in done]
            if waiting and waiting[0][0] != "draw" and not (own / "arrays" / "test.csv").exists():
                raise SystemExit(f"{own} is gone, and {results} has a part of its rows: remove these to measure again.")
            own.mkdir(parents=True, exist_ok=True)
            for stage, command in waiting:
                since = time.time()
                cost = measure(command, own)
                values = [*(round(value, 2) for value in cost), written(own, since), date.today()]
                row = [number, size.images, size.side, stage, *values]
                _append(results, row)
                print(*row, flush=True)


def size_of(row: dict[str, str]) -> Size:
    """Returns the size of a row of the results."""
    return Size(int(row["images"]), int(row["side"]))


def read(results: Path) -> list[dict[str, str]]:
    if not results.exists():
        return []
    with results.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _append(results: Path, row: Sequence[object]) -> None:
    new = not results.exists()
    with results.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(FIELDS)
        writer.writerow(row)


# --- the table -------------------------------------------------------------------------------------------------------


def table(rows: Sequence[dict[str, str]]) -> str:
    """Returns the results as Markdown: of several rounds the least time, since other work on the machine only adds to
    it, and the most memory."""
    sizes, stages = sorted(set(map(size_of, rows))), list(dict.fromkeys(row["stage"] for row in rows))
    found: dict[tuple[Size, str], list[dict[str, str]]] = {}
    for row in rows:
        found.setdefault((size_of(row), row["stage"]), []).append(row)

    def values(stage: str, field: str, pick: Callable[[Iterable[float]], float]) -> list[float | None]:
        own = (found.get((size, stage)) for size in sizes)
        return [pick(float(row[field]) for row in some) if some else None for some in own]

    parts = []
    for field, title, pick, scale in (
        ("cpu_s", "processor time, s", min, 1.0),
        ("allocated_mib", "peak allocated memory, MiB", max, 1.0),
        ("peak_mib", "peak resident memory, MiB", max, 1.0),
        ("written_bytes", "written, MB", max, 1e-6),
    ):
        steps = _steps(sizes) if field != "peak_mib" else []
        unit = {"cpu_s": "ms", "allocated_mib": "KiB", "written_bytes": "kB"}.get(field, "")
        heading = [title, *(f"{size.images:,} of {size.side}²" for size in sizes)]
        heading += [f"{unit} per image, {low.images:,} to {high.images:,}" for low, high in steps]
        lines = [f"| {' | '.join(heading)} |", "|---" * len(heading) + "|"]
        for stage in stages:
            own = [None if one is None else scale * one for one in values(stage, field, pick)]
            by_size = dict(zip(sizes, own, strict=True))
            slopes = [_slope(by_size, low, high, stage, 1024 if unit == "KiB" else 1000) for low, high in steps]
            lines.append(f"| {' | '.join([stage, *map(_cell, own), *map(_cell, slopes)])} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _steps(sizes: Sequence[Size]) -> list[tuple[Size, Size]]:
    """Returns pairs of consecutive sizes with the same side."""
    return [(low, high) for low, high in zip(sizes, sizes[1:], strict=False) if low.side == high.side]


def _slope(values: dict[Size, float | None], low: Size, high: Size, stage: str, unit: float) -> float | None:
    """Returns the cost per additional image between two sizes; the cost of starting cancels out."""
    first, last = values[low], values[high]
    if first is None or last is None or stage == START:
        return None
    return unit * (last - first) / ((high.images - low.images) * (2 if stage in OF_BOTH else 1))


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 100 else f"{value:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="IMAGESxSIDE")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--draw", help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.folder.absolute()
    if options.draw:
        draw(folder, Size.of(options.draw))
        return
    results = folder / "results.csv"
    if not options.table:
        folder.mkdir(parents=True, exist_ok=True)
        sizes = list(map(Size.of, options.sizes))
        measure_all(folder, sizes, results, options.rounds)
        for size in () if options.keep else sizes:
            shutil.rmtree(folder / size.name)
    print(table(read(results)))


if __name__ == "__main__":
    main()
