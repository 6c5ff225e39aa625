"""Lists the requirements of pyproject.toml that the running Python does not satisfy.

It is run as a script and imports only the standard library, because it runs before anything else can be imported:

    python pipeline/requirements_check.py pyproject.toml [--dev]              missing requirements; exit code 1 if any
    python pipeline/requirements_check.py pyproject.toml --torch-constraints  constraints that keep the installed torch
"""

import argparse
import importlib
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Any

# torch, and packages that are built for exactly one version of torch
TORCH_FAMILY = re.compile(r"torch|torchvision|torchaudio|torchtext|triton|pytorch-triton.*|triton-.*|nvidia-.*|cuda-.*")

# Each of these provides the module cv2. Two of them in one environment overwrite each other's files.
SAME_MODULE = {
    "opencv-python-headless": ["opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless"],
}


def read_requirements(pyproject: Path, dev: bool) -> list[str]:
    """Returns the requirements in a pyproject.toml, with those of its extra `dev` if `dev` is true."""
    project = tomllib.loads(pyproject.read_text())["project"]
    return project["dependencies"] + (project["optional-dependencies"]["dev"] if dev else [])


def requirement_parser() -> Any | None:
    """Returns the class Requirement of `packaging` or of pip's own copy; None if neither is installed."""
    for module in ("packaging.requirements", "pip._vendor.packaging.requirements"):
        try:
            return importlib.import_module(module).Requirement
        except ImportError:
            continue
    return None


def leading_name(requirement: str) -> str:
    """Returns the normalised package name of a requirement."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]).lower()


def is_torch_family(requirement: str) -> bool:
    """Returns whether a package is torch or is built for exactly one version of torch."""
    return TORCH_FAMILY.fullmatch(leading_name(requirement)) is not None


def installed_version(name: str) -> str | None:
    """Returns the version of an installed distribution; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def unsatisfied(requirements: list[str]) -> list[str]:
    """Returns the requirements that this environment does not satisfy, as lines of a pip requirements file."""
    parse = requirement_parser()
    if parse is None:  # lightning requires packaging: without packaging nearly everything is missing
        return [line for line in requirements if not (is_torch_family(line) and installed_version(leading_name(line)))]
    missing = []
    for line in requirements:
        requirement = parse(line)
        if requirement.marker and not requirement.marker.evaluate():
            continue
        found = None
        for name in [requirement.name, *SAME_MODULE.get(requirement.name, [])]:
            found = found or installed_version(name)
        if found is None:
            missing.append(line)
        elif not requirement.specifier.contains(found, prereleases=True):  # vendors build torch 2.9.0a0+...
            missing.append(f"{line}  # {found} is installed")
    return missing


def torch_constraints(requirements: list[str]) -> list[str]:
    """Returns the lines of a pip constraints file with which pip can add packages but not replace an installed torch.

    The file also limits opencv-python-headless when another opencv package is installed in its place: otherwise
    albumentations would install the newest version.
    """
    lines = [line for line in requirements if leading_name(line) in SAME_MODULE]
    if installed_version("torch") is not None:
        names = {leading_name(each.name or "") for each in distributions()}
        lines += [f"{name}=={version(name)}" for name in names if is_torch_family(name)]
    return sorted(lines)


def main() -> int:
    """Runs the command line and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pyproject", type=Path)
    parser.add_argument("--dev", action="store_true", help="include the test tools")
    parser.add_argument("--torch-constraints", action="store_true", help="print constraints and exit with 0")
    arguments = parser.parse_args()
    requirements = read_requirements(arguments.pyproject, arguments.dev)
    if arguments.torch_constraints:
        lines = torch_constraints(requirements)
    else:
        lines = unsatisfied(requirements)
    for line in lines:
        print(line)
    return 1 if lines and not arguments.torch_constraints else 0


if __name__ == "__main__":
    sys.exit(main())
