"""benchmarks/calibrated_average.py: averages of two predictions, as they are and calibrated."""

import numpy as np
import pytest

from benchmarks.calibrated_average import average


@pytest.mark.parametrize("kind", ["Platt", "isotonic"])
def test_calibration_undoes_a_scale(kind: str) -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (24, 20, 20))
    masks = (random.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.uint8)
    masks[:, 0, 0] = 255
    true, flat = (np.rint(255 / (1 + np.exp(-slope * logits))).astype(np.uint8) for slope in (1.0, 0.25))
    groups = np.repeat(np.arange(8), 3).astype(str)
    plain = average("as they are", [true, flat], masks, groups)
    np.testing.assert_allclose(plain, (true / 255 + flat / 255) / 2, atol=1e-6)
    calibrated = average(kind, [true, flat], masks, groups)
    assert np.abs(calibrated - true / 255).mean() < 0.03 < np.abs(plain - true / 255).mean()
