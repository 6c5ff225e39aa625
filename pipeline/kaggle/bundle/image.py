"""The packages of Kaggle's notebook image, and which of those that prediction needs it lacks."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from pipeline.core.errors import PipelineError
from pipeline.core.files import repository
from pipeline.core.run import Run

LIST = Path(__file__).with_name("kaggle_image.txt")
DATE = "2026-08-12"
"""Of the image that the list describes."""
PYTHON = "3.12"
OWN = "segmentation-pipeline"
OF_TRAINING = {"lightning", "scikit-learn", "tensorboard", "matplotlib", "jinja2", "albumentations"}
"""Requirements of the package that prediction does without; albumentations only where a recipe has image.preprocess."""
SAME_MODULE = {"opencv-python-headless": ("opencv-python", "opencv-contrib-python")}
TORCH = re.compile(r"torch|torchvision|triton|nvidia-.*|cuda-.*")
"""torch and what is built for it: never a part of a bundle."""


@dataclass(frozen=True)
class Package:
    """A package of the bundle that the image lacks."""

    name: str
    needs: str
    """The version that the package asks for, e.g. `>=0.6`."""
    why: str
    """What the image has instead."""


def packages() -> dict[str, str | None]:
    """Returns the version of every package of the image by its normalised name; None where the list says none."""
    found: dict[str, str | None] = {}
    for line in LIST.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, number = line.partition("==")
            found[str(canonicalize_name(name))] = number or None
    return found


def requirements(runs: list[Run]) -> list[Requirement]:
    """Returns what predicting these runs needs beside Python, torch among it.

    Raises:
        PipelineError: the package does not say what it needs.
    """
    source = repository()
    if source:
        project = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        lines = project["dependencies"]
    else:
        try:
            lines = [line for line in metadata.requires(OWN) or [] if "extra ==" not in line]
        except metadata.PackageNotFoundError:
            raise PipelineError(f"{OWN} is not installed and has no pyproject.toml: use its repository.") from None
    unneeded = OF_TRAINING - ({"albumentations"} if any(run.recipe.image.preprocess for run in runs) else set())
    return [one for one in map(Requirement, lines) if canonicalize_name(one.name) not in unneeded]


def lacking(wanted: list[Requirement], there: Mapping[str, str | None]) -> list[Package]:
    """Returns the packages that an image with these does not have in a version that is wanted; torch is taken as it is.

    Raises:
        PipelineError: a version of torch is wanted that the image does not have.
    """
    found = []
    for one in wanted:
        name = str(canonicalize_name(one.name))
        known = next((other for other in (name, *SAME_MODULE.get(name, ())) if other in there), None)
        number = there[known] if known else None
        if known and (number is None or one.specifier.contains(Version(number).base_version, prereleases=True)):
            continue
        if TORCH.fullmatch(name):
            raise PipelineError(f"the image has {name} {number}, and {one} is needed; torch is never replaced.")
        found.append(Package(name, str(one.specifier), f"{known} {number}" if known else "nothing"))
    return found
