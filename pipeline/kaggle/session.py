"""Saves the results of a Kaggle session as a private dataset, and restores them in the next session.

    python -m pipeline save NAME        work/, folds/ and submissions/, without files that decode makes again in minutes
    python -m pipeline restore NAME     from the attached dataset, or by download

A Kaggle session ends after 9 or 12 hours, and its folder is deleted. `run` continues from the restored files.
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
"""A .zip file with another suffix: Kaggle would unpack a .zip into a read-only folder."""
LEFT_OUT = re.compile(
    r"work/[^/]+/(pixels_[^/]+|raw|outliers)/|/\.locks/|\.lock$|\.partial(/|$)|/tensorboard/|/kaggle/|work/[^/]+/[^/]+/bundle/"
)
"""Files that are not saved: those made again from the raw files, locks, logs and bundles."""


def save(name: str, message: str) -> str:
    """Uploads the results of this session as a version of a private dataset; returns a sentence with the next step.

    Args:
        name: name of the dataset, with or without its owner.
        message: description of the version.

    Raises:
        PipelineError: there is nothing to save, the name is invalid, or Kaggle rejects the dataset.
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
        f"saved {len(files)} files as {full}, version {version}: attach it to the next session and run "
        f"`restore {title}` there"
    )


def restore(name: str, force: bool = False) -> str:
    """Restores the files that `save` saved; returns a sentence with the next step.

    Args:
        name: name of the dataset, with or without its owner. An attached dataset is found in input/.
        force: whether to overwrite existing files.

    Raises:
        PipelineError: the dataset does not exist, it is damaged, or existing files would be overwritten.
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
            raise PipelineError(f"The dataset {full} contains no {PACK}: it was not made by `save`.")
        if files[0].name != PACK:  # Kaggle sends large files as .zip
            archives.unpack(files[0], Path(temporary) / "inner")
            files = [Path(temporary) / "inner" / PACK]
        return _unpack(files[0], force)


def session_files() -> list[Path]:
    """Returns the files from which a next session can continue."""
    base = root()
    paths = [path for name in FOLDERS for path in sorted((base / name).rglob("*")) if path.is_file()]
    return [path for path in paths if not LEFT_OUT.search(path.relative_to(base).as_posix())]


def pack(files: list[Path], target: Path) -> None:
    """Writes files into a .zip file with their paths relative to the root."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED, strict_timestamps=False) as opened, progress_bar() as bar:
        for path in bar.track(files, description="pack"):
            opened.write(path, path.relative_to(root()).as_posix())


def _unpack(archive: Path, force: bool) -> str:
    try:
        with zipfile.ZipFile(archive) as opened:
            names = opened.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise PipelineError(f"{archive} is damaged ({error}): save it again.") from None
    strange = [name for name in names if PurePosixPath(name).parts[:1] not in [(folder,) for folder in FOLDERS]]
    if strange:
        raise PipelineError(
            f"{archive} contains {strange[0]!r}, which does not belong to a session; nothing was restored."
        )
    existing = [name for name in names if (root() / name).exists()]
    if existing and not force:
        raise PipelineError(
            f"{len(existing)} of {len(names)} files exist already (for instance {existing[0]}); nothing was restored: "
            "--force overwrites them."
        )
    with TemporaryDirectory(prefix=".segpipe-restore-", dir=_made(root())) as temporary:
        try:
            count = archives.unpack(archive, Path(temporary), inner=False)
        except archives.DamagedArchive as error:
            raise PipelineError(f"{error}: save it again; nothing was restored.") from None
        for name in names:
            target = root() / name
            target.parent.mkdir(parents=True, exist_ok=True)
            (Path(temporary) / name).replace(target)
    say(f"  {count} files → {shown(root()) if shown(root()) != '.' else root()}")
    return f"restored {count} files: the same `run` command continues from them"


def _check_name(name: str) -> str:
    """The last part of a dataset's name, after checking the name."""
    if not re.fullmatch(r"([\w-]+/)?[a-z0-9-]{6,50}", name):
        raise PipelineError(
            f"{name!r} is not a valid name of a dataset: expected 6 to 50 lower-case letters, digits and hyphens, "
            "optionally after an owner and a slash."
        )
    return name.rpartition("/")[2]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
