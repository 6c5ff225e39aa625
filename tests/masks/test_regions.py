"""Which regions of a mask stay, against scipy's slow but plain ways, and the counts of every variant against masks."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from pipeline.masks.geometry import IGNORE
from pipeline.masks.overlaps import counts
from pipeline.masks.regions import SHORTLIST, RegionRule, clean, shortlist_counts

SIDES = st.tuples(st.integers(1, 14), st.integers(1, 14))
MASKS = arrays.arrays(np.uint8, SIDES, elements=st.integers(0, 1))
WANTED = st.builds(RegionRule, st.booleans(), st.booleans(), st.integers(0, 12))


def drawn(text: str) -> np.ndarray:
    """A mask from rows of # and ·, parted by spaces."""
    return np.array([[one == "#" for one in row] for row in text.split()], np.uint8)


def reference(mask: np.ndarray, wanted: RegionRule) -> np.ndarray:
    kept = ndimage.binary_fill_holes(mask) if wanted.fill else mask.astype(bool)
    labels, count = ndimage.label(kept, np.ones((3, 3)))
    regions = [labels == number for number in range(1, count + 1)]
    if wanted.largest and regions:
        regions = [max(regions, key=lambda region: (region.sum(), -np.flatnonzero(region)[0]))]
    regions = [region for region in regions if region.sum() >= wanted.min_size]
    return np.any([np.zeros_like(kept), *regions], axis=0).astype(np.uint8)


@given(mask=MASKS, wanted=WANTED)
@settings(max_examples=400, deadline=None)
def test_any_mask_as_by_scipy(mask: np.ndarray, wanted: RegionRule) -> None:
    before = mask.copy()
    found = clean(mask, wanted)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, reference(mask, wanted))
    np.testing.assert_array_equal(clean(found, wanted), found)
    np.testing.assert_array_equal(mask, before)


@pytest.mark.parametrize("wanted", [*SHORTLIST, RegionRule(True, True, 40)], ids=str)
@pytest.mark.parametrize("share", [0.05, 0.4, 0.6, 0.97])
def test_large_masks_as_by_scipy(wanted: RegionRule, share: float) -> None:
    noise = np.random.default_rng(round(100 * share)).random((90, 130), np.float32)
    mask = (cv2.GaussianBlur(noise, (0, 0), 1.5) < np.quantile(cv2.GaussianBlur(noise, (0, 0), 1.5), share)).view(
        np.uint8
    )
    np.testing.assert_array_equal(clean(mask, wanted), reference(mask, wanted))


@pytest.mark.parametrize("wanted", [*SHORTLIST, RegionRule()], ids=str)
@pytest.mark.parametrize("value", [0, 1])
def test_empty_and_full_masks_stay(wanted: RegionRule, value: int) -> None:
    mask = np.full((24, 30), value, np.uint8)
    np.testing.assert_array_equal(clean(mask, wanted), mask)


def test_regions_in_all_corners() -> None:
    mask = drawn("##···# #····# ······ #····· ##···#")
    assert clean(mask, RegionRule(min_size=2)).sum() == mask.sum() - 1
    # of two regions of three pixels each, the upper left one comes first
    np.testing.assert_array_equal(clean(mask, RegionRule(largest=True)), drawn("##···· #····· ······ ······ ······"))


def test_equal_regions_by_their_first_pixel_in_row_order() -> None:
    mask = drawn("····# #···# #···· #···#")
    assert clean(mask, RegionRule(largest=True))[:, 0].tolist() == [0, 1, 1, 1]
    mask[3, 0] = 0
    # now both have two pixels: the right one starts in a row above
    np.testing.assert_array_equal(clean(mask, RegionRule(largest=True)), drawn("····# ····# ····· ·····"))


def test_regions_touch_by_corners_and_holes_do_not_leak_through_them() -> None:
    ring = drawn("·#· #·# ·#·")
    np.testing.assert_array_equal(clean(ring, RegionRule(fill=True, min_size=5)), drawn("·#· ### ·#·"))
    assert clean(ring, RegionRule(min_size=4)).sum() == 4


def test_background_at_the_edge_is_no_hole() -> None:
    bay = drawn("#·# #·# ###")
    np.testing.assert_array_equal(clean(bay, RegionRule(fill=True)), bay)
    np.testing.assert_array_equal(clean(bay.T, RegionRule(fill=True)), bay.T)


def test_an_island_in_a_hole_joins_the_region_around_it() -> None:
    mask = drawn("##### #···# #·#·# #···# #####")
    assert clean(mask, RegionRule(largest=True)).sum() == 16
    assert clean(mask, RegionRule(fill=True, largest=True)).sum() == 25


def test_the_largest_goes_too_when_it_is_too_small() -> None:
    mask = drawn("##··# ·····")
    assert clean(mask, RegionRule(largest=True, min_size=2)).sum() == 2
    assert not clean(mask, RegionRule(largest=True, min_size=3)).any()


# --- counts ----------------------------------------------------------------------------------------------------------


@st.composite
def images(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and true masks (C, h, w); smooth, so that there are regions and holes of many sizes."""
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 40)), draw(st.integers(1, 40)))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.sampled_from([0.0, 1.0, 3.0]))
    smooth = ndimage.gaussian_filter(random.random(shape), (0, spread, spread))
    span = max(float(np.ptp(smooth)), 1e-9)
    true = (ndimage.gaussian_filter(random.random(shape), (0, 2, 2)) > 0.5).astype(np.uint8)
    ignored = random.random(shape) < draw(st.sampled_from([0.0, 0.2, 1.0]))
    return np.rint((smooth - smooth.min()) / span * 255).astype(np.uint8), np.where(ignored, np.uint8(IGNORE), true)


@given(image=images(), thresholds=st.lists(st.integers(0, 255), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_counts_of_every_variant_are_those_of_its_masks(
    image: tuple[np.ndarray, np.ndarray], thresholds: list[int]
) -> None:
    probability, true = image
    levels = [np.roll(thresholds, index).tolist() for index in range(len(true))]
    predicted, intersection = shortlist_counts(probability, true, levels)
    assert predicted.dtype == intersection.dtype == np.int32
    assert predicted.shape == intersection.shape == (len(true), len(thresholds), len(SHORTLIST))
    for position in range(len(thresholds)):
        at = np.array([one[position] for one in levels])[:, None, None]
        masks = (probability >= at).astype(np.uint8)
        for number, variant in enumerate(SHORTLIST):
            inside, drawn_pixels, _ = counts(np.stack([clean(mask, variant) for mask in masks]), true)
            np.testing.assert_array_equal(predicted[:, position, number], drawn_pixels)
            np.testing.assert_array_equal(intersection[:, position, number], inside)


def test_ignored_pixels_belong_to_regions_but_not_to_counts() -> None:
    probability, true = np.zeros((2, 1, 20, 20), np.uint8)
    probability[0, 5, 2:12] = 200
    true[0, 5, 2:5], true[0, 5, 5:10] = IGNORE, 1
    predicted, intersection = shortlist_counts(probability, true, [[100]])
    place = [SHORTLIST.index(RegionRule(min_size=size)) for size in (8, 32)]
    assert predicted[0, 0, place].tolist() == [7, 0]  # ten pixels are enough for 8, though three do not count
    assert intersection[0, 0, place].tolist() == [5, 0]


def test_the_shortlist_names_each_variant_once() -> None:
    assert len(set(SHORTLIST)) == len(SHORTLIST)
    assert RegionRule() not in SHORTLIST
