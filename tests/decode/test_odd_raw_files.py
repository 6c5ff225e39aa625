"""Raw files that are odd in ways that once ended in a traceback, or took minutes."""

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import SHAPE, TRAIN_IDS, Tiny, encoded

from pipeline.core import external_arrays
from pipeline.core.errors import PipelineError
from pipeline.decode.formats import raster
from pipeline.decode.formats.base import Wanted
from pipeline.decode.readers import rows
from pipeline.new.guess.layout import look


def test_all_training_images_are_constant(tiny: Tiny) -> None:
    for name in TRAIN_IDS:
        tiny.path(name).write_bytes(encoded(np.full(SHAPE, 7, np.uint8)))
    tiny.settings["value_range"] = [0, 255]
    tiny.save()
    run = tiny.run("decode", "clean")
    found = pd.read_csv(run.outliers)
    assert set(found["image_id"]) == set(TRAIN_IDS) and set(found["reason"]) == {"broken"}


def test_a_table_of_very_many_columns(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    wide = pd.DataFrame({f"c{number}": ["1"] * len(tiny.rows) for number in range(2000)})
    tiny.settings["group"] = "patient"
    tiny.save()
    table = pd.concat(
        [pd.DataFrame(tiny.rows).drop(columns="patient"), wide, pd.DataFrame(tiny.rows)["patient"]], axis=1
    )
    table.to_csv(tiny.input / "train.csv", index=False)
    began = time.process_time()
    images = pd.read_parquet(tiny.run("decode").table)
    assert time.process_time() - began < 10
    assert images.columns.str.startswith("extra_").sum() == rows.MOST_FURTHER + 1 and "extra_patient" in images
    assert "train.csv has 2,002 columns besides ids and masks. 201 are kept" in capsys.readouterr().err


@pytest.mark.parametrize(("label", "holds"), [(np.nan, "nan"), (np.inf, "inf"), (0.5, "0.5")])
def test_new_on_class_maps_that_are_none(tmp_path: Path, label: float, holds: str) -> None:
    training = np.zeros((4, 2, 8, 8), np.float32)
    training[:, 1, :2] = label
    np.savez(tmp_path / "maps.npz", training_set=training, test_set=training[:, 0])
    with pytest.raises(
        PipelineError, match=f"maps.npz: the class maps training_set.* contain {holds}; expected at most 256"
    ):
        look(tmp_path, "maps")


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\x08\x00{'descr'", b"PK\x03\x04"])
def test_an_external_array_file_that_holds_no_array(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "oof.npy").write_bytes(content)
    with pytest.raises(PipelineError, match="oof.npy is not a .npy file that can be memory-mapped"):
        external_arrays.open_array(tmp_path / "oof.npy")


def test_a_png_with_a_chunk_that_states_two_gigabytes(tmp_path: Path) -> None:
    data = bytearray(encoded(np.zeros((24, 20), np.uint16), "png"))
    place = data.index(b"IDAT") - 4
    data[place : place + 4] = (2**31 - 20).to_bytes(4, "big")
    with pytest.raises(ValueError, match="cannot be read whole, it is damaged or truncated"):
        raster.read_data(tmp_path / "a.png", bytes(data), Wanted(lambda shape: None))
