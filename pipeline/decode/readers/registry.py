"""The readers by their names in the competition's YAML."""

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
    """Returns the reader of a competition; base.py documents its functions."""
    return READERS[competition.reader]
