"""The wheels of a bundle: this package's, and those of packages that Kaggle's image lacks, pinned by the lock file."""

import base64
import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email.parser import HeaderParser
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from pipeline.core.errors import PipelineError
from pipeline.core.files import PACKAGE, repository, shown
from pipeline.core.version import VERSION
from pipeline.kaggle.bundle.image import OPTIONAL, OWN, TORCH, Package

PLATFORMS = tuple(f"manylinux_2_{number}_x86_64" for number in range(35, 16, -1)) + ("manylinux2014_x86_64",)
"""Platform tags of Kaggle's image (Ubuntu 22.04 on x86-64), the newest first."""
SUFFIXES = (".py", ".yaml", ".jinja", ".css", ".js", ".txt")
TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Locked:
    """A pinned package in the lock file."""

    name: str
    version: str
    hashes: tuple[str, ...]


def write_own(folder: Path) -> Path:
    """Writes this package as a wheel into a folder and returns its path. The same files give the same bytes.

    The package is pure Python, so this needs neither a build tool nor a network.
    """
    files = {path.relative_to(PACKAGE.parent).as_posix(): path.read_bytes() for path in _package_files()}
    info = f"{OWN.replace('-', '_')}-{VERSION}.dist-info"
    files |= {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {OWN}\nVersion: {VERSION}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: pipeline\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": b"[console_scripts]\nsegpipe = pipeline.__main__:main\n",
    }
    record = "".join(f"{name},sha256={_digest(content)},{len(content)}\n" for name, content in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    path = folder / f"{OWN.replace('-', '_')}-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, TIME)
            entry.external_attr, entry.compress_type = 0o644 << 16, zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return path


def _package_files() -> list[Path]:
    files = [path for path in PACKAGE.rglob("*") if path.suffix in SUFFIXES and path.is_file()]
    return sorted(path for path in files if "__pycache__" not in path.parts)


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


# --- the lock file ---------------------------------------------------------------------------------------------------


def read_lock(text: str, python: str) -> dict[str, list[Locked]]:
    """Returns the pinned packages of a lock file, by normalised name.

    Entries for the given version of Python (such as 3.12) on Linux come first, then those for others: their wheels may
    suit several versions.
    """
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    environment |= {"platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix"}
    by_name: dict[str, list[Locked]] = {}
    for line in text.replace("\\\n", " ").splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        pinned, *hashes = line.split(" --hash=")
        requirement = Requirement(pinned.strip())
        name = str(canonicalize_name(requirement.name))
        number = next(iter(requirement.specifier)).version
        locked = Locked(name, number, tuple(value.strip().split()[0] for value in hashes))
        applies = requirement.marker is None or requirement.marker.evaluate(environment)
        by_name.setdefault(name, []).insert(0 if applies else len(by_name.get(name, [])), locked)
    return by_name


def lock(python: str) -> dict[str, list[Locked]]:
    """Returns the pinned packages of the repository's lock file; empty if the package runs without its repository."""
    source = repository()
    return read_lock((source / "requirements.lock").read_text(encoding="utf-8"), python) if source else {}


# --- other packages' wheels ------------------------------------------------------------------------------------------


def gather(
    wanted: Iterable[Package], folder: Path, python: str, source: Path | None, available: Mapping[str, str | None]
) -> list[Path]:
    """Copies or downloads the wheels of packages, checks them against the lock file, and returns their paths.

    Args:
        wanted: the packages.
        folder: folder to write to.
        python: version of Python that the wheels must suit.
        source: folder of wheels; None: they are downloaded with pip.
        available: versions of the image's packages, by name, with which the wheels should be compatible.

    Raises:
        PipelineError: a wheel is missing, is for another Python or platform, or differs from the lock file.
    """
    pinned = lock(python)
    return [
        _copied(package, folder, python, source, pinned.get(package.name, []))
        if source
        else _downloaded(package, folder, python, pinned.get(package.name, []), available)
        for package in wanted
    ]


def _copied(package: Package, folder: Path, python: str, source: Path, locked: list[Locked]) -> Path:
    path = _choose(package, source, python)
    if locked:
        _check_lock(path, locked)
    shutil.copy2(path, folder / path.name)
    return folder / path.name


def _downloaded(
    package: Package, folder: Path, python: str, locked: list[Locked], available: Mapping[str, str | None]
) -> Path:
    """The first pinned wheel that is compatible with the image; if there is none, the first pinned wheel."""
    if not locked:
        raise PipelineError(
            f"requirements.lock does not pin {package.name}, which Kaggle's image lacks: give a folder with its wheel "
            "(--wheels FOLDER)."
        )
    first = _download(locked[0], folder, python)
    if not conflicts(first, available, {}):
        return first
    for other in locked[1:]:
        try:
            path = _download(other, folder, python)
        except PipelineError:  # there is no wheel for this Python
            continue
        if not conflicts(path, available, {}):
            first.unlink()
            return path
        path.unlink()
    return first


def _choose(package: Package, source: Path, python: str) -> Path:
    """The newest suitable wheel of a package in a folder."""
    named: list[tuple[Version, Path]] = []
    others: list[tuple[Version, Path]] = []
    for path in sorted(source.glob("*.whl")):
        try:
            name, number, _, tags = parse_wheel_filename(path.name)
        except InvalidWheelFilename:
            continue
        if name == package.name:
            (named if fits(tags, python) else others).append((number, path))
    if not named:
        if others:
            raise PipelineError(
                f"{others[-1][1].name} does not suit the bundle's Python {python} on Linux x86-64: put a suitable "
                f"wheel of {package.name} into {source}, or choose another --python."
            )
        raise PipelineError(f"{source} has no wheel of {package.name}, which Kaggle's image lacks.")
    return max(named)[1]


def fits(tags: Iterable[Tag], python: str) -> bool:
    """Returns whether a wheel with these tags can be installed in Kaggle's image with a version of CPython (3.12)."""
    version = tuple(int(part) for part in python.split("."))[:2]
    known = {*cpython_tags(version, platforms=PLATFORMS), *compatible_tags(version, platforms=[*PLATFORMS, "any"])}
    return any(tag in known for tag in tags)


def python_of(tags: Iterable[Tag], python: str) -> str:
    """Returns the Python that a wheel suits, in the form that script.fits reads: any, one version, or a minimum."""
    listed = list(tags)
    if all(tag.abi == "none" and tag.platform == "any" for tag in listed):
        return "any"
    stable = [tag.interpreter for tag in listed if tag.abi == "abi3"]
    return f">={stable[0][2]}.{stable[0][3:]}" if stable else python


def _download(locked: Locked, folder: Path, python: str) -> Path:
    """Downloads a wheel with pip, which uses the configured package index and checks the hashes."""
    wanted = folder / "wanted.txt"
    hashes = " ".join(f"--hash={digest}" for digest in locked.hashes)
    wanted.write_text(f"{locked.name}=={locked.version} {hashes}\n", encoding="utf-8")
    arguments = ["download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
    arguments += ["--require-hashes", "--python-version", python, "--implementation", "cp", "-d", str(folder)]
    arguments += [word for tag in PLATFORMS for word in ("--platform", tag)]
    arguments += [word for tag in (f"cp{python.replace('.', '')}", "abi3", "none") for word in ("--abi", tag)]
    try:
        done = subprocess.run([*pip(), *arguments, "-r", str(wanted)], capture_output=True, text=True)
    finally:
        wanted.unlink()
    if done.returncode:
        reason = next(
            (line for line in reversed(done.stderr.splitlines()) if "ERROR" in line), done.stderr.strip()[-200:]
        )
        raise PipelineError(
            f"pip could not download {locked.name} {locked.version} for Python {python} "
            f"({reason.removeprefix('ERROR: ')}). Check the network and try again, or give a folder with the wheel "
            "(--wheels FOLDER)."
        )
    name = locked.name.replace("-", "_")
    return next(path for path in folder.glob("*.whl") if path.name.lower().startswith(f"{name}-{locked.version}-"))


def pip() -> list[str]:
    """Returns the command that runs pip: that of this environment, or pip run by uv.

    Raises:
        PipelineError: there is neither.
    """
    if find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.prefix).parent / ".venv-tools" / "bin"))
    if uv:
        return [uv, "tool", "run", "--quiet", "pip"]
    raise PipelineError("pip is not installed here: install it, or give a folder of wheels (--wheels FOLDER).")


def _check_lock(path: Path, locked: list[Locked]) -> None:
    _, number, _, _ = parse_wheel_filename(path.name)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    same = [entry for entry in locked if Version(entry.version) == number]
    if not same:
        pinned = " or ".join(entry.version for entry in locked)
        raise PipelineError(
            f"{path.name} is version {number}, but requirements.lock pins {pinned}: put that wheel into the folder."
        )
    if not any(f"sha256:{digest}" in entry.hashes for entry in same):
        raise PipelineError(f"{path.name} is damaged or another file: its SHA-256 is not in requirements.lock.")


def conflicts(path: Path, available: Mapping[str, str | None], wheels: Mapping[str, str]) -> list[str]:
    """Returns texts about the requirements of a wheel that neither the image's packages nor the bundle's satisfy.

    Args:
        path: the wheel.
        available: versions of the image's packages, by name.
        wheels: versions of the bundle's wheels, by name.
    """
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = HeaderParser().parsestr(archive.read(name).decode("utf-8")).get_all("Requires-Dist") or []
    texts = []
    for requirement in map(Requirement, lines):
        name = str(canonicalize_name(requirement.name))
        if (
            name in OPTIONAL
            or TORCH.fullmatch(name)
            or (requirement.marker and not requirement.marker.evaluate({"extra": ""}))
        ):
            continue
        number = wheels.get(name) or available.get(name)
        if number is None and name not in available:
            texts.append(f"{path.name} needs {requirement}, which the image lacks")
        elif number and not requirement.specifier.contains(Version(number).base_version, prereleases=True):
            texts.append(f"{path.name} needs {requirement}, and the image has {number}")
    return texts


def described(path: Path) -> str:
    """Returns the path and size of a wheel as text."""
    return f"{shown(path)} ({path.stat().st_size / 2**20:.1f} MiB)"
