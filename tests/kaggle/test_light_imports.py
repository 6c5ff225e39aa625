"""predict, encode and the decoding of a test set import nothing that training alone needs."""

import subprocess
import sys

from conftest import REPOSITORY

HEAVY = {"lightning", "pytorch_lightning", "sklearn", "albumentations", "ray", "optuna", "matplotlib", "tensorboard"}
MODULES = (
    "pipeline.__main__", "pipeline.decode.stage", "pipeline.predict.stage", "pipeline.networks.shards",
    "pipeline.encode.stage", "pipeline.engines.local", "pipeline.kaggle.bundle.inference",
    "pipeline.kaggle.bundle.parts", "pipeline.kaggle.bundle.canary", "pipeline.kaggle.bundle.serving",
)  # fmt: skip
"""What a notebook that predicts by a bundle imports."""


def test_nothing_of_training_is_imported() -> None:
    """A rehearsal (test_bundle.py, `-m slow`) shows it of what runs, in an environment without these packages."""
    code = f"import sys, {', '.join(MODULES)}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert not HEAVY & set(done.stdout.split())
