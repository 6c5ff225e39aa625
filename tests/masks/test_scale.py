"""Probabilities are stored and read back by the competition's scale."""

import numpy as np
import pytest

from pipeline.core.config.raw_layouts import load_competition
from pipeline.masks.scale import BYTES, HALVES, Scale, scale_of


def test_the_kind_of_competition_determines_the_scale() -> None:
    assert scale_of(load_competition("tgs-salt")) is BYTES
    assert scale_of(load_competition("mars-terrain")) is HALVES


@pytest.mark.parametrize(("scale", "off"), [(BYTES, 0.5 / 255), (HALVES, 2**-12)], ids=["bytes", "halves"])
def test_what_is_stored_is_what_was_meant(scale: Scale, off: float) -> None:
    probability = np.linspace(0, 1, 777, dtype=np.float32)
    stored = scale.stored(probability)
    assert stored.dtype == scale.dtype
    np.testing.assert_allclose(scale.probability(stored), probability, atol=off * 1.001)
    assert (stored[0], stored[-1]) == (0, scale.largest)
    everything = np.arange(256) if scale.whole else np.arange(0, 1, 0.125)
    np.testing.assert_array_equal(scale.stored(scale.probability(everything.astype(scale.dtype))), everything)


def test_a_mean_at_an_images_own_size() -> None:
    mean = np.array([[[0.4, 0.6, 100.5, 101.5]]], np.float32)
    np.testing.assert_array_equal(BYTES.native(mean), np.array([[[0, 1, 100, 102]]], np.uint8), strict=True)
    np.testing.assert_array_equal(HALVES.native(mean), mean, strict=True)
