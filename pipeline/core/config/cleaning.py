"""The settings of a competition under `clean`: which detectors run, and what happens with their findings."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from pipeline.core.config.settings import Settings


def _off(value: Any) -> Any:
    return "off" if value is False else value  # YAML reads an unquoted `off` as False


Action = Annotated[Literal["drop", "keep", "off"], BeforeValidator(_off)]
Policy = Annotated[Literal["drop_empty", "drop_both", "relabel", "soft", "keep", "off"], BeforeValidator(_off)]


class BrokenSettings(Settings):
    """Detector of images without content: constant, nearly black, nearly white, or noise."""

    action: Action = "drop"
    constant: bool = True
    """Whether images are found whose pixels all have the same value."""
    extreme: float = Field(1 / 16, ge=0, le=0.5)
    """An image is nearly black or nearly white if its mean lies within this share of the lower or upper end of the
    range of values. 0: none is found."""
    noise: float = Field(0.2, ge=0, le=1)
    """An image is noise if the correlation of neighbouring pixels is lower than this. 0: none is found."""
    z: float = Field(5.0, gt=0)
    """Nearly black, nearly white and noisy images are only reported if they differ from the other images by at least
    this many robust standard deviations. In a data set of mostly dark images, a dark image is not broken."""


class IdenticalMaskSettings(Settings):
    """Detector of one and the same mask on several images, which may be a copying mistake."""

    action: Action = "drop"
    images: int = Field(5, ge=2)
    """Minimum number of images with this mask that are not near-duplicates of each other. With fewer images the finding
    is listed, and the images are kept."""


class DuplicateSettings(Settings):
    """Detector of near-duplicate images, which are kept together in one fold."""

    search: bool = True
    """Whether near-duplicates are searched for."""
    distance: float = Field(0.008, gt=0, le=2)
    """Maximum cosine distance between the histograms of 20×20-pixel blocks of two near-duplicates. They must satisfy
    `correlation` too."""
    correlation: float = Field(0.9, ge=-1, le=1)
    """Minimum correlation between the thumbnails of two near-duplicates. Without it, any two dark images would have
    similar histograms."""
    within_groups: bool = True
    """Whether only images of the same group are compared, if the competition has groups."""
    test: bool = True
    """Whether training images with a near-duplicate in the test set are reported."""


class ContradictionSettings(Settings):
    """Detector of near-duplicates whose masks contradict each other."""

    policy: Policy = "keep"
    """What training does with them. `drop_empty` leaves out the image with the empty mask, `drop_both` both images.
    `relabel` gives the image with the empty mask the mask of its near-duplicate. `soft` gives all of them their mean
    mask. `keep` only lists them. `off` does not search."""
    dice: float = Field(0.3, ge=0, le=1)
    """Two masks contradict each other if their Dice is lower than this, or if only one of them is empty."""
    under_mask: float | None = Field(0.05, gt=0)
    """Maximum cosine distance between the blocks under the masks. If two images differ more than this under the masks,
    the object may have come into view between them, and both masks may be right. null: not checked."""


class PixelOutlierSettings(Settings):
    """Detector of images whose mean, contrast or entropy is unusual."""

    action: Action = "keep"
    z: float = Field(6.0, gt=0)
    """Minimum distance from the other images in any of the three values, in robust standard deviations."""
    isolation: float | None = Field(0.75, gt=0, le=1)
    """Minimum anomaly score of an isolation forest over all three values together. Ordinary images score about 0.5, and
    1 is the maximum. null: no isolation forest."""


class CleanSettings(Settings):
    """The detectors of clean. `off` switches a detector off; `keep` lists its findings without consequences."""

    broken: BrokenSettings = BrokenSettings()
    identical_masks: IdenticalMaskSettings = IdenticalMaskSettings()
    duplicates: DuplicateSettings = DuplicateSettings()
    contradictions: ContradictionSettings = ContradictionSettings()
    pixel_outliers: PixelOutlierSettings = PixelOutlierSettings()
