"""The page "Your own competition" does what it says: its lines, typed one after another, end in a valid submission."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from pipeline.masks import rle

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "your-own-competition.md").read_text(encoding="utf-8")


def draw_cells(folder: Path) -> None:
    """24 + 6 images of bright cells, RGB, with run lengths by column from 1."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(30):
        image, mask = random.integers(20, 70, (72, 100, 3)).astype(np.uint8), np.zeros((72, 100), np.uint8)
        for _ in range(int(random.integers(0, 5))):
            centre = int(random.integers(0, 100)), int(random.integers(0, 72))
            cv2.ellipse(mask, centre, (int(random.integers(5, 14)), int(random.integers(5, 12))), 30, 0, 360, 1, -1)
        image[mask == 1] += 110
        part, name = ("train", f"cell_{number:03}") if number < 24 else ("test", f"cell_{number:03}")
        (folder / part).mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(folder / part / f"{name}.png"), image)
        rows.append({"image_id": name, "rle": rle.encode(mask)})
    pd.DataFrame(rows[:24]).to_csv(folder / "train.csv", index=False)
    pd.DataFrame([{**row, "rle": "1 1"} for row in rows[24:]]).to_csv(folder / "sample_submission.csv", index=False)


def test_the_page_from_a_folder_to_a_submission(tmp_path: Path) -> None:
    draw_cells(tmp_path / "data" / "my-cells")
    clone = tmp_path / "clone"
    clone.mkdir()
    for name in ("pipeline", "run_all.sh", "requirements.lock", "pyproject.toml"):
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        copy(REPOSITORY / name, clone / name)  # type: ignore[operator]
    (block,) = re.findall(r"```bash\n(.*?)```", PAGE, re.S)
    assert len(block.splitlines()) <= 10
    block = block.replace(" --quick ", " --quick --set train.steps=30 ", 1)  # a tenth of its steps
    environment = {**os.environ, "HOME": str(tmp_path), "VIRTUAL_ENV": sys.prefix}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    for name in ("PIPELINE_ROOT", "PIPELINE_INPUT"):
        environment.pop(name, None)
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", block],
        cwd=clone,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\nsubmissions/my-cells-quick.csv: valid" in done.stdout
    assert (clone / "work/my-cells/new.png").exists()
    rows = pd.read_csv(clone / "submissions/my-cells-quick.csv", dtype=str, keep_default_na=False)
    assert rows["image_id"].tolist() == [f"cell_{number:03}" for number in range(24, 30)]
    assert sorted(path.name for path in (tmp_path / "data/my-cells").iterdir()) == [
        "sample_submission.csv", "test", "train", "train.csv",
    ]  # fmt: skip
