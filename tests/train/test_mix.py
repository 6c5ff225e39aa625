"""Mixing: labels follow their pixels, nothing is changed in place, seeds decide."""

import numpy as np
import pytest

from pipeline.core.config.training import MixSettings
from pipeline.core.errors import PipelineError
from pipeline.masks.geometry import IGNORE
from pipeline.train.batches import mix
from pipeline.train.batches.mix import Mixer

NONE = np.array([], int)


def pair(low: int, high: int, planes: int = 2, dtype: type = np.uint8) -> mix.Pair:
    """Returns an image whose pixels, from low to high - 1, name the planes' values: see `labels`."""
    image: np.ndarray = np.random.default_rng(low).integers(low, high, (20, 30, 1)).astype(dtype)
    return image, labels(image, planes)


def labels(image: np.ndarray, planes: int = 2) -> np.ndarray:
    values = np.array([0, 1, IGNORE], np.uint8)
    return np.stack([values[(image[..., 0] + plane) % 3] for plane in range(planes)])


def class_map(image: np.ndarray) -> np.ndarray:
    return (image[..., 0] % 5)[None].astype(np.uint8)


FIRST, SECOND = pair(0, 100), pair(100, 200)


@pytest.mark.parametrize("name", mix.NAMES)
def test_nothing_is_changed_in_place(name: str) -> None:
    first, second = pair(0, 100), pair(100, 200)
    mixer = Mixer(MixSettings(paste=0.5), "multilabel", 2, [0, 1], np.arange(3))
    image, masks = mixer.apply(name, first, second, 0)
    for array, before in zip((*first, *second), (*FIRST, *SECOND), strict=True):
        np.testing.assert_array_equal(array, before)
        assert not np.shares_memory(image, array) and not np.shares_memory(masks, array)
    assert (image.shape, image.dtype, masks.shape) == (FIRST[0].shape, np.uint8, FIRST[1].shape)
    assert (image != FIRST[0]).any()


def test_cutmix_takes_a_rectangle_with_its_labels() -> None:
    shares = []
    for seed in range(200):
        image, masks = mix.cutmix(*FIRST, *SECOND, 1.0, np.random.default_rng(seed))
        taken = image[..., 0] >= 100
        rows, columns = np.nonzero(taken)
        if len(rows):
            assert taken[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()
        np.testing.assert_array_equal(image, np.where(taken[..., None], SECOND[0], FIRST[0]))
        np.testing.assert_array_equal(masks, labels(image))
        shares.append(taken.mean())
    assert len(set(shares)) > 50
    assert 0.2 < np.mean(shares) < 0.5  # half of the area, less what lies outside


def test_mixup_is_the_weighted_mean() -> None:
    weights = []
    for seed in range(50):
        image, masks = mix.mixup(*FIRST, *SECOND, 1.0, np.random.default_rng(seed))
        weight = np.random.default_rng(seed).beta(1.0, 1.0)
        assert (image.dtype, masks.dtype) == (np.uint8, np.float32)
        np.testing.assert_allclose(image, weight * FIRST[0] + (1 - weight) * SECOND[0], atol=0.5 + 1e-9)
        ignored = (FIRST[1] == IGNORE) | (SECOND[1] == IGNORE)
        np.testing.assert_array_equal(masks == IGNORE, ignored)
        np.testing.assert_allclose(
            masks[~ignored], (weight * FIRST[1] + (1.0 - weight) * SECOND[1])[~ignored], atol=1e-6
        )
        assert masks[~ignored].min() >= 0 and masks[~ignored].max() <= 1
        weights.append(weight)
    assert np.ptp(weights) > 0.8


def test_mixup_keeps_the_range_of_deep_images() -> None:
    first, second = pair(0, 65536, dtype=np.uint16), pair(1, 65536, dtype=np.uint16)
    image, masks = mix.mixup(*first, *second, 0.4, np.random.default_rng(0))
    assert image.dtype == np.uint16
    again, soft = mix.mixup(image, masks, *second, 0.4, np.random.default_rng(1))  # of soft masks too
    assert ((soft == IGNORE) | (soft <= 1)).all()


@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
def test_paste_moves_a_class_with_its_labels(kind: str) -> None:
    image, donor = FIRST[0], np.full_like(SECOND[0], 250)
    donor[3:7, 10:15] = SECOND[0][3:7, 10:15]
    label = labels if kind == "multilabel" else class_map
    chosen = mix.pixels_of(label(donor), 1, kind) & (donor[..., 0] < 250)
    assert chosen.any()
    places = set()
    for seed in range(60):
        result, masks = mix.paste(image, label(image), donor, label(donor), chosen, np.random.default_rng(seed))
        changed = result[..., 0] != image[..., 0]
        assert changed.sum() == chosen.sum()  # never cut off at the border
        assert sorted(result[changed]) == sorted(donor[chosen])
        np.testing.assert_array_equal(masks, label(result))
        places.add(tuple(np.argwhere(changed)[0]))
    assert len(places) > 30
    rows, columns = np.nonzero(chosen)
    assert min(place[0] for place in places) == 0
    assert max(place[0] for place in places) == 19 - (rows.max() - rows.min())


def test_without_a_donor_pixel_nothing_is_pasted() -> None:
    empty = (SECOND[0], np.zeros_like(SECOND[1]))
    image, masks = Mixer(MixSettings(paste=1), "multilabel", 2, [0, 1], np.arange(3)).apply("paste", FIRST, empty, 0)
    assert image is FIRST[0] and masks is FIRST[1]


def test_of_several_classes_any_that_is_there_is_pasted() -> None:
    donor = np.full((20, 30, 1), 201, np.uint8)
    planes = np.zeros((3, 20, 30), np.uint8)
    planes[0, 4, 4], planes[2, 9, 9] = 1, 1
    mixer = Mixer(MixSettings(paste=1), "multilabel", 3, [0, 1, 2], np.arange(3))
    first = (FIRST[0], np.zeros((3, 20, 30), np.uint8))
    found = [mixer.apply("paste", first, (donor, planes), seed)[1].sum(axis=(1, 2)).tolist() for seed in range(20)]
    assert sorted({tuple(one) for one in found}) == [(0, 0, 1), (1, 0, 0)]


def test_a_class_is_found_in_all_kinds_of_masks() -> None:
    plane = np.array([[[0, 1, IGNORE, 0]]], np.uint8)
    assert mix.pixels_of(plane, 0, "binary").tolist() == [[False, True, False, False]]
    soft = np.array([[[0.4, 0.5, IGNORE, 1.0]]], np.float32)
    assert mix.pixels_of(soft, 0, "multilabel").tolist() == [[False, True, False, True]]
    assert mix.pixels_of(np.array([[[0, 2, IGNORE, 1]]], np.uint8), 2, "multiclass").tolist() == [
        [False, True, *[False] * 2]
    ]


def test_soft_masks_are_not_cut_to_integers() -> None:
    soft = np.full(FIRST[1].shape, 0.5, np.float32)
    image, masks = mix.cutmix(*FIRST, SECOND[0], soft, 1.0, np.random.default_rng(3))
    assert masks.dtype == np.float32
    assert (masks[:, image[..., 0] >= 100] == 0.5).all()


def test_partners_are_drawn_by_probability_and_seed() -> None:
    donors = np.array([4, 17, 33])
    settings = MixSettings(cutmix=0.3, mixup=0.2, paste=0.1)
    mixer, other = (Mixer(settings, "binary", 1, [0], donors) for _ in range(2))
    drawn = [mixer.partner(seed, 50) for seed in range(2000)]
    assert drawn == [other.partner(seed, 50) for seed in range(2000)]
    names = [one[0] if one else None for one in drawn]
    for name, share in (("cutmix", 0.3), ("mixup", 0.2), ("paste", 0.1), (None, 0.4)):
        assert abs(names.count(name) / 2000 - share) < 0.04
    assert {one[1] for one in drawn if one and one[0] == "paste"} == set(donors.tolist())
    assert {one[1] for one in drawn if one and one[0] == "cutmix"} == set(range(50))
    assert all(isinstance(one[1], int) for one in drawn if one)
    mixed = [mixer.apply("cutmix", FIRST, SECOND, seed)[0].tobytes() for seed in (1, 1, 2)]
    assert mixed[0] == mixed[1] != mixed[2]


def test_the_mix_may_be_certain_or_absent() -> None:
    always = Mixer(MixSettings(mixup=1), "binary", 1, [], NONE)
    never = Mixer(MixSettings(), "binary", 1, [], NONE)
    assert {always.partner(seed, 5)[0] for seed in range(50)} == {"mixup"}  # type: ignore[index]
    assert {never.partner(seed, 5) for seed in range(50)} == {None}
    assert always.soft and not never.soft


@pytest.mark.parametrize(
    ("settings", "kind", "classes", "donors", "message"),
    [
        (MixSettings(cutmix=0.6, mixup=0.5), "binary", [], NONE, r"train\.mix: .* sum to 1\.1; expected at most 1"),
        (MixSettings(mixup=0.1), "multiclass", [], NONE, r"train\.mix\.mixup: .*use cutmix"),
        (MixSettings(paste=0.1), "multilabel", [1, 2], NONE, r"train\.mix\.paste: .*the classes 1, 2\."),
        (MixSettings(paste=0.1), "multilabel", [5], np.arange(2), r"expected classes from 0 to 4, not \[5\]"),
        (MixSettings(paste=0.1), "multilabel", [], np.arange(2), r"expected classes from 0 to 4, not \[\]"),
    ],
)
def test_wrong_settings_are_named(
    settings: MixSettings, kind: str, classes: list[int], donors: np.ndarray, message: str
) -> None:
    with pytest.raises(PipelineError, match=message):
        Mixer(settings, kind, 5, classes, donors)


def test_certain_probabilities_in_parts_are_allowed() -> None:
    Mixer(MixSettings(cutmix=0.1, mixup=0.2, paste=0.7), "binary", 1, [0], np.arange(2))


def test_floats_are_mixed_without_rounding() -> None:
    image, other = np.full((4, 4, 6), 0.25, np.float32), np.full((4, 4, 6), 0.75, np.float32)
    masks = np.zeros((1, 4, 4), np.uint8)
    mixed, _ = mix.mixup(image, masks, other, masks, 1.0, np.random.default_rng(0))
    assert mixed.dtype == np.float32
    assert 0.25 < mixed[0, 0, 0] < 0.75
