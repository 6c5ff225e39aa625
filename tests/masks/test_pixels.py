"""Images of many channels, and of floats, are fitted channel by channel as any other."""

import numpy as np
import pytest

from pipeline.core.errors import PipelineError
from pipeline.masks.geometry import Geometry, image_to_network
from pipeline.masks.overlay import to_rgb8
from pipeline.masks.pixels import largest_of, loaded


@pytest.mark.parametrize("channels", [2, 5, 6, 32])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16])
@pytest.mark.parametrize(("fit", "size"), [("stretch", (9, 12)), ("stretch", (40, 50)), ("pad", (32, 40))])
def test_every_channel_is_fitted_as_if_alone(channels: int, dtype: type, fit: str, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).uniform(0, largest_of(dtype), (20, 30, channels)).astype(dtype)
    geometry = Geometry(size, fit, channels)  # type: ignore[arg-type]
    found = image_to_network(image, geometry)
    assert (found.shape, found.dtype) == ((*size, channels), dtype)
    for channel in range(channels):
        alone = image_to_network(image[..., [channel]], Geometry(size, fit, 1))  # type: ignore[arg-type]
        assert np.abs(found[..., channel].astype(float) - alone[..., 0]).max() <= (1e-3 if dtype is np.float16 else 1)


def test_other_numbers_of_channels_are_refused() -> None:
    image = np.zeros((4, 4, 6), np.uint8)
    for channels in (1, 3, 5):
        with pytest.raises(PipelineError, match=r"set image.channels=6"):
            image_to_network(image, Geometry((4, 4), "stretch", channels))


def test_floats_are_shown_and_loaded() -> None:
    image = np.linspace(0, 1, 12, dtype=np.float16).reshape(2, 3, 2)
    assert to_rgb8(image)[..., 0].tolist() == np.rint(image[..., 0].astype(float) * 255).tolist()
    assert loaded(image).dtype == np.float32
    assert (loaded(image) == image).all()
    assert loaded(np.zeros(2, np.uint16)).dtype == np.uint16
