"""Unpacking archives of competitions: nothing leaves the target folder, and nothing of a damaged archive is kept."""

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
"""Bytes of the name of a file or a folder, as disks allow them, and folders inside each other."""
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


class DamagedArchive(PipelineError):
    """An archive that cannot be read whole."""


class RefusedArchive(PipelineError):
    """An archive that is sound and not unpacked: it has no file, or a member that is not allowed."""


def unpack(archive: Path, target: Path, inner: bool = True) -> int:
    """Unpacks a .zip into a folder, with `inner` the .zip files in it too, each beside itself; returns the number of
    files.

    An archive inside, such as train.zip, becomes the folder train/, unless all that it holds lies in such a folder
    already, or is one file of that name (train.csv.zip).

    Raises:
        DamagedArchive: the archive is damaged.
        RefusedArchive: a member would lie outside of the folder, is a link or encrypted; or there is no file.
        PipelineError: the disk is too small. What was unpacked so far stays in `target`, which is the caller's to throw
            away.
    """
    count = _unpack_one(archive, target)
    if not count:
        raise RefusedArchive(f"{archive.name} holds no file.")
    for path in sorted(path for path in target.rglob("*.zip") if path.is_file()) if inner else []:
        count += _unpack_one(path, place_of(path)) - 1
        path.unlink()
    return count


def place_of(archive: Path) -> Path:
    """Returns the folder that an archive belongs into: its own folder where all of its members lie in a folder, or are
    a file, of the archive's name; else a folder of that name.

    Raises:
        DamagedArchive: it cannot be read.
    """
    tops = {PurePosixPath(name).parts[0] for name in _names(archive)}
    return archive.parent if tops <= {archive.stem, "__MACOSX"} else archive.with_suffix("")


def check_space(folder: Path, needed: int, what: str) -> None:
    """Checks that the disk of a folder holds so many bytes more.

    Raises:
        PipelineError: it does not.
    """
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise PipelineError(
            f"{what} take {needed / 2**30:.1f} GiB, and the disk of {shown(folder)} has {free / 2**30:.1f} GiB free: "
            "make room, or put input/ on another disk (PIPELINE_INPUT)."
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
                raise RefusedArchive(f"{archive.name}: {target.name} lies there already; nothing of it is unpacked.")
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
            f"{archive.name}: the member {_shortened(member.filename)!r} is a file and a folder at once."
        ) from None
    return len(members)


def _check(member: zipfile.ZipInfo, archive: Path) -> None:
    path = PurePosixPath(member.filename.replace("\\", "/"))
    kind = stat.S_IFMT(member.external_attr >> 16)
    fault = ""
    if not path.parts:
        fault = "has no name"
    elif max(len(os.fsencode(part)) for part in path.parts) > LONGEST_NAME or len(path.parts) > DEEPEST:
        fault = "has a name that no disk holds"
    elif path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        fault = "would lie outside of the folder"
    elif kind not in (0, stat.S_IFREG):
        fault = "is a link or a device"
    elif member.flag_bits & 1:
        fault = "is encrypted"
    if fault:
        raise RefusedArchive(
            f"{archive.name}: the member {_shortened(member.filename)!r} {fault}; nothing of it is unpacked."
        )


def _shortened(name: str) -> str:
    """Returns a name as a message has it."""
    return name if len(name) <= 80 else f"{name[:80]}…"


def _damaged(archive: Path, error: Exception) -> DamagedArchive:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DamagedArchive(f"{archive.name} is damaged ({reason})")
