"""Gets the raw files of a competition into input/: from Kaggle, or the Oxford-IIIT Pet data, which needs no account.

Where a folder holds raw files that are still packed, as Kaggle mounts some in a notebook, they are unpacked beside it.
"""

import http.client
import re
import shutil
import sys
import tarfile
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.core.config.competition import Competition
from pipeline.core.config.raw_layouts import FOLDER as COMPETITIONS
from pipeline.core.console import console, say
from pipeline.core.errors import PipelineError
from pipeline.core.files import shown, writing
from pipeline.core.run import unpacked_folder
from pipeline.kaggle import archives
from pipeline.kaggle.client import connect, explained

FOLDERS = ("images", "annotations")
PAGES = 50
"""Pages of a competition's list of files that are read for its size."""


def download(competition: Competition, folder: Path) -> Path:
    """Puts the raw files of a competition into `folder`, all of them or none, and returns where they are.

    An interrupted download goes on. Where the folder holds archives, they are unpacked instead, into work/.

    Raises:
        PipelineError: the folder holds raw files already, or the files cannot be had; the ways on are said.
    """
    if packed(folder):
        return unpack_there(competition.name, folder)
    if competition.reader != "oxford_pet" and not competition.kaggle:
        raise PipelineError(
            f"competition {competition.name}: its YAML does not say what it is called on Kaggle (`kaggle: …`); put the "
            f"files of {competition.title} into {folder}."
        )
    target = folder.resolve()  # an empty folder that is a link stays one
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise PipelineError(f"{folder} is not empty; nothing was downloaded: move it away, or use what is there.")
    if competition.reader == "oxford_pet":
        _download_pets(competition, folder, target)
    else:
        download_from_kaggle(str(competition.kaggle), target)
    return folder


def download_new(slug: str, folder: Path) -> Path:
    """Downloads a Kaggle competition that has no YAML here yet, and returns where its files are; raises as download
    does, or where the name is none."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", slug):
        known = sorted(path.stem for path in COMPETITIONS.glob("*.yaml"))
        raise PipelineError(
            f"{slug!r} is neither a competition here ({', '.join(known)}) nor the last part of a Kaggle address "
            "(small letters, digits and hyphens)."
        )
    if folder.is_dir() and any(folder.iterdir()):
        raise PipelineError(f"{folder} is not empty; nothing was downloaded: move it away, or use what is there.")
    download_from_kaggle(slug, folder.resolve())
    return folder


def download_from_kaggle(slug: str, target: Path) -> None:
    """Downloads and unpacks all files of a Kaggle competition into a folder that is not there yet, or is empty.

    Args:
        slug: the competition's name in its address.
        target: the folder.

    Raises:
        PipelineError: no token, rules that are not accepted, no such competition, no network, too small a disk, or a
            damaged archive.
    """
    api = connect()
    with explained(f"download {slug}", slug):
        _check_access(api, slug)
        size = _size_of(api, slug)
    archives.check_space(target, 2 * size, f"the archive of {slug} and its files")
    kept = target.with_name(f".{target.name}.download")  # what an interrupted download goes on from
    kept.mkdir(parents=True, exist_ok=True)
    say(f"  {slug}: {size / 2**30:.2f} GiB")
    with explained(f"download {slug}", slug, "The same command goes on from what is there."):
        api.competition_download_files(slug, path=str(kept), quiet=console.quiet or not sys.stderr.isatty())
    (archive,) = (path for path in kept.iterdir() if path.stem == slug and path.suffix != ".kaggle-partial")
    with writing(target) as temporary:
        if temporary.exists():
            shutil.rmtree(temporary)
        temporary.mkdir(parents=True)
        try:
            count = archives.unpack(archive, temporary) if archive.suffix == ".zip" else _take(archive, temporary)
        except archives.DamagedArchive as error:
            shutil.rmtree(kept)
            raise PipelineError(f"{error}, and was deleted: run the same command again.") from None
        except archives.RefusedArchive as error:
            raise PipelineError(
                f"{error} It stays as {shown(archive)}: look at it, or delete it to have it downloaded again."
            ) from None
        if target.is_dir():
            target.rmdir()
    shutil.rmtree(kept)
    say(f"  {count} files")


def packed(folder: Path) -> list[Path]:
    """Returns the archives in a folder of raw files."""
    return sorted(folder.glob("*.zip")) if folder.is_dir() else []


def unpack_there(name: str, folder: Path) -> Path:
    """Unpacks the archives in a folder of raw files, which may be read-only, into work/<name>/raw, with links to
    whatever else lies there; from then on the raw files are read from that folder.

    Raises:
        PipelineError: an archive is damaged or unsafe, or the disk too small; nothing is left then.
    """
    target = unpacked_folder(name)
    with writing(target) as temporary:
        if temporary.exists():
            shutil.rmtree(temporary)
        temporary.mkdir(parents=True)
        for path in sorted(folder.iterdir(), key=lambda path: (path.suffix == ".zip", path)):
            if path.suffix == ".zip":
                try:
                    place = archives.place_of(path)
                    if (there := place if place != folder else path.with_suffix("")).exists():
                        say(f"  {path.name} is not unpacked: {there.name} lies beside it, and is used")
                        continue
                    archives.unpack(path, temporary / place.relative_to(folder))
                except archives.DamagedArchive as error:
                    raise PipelineError(f"{error} in {shown(folder)}: put a sound one there.") from None
                except archives.RefusedArchive as error:
                    raise PipelineError(f"{error} Put another one in the place of {shown(path)}.") from None
            else:
                (temporary / path.name).symlink_to(path.absolute())
        if target.exists():
            shutil.rmtree(target)
    say(f"  unpacked {', '.join(path.name for path in packed(folder))} → {shown(target)}")
    return target


def _take(file: Path, folder: Path) -> int:
    shutil.copy2(file, folder / file.name)
    return 1


def _check_access(api: Any, slug: str) -> None:
    """Checks that the competition exists and its rules are accepted.

    Raises:
        PipelineError: they are not.
    """
    from kagglesdk.competitions.types.competition_api_service import ApiGetCompetitionRequest

    request = ApiGetCompetitionRequest()
    request.competition_name = slug
    with api.build_kaggle_client() as kaggle:
        answer = kaggle.competitions.competition_api_client.get_competition(request)
    if not answer.user_has_entered:
        raise PipelineError(
            f"The rules of {slug} are not accepted yet: open https://www.kaggle.com/competitions/{slug}/rules, join "
            "the competition there, and run the same command again."
        )


def _size_of(api: Any, slug: str) -> int:
    """The bytes of a competition's files."""
    total, page = 0, None
    for _ in range(PAGES):
        answer = api.competition_list_files(slug, page_token=page, page_size=200)
        total += sum(file.total_bytes for file in answer.files)
        page = answer.next_page_token
        if not page:
            break
    return total


# --- the Oxford-IIIT Pet data ----------------------------------------------------------------------------------------


def _download_pets(competition: Competition, folder: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
            _fetch_pets(Path(temporary), target)
    # the network, a wrong checksum, an archive that is none
    except (OSError, RuntimeError, http.client.HTTPException, tarfile.TarError, EOFError, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PipelineError(
            f"{competition.title} could not be downloaded ({reason}): try again with a network, or put the files there "
            "by hand - the documentation of torchvision.datasets.OxfordIIITPet leads to the two archives, "
            f"images.tar.gz and annotations.tar.gz; unpack both in {folder}."
        ) from None


def _fetch_pets(temporary: Path, target: Path) -> None:
    from torchvision.datasets import OxfordIIITPet

    OxfordIIITPet(root=str(temporary), split="trainval", target_types="segmentation", download=True)
    ready = temporary / "ready"
    ready.mkdir()
    for name in FOLDERS:
        (temporary / "oxford-iiit-pet" / name).rename(ready / name)
    ready.replace(target)
