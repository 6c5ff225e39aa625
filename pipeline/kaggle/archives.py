"""Unpacks archives of competitions safely: no file is written outside the target folder, and damage is detected."""

import os
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from pipeline.core.console import progress_bar
from pipeline.core.errors import PipelineError
from pipeline.core.files import shown

CHUNK = 2**20
LONGEST_NAME, DEEPEST = 255, 40
"""Maximum length of a file or folder name in bytes, and maximum number of nested folders."""
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


class DamagedArchive(PipelineError):
    """Raised for an archive that cannot be read completely."""


class RefusedArchive(PipelineError):
    """Raised for an intact archive that is not unpacked: it is empty, or has a member that is not allowed."""


def unpack(archive: Path, target: Path, inner: bool = True) -> int:
    """Unpacks a .zip file into a folder, and returns the number of files.

    An inner archive such as train.zip becomes the folder train/, unless all of its members are already in a folder of
    that name, or its only member is a file of that name (train.csv.zip).

    Args:
        archive: the .zip file.
        target: folder to unpack into.
        inner: whether to unpack .zip files inside the archive too.

    Raises:
        DamagedArchive: the archive is damaged.
        RefusedArchive: a member would be written outside the folder, is a link or encrypted; or there is no file.
        PipelineError: the disk is too small. Files unpacked so far stay in `target`; the caller must remove them.
    """
    count = _unpack_one(archive, target)
    if not count:
        raise RefusedArchive(f"{archive.name} contains no files.")
    for path in sorted(path for path in target.rglob("*.zip") if path.is_file()) if inner else []:
        count += _unpack_one(path, place_of(path)) - 1
        path.unlink()
    return count


def place_of(archive: Path) -> Path:
    """Returns the folder into which an archive is unpacked.

    This is the archive's own folder if all of its members are in a folder, or are a file, of the archive's name;
    otherwise it is a new folder of that name.

    Raises:
        DamagedArchive: the archive cannot be read.
    """
    tops = {PurePosixPath(name).parts[0] for name in _names(archive)}
    return archive.parent if tops <= {archive.stem, "__MACOSX"} else archive.with_suffix("")


def check_space(folder: Path, needed: int, content: str) -> None:
    """Checks that the disk of a folder has enough free space.

    Args:
        folder: the folder, which need not exist yet.
        needed: required space in bytes.
        content: the files that need the space, for the error message.

    Raises:
        PipelineError: there is too little space.
    """
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise PipelineError(
            f"{content} need {needed / 2**30:.1f} GiB, but the disk of {shown(folder)} has only {free / 2**30:.1f} GiB "
            "free: make room, or put input/ on another disk (PIPELINE_INPUT)."
        )


def _names(archive: Path) -> list[str]:
    try:
        with zipfile.ZipFile(archive) as opened:
            return [name for name in opened.namelist() if PurePosixPath(name).parts]
    except (*_DAMAGED, OSError) as error:
        raise _damaged(archive, error) from None


def _unpack_one(archive: Path, target: Path) -> int:
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            for member in members:
                _check(member, archive)
            if target.is_symlink():
                raise RefusedArchive(f"{archive.name}: {target.name} exists already as a link; nothing was unpacked.")
            check_space(target, sum(member.file_size for member in members), f"the files in {archive.name}")
            with progress_bar() as bar:
                for member in bar.track(members, description=f"unpack {archive.name}"):
                    path = target / member.filename
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with opened.open(member) as source, path.open("wb") as file:  # checks the checksum at its end
                        shutil.copyfileobj(source, file, CHUNK)
    except _DAMAGED as error:
        raise _damaged(archive, error) from None
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise RefusedArchive(
            f"{archive.name}: the member {_shortened(member.filename)!r} is both a file and a folder."
        ) from None
    return len(members)


def _check(member: zipfile.ZipInfo, archive: Path) -> None:
    path = PurePosixPath(member.filename.replace("\\", "/"))
    kind = stat.S_IFMT(member.external_attr >> 16)
    fault = ""
    if not path.parts:
        fault = "has no name"
    elif max(len(os.fsencode(part)) for part in path.parts) > LONGEST_NAME or len(path.parts) > DEEPEST:
        fault = "has a name that is too long, or too many nested folders"
    elif path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        fault = "would be written outside the folder"
    elif kind not in (0, stat.S_IFREG):
        fault = "is a link or a device"
    elif member.flag_bits & 1:
        fault = "is encrypted"
    if fault:
        raise RefusedArchive(
            f"{archive.name}: the member {_shortened(member.filename)!r} {fault}; nothing was unpacked."
        )


def _shortened(name: str) -> str:
    """The name of a member, shortened for a message."""
    return name if len(name) <= 80 else f"{name[:80]}…"


def _damaged(archive: Path, error: Exception) -> DamagedArchive:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DamagedArchive(f"{archive.name} is damaged ({reason})")
