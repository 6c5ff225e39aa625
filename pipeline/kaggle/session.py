"""Saves what a session has made as a private dataset, and puts it back in the next session.

    python -m pipeline save NAME        work/, folds/ and submissions/, without what decode makes again in minutes
    python -m pipeline restore NAME     from the attached dataset, or downloaded

A Kaggle session ends after 9 or 12 hours and its folder with it; `run` goes on from what is put back.
"""

import re
import zipfile
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from pipeline.core.console import console, progress_bar, say
from pipeline.core.errors import PipelineError
from pipeline.core.files import input_root, root, shown, write_json
from pipeline.kaggle import archives
from pipeline.kaggle.client import connect, explained, user_of
from pipeline.kaggle.push import DATASET, push_dataset

FOLDERS = ("work", "folds", "submissions")
PACK = "session.segpipe"
"""A .zip by another name: Kaggle would unpack a .zip into a folder that can only be read."""
LEFT_OUT = re.compile(
    r"work/[^/]+/(pixels_[^/]+|raw|outliers)/|/\.locks/|\.lock$|\.partial(/|$)|/tensorboard/|/kaggle/|work/[^/]+/[^/]+/bundle/"
)
"""What is made again from the raw files, or of use to nobody."""


def save(name: str, message: str) -> str:
    """Uploads what this session has made as a version of a private dataset; returns what to do next.

    Args:
        name: of the dataset, with or without its owner.
        message: what the version is called.

    Raises:
        PipelineError: there is nothing to save, the name is none, or Kaggle does not take it.
    """
    _check_name(name)
    files = session_files()
    if not files:
        raise PipelineError(f"There is nothing to save: {', '.join(FOLDERS)} in {root()} are empty.")
    api = connect()
    full = name if "/" in name else f"{user_of(api)}/{name}"
    with TemporaryDirectory(prefix="segpipe-save-") as temporary:
        folder = Path(temporary)
        archives.check_space(folder, sum(path.stat().st_size for path in files), "the files to save")
        pack(files, folder / PACK)
        title = full.partition("/")[2]
        write_json(folder / DATASET, {"title": title, "id": full, "licenses": [{"name": "other"}]})
        _, version = push_dataset(api, folder, message)
    return (
        f"saved {len(files)} files as {full}, version {version}: attach it to the next session, and `restore {title}`"
    )


def restore(name: str, force: bool = False) -> str:
    """Puts back what `save` saved; returns what to do next.

    Args:
        name: of the dataset, with or without its owner; an attached one is found in input/.
        force: whether files that are there are replaced.

    Raises:
        PipelineError: there is no such dataset, it is damaged, or files that are there would be replaced.
    """
    slug = _check_name(name)
    places = (input_root() / slug, *sorted(input_root().glob(f"datasets/*/{slug}")))
    attached = next((folder / PACK for folder in places if (folder / PACK).is_file()), None)
    if attached:
        return _unpack(attached, force)
    api = connect()
    full = name if "/" in name else f"{user_of(api)}/{name}"
    with TemporaryDirectory(prefix=".segpipe-restore-", dir=_made(root())) as temporary:
        with explained(f"download the dataset {full}"):
            quiet = not console.is_terminal or console.quiet
            api.dataset_download_file(full, PACK, path=temporary, quiet=quiet)
        files = [path for path in Path(temporary).iterdir() if path.name in (PACK, f"{PACK}.zip")]
        if not files:
            raise PipelineError(f"The dataset {full} holds no {PACK}: `save` did not make it.")
        if files[0].name != PACK:  # Kaggle wraps large files
            archives.unpack(files[0], Path(temporary) / "inner")
            files = [Path(temporary) / "inner" / PACK]
        return _unpack(files[0], force)


def session_files() -> list[Path]:
    """Returns the files that a next session goes on from."""
    base = root()
    paths = [path for name in FOLDERS for path in sorted((base / name).rglob("*")) if path.is_file()]
    return [path for path in paths if not LEFT_OUT.search(path.relative_to(base).as_posix())]


def pack(files: list[Path], target: Path) -> None:
    """Writes files into a .zip by their paths under the root."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED, strict_timestamps=False) as opened, progress_bar() as bar:
        for path in bar.track(files, description="pack"):
            opened.write(path, path.relative_to(root()).as_posix())


def _unpack(archive: Path, force: bool) -> str:
    try:
        with zipfile.ZipFile(archive) as opened:
            names = opened.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise PipelineError(f"{archive} is damaged ({error}): save it again.") from None
    strange = [name for name in names if PurePosixPath(name).parts[:1] not in [(one,) for one in FOLDERS]]
    if strange:
        raise PipelineError(f"{archive} holds {strange[0]!r}, which is no file of a session; nothing was put back.")
    there = [name for name in names if (root() / name).exists()]
    if there and not force:
        raise PipelineError(
            f"{len(there)} of {len(names)} files are there already ({there[0]} for instance); nothing was put back: "
            "--force replaces them."
        )
    with TemporaryDirectory(prefix=".segpipe-restore-", dir=_made(root())) as temporary:
        try:
            count = archives.unpack(archive, Path(temporary), inner=False)
        except archives.DamagedArchive as error:
            raise PipelineError(f"{error}: save it again; nothing was put back.") from None
        for name in names:
            target = root() / name
            target.parent.mkdir(parents=True, exist_ok=True)
            (Path(temporary) / name).replace(target)
    say(f"  {count} files → {shown(root()) if shown(root()) != '.' else root()}")
    return f"put back {count} files: the same `run` goes on from them"


def _check_name(name: str) -> str:
    """Returns the last part of a dataset's name, if it is one."""
    if not re.fullmatch(r"([\w-]+/)?[a-z0-9-]{6,50}", name):
        raise PipelineError(
            f"{name!r} is no name of a dataset: expected 6 to 50 small letters, digits and hyphens, perhaps after an "
            "owner and a slash."
        )
    return name.rpartition("/")[2]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
