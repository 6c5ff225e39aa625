"""Small imitations of real competitions' raw files: `new` writes a YAML for each, and decode reads what was drawn."""

import base64
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest

from pipeline.core.config.raw_layouts import load_competition
from pipeline.core.driver import run_stage
from pipeline.core.run import open_run
from pipeline.decode import table
from pipeline.decode.readers.registry import reader_of
from pipeline.masks import rle
from pipeline.masks.rle import Convention
from pipeline.new.wizard import Written, write_new

SHAPE = (40, 56)


@dataclass
class Raw:
    """A folder of raw files; what training images and their masks (classes, h, w) must be, by id."""

    folder: Path
    masks: dict[str, np.ndarray] = field(default_factory=dict)
    images: dict[str, np.ndarray] = field(default_factory=dict)

    def write(self, path: str, picture: np.ndarray) -> None:
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(self.folder / path), picture)

    def table(self, path: str, columns: str, rows: list[Any]) -> None:
        pd.DataFrame(rows, columns=columns.split(",")).to_csv(self.folder / path, index=False)

    def json(self, path: str, *values: Any) -> None:
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_text("\n".join(map(json.dumps, values)))

    def pairs(
        self, count: int, path: str, name: Callable[[int], str], parts: int = 1, shape: tuple[int, int] = SHAPE
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Draws training images with masks (parts, h, w) and yields id and masks, which may be changed."""
        for number in range(count):
            image, masks = drawn(number, parts, shape)
            self.write(path.format(name(number)), image)
            self.images[name(number)], self.masks[name(number)] = image, masks
            yield name(number), masks


def drawn(number: int, parts: int = 1, shape: tuple[int, int] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """A noisy grey picture, and masks (parts, h, w) of what is brighter on it; none overlap."""
    rng, masks = np.random.default_rng(number), np.zeros((parts, *shape), np.uint8)
    for part in range(parts):
        centre = (int(rng.integers(10, shape[1] - 10)), int(rng.integers(10, shape[0] - 10)))
        cv2.ellipse(masks[part], centre, (9, 5), int(rng.integers(180)), 0, 360, 1, -1)
        masks[part] &= 1 - masks[:part].any(0).astype(np.uint8)
    noise = rng.integers(0, 100, shape).astype(np.uint8)
    return noise + 100 * masks.any(0).astype(np.uint8), masks


def outline(mask: np.ndarray) -> list[list[int]]:
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    points: list[list[int]] = max(contours, key=len)[:, 0].tolist()
    return points


# --- the layouts -----------------------------------------------------------------------------------------------------


def clouds(raw: Raw) -> None:
    rows = [
        (f"{name}_{label}", rle.encode(mask) if mask.sum() > 120 else "")
        for name, masks in raw.pairs(8, "train_images/{}", lambda number: f"{number:07x}.png", 4)
        for label, mask in zip(("Fish", "Flower", "Gravel", "Sugar"), masks, strict=True)
    ]
    for masks in raw.masks.values():
        masks *= (masks.sum((1, 2)) > 120)[:, None, None].astype(np.uint8)
    raw.table("train.csv", "Image_Label,EncodedPixels", rows)
    raw.write("test_images/abc.png", drawn(99)[0])
    sample = [(f"abc.png_{label}", "1 1") for label in ("Fish", "Flower", "Gravel", "Sugar")]
    raw.table("sample_submission.csv", "Image_Label,EncodedPixels", sample)


def scans(raw: Raw) -> None:
    """UW-Madison: ids of parts of the path, a sample without rows."""
    names = [
        f"case{case}_day{day}_slice_{piece:04}" for case, day in ((1, 0), (1, 22), (77, 3), (9, 1)) for piece in (1, 2)
    ]
    rows = []
    for number, (name, masks) in enumerate(raw.pairs(8, "x/{}.png", lambda number: names[number], 2)):
        case, day, _, piece = name.split("_")
        place = raw.folder / f"train/{case}/{case}_{day}/scans/slice_{piece}_{40 + number}_56_1.50_1.50.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        (raw.folder / f"x/{name}.png").rename(place)
        rows += [(name, label, rle.encode(mask, Convention("row"))) for label, mask in zip("ab", masks, strict=True)]
    raw.table("train.csv", "id,class,segmentation", rows)
    (raw.folder / "sample_submission.csv").write_text("id,class,predicted\n")
    (raw.folder / "x").rmdir()


def coco(raw: Raw) -> None:
    categories = [{"id": 0, "name": "pets"}, {"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    for part in ("train", "valid", "test"):
        images, annotations = [], []
        for number, (name, masks) in enumerate(
            raw.pairs(6, f"{part}/{{}}.png", lambda number, part=part: f"{part}_{number:04}", 2)
        ):
            images.append({"id": number, "file_name": f"{name}.png", "height": SHAPE[0], "width": SHAPE[1]})
            for label, mask in enumerate(masks, start=1):
                counts = {"size": list(SHAPE), "counts": rle.encode(mask, Convention(format="coco"))}
                one = {"id": len(annotations), "image_id": number, "category_id": label, "iscrowd": 0}
                as_polygon = label == 1 and part == "train"  # drawn with its outline, as its area says
                polygon = [[number for point in outline(mask) for number in point]]
                segmentation = polygon if as_polygon else counts
                annotations.append({**one, "segmentation": segmentation, "area": int(mask.sum())})
            if part != "train":
                del raw.masks[name], raw.images[name]
        raw.json(f"{part}/_annotations.coco.json",
                 {"images": images, "annotations": annotations, "categories": categories})  # fmt: skip


def cityscapes(raw: Raw) -> None:
    values = np.array([7, 11, 26], np.uint8)
    for part, towns in (("train", ("ulm", "bonn", "jena")), ("val", ("kiel",)), ("test", ("trier", "essen", "mainz"))):
        for town in towns:
            for name, masks in raw.pairs(3, f"leftImg8bit/{part}/{town}/{{}}_leftImg8bit.png",
                                         lambda number, town=town: f"{town}_00000{number}_000019", 2):  # fmt: skip
                labels = values[np.where(masks.any(0), masks.argmax(0) + 1, 0)]
                head = f"gtFine/{part}/{town}/{name}_gtFine"
                raw.write(f"{head}_labelIds.png", labels)
                raw.write(f"{head}_instanceIds.png", labels.astype(np.uint16) * 1000)
                raw.write(f"{head}_color.png", np.stack([labels * 3, labels, labels * 5], axis=2))
                raw.json(f"{head}_polygons.json", {})
                if part != "train":
                    del raw.masks[name], raw.images[name]
    for name, masks in raw.masks.items():
        raw.masks[name] = np.stack([1 - masks.any(0), *masks])


def kvasir(raw: Raw) -> None:
    for name, (mask,) in raw.pairs(8, "images/{}.png", lambda number: f"cju{number}"):
        raw.write(f"masks/{name}.jpg", 255 * mask)
    raw.json("boxes.json", {"cju1": {"height": 3, "bbox": []}})


def clothes(raw: Raw) -> None:
    """iMaterialist: a row per instance with a class and attributes, which a placeholder submission has too."""
    rows = [
        (name, rle.encode(mask), *SHAPE, label, "")
        for number, (name, masks) in enumerate(raw.pairs(9, "train/{}.png", lambda number: f"{number * 977:032x}", 3))
        for label, mask in zip(("6_18_73", ("23", "10")[number % 2], "6"), masks, strict=True)
    ]
    for number, (name, (first, second, third)) in enumerate(raw.masks.items()):
        raw.masks[name] = np.stack([first | third, second * (number % 2), second * (1 - number % 2)])
    raw.table("train.csv", "ImageId,EncodedPixels,Height,Width,ClassId,AttributesIds", rows)
    sample = [(f"{number:032x}", "1 1", label, 0) for number, label in ((7, "6_18"), (8, "10"), (9, "23_4_5"))]
    raw.table("sample_submission.csv", "ImageId,EncodedPixels,ClassId,AttributesIds", sample)
    for name, *_ in sample:
        raw.write(f"test/{name}.png", drawn(50)[0])


def pneumothorax(raw: Raw) -> None:
    """SIIM: starts relative to the run before, from 0, which no mask shows."""
    convention = Convention("column", 0, "-1", "relative")
    rows = [
        (name, f" {rle.encode(mask, convention)}")
        for name, (mask,) in raw.pairs(9, "train_png/{}.png", lambda number: f"1.2.276.{number}")
    ]
    raw.table("train-rle.csv", "ImageId, EncodedPixels", rows)
    raw.table("sample_submission.csv", "ImageId,EncodedPixels", [("1.2.9", "-1")])
    raw.write("test_png/1.2.9.png", drawn(50)[0])


LAYOUTS: dict[str, tuple[Callable[[Raw], None], dict[str, Any]]] = {
    "clouds": (clouds, {}),
    "scans": (scans, {
        "train": {"images": "train/{case}/{case}_{day}/scans/slice_{slice}_*.png",
                  "id": "{case}_{day}_slice_{slice}", "masks": "train.csv"},
        "test": None, "sample_submission": None, "submission": {"rle": "predicted"}, "group": "case"}),
    "coco": (coco, {"classes": ["cat", "dog"], "test": {
        "images": "test/{id}.png", "masks": "test/_annotations.coco.json", "evaluate": True,
        "outlines": True}}),
    "cityscapes": (cityscapes, {
        "train": {"images": "leftImg8bit/train/{folder}/{id}_leftImg8bit.png",
                  "masks": "gtFine/train/{folder}/{id}_gtFine_labelIds.png"},
        "test": {"images": "leftImg8bit/test/{folder}/{id}_leftImg8bit.png",
                 "masks": "gtFine/test/{folder}/{id}_gtFine_labelIds.png", "evaluate": True},
        "classes": {"road": 7, "building": 11, "car": 26}, "group": "folder"}),
    "kvasir": (kvasir, {"train": {"images": "images/{id}.png", "masks": "masks/{id}.jpg", "threshold": 128},
                        "test": None}),
    "clothes": (clothes, {"columns": {"id": "ImageId", "label": "ClassId", "label_until": "_", "rle": "EncodedPixels",
                                      "rows": "instance"},
                          "classes": {"class_6": 6, "class_10": 10, "class_23": 23}}),
    "pneumothorax": (pneumothorax, {"rle": {"order": "column", "base": 0, "empty": "-1", "offsets": "relative"}}),
}  # fmt: skip


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    monkeypatch.delenv("PIPELINE_INPUT", raising=False)
    return tmp_path


def written(root: Path, layout: Callable[[Raw], None], *given: str) -> tuple[Raw, Written]:
    raw = Raw(root / "downloads")
    raw.folder.mkdir()
    layout(raw)
    found = write_new("found", raw.folder, root / "own", assignments=[*given] or ["metric=dice"])
    assert not found.trial.faults
    return raw, found


@pytest.mark.parametrize("name", LAYOUTS)
def test_decoded_as_drawn(name: str, root: Path) -> None:
    layout, wanted = LAYOUTS[name]
    raw, found = written(root, layout, "metric=mean_iou" if name == "cityscapes" else "metric=dice")
    settings = json.loads(json.dumps(found.draft.settings()))
    assert {key: settings[key] for key in wanted} == wanted
    run = open_run(str(found.competition))
    run_stage(run, "decode")
    images = table.read_table(run.table)
    assert set(images["image_id"]) == raw.masks.keys() and not images["fault"].any()
    read = reader_of(run.competition).opener(run.competition, run.input)
    for _, row in images.iterrows():
        assert (read(row)[..., 0] == raw.images[row["image_id"]]).all()
        assert (table.true_mask(row, run.competition.classes) == raw.masks[row["image_id"]]).all()


def test_what_is_not_used_is_said(root: Path) -> None:
    raw, found = written(root, kvasir)
    (note,) = found.draft.notes
    assert note == "not used: boxes.json: no known format of annotations: a mapping with 1 keys, cju1"
    assert f"# {note}\n" in found.competition.read_text() and any(note in line for line in found.lines())
    raw.table("odd.csv", "a,b", [(1, 2)])
    raw.table("short.csv", "a,b", [(1, 2)])
    (raw.folder / "short.csv").write_text("a,b\n1\n")
    notes = write_new("again", raw.folder, root / "own").draft.notes
    assert "not used: odd.csv (1 rows; columns a, b)" in notes
    assert any(note.startswith("not used: short.csv: ") for note in notes)


# --- smaller ones ----------------------------------------------------------------------------------------------------


def volumes(raw: Raw) -> None:
    """SenNet: the same slices in each volume, masks as run lengths and as files that look like classes."""
    rows = []
    for volume in ("kidney_1_dense", "kidney_2", "kidney_3_sparse"):
        for number in range(4):
            image, masks = drawn(number)
            raw.write(f"train/{volume}/images/{number:04}.png", image)
            raw.write(f"train/{volume}/labels/{number:04}.png", 255 * masks[0])
            rows.append((f"{volume}_{number:04}", rle.encode(masks[0], Convention("row"))))
            raw.masks[rows[-1][0]] = masks
    raw.table("train_rles.csv", "id,rle", rows)
    for number in range(3):
        raw.write(f"test/kidney_5/images/{number:04}.png", drawn(number)[0])
    raw.table("sample_submission.csv", "id,rle", [(f"kidney_5_{number:04}", "1 0") for number in range(3)])


def fragments(raw: Raw) -> None:
    """Vesuvius: test fragments have a mask of where there is papyrus, and no picture like those of training."""
    for number in range(3):
        image, masks = drawn(number)
        raw.write(f"train/{number + 1}/ir.png", image)
        raw.write(f"train/{number + 1}/inklabels.png", 255 * masks[0])
        raw.write(f"train/{number + 1}/mask.png", np.full(SHAPE, 255, np.uint8))
        raw.masks[f"{number + 1}"] = masks
    for name in "ab":
        raw.write(f"test/{name}/mask.png", np.full(SHAPE, 255, np.uint8))
    raw.table("sample_submission.csv", "Id,Predicted", [("a", "1 1 5 1"), ("b", "1 1 5 1")])


def numbered(raw: Raw) -> None:
    """nnU-Net: `_0000` behind the names of images."""
    for name, (mask,) in raw.pairs(6, "imagesTr/{}_0000.png", lambda number: f"liver_{number:03}"):
        raw.write(f"labelsTr/{name}.png", mask)
    raw.write("imagesTs/liver_009_0000.png", drawn(9)[0])
    raw.write("imagesTs/liver_010_0000.png", drawn(10)[0])


def lines(raw: Raw) -> None:
    """HuBMAP 2023: JSON lines, and a submission that knows one class."""
    values = [
        {"id": name, "annotations": [{"type": label, "coordinates": [outline(mask)]}
                                     for label, mask in zip(("blood_vessel", "unsure"), masks, strict=True)]}
        for name, masks in raw.pairs(6, "train/{}.png", lambda number: f"{number:04x}ab", 2)
    ]  # fmt: skip
    raw.masks = {name: masks[:1] for name, masks in raw.masks.items()}
    values[0]["annotations"].pop()
    raw.json("polygons.jsonl", *values)
    raw.write("test/ffff.png", drawn(9)[0])
    raw.table("sample_submission.csv", "id,height,width,prediction_string", [("ffff", *SHAPE, "")])


def lists(raw: Raw) -> None:
    """PASCAL VOC: all images in one folder, colours, and lists of the parts."""
    colours = np.array([[0, 0, 0], [128, 128, 192], [0, 0, 64]], np.uint8)  # blue, green, red
    for name, masks in raw.pairs(8, "JPEGImages/{}.png", lambda number: f"2007_{number:06}", 2):
        raw.write(f"SegmentationClass/{name}.png", colours[np.where(masks.any(0), masks.argmax(0) + 1, 0)])
    names = [*raw.masks]
    for file, own in (("train", names[:5]), ("val", names[5:]), ("trainval", names)):
        raw.json(f"ImageSets/Segmentation/{file}.txt")
        (raw.folder / f"ImageSets/Segmentation/{file}.txt").write_text("\n".join(own) + "\n")
    order = [[0, 0, 0], [64, 0, 0], [192, 128, 128]]
    assert colours[[0, 2, 1], ::-1].tolist() == order
    raw.masks = {name: np.stack([1 - raw.masks[name].any(0), *raw.masks[name][::-1]]) for name in names[:5]}


def packed_counts(raw: Raw) -> None:
    """Human Protein Atlas: COCO's counts, zlib and base64."""
    rows = []
    for name, masks in raw.pairs(6, "train/{}.png", lambda number: f"{number * 7919:08x}", 2):
        for mask in masks:
            counts = zlib.compress(rle.encode(mask, Convention(format="coco")).encode(), zlib.Z_BEST_COMPRESSION)
            rows.append((name, base64.b64encode(counts).decode()))
    raw.table("train.csv", "ID,mask", rows)
    raw.masks = {name: masks.any(0)[None].astype(np.uint8) for name, masks in raw.masks.items()}


def lesions(raw: Raw) -> None:
    """IDRiD: a folder and an ending per class."""
    for name, masks in raw.pairs(6, "images/Training Set/{}.png", lambda number: f"IDRiD_{number:02}", 2):
        raw.write(f"truth/Training Set/1. Haemorrhages/{name}_HE.png", 255 * masks[0])
        raw.write(f"truth/Training Set/2. Exudates/{name}_EX.png", 255 * masks[1])


def ultrasound(raw: Raw) -> None:
    """BUSI: masks beside the images, and further ones of the same image with a number."""
    for number in range(6):
        image, masks = drawn(number, 2)
        name = f"benign ({number})"
        raw.write(f"benign/{name}.png", image)
        raw.write(f"benign/{name}_mask.png", 255 * masks[0])
        if number % 2:
            raw.write(f"benign/{name}_mask_1.png", 255 * masks[1])
        raw.masks[name] = (masks.any(0) if number % 2 else masks[0])[None].astype(np.uint8)


def cells(raw: Raw) -> None:
    """Mask images that number instances."""
    for number, (name, masks) in enumerate(
        raw.pairs(9, "images/{}.png", lambda number: f"cell{number}", 9, (120, 160))
    ):
        count = 3 + number % 6
        raw.masks[name] = masks[:count].any(0)[None].astype(np.uint8)
        regions = cv2.connectedComponents(raw.masks[name][0])[1]
        raw.write(f"labels/{name}.png", regions.astype(np.uint16))


OTHERS: dict[str, tuple[Callable[[Raw], None], dict[str, Any]]] = {
    "volumes": (volumes, {"train": {"images": "train/{kidney}/images/{name}.png", "id": "{kidney}_{name}",
                                    "masks": "train_rles.csv"}, "group": "kidney"}),
    "fragments": (fragments, {"train": {"images": "train/{id}/ir.png", "masks": "train/{id}/inklabels.png"},
                              "test": None}),
    "numbered": (numbered, {"train": {"images": "imagesTr/{id}_0000.png", "masks": "labelsTr/{id}.png"},
                            "test": {"images": "imagesTs/{id}_0000.png"}}),
    "lines": (lines, {"classes": ["blood_vessel"], "other_labels": "leave_out"}),
    "lists": (lists, {"classes": {"background": [0, 0, 0], "cat": [64, 0, 0], "person": [192, 128, 128]}}),
    "packed_counts": (packed_counts, {"rle": {"order": "column", "format": "coco_zlib", "empty": ""}}),
    "lesions": (lesions, {"train": {"images": "images/Training Set/{id}.png",
                                    "masks": "truth/Training Set/*/{id}_{class}.png"}}),
    "ultrasound": (ultrasound, {"train": {"images": "benign/{id}.png", "masks": "benign/{id}_mask*.png",
                                          "exclude": ["*_mask*.png"]}}),
    "cells": (cells, {"train": {"images": "images/{id}.png", "masks": "labels/{id}.png", "instances": True}}),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_read_as_drawn(name: str, root: Path) -> None:
    layout, wanted = OTHERS[name]
    raw, found = written(root, layout, "metric=mean_iou" if name == "lists" else "metric=dice")
    settings = json.loads(json.dumps(found.draft.settings()))
    assert {key: settings[key] for key in wanted} == wanted
    opened = load_competition(str(found.competition))
    items = [item for item in reader_of(opened).list_items(opened, raw.folder).items if item.subset == "train"]
    assert {item.image_id for item in items} == raw.masks.keys()
    order = [0, 1] if name != "lesions" else [["HE", "EX"].index(one) for one in opened.classes]
    for item in items:
        assert item.read_masks
        planes = item.read_masks(item.read_image().shape[:2]).planes
        wanted_masks = raw.masks[item.image_id]
        assert (planes == (wanted_masks[order] if name == "lesions" else wanted_masks)).all()


def test_masks_of_another_size_than_the_images(root: Path) -> None:
    """Understanding Clouds: run lengths at a quarter of the images' sides."""
    raw = Raw(root / "downloads")
    rows = []
    for number in range(8):
        image, (mask,) = drawn(number)
        raw.write(f"train/{number}.png", cv2.resize(image, (56 * 4, 40 * 4)))
        rows.append((f"{number}", rle.encode(mask)))
    raw.table("train.csv", "id,rle", rows)
    found = write_new("found", raw.folder, root / "own", assignments=["metric=dice"])
    (note,) = found.draft.notes
    assert note.startswith("the masks look like those of images of 40×56, 4 times smaller than theirs (160×224)")
