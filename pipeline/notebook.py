"""What the first cell of a notebook needs before anything else is imported; the standard library alone."""

import os
import sys
import warnings
from pathlib import Path

from pipeline import requirements_check

HOME = Path(__file__).parents[1]


def prepare() -> None:
    """Lets a notebook use the package wherever it runs: locally, on Kaggle or on Colab.

    Results go to the working directory where the repository's folder cannot be written to, as an attached dataset's.

    Raises:
        ImportError: something that the package needs is missing; the message is the line that installs it.
    """
    missing = requirements_check.unsatisfied(requirements_check.read_requirements(HOME / "pyproject.toml", dev=False))
    if missing:
        asked = " ".join(f'"{line.split("#")[0].strip()}"' for line in missing)
        raise ImportError(f"run this in a cell of its own, then restart the kernel: %pip install -q {asked}")
    if not os.access(HOME, os.W_OK):
        os.environ.setdefault("PIPELINE_ROOT", str(Path.cwd()))
    warnings.filterwarnings("ignore", message="IProgress not found")
    print(f"Python {sys.version.split()[0]}, the package in {HOME}")
