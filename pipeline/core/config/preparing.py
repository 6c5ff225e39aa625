"""The settings of a competition for decoding its raw files and for splitting its images into folds."""

from typing import Literal

from pydantic import Field

from pipeline.core.config.settings import Settings


class DecodeSettings(Settings):
    """How decode handles faults in the raw files."""

    on_error: Literal["stop", "drop"] = "stop"
    """Faulty training images. `stop` reports them and ends; `drop` leaves them out and lists them as `broken` in
    outliers.csv."""
    on_test_error: Literal["stop", "blank"] = "stop"
    """Test images that are missing or cannot be read. `stop` reports them and ends. `blank` predicts an empty mask for
    them (in multiclass competitions the most frequent class) and is meant for hidden test sets, which cannot be
    repaired."""
    uniform_masks: Literal["stop", "allow"] = "stop"
    """What happens if no training image has a non-empty mask, or if every mask covers its whole image. This usually
    means that the masks are read in the wrong way, so the default is to `stop`. Set `allow` if the masks are really
    like this."""


class SplitSettings(Settings):
    """How the file of folds is made."""

    method: Literal["grouped", "random"] = "grouped"
    """`grouped` keeps groups and near-duplicates together in one fold. `random` does not; it is meant for comparisons,
    or for a test set from the same groups as the training set."""
    folds: int = Field(5, ge=2)
    """Number of folds."""
    seed: int = 0
    """The first random seed that is tried."""
    seeds: int = Field(10, ge=1)
    """Number of random seeds that are tried. The best balanced split is kept."""
    strata: int = Field(4, ge=1)
    """Number of mask area quantiles by which images with a non-empty mask are stratified. The area is that of the
    image's rarest class."""
    stratify: str | None = None
    """Another column of the mask table whose values are distributed evenly over the folds."""
    together: str | None = None
    """What must stay together in one fold if that is more than one `group`, e.g. all volumes of a patient. It is
    written in the same way as `group`. Scores over groups and bootstrap samples still use `group`."""
