"""What a competition's YAML may say about decoding its raw files and splitting its images into folds."""

from typing import Literal

from pydantic import Field

from pipeline.core.config.settings import Settings


class DecodeSettings(Settings):
    """What decode does about faults in the raw files."""

    on_error: Literal["stop", "drop"] = "stop"
    """`drop` turns a faulty training image into a `broken` row of outliers.csv."""
    on_test_error: Literal["stop", "blank"] = "stop"
    """What a test image that is missing or cannot be read does: `blank` costs that image alone, which gets an empty
    mask (or, of a multiclass competition, the commonest class), for a hidden test set that nobody can mend."""
    uniform_masks: Literal["stop", "allow"] = "stop"
    """What happens when no training image has a mask, or every mask covers its whole image, which mostly means that the
    masks are misread; `allow` where it is so."""


class SplitSettings(Settings):
    """How a folds file is made."""

    method: Literal["grouped", "random"] = "grouped"
    """`grouped` keeps groups and near-duplicates in one fold; `random` does not: for comparison, or for a test set that
    shares its sources with the training set."""
    folds: int = Field(5, ge=2)
    """How many parts."""
    seed: int = 0
    """The first seed to try."""
    seeds: int = Field(10, ge=1)
    """How many seeds to try; the best balanced split is kept."""
    strata: int = Field(4, ge=1)
    """Number of mask-area quantiles told apart among images with a mask (of their rarest class)."""
    stratify: str | None = None
    """A further column of the mask table whose values are spread over the folds."""
    together: str | None = None
    """What must stay in one fold where that is more than a `group`, e.g. all volumes of a patient: written as `group`
    is. Scores over groups, and bootstraps, still go by `group`."""
