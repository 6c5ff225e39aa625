"""Few masks show that they were written in the other order or at another size."""

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from pipeline.encode.numbering import Lines, certainty, find_reasons

SHAPE = (48, 64)


def ellipse(seed: int, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    random = np.random.default_rng(seed)
    mask = np.zeros(shape, np.uint8)
    centre = int(random.integers(14, shape[1] - 14)), int(random.integers(12, shape[0] - 12))
    axes = int(random.integers(6, 12)), int(random.integers(5, 9))
    cv2.ellipse(mask, centre, axes, int(random.integers(0, 90)), 0, 360, 1, -1)
    return mask


def lines(masks: list[np.ndarray], order: str = "column") -> Lines:
    found = Lines(order)
    for number, mask in enumerate(masks):
        found.add(mask, f"t{number}")
    return found


def renumbered(mask: np.ndarray, order: str) -> np.ndarray:
    """What comes back of a mask that was written in the other order."""
    if order == "column":
        return mask.ravel().reshape(mask.shape, order="F")
    return mask.ravel(order="F").reshape(mask.shape)


def smaller(mask: np.ndarray) -> np.ndarray:
    """What comes back of a mask that was written, down the columns, at half the size."""
    half = cv2.resize(mask, (SHAPE[1] // 2, SHAPE[0] // 2), interpolation=cv2.INTER_NEAREST)
    text = np.zeros(mask.size, np.uint8)
    text[: half.size] = half.ravel(order="F")
    return text.reshape(mask.shape, order="F")


TRAINING = [ellipse(seed) for seed in range(18)]


@pytest.mark.parametrize("order", ["column", "row"])
def test_six_masks_in_the_other_order(order: str) -> None:
    test = [ellipse(100 + seed) for seed in range(6)]
    training = lines(TRAINING, order)
    assert find_reasons(lines(test, order), training) == []
    assert certainty(lines(test, order), training).startswith("Order and size: in 6 of 6 masks, runs have the distance")
    (reason,) = find_reasons(lines([renumbered(mask, order) for mask in test], order), training)
    assert (reason.level, reason.kind) == ("stop", "transposed masks")
    assert "6 of 6 masks, 0 of 18 training masks; by chance less than once in" in reason.text


def test_one_mask_is_a_doubt_at_most() -> None:
    found = find_reasons(lines([renumbered(ellipse(100), "column")]), lines([ellipse(seed) for seed in range(60)]))
    assert [one.level for one in found] == ["check"]


def test_six_masks_at_half_the_size() -> None:
    (reason,) = find_reasons(lines([smaller(ellipse(100 + seed)) for seed in range(6)]), lines(TRAINING))
    assert (reason.level, reason.kind) == ("stop", "size of masks' images")
    assert "those of images of 24 rows" in reason.text or "those of images of 25 rows" in reason.text


def test_square_images_say_nothing_of_the_order() -> None:
    square = [ellipse(seed, (64, 64)) for seed in range(18)]
    test = lines([mask.T for mask in square[:6]])
    assert find_reasons(test, lines(square)) == []
    assert "in square images, runs do not show their order" in certainty(test, lines(square))


def test_masks_of_many_pieces_say_nothing() -> None:
    random = np.random.default_rng(0)
    noise = [(random.random(SHAPE) < 0.2).astype(np.uint8) for _ in range(12)]
    assert find_reasons(lines(noise[:6]), lines(noise)) == []
    assert certainty(lines(noise[:6]), lines(noise)).startswith("Order and size cannot be determined from the masks")


def at_border(seed: int) -> np.ndarray:
    """A mask of two pieces: one that the upper border cuts, one that the lower one does."""
    mask = ellipse(seed)
    middle = int(np.flatnonzero(mask.any(1)).mean())
    cut = np.zeros_like(mask)
    cut[: len(mask) - middle] = mask[middle:]
    below = np.zeros_like(mask)
    below[:, 20:] = cut[::-1, :-20]
    return np.maximum(cut, below)


def test_honest_masks_raise_no_alarm() -> None:
    training = lines(TRAINING), lines([at_border(seed) for seed in range(18)])
    for draw in range(100):
        seeds = range(1000 + 10 * draw, 1006 + 10 * draw)
        assert find_reasons(lines([ellipse(seed) for seed in seeds]), training[0]) == []
        assert find_reasons(lines([at_border(seed) for seed in seeds]), training[1]) == []


@pytest.mark.parametrize("shift", [1, -1])
def test_masks_shifted_by_a_pixel(shift: int) -> None:
    test = [at_border(100 + seed) for seed in range(6)]
    training = lines([at_border(seed) for seed in range(18)])
    assert certainty(lines(test), training).endswith(
        "base: in 6 of 6 masks at the border, runs end with a line of the image, as they do if the base is right."
    )
    moved = [np.roll(mask.ravel(order="F"), shift).reshape(mask.shape, order="F") for mask in test]
    (reason,) = find_reasons(lines(moved), training)
    assert (reason.level, reason.kind) == ("stop", "shifted masks")
    assert "6 of 6 masks, 0 of 18 training masks" in reason.text


def shifted(mask: np.ndarray) -> np.ndarray:
    return np.roll(mask.ravel(order="F"), 1).reshape(mask.shape, order="F")


@pytest.mark.parametrize(
    ("draw", "change", "kind", "beginning"),
    [
        (ellipse, lambda mask: renumbered(mask, "column"), "transposed masks", "Some masks look transposed: "),
        (ellipse, smaller, "size of masks' images", "Some masks look as if written at another size: "),
        (at_border, shifted, "shifted masks", "Some masks look shifted by one pixel: "),
    ],
)
def test_some_masks_are_a_doubt(
    draw: Callable[[int], np.ndarray], change: Callable[[np.ndarray], np.ndarray], kind: str, beginning: str
) -> None:
    training = lines([draw(seed) for seed in range(60)])
    test = [draw(100 + seed) for seed in range(20)]
    for wrong, level in ((0, []), (2, []), (7, ["check"]), (10, ["check"]), (20, ["stop"])):
        found = find_reasons(lines([change(mask) for mask in test[:wrong]] + test[wrong:]), training)
        assert [one.level for one in found] == level
        if level == ["check"]:
            assert found[0].kind == kind and found[0].text.startswith(beginning)
            assert found[0].command == ""  # the YAML is right for the others
            assert f"(those of t0, t1, t2, …; {wrong} of 20 masks, 0 of 60 training masks; " in found[0].text


def test_three_of_six_masks_in_the_other_order() -> None:
    test = [ellipse(100 + seed) for seed in range(6)]
    mixed = [renumbered(mask, "column") if number % 2 else mask for number, mask in enumerate(test)]
    (reason,) = find_reasons(lines(mixed), lines(TRAINING))
    assert (reason.level, reason.kind) == ("check", "transposed masks")
    assert "(those of t1, t3, t5; 3 of 6 masks, 0 of 18 training masks; by chance less than once in 100)" in reason.text


def test_ragged_predictions_are_not_of_another_size() -> None:
    random, speckled = np.random.default_rng(0), []
    for seed in range(60):
        noise = cv2.GaussianBlur(random.normal(0, 2, SHAPE), (0, 0), 2)
        speckled.append(
            (cv2.GaussianBlur(ellipse(200 + seed).astype(float), (0, 0), 1.5) + noise > 0.5).astype(np.uint8)
        )
    assert find_reasons(lines(speckled), lines([ellipse(seed) for seed in range(60)])) == []


def test_masks_in_the_middle_say_nothing_of_the_base() -> None:
    middle = np.zeros(SHAPE, np.uint8)
    middle[10:20, 10:20] = 1
    assert certainty(lines([middle]), lines(TRAINING)).endswith(
        "base cannot be determined: no mask touches the border where runs end."
    )
