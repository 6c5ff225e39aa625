"""Arrays, volumes, several files as channels, and windows of large images come as they are stored."""

import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
from raw import Raw

from pipeline.core.errors import PipelineError
from pipeline.decode import table
from pipeline.decode.readers.files import read_image
from pipeline.masks import rle

SIDE = 24
RNG = np.random.default_rng(0)
MASK = np.pad(np.ones((8, 10), np.uint8), ((4, 12), (6, 8)))


def raw_of(tmp_path: Path, **settings: Any) -> Raw:
    usual = {"title": "Raw", "classes": ["thing"], "metric": "dice", "split": {"folds": 2}}
    return Raw(tmp_path, "raw", usual | settings)


def pixels_of(run: Any) -> np.ndarray:
    return np.load(run.pixels / "train_images.npy")


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


# --- arrays ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 3), (9, 7, 8), (9, 7, 32)])
def test_arrays_are_images(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = RNG.integers(0, 256, shape, dtype=np.uint8)
    channels = None if len(shape) == 2 or shape[2] == 3 else shape[2]
    np.save(tmp_path / "a.npy", array)
    np.savez_compressed(tmp_path / "a.npz", picture=array)
    np.save(tmp_path / "first.npy", np.moveaxis(array.reshape(9, 7, -1), -1, 0))
    wanted = array.reshape(9, 7, -1)
    assert (read_image(tmp_path / "a.npy", channels) == wanted).all()
    assert (read_image(tmp_path / "a.npz", channels) == wanted).all()
    assert (read_image(tmp_path / "first.npy", channels, channels_first=True) == wanted).all()
    assert (read_image(tmp_path / "a.npy", channels, box=(2, 1, 6, 5)) == wanted[2:6, 1:5]).all()


@pytest.mark.parametrize(("found", "said"), [(3, 2), (8, 3), (8, 1), (2, 4), (1, 4), (4, 8)])
def test_as_many_channels_as_the_yaml_says(tmp_path: Path, found: int, said: int) -> None:
    np.save(tmp_path / "a.npy", np.zeros((5, 5, found), np.uint8))
    with pytest.raises(ValueError, match=f"has {found} channels; the competition's YAML says {said}"):
        read_image(tmp_path / "a.npy", said)


def test_arrays_that_are_no_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", a=MASK, b=MASK)
    np.save(tmp_path / "deep.npy", np.zeros((4, 4, 33), np.uint8))
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "deep.npy").read_bytes()[:200])
    with pytest.raises(ValueError, match="holds the arrays a, b, and it is not known which of them is the picture"):
        read_image(tmp_path / "two.npz")
    assert (read_image(tmp_path / "two.npz", key="b")[..., 0] == MASK).all()
    with pytest.raises(ValueError, match="up to 32 channels"):
        read_image(tmp_path / "deep.npy", 33)
    with pytest.raises(ValueError, match="holds pickled objects"):
        read_image(tmp_path / "objects.npy")
    with pytest.raises(ValueError, match="damaged or truncated"):
        read_image(tmp_path / "cut.npy", 33)


def test_stacked_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = raw_of(
        tmp_path, reader="arrays", train={"images": "all.npz:X", "masks": "y.npy"}, test={"images": "X_test.npy"}
    )
    images = RNG.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    masks = (RNG.random((6, 32, 32, 1)) > 0.7).astype(np.uint8)
    np.savez(raw.folder / "all.npz", X=images, other=masks)
    np.save(raw.folder / "y.npy", masks * 255)
    np.save(raw.folder / "X_test.npy", images[:2])
    assert raw.faults() == []
    assert (raw.planes("3")[0] == masks[3, ..., 0]).all()
    assert (raw.opened(raw.item("4")) == images[4]).all()
    raw.settings["classes"] = {"thing": 7}
    assert str(raw.mask_fault("3")).startswith("the mask holds 255 (")
    np.save(raw.folder / "y.npy", masks * 0.5)
    assert str(raw.mask_fault("3")).startswith("the mask holds 0.5 (")
    np.save(raw.folder / "y.npy", masks * 7.0)
    assert raw.faults() == []
    np.savez(raw.folder / "all.npz", X=images * 0.1, other=masks)
    with pytest.raises(ValueError, match="row 0 of X holds float64 pixels"):
        raw.item("0").read_image()
    np.save(raw.folder / "y.npy", masks[:4])
    assert "expected as many masks as images" in raw.error()
    raw.settings["train"]["images"] = "all.npz"
    assert "all.npz holds the arrays X, other" in raw.error()


def test_stacked_masks_of_several_classes(tmp_path: Path) -> None:
    raw = raw_of(
        tmp_path, reader="arrays", train={"images": "X.npy", "masks": "y.npy"}, test={"images": "T.npy"},
        classes=["sky", "road"], kind="multiclass", metric="mean_iou", submission={"format": "labels"},
    )  # fmt: skip
    labels = RNG.integers(0, 2, (3, 8, 8))
    np.save(raw.folder / "X.npy", labels.astype(np.uint8))
    np.save(raw.folder / "T.npy", labels.astype(np.uint8))
    np.save(raw.folder / "y.npy", labels)
    assert (raw.planes("1") == [labels[1] == 0, labels[1] == 1]).all()
    np.save(raw.folder / "y.npy", np.stack([labels == 0, labels == 1], -1))
    assert (raw.planes("1") == [labels[1] == 0, labels[1] == 1]).all()


# --- several files, neighbouring slices ------------------------------------------------------------------------------


def test_one_file_per_band(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    raw = raw_of(
        tmp_path, train={"images": "train/{id}/band_{band}.npy", "masks": "train/{id}/mask.npy"},
        test={"images": "test/{id}/band_{band}.npy"}, channels={"bands": ["11", "08"], "pick": [1]},
        value_range=[200, 300],
    )  # fmt: skip
    images = {}
    for number in range(5):
        place = raw.folder / ("train" if number < 4 else "test") / f"r{number}"
        for band in ("08", "11"):
            images[number, band] = RNG.uniform(200, 300, (32, 32, 4)).astype(np.float16)
            save(place / f"band_{band}.npy", images[number, band])
        if number < 4:
            save(place / "mask.npy", np.eye(32, dtype=np.int32)[..., None])
    run = raw.decoded(monkeypatch, channels=2)
    assert pixels_of(run).dtype == np.float16
    for row, found in enumerate(pixels_of(run)):
        wanted = np.stack([images[row, band][..., 1].astype(np.float32) for band in ("11", "08")], -1)
        assert np.abs(found - (wanted - 200) / 100).max() < 2**-10
    assert "not used" not in capsys.readouterr().err
    (raw.folder / "test" / "r4" / "band_08.npy").unlink()
    with pytest.raises(ValueError, match="test/r4/band_08.npy does not exist"):
        raw.item("r4").read_image()
    save(raw.folder / "train" / "r9" / "band_08.npy", images[0, "08"])
    (fault,) = raw.listing().faults
    assert (str(fault), fault.image_id) == ("train/r9/band_08.npy: there is no file of band 11 beside it", "r9")
    raw.settings["channels"] = 2
    with pytest.raises(PipelineError, match=r"`channels: {bands: \[…\]}` lists the bands"):
        raw.competition()


def test_neighbouring_slices_of_files(tmp_path: Path) -> None:
    raw = raw_of(
        tmp_path, train={"images": "train/{id}.png", "masks": "masks/{id}.png"}, test={"images": "test/{id}.png"},
        channels={"slices": [-1, 0, 1], "slice_of": "{case}_slice_{slice}"},
    )  # fmt: skip
    for case in "ab":
        for number in range(9, 12):
            for folder in ("train", "masks", "test"):
                path = raw.folder / folder / f"{case}_slice_{number:04}.png"
                path.parent.mkdir(exist_ok=True)
                cv2.imwrite(str(path), np.full((4, 4), 100 * (case == "b") + number, np.uint8))
    assert raw.item("a_slice_0010").read_image()[0, 0].tolist() == [9, 10, 11]
    assert raw.item("b_slice_0009").read_image()[0, 0].tolist() == [109, 109, 110]
    assert raw.item("b_slice_0011").place["of_files"].count("|") == 2


# --- volumes ---------------------------------------------------------------------------------------------------------

VOLUME = RNG.integers(0, 256, (5, 16, 20), dtype=np.uint8)
VOLUME_MASK = (RNG.random(VOLUME.shape) > 0.6).astype(np.uint8)


def write_volume(path: Path, array: np.ndarray, kind: str) -> None:
    path.parent.mkdir(exist_ok=True)
    if kind == "npy":
        np.save(path, array)
    elif kind.startswith("tif"):
        ways: dict[str, Any] = {"tif": {"compression": "zlib"}, "tif imagej": {"imagej": True}, "tif plain": {}}
        tifffile.imwrite(path, array, photometric="minisblack", **ways[kind])
    else:
        nibabel = pytest.importorskip("nibabel")
        affine = np.diag([0.5, 0.75, 3, 1])
        nibabel.save(nibabel.Nifti1Image(np.moveaxis(array, 0, -1), affine), path)


@pytest.mark.parametrize("kind", ["npy", "tif", "tif plain", "tif imagej", "nii", "nii.gz"])
def test_every_slice_of_a_volume_is_an_image(tmp_path: Path, kind: str) -> None:
    ending = kind.split()[0]
    raw = raw_of(
        tmp_path, train={"images": f"images/{{id}}_0000.{ending}", "masks": f"labels/{{id}}.{ending}"},
        test={"images": f"test/{{id}}.{ending}"}, volumes={"id": "{id}_{slice:03}", "first": 1},
        channels={"slices": [-1, 0]},
    )  # fmt: skip
    for name in ("p1", "p2"):
        write_volume(raw.folder / "images" / f"{name}_0000.{ending}", VOLUME, kind)
        write_volume(raw.folder / "labels" / f"{name}.{ending}", VOLUME_MASK, kind)
    write_volume(raw.folder / "test" / f"t.{ending}", VOLUME, kind)
    assert raw.faults() == []
    items = [item for item in raw.listing().items if item.subset == "train"]
    assert [item.image_id for item in items[:2]] == ["p1_001", "p1_002"]
    assert {item.group for item in items} == {"p1", "p2"}
    assert (items[3].read_image() == np.stack([VOLUME[2], VOLUME[3]], -1)).all()
    assert (items[0].read_image() == np.stack([VOLUME[0], VOLUME[0]], -1)).all()
    assert (raw.planes("p2_004")[0] == VOLUME_MASK[3]).all()
    assert items[0].place["of_spacing"] == ("3 0.5 0.75" if kind.startswith("nii") else "")
    assert raw.listing().remarks == []
    (raw.folder / "images" / f"p1_0000.{ending}").write_bytes(b"nothing")
    (fault,) = raw.faults()
    assert fault.startswith(f"images/p1_0000.{ending}: cannot be read, it is damaged")


def test_slices_of_a_volume_with_a_table_of_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = raw_of(
        tmp_path, train={"images": "train/{id}.npy", "masks": "train.csv"}, test={"images": "test/{id}.npy"},
        volumes={"axis": 2}, columns={"id": "id", "rle": "rle", "absent": "empty"},
    )  # fmt: skip
    for name in ("train/p", "train/q", "test/t"):
        save(raw.folder / f"{name}.npy", np.moveaxis(VOLUME, 0, -1))
    pd.DataFrame({"id": ["p_2"], "rle": [rle.encode(VOLUME_MASK[2])]}).to_csv(raw.folder / "train.csv", index=False)
    run = raw.decoded(monkeypatch)
    rows = table.read_table(run.table)
    assert rows["image_id"].tolist() == [
        "p_2",
        *(f"{one}_{n}" for one in "pq" for n in range(5) if (one, n) != ("p", 2)),
    ]
    assert (table.true_mask(rows.iloc[0], ["thing"])[0] == VOLUME_MASK[2]).all()
    from pipeline.decode.readers.registry import reader_of

    opened = reader_of(run.competition).opener(run.competition, run.input)(rows.iloc[3])
    assert (opened[..., 0] == VOLUME[3]).all()


@pytest.mark.parametrize(("package", "name"), [("nibabel", "a.nii"), ("pydicom", "a.dcm")])
def test_a_missing_package_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, name: str
) -> None:
    (tmp_path / name).write_bytes(b"\0" * 400)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(PipelineError, match=rf"{name}, a .* needs {package}, which is not installed.*\[medical\]"):
        read_image(tmp_path / name)


# --- DICOM -----------------------------------------------------------------------------------------------------------


def write_dicom(path: Path, pixels: np.ndarray, compress: bool = False, **tags: Any) -> None:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless

    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
    bits = pixels.dtype.itemsize * 8
    frames = pixels.ndim == 3
    data.Rows, data.Columns = pixels.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit = bits, bits, bits - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    if frames:
        data.NumberOfFrames = len(pixels)
    data.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    if compress:
        data.compress(RLELossless)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


def test_dicom_in_its_units(tmp_path: Path) -> None:
    stored = RNG.integers(0, 4096, (8, 6)).astype(np.uint16)
    for compress in (False, True):
        path = tmp_path / f"{compress}.dcm"
        write_dicom(path, stored, compress, BitsStored=12, HighBit=11)
        assert (read_image(path)[..., 0] == stored).all()
        write_dicom(path, stored, compress, BitsStored=12, HighBit=11, PhotometricInterpretation="MONOCHROME1")
        assert (read_image(path)[..., 0] == 4095 - stored).all()
        write_dicom(path, stored, compress, RescaleSlope=2, RescaleIntercept=-1024)
        units = stored * 2.0 - 1024
        wanted = np.rint(((units + 1000) / 3000).clip(0, 1) * 65535)
        assert np.abs(read_image(path, value_range=(-1000, 2000))[..., 0] - wanted).max() <= 1
        with pytest.raises(ValueError, match="holds int32 pixels from"):
            read_image(path)


def test_the_window_of_a_dicom(tmp_path: Path) -> None:
    stored = np.array([[0, 900, 1000, 1199, 3000]], np.uint16)
    write_dicom(tmp_path / "a.dcm", stored, WindowCenter=1050, WindowWidth=301)
    assert read_image(tmp_path / "a.dcm")[0, :, 0].tolist() == [0, 109, 21954, 65426, 65535]
    write_dicom(tmp_path / "b.dcm", stored, PhotometricInterpretation="MONOCHROME1")
    assert read_image(tmp_path / "b.dcm", value_range=(0, 3000))[0, [0, -1], 0].tolist() == [65535, 0]


def test_frames_and_damage_of_a_dicom(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", VOLUME)
    assert (read_image(tmp_path / "a.dcm", slice_number=2)[..., 0] == VOLUME[2]).all()
    with pytest.raises(ValueError, match="holds 5 frames; set `volumes: {}`"):
        read_image(tmp_path / "a.dcm")
    (tmp_path / "b.dcm").write_bytes((tmp_path / "a.dcm").read_bytes()[:-300])
    with pytest.raises(ValueError, match="damaged or truncated"):
        read_image(tmp_path / "b.dcm", slice_number=2)
    (tmp_path / "c.dcm").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read, it is damaged|without pixels"):
        read_image(tmp_path / "c.dcm")


# --- windows ---------------------------------------------------------------------------------------------------------

WAYS: dict[str, dict[str, Any]] = {
    "tiles": {"tile": (32, 48), "compression": "zlib"},
    "tiles, LZW, predictor": {"tile": (32, 32), "compression": "lzw", "predictor": True},
    "strips": {"rowsperstrip": 7, "compression": "zlib"},
    "one block": {},
    "planes": {"planarconfig": "separate", "tile": (32, 32), "compression": "zlib"},
    "planes, one block": {"planarconfig": "separate"},
    "JPEG": {"tile": (32, 32), "compression": "jpeg", "compressionargs": {"level": 95}},
    "big endian": {"byteorder": ">"},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_part_of_a_tiff_is_that_of_the_whole(tmp_path: Path, way: str, dtype: type) -> None:
    if way == "JPEG" and dtype is np.uint16:
        pytest.skip("JPEG holds 8 bit")
    image = RNG.integers(0, np.iinfo(dtype).max, (101, 130, 3)).astype(dtype)
    path, options = tmp_path / "a.tif", dict(WAYS[way])
    stored = np.moveaxis(image, -1, 0) if "planes" in way else image
    with tifffile.TiffWriter(path, byteorder=options.pop("byteorder", None)) as file:
        file.write(np.ascontiguousarray(stored), photometric="rgb", **options)
    whole = read_image(path)
    for box in [(0, 0, 101, 130), (31, 40, 70, 97), (100, 129, 101, 130), (64, 0, 96, 130)]:
        assert (read_image(path, box=box) == whole[box[0] : box[2], box[1] : box[3]]).all()


def test_windows_of_large_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = raw_of(
        tmp_path, train={"images": "train/{id}.tif", "masks": "train.csv"}, test={"images": "test/{id}.tif"},
        windows={"size": [64, 48], "overlap": 0.25}, columns={"id": "id", "rle": "rle"}, rle={"order": "row"},
    )  # fmt: skip
    image = RNG.integers(0, 256, (150, 130), dtype=np.uint8)
    mask = (cv2.GaussianBlur(image.astype(np.float32), (0, 0), 4) > 128).astype(np.uint8)
    for name in ("train/a", "train/b", "test/t"):
        path = raw.folder / f"{name}.tif"
        path.parent.mkdir(exist_ok=True)
        tifffile.imwrite(path, image, tile=(32, 32), compression="zlib")
    text = rle.encode(mask, rle.Convention("row"))
    pd.DataFrame({"id": ["a", "b"], "rle": [text, text]}).to_csv(raw.folder / "train.csv", index=False)
    monkeypatch.setattr("pipeline.decode.readers.files.LARGEST_IMAGE", 64 * 48)  # nothing reads a whole image
    run = raw.decoded(monkeypatch)
    rows = table.read_table(run.table)
    assert set(rows["group"]) == {"a", "b"}
    found, count = np.zeros_like(mask), np.zeros(mask.shape, int)
    (whole, _) = table.wholes_of(rows)
    for row, box in zip(rows[rows["of_image"] == "a"].itertuples(), whole.boxes, strict=True):
        masks = table.true_mask(row._asdict(), ["thing"])[0]
        window = found[box[0] : box[2], box[1] : box[3]]
        window[masks == 1] = 1
        count[box[0] : box[2], box[1] : box[3]] += masks != 255
    assert (found == mask).all()
    assert (count == 1).all()
    assert table.submitted(table.read_table(run.test_table))[["image_id", "height", "width"]].values.tolist() == [
        ["t", 150, 130]
    ]
    from pipeline.decode.readers.registry import reader_of

    box = whole.boxes[3]
    opened = reader_of(run.competition).opener(run.competition, run.input)(rows.iloc[3])
    assert (opened[..., 0] == image[box[0] : box[2], box[1] : box[3]]).all()
    (raw.folder / "train" / "a.tif").write_bytes(b"II*\0nothing")
    (fault,) = raw.faults()
    assert fault.startswith("train/a.tif: cannot be read, it is damaged")
