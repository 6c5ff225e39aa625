"""A competition of a few tiny images that a test may damage as it likes."""

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
import yaml

from pipeline.core import driver, freshness
from pipeline.core.errors import PipelineError
from pipeline.core.run import Run, open_run
from pipeline.masks import rle

# before torch is imported: threads that wait for each other make small networks many times slower on a busy machine
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).parents[1]
SHAPE = (40, 60)
TRAIN_IDS = [f"a{number:02}" for number in range(1, 13)]
TEST_IDS = ["t1", "t2", "t3", "t4"]
MANIFEST: dict[str, Any] = {"finished": "", "seconds": 0, "settings": {}, "code": {}, "inputs": {}, "outputs": {}}
"""What every manifest holds."""


LONG = """
bring bundle compare competitions damages device_augment devices end_to_end every_metric families freezing
half_size in_time inference interruption keep liars light_imports loader local look mask_rules
metrics_of_ones_own models new new_formats new_test_set nnunet_export optimization outliers own_competition
package predict published_metric push ray reliability sample sanity separated_objects setup step_lock
submission_size submit sweep tables targets train tune unet validate views weight_files weights
"""
"""The test files that `--fast` leaves out: they train, run every stage, or take more than a few seconds."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--fast`."""
    parser.addoption("--fast", action="store_true", help="leave out the test files that train or take long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Starts with the longest files, so that no process is done long before the other; leaves them out for `--fast`."""
    if config.getoption("--fast"):
        names = {f"test_{name}.py" for name in LONG.split()}
        left_out = [item for item in items if item.path.name in names]
        items[:] = [item for item in items if item.path.name not in names]
        config.hook.pytest_deselected(items=left_out)
    longest = ("test_end_to_end.py", "test_look.py")
    items.sort(key=lambda item: item.path.name not in longest)


def other_code(monkeypatch: pytest.MonkeyPatch, hashes: dict[str, str]) -> None:
    """Lets every stage be made of these modules."""
    monkeypatch.setattr(freshness, "code", lambda stage: hashes)
    monkeypatch.setattr(freshness, "_source", lambda names: "other")


def encoded(image: np.ndarray, suffix: str = "tif") -> bytes:
    """The bytes of an image file; RGB images are given and stored as RGB."""
    if suffix == "tif":
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, image, compression="lzw", metadata=None)
        return buffer.getvalue()
    return cv2.imencode(f".{suffix}", image[..., ::-1] if image.ndim == 3 else image)[1].tobytes()


class Tiny:
    """Twelve training images of six patients, three of them without a mask, and four test images, 40×60, grey.

    Change `settings`, `recipe` and `rows`, then `save`; change files in `input` directly.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.input = root, root / "input" / "tiny"
        self.recipe_path, self.competition_path = root / "small.yaml", root / "competition" / "tiny.yaml"
        self.settings: dict[str, Any] = {
            "title": "Tiny",
            "train": {"images": "train/{id}.tif", "masks": "train.csv"},
            "test": {"images": "test/{id}.tif"},
            "sample_submission": "sample.csv",
            "columns": {"id": "id", "rle": "mask"},
            "classes": ["thing"],
            "shape": list(SHAPE),
            "metric": "dice",
            "split": {"folds": 3},
        }
        self.recipe: dict[str, Any] = {"competition": str(self.competition_path), "image": {"size": [32, 32]}}
        rng = np.random.default_rng(0)
        self.images = {name: rng.integers(0, 256, SHAPE, np.uint8) for name in TRAIN_IDS + TEST_IDS}
        self.masks = {name: self._mask(index) for index, name in enumerate(TRAIN_IDS)}
        self.rows = [
            {"id": name, "mask": rle.encode(mask), "patient": f"p{index // 2}", "age": str(30 + index)}
            for index, (name, mask) in enumerate(self.masks.items())
        ]
        for name, image in self.images.items():
            self.path(name).parent.mkdir(parents=True, exist_ok=True)
            self.path(name).write_bytes(encoded(image))
        self.save()

    def _mask(self, index: int) -> np.ndarray:
        mask = np.zeros(SHAPE, np.uint8)
        if index % 4:
            cv2.ellipse(mask, (20 + 2 * index, 20), (6 + index, 10), 0, 0, 360, 1, -1)
        return mask

    def save(self) -> None:
        """Writes the tables and both YAML files."""
        pd.DataFrame(self.rows).to_csv(self.input / "train.csv", index=False)
        pd.DataFrame({"id": TEST_IDS, "mask": "1 1"}).to_csv(self.input / "sample.csv", index=False)
        self.competition_path.parent.mkdir(exist_ok=True)
        self.competition_path.write_text(yaml.safe_dump(self.settings, sort_keys=False))
        self.recipe_path.write_text(yaml.safe_dump(self.recipe, sort_keys=False))

    def path(self, name: str) -> Path:
        """The image file of an id."""
        return self.input / ("test" if name in TEST_IDS else "train") / f"{name}.tif"

    def row(self, name: str) -> dict[str, str]:
        """The row of train.csv of an id."""
        return next(row for row in self.rows if row["id"] == name)

    def convert(self, suffix: str, images: dict[str, np.ndarray]) -> None:
        """Replaces all images by these, in another format; sets no shape."""
        for name, image in images.items():
            self.path(name).unlink(missing_ok=True)
            self.path(name).with_suffix(f".{suffix}").write_bytes(encoded(image, suffix))
        self.settings |= {"train": {"images": f"train/{{id}}.{suffix}", "masks": "train.csv"}}
        self.settings |= {"test": {"images": f"test/{{id}}.{suffix}"}, "shape": None}
        self.save()

    def run(self, *names: str) -> Run:
        """Runs these stages in this process."""
        opened = open_run(str(self.recipe_path))
        for name in names:
            driver.run_stage(opened, name)
        return opened

    def fails(self, *names: str) -> str:
        """Runs these stages (default: decode), which must fail cleanly, and returns the message."""
        message = self.refused(*(names or ("decode",)))
        self.assert_nothing_half_written()
        return message

    def refused(self, *names: str) -> str:
        """Runs these stages, which must fail although earlier ones succeeded, and returns the message."""
        with pytest.raises(PipelineError) as caught:
            self.run(*names)
        return str(caught.value)

    def assert_nothing_half_written(self) -> None:
        """No artefact of decode, and no temporary file anywhere."""
        left = [path.name for path in (self.root / "work").rglob("*") if path.is_file()]
        assert not [name for name in left if name.endswith((".partial", ".npy")) or name == "images.parquet"]

    def cli(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Runs `python -m pipeline` with these arguments."""
        environment = {**os.environ, "PIPELINE_ROOT": str(self.root), "PIPELINE_INPUT": str(self.root / "input")}
        command = [sys.executable, "-m", "pipeline", *map(str, arguments)]
        return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=100)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """A sound tiny competition under its own PIPELINE_ROOT."""
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    monkeypatch.setenv("PIPELINE_INPUT", str(tmp_path / "input"))
    return Tiny(tmp_path)
