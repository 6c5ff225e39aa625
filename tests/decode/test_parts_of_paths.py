"""Ids, groups and masks by named parts of paths, lists of images, and class maps of several values per class."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from raw import Raw

from pipeline.core.errors import PipelineError
from pipeline.decode import table
from pipeline.masks import rle

SHAPE = (20, 30)
CASES = [("case1", "day0", "0001"), ("case1", "day0", "0002"), ("case1", "day3", "0001"), ("case22", "day0", "0001")]


def mask_of(number: int) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[3 : 9 + number, 4 + number : 20] = 1
    return mask


def write(raw: Raw, path: str, picture: np.ndarray) -> None:
    (raw.folder / path).parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(raw.folder / path), picture)


@pytest.fixture
def scans(tmp_path: Path) -> Raw:
    """Slices of three scans of two patients: a folder per patient and day, sizes in the names, run lengths by row."""
    raw = Raw(tmp_path, "scans", {
        "title": "Scans",
        "train": {"images": "train/{case}/{case}_{day}/scans/slice_{slice}_*.png",
                  "id": "{case}_{day}_slice_{slice}", "masks": "train.csv"},
        "test": None, "rle": {"order": "row"}, "classes": ["liver"], "metric": "dice", "group": "case",
    })  # fmt: skip
    rows = ["id,rle"]
    for number, (case, day, piece) in enumerate(CASES):
        image = np.random.default_rng(number).integers(0, 256, SHAPE).astype(np.uint8)
        write(raw, f"train/{case}/{case}_{day}/scans/slice_{piece}_266_266_1.50_1.50.png", image)
        rows.append(f"{case}_{day}_slice_{piece},{rle.encode(mask_of(number), rle.Convention('row'))}")
    (raw.folder / "train.csv").write_text("\n".join(rows))
    return raw


def test_ids_and_groups(scans: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    images = table.read_table(scans.decoded(monkeypatch).table)
    assert images["image_id"].tolist() == ["_".join((case, day, "slice", piece)) for case, day, piece in CASES]
    assert images["group"].tolist() == [case for case, _, _ in CASES]
    assert images["extra_slice"].tolist() == [piece for _, _, piece in CASES]
    for number, row in images.iterrows():
        assert (table.true_mask(row, ["liver"])[0] == mask_of(int(str(number)))).all()
    scans.settings["group"] = "{case}/{day}"
    assert scans.item("case1_day3_slice_0001").group == "case1/day3"
    scans.settings["group"] = "patient"
    assert "column `patient` (group) is missing; found `case`, `day`, `slice`" in scans.error()


def test_rows_and_files_that_do_not_go_together(scans: Raw) -> None:
    with (scans.folder / "train.csv").open("a") as file:
        file.write("\ncase9_day9_slice_0009,1 2\n")
    write(scans, "train/case1/case1_day0/scans/slice_0001_9_9.png", np.zeros(SHAPE, np.uint8))
    row, file = scans.faults()
    assert row.startswith("train.csv row 6: id case9_day9_slice_0009 has no image: no file that matches train/{case}/")
    assert "image case1_day0_slice_0001 is already train/case1/case1_day0/scans/slice_0001_266" in file


@pytest.fixture
def city(tmp_path: Path) -> Raw:
    """Images and class maps in parallel trees, as Cityscapes has them; values 7 and 8 are roads, 0 counts nowhere."""
    raw = Raw(tmp_path, "city", {
        "title": "City", "kind": "multiclass", "metric": "mean_iou", "group": "town", "test": None,
        "train": {"images": "left/train/{town}/{town}_{id}_left.png",
                  "masks": "fine/train/{town}/{town}_{id}_fine_labels.png"},
        "classes": {"road": {"any": [7, 8]}, "car": 26, "other": "rest"}, "ignore_value": 0,
    })  # fmt: skip
    for number, town in enumerate(("ulm", "ulm", "bonn")):
        write(raw, f"left/train/{town}/{town}_00{number}_left.png", np.full(SHAPE, 50, np.uint8))
        write(raw, f"fine/train/{town}/{town}_00{number}_fine_labels.png", class_map(number))
        write(raw, f"fine/train/{town}/{town}_00{number}_fine_color.png", np.zeros((*SHAPE, 3), np.uint8))
    return raw


def class_map(number: int) -> np.ndarray:
    values = np.full(SHAPE, 23, np.uint8)
    values[:5], values[5:9], values[9:12, :15], values[15:, number] = 7, 8, 26, 0
    return values


def test_parallel_trees_and_several_values_per_class(city: Raw) -> None:
    listing = city.listing()
    assert [item.image_id for item in listing.items] == ["000", "001", "002"] and not listing.faults
    assert city.item("002").group == "bonn" and "3 image files are not used" in " ".join(listing.remarks)
    road, car, other = city.planes("001")
    assert (road[:9] == 1).all() and (car == 1).sum() == 45 and (other[9:12, 15:] == 1).all()
    assert (road[15:, 1] == 255).all() and (road == 255).sum() == 5
    city.settings["classes"] = {"road": {"any": [7, 8]}, "car": 26}
    fault = str(city.mask_fault("000"))
    assert fault.startswith("holds 23 (") and fault.endswith("no class of the YAML (road: 7 or 8, car: 26)")


def test_class_and_instance_in_one_value(city: Raw) -> None:
    for number, town in enumerate(("ulm", "ulm", "bonn")):
        values = class_map(number).astype(np.uint16)
        values[9:12, :6], values[9:12, 6:15] = 26000, 26001
        write(city, f"fine/train/{town}/{town}_00{number}_fine_labels.png", values)
    city.settings["train"]["class_times"] = 1000
    item = city.item("000")
    assert item.read_masks
    masks = item.read_masks(SHAPE)
    assert (masks.planes[1] == 1).sum() == 45 and masks.instances
    assert [rle.area(text) for text in masks.instances[1]] == [18, 27] and masks.instances[0] == ()


def test_instance_numbers(tmp_path: Path) -> None:
    raw = Raw(tmp_path, "cells", {
        "title": "Cells", "train": {"images": "img/{id}.png", "masks": "lab/{id}.png", "instances": True}, "test": None,
        "classes": ["cell"], "metric": "dice",
    })  # fmt: skip
    numbers = np.zeros(SHAPE, np.uint16)
    numbers[2:6, 2:6], numbers[8:12, 4:9], numbers[6:8, 20:25] = 1, 2, 700
    write(raw, "img/a.png", np.full(SHAPE, 50, np.uint8))
    write(raw, "lab/a.png", numbers)
    item = raw.item("a")
    assert item.read_masks
    masks = item.read_masks(SHAPE)
    assert (masks.planes[0] == (numbers > 0)).all() and masks.instances
    assert [rle.area(text) for text in masks.instances[0]] == [16, 20, 10]


@pytest.mark.parametrize("name", ["train.txt", "train.csv"])
def test_a_list_of_images(city: Raw, name: str) -> None:
    head = "image\n" if name.endswith(".csv") else ""
    (city.folder / name).write_text(f"{head}ulm_000_left.png\nleft/train/bonn/bonn_002_left.png\n")
    city.settings["train"]["listed_in"] = name
    assert [item.image_id for item in city.listing().items] == ["000", "002"] and not city.listing().faults
    (city.folder / name).write_text(f"{head}ulm_000_left.png\nulm_009_left.png\n")
    (fault,) = city.faults()
    assert fault == f"{name} row {3 if head else 2}: 'ulm_009_left.png' is the name of no image, or of several"
    (city.folder / name).write_text(f"{head}x\n")
    assert (
        f"none of the 1 rows of {name} is the name of an image, for instance 'x': correct `listed_in`." in city.error()
    )


def test_a_label_that_is_part_of_a_column(tmp_path: Path) -> None:
    raw = Raw(tmp_path, "clothes", {
        "title": "Clothes", "train": {"images": "{id}.png", "masks": "train.csv"}, "test": None, "metric": "dice",
        "columns": {"id": "img", "label": "kind", "label_until": "_", "rle": "runs", "rows": "instance"},
        "classes": {"shirt": 6, "shoe": 23},
    })  # fmt: skip
    write(raw, "a.png", np.full(SHAPE, 50, np.uint8))
    (raw.folder / "train.csv").write_text("img,kind,runs\na,6_18_73,1 5\na,23,41 3\na,6,101 4\n")
    planes = raw.planes("a")
    assert planes.sum(axis=(1, 2)).tolist() == [9, 3]
    raw.settings |= {"classes": ["6"], "other_labels": "leave_out"}
    assert not raw.faults() and raw.planes("a").sum() == 9


def test_several_instances_in_a_cell(tmp_path: Path) -> None:
    raw = Raw(tmp_path, "forged", {
        "title": "Forged", "train": {"images": "{id}.png", "masks": "train.csv"}, "test": None, "metric": "dice",
        "rle": {"as_json": "list", "several": ";", "empty": "authentic"}, "classes": ["copy"],
    })  # fmt: skip
    for name in ("a", "b"):
        write(raw, f"{name}.png", np.full(SHAPE, 50, np.uint8))
    (raw.folder / "train.csv").write_text('id,rle\na,"[1, 5];[41, 3, 50, 2]"\nb,authentic\n')
    item = raw.item("a")
    assert item.read_masks
    masks = item.read_masks(SHAPE)
    assert masks.planes.sum() == 10 and masks.instances and len(masks.instances[0]) == 2
    assert not raw.planes("b").any()


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"images": "{a}/{b}.png"}, 'images has no {id}: set how ids are built from its parts, e.g. id: "{a}_{b}"'),
    (
        {"images": "{a}/{id}.png", "id": "{a}"},
        "images already holds {id}: remove the setting `id`, or give that part of images another name",
    ),
    ({"images": "{a}/{b}.png", "id": "{a}_{c}"}, "id is {a}_{c}; expected parts of images: {a}, {b}"),
    ({"images": "{class}/{id}.png"}, "{class} is reserved and cannot be a part of images: give the part another name"),
    ({"images": "{1}/{id}.png"}, "{1} is not a valid name of a part"),
    ({"images": "{id}.png", "masks": "{town}/{id}.png"}, "masks holds {town}, which is not a part of images"),
    (
        {"images": "{id}.png", "masks": "m.csv", "instances": True},
        "instances can only be used with mask images; masks is m.csv",
    ),
    (
        {"images": "{id}.png", "masks": "m.csv", "outlines": True},
        "outlines can only be used with polygons; masks is m.csv",
    ),
]


@pytest.mark.parametrize(("train", "words"), WRONG, ids=lambda value: str(value)[:40])
def test_patterns_that_are_wrong(city: Raw, train: dict[str, Any], words: str) -> None:
    city.settings["train"] = {"masks": "m/{id}.png", **train}
    with pytest.raises(PipelineError) as caught:
        city.competition()
    assert words in str(caught.value) and "\n" not in str(caught.value)
