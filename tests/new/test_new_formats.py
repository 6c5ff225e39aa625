"""Small imitations of raw files in other formats than pictures: `new` writes a YAML for each, and decode reads what
was drawn."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile

from pipeline.core.driver import run_stage
from pipeline.core.errors import PipelineError
from pipeline.core.run import open_run
from pipeline.decode import table
from pipeline.decode.readers.registry import reader_of
from pipeline.masks import rle
from pipeline.masks.rle import Convention
from pipeline.new.guess import forms, pictures
from pipeline.new.wizard import Written, write_new

SHAPE = (40, 56)


@dataclass
class Drawn:
    """A folder of raw files; what decode must read of training images (h, w, C) and masks (classes, h, w), by id."""

    folder: Path
    images: dict[str, np.ndarray] = field(default_factory=dict)
    masks: dict[str, np.ndarray] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def npy(self, name: str, array: np.ndarray) -> None:
        np.save(self.path(name), array)

    def png(self, name: str, picture: np.ndarray) -> None:
        assert cv2.imwrite(str(self.path(name)), picture)

    def tif(self, name: str, picture: np.ndarray, **options: Any) -> None:
        tifffile.imwrite(self.path(name), picture, **options)

    def csv(self, name: str, columns: str, rows: list[Any]) -> None:
        pd.DataFrame(rows, columns=columns.split(",")).to_csv(self.path(name), index=False)


def blob(number: int, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    mask, rng = np.zeros(shape, np.uint8), np.random.default_rng(number)
    centre = (int(rng.integers(10, shape[1] - 10)), int(rng.integers(10, shape[0] - 10)))
    cv2.ellipse(mask, centre, (9, 5), int(rng.integers(180)), 0, 360, 1, -1)
    return mask


def noise(number: int, mask: np.ndarray, *channels: int) -> np.ndarray:
    """Values from 0 to 199 (h, w) or (h, w, channels), brighter under the mask."""
    values = np.random.default_rng(number).integers(0, 100, (*mask.shape, *channels))
    return values + 100 * mask.reshape(*mask.shape, *(1 for _ in channels))


def as_halves(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip((values.astype(np.float32) - low) / (high - low), 0, 1).astype(np.float16)


# --- the layouts -----------------------------------------------------------------------------------------------------


def contrails(drawn: Drawn) -> None:
    """Bands of several times in float16; masks of each annotator, which cannot be read; a placeholder of a sample."""
    for number, part in enumerate(["train"] * 5 + ["validation"] * 2 + ["test"] * 3):
        name, mask = f"{10**18 + number * 7919}", blob(number)
        bands = [(noise(10 * number + band, mask, 8) / 4 + 240).astype(np.float16) for band in (8, 9, 10)]
        for band, values in zip(("08", "09", "10"), bands, strict=True):
            drawn.npy(f"{part}/{name}/band_{band}.npy", values)
        if part != "test":
            drawn.npy(f"{part}/{name}/human_pixel_masks.npy", mask[..., None].astype(np.int32))
        if part == "train":
            drawn.npy(f"{part}/{name}/human_individual_masks.npy", np.repeat(mask[..., None, None], 4, axis=3))
            drawn.images[name], drawn.masks[name] = np.concatenate(bands, axis=2), mask[None]
    drawn.path("train_metadata.json").write_text("[]")
    ids = [*sorted(path.name for path in (drawn.folder / "test").iterdir()), "46", "76", "86"]
    drawn.csv("sample_submission.csv", "record_id,encoded_pixels", [(name, "1 1") for name in ids])


def course(drawn: Drawn) -> None:
    """X_train.npy and its like, with a table of patients in the order of the images."""
    masks = [blob(number) for number in range(12)]
    images = [noise(number, mask, 3).astype(np.uint8) for number, mask in enumerate(masks)]
    drawn.npy("X_train.npy", np.stack(images))
    drawn.npy("y_train.npy", np.stack(masks)[..., None])
    drawn.npy("X_test.npy", np.stack(images[:4])[:, ::-1])
    drawn.csv("sample_submission.csv", "id,rle", [(number, "") for number in range(4)])
    drawn.csv("patients.csv", "row,patient", [(number, number // 3) for number in range(12)])
    drawn.images = {f"{number}": image for number, image in enumerate(images)}
    drawn.masks = {f"{number}": mask[None] for number, mask in enumerate(masks)}


def packed(drawn: Drawn) -> None:
    """One .npz without a test set: floats with channels first, class maps, and an array that is neither."""
    maps = [blob(number) * (1 + number % 2) for number in range(6)]
    images = [np.moveaxis(noise(number, one > 0, 4), -1, 0) / 200 for number, one in enumerate(maps)]
    content = {"images": np.stack(images).astype(np.float32), "labels": np.stack(maps), "ages": np.arange(6)}
    np.savez(drawn.path("data/data.npz"), **content)
    for number, (image, one) in enumerate(zip(images, maps, strict=True)):
        drawn.images[f"{number}"] = as_halves(np.moveaxis(image.astype(np.float32), 0, -1), 0, 1)
        drawn.masks[f"{number}"] = np.stack([one == value for value in range(3)]).astype(np.uint8)


def huge(drawn: Drawn) -> None:
    """HuBMAP: TIFFs too large to be read whole, here by a smaller limit; run lengths down the columns."""
    shape, rows = (300, 440), []
    for number, name in enumerate(("aaa", "bbb", "ccc")):
        mask = blob(number, shape)
        image = noise(number, mask).astype(np.uint8)
        drawn.tif(f"train/{name}.tiff", image, tile=(64, 64), compression="zlib")
        rows.append((name, rle.encode(mask, Convention())))
        drawn.images[name], drawn.masks[name] = image[..., None], mask[None]
    drawn.csv("train.csv", "id,encoding", rows)
    drawn.tif("test/ddd.tiff", noise(9, blob(9, shape)).astype(np.uint8))
    drawn.csv("sample_submission.csv", "id,predicted", [("ddd", "")])


def nnunet(drawn: Drawn) -> None:
    """nnU-Net: volumes with two modalities, and names of classes in dataset.json."""
    import nibabel

    for case in range(4):
        masks = np.stack([blob(10 * case + piece) for piece in range(5)], axis=2)
        labels = (masks * (1 + np.arange(5) % 2)).astype(np.uint8)
        values = [noise(case + 50 * band, masks).astype(np.int16) - 100 for band in range(2)]
        for band, own in enumerate(values):
            place = drawn.path(f"imagesTr/liver_{case:03}_{band:04}.nii.gz")
            nibabel.save(nibabel.Nifti1Image(own, np.diag([2.0, 2, 5, 1])), place)
        nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), drawn.path(f"labelsTr/liver_{case:03}.nii.gz"))
        for piece in range(5):
            name = f"liver_{case:03}_{piece}"
            drawn.images[name] = np.stack([own[..., piece] for own in values], axis=2)
            drawn.masks[name] = np.stack([labels[..., piece] == value for value in range(3)]).astype(np.uint8)
    for band in range(2):
        place = drawn.path(f"imagesTs/liver_009_{band:04}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(noise(9, np.zeros((*SHAPE, 3), np.uint8)).astype(np.int16), np.eye(4)), place)
    labels_of = {"labels": {"background": 0, "liver": 1, "tumour": 2}, "channel_names": {"0": "CT", "1": "PET"}}
    drawn.path("dataset.json").write_text(json.dumps({**labels_of, "numTraining": 4, "file_ending": ".nii.gz"}))


def dicom(drawn: Drawn) -> None:
    """A folder of DICOM files of 12 bits, in Hounsfield units, with PNG masks."""
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    for number in range(6):
        mask = blob(number)
        values = (noise(number, mask) * 10).astype(np.uint16)
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
        data.Modality, data.PhotometricInterpretation = "CT", "MONOCHROME2"
        data.Rows, data.Columns = SHAPE
        data.SamplesPerPixel, data.PixelRepresentation = 1, 0
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
        data.RescaleSlope, data.RescaleIntercept = 1, -1024
        data.PixelData = values.tobytes()
        data.save_as(drawn.path(f"dicom/P{number:03}.dcm"), enforce_file_format=True)
        drawn.png(f"masks/P{number:03}.png", 255 * mask)
        drawn.images[f"P{number:03}"] = (values.astype(np.int32) - 1024)[..., None]
        drawn.masks[f"P{number:03}"] = mask[None]


def kidneys(drawn: Drawn) -> None:
    """SenNet: folders of 16-bit slices with masks of the same names; no run lengths of training."""
    for kidney in ("kidney_1_dense", "kidney_2", "kidney_3_sparse"):
        for number in range(4):
            name, mask = f"{kidney}_{number:04}", blob(number + len(kidney))
            image = (noise(number, mask) * 300).astype(np.uint16)
            drawn.tif(f"train/{kidney}/images/{number:04}.tif", image)
            drawn.tif(f"train/{kidney}/labels/{number:04}.tif", 255 * mask)
            drawn.images[name], drawn.masks[name] = image[..., None], mask[None]
    for number in range(3):
        drawn.tif(f"test/kidney_5/images/{number:04}.tif", (noise(number, blob(number)) * 300).astype(np.uint16))
    drawn.csv("sample_submission.csv", "id,rle", [(f"kidney_5_{number:04}", "1 0") for number in range(3)])


def scrolls(drawn: Drawn) -> None:
    """Vesuvius: 40 layers a fragment, of which the middle ones are read; a mask of where there is papyrus beside."""
    for name in ("1", "2", "3", "a"):
        part, mask = ("test", blob(9)) if name == "a" else ("train", blob(int(name)))
        layers = [(noise(layer, mask) * 300).astype(np.uint16) for layer in range(40)]
        for layer, image in enumerate(layers):
            drawn.tif(f"{part}/{name}/surface_volume/{layer:02}.tif", image)
        papyrus = np.full(SHAPE, 255, np.uint8)
        papyrus[:5] = 0
        drawn.png(f"{part}/{name}/mask.png", papyrus)
        if part == "train":
            drawn.png(f"{part}/{name}/ir.png", noise(5, mask).astype(np.uint8))
            drawn.png(f"{part}/{name}/inklabels.png", 255 * mask)
            drawn.csv(f"{part}/{name}/inklabels_rle.csv", "Id,Predicted", [(name, rle.encode(mask, Convention("row")))])
            drawn.images[name], drawn.masks[name] = np.stack(layers[12:28], axis=2), mask[None]
    drawn.csv("sample_submission.csv", "Id,Predicted", [("a", "1 1 5 1")])


def kelp(drawn: Drawn) -> None:
    """Seven bands of int16 in a TIFF, and masks in TIFF."""
    for number in range(6):
        mask, name = blob(number), f"{number * 7919:08x}"
        image = (noise(number, mask, 7) * 60 - 500).astype(np.int16)
        for part in ("train", *(["test"] if number < 2 else [])):
            own = name if part == "train" else f"ff{name}"
            drawn.tif(f"{part}_satellite/{own}_satellite.tif", image, photometric="minisblack", planarconfig="contig")
        drawn.tif(f"train_kelp/{name}_kelp.tif", mask)
        drawn.images[name], drawn.masks[name] = image, mask[None]


def pages(drawn: Drawn) -> None:
    """Electron microscopy: a TIFF of many pages, and one of as many masks."""
    for number in range(3):
        masks = np.stack([blob(10 * number + page) for page in range(4)])
        images = noise(number, masks).astype(np.uint8)
        drawn.tif(f"training/stack{number}.tif", images, photometric="minisblack")
        drawn.tif(f"training_groundtruth/stack{number}.tif", 255 * masks, photometric="minisblack")
        for page in range(4):
            drawn.images[f"stack{number}_{page}"] = images[page][..., None]
            drawn.masks[f"stack{number}_{page}"] = masks[page][None]


def planes(drawn: Drawn) -> None:
    """Forged regions: masks of one plane per instance."""
    for number in range(6):
        parts = [blob(10 * number + part) for part in range(1 + number % 3)]
        image = noise(number, np.max(parts, axis=0)).astype(np.uint8)
        drawn.png(f"images/case{number}.png", image)
        drawn.npy(f"masks/case{number}.npy", np.stack(parts))
        drawn.images[f"case{number}"], drawn.masks[f"case{number}"] = image[..., None], np.max(parts, axis=0)[None]


LAYOUTS: dict[str, tuple[Callable[[Drawn], None], dict[str, Any]]] = {
    "contrails": (contrails, {
        "train": {"images": "train/{id}/band_{band}.npy", "masks": "train/{id}/human_pixel_masks.npy"},
        "test": {"images": "test/{id}/band_{band}.npy"},
        "channels": {"bands": ["08", "09", "10"], "pick": [*range(8)]}}),
    "course": (course, {
        "reader": "arrays", "train": {"images": "X_train.npy", "masks": "y_train.npy", "table": "patients.csv"},
        "test": {"images": "X_test.npy"}, "sample_submission": "sample_submission.csv", "group": "patient"}),
    "packed": (packed, {
        "reader": "arrays", "train": {"images": "data/data.npz:images", "masks": "data/data.npz:labels"}, "test": None,
        "channels": 4, "channels_first": True, "value_range": [0, 1], "kind": "multiclass"}),
    "huge": (huge, {
        "rle": {"order": "column", "base": 1, "empty": ""}, "windows": {"size": [128, 128]},
        "group": "whole", "shape": None}),
    "nnunet": (nnunet, {
        "train": {"images": "imagesTr/{id}_{band}.nii.gz", "masks": "labelsTr/{id}.nii.gz"},
        "test": {"images": "imagesTs/{id}_{band}.nii.gz"}, "volumes": {}, "group": "whole",
        "channels": {"bands": ["0000", "0001"]}, "classes": {"background": 0, "liver": 1, "tumour": 2}}),
    "dicom": (dicom, {"train": {"images": "dicom/{id}.dcm", "masks": "masks/{id}.png"}, "test": None}),
    "kidneys": (kidneys, {"train": {"images": "train/{kidney}/images/{name}.tif", "id": "{kidney}_{name}",
                                    "masks": "train/{kidney}/labels/{name}.tif"},
                          "group": "kidney", "sample_submission": "sample_submission.csv"}),
    "scrolls": (scrolls, {
        "train": {"images": "train/{id}/surface_volume/{band}.tif", "masks": "train/{id}/inklabels.png"},
        "test": {"images": "test/{id}/surface_volume/{band}.tif"}, "sample_submission": "sample_submission.csv",
        "rle": {"order": "row", "base": 1, "empty": ""},
        "channels": {"bands": [f"{band}" for band in range(12, 28)]}}),
    "kelp": (kelp, {"train": {"images": "train_satellite/{id}_satellite.tif", "masks": "train_kelp/{id}_kelp.tif"},
                    "test": {"images": "test_satellite/{id}_satellite.tif"}, "channels": 7}),
    "planes": (planes, {"train": {"images": "images/{id}.png", "masks": "masks/{id}.npy", "instances": "planes"}}),
    "pages": (pages, {"train": {"images": "training/{id}.tif", "masks": "training_groundtruth/{id}.tif"},
                      "volumes": {}, "group": "whole"}),
}  # fmt: skip


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    monkeypatch.delenv("PIPELINE_INPUT", raising=False)
    monkeypatch.setattr(forms, "HUGE", 100_000)
    monkeypatch.setattr(pictures, "WINDOW", (128, 128))
    return tmp_path


def written(root: Path, layout: Callable[[Drawn], None], *given: str) -> tuple[Drawn, Written]:
    drawn = Drawn(root / "downloads")
    drawn.folder.mkdir()
    layout(drawn)
    return drawn, write_new("found", drawn.folder, root / "own", assignments=[*given])


@pytest.mark.parametrize("name", LAYOUTS)
def test_formats_decoded_as_drawn(name: str, root: Path) -> None:
    layout, wanted = LAYOUTS[name]
    drawn, found = written(root, layout, "metric=mean_iou" if name in ("packed", "nnunet") else "metric=dice")
    settings = json.loads(json.dumps(found.draft.settings()))
    assert {key: settings.get(key, "left out") for key in wanted} == wanted
    assert not found.trial.faults
    assert (root / "work/found/new.png").exists()
    run = open_run(str(found.competition))
    run_stage(run, "decode")
    images = table.read_table(run.table)
    assert not images["fault"].any()
    read = reader_of(run.competition).opener(run.competition, run.input)
    seen = set()
    for _, row in images.iterrows():
        image, mask = read(row), table.true_mask(row, run.competition.classes)
        whole, box = row["image_id"], (0, 0, *image.shape[:2])
        if name == "huge":
            whole, box = row["of_image"], tuple(map(int, row["of_box"].split()))
            core = tuple(map(int, row["of_core"].split()))
        seen.add(whole)
        top, left, bottom, right = box
        original = drawn.images[whole][top:bottom, left:right]
        value_range = settings.get("value_range")
        if value_range and name != "packed":
            whole_range = np.iinfo(np.uint16).max
            shares = (original.astype(np.float32) - value_range[0]) / np.float32(value_range[1] - value_range[0])
            original = (as_halves(original, *value_range) if original.dtype.kind == "f"
                        else np.rint(shares.clip(0, 1) * whole_range).astype(np.uint16))  # fmt: skip
        assert image.dtype == original.dtype and image.shape == original.shape and (image == original).all()
        true = drawn.masks[whole].copy()
        if name == "huge":
            outside = np.ones(true.shape[1:], bool)
            outside[core[0] : core[2], core[1] : core[3]] = False
            true[:, outside] = 255
        assert (mask == true[:, top:bottom, left:right]).all()
    assert seen == drawn.images.keys()


# --- what does not fit -----------------------------------------------------------------------------------------------


def test_what_is_not_used_of_formats_is_said(root: Path) -> None:
    drawn, found = written(root, course, "metric=dice")
    drawn.npy("X_val.npy", np.zeros((3, *SHAPE, 3), np.uint8))
    drawn.csv("odd.csv", "a,b", [(1, 2)])
    drawn.path("about.json").write_text("{}")
    notes = write_new("again", drawn.folder, root / "own", assignments=["metric=dice"]).draft.notes
    assert notes == (
        "not used: the array X_val.npy 3×40×56×3 uint8",
        "not used: odd.csv (1 rows; columns a, b)",
        "not used: about.json",
    )


def test_pages_with_one_mask_are_called_wrong(root: Path) -> None:
    def layout(drawn: Drawn) -> None:
        for number in range(3):
            mask = blob(number)
            layers = np.stack([noise(layer, mask).astype(np.uint8) for layer in range(6)])
            drawn.tif(f"images/{number}.tif", layers, photometric="minisblack")
            drawn.png(f"masks/{number}.png", 255 * mask)

    _, found = written(root, layout, "metric=dice")
    assert found.trial.faults == ["masks/0.png: mask is one picture; expected a volume of slices (and 17 like it)"]
    (guess,) = (one for one in found.draft.guesses if one.key == "volumes")
    assert guess.certainty == "guess" and "masks have 1; were slices channels" in guess.evidence


def test_arrays_without_masks(root: Path) -> None:
    def layout(drawn: Drawn) -> None:
        drawn.npy("X_train.npy", np.zeros((12, *SHAPE), np.uint8))
        drawn.npy("y_train.npy", np.arange(12))

    with pytest.raises(PipelineError, match="but no masks: .*; the arrays are X_train.npy 12×40×56 uint8, y_train.npy"):
        written(root, layout, "metric=dice")
    assert not (root / "own").exists()


def test_submissions_of_another_size_are_noticed(root: Path) -> None:
    def layout(drawn: Drawn) -> None:
        huge(drawn)
        end = 300 * 440
        drawn.csv("sample_submission.csv", "id,predicted", [("ddd", f"5 10 {2 * end} 7")])

    _, found = written(root, layout, "metric=dice")
    assert any(
        "a run of ddd ends at pixel 264006, but the image has only 300×440" in note for note in found.draft.notes
    )
