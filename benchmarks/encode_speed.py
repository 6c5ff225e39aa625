"""Time of the encode stage, from uint8 probabilities to a checked submission, at the sizes of two competitions.

    python -m benchmarks.encode_speed [--cases tgs nerve] [--folds 5] [--repeats 3]

Draws synthetic probabilities (smooth blobs, 60 % of the test images with a mask) for each fold in a temporary work
folder. Then the functions of the stage do all of its work: the mean of the folds, resizing to native size, threshold
and minimum area, run lengths, writing, reading back, validation, guards against the training masks, and the record.
All folds are one file under several names, so more of it is in the file cache than in a real run. The best time is
reported.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import yaml

from benchmarks.rle_speed import processor
from pipeline.core import freshness
from pipeline.core.run import Run, open_run
from pipeline.encode import sanity, submission
from pipeline.encode.stage import EXPECT, execute
from pipeline.masks import decision, rle, statistics
from pipeline.predictions.files import read_probabilities
from pipeline.predictions.test_images import raw_test_files

FOLD = {"best_epoch": 1, "best_score": 0.5, "epochs": 1, "seconds": 1.0, "weights": {}, "compute": {}, "sha256": {}}


@dataclass(frozen=True)
class Case:
    test: int
    train: int
    shape: tuple[int, int]
    network: dict[str, Any]
    goal: float
    """The goal in seconds."""


CASES = {
    "tgs": Case(18_000, 4000, (101, 101), {"size": [128, 128], "fit": "pad"}, 15),
    "nerve": Case(5508, 5635, (420, 580), {"size": [224, 320]}, 20),
}


def main() -> None:
    options = parse_arguments()
    print(f"{date.today()}, {processor()}, {os.cpu_count()} cores, best of {options.repeats}\n")
    print("Python", platform.python_version(), "numpy", np.__version__, "OpenCV", cv2.__version__, "\n")
    print("| masks | folds averaged | file | encode, checked | of it check | goal |")
    print("|---|---|---|---|---|---|")
    for name in options.cases:
        with tempfile.TemporaryDirectory() as root:
            os.environ |= {"PIPELINE_ROOT": root, "PIPELINE_INPUT": f"{root}/input"}
            report(prepare(Path(root), CASES[name], options.folds), CASES[name], options)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time the encode stage.")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


def prepare(root: Path, case: Case, folds: int) -> Run:
    """Writes everything that the encode stage reads."""
    (root / "input" / "masks").mkdir(parents=True)
    (root / "input" / "masks" / "image.png").touch()
    ids = [f"t{number:05}" for number in range(case.test)]
    pd.DataFrame({"id": ids, "rle": ""}).to_csv(root / "input" / "masks" / "sample.csv", index=False)
    competition = {
        "title": "Masks", "train": {"images": "{id}.png", "masks": "train.csv"}, "test": {"images": "test/{id}.png"},
        "sample_submission": "sample.csv", "classes": ["thing"], "metric": "dice", "split": {"folds": folds},
    }  # fmt: skip
    recipe = {"competition": "masks.yaml", "image": case.network}
    for name, content in (("masks", competition), ("blobs", recipe)):
        (root / f"{name}.yaml").write_text(yaml.safe_dump(content))
    run = open_run(str(root / "blobs.yaml"))
    write_table(run, case, ids)
    write_predictions(run, case, ids)
    rule = decision.Rule(128, round(0.005 * case.shape[0] * case.shape[1]))
    result: dict[str, Any] = dict.fromkeys(EXPECT, 0.0)
    result |= {"rules": decision.described(decision.Rules((rule,)), ["thing"])}
    result |= {"share_empty_true": 0.4, "mean_true_area": 1.0}
    result |= {"oof": {"share_empty": 0.4, "mean_area": 1.0, "highest": 0.9}}
    run.postprocess.write_text(json.dumps(result))
    return run


def write_table(run: Run, case: Case, ids: list[str]) -> None:
    """Writes both tables, and statistics of the training masks, which are drawn like the test masks."""
    random, texts = np.random.default_rng(1), []
    for _ in range(case.train):
        probability = cv2.resize(blobs(random, (128, 128)), case.shape[::-1])
        texts.append(rle.encode(probability >= 128))
    rows = {
        "image_id": [*(f"a{number}" for number in range(case.train)), *ids],
        "subset": ["train"] * case.train + ["test"] * case.test, "path": "image.png", "group": "",
        "height": case.shape[0], "width": case.shape[1], "rle_thing": texts + [""] * case.test,
        "area_thing": [rle.area(text) for text in texts] + [0] * case.test,
    }  # fmt: skip
    run.table.parent.mkdir(parents=True)
    images = pd.DataFrame(rows)
    for path, subset in ((run.table, "train"), (run.test_table, "test")):
        images[images["subset"] == subset].to_parquet(path, index=False)
    run.folder.mkdir()
    statistics.save(run.mask_statistics, statistics.of_table(images, ["thing"], False))


def write_predictions(run: Run, case: Case, ids: list[str]) -> None:
    """Writes one file of probabilities and links it under one name per fold."""
    random = np.random.default_rng(0)
    first, *others = [run.predictions("test", fold) for fold in run.test_folds()]
    first.parent.mkdir(parents=True)
    size = tuple(case.network["size"])
    array = np.lib.format.open_memmap(first, mode="w+", dtype=np.uint8, shape=(case.test, 1, *size))
    for row in range(case.test):
        array[row, 0] = blobs(random, size)
    array.flush()
    pd.DataFrame({"image_id": ids}).to_csv(first.with_suffix(".csv"), index=False)
    for path in others:
        os.link(first, path)
        os.link(first.with_suffix(".csv"), path.with_suffix(".csv"))
    manifest: dict[str, Any] = {"finished": "", "seconds": 0, "settings": {}, "code": {}, "outputs": {}}
    manifest["inputs"] = freshness.fingerprint(raw_test_files(run), {})
    for path in (first, *others):
        path.with_suffix(".manifest.json").write_text(json.dumps(manifest))
    for fold in run.trained_folds():
        run.fold_folder(fold).mkdir()
        (run.fold_folder(fold) / "fold.json").write_text(json.dumps(FOLD))


def blobs(random: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Returns probabilities (h, w) uint8 with a few soft blobs, or with none."""
    if random.random() > 0.6:
        return np.full(size, 3, np.uint8)
    level = cv2.resize(random.standard_normal((6, 8)).astype(np.float32), size[::-1], interpolation=cv2.INTER_CUBIC)
    return (255 / (1 + np.exp(6 - 8 * level))).astype(np.uint8)


def report(run: Run, case: Case, options: argparse.Namespace) -> None:
    for fold in run.test_folds():
        read_probabilities(run.predictions("test", fold))[0].max()  # reads the file into the file cache
    whole = best(lambda: list(execute(run, [])), options.repeats)
    want = submission.expected(run.competition, run.input, run.competition_folder)
    check = best(lambda: sanity.examine(run.submission, want, run.competition), options.repeats)
    size = run.submission.stat().st_size / 2**20
    rows, columns = case.shape
    print(
        f"| {case.test} of {rows}×{columns} | {options.folds} | {size:.0f} MiB | {whole:.1f} s | {check:.1f} s | "
        f"{case.goal:.0f} s |"
    )


def best(work: Callable[[], Any], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    main()
