"""Polygons and COCO annotations: what is drawn, of which image it is, and what is wrong with a file."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from raw import Raw

from pipeline.decode.readers.annotations.shapes import Region, mask_of, ring_of
from pipeline.masks import rle
from pipeline.masks.rle import Convention

SHAPE = (24, 32)
SQUARE = [[4, 5], [12, 5], [12, 15], [4, 15]]
"""Corners of a rectangle from column 4 to 12 and from row 5 to 15."""
OUTLINED, LIKE_COCO = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
OUTLINED[5:16, 4:13] = LIKE_COCO[5:15, 4:12] = 1


def rows(*texts: str) -> np.ndarray:
    return np.array([[int(digit) for digit in text] for text in texts], np.uint8)


@pytest.mark.parametrize(
    ("points", "mask"),
    [
        ([1, 1, 7, 2, 4, 6], rows("000000000", "011100000", "001111100", "000111000", "000110000", "000000000")),
        ([0, 0, 5, 0, 5, 3, 0, 3], rows("111110", "111110", "111110", "000000")),
        ([-2.5, 1.2, 3.6, -1, 6.4, 4.9], rows("111100", "111110", "011110", "000111", "000001", "000000")),
    ],
)
def test_drawn_as_the_coco_api_draws(points: list[float], mask: np.ndarray) -> None:
    """The masks are those of pycocotools 2.0.11."""
    region = Region(None, ((ring_of(points),),))
    assert (mask_of(region, (mask.shape[0], mask.shape[1]), outlines=False) == mask).all()


@pytest.mark.parametrize("outlines", [True, False])
def test_holes(outlines: bool) -> None:
    hole = [[6, 7], [9, 7], [9, 10], [6, 10]]
    mask = mask_of(Region(None, ((ring_of(SQUARE), ring_of(hole)),)), SHAPE, outlines)
    wanted = (OUTLINED if outlines else LIKE_COCO).copy()
    wanted[8:10, 7:9] = 0
    if not outlines:  # COCO's hole is as large as its square would be
        wanted[7:10, 6:9] = 0
    assert (mask == wanted).all()


@pytest.mark.parametrize("outlines", [True, False])
def test_a_part_is_that_of_the_whole(outlines: bool) -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        rings = [rng.uniform(-5, 38, (5, 2)) for _ in range(int(rng.integers(1, 3)))]
        region = Region(None, (tuple(map(ring_of, rings)),))  # type: ignore[arg-type]
        top, left = int(rng.integers(0, 12)), int(rng.integers(0, 16))
        part = mask_of(region, SHAPE, outlines, (top, left, top + 9, left + 11))
        assert (part == mask_of(region, SHAPE, outlines)[top : top + 9, left : left + 11]).all()


@pytest.fixture
def raw(tmp_path: Path) -> Raw:
    """Two images, and one class."""
    found = Raw(tmp_path, "drawn", {
        "title": "Drawn", "train": {"images": "img/{id}.png", "masks": "x.json"}, "test": None, "classes": ["cell"],
        "metric": "dice",
    })  # fmt: skip
    (found.folder / "img").mkdir()
    for name in ("a", "b"):
        cv2.imwrite(str(found.folder / "img" / f"{name}.png"), np.full(SHAPE, 90, np.uint8))
    return found


def save(raw: Raw, file: str, *data: Any, **train: Any) -> None:
    """Writes JSON, one value per line of .jsonl, and names the file in the YAML."""
    (raw.folder / file).write_text("\n".join(map(json.dumps, data)), encoding="utf-8")
    raw.settings["train"] = {"images": "img/{id}.png", "masks": file, **train}


SHAPES = [{"label": "cell", "points": SQUARE, "shape_type": "polygon"}]
ONE_IMAGE = {
    "labelme": {"shapes": SHAPES, "imagePath": "a.png", "imageHeight": 24, "imageWidth": 32},
    "rectangle": {"shapes": [{"label": "cell", "points": [[4, 5], [12, 15]], "shape_type": "rectangle"}]},
    "cityscapes": {"imgHeight": 24, "imgWidth": 32, "objects": [{"label": "cell", "polygon": SQUARE}]},
    "feature": {"type": "FeatureCollection", "features": [{
        "type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[*SQUARE, SQUARE[0]]]},
        "properties": {"classification": {"name": "cell"}}}]},
    "features": [{"type": "Feature", "geometry": {"type": "MultiPolygon", "coordinates": [[SQUARE]]},
                  "properties": {"name": "cell"}}],
    "line": {"id": "a", "annotations": [{"type": "cell", "coordinates": [SQUARE]}]},
}  # fmt: skip


@pytest.mark.parametrize("form", ONE_IMAGE)
def test_a_file_per_image(raw: Raw, form: str) -> None:
    for name in ("a", "b"):
        save(raw, f"{name}_x.json", ONE_IMAGE[form])
    raw.settings["train"]["masks"] = "{id}_x.json"
    assert not raw.listing().faults
    assert (raw.planes("b") == OUTLINED).all()
    raw.settings["train"]["outlines"] = False
    assert (raw.planes("b") == LIKE_COCO).all()


VIA = {"filename": "img/a.png", "size": 3, "regions": [{
    "shape_attributes": {"name": "polygon", "all_points_x": [4, 12, 12, 4], "all_points_y": [5, 5, 15, 15]},
    "region_attributes": {"kind": "cell"}}]}  # fmt: skip


@pytest.mark.parametrize("form", ["via", "lines"])
def test_a_file_of_all_images(raw: Raw, form: str) -> None:
    if form == "via":
        save(raw, "x.json", {"a.png3": VIA, "b.png3": {**VIA, "filename": "b.png", "regions": {}}})
    else:
        save(raw, "x.jsonl", ONE_IMAGE["line"], {"id": "b.png", "annotations": []})
    assert not raw.listing().faults
    assert (raw.planes("a") == OUTLINED).all() and not raw.planes("b").any()


def coco(**changes: Any) -> dict[str, Any]:
    """Two images; of the first a polygon of a cell, and of a dog as run lengths."""
    dog = np.zeros(SHAPE, np.uint8)
    dog[10:20, 6:9] = 1
    compressed = {"size": [24, 32], "counts": rle.encode(dog, Convention(format="coco"))}
    counts = rle.encode(dog, Convention(format="counts")).split()
    flat = [number for point in SQUARE for number in point]
    annotations = [
        {"id": 7, "image_id": 1, "category_id": 3, "segmentation": [flat], "iscrowd": 0},
        {"id": 8, "image_id": 1, "category_id": 5, "segmentation": compressed, "iscrowd": 0},
        {"id": 9, "image_id": 2, "category_id": 5, "iscrowd": 1,
         "segmentation": {"size": [24, 32], "counts": [int(count) for count in counts]}},
        {"id": 10, "image_id": 2, "category_id": 3, "bbox": [1, 2, 3, 4]},
    ]  # fmt: skip
    images = [{"id": 1, "file_name": "a.png", "height": 24, "width": 32}, {"id": 2, "file_name": "img/b.png"}]
    categories = [{"id": 3, "name": "cell"}, {"id": 5, "name": "dog"}]
    return {"images": images, "annotations": annotations, "categories": categories, **changes}


@pytest.mark.parametrize("by_number", [False, True])
def test_coco(raw: Raw, by_number: bool) -> None:
    save(raw, "x.json", coco())
    raw.settings["classes"] = {"the cell": 3, "the dog": 5} if by_number else ["cell", "dog"]
    listing = raw.listing()
    assert not listing.faults and "1 region of x.json is a crowd" in " ".join(listing.remarks)
    cell, dog = raw.planes("a")
    assert (cell == LIKE_COCO).all()
    assert dog.sum() == 30 and dog[10:20, 6:9].all()
    item = raw.item("a")
    assert item.read_masks
    masks = item.read_masks(SHAPE)
    assert masks.instances == ((rle.encode(LIKE_COCO),), (rle.encode(dog),))
    crowd = raw.planes("b")
    assert (crowd[:, 10:20, 6:9] == 255).all() and (crowd == 255).sum() == 60


def test_later_regions_cover_earlier_ones_in_a_class_map(raw: Raw) -> None:
    save(raw, "x.json", coco())
    raw.settings |= {"classes": ["ground", "cell", "dog"], "kind": "multiclass", "metric": "mean_iou"}
    ground, cell, dog = raw.planes("a")
    assert (ground + cell + dog == 1).all()
    assert dog.sum() == 30 and cell.sum() == LIKE_COCO.sum() - LIKE_COCO[10:20, 6:9].sum()


def test_labels_that_are_no_class(raw: Raw) -> None:
    save(raw, "x.json", coco())
    (fault,) = raw.faults()
    assert fault.startswith("x.json: annotation 8 of image a has the label 'dog', which is no class of the YAML (cell)")
    raw.settings["other_labels"] = "leave_out"
    assert not raw.faults() and (raw.planes("a") == LIKE_COCO).all()
    raw.settings |= {"other_labels": "fault", "ignore_value": "dog"}
    assert (raw.planes("a")[0] == 255).sum() == 30 - LIKE_COCO[10:20, 6:9].sum()


def without(key: str, number: int, name: str) -> dict[str, Any]:
    data = coco()
    del data[key][number][name]
    return data


WRONG = [
    ("x.json", [without("annotations", 0, "image_id")], "x.json: annotations[0] has no `image_id`; correct it."),
    ("x.json", [without("images", 1, "file_name")], "x.json: images[1] has no `file_name`; correct it."),
    ("x.json", [coco(categories=[])], "x.json: annotation 7 belongs to category 3, which is not in `categories`"),
    (
        "x.json",
        [{"boxes": []}],
        "x.json holds a dict with the keys boxes and no annotations; expected one of the formats COCO",
    ),
    ("x.jsonl", [ONE_IMAGE["line"], {"annotations": []}], "x.jsonl row 2: it has no name of an image: expected `id`"),
    ("x.jsonl", [{"id": "a", "annotations": [{"coordinates": [[[1, 2]]]}]}], "annotation 1: an outline has 1 point;"),
    ("x.json", [coco(images=[{"id": 1, "file_name": "z.png"}], annotations=[])], "x.json describes none of the images"),
]


@pytest.mark.parametrize(("file", "data", "words"), WRONG, ids=lambda value: str(value)[:30])
def test_files_that_are_wrong(raw: Raw, file: str, data: list[Any], words: str) -> None:
    save(raw, file, *data)
    assert words in raw.error()
    (raw.folder / file).write_text("{]")
    assert f"{file}{' row 1' if file == 'x.jsonl' else ''} is not JSON" in raw.error()


def test_another_size_than_the_image(raw: Raw) -> None:
    save(raw, "x.json", coco(images=[{"id": 1, "file_name": "a.png", "height": 32, "width": 24},
                                     {"id": 2, "file_name": "b.png"}]))  # fmt: skip
    raw.settings["classes"] = ["cell", "dog"]
    assert "annotations of image a are for the size (32, 24), and the image is (24, 32)" in str(raw.mask_fault("a"))
    data = coco()
    data["annotations"][1]["segmentation"]["size"] = [32, 24]
    save(raw, "x.json", data)
    assert "annotation 8 of image a: its size is [32, 24], and that of the image [24, 32]" in str(raw.mask_fault("a"))


def test_images_without_annotations(raw: Raw) -> None:
    save(raw, "x.jsonl", ONE_IMAGE["line"])
    (fault,) = raw.faults()
    assert fault.startswith(
        "img/b.png: image has no annotations in x.jsonl; if such images have an empty mask, set `columns:"
    )
    raw.settings["columns"] = {"absent": "empty"}
    assert not raw.faults() and not raw.planes("b").any()


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"label": ["cell"], "points": SQUARE}, "shape 1 has the label ['cell']; expected a text"),
        ({"label": "cell", "points": SQUARE[:2]}, "shape 1: an outline has 2 points; expected three or more"),
        ({"label": "cell", "points": [[1, 2], [3, None], [4, 5]]}, "shape 1: an outline holds NaN"),
        ({"label": "cell", "points": SQUARE, "shape_type": "mask"}, "shape 1 is a mask; expected a polygon,"),
    ],
)
def test_shapes_that_are_wrong(raw: Raw, shape: dict[str, Any], words: str) -> None:
    for name in ("a", "b"):
        save(raw, f"{name}.json", {"shapes": [shape]})
    raw.settings["train"]["masks"] = "{id}.json"
    assert f"a.json: {words}" in raw.error()


def test_an_outline_far_outside_and_a_file_of_nothing(raw: Raw) -> None:
    save(raw, "a.json", {"shapes": [{"label": "cell", "points": [*SQUARE, [1e6, 3]]}]})
    save(raw, "b.json", [])
    raw.settings["train"]["masks"] = "{id}.json"
    assert "shape 1 of image a: an outline has the coordinate 1e+06, far outside the image (24×32)" in str(
        raw.mask_fault("a")
    )
    assert not raw.planes("b").any()
