"""Size of the report of a whole competition, and the time in which a browser opens and sorts it.

    python -m benchmarks.report_size FOLDER [--images 5635] [--groups 47]

Fakes the files of a finished run in FOLDER (drawn ultrasound images of 420×580; predictions that are the true masks,
moved and blurred), makes its report and opens it in headless Chromium, if it is installed. Prints the seconds until the
table is shown, and those of sorting it by three columns.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import time
from datetime import date
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from pipeline.core.files import write_text
from pipeline.core.run import Run, open_run
from pipeline.decode import table
from pipeline.masks import decision, rle
from pipeline.masks.overlaps import dice
from pipeline.predictions.files import write_probabilities
from pipeline.report import page, sections

SHAPE = (420, 580)
SIZE = (96, 128)
"""Rows and columns of the probabilities."""
TIMED = """<script>
addEventListener("load", () => {
  const opened = performance.now(), sorted = {}
  for (const name of ["id", "score", "size"]) {
    const start = performance.now()
    document.querySelector(`th[data-sort=${name}] button`).click()
    document.body.getBoundingClientRect()
    sorted[name] = Math.round(performance.now() - start)
  }
  const rows = document.querySelectorAll("#explorer tbody tr").length
  document.body.dataset.timed = JSON.stringify({ opened: Math.round(opened), sorted, rows })
})
</script>"""


def draw(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns an image and its mask, each (420, 580) uint8: speckle, and an ellipse in 40 % of the images."""
    rng = np.random.default_rng(number)
    ground = cv2.GaussianBlur(rng.gamma(1.2, 60, SHAPE).astype(np.float32), (0, 0), 1.2)
    layers = cv2.resize(rng.random((12, 3)).astype(np.float32), SHAPE[::-1], interpolation=cv2.INTER_CUBIC)
    mask = np.zeros(SHAPE, np.uint8)
    if rng.random() < 0.41:
        centre = (int(rng.integers(150, 430)), int(rng.integers(120, 300)))
        axes = (int(rng.integers(30, 75)), int(rng.integers(20, 45)))
        cv2.ellipse(mask, centre, axes, float(rng.integers(0, 180)), 0, 360, 1, -1)
    return np.clip(ground * (0.6 + layers) * (1 - 0.3 * mask), 0, 255).astype(np.uint8), mask


def predict(mask: np.ndarray, number: int) -> np.ndarray:
    """Returns probabilities (1, 96, 128) uint8: the mask, moved, blurred, and for some images missed or invented."""
    rng = np.random.default_rng((number, 1))
    moved = np.roll(mask, rng.integers(-15, 16, 2), (0, 1)).astype(np.float32)
    kind = rng.random()
    if kind < 0.08:
        moved[:] = 0
    elif kind < 0.14:
        moved[200:240, 300:360] = 1
    small = cv2.GaussianBlur(cv2.resize(moved, SIZE[::-1], interpolation=cv2.INTER_AREA), (0, 0), 2)
    return np.rint(255 * small).astype(np.uint8)[None]


def write_run(images: int, groups: int) -> Run:
    """Writes raw images, tables, folds, probabilities and scores of a run that looks finished."""
    run = open_run("sample", name="report-size", assignments=["train.folds=[0]", "predict.tta=none"])
    (run.input / "train").mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    probabilities = np.zeros((images, 1, *SIZE), np.uint8)
    for number in range(images):
        image, mask = draw(number)
        name = f"{number % groups + 1}_{number // groups + 1}"
        file = f"train/{name}.tif"
        cv2.imwrite(str(run.input / file), image)
        probabilities[number] = predict(mask, number)
        rows.append({
            "image_id": name, "subset": "train", "path": file, "height": SHAPE[0], "width": SHAPE[1], "channels": 1,
            "dtype": "uint8", "group": str(number % groups + 1), "fault": "", "ignore": "",
            "rle_nerve": rle.encode(mask), "area_nerve": int(mask.sum()), "mean": float(image.mean()),
        })  # fmt: skip
    table.write_table(run.table, rows)
    (path,) = run.oof_predictions(0)
    batch = (probabilities, None)
    ids = [row["image_id"] for row in rows]
    write_probabilities(path, probabilities.shape, probabilities.dtype, [batch], ids, ["nerve"], lambda done: None)
    write_scores(run, rows, probabilities)
    return run


def write_scores(run: Run, rows: list[dict[str, Any]], probabilities: np.ndarray) -> None:
    """Writes oof_scores.csv and postprocess.json."""
    found = []
    for row, probability in zip(rows, probabilities, strict=True):
        mask = cv2.resize(probability[0], SHAPE[::-1]) >= 128
        true = rle.decode(row["rle_nerve"], SHAPE) == 1
        score = float(dice(np.array((mask & true).sum()), np.array(mask.sum()), np.array(true.sum())))
        found.append({
            "image_id": row["image_id"], "fold": 0, "group": row["group"], "use": "train",
            "true_area": row["area_nerve"], "score": score, "untuned": score,
        })  # fmt: skip
    scores = pd.DataFrame(found)
    scores.to_csv(run.folder / "oof_scores.csv", index=False)
    mean = float(scores["score"].mean())
    ends = [mean - 0.02, mean + 0.02]
    labelled = {"is": "of faked predictions", "score": mean, "interval_95": ends}
    result = {
        "metric": "dice", "remark": "", "score": mean, "interval_95": ends, "nested": mean, "nested_interval_95": ends,
        "untuned": mean, "score_by_fold": {"0": mean}, "images": len(scores), "steps": [], "reasons": [],
        "rows": {name: {"images": len(scores), "score": mean} for name in ("raw", "cleaned")},
        "scores": {"fold_model": labelled | {"epoch_optimism": 0.0}, "optimistic": labelled,
                   "submission": {"is": "none", "from": mean, "to": None, "models": 1}},
        "rules": decision.described(decision.Rules((decision.Rule(),)), ["nerve"]), "curves": {},
        "oof": {"share_empty": 0.5, "mean_area": 4000.0, "highest": 0.7}, "share_empty_true": 0.59,
        "mean_true_area": 4000.0,
    }  # fmt: skip
    write_text(run.postprocess, json.dumps(result))


def timed(path: Path, folder: Path) -> dict[str, Any] | None:
    """Returns the milliseconds of loading and of three sorts in headless Chromium, or None without it."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        return None
    probed = folder / "timed.html"
    write_text(probed, path.read_text(encoding="utf-8") + TIMED)
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    ran = subprocess.run([chromium, *options, probed.as_uri()], capture_output=True, text=True, timeout=300)
    found = re.search(r'data-timed="([^"]*)"', ran.stdout)
    return json.loads(found[1].replace("&quot;", '"')) if found else None


def main() -> None:
    """Prints size and times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=5635)
    parser.add_argument("--groups", type=int, default=47)
    options = parser.parse_args()
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["PIPELINE_ROOT"] = str(folder)
    os.environ.pop("PIPELINE_INPUT", None)
    run = write_run(options.images, options.groups)
    started = time.perf_counter()
    page.write(run.report, "report.html.jinja", **sections.everything(run))
    seconds = time.perf_counter() - started
    print(
        f"{date.today()}, {options.images} images: page of {run.report.stat().st_size / 1e6:.1f} MB in {seconds:.0f} s"
    )
    for _ in range(3):
        print(timed(run.report, folder) or "not measured: there is no Chromium")


if __name__ == "__main__":
    main()
