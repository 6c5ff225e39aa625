"""The settings of a competition for how its files make up an image: channels, slices of a volume, windows."""

from pydantic import Field, field_validator, model_validator

from pipeline.core.config.settings import Settings

MOST_CHANNELS = 32
Range = tuple[float, float]
"""The lowest and the highest pixel value."""


class ChannelSettings(Settings):
    """What the channels of an image are made of, in this order: bands, neighbouring slices, channels of each file."""

    bands: list[str] = []
    """The values of `{band}` in `images`, e.g. ["11", "14", "15"]: an image consists of one file per band."""
    slices: list[int] = [0]
    """The slices that are channels of an image, by their distance from it, e.g. [-1, 0, 1]. If a slice does not exist,
    the nearest one is repeated."""
    slice_of: str | None = None
    """If each slice is a file: a pattern of the id with `{slice}`, e.g. `{case}_{day}_slice_{slice}`. Ids that differ
    only in this number are slices of the same volume."""
    pick: list[int] = []
    """The channels of each file that are kept, by number from 0. []: all."""
    first: bool = False
    """Whether arrays have the shape channels × rows × columns."""

    @model_validator(mode="after")
    def _consistent(self) -> "ChannelSettings":
        if not self.slices:
            raise ValueError("slices must hold at least one distance, e.g. [0]")
        if any(number < 0 for number in self.pick):
            raise ValueError(f"pick counts channels from 0; got {self.pick}")
        if self.slice_of is not None and "{slice}" not in self.slice_of:
            raise ValueError("slice_of must hold {slice}, e.g. {case}_slice_{slice}")
        count = max(1, len(self.bands)) * len(self.slices) * max(1, len(self.pick))
        if count > MOST_CHANNELS:
            raise ValueError(f"gives {count} channels; expected at most {MOST_CHANNELS}")
        return self


class VolumeSettings(Settings):
    """Files that hold several slices (NIfTI, TIFF pages, DICOM frames, arrays), each of which becomes an image."""

    axis: int | None = Field(None, ge=0, le=2)
    """The axis of the array along which the slices lie. null: the last axis for NIfTI, the first axis for all other
    formats."""
    id: str = "{id}_{slice}"
    """The id of a slice, built from the file's id and the number of the slice, e.g. `{id}_{slice:04}`."""
    first: int = Field(0, ge=0)
    """The number of the first slice."""

    @field_validator("id")
    @classmethod
    def _names_both(cls, value: str) -> str:
        try:
            names = {value.format(id=image_id, slice=number) for image_id in ("a", "b") for number in (1, 2)}
        except (KeyError, IndexError, ValueError):
            names = set()
        if len(names) < 4:
            raise ValueError(f"expected a pattern with {{id}} and {{slice}}, e.g. {{id}}_{{slice:04}}; got {value!r}")
        return value


class WindowSettings(Settings):
    """Large images (TIFF, .npy) are cut into overlapping windows, each of which is handled as an image. encode joins
    their predictions."""

    size: tuple[int, int] = (2048, 2048)
    """Rows × columns of a window in the original image. The window is then resized to the recipe's `image.size` or
    `image.store`."""
    overlap: float = Field(0.125, ge=0, le=0.5)
    """Minimum overlap of neighbouring windows, as a share of a window's side. In the overlap, each pixel is used for
    training and scores in one window only, and its prediction is the mean over all windows. Scores that are means over
    images are means over windows."""

    @field_validator("size")
    @classmethod
    def _large_enough(cls, value: tuple[int, int]) -> tuple[int, int]:
        if min(value) < 32 or max(value) > 8192:
            raise ValueError(f"expected rows × columns from 32 to 8192; got {list(value)}")
        return value
