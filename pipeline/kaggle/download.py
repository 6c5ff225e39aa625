"""Downloads the raw files of a competition to input/: from Kaggle, or the Oxford-IIIT Pet data, which needs no account.

If the folder contains archives instead, as Kaggle mounts some in a notebook, they are unpacked into work/.
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
"""Maximum number of pages of a competition's file list that are read to compute its size."""


def download(competition: Competition, folder: Path) -> Path:
    """Downloads the raw files of a competition into `folder` atomically, and returns the folder that contains them.

    An interrupted download continues. If the folder contains archives, they are unpacked into work/ instead.

    Raises:
        PipelineError: the folder contains raw files already, or the files cannot be downloaded; the message says what
            to do.
    """
    if packed(folder):
        return unpack_there(competition.name, folder)
    if competition.reader != "oxford_pet" and not competition.kaggle:
        raise PipelineError(
            f"competition {competition.name}: its YAML does not give its name on Kaggle (`kaggle: …`); add it, or put "
            f"the files of {competition.title} into {folder}."
        )
    target = folder.resolve()  # a link to an empty folder stays a link
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise PipelineError(f"{folder} is not empty, so nothing was downloaded: use these files, or move them away.")
    if competition.reader == "oxford_pet":
        _download_pets(competition, folder, target)
    else:
        download_from_kaggle(str(competition.kaggle), target)
    return folder


def download_new(slug: str, folder: Path) -> Path:
    """Downloads the files of a Kaggle competition that has no YAML here yet, and returns their folder.

    Raises:
        PipelineError: as `download`, or the name is not valid.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", slug):
        known = sorted(path.stem for path in COMPETITIONS.glob("*.yaml"))
        raise PipelineError(
            f"{slug!r} is neither a known competition ({', '.join(known)}) nor the last part of an address on Kaggle "
            "(lower-case letters, digits and hyphens)."
        )
    if folder.is_dir() and any(folder.iterdir()):
        raise PipelineError(f"{folder} is not empty, so nothing was downloaded: use these files, or move them away.")
    download_from_kaggle(slug, folder.resolve())
    return folder


def download_from_kaggle(slug: str, target: Path) -> None:
    """Downloads and unpacks all files of a Kaggle competition into a folder that does not exist yet or is empty.

    Args:
        slug: name of the competition in its address on Kaggle.
        target: the folder.

    Raises:
        PipelineError: there is no token, the rules are not accepted, the competition does not exist, there is no
            network, the disk is too small, or the archive is damaged.
    """
    api = connect()
    with explained(f"download {slug}", slug):
        _check_access(api, slug)
        size = _size_of(api, slug)
    archives.check_space(target, 2 * size, f"the archive of {slug} and its files")
    kept = target.with_name(f".{target.name}.download")  # an interrupted download continues from this folder
    kept.mkdir(parents=True, exist_ok=True)
    say(f"  {slug}: {size / 2**30:.2f} GiB")
    with explained(f"download {slug}", slug, "Run the same command again to continue the download."):
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
                f"{error} The archive is kept as {shown(archive)}: look at it, or delete it to download it again."
            ) from None
        if target.is_dir():
            target.rmdir()
    shutil.rmtree(kept)
    say(f"  {count} files")


def packed(folder: Path) -> list[Path]:
    """Returns the .zip files in a folder of raw files."""
    return sorted(folder.glob("*.zip")) if folder.is_dir() else []


def unpack_there(name: str, folder: Path) -> Path:
    """Unpacks the archives in a folder of raw files, which may be read-only, into work/<name>/raw; returns that path.

    All other files of the folder are linked there. From then on the raw files are read from that folder.

    Raises:
        PipelineError: an archive is damaged or unsafe, or the disk is too small; then nothing is left behind.
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
                    if (existing := place if place != folder else path.with_suffix("")).exists():
                        say(f"  {path.name} is not unpacked: {existing.name} exists next to it and is used")
                        continue
                    archives.unpack(path, temporary / place.relative_to(folder))
                except archives.DamagedArchive as error:
                    raise PipelineError(f"{error} in {shown(folder)}: replace it with an intact one.") from None
                except archives.RefusedArchive as error:
                    raise PipelineError(f"{error} Replace {shown(path)} with another archive.") from None
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
    """Checks that the competition exists and that its rules are accepted.

    Raises:
        PipelineError: the rules are not accepted.
    """
    from kagglesdk.competitions.types.competition_api_service import ApiGetCompetitionRequest

    request = ApiGetCompetitionRequest()
    request.competition_name = slug
    with api.build_kaggle_client() as kaggle:
        answer = kaggle.competitions.competition_api_client.get_competition(request)
    if not answer.user_has_entered:
        raise PipelineError(
            f"You have not accepted the rules of {slug} yet: join the competition at "
            f"https://www.kaggle.com/competitions/{slug}/rules, and run the same command again."
        )


def _size_of(api: Any, slug: str) -> int:
    """The total size of a competition's files in bytes."""
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
    # no network, a wrong checksum, or a file that is not an archive
    except (OSError, RuntimeError, http.client.HTTPException, tarfile.TarError, EOFError, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PipelineError(
            f"{competition.title} could not be downloaded ({reason}): check the network and try again, or get the two "
            "archives images.tar.gz and annotations.tar.gz by hand (see the documentation of "
            f"torchvision.datasets.OxfordIIITPet) and unpack both in {folder}."
        ) from None


def _fetch_pets(temporary: Path, target: Path) -> None:
    from torchvision.datasets import OxfordIIITPet

    OxfordIIITPet(root=str(temporary), split="trainval", target_types="segmentation", download=True)
    ready = temporary / "ready"
    ready.mkdir()
    for name in FOLDERS:
        (temporary / "oxford-iiit-pet" / name).rename(ready / name)
    ready.replace(target)
