"""Submissions as Parquet: written from a CSV, and read back as one to be checked."""

from contextlib import suppress
from pathlib import Path

import pandas as pd

from pipeline.core.config.competition import Competition
from pipeline.core.errors import PipelineError, first_line


def write(source: Path, target: Path, competition: Competition) -> None:
    """Writes a CSV as Parquet. All columns are text, so that ids keep their leading zeros; but the pixels of class maps
    are numbers, where all of their labels are.

    Args:
        source: the CSV.
        target: the Parquet file.
        competition: says which column holds ids, and whether rows are class maps.
    """
    frame, settings = pd.read_csv(source, dtype=str, keep_default_na=False), competition.submission
    if settings.format == "labels":
        pixels = [name for name in frame if name != settings.id]
        with suppress(ValueError):  # labels are words
            numbers = frame[pixels].astype("int64")
            if numbers.astype(str).equals(frame[pixels]):
                frame = pd.concat([frame[[settings.id]], numbers], axis=1)
    frame.to_parquet(target, index=False)


def to_csv(source: Path, target: Path) -> None:
    """Writes a Parquet file as a CSV with the same texts.

    Raises:
        PipelineError: it cannot be read.
    """
    try:
        frame = pd.read_parquet(source)
    except (OSError, ValueError) as error:
        raise PipelineError(f"{source.name} cannot be read as Parquet: {first_line(error)}.") from None
    frame.astype(object).where(frame.notna(), "").astype(str).to_csv(target, index=False, lineterminator="\n")
