"""The readers by name."""

from types import ModuleType

from pipeline.core.config.competition import Competition
from pipeline.decode.readers import arrays, npz_labels, oxford_pet, rle_csv

READERS: dict[str, ModuleType] = {
    "rle_csv": rle_csv,
    "npz_labels": npz_labels,
    "arrays": arrays,
    "oxford_pet": oxford_pet,
}


def reader_of(competition: Competition) -> ModuleType:
    """Returns the module that reads a competition's raw files; see base.py for its functions."""
    return READERS[competition.reader]
