"""Borders of `image.fit: pad`, and where an image lies at network size."""

import cv2
import numpy as np
import pytest

from pipeline.core.errors import PipelineError
from pipeline.masks.geometry import (
    IGNORE,
    Geometry,
    box_of,
    image_to_network,
    labels_to_network,
    mask_to_network,
    to_native,
)

SHAPES = [(16, 24), (15, 21), (1, 1), (16, 3), (2, 24), (9, 10)]
BORDERS = ["reflect", "constant"]


def padded(border: str, channels: int = 1) -> Geometry:
    return Geometry((16, 24), "pad", channels, border)  # type: ignore[arg-type]


def outside(shape: tuple[int, int]) -> np.ndarray:
    """Which pixels of the network's (16, 24) are border: half of it, rounded down, is above and before."""
    found = np.ones((16, 24), bool)
    top, left = (16 - shape[0]) // 2, (24 - shape[1]) // 2
    found[top : top + shape[0], left : left + shape[1]] = False
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_constant_border_is_black(shape: tuple[int, int], channels: int, dtype: type) -> None:
    image = np.random.default_rng(0).integers(1, 60000 if dtype == np.uint16 else 256, (*shape, channels)).astype(dtype)
    fitted = image_to_network(image, padded("constant", channels))
    assert (fitted.shape, fitted.dtype) == ((16, 24, channels), dtype)
    np.testing.assert_array_equal((fitted == 0).all(2), outside(shape))
    np.testing.assert_array_equal(fitted[~outside(shape)].reshape(image.shape), image)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_constant_border_counts_nowhere(shape: tuple[int, int]) -> None:
    planes = np.random.default_rng(0).integers(0, 2, (3, *shape)).astype(np.uint8)
    for fitted in (mask_to_network(planes, padded("constant")), labels_to_network(planes, padded("constant"))):
        assert (fitted.shape[1:], fitted.dtype) == ((16, 24), np.uint8)
        for plane in fitted:
            np.testing.assert_array_equal(plane == IGNORE, outside(shape))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_mirrored_border_mirrors_labels_with_their_pixels(shape: tuple[int, int]) -> None:
    planes = np.eye(3, dtype=np.uint8)[np.random.default_rng(0).integers(0, 3, shape)].transpose(2, 0, 1)
    fitted = image_to_network(np.ascontiguousarray(planes.transpose(1, 2, 0)), padded("reflect", 3)).transpose(2, 0, 1)
    np.testing.assert_array_equal(mask_to_network(planes, padded("reflect")), fitted)
    np.testing.assert_array_equal(labels_to_network(planes, padded("reflect"))[0], fitted.argmax(0))


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_to_native_undoes_both_borders(shape: tuple[int, int], border: str) -> None:
    rng, geometry = np.random.default_rng(0), padded(border, 3)
    image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    planes = image_to_network(image, geometry).transpose(2, 0, 1).astype(np.float32)
    np.testing.assert_array_equal(to_native(planes, geometry, shape).transpose(1, 2, 0), image)
    masks = rng.choice(np.array([0, 1, IGNORE], np.uint8), (2, *shape))
    fitted = mask_to_network(masks, geometry).astype(np.float32)
    np.testing.assert_array_equal(to_native(fitted, geometry, shape), masks)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_to_native_undoes_both_borders_of_class_maps(shape: tuple[int, int], border: str) -> None:
    rng, geometry = np.random.default_rng(0), padded(border)
    labels = rng.choice(np.array([0, 1, 2, 3, IGNORE], np.uint8), shape)
    planes = np.stack([np.where(labels == IGNORE, IGNORE, labels == number) for number in range(4)]).astype(np.uint8)
    fitted = labels_to_network(planes, geometry)
    assert fitted.shape == (1, 16, 24)
    np.testing.assert_array_equal(to_native(fitted.astype(np.float32), geometry, shape)[0], labels)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_box_of_a_padded_image_holds_it(shape: tuple[int, int], border: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 1), dtype=np.uint8)
    top, left, height, width = box_of(shape, padded(border))
    assert (height, width) == shape
    fitted = image_to_network(image, padded(border))
    np.testing.assert_array_equal(fitted[top : top + height, left : left + width], image)
    inside = np.ones((16, 24), bool)
    inside[top : top + height, left : left + width] = False
    np.testing.assert_array_equal(inside, outside(shape))
    kind = {"reflect": cv2.BORDER_REFLECT_101, "constant": cv2.BORDER_CONSTANT}[border]
    made = cv2.copyMakeBorder(image, top, 16 - top - height, left, 24 - left - width, kind)
    np.testing.assert_array_equal(fitted[..., 0], made)


def test_boxes_by_hand() -> None:
    assert box_of((15, 21), padded("reflect")) == (0, 1, 15, 21)
    assert box_of((9, 10), padded("constant")) == (3, 7, 9, 10)
    for shape in ((15, 21), (16, 24), (400, 3)):
        assert box_of(shape, Geometry((16, 24), "stretch", 1)) == (0, 0, 16, 24)


def test_a_larger_image_has_no_box() -> None:
    with pytest.raises(PipelineError, match="17×24 is larger than 16×24"):
        box_of((17, 24), padded("constant"))


@pytest.mark.parametrize("labels", [False, True])
def test_an_ignored_area_stays_in_its_place_when_shrunk(labels: bool) -> None:
    mask = np.zeros((1, 64, 96), np.uint8)
    mask[:, 18:46, 22:74] = IGNORE  # in the middle
    small = (labels_to_network if labels else mask_to_network)(mask, Geometry((16, 24), "stretch", 1, "reflect"))
    rows, columns = np.nonzero(small[0] == IGNORE)
    np.testing.assert_allclose([rows.mean(), columns.mean()], [7.5, 11.5])
