"""The wheels of a bundle: the package's own, and those of packages that Kaggle's image lacks, by the lock file."""

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
from pipeline.kaggle.bundle.image import OWN, TORCH, Package

PLATFORMS = tuple(f"manylinux_2_{number}_x86_64" for number in range(35, 16, -1)) + ("manylinux2014_x86_64",)
"""Of Ubuntu 22.04 on x86-64, the image's; the newest first."""
SUFFIXES = (".py", ".yaml", ".jinja", ".css", ".js", ".txt")
TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Locked:
    """A line of the lock file."""

    name: str
    version: str
    hashes: tuple[str, ...]


def write_own(folder: Path) -> Path:
    """Returns the package as a wheel, written into a folder: the same files give the same bytes.

    No build tool and no network is needed: the package is pure Python.
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
    found = [path for path in PACKAGE.rglob("*") if path.suffix in SUFFIXES and path.is_file()]
    return sorted(path for path in found if "__pycache__" not in path.parts)


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


# --- the lock file ---------------------------------------------------------------------------------------------------


def read_lock(text: str, python: str) -> dict[str, list[Locked]]:
    """Returns what a lock file pins, by normalised names: for a version of Python such as 3.12 on Linux first, then
    what it pins for others, which a wheel for several versions may be good for."""
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    environment |= {"platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix"}
    found: dict[str, list[Locked]] = {}
    for line in text.replace("\\\n", " ").splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        pinned, *hashes = line.split(" --hash=")
        one = Requirement(pinned.strip())
        name = str(canonicalize_name(one.name))
        number = next(iter(one.specifier)).version
        locked = Locked(name, number, tuple(value.strip().split()[0] for value in hashes))
        place = 0 if one.marker is None or one.marker.evaluate(environment) else len(found.get(name, []))
        found.setdefault(name, []).insert(place, locked)
    return found


def lock(python: str) -> dict[str, list[Locked]]:
    """Returns what the repository's lock file pins; nothing where the package is installed and has none."""
    source = repository()
    return read_lock((source / "requirements.lock").read_text(encoding="utf-8"), python) if source else {}


# --- other packages' wheels ------------------------------------------------------------------------------------------


def gather(
    wanted: Iterable[Package], folder: Path, python: str, source: Path | None, there: Mapping[str, str | None]
) -> list[Path]:
    """Returns the wheels of packages, copied from a folder of wheels or downloaded, checked against the lock file.

    Args:
        wanted: the packages.
        folder: where they go.
        python: the version of Python that they are for.
        source: a folder of wheels; None downloads them with pip.
        there: versions by the names of the image's packages, which a wheel should go with.

    Raises:
        PipelineError: one is missing, is for another Python or platform, or is not what the lock file pins.
    """
    pinned = lock(python)
    return [
        _copied(package, folder, python, source, pinned.get(package.name, []))
        if source
        else _downloaded(package, folder, python, pinned.get(package.name, []), there)
        for package in wanted
    ]


def _copied(package: Package, folder: Path, python: str, source: Path, locked: list[Locked]) -> Path:
    path = _choose(package, source, python)
    if locked:
        _check_lock(path, locked)
    shutil.copy2(path, folder / path.name)
    return folder / path.name


def _downloaded(
    package: Package, folder: Path, python: str, locked: list[Locked], there: Mapping[str, str | None]
) -> Path:
    """A wheel that the lock file pins: the first one that goes with the image, or else the first."""
    if not locked:
        raise PipelineError(
            f"requirements.lock does not pin {package.name}, which Kaggle's image lacks: give a folder with its wheel, "
            "--wheels FOLDER."
        )
    first = _download(locked[0], folder, python)
    if not conflicts(first, there, {}):
        return first
    for other in locked[1:]:
        try:
            path = _download(other, folder, python)
        except PipelineError:  # it has no wheel for this Python
            continue
        if not conflicts(path, there, {}):
            first.unlink()
            return path
        path.unlink()
    return first


def _choose(package: Package, source: Path, python: str) -> Path:
    """The newest wheel of a package in a folder that fits."""
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
                f"{others[-1][1].name} is not for Python {python} on Linux x86-64, which the bundle is for: put the "
                f"wheel of {package.name} for it into {source}, or choose another --python."
            )
        raise PipelineError(f"{source} has no wheel of {package.name}, which Kaggle's image lacks.")
    return max(named)[1]


def fits(tags: Iterable[Tag], python: str) -> bool:
    """Returns whether a wheel with these tags can be installed with a CPython, such as 3.12, on the image."""
    version = tuple(int(part) for part in python.split("."))[:2]
    known = {*cpython_tags(version, platforms=PLATFORMS), *compatible_tags(version, platforms=[*PLATFORMS, "any"])}
    return any(tag in known for tag in tags)


def python_of(tags: Iterable[Tag], python: str) -> str:
    """Returns which Python a wheel is for, as script.fits reads it: any, one version, or all from one on."""
    listed = list(tags)
    if all(tag.abi == "none" and tag.platform == "any" for tag in listed):
        return "any"
    stable = [tag.interpreter for tag in listed if tag.abi == "abi3"]
    return f">={stable[0][2]}.{stable[0][3:]}" if stable else python


def _download(locked: Locked, folder: Path, python: str) -> Path:
    """Downloads a wheel with pip, which knows the index that is set up here; pip itself checks the hashes."""
    wanted = folder / "wanted.txt"
    hashes = " ".join(f"--hash={one}" for one in locked.hashes)
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
        said = next(
            (line for line in reversed(done.stderr.splitlines()) if "ERROR" in line), done.stderr.strip()[-200:]
        )
        raise PipelineError(
            f"pip could not download {locked.name} {locked.version} for Python {python} "
            f"({said.removeprefix('ERROR: ')}). Try again with a network, or give a folder with the "
            "wheel, --wheels FOLDER."
        )
    name = locked.name.replace("-", "_")
    return next(path for path in folder.glob("*.whl") if path.name.lower().startswith(f"{name}-{locked.version}-"))


def pip() -> list[str]:
    """Returns the command that runs pip: this environment's, or one that uv brings along.

    Raises:
        PipelineError: there is neither.
    """
    if find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.prefix).parent / ".venv-tools" / "bin"))
    if uv:
        return [uv, "tool", "run", "--quiet", "pip"]
    raise PipelineError("pip is not installed here: install it, or give the wheels, --wheels FOLDER.")


def _check_lock(path: Path, locked: list[Locked]) -> None:
    _, number, _, _ = parse_wheel_filename(path.name)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    same = [one for one in locked if Version(one.version) == number]
    if not same:
        pinned = " or ".join(one.version for one in locked)
        raise PipelineError(
            f"{path.name} is version {number}, and requirements.lock pins {pinned}: put that wheel into the folder."
        )
    if not any(f"sha256:{digest}" in one.hashes for one in same):
        raise PipelineError(f"{path.name} is damaged or another file: its SHA-256 is not in requirements.lock.")


def conflicts(path: Path, there: Mapping[str, str | None], wheels: Mapping[str, str]) -> list[str]:
    """Returns which requirements of a wheel an image with these packages, and other wheels, do not meet.

    Args:
        path: the wheel.
        there: versions by the names of the image's packages.
        wheels: versions by the names of the bundle's own.
    """
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = HeaderParser().parsestr(archive.read(name).decode("utf-8")).get_all("Requires-Dist") or []
    found = []
    for one in map(Requirement, lines):
        name = str(canonicalize_name(one.name))
        if TORCH.fullmatch(name) or (one.marker and not one.marker.evaluate({"extra": ""})):
            continue
        number = wheels.get(name) or there.get(name)
        if number is None and name not in there:
            found.append(f"{path.name} needs {one}, which the image lacks")
        elif number and not one.specifier.contains(Version(number).base_version, prereleases=True):
            found.append(f"{path.name} needs {one}, and the image has {number}")
    return found


def described(path: Path) -> str:
    """Returns a wheel and its size, for a person."""
    return f"{shown(path)} ({path.stat().st_size / 2**20:.1f} MiB)"
