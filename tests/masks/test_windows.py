"""Windows of large images: every pixel belongs to one of them, and their masks are parts of the whole mask."""

from typing import Literal

import numpy as np
import pytest

from pipeline.masks import rle
from pipeline.masks.rle import Convention, RleError
from pipeline.masks.windows import cut


@pytest.mark.parametrize("shape", [(100, 70), (64, 64), (65, 200), (30, 20)])
@pytest.mark.parametrize("overlap", [0, 0.125, 0.5])
def test_every_pixel_belongs_to_one_window(shape: tuple[int, int], overlap: float) -> None:
    count = np.zeros(shape, int)
    for window in (one for row in cut(shape, (64, 64), overlap) for one in row):
        (top, left, bottom, right), (first, begin, last, end) = window.box, window.core
        assert (bottom - top, right - left) == (min(64, shape[0]), min(64, shape[1]))
        assert top <= first < last <= bottom <= shape[0]
        assert left <= begin < end <= right <= shape[1]
        count[first:last, begin:end] += 1
    assert (count == 1).all()


@pytest.mark.parametrize("order", ["column", "row"])
def test_a_part_of_a_mask_is_that_of_the_whole(order: Literal["column", "row"]) -> None:
    convention = Convention(order)
    mask = (np.random.default_rng(0).random((37, 53)) > 0.6).astype(np.uint8)
    text = rle.encode(mask, convention)
    for box in [(0, 0, 37, 53), (3, 5, 20, 31), (36, 52, 37, 53), (10, 0, 11, 53)]:
        part = rle.decode_box(text, box, mask.shape, convention)
        assert (part == mask[box[0] : box[2], box[1] : box[3]]).all()
    with pytest.raises(RleError, match="past the end"):
        rle.decode_box("1900 100", (0, 0, 2, 2), mask.shape, convention)


@pytest.mark.parametrize("order", ["column", "row"])
def test_runs_of_strips_follow_one_another(order: Literal["column", "row"]) -> None:
    convention = Convention(order)
    mask = (np.random.default_rng(1).random((24, 40)) > 0.3).astype(np.uint8)
    if order == "column":
        parts = [rle.runs_of(mask[:, first : first + 8], order) + [first * 24, 0] for first in range(0, 40, 8)]
    else:
        parts = [rle.runs_of(mask[first : first + 8], order) + [first * 40, 0] for first in range(0, 24, 8)]
    assert rle.write(np.concatenate(parts), mask.shape, convention) == rle.encode(mask, convention)
