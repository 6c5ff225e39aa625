"""Files that a pattern does not name as they are: other spellings of an ending, other formats, masks without images."""

import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from raw import Raw

from pipeline.decode.readers.names import find_images

SIDE = 24


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def mask(number: int) -> np.ndarray:
    plane = np.zeros((SIDE, SIDE), np.uint8)
    plane[2 : 6 + number, 3:12] = 255
    return plane


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def raw(tmp_path: Path) -> Raw:
    """Nine training and nine test images, a third of each .png, .PNG and .jpg; their masks .png, .PNG and .tif."""
    made = Raw(tmp_path, "mixed", {
        "title": "mixed", "reader": "rle_csv", "classes": ["cell"], "metric": "dice",
        "train": {"images": "train/{id}.png", "masks": "masks/{id}.png"}, "test": {"images": "test/{id}.png"},
    })  # fmt: skip
    for number in range(9):
        image, of_mask = (("png", "PNG", "jpg")[number % 3], ("tif", "png", "PNG")[number % 3])
        save(made.folder / f"train/{number}.{image}", picture(number))
        save(made.folder / f"test/t{number}.{image}", picture(50 + number))
        save(made.folder / f"masks/{number}.{of_mask}", mask(number))
    return made


def test_all_endings_are_read(raw: Raw) -> None:
    listing = raw.listing()
    assert [item.image_id for item in listing.items] == [*map(str, range(9)), *(f"t{n}" for n in range(9))]
    for number in range(9):
        assert (raw.planes(str(number))[0] == mask(number) // 255).all()
    assert listing.faults == []
    assert listing.remarks == [
        "3 training images have another ending than `train/{id}.png` (3 .jpg; for instance train/2.jpg): read too",
        "3 test images have another ending than `test/{id}.png` (3 .jpg; for instance test/t2.jpg): read too",
    ]


def test_files_beside_images_are_none(raw: Raw) -> None:
    for number in range(9):
        save(raw.folder / f"train/{number}_depth.tif", picture(number))
        save(raw.folder / f"test/t{number}_depth_map.bmp", picture(number))
    listing = raw.listing()
    assert len(listing.items) == 18
    assert listing.faults == []
    unused = [text for text in listing.remarks if "not used" in text]
    assert unused == [
        "9 image files are not used (9 .tif; for instance train/0_depth.tif): they match no pattern, or no image or "
        "mask belongs to them",
        "9 image files are not used (9 .bmp; for instance test/t0_depth_map.bmp): they match no pattern, or no image "
        "or mask belongs to them",
    ]


def test_masks_without_an_image_are_counted(raw: Raw) -> None:
    for number in (0, 1, 2):
        next((raw.folder / "train").glob(f"{number}.*")).unlink()
    (text,) = [text for text in raw.listing().remarks if "mask file" in text]
    assert text == (
        "3 mask files without an image (1 .PNG, 1 .png, 1 .tif; for instance masks/0.tif); images are "
        "`train/{id}.png`: are some missing, or in another folder?"
    )


def test_images_without_a_mask_are_counted(raw: Raw) -> None:
    (raw.folder / "masks/1.png").unlink()
    assert str(raw.mask_fault("1")) == "mask does not exist"
    raw.settings["columns"] = {"absent": "empty"}
    assert not raw.planes("1").any()
    assert raw.listing().remarks[-2] == "1 of 9 training images have no mask file and get an empty mask"


def test_images_in_deeper_folders_are_counted(raw: Raw) -> None:
    save(raw.folder / "train/site2/20.png", picture(20))
    assert "1 image file is not used (1 .png; for instance train/site2/20.png)" in " ".join(raw.listing().remarks)


def test_an_id_of_two_files_is_a_fault(raw: Raw) -> None:
    save(raw.folder / "train/0.PNG", picture(9))
    assert raw.faults() == ["train/0.png: image 0 is already train/0.PNG: each id must have one image file"]
    save(raw.folder / "train/1.jpg", picture(9))  # another format beside the one that the pattern names
    assert len(raw.faults()) == 1


def test_a_table_names_images_that_end_otherwise(raw: Raw) -> None:
    rows = [{"id": number, "rle": "" if number == 8 else "1 3"} for number in range(9)]
    pd.DataFrame(rows).to_csv(raw.folder / "train.csv", index=False)
    pd.DataFrame({"id": [f"t{number}" for number in range(9)], "rle": ""}).to_csv(
        raw.folder / "sample.csv", index=False
    )
    raw.settings |= {"sample_submission": "sample.csv"}
    raw.settings["train"]["masks"] = "train.csv"
    save(raw.folder / "train/preview.jpg", picture(1))
    listing = raw.listing()
    assert len(listing.items) == 18
    assert listing.faults == []
    assert any("not used (1 .jpg; for instance train/preview.jpg)" in text for text in listing.remarks)


def test_masks_beside_images_of_the_same_names(raw: Raw) -> None:
    for number in range(9):
        for path in (raw.folder / "train").glob(f"{number}.*"):
            path.unlink()
        save(raw.folder / f"train/{number}.jpg", picture(number))
        save(raw.folder / f"train/{number}.png", mask(number))
    raw.settings["train"] = {"images": "train/{id}.jpg", "masks": "train/{id}.png"}
    assert (raw.planes("4")[0] == mask(4) // 255).all()
    (raw.folder / "train/4.png").unlink()
    assert str(raw.mask_fault("4")) == "mask does not exist"  # never the image itself


@pytest.mark.parametrize("names", [("c0", "c0_b", "c1"), ("1", "10", "17")])
@pytest.mark.parametrize("pattern", ["masks/{id}_*.png", "masks/{id}*.png"])
def test_an_instance_belongs_to_the_longest_id_that_fits(tmp_path: Path, names: tuple[str, ...], pattern: str) -> None:
    raw = Raw(tmp_path, "instances", {
        "title": "instances", "reader": "rle_csv", "classes": ["cell"], "metric": "dice",
        "train": {"images": "train/{id}.png", "masks": pattern}, "test": {"images": "test/{id}.png"},
    })  # fmt: skip
    save(raw.folder / "test/t.png", picture(0))
    for number, name in enumerate(names):
        save(raw.folder / f"train/{name}.png", picture(number))
        for part in range(2):
            own = np.zeros((SIDE, SIDE), np.uint8)
            own[5 * part + number, 2 : 6 + number] = 255
            save(raw.folder / f"masks/{name}_{part}.png", own)
    assert [int(raw.planes(name).sum()) for name in names] == [8, 10, 12]
    assert raw.listing().remarks == []


def test_instances_in_another_format_are_read(raw: Raw) -> None:
    raw.settings["train"]["masks"] = "parts/{id}/*.png"
    for number in range(9):
        save(raw.folder / f"parts/{number}/a.png", mask(number))
        save(raw.folder / f"parts/{number}/a.bmp", mask(number).T.copy())  # beside the one that the pattern names
        save(raw.folder / f"parts/{number}/b.tif", mask(number)[::-1].copy())
    assert (raw.planes("3")[0] == (mask(3) | mask(3)[::-1]) // 255).all()
    assert any(
        "9 image files are not used (9 .bmp; for instance parts/0/a.bmp)" in one for one in raw.listing().remarks
    )


def test_masks_of_no_class_are_counted_and_a_class_without_masks_is_doubted(
    raw: Raw, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raw.settings |= {"classes": ["cell", "rim"], "columns": {"absent": "empty"}, "submission": {"label": "class"}}
    raw.settings["train"]["masks"] = "classes/{class}/{id}.png"
    for number in range(9):
        save(raw.folder / f"classes/cell/{number}.png", mask(number))
        save(raw.folder / f"classes/Rim/{number}.png", mask(number))
    raw.decoded(monkeypatch)
    said = " ".join(capsys.readouterr().err.split())
    assert "9 image files are not used (9 .png; for instance classes/Rim/0.png)" in said
    assert "no training image has a mask of rim" in said


def test_a_second_mask_of_an_image_is_counted(raw: Raw) -> None:
    save(raw.folder / "masks/4.bmp", mask(8))
    assert (raw.planes("4")[0] == mask(4) // 255).all()  # of 4.png, which the pattern names
    assert any("1 image file is not used (1 .bmp; for instance masks/4.bmp)" in one for one in raw.listing().remarks)


def test_images_that_share_a_mask_are_reported(raw: Raw) -> None:
    raw.settings["train"] = {"images": "train/{id}", "masks": "masks/{stem}.png"}
    save(raw.folder / "train/3.bmp", picture(3))
    assert any(
        "mask files belong to several images" in one and one.endswith("for instance 3") for one in raw.listing().remarks
    )


def test_folders_in_decomposed_form(raw: Raw) -> None:
    (raw.folder / "train").rename(raw.folder / unicodedata.normalize("NFD", "entraînement"))
    (raw.folder / "masks").rename(raw.folder / unicodedata.normalize("NFD", "masqués"))
    composed = [unicodedata.normalize("NFC", name) for name in ("entraînement/{id}.png", "masqués/{id}.png")]
    raw.settings["train"] = dict(zip(("images", "masks"), composed, strict=True))
    assert (raw.planes("5")[0] == mask(5) // 255).all()
    assert len(raw.listing().items) == 18


def test_any_ending(tmp_path: Path) -> None:
    for name in ("a.png", "b.JPEG", "c.tif", "d.txt", "._e.png"):
        (tmp_path / name).write_bytes(b"")
    assert list(find_images("{id}.*", tmp_path, []).paths) == ["a", "b", "c"]
    assert list(find_images("{id}", tmp_path, ["*.txt"]).paths) == ["a.png", "b.JPEG", "c.tif"]
