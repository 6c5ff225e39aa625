"""Libraries say nothing on their own of damaged files: one sentence of ours does."""

import logging
from pathlib import Path

import numpy as np
import pytest
import tifffile

from pipeline.decode.formats import registry
from pipeline.decode.readers.files import read_image


def test_a_damaged_tiff_is_one_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.arange(3000, dtype=np.uint8).reshape(50, 60), compression="zlib")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="damaged"):
        read_image(path)
    logging.getLogger("tifffile").warning("a tag is odd")
    assert registry.FORMATS and caplog.records == [] and capfd.readouterr().err == ""
