"""Masks in planes, images that nobody labelled or whose masks are empty whatever lies there, ranges per channel."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from raw import Raw

from pipeline.core.errors import PipelineError

SHAPE = (16, 20)
MASK = np.zeros(SHAPE, np.uint8)
MASK[4:9, 3:15] = 1


@pytest.fixture
def raw(tmp_path: Path) -> Raw:
    """Two images with masks as planes, one of them an authentic one of the same name."""
    raw = Raw(tmp_path, "raw", {
        "title": "Raw", "classes": ["thing"], "metric": "dice", "test": None, "sample_submission": None,
        "train": {"images": "images/{kind}/{name}.tif", "id": "{kind}_{name}", "masks": "masks/{name}.npy",
                  "instances": "planes", "empty": ["images/authentic/*"]},
    })  # fmt: skip
    for place in ("authentic/a", "forged/a", "forged/b"):
        image(raw, f"images/{place}.tif", np.arange(320, dtype=np.uint8).reshape(SHAPE))
    (raw.folder / "masks").mkdir()
    np.save(raw.folder / "masks/a.npy", np.stack([MASK, MASK[::-1], MASK * 0]))
    np.save(raw.folder / "masks/b.npy", MASK > 0)
    return raw


def image(raw: Raw, name: str, pixels: np.ndarray, **options: Any) -> None:
    (raw.folder / name).parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(raw.folder / name, pixels, **options)


def instances(raw: Raw, image_id: str) -> int:
    read = raw.item(image_id).read_masks
    assert read
    (texts,) = read(SHAPE).instances or ((),)
    return len(texts)


def test_planes_are_instances_and_an_authentic_image_has_none(raw: Raw) -> None:
    assert [instances(raw, name) for name in ("authentic_a", "forged_a", "forged_b")] == [0, 2, 1]
    assert (raw.planes("forged_a")[0] == MASK | MASK[::-1]).all() and (raw.planes("forged_b")[0] == MASK).all()
    assert not raw.planes("authentic_a").any() and not raw.listing().remarks


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (
            np.zeros((2, 20, 16)),
            "mask is an array of shape (2, 20, 16); expected (16, 20) of its image, or (n, 16, 20)",
        ),
        (np.zeros(3), "mask is an array of shape (3,); expected (16, 20)"),
        (np.arange(320.0).reshape(SHAPE), "holds the values 1, 2, 3, 4, 5, 6 in one plane; expected 0 and one other"),
        (np.full(SHAPE, np.nan), "mask holds float64 pixels that are not whole numbers; expected 0 and 1"),
        (np.array(["a"]), "mask holds <U1; expected an array of numbers"),
    ],
)
def test_planes_that_are_none(raw: Raw, array: np.ndarray, said: str) -> None:
    np.save(raw.folder / "masks/b.npy", array)
    assert said in str(raw.mask_fault("forged_b"))


def test_missing_planes(raw: Raw) -> None:
    (raw.folder / "masks/b.npy").unlink()
    assert str(raw.mask_fault("forged_b")) == "mask does not exist"
    raw.settings["columns"] = {"absent": "empty"}
    assert not raw.planes("forged_b").any()
    raw.settings["columns"] = {"absent": "leave_out"}
    assert [item.image_id for item in raw.listing().items] == ["authentic_a", "forged_a"]
    (text,) = raw.listing().remarks
    assert text == (
        "1 training images have no masks in masks/{name}.npy and are left out, for instance images/forged/b.tif"
    )


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (
            {"masks": "masks/{name}.png"},
            "instances: planes can only be used with masks in .npy files; masks is masks/{name}.png",
        ),
        ({"masks": "masks.csv", "instances": False}, "empty can only be used with mask images; masks is masks.csv"),
    ],
)
def test_settings_that_do_not_go_together(raw: Raw, train: dict[str, Any], said: str) -> None:
    raw.settings["train"] |= train
    with pytest.raises(PipelineError, match="train") as caught:
        raw.competition()
    assert said in str(caught.value)


def test_a_range_per_channel(tmp_path: Path) -> None:
    raw = Raw(tmp_path, "bands", {
        "title": "Bands", "classes": ["thing"], "metric": "dice", "test": None, "sample_submission": None,
        "channels": 2, "value_range": [[0, 100], [-1, 1]],
        "train": {"images": "images/{id}.tif", "masks": "masks/{id}.tif"},
    })  # fmt: skip
    bands = np.stack([np.full(SHAPE, 50), np.full(SHAPE, 3)], axis=2).astype(np.int16)
    image(raw, "images/a.tif", bands, photometric="minisblack", planarconfig="contig")
    image(raw, "masks/a.tif", MASK)
    assert (raw.item("a").read_image() == [32768, 65535]).all()  # 50 of 100 is half of 65535; 3 is clipped to 1
    raw.settings["value_range"] = [[0, 100]] * 3
    with pytest.raises(
        ValueError, match=r"has shape \(16, 20, 2\); value_range has 3 ranges, and needs one per channel"
    ):
        raw.item("a").read_image()
    raw.settings["value_range"] = [[0, 100], [1, 1]]
    with pytest.raises(PipelineError, match=r"expected the lowest and the highest value, e.g. \[0, 4095\]; got \[1"):
        raw.competition()
