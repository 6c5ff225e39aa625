"""predict, encode and the decoding of a test set need nothing that training alone needs."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import finished
import predicted
import pytest
from conftest import REPOSITORY

from pipeline.core.run import Run

REFUSED = ("lightning", "pytorch_lightning", "sklearn", "albumentations", "ray", "optuna", "matplotlib", "tensorboard")
SCRIPT = f"""
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.util import spec_from_loader

class Refuse(MetaPathFinder, Loader):
    def find_spec(self, name, path=None, target=None):  # torch asks for some of them and imports none
        return spec_from_loader(name, self) if name.split(".")[0] in {REFUSED} else None

    def exec_module(self, module):
        raise ModuleNotFoundError(f"refused: {{module.__name__}}")

sys.meta_path.insert(0, Refuse())
from pipeline.core import driver
from pipeline.core.run import open_run
run = open_run(sys.argv[1], name=sys.argv[2])
driver.run_stage(run, "decode", subset="test", force=True)
driver.run_stage(run, "predict")
driver.run_stage(run, "encode")
"""


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    yield from predicted.split_run(tmp_path_factory.mktemp("light"))


def test_predicting_and_encoding_import_nothing_of_training(split: Run) -> None:
    run = finished.finished(split, "light")
    before = run.submission.read_bytes()
    run.submission.unlink()
    for path in (run.folder / "predictions").glob("test_*"):
        path.unlink()
    command = [sys.executable, "-c", SCRIPT, str(Path(os.environ["PIPELINE_ROOT"]) / "small.yaml"), "light"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert run.submission.read_bytes() == before
