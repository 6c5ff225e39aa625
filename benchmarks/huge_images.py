"""Time and memory of one huge TIFF, from the file to the submission.

    python -m benchmarks.huge_images FOLDER [--side 20000]

Draws a competition in FOLDER: three training images of 4096 × 4096 with masks as run-length text, and one test image of
side × side pixels, all RGB TIFFs in tiles of 512 × 512 (deflate). Trains a tiny network for one epoch. Every stage runs
in its own process, by the command that a user would type. Prints the seconds and the peak resident memory of each
stage. At the end it checks that the submission's mask has the size of the test image.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

STAGES = ("decode", "clean", "split", "train", "validate", "tune", "predict", "encode")
TILE, TRAINING_SIDE = 512, 4096
COMPETITION = """title: Huge
train: {images: "train/{id}.tif", masks: train.csv}
test: {images: "test/{id}.tif"}
columns: {id: id, rle: rle}
classes: [blob]
metric: dice
windows: {size: [2048, 2048], overlap: 0.125}
split: {folds: 3}
clean: {duplicates: {search: false}}
"""
RECIPE = """competition: huge.yaml
image: {size: [256, 256], store: [512, 512], channels: 3}
model: {architecture: ConfigurableUnet, encoder: plain, weights: none,
        options: {channels: [8, 16, 32], decoder_channels: [16, 8]}}
train: {epochs: 1, batch_size: 8, folds: [0]}
predict: {batch_size: 8}
"""


def main() -> None:
    """Draws missing files and prints one row per stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--side", type=int, default=20000)
    parser.add_argument("--draw", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.draw:
        _draw(options.folder, options.side)
        return
    (options.folder / "huge.yaml").parent.mkdir(parents=True, exist_ok=True)
    (options.folder / "huge.yaml").write_text(COMPETITION)
    (options.folder / "recipe.yaml").write_text(RECIPE)
    own = [sys.executable, "-m", "benchmarks.huge_images", str(options.folder), "--side", str(options.side), "--draw"]
    subprocess.run(own, check=True)
    print("| stage | seconds | peak memory, MiB |\n|---|---|---|")
    for stage in STAGES:
        seconds, peak = _measured(stage, options.folder)
        print(f"| {stage} | {seconds:.1f} | {peak:.0f} |", flush=True)
    _check(options.folder, options.side)


def _measured(stage: str, folder: Path) -> tuple[float, float]:
    """Runs one stage and returns its seconds and its peak memory in MiB."""
    command = [sys.executable, "-m", "pipeline", stage, str(folder / "recipe.yaml"), "--force"]
    started = time.perf_counter()
    with (folder / f"{stage}.log").open("w") as log:
        process = subprocess.Popen(command, env=os.environ | {"PIPELINE_ROOT": str(folder)}, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit((folder / f"{stage}.log").read_text()[-2000:])
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def _draw(folder: Path, side: int) -> None:
    import numpy as np
    import pandas as pd
    import tifffile

    from pipeline.masks import rle

    def tiles(length: int, seed: int) -> Iterator[np.ndarray]:
        for top in range(0, length, TILE):
            for left in range(0, length, TILE):
                yield tile(top, left, seed)

    def tile(top: int, left: int, seed: int) -> np.ndarray:
        noise = np.random.default_rng((seed, top, left)).integers(0, 8, (TILE, TILE, 3), dtype=np.uint8)
        return np.where(blobs(top, left, seed)[..., None], 160, 60).astype(np.uint8) + noise

    def blobs(top: int, left: int, seed: int) -> np.ndarray:
        rows, columns = np.arange(top, top + TILE)[:, None], np.arange(left, left + TILE)
        return np.sin(rows / 300 + seed) * np.sin(columns / 270 + 2 * seed) > 0.8

    place, masks = folder / "input" / "huge", []
    for name, length, seed in (("train/a", TRAINING_SIDE, 1), ("train/b", TRAINING_SIDE, 2),
                               ("train/c", TRAINING_SIDE, 3), ("test/t", side, 4)):  # fmt: skip
        path = place / f"{name}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.startswith("train"):
            size = range(0, length, TILE)
            mask = np.block([[blobs(top, left, seed) for left in size] for top in size])
            masks.append({"id": path.stem, "rle": rle.encode(mask.astype(np.uint8))})
        if not path.exists():
            with tifffile.TiffWriter(path) as file:
                file.write(
                    tiles(length, seed), shape=(length, length, 3), dtype=np.uint8, tile=(TILE, TILE),
                    photometric="rgb", compression="zlib", compressionargs={"level": 1},
                )  # fmt: skip
    pd.DataFrame(masks).to_csv(place / "train.csv", index=False)


def _check(folder: Path, side: int) -> None:
    import pandas as pd

    from pipeline.masks import rle

    (text,) = pd.read_csv(folder / "submissions" / "recipe.csv", dtype=str, keep_default_na=False)["rle"]
    runs = rle.parse(text)
    rle.check(runs, (side, side))
    print(f"the mask covers {runs[:, 1].sum() / side**2:.1%} of the image, in {len(runs)} runs")


if __name__ == "__main__":
    main()
