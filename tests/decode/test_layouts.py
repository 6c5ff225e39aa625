"""Every way in which the raw files of rle_csv may write masks gives the masks that were meant."""

import shutil
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import SHAPE, TEST_IDS, TRAIN_IDS, Tiny, encoded

from pipeline.core.config.raw_files import Columns
from pipeline.decode import table
from pipeline.decode.readers.columns import keys_of
from pipeline.decode.readers.files import LARGEST_IMAGE, read_image
from pipeline.encode import submission
from pipeline.masks import rle
from pipeline.masks.geometry import IGNORE

CLASSES = ["thing", "rim", "spot"]


def planes_of(tiny: Tiny) -> dict[str, np.ndarray]:
    """Three overlapping classes for every training image: its mask, the mask's rim, a square of odd images."""
    found = {}
    for number, (name, mask) in enumerate(tiny.masks.items()):
        rim = mask - cv2.erode(mask, np.ones((3, 3), np.uint8))
        spot = np.zeros(SHAPE, np.uint8)
        spot[5:15, 8:30] = number % 2
        found[name] = np.stack([mask, rim, spot])
    return found


def decoded(tiny: Tiny) -> dict[str, np.ndarray]:
    """Runs decode and returns the true masks of every training image."""
    run = tiny.run("decode")
    rows = table.read_table(run.table, "train")
    return {row["image_id"]: table.true_mask(row, run.competition.classes) for _, row in rows.iterrows()}


def assert_masks(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, planes in wanted.items():
        np.testing.assert_array_equal(found[name], planes, err_msg=name)


def use_images_of_masks(tiny: Tiny, pictures: dict[str, np.ndarray], pattern: str = "masks/{id}.png") -> None:
    """Writes mask images and makes the YAML point to them instead of the CSV."""
    for name, picture in pictures.items():
        path = tiny.input / pattern.format(id=name)
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(encoded(picture, path.suffix[1:]))
    tiny.settings["train"]["masks"] = pattern
    tiny.settings["submission"] = {"id": "id", "rle": "mask"}
    tiny.save()


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("two_columns", [False, True])
def test_one_row_per_image_and_class(tiny: Tiny, two_columns: bool) -> None:
    planes = planes_of(tiny)
    rows = [
        {"image": name, "class": str(number + 1), "key": f"{name}_{number + 1}", "mask": rle.encode(mask)}
        for name, masks in planes.items()
        for number, mask in enumerate(masks)
        if mask.any() or number == 0
    ]
    tiny.rows = rows
    columns = {"id": "image", "label": "class", "rle": "mask"}
    if not two_columns:
        columns = {"id": "key", "pattern": "{id}_{label}", "rle": "mask"}
    tiny.settings |= {"classes": {name: number + 1 for number, name in enumerate(CLASSES)}, "columns": columns}
    tiny.settings |= {"sample_submission": None}
    tiny.save()
    assert_masks(decoded(tiny), planes)


@pytest.mark.parametrize(
    ("pattern", "text", "key"),
    [
        ("{id}_{label}", "a_1_big_rock", ("a_1", "big_rock")),
        ("{id}_{label}", "a_1_rock", ("a_1", "rock")),
        ("{id}_{label}", "a_1_sand", ("a_1", "sand")),
        ("{label}-{id}", "big_rock-a-1", ("a-1", "big_rock")),
        ("{id}_{label}", "a", (None, None)),
    ],
)
def test_labels_may_contain_the_separator_from_the_id(pattern: str, text: str, key: tuple[str, str]) -> None:
    frame = pd.DataFrame({"key": [text]})
    assert list(keys_of(frame, Columns(id="key", pattern=pattern), ["rock", "big_rock"])) == [key]


def test_three_columns_of_an_unknown_class_and_a_repeat(tiny: Tiny) -> None:
    tiny.settings |= {"classes": CLASSES, "columns": {"id": "id", "label": "class", "rle": "mask"}}
    tiny.settings |= {"sample_submission": None}
    tiny.rows = [{"id": name, "class": "thing", "mask": ""} for name in TRAIN_IDS]
    tiny.rows += [{"id": "a03", "class": "dent", "mask": ""}, {"id": "a04", "class": "thing", "mask": "1 2"}]
    tiny.save()
    message = tiny.fails()
    assert "train.csv row 14: label 'dent' is no class of the YAML (thing, rim, spot)" in message
    assert "train.csv row 15: id a04 with label thing is already in row 5" in message


def test_an_id_that_does_not_fit_the_pattern(tiny: Tiny) -> None:
    tiny.settings |= {"classes": CLASSES, "columns": {"id": "id", "pattern": "{id}_{label}", "rle": "mask"}}
    tiny.settings |= {"sample_submission": None}
    tiny.save()
    assert "train.csv row 2: id 'a01' does not match the pattern {id}_{label}" in tiny.fails()


def test_rows_absent_for_empty_masks(tiny: Tiny) -> None:
    tiny.rows = [row for row in tiny.rows if row["mask"]]
    tiny.save()
    assert "image without a row in train.csv" in tiny.fails()
    tiny.settings["columns"]["absent"] = "empty"
    tiny.save()
    assert_masks(decoded(tiny), {name: mask[None] for name, mask in tiny.masks.items()})


def test_a_row_an_instance(tiny: Tiny) -> None:
    halves = {}
    for name, mask in tiny.masks.items():
        left, right = mask.copy(), mask.copy()
        left[:, 30:], right[:, :33] = 0, 0  # a gap of three columns
        halves[name] = [left, right]
    tiny.rows = [{"id": name, "mask": rle.encode(part)} for name, parts in halves.items() for part in parts]
    tiny.settings["columns"] |= {"rows": "instance"}
    tiny.save()
    assert_masks(decoded(tiny), {name: np.maximum(*parts)[None] for name, parts in halves.items()})
    rows = table.read_tables(tiny.root / "work/tiny").set_index("image_id")
    kept = [rle.encode(part) for part in halves["a04"] if part.any()]
    assert rows.loc["a04", "instances_thing"] == "|".join(kept)
    assert len(kept) == 2
    assert rows.loc["t1", "instances_thing"] == ""


def test_ids_with_extensions(tiny: Tiny) -> None:
    for row in tiny.rows:
        row["id"] += ".tif"
    tiny.settings |= {"train": {"images": "train/{id}", "masks": "train.csv"}, "test": {"images": "test/{id}"}}
    tiny.settings |= {"sample_submission": None}
    tiny.save()
    assert_masks(decoded(tiny), {f"{name}.tif": mask[None] for name, mask in tiny.masks.items()})


def test_one_folder_per_image(tiny: Tiny) -> None:
    for name in TRAIN_IDS:
        folder = tiny.input / "train" / name / "images"
        folder.mkdir(parents=True)
        tiny.path(name).rename(folder / f"{name}.tif")
    tiny.settings["train"]["images"] = "train/{id}/images/{id}.tif"
    tiny.save()
    assert_masks(decoded(tiny), {name: mask[None] for name, mask in tiny.masks.items()})


def test_training_and_test_images_in_one_folder(tiny: Tiny) -> None:
    for name in TEST_IDS:
        tiny.path(name).rename(tiny.input / "train" / f"{name}.tif")
    tiny.settings["test"] = {"images": "train/{id}.tif"}
    tiny.save()
    assert_masks(decoded(tiny), {name: mask[None] for name, mask in tiny.masks.items()})
    assert table.read_table(tiny.run().test_table)["image_id"].tolist() == TEST_IDS
    tiny.settings["sample_submission"] = None
    tiny.save()
    assert "train.images and test.images are the same. To distinguish them, set `listed_in` for both" in tiny.refused(
        "decode"
    )


def test_groups_from_ids_and_from_another_table(tiny: Tiny) -> None:
    tiny.settings["group"] = "a{group}"
    tiny.save()
    rows = table.read_table(tiny.run("decode").table, "train")
    assert rows["group"].tolist() == [name[1:] for name in TRAIN_IDS]
    (tiny.input / "further.csv").write_text("id,hospital\n" + "".join(f"{name},h{name[-1]}\n" for name in TRAIN_IDS))
    tiny.settings["train"]["table"] = "further.csv"
    tiny.settings["group"] = "hospital"
    tiny.settings["split"] = {"folds": 3, "stratify": "hospital"}
    tiny.save()
    rows = table.read_table(tiny.run("decode", "clean", "split").table, "train")
    assert rows["group"].tolist() == [f"h{name[-1]}" for name in TRAIN_IDS]
    tiny.settings["split"]["stratify"] = "hospitals"
    tiny.save()
    message = tiny.refused("split")
    assert message.startswith("split.stratify: the mask table has no further column `hospitals`; it has: patient, age")


# --- mask images -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "high"), [(np.uint8, 1), (np.uint8, 255), (np.uint16, 65535)])
def test_mask_images_of_one_class(tiny: Tiny, dtype: type, high: int) -> None:
    use_images_of_masks(tiny, {name: mask.astype(dtype) * dtype(high) for name, mask in tiny.masks.items()})
    assert_masks(decoded(tiny), {name: mask[None] for name, mask in tiny.masks.items()})


def test_mask_images_that_are_rgb(tiny: Tiny) -> None:
    use_images_of_masks(tiny, {name: np.repeat(mask[..., None] * 255, 3, 2) for name, mask in tiny.masks.items()})
    assert_masks(decoded(tiny), {name: mask[None] for name, mask in tiny.masks.items()})


PALETTE = {"ground": [0, 0, 0], "cell": [255, 0, 0], "wall": [10, 20, 200]}


def coloured(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A class map of three classes and its picture in PALETTE's colours."""
    labels = np.where(mask > 0, 1, 0).astype(np.uint8)
    labels[30:, :20] = 2
    return labels, np.array(list(PALETTE.values()), np.uint8)[labels]


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_palette(tiny: Tiny, kind: str) -> None:
    pairs = {name: coloured(mask) for name, mask in tiny.masks.items()}
    tiny.settings |= {"kind": kind, "metric": "mean_iou" if kind == "multiclass" else "dice", "sample_submission": None}
    classes = PALETTE if kind == "multiclass" else {key: PALETTE[key] for key in ("cell", "wall")}
    tiny.settings["classes"] = classes
    use_images_of_masks(tiny, {name: picture for name, (_, picture) in pairs.items()})
    tiny.settings["submission"] = {"id": "id", "label": "class", "rle": "mask"}
    tiny.save()
    first = 0 if kind == "multiclass" else 1
    wanted = {name: np.stack([labels == one for one in range(first, 3)]) for name, (labels, _) in pairs.items()}
    assert_masks(decoded(tiny), wanted)
    arrays = np.load(tiny.run().pixels / "train_masks.npy", mmap_mode="r")
    assert arrays.shape == (12, 1 if kind == "multiclass" else 2, 32, 32)


def test_grey_values_and_ignored_pixels(tiny: Tiny) -> None:
    pictures = {name: mask * 7 for name, mask in tiny.masks.items()}
    for picture in pictures.values():
        picture[:4] = 99
    tiny.settings |= {"classes": {"thing": 7}, "ignore_value": 99}
    use_images_of_masks(tiny, pictures)
    masks = decoded(tiny)
    for name, mask in tiny.masks.items():
        expected = mask.copy()
        expected[:4] = IGNORE
        np.testing.assert_array_equal(masks[name][0], expected)


def test_a_mask_file_a_class_and_an_instance(tiny: Tiny) -> None:
    planes = planes_of(tiny)
    for name, masks in planes.items():
        for class_name, mask in zip(CLASSES, masks, strict=True):
            folder = tiny.input / "masks" / name
            folder.mkdir(parents=True, exist_ok=True)
            for number, part in enumerate(submission.instances_of(mask)):
                (folder / f"{class_name}_{number}.png").write_bytes(encoded(part * 255, "png"))
    tiny.settings |= {"classes": CLASSES, "sample_submission": None, "columns": {"absent": "empty"}}
    tiny.settings["train"]["masks"] = "masks/{id}/{class}_*.png"
    tiny.settings["submission"] = {"id": "id", "label": "class", "rle": "mask"}
    tiny.save()
    assert_masks(decoded(tiny), planes)


def test_brackets_in_the_names_of_files(tiny: Tiny) -> None:
    pictures = {name: mask * 255 for name, mask in tiny.masks.items()}
    use_images_of_masks(tiny, pictures, "masks/{id}/[1].png")
    for name in TRAIN_IDS:
        (tiny.input / "masks" / name).rename(tiny.input / "masks" / f"{name}[x]")
        tiny.path(name).rename(tiny.input / "train" / f"{name}[x].tif")
    (tiny.input / "train").rename(tiny.input / "train [raw]")
    tiny.settings["train"] = {"images": "train [raw]/{id}.tif", "masks": "masks/{id}/*.png"}
    tiny.settings["columns"] = {"absent": "empty"}
    tiny.save()
    assert_masks(decoded(tiny), {f"{name}[x]": mask[None] for name, mask in tiny.masks.items()})


def test_masks_saved_as_jpeg(tiny: Tiny) -> None:
    """Their values waver; a threshold says which are the class."""
    use_images_of_masks(tiny, {name: mask * 255 for name, mask in tiny.masks.items()}, "masks/{id}.jpg")
    assert "expected 0 and one other value for one class; for masks saved as JPEG, set `threshold: 128`" in tiny.fails()
    tiny.settings["train"]["threshold"] = 128
    tiny.save()
    assert_masks(decoded(tiny), {name: mask[None] for name, mask in tiny.masks.items()})
    tiny.settings |= {"classes": {"ground": 0, "thing": 255}, "kind": "multiclass", "metric": "mean_iou"}
    tiny.settings["submission"] = {"id": "id", "label": "class", "rle": "mask"}
    tiny.save()
    assert "threshold can only be used with mask images of one class per file" in tiny.refused("decode")


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (np.full((41, 60), 255, np.uint8), "masks/a03.png: mask is 41×60, its image 40×60 (rows × columns)"),
        (
            np.arange(2400, dtype=np.uint8).reshape(SHAPE),
            "masks/a03.png: holds 256 values (0, 1, 2, 3, 4, 5); expected 0",
        ),
        (None, "masks/a03.png: mask does not exist"),
    ],
)
def test_a_faulty_mask_image(tiny: Tiny, picture: Any, words: str) -> None:
    use_images_of_masks(tiny, {name: mask * 255 for name, mask in tiny.masks.items()})
    path = tiny.input / "masks/a03.png"
    path.unlink() if picture is None else path.write_bytes(encoded(picture, "png"))
    assert words in tiny.fails()


def test_a_colour_that_is_not_in_the_yaml(tiny: Tiny) -> None:
    pairs = {name: coloured(mask) for name, mask in tiny.masks.items()}
    pairs["a05"][1][0, :3] = (1, 2, 3)
    tiny.settings |= {"classes": PALETTE, "kind": "multiclass", "metric": "mean_iou", "sample_submission": None}
    use_images_of_masks(tiny, {name: picture for name, (_, picture) in pairs.items()})
    tiny.settings["submission"] = {"id": "id", "label": "class", "rle": "mask"}
    tiny.save()
    known = "ground: 0, cell: [255, 0, 0], wall: [10, 20, 200]"
    assert f"masks/a05.png: holds [1, 2, 3] (3 px), which is no class of the YAML ({known})" in tiny.fails()


# --- images ----------------------------------------------------------------------------------------------------------


def test_four_channels(tiny: Tiny) -> None:
    images = {name: np.dstack([image] * 3 + [255 - image]) for name, image in tiny.images.items()}
    tiny.convert("tif", images)
    path = tiny.path("a01")
    assert read_image(path).shape == (*SHAPE, 3)
    assert read_image(path, 4).shape == (*SHAPE, 4)
    tiny.recipe["image"]["channels"] = 4
    tiny.save()
    assert "image.channels is 4, but an image has 3: set `channels: 4` in the competition." in tiny.fails()
    tiny.settings["channels"] = 4
    tiny.save()
    array = np.load(tiny.run("decode").pixels / "train_images.npy", mmap_mode="r")
    assert array.shape == (12, 32, 32, 4)
    tiny.path("a02").write_bytes(encoded(images["a02"][..., :3]))
    assert "train/a02.tif: has 3 channels; the competition's YAML says 4" in tiny.refused("decode")


def test_a_group_that_an_image_without_a_row_lacks(tiny: Tiny) -> None:
    tiny.rows = [row for row in tiny.rows if row["mask"]]
    tiny.settings["columns"]["absent"], tiny.settings["group"] = "empty", "patient"
    tiny.save()
    message = tiny.fails()
    assert "train.csv: images a01, a05, a09 without a row have no `patient` (group" in message
    assert "name a table with a row for every image in `train: {table: …}`, or set `group_missing: own`" in message


def test_too_large_to_decode(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    assert LARGEST_IMAGE == 16384**2
    monkeypatch.setattr("pipeline.decode.readers.files.LARGEST_IMAGE", SHAPE[0] * SHAPE[1] - 1)
    message = tiny.fails()
    assert "train/a01.tif: is 40×60; an image that is decoded as a whole may have" in message
    assert "`windows: {}`" in message


def test_more_than_the_disk_holds(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(shutil.disk_usage("/"))(100, 99, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    message = tiny.fails()
    assert message.startswith("pixel arrays at 32×32 and descriptors of all images take ")
    assert " KiB, and the disk of work/tiny has 0.0 KiB free: " in message
    assert "free some space, or set a smaller image.size or image.store." in message
