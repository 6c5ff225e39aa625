"""Gets the raw files of a competition that may be had without an account."""

import http.client
import tarfile
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.core.config.competition import Competition
from pipeline.core.errors import PipelineError

FOLDERS = ("images", "annotations")


def download(competition: Competition, folder: Path) -> None:
    """Puts the raw files of a competition into `folder`, all of them or none.

    Raises:
        PipelineError: the folder is not empty, the files cannot be had, or the competition's are not to be downloaded
            from here; the ways on are offered.
    """
    if competition.reader != "oxford_pet":
        way = f"put the files of {competition.title} into {folder}."
        if competition.kaggle:
            way = f"run `kaggle competitions download -c {competition.kaggle} -p {folder}` and unzip it there."
        raise PipelineError(f"competition {competition.name}: only the Oxford-IIIT Pet data is downloaded here; {way}")
    target = folder.resolve()  # an empty folder that is a link stays one
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise PipelineError(f"{folder} is not empty; nothing was downloaded: move it away, or use what is there.")
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
