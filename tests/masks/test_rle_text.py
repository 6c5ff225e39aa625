"""Run lengths written otherwise than as pairs with spaces: separators, JSON, COCO's counts and compressed text."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.masks import rle, rle_text
from pipeline.masks.rle import Convention

WAYS = [
    {"separator": ","}, {"separator": ", "}, {"separator": ":", "run_separator": " "}, {"run_separator": ";"},
    {"as_json": "list"}, {"as_json": "pairs", "base": 0, "order": "row"}, {"separator": ",", "offsets": "relative"},
    {"format": "counts"}, {"format": "counts", "separator": ",", "order": "row"},
    {"format": "counts", "as_json": "list"},
    {"format": "counts", "as_json": "coco"}, {"format": "coco"}, {"format": "coco", "as_json": "coco"},
    {"format": "coco_zlib", "empty": "-"},
]  # fmt: skip
MASKS = arrays.arrays(np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 1))


@pytest.mark.parametrize("way", WAYS, ids=str)
@settings(max_examples=30, deadline=None)
@given(mask=MASKS)
def test_what_is_written_is_read(way: dict[str, Any], mask: np.ndarray) -> None:
    convention = Convention(**way)
    text = rle.encode(mask, convention)
    shape = (mask.shape[0], mask.shape[1])
    assert (rle.decode(text, shape, convention) == mask).all()
    assert rle.convert(text, shape, convention, rle.INTERNAL) == rle.encode(mask)


MASK = np.zeros((4, 4), np.uint8)
MASK[1:3, 1] = MASK[3, 2] = 1
WRITTEN = [
    ({}, "6 2 12 1"),
    ({"separator": ","}, "6,2,12,1"),
    ({"run_separator": ";", "separator": ","}, "6,2;12,1"),
    ({"as_json": "list"}, "[6, 2, 12, 1]"),
    ({"as_json": "pairs", "base": 0}, "[[5, 2], [11, 1]]"),
    ({"format": "counts"}, "5 2 4 1 4"),
    ({"format": "counts", "as_json": "coco"}, '{"size": [4, 4], "counts": [5, 2, 4, 1, 4]}'),
]


@pytest.mark.parametrize(("way", "text"), WRITTEN, ids=str)
def test_hand_written(way: dict[str, Any], text: str) -> None:
    convention = Convention(**way)
    assert rle.encode(MASK, convention) == text
    assert (rle.decode(text, (4, 4), convention) == MASK).all()


def test_compressed_as_the_coco_api_does() -> None:
    """The texts are those of pycocotools 2.0.11."""
    mask = np.zeros((20, 30), np.uint8)
    mask[3:9, 4:25] = mask[12:19, 0:7] = mask[0, 0] = 1
    text = "01;6200000GOO11OO11OO11O:000000000000000000000000000000000Q3"
    convention = Convention(format="coco")
    assert rle.encode(mask, convention) == text
    assert (rle.decode(text, (20, 30), convention) == mask).all()
    assert not rle.decode("<", (3, 4), convention).any()
    assert rle_text.decompress("<").tolist() == [12]


REFUSED = [
    ("1 2 x", {"format": "counts"}, "'x' is not a number of pixels"),
    ("1 2 3", {"format": "counts"}, "the counts add up to 6, a 2×2 image has 4 pixels"),
    ("0P", {"format": "coco"}, "COCO's compressed counts are cut short"),
    ("0é", {"format": "coco"}, "is not a character of COCO's compressed counts"),
    ("eJy", {"format": "coco_zlib"}, "is not base64 of zlib-compressed counts"),
    ("[1,2", {"as_json": "list"}, "is not JSON, and `rle: as_json` requires JSON"),
    ("[1.5, 2]", {"as_json": "list"}, "the JSON list holds 1.5, which is not a whole number"),
    (
        '{"size": [1, 4], "counts": [4]}',
        {"format": "counts", "as_json": "coco"},
        r"its size is \[1, 4\], and that of the image",
    ),
    ("1,2,3", {"separator": ","}, "the number of values, 3, is odd"),
]


@pytest.mark.parametrize(("text", "way", "words"), REFUSED, ids=lambda value: str(value)[:20])
def test_refused(text: str, way: dict[str, Any], words: str) -> None:
    with pytest.raises(rle.RleError, match=words):
        rle.decode(text, (2, 2), Convention(**way))
