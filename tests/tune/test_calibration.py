"""Two numbers per network: found again where they are known, drawn towards the others' where groups are few."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import cv2
import numpy as np
import pytest
from evidence import Images, random_images
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.masks.geometry import IGNORE
from pipeline.masks.ranking import Calibration, logits
from pipeline.tune.calibration import NARROWEST, Levels, _fit, by_fold, calibrate

Network = Callable[[np.ndarray], np.ndarray]
"""What a fold's network says of true logits."""


def sigmoid(logit: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit))


def images_of(networks: Sequence[Network], number: int = 36, shape: tuple[int, int] = (30, 40), seed: int = 0,
              groups: Sequence[str] = ()) -> Images:  # fmt: skip
    """Images whose pixels are in the mask with a known probability; a third of them has no mask. Fold k's images are
    predicted by the k-th network."""
    rng, probabilities, truths = np.random.default_rng(seed), [], []
    for place in range(number):
        signal = cv2.GaussianBlur(rng.standard_normal(shape), (0, 0), 3)
        logit = 2 * signal / signal.std() - 1
        true = (rng.random(shape) < sigmoid(logit)) & (place // len(networks) % 3 > 0)
        said = sigmoid(networks[place % len(networks)](logit))
        probabilities.append(np.rint(255 * said)[None].astype(np.uint8))
        truths.append(true[None].astype(np.uint8))
    return Images(probabilities, truths, folds=len(networks), groups=list(groups))


def found(images: Images, groups: np.ndarray | None = None) -> tuple[Calibration, dict[str, Calibration]]:
    evidence = images.evidence()
    folds = evidence.images["fold"].to_numpy()
    groups = evidence.images["group"].to_numpy() if groups is None else groups
    return calibrate(Levels.of(evidence, 0), evidence.true[:, 0] > 0, folds, groups)


def is_near(one: Calibration, slope: float, intercept: float = 0.0, by: float = 0.15) -> bool:
    return abs(one.slope / slope - 1) < by and abs(one.intercept - intercept) < 2 * by


@pytest.mark.parametrize("seed", [0, 1])
def test_a_network_of_another_scale_is_found(seed: int) -> None:
    """Of fold 1 the logits are divided by four, of fold 2 they are higher by one."""
    pooled, folds = found(images_of([lambda z: z, lambda z: z / 4, lambda z: z + 1], seed=seed))
    assert is_near(folds["0"], 1) and is_near(folds["1"], 4) and is_near(folds["2"], 1, -1)
    assert 1 < pooled.slope < 4
    both = found(images_of([lambda z: z / 2 + 1, lambda z: z], seed=seed))[1]
    assert is_near(both["0"], 2, -2, by=0.2) and is_near(both["1"], 1)


def test_what_is_right_stays() -> None:
    pooled, folds = found(images_of([lambda z: z] * 3))
    assert is_near(pooled, 1, by=0.05)
    assert all(is_near(one, 1, by=0.1) for one in folds.values())


def test_images_without_the_class_do_not_matter() -> None:
    """Whether the class is there at all is decided apart."""
    images = images_of([lambda z: z, lambda z: z / 4, lambda z: z])
    present = np.array([true.any() for true in images.truths])
    other = [one if is_there else 255 - one for one, is_there in zip(images.probabilities, present, strict=True)]
    assert 0.2 < (~present).mean() < 0.5
    assert found(images) == found(replace(images, probabilities=other))


def test_ignored_pixels_do_not_matter() -> None:
    images, rng = images_of([lambda z: z, lambda z: z / 4]), np.random.default_rng(0)
    hidden = [rng.random(one.shape) < 0.2 for one in images.truths]
    truths = [np.where(mask, IGNORE, true).astype(np.uint8) for mask, true in zip(hidden, images.truths, strict=True)]
    other = [np.where(mask, 255 - one, one) for mask, one in zip(hidden, images.probabilities, strict=True)]
    assert found(replace(images, truths=truths)) == found(replace(images, truths=truths, probabilities=other))


def test_every_image_has_the_same_weight() -> None:
    """Ten times the pixels of the same kind change nothing."""
    images = images_of([lambda z: z / 2])
    large = [np.tile(one, (1, 5, 2)) if place % 2 else one for place, one in enumerate(images.probabilities)]
    true = [np.tile(one, (1, 5, 2)) if place % 2 else one for place, one in enumerate(images.truths)]
    first, second = found(images)[0], found(replace(images, probabilities=large, truths=true))[0]
    assert (first.slope, first.intercept) == pytest.approx((second.slope, second.intercept))


# --- towards the pooled fit ------------------------------------------------------------------------------------------


def test_a_fold_of_one_group_is_drawn_towards_the_pooled_fit() -> None:
    """It may be the group that differs, and not the network."""
    images = images_of([lambda z: z, lambda z: z / 1.3, lambda z: z * 1.3], number=60, shape=(12, 16))
    many = np.arange(60).astype(str)
    one = np.where(np.arange(60) % 3 == 1, "one", many)
    (pooled, known), (same, drawn) = found(images, many), found(images, one)
    assert same == pooled
    levels, mine = Levels.of(images.evidence(), 0), np.array([true.any() for true in images.truths])
    mine &= np.arange(60) % 3 == 1
    own = _fit(levels.pixels[mine].sum(0), levels.inside[mine].sum(0))[0]
    assert pooled.slope < drawn["1"].slope < known["1"].slope < own
    away, before = known["1"].slope - pooled.slope, drawn["1"].slope - pooled.slope
    assert before < 0.75 * away < 0.75 * (own - pooled.slope)
    # nothing says how uncertain a fold is where each has one group
    alike = found(images, (np.arange(60) % 3).astype(str))[1]
    assert set(alike.values()) == {pooled}


def test_folds_that_differ_by_chance_share_the_pooled_fit() -> None:
    """A few tiny images each, of networks that are all right: the fits of single folds are farther from that."""
    apart, shrunk = [], []
    for seed in range(20):
        images = images_of([lambda z: z] * 4, number=24, shape=(6, 8), seed=seed)
        levels, present = Levels.of(images.evidence(), 0), images.evidence().true[:, 0] > 0
        folds = np.arange(24) % 4
        rows = [present & (folds == fold) for fold in range(4)]
        apart += [_fit(levels.pixels[own].sum(0), levels.inside[own].sum(0))[0] for own in rows]
        shrunk += [one.slope for one in found(images)[1].values()]
    assert np.mean((np.array(shrunk) - 1) ** 2) < 0.7 * np.mean((np.array(apart) - 1) ** 2)


def test_a_fold_without_the_class_takes_the_pooled_fit() -> None:
    images = images_of([lambda z: z / 2, lambda z: z / 2, lambda z: z])
    images.truths = [true * (place % 3 != 2) for place, true in enumerate(images.truths)]
    pooled, folds = found(images)
    assert folds["2"] == pooled and set(folds) == {"0", "1", "2"}


# --- at the edges ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [lambda z: -z, lambda z: 0 * z], ids=["opposite", "nothing"])
def test_a_network_that_knows_nothing_is_not_turned_round(network: Network) -> None:
    pooled, folds = found(images_of([network, network]))
    assert pooled.slope == NARROWEST or network(np.ones(1))[0] == 0
    assert all(one.slope >= NARROWEST for one in folds.values())
    assert all(np.isfinite([one.slope, one.intercept]).all() for one in folds.values())


def loss(pixels: np.ndarray, inside: np.ndarray, slope: float, intercept: float) -> float:
    z = slope * logits() + intercept
    return float((inside * np.logaddexp(0, -z) + (pixels - inside) * np.logaddexp(0, z)).sum())


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), divide=st.floats(0.2, 8), shift=st.floats(-4, 4))
def test_the_log_loss_is_not_larger_than_before(seed: int, divide: float, shift: float) -> None:
    images = images_of([lambda z: z / divide + shift], number=6, shape=(8, 10), seed=seed)
    assert_best(images)


@pytest.mark.parametrize("seed", range(6))
def test_specks_and_sure_mistakes_do_no_harm(seed: int) -> None:
    assert_best(random_images(seed))


def assert_best(images: Images) -> None:
    """No step away from the fit lowers the loss, which is held at a slope of 1 and no intercept by a thousandth."""
    evidence = images.evidence()
    present, levels = evidence.true[:, 0] > 0, Levels.of(evidence, 0)
    sums = levels.pixels[present].sum(0), levels.inside[present].sum(0)
    fitted = _fit(*sums)
    reached, before = loss(*sums, *fitted), loss(*sums, 1.0, 0.0)
    assert reached <= before + 1e-9
    held = [loss(*sums, *(fitted + step)) + 5e-4 * ((fitted + step - [1, 0]) ** 2).sum()
            for step in ([0, 0], [1e-3, 0], [-1e-3, 0], [0, 1e-3], [0, -1e-3])]  # fmt: skip
    assert min(held) >= held[0] - 1e-9


def test_perfect_predictions_have_a_finite_fit() -> None:
    images = random_images(0, ignored=False)
    pooled, _ = found(replace(images, probabilities=[true * 255 for true in images.truths]))
    assert pooled.slope >= 1 and np.isfinite(pooled.intercept)


def test_no_images_have_no_say() -> None:
    levels, nobody = Levels(*np.zeros((2, 0, 256))), np.zeros(0, bool)
    pooled, folds = calibrate(levels, nobody, np.zeros(0, int), np.zeros(0, str))
    assert (pooled, folds) == (Calibration(), {})


def test_what_a_person_reads_by_class_and_fold() -> None:
    images = images_of([lambda z: z, lambda z: z / 4, lambda z: z])
    probabilities = [np.concatenate([one, 255 - one]) for one in images.probabilities]
    both = replace(
        images, probabilities=probabilities, truths=[np.concatenate([one, 0 * one]) for one in images.truths]
    )
    said = by_fold(both.evidence(), ["thing", "nowhere"])
    assert list(said) == ["thing"] and list(said["thing"]) == ["0", "1", "2"]
    expected = found(images)[1]
    for fold, numbers in said["thing"].items():
        present = sum(bool(true.any()) for true in images.truths[int(fold) :: 3])
        expect = {"slope": expected[fold].slope, "intercept": expected[fold].intercept, "images": present}
        assert {name: numbers[name] for name in expect} == expect
        assert numbers["own_slope"] == pytest.approx(4 if fold == "1" else 1, rel=0.1)
        assert 0 < numbers["standard_error"] < 0.2
