"""The test score of `--quick` with the recipe that `new` chooses, trained on few images.

    python -m benchmarks.few_images FOLDER [--images 24 60 120] [--seeds 0]

For every number of training images and every seed, cells are drawn whose shapes, brightness and background differ from
those of the sample. `new` chooses a recipe, and `run NAME --quick` makes a submission for 40 test images with known
masks. The table shows its Dice, that of an empty mask everywhere and that of Otsu's threshold on each image, and the
verdict, which must give a reason if the network is not better than both.
"""

import argparse
import os
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from pipeline.core.files import read_json
from pipeline.masks import rle
from pipeline.masks.overlaps import dice

SHAPE, TESTS = (120, 160), 40


def draw(folder: Path, images: int, seed: int) -> dict[str, np.ndarray]:
    """Writes training and test images of dim and bright cells on an uneven background, with bright debris, and
    returns the test masks (h, w) uint8 by id."""
    random = np.random.default_rng(seed)
    truth, rows = {}, []
    for number in range(images + TESTS):
        part, name = ("train", f"c{number:03}") if number < images else ("test", f"t{number:03}")
        coarse = random.integers(30, 120, (4, 5)).astype(np.uint8)
        image = cv2.resize(coarse, SHAPE[::-1], interpolation=cv2.INTER_CUBIC).astype(np.float32)
        mask = np.zeros(SHAPE, np.uint8)
        for _ in range(int(random.integers(0, 6))):
            cell = np.zeros(SHAPE, np.uint8)
            centre = int(random.integers(0, SHAPE[1])), int(random.integers(0, SHAPE[0]))
            axes = int(random.integers(7, 18)), int(random.integers(6, 14))
            cv2.ellipse(cell, centre, axes, float(random.uniform(0, 180)), 0, 360, 1, -1)
            image += cell * random.uniform(20, 60) + cv2.GaussianBlur(cell * 20.0, (0, 0), 2)
            mask |= cell
        for _ in range(int(random.integers(0, 5))):  # debris: small and very bright
            centre = int(random.integers(0, SHAPE[1])), int(random.integers(0, SHAPE[0]))
            cv2.circle(image, centre, int(random.integers(1, 4)), float(random.uniform(180, 255)), -1)
        image += random.normal(0, 8, SHAPE)
        path = folder / part / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image.clip(0, 255).astype(np.uint8))
        if part == "train":
            rows.append({"id": name, "rle": rle.encode(mask)})
        else:
            truth[name] = mask
    pd.DataFrame(rows).to_csv(folder / "train.csv", index=False)
    return truth


def otsu(path: Path) -> np.ndarray:
    """Returns the brighter part of an image (h, w) uint8 by Otsu's threshold."""
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert image is not None
    return cv2.threshold(image, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[1]


def mean_dice(masks: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> float:
    """Returns the mean Dice of masks by id; it is 1 for two empty masks."""
    pairs = [(masks[name], true) for name, true in truth.items()]
    scores = [dice(np.array((one & two).sum()), np.array(one.sum()), np.array(two.sum())) for one, two in pairs]
    return float(np.mean(scores))


def row(folder: Path, images: int, seed: int) -> str:
    """Runs one number of training images and one seed, and returns the row of the table."""
    root = (folder / f"{images}_{seed}").absolute()
    truth = draw(root / "raw", images, seed)
    environment = {**os.environ, "PIPELINE_ROOT": str(root)}
    environment.pop("PIPELINE_INPUT", None)
    call = [sys.executable, "-m", "pipeline"]
    new = [*call, "new", "cells", "--from", str(root / "raw"), "--to", str(root), "--force", "--set", "metric=dice"]
    subprocess.run(new, env=environment, check=True, stdout=subprocess.DEVNULL)
    started = time.perf_counter()
    subprocess.run([*call, "run", str(root / "competitions/cells.yaml"), "--quick"], env=environment, check=True)
    seconds = time.perf_counter() - started
    submission = pd.read_csv(root / "submissions/cells-quick.csv", dtype=str, keep_default_na=False)
    ours = {name: rle.decode(text, SHAPE) for name, text in zip(submission["id"], submission["rle"], strict=True)}
    record = read_json(root / "submissions/cells-quick.json")
    others = {name: otsu(root / "raw/test" / f"{name}.png") for name in truth}
    empty = {name: np.zeros(SHAPE, np.uint8) for name in truth}
    kinds = ", ".join(one["kind"] for one in record["reasons"] if one["level"] != "note")
    return (
        f"| {images} | {seed} | {mean_dice(ours, truth):.3f} | {mean_dice(empty, truth):.3f} | "
        f"{mean_dice(others, truth):.3f} | {record['postprocess']['nested']:.3f} | {record['verdict']}"
        f"{f': {kinds}' if kinds else ''} | {seconds:.0f} s |"
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, nargs="+", default=[24, 60, 120])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    rows = [row(options.folder, images, seed) for images in options.images for seed in options.seeds]
    print(f"{date.today()}, {os.environ.get('OMP_NUM_THREADS', os.cpu_count())} threads")
    print("| images | seed | Dice on 40 test images | all empty | Otsu | nested | verdict | time |")
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
