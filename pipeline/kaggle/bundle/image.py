"""The packages of Kaggle's notebook image, and the packages needed for prediction that it lacks."""

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
"""Date of the image that the list describes."""
PYTHON = "3.12"
OWN = "segmentation-pipeline"
OF_TRAINING = {"lightning", "scikit-learn", "tensorboard", "matplotlib", "jinja2", "albumentations"}
"""Requirements that prediction does not need; albumentations is needed if a recipe sets image.preprocess."""
OPTIONAL = {"openvino-telemetry"}
"""Requirements of bundled packages that are never used: networks/openvino_network.py imports OpenVINO without it."""
SAME_MODULE = {"opencv-python-headless": ("opencv-python", "opencv-contrib-python")}
TORCH = re.compile(r"torch|torchvision|triton|nvidia-.*|cuda-.*")
"""torch and packages that are built for one version of it: never part of a bundle."""


@dataclass(frozen=True)
class Package:
    """A package of the bundle that the image lacks."""

    name: str
    needs: str
    """The required version, for example `>=0.6`."""
    why: str
    """The package that the image has instead."""


def packages() -> dict[str, str | None]:
    """Returns the version of every package of the image, by normalised name; None if the list gives no version."""
    versions: dict[str, str | None] = {}
    for line in LIST.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, number = line.partition("==")
            versions[str(canonicalize_name(name))] = number or None
    return versions


def requirements(runs: list[Run]) -> list[Requirement]:
    """Returns the requirements for predicting with these runs, including torch.

    Raises:
        PipelineError: the requirements of the package cannot be read.
    """
    source, openvino = repository(), any(run.recipe.predict.backend == "openvino" for run in runs)
    if source:
        project = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        lines = project["dependencies"] + (project["optional-dependencies"]["openvino"] if openvino else [])
    else:
        try:
            every = metadata.requires(OWN) or []
            lines = [line for line in every if "extra ==" not in line]
            lines += [line.partition(";")[0] for line in every if openvino and 'extra == "openvino"' in line]
        except metadata.PackageNotFoundError:
            raise PipelineError(f"{OWN} is neither installed nor run from its repository: use one of them.") from None
    unneeded = OF_TRAINING - ({"albumentations"} if any(run.recipe.image.preprocess for run in runs) else set())
    return [each for each in map(Requirement, lines) if canonicalize_name(each.name) not in unneeded]


def lacking(wanted: list[Requirement], available: Mapping[str, str | None]) -> list[Package]:
    """Returns the required packages that an image does not have in a suitable version.

    Args:
        wanted: the requirements.
        available: versions of the image's packages, by name.

    Raises:
        PipelineError: the image's version of torch is not suitable.
    """
    missing = []
    for requirement in wanted:
        name = str(canonicalize_name(requirement.name))
        known = next((other for other in (name, *SAME_MODULE.get(name, ())) if other in available), None)
        number = available[known] if known else None
        if known and (number is None or requirement.specifier.contains(Version(number).base_version, prereleases=True)):
            continue
        if TORCH.fullmatch(name):
            raise PipelineError(
                f"Kaggle's image has {name} {number}, but {requirement} is needed, and torch is never replaced."
            )
        missing.append(Package(name, str(requirement.specifier), f"{known} {number}" if known else "nothing"))
    return missing
