"""What a competition's YAML may say under `clean`: which detectors run, and what follows from their findings."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from pipeline.core.config.settings import Settings


def _off(value: Any) -> Any:
    return "off" if value is False else value  # what YAML makes of `off`


Action = Annotated[Literal["drop", "keep", "off"], BeforeValidator(_off)]
Policy = Annotated[Literal["drop_empty", "drop_both", "relabel", "soft", "keep", "off"], BeforeValidator(_off)]


class BrokenSettings(Settings):
    """Images that show nothing: of one colour, nearly black or white, or noise."""

    action: Action = "drop"
    constant: bool = True
    """Images whose pixels all have one value."""
    extreme: float = Field(1 / 16, ge=0, le=0.5)
    """Nearly black or white: the mean is in the lowest or highest part, this large, of the range of values; 0 finds
    none."""
    noise: float = Field(0.2, ge=0, le=1)
    """Noise: neighbouring pixels correlate less than this; 0 finds none."""
    z: float = Field(5.0, gt=0)
    """Nearly black, nearly white and noise count only where the image stands this many robust standard deviations off
    the others: where most are dark, dark is not broken."""


class IdenticalMaskSettings(Settings):
    """One mask on several images: copied by mistake, or a sign that they do not belong."""

    action: Action = "drop"
    images: int = Field(5, ge=2)
    """From how many images on that are no near-duplicates of each other; fewer are listed and kept."""


class DuplicateSettings(Settings):
    """Images that are nearly the same: they stand in one fold."""

    search: bool = True
    """Whether they are looked for."""
    distance: float = Field(0.008, gt=0, le=2)
    """The histograms of 20×20-pixel blocks of near-duplicates are closer than this cosine distance; `correlation` must
    hold too."""
    correlation: float = Field(0.9, ge=-1, le=1)
    """The least correlation of the thumbnails of near-duplicates: histograms alone take any two dark images for the
    same."""
    within_groups: bool = True
    """Search inside groups only, where the competition has groups."""
    test: bool = True
    """Report training images that have a near-duplicate in the test set."""


class ContradictionSettings(Settings):
    """Near-duplicates whose masks disagree."""

    policy: Policy = "keep"
    """`drop_empty` leaves the empty one out of training, `drop_both` both; `relabel` trains it on its neighbour's mask;
    `soft` trains all of them on their mean mask; `keep` lists them; `off` does not look."""
    dice: float = Field(0.3, ge=0, le=1)
    """Two masks disagree below this Dice, and when one alone is empty."""
    under_mask: float | None = Field(0.05, gt=0)
    """The largest cosine distance of the blocks under the masks: where the images differ just there, the object came
    into view between them, and both masks may be right. null does not look."""


class PixelOutlierSettings(Settings):
    """Images whose mean, contrast or entropy is unlike the others'."""

    action: Action = "keep"
    z: float = Field(6.0, gt=0)
    """From how many robust standard deviations on, in any of the three."""
    isolation: float | None = Field(0.75, gt=0, le=1)
    """From which anomaly score of an isolation forest on, over all three together (about 0.5 is ordinary, 1 the most);
    null grows none."""


class CleanSettings(Settings):
    """The detectors of clean; `off` switches one off, `keep` lists without consequence."""

    broken: BrokenSettings = BrokenSettings()
    identical_masks: IdenticalMaskSettings = IdenticalMaskSettings()
    duplicates: DuplicateSettings = DuplicateSettings()
    contradictions: ContradictionSettings = ContradictionSettings()
    pixel_outliers: PixelOutlierSettings = PixelOutlierSettings()
