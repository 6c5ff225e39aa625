"""What a competition's YAML may say of how an image lies in its files: channels, slices of a volume, windows."""

from pydantic import Field, field_validator, model_validator

from pipeline.core.config.settings import Settings

MOST_CHANNELS = 32
Range = tuple[float, float]
"""The lowest and the highest value."""


class ChannelSettings(Settings):
    """What the channels of an image are made of, in this order: files, slices, channels of each."""

    bands: list[str] = []
    """What `{band}` in `images` stands for: an image is one file per band, e.g. ["11", "14", "15"]."""
    slices: list[int] = [0]
    """Neighbouring slices that are channels too, by their distance, e.g. [-1, 0, 1]; where there is none, the nearest
    one is repeated."""
    slice_of: str | None = None
    """Where each slice is a file: a pattern of the id with `{slice}`, e.g. `{case}_{day}_slice_{slice}`; ids that
    differ in that number alone are neighbours."""
    pick: list[int] = []
    """Which channels of each file are kept, by number from 0; [] keeps all."""
    first: bool = False
    """Whether arrays are channels × rows × columns."""

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
            raise ValueError(f"gives {count} channels; there may be {MOST_CHANNELS}")
        return self


class VolumeSettings(Settings):
    """Files of several slices (NIfTI, TIFF pages, DICOM frames, arrays), each of which is an image."""

    axis: int | None = Field(None, ge=0, le=2)
    """Along which axis of the array slices follow each other. null: the last of NIfTI, the first of all others."""
    id: str = "{id}_{slice}"
    """The id of a slice, of the file's id and the slice's number, e.g. `{id}_{slice:04}`."""
    first: int = Field(0, ge=0)
    """The number of the first slice."""

    @field_validator("id")
    @classmethod
    def _names_both(cls, value: str) -> str:
        try:
            names = {value.format(id=one, slice=number) for one in ("a", "b") for number in (1, 2)}
        except (KeyError, IndexError, ValueError):
            names = set()
        if len(names) < 4:
            raise ValueError(f"expected a pattern with {{id}} and {{slice}}, e.g. {{id}}_{{slice:04}}; got {value!r}")
        return value


class WindowSettings(Settings):
    """Images too large to be read as a whole (TIFF, .npy) are cut into overlapping windows, each an image of its own;
    encode joins what is predicted of them."""

    size: tuple[int, int] = (2048, 2048)
    """Rows × columns of a window, in pixels of the image; `image.size` or `image.store` of the recipe is what it is
    resized to."""
    overlap: float = Field(0.125, ge=0, le=0.5)
    """How much of a window's side neighbouring windows share at least. There each pixel is learned and scored in one
    of them alone, and predicted by the mean of all. Scores that are means over images are means over windows."""

    @field_validator("size")
    @classmethod
    def _large_enough(cls, value: tuple[int, int]) -> tuple[int, int]:
        if min(value) < 32 or max(value) > 8192:
            raise ValueError(f"expected rows × columns from 32 to 8192; got {list(value)}")
        return value
