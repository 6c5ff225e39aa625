"""Masks that lie there as images and as run lengths too: `new` takes pictures for the images, whatever sorts first."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from pipeline.core.errors import PipelineError
from pipeline.masks import rle
from pipeline.masks.rle import Convention
from pipeline.new.guess.layout import look
from pipeline.new.wizard import write_new

SHAPE = (30, 44)


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


@pytest.mark.parametrize(
    ("images", "masks", "test"),
    [
        ("train/scans/{id}.png", "train/annot/{id}.png", "test/scans/{id}.png"),
        ("train/{id}/photo.png", "train/{id}/label.png", "test/{id}/photo.png"),
        ("train/{id}/surface.png", "train/{id}/inklabels.png", "test/{id}/surface.png"),
        ("train/scans/{id}.png", "train/annot/{id}.png", "test/other/{id}.png"),
    ],
)
def test_masks_are_not_taken_for_the_images(images: str, masks: str, test: str, tmp_path: Path) -> None:
    rng, rows = np.random.default_rng(0), []
    for number in range(8):
        mask = np.zeros(SHAPE, np.uint8)
        cv2.circle(mask, (8 + 3 * number, 15), 6, 1, -1)
        name = f"s{number:02}"
        write(tmp_path / images.format(id=name), rng.integers(0, 256, SHAPE, np.uint8))
        write(tmp_path / masks.format(id=name), 255 * mask)
        rows.append((name, rle.encode(mask, Convention())))
        write(tmp_path / test.format(id=f"t{number}"), rng.integers(0, 256, SHAPE, np.uint8))
    pd.DataFrame(rows, columns=["id", "rle"]).to_csv(tmp_path / "train.csv", index=False)
    draft = look(tmp_path, "x")
    assert draft.settings()["train"]["images"] == images
    assert draft.settings()["train"]["masks"] == "train.csv"


def test_layers_are_the_images_where_test_images_have_them(tmp_path: Path) -> None:
    """Vesuvius with one table of all fragments: what lies beside the layers is the papyrus and an infrared picture."""
    rng, rows = np.random.default_rng(0), []
    for place in ("train/1", "train/2", "train/3", "test/a", "test/b"):
        write(tmp_path / place / "mask.png", np.full(SHAPE, 255, np.uint8))
        for layer in range(4):
            write(tmp_path / place / f"surface_volume/{layer:02}.tif", rng.integers(0, 65536, SHAPE, np.uint16))
        if place.startswith("train"):
            mask = np.zeros(SHAPE, np.uint8)
            cv2.circle(mask, (8 + 8 * len(rows), 15), 6, 1, -1)
            write(tmp_path / place / "inklabels.png", 255 * mask)
            write(tmp_path / place / "ir.png", rng.integers(0, 256, SHAPE, np.uint8))
            rows.append((place[-1], rle.encode(mask, Convention())))
    pd.DataFrame(rows, columns=["Id", "Predicted"]).to_csv(tmp_path / "train.csv", index=False)
    sample = pd.DataFrame([("a", "1 1"), ("b", "1 1")], columns=["Id", "Predicted"])
    sample.to_csv(tmp_path / "sample_submission.csv", index=False)
    settings = look(tmp_path, "x").settings()
    assert settings["train"]["images"] == "train/{id}/surface_volume/{band}.tif"
    assert settings["test"]["images"] == "test/{id}/surface_volume/{band}.tif"


def test_images_of_few_values_alone_are_a_guess(tmp_path: Path) -> None:
    rows = []
    for number in range(6):
        mask = np.zeros(SHAPE, np.uint8)
        cv2.circle(mask, (8 + 3 * number, 15), 6, 1, -1)
        write(tmp_path / f"train/{number:02}.png", 255 * mask)
        rows.append((f"{number:02}", rle.encode(mask, Convention())))
    pd.DataFrame(rows, columns=["id", "rle"]).to_csv(tmp_path / "train.csv", index=False)
    (found,) = (guess for guess in look(tmp_path, "x").guesses if guess.key == "train.images")
    assert found.certainty == "guess" and "few values" in found.evidence


@pytest.mark.parametrize("damaged", [{3: "1715 5 1764"}, {3: "1715 5 1764 …", 5: "30 5 20 2"}])
def test_damaged_run_lengths_are_said_with_their_rows(damaged: dict[int, str], tmp_path: Path) -> None:
    rows = []
    for number in range(8):
        mask = np.zeros(SHAPE, np.uint8)
        cv2.circle(mask, (8 + 3 * number, 15), 6, 1, -1)
        write(tmp_path / f"train/{number:02}.png", np.random.default_rng(number).integers(0, 256, SHAPE, np.uint8))
        rows.append((f"{number:02}", damaged.get(number + 2) or rle.encode(mask, Convention())))
    pd.DataFrame(rows, columns=["id", "rle"]).to_csv(tmp_path / "train.csv", index=False)
    draft = look(tmp_path, "x")
    assert draft.settings()["rle"]["empty"] == ""
    told = "; ".join(draft.notes)
    assert all(f"row {row}: " in told for row in damaged)


def test_a_field_of_view_is_no_class(tmp_path: Path) -> None:
    """DRIVE: training images come with the field of view of the camera."""
    rng, view = np.random.default_rng(0), np.zeros(SHAPE, np.uint8)
    cv2.circle(view, (22, 15), 14, 255, -1)
    for number in range(21, 31):
        vessel = np.zeros(SHAPE, np.uint8)
        cv2.line(vessel, (number - 15, 4), (40 - number // 2, 26), 255, 2)
        write(tmp_path / f"training/images/{number}_training.png", rng.integers(0, 256, SHAPE, np.uint8))
        write(tmp_path / f"training/1st_manual/{number}_manual1.png", vessel)
        write(tmp_path / f"training/mask/{number}_training_mask.png", view)
    draft = look(tmp_path, "x")
    (masks,) = (guess for guess in draft.guesses if guess.key == "train.masks")
    assert masks.value == "training/1st_manual/{id}_manual1.png" and masks.certainty == "guess"
    assert "those in training/mask are empty or nearly the same for every image" in masks.evidence


def test_large_numbers_of_instances_are_no_class_numbers(tmp_path: Path) -> None:
    for number in range(8):
        numbers = np.zeros(SHAPE, np.uint16)
        for place in range(4):
            cv2.circle(numbers, (6 + 10 * place, 8 + number), 3, 300 * (1 + (number + place) % 6), -1)
        write(tmp_path / f"images/{number}.png", np.random.default_rng(number).integers(0, 256, SHAPE, np.uint8))
        write(tmp_path / f"labels/{number}.png", numbers)
    train = look(tmp_path, "x").settings()["train"]
    assert "class_times" not in train and train["instances"] is True


def test_a_row_twice_is_no_instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path / "root"))
    monkeypatch.delenv("PIPELINE_INPUT", raising=False)
    raw = tmp_path / "raw"
    rows = []
    for number in range(8):
        mask = np.zeros(SHAPE, np.uint8)
        cv2.circle(mask, (8 + 3 * number, 15), 6, 1, -1)
        write(raw / f"train/{number:02}.png", np.random.default_rng(number).integers(0, 256, SHAPE, np.uint8))
        rows.append((f"{number:02}", rle.encode(mask, Convention())))
    pd.DataFrame([*rows, rows[2]], columns=["id", "rle"]).to_csv(raw / "train.csv", index=False)
    found = write_new("found", raw, tmp_path / "own", assignments=["metric=dice"])
    assert "rows" not in found.draft.settings()["columns"]
    assert any("is already in row 4" in fault for fault in found.trial.faults)


def semicolons(folder: Path) -> None:
    (folder / "train.csv").write_text("id;rle\n0;3 4\n1;5 6\n")


def utf16(folder: Path) -> None:
    (folder / "train.csv").write_text("id,rle\n0,3 4\n1,5 6\n", encoding="utf-16")


def zeros(folder: Path) -> None:
    (folder / "train.csv").write_text("id,rle\n0000,3 4\n0001,5 6\n")


def header_only(folder: Path) -> None:
    (folder / "train.csv").write_text("id,rle\n")


def boxes(folder: Path) -> None:
    images = [{"id": number, "file_name": f"{number}.png", "height": 30, "width": 44} for number in range(4)]
    annotations = [{"id": n, "image_id": n, "category_id": 1, "bbox": [3, 4, 9, 8], "area": 72} for n in range(4)]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "ship"}]}
    (folder / "train.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (semicolons, "separated by semicolons"),
        (utf16, "it is UTF-16"),
        (zeros, "`id` of train.csv holds '0000', and images are called 0"),
        (header_only, "train.csv has a header but no rows"),
        (boxes, "boxes without outlines"),
    ],
)
def test_why_a_file_holds_no_masks(spoil: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    for number in range(4):
        write(tmp_path / f"train/{number}.png", np.random.default_rng(number).integers(0, 256, SHAPE, np.uint8))
    spoil(tmp_path)
    with pytest.raises(PipelineError, match=words):
        look(tmp_path, "x")


@pytest.mark.parametrize(("place", "masks"), [("masks", "masks/{id}_mask*.png"), ("images", "images/{id}_mask*.png")])
def test_numbered_masks_are_of_the_same_image(place: str, masks: str, tmp_path: Path) -> None:
    for number in range(6):
        mask = np.zeros(SHAPE, np.uint8)
        cv2.circle(mask, (8 + 5 * number, 12), 5, 255, -1)
        picture = np.random.default_rng(number).integers(0, 256, SHAPE, np.uint8)
        write(tmp_path / f"images/image_{number}.png", picture)
        write(tmp_path / f"{place}/image_{number}_mask.png", mask)
        if number % 3 == 0:
            write(tmp_path / f"{place}/image_{number}_mask_1.png", mask[::-1].copy())
    settings = look(tmp_path, "x").settings()
    assert settings["train"]["masks"] == masks and "absent" not in settings.get("columns", {})


def test_large_class_numbers_of_many_regions_are_classes(tmp_path: Path) -> None:
    for number in range(8):
        labels = np.zeros(SHAPE, np.uint16)
        for place in range(4):
            cv2.circle(labels, (6 + 10 * place, 8 + number), 3, 300 * (1 + place % 2), -1)
        write(tmp_path / f"images/{number}.png", np.random.default_rng(number).integers(0, 256, SHAPE, np.uint8))
        write(tmp_path / f"labels/{number}.png", labels)
    settings = look(tmp_path, "x").settings()
    assert settings["classes"] == {"background": 0, "class_300": 300, "class_600": 600}
    assert not settings["train"].keys() & {"class_times", "instances"}
