"""The gain of separating touching objects, on drawn nuclei that touch, as in Data Science Bowl 2018.

    python -m benchmarks.touching FOLDER [--seeds 0 1] [--epochs 30] [--ways border …]

For every seed a competition is drawn (80 training and 40 test images of 128×128, one row of run lengths per nucleus).
Small networks are trained on the same two folds: one for the masks alone, one that also learns borders, one that also
learns distances. The first is tuned twice, with connected regions alone and with a watershed of the mask. Every
submission is scored against the known test nuclei (mean average precision over the IoU 0.5 to 0.95), with its out-of-
fold and nested scores. The first rows are the upper limit: true masks as predictions, with and without true separators.
For every seed, `FOLDER/seed_<s>/pictures.png` shows images, true nuclei, and the nuclei that each way found.
"""

import argparse
import os
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import yaml

from pipeline.core.files import read_json
from pipeline.masks import rle
from pipeline.masks.instances import from_texts, instance_precision, matches, regions_of
from pipeline.masks.separation import Separation, separated
from pipeline.masks.separators import FULL, border_of, distance_of

SHAPE, TRAIN, TEST = (128, 128), 80, 40
LONE = ["threshold", "area", "components"]
WAYS: dict[str, dict[str, Any]] = {
    "connected regions": {"model.instances": "none", "tune.steps": LONE},
    "watershed of the mask": {"model.instances": "none"},
    "border": {"model.instances": "border"},
    "distance": {"model.instances": "distance"},
}
RECIPE: dict[str, Any] = {
    "image": {"size": list(SHAPE), "channels": 1, "normalize": "dataset"},
    "model": {"architecture": "ConfigurableUnet", "encoder": "plain", "options": {"channels": [8, 16, 32, 64]}},
    "augment": [{"D4": {"p": 1.0}}],
    "train": {"batch_size": 4, "learning_rate": 3.0e-3, "precision": "32"},
}


def nuclei(random: np.random.Generator) -> np.ndarray:
    """Returns a label map (h, w) int32 of ellipses, many of which touch another one."""
    labels = np.zeros(SHAPE, np.int32)
    centres: list[tuple[float, float, float]] = []
    size = random.uniform(6, 11)
    for _ in range(int(random.integers(10, 26))):
        axes = size * random.uniform(0.75, 1.3, 2)
        if centres and random.random() < 0.25:
            x, y, reach = centres[random.integers(len(centres))]
            angle, far = random.uniform(0, 2 * np.pi), (reach + axes.mean()) * random.uniform(0.9, 1.02)
            centre = x + far * np.cos(angle), y + far * np.sin(angle)
        else:
            centre = random.uniform(4, SHAPE[1] - 4), random.uniform(4, SHAPE[0] - 4)
        drawn = np.zeros(SHAPE, np.uint8)
        place, turned = tuple(map(round, centre)), float(random.uniform(0, 180))
        cv2.ellipse(drawn, place, tuple(map(round, axes)), turned, 0, 360, 1, -1)
        free = (drawn == 1) & (labels == 0)
        if drawn.sum() < 40 or free.sum() < 0.8 * drawn.sum() or regions_of(free.view(np.uint8)).max() > 1:
            continue
        labels[free] = labels.max() + 1
        centres.append((*centre, float(axes.mean())))
    return labels


def picture(labels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Returns a fluorescence image (h, w) uint8 of nuclei: blurred, of different brightness, on uneven ground."""
    ground = cv2.resize(random.uniform(10, 40, (4, 4)).astype(np.float32), SHAPE[::-1], interpolation=cv2.INTER_CUBIC)
    brightness = random.uniform(60, 150, labels.max() + 1).astype(np.float32)
    brightness[0] = 0
    depth = distance_of(labels).astype(np.float32) / FULL
    image = cv2.GaussianBlur(ground + brightness[labels] * (0.7 + 0.3 * depth), (0, 0), 1.2)
    return (image + random.normal(0, 7, SHAPE)).clip(0, 255).astype(np.uint8)


def draw(folder: Path, seed: int) -> dict[str, np.ndarray]:
    """Writes a competition and its recipe into a folder, and returns the true label maps of the test images by id."""
    random, rows, truth = np.random.default_rng(seed), {"train": [], "test": []}, {}  # type: ignore[var-annotated]
    for number in range(TRAIN + TEST):
        part, name = ("train", f"n{number:03}") if number < TRAIN else ("test", f"t{number:03}")
        labels = nuclei(random)
        path = folder / "input" / "nuclei" / part / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), picture(labels, random))
        texts = [rle.encode((labels == one).astype(np.uint8)) for one in range(1, labels.max() + 1)]
        rows[part] += [{"ImageId": name, "EncodedPixels": text} for text in texts]
        if part == "test":
            truth[name] = labels
    raw = folder / "input" / "nuclei"
    pd.DataFrame(rows["train"]).to_csv(raw / "train.csv", index=False)
    pd.DataFrame(rows["test"]).to_csv(raw / "truth.csv", index=False)
    columns = {"id": "ImageId", "rle": "EncodedPixels", "rows": "instance", "absent": "empty"}
    competition = {
        "title": "Drawn nuclei", "reader": "rle_csv", "train": {"images": "train/{id}.png", "masks": "train.csv"},
        "test": {"images": "test/{id}.png"}, "columns": columns, "submission": columns, "classes": ["nucleus"],
        "metric": "instance_precision", "split": {"folds": 2},
    }  # fmt: skip
    (folder / "nuclei.yaml").write_text(yaml.safe_dump(competition))
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"competition": "nuclei.yaml", **RECIPE}))
    return truth


def precision(found: np.ndarray, true: np.ndarray) -> float:
    """Returns the average precision of label maps (h, w) int32, over the IoU 0.5 to 0.95."""
    return float(instance_precision(*matches(found[None], true[None]))[0])


def ceilings(truth: dict[str, np.ndarray]) -> dict[str, float]:
    """Returns the mean average precision of true masks by connected regions, and with true borders and distances."""
    found: dict[str, list[float]] = {"connected regions": [], "shape": [], "border": [], "distance": []}
    for labels in truth.values():
        mask = (labels > 0).astype(np.uint8)
        planes = {"border": 255 * border_of(labels), "distance": distance_of(labels)}
        ways = {"shape": Separation("shape", 4), "border": Separation("border", 128)}
        ways |= {"distance": Separation("distance", 128)}
        found["connected regions"].append(precision(regions_of(mask), labels))
        for name, way in ways.items():
            found[name].append(precision(separated(mask, 255 * mask, planes.get(name), way), labels))
    return {name: float(np.mean(values)) for name, values in found.items()}


def run(folder: Path, way: str, seed: int, epochs: int) -> dict[str, float]:
    """Returns the scores of a run with one way to separate nuclei: on the test images, nested and out-of-fold."""
    environment = {**os.environ, "PIPELINE_ROOT": str(folder), "PIPELINE_INPUT": str(folder / "input")}
    settings = {**WAYS[way], "train.epochs": epochs, "train.seeds": [seed]}
    name, python = settings["model.instances"], [sys.executable, "-m", "pipeline"]
    changed = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    command = [*python, "run", str(folder / "recipe.yaml"), "--name", name, *changed, "--to", "encode"]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    submission = folder / "submissions" / f"{name}.csv"
    kept = folder / f"{way.replace(' ', '_')}.csv"
    kept.write_bytes(submission.read_bytes())
    truth = folder / "input" / "nuclei" / "truth.csv"
    scored = [*python, "score", str(kept), str(truth), "--competition", str(folder / "nuclei.yaml"), "--json"]
    said = subprocess.run(scored, env=environment, check=True, capture_output=True, text=True).stdout
    result = read_json(folder / "work" / "nuclei" / name / "postprocess.json")
    (rule,) = result["rules"].values()
    print(f"  {way}: {rule['separation']} at threshold {rule['threshold']}", flush=True)
    test = yaml.safe_load(said)["score"]
    return {"test": test, "nested": result["nested"], "out of fold": result["score"], "untuned": result["untuned"]}


def show(folder: Path, truth: dict[str, np.ndarray], ways: list[str], count: int = 4) -> None:
    """Writes pictures of test images, with their true nuclei and the nuclei that each way found."""
    random = np.random.default_rng(1)
    colours = random.integers(70, 256, (200, 3)).astype(np.uint8)
    colours[0] = 0
    rows = []
    for name, labels in list(truth.items())[:count]:
        image = cv2.imread(str(folder / "input" / "nuclei" / "test" / f"{name}.png"))
        row = [image, colours[labels]]
        for way in ways:
            table = pd.read_csv(folder / f"{way.replace(' ', '_')}.csv", keep_default_na=False)
            texts = table["EncodedPixels"][table["ImageId"] == name].tolist()
            row.append(colours[from_texts(texts, SHAPE)])
        rows.append(np.concatenate([cv2.copyMakeBorder(one, 2, 2, 2, 2, cv2.BORDER_CONSTANT) for one in row], axis=1))
    sheet = cv2.resize(np.concatenate(rows), None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    cv2.imwrite(str(folder / "pictures.png"), sheet)


def main() -> None:
    """Prints one table per seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--ways", choices=WAYS, nargs="+", default=list(WAYS))
    options = parser.parse_args()
    print(date.today())
    for seed in options.seeds:
        folder = options.folder.resolve() / f"seed_{seed}"
        truth = draw(folder, seed)
        print(
            f"seed {seed}: true masks", {name: round(value, 4) for name, value in ceilings(truth).items()}, flush=True
        )
        print("| way | test | nested | out of fold | untuned | seconds |")
        for way in options.ways:
            begun = time.perf_counter()
            scores = run(folder, way, seed, options.epochs)
            figures = " | ".join(f"{value:.4f}" for value in scores.values())
            print(f"| {way} | {figures} | {time.perf_counter() - begun:.0f} |", flush=True)
        show(folder, truth, options.ways)


if __name__ == "__main__":
    main()
