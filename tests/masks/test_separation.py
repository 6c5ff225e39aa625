"""Touching objects told apart: what a watershed makes of a mask, and what networks learn for it, against plain ways."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from benchmarks.touching import ceilings, nuclei
from pipeline.masks.decision import Rule, Rules, decide, decision_of, described, in_words, objects
from pipeline.masks.geometry import IGNORE, Geometry, instances_to_network
from pipeline.masks.instances import regions_of
from pipeline.masks.separation import SEPARATORS, WATERSHEDS, Separation, separated
from pipeline.masks.separators import FULL, REACHES, border_of, depth, distance_of, learned, targets_of

SIDES = st.shared(st.tuples(st.integers(1, 14), st.integers(1, 14)), key="sides")
PLANES = arrays.arrays(np.uint8, SIDES, elements=st.integers(0, 255))
WAYS = st.sampled_from([None, *WATERSHEDS, *SEPARATORS["border"], *SEPARATORS["distance"]])


def discs(*centres: tuple[int, int], radius: int = 9, shape: tuple[int, int] = (40, 60)) -> np.ndarray:
    """A label map of discs, of which later ones lie on top."""
    labels = np.zeros(shape, np.int32)
    for number, centre in enumerate(centres, 1):
        cv2.circle(labels, centre, radius, number, -1)
    return labels


def same_objects(found: np.ndarray, true: np.ndarray) -> bool:
    """Whether two label maps hold the same objects, in whatever order."""
    pairs = set(zip(found.ravel().tolist(), true.ravel().tolist(), strict=True))
    return len(pairs) == found.max() + 1 == true.max() + 1


# --- the watershed ---------------------------------------------------------------------------------------------------


@given(mask=arrays.arrays(np.uint8, SIDES, elements=st.integers(0, 1)), probability=PLANES, apart=PLANES, way=WAYS)
@settings(max_examples=100, deadline=None)
def test_every_pixel_of_any_mask_belongs_to_one_object(
    mask: np.ndarray, probability: np.ndarray, apart: np.ndarray, way: Separation | None
) -> None:
    labels = separated(mask, probability, apart, way)
    np.testing.assert_array_equal(labels > 0, mask == 1)
    assert np.unique(labels[labels > 0]).tolist() == list(range(1, labels.max() + 1))
    regions = regions_of(mask)
    for number in range(1, labels.max() + 1):
        inside = labels == number
        assert len(np.unique(regions[inside])) == 1 and regions_of(inside.view(np.uint8)).max() == 1
    if way is None:
        np.testing.assert_array_equal(labels, regions)


def test_two_discs_that_touch_are_two_objects() -> None:
    true = discs((20, 20), (37, 20), (46, 34))
    mask = (true > 0).astype(np.uint8)
    assert regions_of(mask).max() == 1
    planes = {"border": 255 * border_of(true), "distance": distance_of(true), "probability": distance_of(true)}
    for way in (Separation("border", 128), Separation("distance", 96), Separation("probability", 96)):
        probability = planes["probability"] if way.source == "probability" else 255 * mask
        found = separated(mask, probability, planes.get(way.source), way)
        assert found.max() == 3
        assert (np.abs(np.bincount(found.ravel()) - np.bincount(true.ravel()))[1:] < 15).all()
    assert separated(mask, 255 * mask, None, Separation("shape", 6)).max() == 3


def test_small_seeds_and_regions_without_a_seed() -> None:
    true = discs((12, 20), (40, 20))
    mask = (true > 0).astype(np.uint8)
    border = np.full(mask.shape, 255, np.uint8)
    whole = separated(mask, 255 * mask, border, Separation("border", 128))  # there is no seed at all
    np.testing.assert_array_equal(whole, regions_of(mask))
    border[20, 8:10] = border[20, 14:18] = 0  # seeds of two and of four pixels, both in the first disc
    assert separated(mask, 255 * mask, border, Separation("border", 128)).max() == 3
    assert separated(mask, 255 * mask, border, Separation("border", 128, min_seed=3)).max() == 2


def test_true_borders_give_true_objects() -> None:
    """The ceiling: true masks with true borders lose nothing; with true distances, in units of each object, little."""
    random = np.random.default_rng(0)
    found = ceilings({str(number): nuclei(random) for number in range(12)})
    assert found["border"] == 1.0
    assert found["distance"] > 0.98 > 0.6 > found["connected regions"]


def test_a_decision_with_a_separation() -> None:
    """By class, as postprocess.json keeps it; without one, objects are the masks themselves."""
    true = discs((20, 20), (37, 20))
    mask = (true > 0).astype(np.uint8)
    probability, apart = np.stack([200 * mask, 200 * mask]), np.stack([np.zeros_like(mask), 255 * border_of(true)])
    way = Separation("border", 128, 16)
    decision = Rules((Rule(150), Rule(150, separation=way)))
    masks = decide(probability, decision)
    found = objects(masks, probability, apart, decision)
    assert found.dtype == np.int32 and [plane.max() for plane in found] == [1, 2]
    assert same_objects(found[1], true)
    np.testing.assert_array_equal(found > 0, masks)
    result = {"rules": described(decision, ["a", "b"])}
    assert decision_of(result) == decision
    assert "separated" not in in_words(result["rules"]["a"])
    assert in_words(result["rules"]["b"]).endswith(
        "touching objects separated by a watershed from seeds where the border's probability is at most 127 of 255, at "
        "least 16 px"
    )
    assert objects(masks, probability, None, Rules((Rule(150), Rule(150)))) is masks


@pytest.mark.parametrize("way", [*WATERSHEDS, *SEPARATORS["distance"]], ids=str)
def test_every_way_in_words(way: Separation) -> None:
    words = in_words(described(Rules((Rule(separation=way),)), ["a"])["a"])
    assert str(way.level) in words and (f"{way.min_seed} px" in words) == bool(way.min_seed)


# --- what networks learn ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "reach"), [(12, 1), (20, 2), (50, 3)])
def test_borders_reach_further_between_larger_objects(side: int, reach: int) -> None:
    labels = np.zeros((side + 6, 2 * side + 20), np.int32)
    labels[3 : 3 + side, 5 : 5 + side], labels[3 : 3 + side, 5 + side : 5 + 2 * side] = 1, 2
    columns = np.flatnonzero(border_of(labels)[3 + side // 2])
    assert columns.tolist() == list(range(5 + side - reach, 5 + side + reach))
    labels[:, 5 + side] = 0  # a gap of one pixel is a border, too
    assert border_of(labels)[3 + side // 2, 5 + side] == 1
    assert not border_of(np.minimum(labels, 1)).any()
    assert {far for _, far in REACHES} == {1, 2, 3}


def test_a_border_is_as_wide_beside_a_small_object_as_beside_a_large_one() -> None:
    labels = np.zeros((60, 80), np.int32)
    labels[5:55, 5:55], labels[20:32, 55:67] = 1, 2
    assert np.flatnonzero(border_of(labels)[26]).tolist() == [54, 55]


def test_borders_and_distances_by_hand() -> None:
    labels = np.zeros((5, 9), np.int32)
    labels[1:4, 1:4], labels[2, 4:8] = 1, 2
    distance = distance_of(labels)
    assert distance[2].tolist() == [0, 127, 254, 127, 254, 254, 254, 254, 0]
    assert distance[1, 1] == 127 and distance.max() == FULL
    labels[2, 7] = -1
    targets = targets_of(np.stack([labels, np.zeros_like(labels)]), "distance")
    assert targets[0, 2, 7] == IGNORE and not targets[1].any() and targets.dtype == np.uint8
    float_targets = learned(targets, "distance")
    assert float_targets.dtype == np.float32 and float_targets[0, 2].tolist()[:3] == [0, 0.5, 1]
    assert float_targets[0, 2, 7] == IGNORE
    borders = targets_of(labels[None], "border")
    assert set(np.unique(borders).tolist()) == {0, 1, IGNORE} and learned(borders, "border") is borders


def test_no_object_and_one_that_fills_the_image() -> None:
    for labels in (np.zeros((6, 7), np.int32), np.ones((6, 7), np.int32)):
        assert not border_of(labels).any()
        assert (distance_of(labels) > 0).any() == labels.any()
        assert separated((labels > 0).astype(np.uint8), np.zeros((6, 7), np.uint8), None, None).max() == labels.max()


def test_instances_at_network_size() -> None:
    labels = discs((20, 20), (37, 20))[None]
    half = instances_to_network(labels, Geometry((20, 30), "stretch", 1))
    assert half.shape == (1, 20, 30) and half.dtype == np.int32 and set(np.unique(half)) == {0, 1, 2}
    padded = instances_to_network(labels, Geometry((48, 64), "pad", 1, "constant"))
    assert (padded[0, :4] == -1).all()
    np.testing.assert_array_equal(padded[:, 4:44, 2:62], labels)


def test_distances_are_the_same_at_every_call() -> None:
    """OpenCV's differ in their last digit, which would decide at a level or in rounding; scipy's are exact."""
    random = np.random.default_rng(3)
    for labels in (nuclei(random) for _ in range(12)):
        mask = np.pad((labels > 0).astype(np.uint8), 1)
        np.testing.assert_array_equal(depth(mask), ndimage.distance_transform_edt(mask).astype(np.float32))
        first = distance_of(labels)
        assert all(np.array_equal(distance_of(labels), first) for _ in range(4))
