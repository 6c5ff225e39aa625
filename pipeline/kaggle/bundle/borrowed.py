"""An environment like that of a Kaggle notebook, for rehearsals. It links the packages that Kaggle's image has from
this environment, in the versions installed here, and has no other packages."""

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Collection, Iterable, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipeline.core.files import write_text
from pipeline.kaggle.bundle.image import TORCH, packages

NOT_BORROWED = {"pip", "setuptools", "wheel"}
"""Packages that are not linked: the environment has its own."""
BLOCKED = '''"""Blocks all connections to other machines."""
import socket


def _refuse(*arguments, **options):
    raise OSError("no network in a rehearsal")


socket.socket.connect = socket.socket.connect_ex = _refuse
socket.getaddrinfo = socket.create_connection = _refuse
'''


def make_environment(
    folder: Path, more: Collection[str] = (), less: Collection[str] = ()
) -> tuple[Path, list[str], list[str]]:
    """Creates an environment.

    Args:
        folder: folder of the environment.
        more: packages to link in addition to the image's.
        less: packages of the image that are not linked.

    Returns:
        The path of its Python, the linked packages of the image, and further packages that those need in the versions
        installed here.
    """
    venv.EnvBuilder(with_pip=True, symlinks=True).create(folder)
    site = next((folder / "lib").glob("python3*/site-packages"))
    installed = {_name(distribution): distribution for distribution in metadata.distributions()}
    allowed = {*packages(), *map(str, map(canonicalize_name, more))} - NOT_BORROWED - {*less}
    borrowed = [name for name in sorted(installed) if name in allowed or TORCH.fullmatch(name)]
    needed = [name for name in _needed(borrowed, installed) if name not in less]
    for name in (*borrowed, *needed):
        base = Path(str(installed[name].locate_file("")))
        files = installed[name].files or ()
        for top in {file.parts[0] for file in files if file.parts[0] not in ("..", "__pycache__", "bin")}:
            link = site / top
            if not link.exists() and (base / top).exists():
                link.symlink_to((base / top).resolve())
    return folder / "bin" / "python", borrowed, needed


def _name(distribution: metadata.Distribution) -> str:
    return str(canonicalize_name(distribution.metadata["Name"] or ""))


def _needed(names: Iterable[str], installed: Mapping[str, metadata.Distribution]) -> list[str]:
    """The further packages that these packages depend on, directly or indirectly."""
    known, waiting = set(names), list(names)
    first = set(known)
    while waiting:
        for needed in map(Requirement, installed[waiting.pop()].requires or ()):
            name = str(canonicalize_name(needed.name))
            applies = needed.marker is None or needed.marker.evaluate({"extra": ""})
            if name in installed and name not in known and applies:
                known.add(name)
                waiting.append(name)
    return sorted(known - first - NOT_BORROWED)


def without_network(folder: Path) -> tuple[list[str], dict[str, str], str]:
    """Returns how to run a command without a network: words to put before it, environment variables, and a description.

    Args:
        folder: an empty folder, for a file that blocks sockets if the system has no network namespaces.
    """
    if shutil.which("unshare"):
        wanted = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
        if subprocess.run([*wanted, "true"], capture_output=True).returncode == 0:
            return wanted, {}, "a network namespace without an interface"
    write_text(folder / "sitecustomize.py", BLOCKED)
    return [], {"PYTHONPATH": str(folder)}, "sockets blocked in Python"


def running() -> str:
    """Returns the version of the running Python, for example 3.11."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"
