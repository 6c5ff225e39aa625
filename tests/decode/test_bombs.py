"""Images and arrays that say they are larger than memory are refused before it is asked for."""

import gzip
import os
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from conftest import encoded

from benchmarks.reliability import malicious
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json
from pipeline.core.intact import read_array, read_arrays, read_parquet
from pipeline.core.tables import read_csv
from pipeline.decode.formats import limits
from pipeline.decode.readers.files import read_image


@pytest.fixture
def no_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(cv2, "imdecode", never)


@pytest.mark.parametrize(("rows", "columns"), [(16384, 16384), (2**31 - 1, 2**31 - 1), (40_000, 40_000)])
def test_a_png_is_judged_by_its_head(rows: int, columns: int, tmp_path: Path, no_decoder: None) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(malicious.png_of(rows, columns, bytes(700_000)))
    with pytest.raises(ValueError, match=r"fill the memory|an image that is decoded as a whole"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["jpg", "webp", "bmp"])
def test_other_images_are_judged_by_their_head(suffix: str, tmp_path: Path, no_decoder: None) -> None:
    path, data = tmp_path / f"x.{suffix}", bytearray(encoded(np.zeros((16, 16, 3), np.uint8), suffix))
    if suffix == "jpg":
        place = data.index(b"\xff\xc0") + 5
        data[place : place + 4] = struct.pack(">HH", 65_000, 65_000)
    elif suffix == "bmp":
        data[18:26] = struct.pack("<ii", 65_000, 65_000)
    else:
        pytest.skip("a WebP has 16383 rows and columns at most")
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"decoded as a whole|maximum image size"):
        read_image(path)


@pytest.mark.parametrize("shape", [(10**6, 10**6), (-1, 4), (4, -4), (2**62, 2**62)])
def test_arrays_must_be_as_large_as_their_header_states(shape: tuple[int, ...], tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(malicious.npy_of(shape))
    (tmp_path / "x.npz").write_bytes(malicious.npz_of(shape))
    for name in ("x.npy", "x.npz"):
        with pytest.raises(ValueError, match="damaged"):
            read_image(tmp_path / name)
    for path, read in ((tmp_path / "x.npy", read_array), (tmp_path / "x.npz", lambda path: read_arrays(path, ["x"]))):
        with pytest.raises(PipelineError, match="is damaged"):
            read(path)


def test_an_array_larger_than_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros((1000, 1000)))
    monkeypatch.setattr(limits, "free_memory", lambda: 1e6)
    with pytest.raises(ValueError, match="of memory may be used"):
        read_image(tmp_path / "x.npz")


def test_a_volume_is_judged_by_its_head(tmp_path: Path) -> None:
    pytest.importorskip("nibabel")
    (tmp_path / "x.nii.gz").write_bytes(malicious.nifti_of((32_000, 32_000, 30_000)))
    for number in (None, 3):
        with pytest.raises(ValueError, match="decoded as a whole|is a volume of"):
            read_image(tmp_path / "x.nii.gz", slice_number=number)


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_arrays_run_no_code(name: str, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for content in (malicious.planted_array(mark), malicious.planted_pickle(mark)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError):
            read_image(tmp_path / name)
        with pytest.raises(PipelineError):
            read_array(tmp_path / name)
    assert not mark.exists()


def test_an_ome_header_of_a_billion_pages(tmp_path: Path) -> None:
    pixels = '<Pixels ID="P:0" DimensionOrder="XYZCT" Type="uint8" SizeX="8" SizeY="8" SizeZ="%d" SizeC="1" SizeT="1">'
    ome = f'<OME xmlns="http://x/OME/2016-06"><Image ID="I:0">{pixels % 10**9}<TiffData/></Pixels></Image></OME>'
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, np.ones((8, 8), np.uint8), description=f'<?xml version="1.0"?>{ome}', metadata=None)
    with pytest.raises(ValueError, match="says that it holds 1000000000 pages"):
        read_image(path)


def test_a_compressed_volume_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nibabel")
    from pipeline.decode.formats import nifti

    monkeypatch.setattr(nifti, "MOST_BEYOND", 100)
    path = tmp_path / "x.nii.gz"
    path.write_bytes(gzip.compress(gzip.decompress(malicious.nifti_of((4, 4, 2))) + bytes(2**16)))
    with pytest.raises(ValueError, match="continues after"):
        read_image(path, slice_number=0)


def test_an_npz_of_nothing_but_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LARGEST", 2**20)
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros((2**12, 2**12), np.uint8))
    with pytest.raises(ValueError, match="made to fill the memory"):
        read_image(tmp_path / "x.npz")


def test_pipes_and_devices_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    (tmp_path / "x.csv").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="is not a file"):
        read_image(tmp_path / "x.png")
    with pytest.raises(PipelineError, match="a pipe or a device"):
        read_csv(tmp_path / "x.csv")
    for read in (read_array, read_parquet):
        with pytest.raises(PipelineError, match="a pipe or a device"):
            read(tmp_path / "x.csv")
    with pytest.raises(OSError, match="a pipe or a device"):
        read_json(tmp_path / "x.png")


def test_an_array_without_pixels(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((0, 9), np.uint8))
    with pytest.raises(ValueError, match="holds no pixels: its shape is 0×9"):
        read_image(tmp_path / "x.npy")
