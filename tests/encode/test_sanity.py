"""Guards against submissions that are valid and wrong: planted failures are named, and sound masks raise no alarm."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from layouts import drawn

from pipeline.core.config.raw_layouts import RleCsv
from pipeline.core.config.submission_settings import SubmissionSettings
from pipeline.core.errors import PipelineError
from pipeline.core.files import input_root
from pipeline.core.verdict import Reason, verdict_of
from pipeline.encode import sanity, submission
from pipeline.encode.sanity import find_reasons
from pipeline.encode.submission import Expected
from pipeline.masks import rle
from pipeline.masks.statistics import Statistics, blank, load, of_table, save

SHAPES = {"square": (64, 64), "wide": (60, 96)}
CLASSES = ["ground", "soil", "rock"]


def population(count: int, shape: tuple[int, int], seed: int = 0) -> list[np.ndarray]:
    """Masks (h, w): three in ten empty, the others ellipses, longer across than down, mostly in the upper right."""
    random, masks = np.random.default_rng(seed), []
    for _ in range(count):
        mask = np.zeros(shape, np.uint8)
        if random.random() > 0.3:
            centre = shape[1] * random.normal(0.7, 0.08), shape[0] * random.normal(0.3, 0.08)
            axes = shape[1] * random.uniform(0.1, 0.25), shape[0] * random.uniform(0.05, 0.12)
            cv2.ellipse(mask, tuple(map(int, centre)), tuple(map(int, axes)), 0, 0, 360, 1, -1)
        masks.append(mask)
    return masks


def statistics(masks: list[np.ndarray], groups: list[str] | None = None) -> Statistics:
    """Of one class."""
    found = blank(["thing"], False, groups or [str(number) for number in range(len(masks))])
    for row, mask in enumerate(masks):
        found.add(row, 0, mask)
    return found


def kinds(found: list[Reason]) -> list[str]:
    """What was found."""
    return [reason.kind for reason in found]


def texts(found: list[Reason]) -> list[str]:
    return [reason.text for reason in found]


def row_order(mask: np.ndarray) -> np.ndarray:
    """What comes back when runs are written row by row and read down the columns."""
    return mask.ravel().reshape(mask.shape, order="F")


def unit_transposed(mask: np.ndarray) -> np.ndarray:
    return cv2.resize(np.ascontiguousarray(mask.T), mask.shape[::-1], interpolation=cv2.INTER_NEAREST)


FAILURES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str, str]] = {
    "transposed": (unit_transposed, "transposed masks", "Masks look transposed: with "),
    "row order": (row_order, "transposed masks", "Masks look transposed: with "),
    "all full": (np.ones_like, "full masks", "All masks are full: 150 of 150 test images are filled, "),
    "all empty": (np.zeros_like, "all masks empty", "All masks are empty: 150 of 150 test images, "),
    "inverted": (lambda mask: 1 - mask, "full masks", "Many masks are full: "),
    "eroded": (lambda mask: cv2.erode(mask, np.ones((5, 5), np.uint8)), "size of masks",
               "The test masks are too small, by "),
    "dilated": (lambda mask: cv2.dilate(mask, np.ones((9, 9), np.uint8)), "size of masks",
                "The test masks are too large, by "),
    "half of them emptied": (
        lambda mask: mask * mask[mask.shape[0] // 4, -1 - mask.shape[1] // 4],
        "share of empty masks", "Too many masks are empty: ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("failure", FAILURES)
def test_a_planted_failure_is_named(failure: str, shape: tuple[int, int]) -> None:
    spoil, kind, words = FAILURES[failure]
    test = statistics([spoil(mask) for mask in population(150, shape, seed=1)])
    found = find_reasons(test, statistics(population(300, shape)))
    (reason,) = [one for one in found if one.kind == kind]
    assert reason.text.startswith(words) and reason.text.endswith(".") and reason.command
    assert reason.level == ("check" if "empty masks" in kind or "size" in kind else "stop")


def test_one_mask_for_all_images() -> None:
    masks, true = population(150, (64, 64), seed=1), statistics(population(300, (64, 64)))
    mask = max(masks, key=np.sum)
    found = find_reasons(statistics([mask] * 150), true)
    assert found[-1].text.startswith(
        "Many images have the same mask: 150 of 150 non-empty masks are equal, compared with"
    )
    assert kinds(found) == ["share of empty masks", "size of masks", "the same mask for many images"]
    assert verdict_of(found) == "do not submit"
    some = [mask if number % 4 == 0 else one for number, one in enumerate(masks)]
    assert kinds(find_reasons(statistics(some), true)) == ["the same mask for many images"]


def test_numbers_stand_in_the_sentences() -> None:
    full = statistics([np.ones((20, 20), np.uint8)] * 8)
    true = statistics([np.zeros((20, 20), np.uint8)] * 3 + [np.eye(20, dtype=np.uint8)] * 9)
    said = "All masks are full: 8 of 8 test images are filled, compared with 0 % of the training images."
    assert texts(find_reasons(full, true)) == [said]
    none = statistics([np.zeros((20, 20), np.uint8)] * 8)
    (found,) = find_reasons(none, true)
    assert found.text == "All masks are empty: 8 of 8 test images, compared with 25 % of the training images."
    assert found.level == "stop"
    rare = statistics([np.zeros((20, 20), np.uint8)] * 11 + [np.eye(20, dtype=np.uint8)])
    assert [one.level for one in find_reasons(none, rare)] == ["check"]  # eight empty masks may be chance


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_random_halves_raise_no_alarm(shape: tuple[int, int]) -> None:
    everything, random = statistics(population(300, shape)), np.random.default_rng(0)
    assert alarms(everything, random, 200, 150) + alarms(everything, random, 100, 12) == []


def alarms(everything: Statistics, random: np.random.Generator, draws: int, size: int) -> list[Reason]:
    """What is said of random parts beside the rest."""
    orders = [random.permutation(everything.images) for _ in range(draws)]
    return [
        one for order in orders for one in find_reasons(everything.only(order[:size]), everything.only(order[size:]))
    ]


def test_the_sample_competition_raises_no_alarm() -> None:
    sample = drawn()
    train = statistics(list(sample.masks.values()), [name.split("_")[0] for name in sample.masks])
    assert find_reasons(statistics(list(sample.test_masks.values())), train) == []


@pytest.mark.skipif(not (input_root() / "tgs-salt" / "train.csv").exists(), reason="TGS Salt is not there")
def test_tgs_salt_raises_no_alarm_and_shows_planted_failures() -> None:
    texts = pd.read_csv(input_root() / "tgs-salt" / "train.csv", dtype=str, keep_default_na=False)["rle_mask"]
    masks = [rle.decode(text, (101, 101)) for text in texts]
    everything, random = statistics(masks), np.random.default_rng(0)
    assert alarms(everything, random, 200, len(masks) // 2) == []
    test, train = statistics([mask.T for mask in masks[::2]]), everything.only(np.arange(1, len(masks), 2))
    assert kinds(find_reasons(test, train)) == ["transposed masks"]
    test = statistics([1 - mask for mask in masks[::2]])
    assert kinds(find_reasons(test, train))[0] == "full masks"


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(("centre", "axes", "words"), [((0.7, 0.3), (0.1, 0.1), "they are where"),
                                                       ((0.5, 0.5), (0.25, 0.1), "they are elongated")])  # fmt: skip
def test_place_and_shape_each_tell_alone(
    shape: tuple[int, int], centre: tuple[float, float], axes: tuple[float, float], words: str
) -> None:
    random = np.random.default_rng(0)
    masks = []
    for _ in range(300):
        place = [int(side * random.normal(at, 0.08)) for side, at in zip(shape[::-1], centre, strict=True)]
        sizes = [int(side * random.uniform(0.7, 1.3) * axis) for side, axis in zip(shape[::-1], axes, strict=True)]
        masks.append(cv2.ellipse(np.zeros(shape, np.uint8), place, sizes, 0, 0, 360, 1, -1))
    true, test = statistics(masks[:200]), masks[200:]
    assert find_reasons(statistics(test), true) == []
    (found,) = find_reasons(statistics([unit_transposed(mask) for mask in test]), true)
    assert found.text.startswith(f"Masks look transposed: with rows and columns exchanged, {words}")


def test_a_symmetric_training_set_cannot_tell() -> None:
    masks = [mask | mask.T for mask in population(300, (64, 64))]
    test = statistics([mask.T for mask in masks[:150]])
    assert find_reasons(test, statistics(masks[150:])) == []


def test_images_of_few_patients_say_less() -> None:
    """Each patient's images are all empty or none is: many images of few patients are few draws."""
    shape, random = (40, 40), np.random.default_rng(0)
    empty = random.permutation(20) < 8
    mask = population(20, shape)[1]
    masks = [np.zeros_like(mask) if empty[patient] else np.roll(mask, shift, 1)
             for patient in range(20) for shift in range(20)]  # fmt: skip
    groups = [f"p{number // 20}" for number in range(400)]
    test = statistics([np.roll(mask, shift, 1) for shift in range(100)])
    assert "share of empty masks" in kinds(find_reasons(test, statistics(masks)))
    assert "share of empty masks" not in kinds(find_reasons(test, statistics(masks, groups)))


def test_a_few_images_say_nothing() -> None:
    true = statistics(population(300, (64, 64)))
    assert find_reasons(statistics([unit_transposed(mask) for mask in population(4, (64, 64), 1)]), true) == []
    assert find_reasons(statistics([]), true) == []
    assert find_reasons(true, statistics([])) == []


# --- what a file holds -----------------------------------------------------------------------------------------------


def wanted(
    train: dict[str, list[np.ndarray]], tests: int, convention: rle.Convention, settings: SubmissionSettings
) -> tuple[RleCsv, Expected]:
    """A competition of these training masks, a list a class, and what a submission of so many test images must hold."""
    names, shape = list(train), next(iter(train.values()))[0].shape
    multiclass = settings.format == "labels"
    competition = RleCsv.model_validate({
        "name": "drawn", "title": "Drawn", "train": {"images": "{id}.png", "masks": "masks/{id}.png"},
        "test": {"images": "test/{id}.png"}, "classes": dict(zip(names, range(len(names)), strict=True)),
        "kind": "multiclass" if multiclass else "binary", "metric": "mean_iou" if multiclass else "dice",
        "submission": settings.model_dump(),
    })  # fmt: skip
    rows = [{"image_id": f"a{number}", "subset": "train"} for number in range(len(train[names[0]]))]
    rows += [{"image_id": f"t{number}", "subset": "test"} for number in range(tests)]
    images = pd.DataFrame(rows).assign(height=shape[0], width=shape[1], group="")
    for name, masks in train.items():
        images[f"rle_{name}"] = [rle.encode(mask) for mask in masks] + [""] * tests
    ids = images["image_id"][images["subset"] == "test"].tolist()
    header = ["id", *map(str, range(shape[0] * shape[1]))] if multiclass else ["id", "rle"]
    shapes, labels = dict.fromkeys(images["image_id"], shape), list(map(str, range(len(names))))
    keys: list[submission.Key] = [(one, None) for one in ids]
    want = Expected(images, None, settings, header, keys, shapes, convention, labels, list(range(len(names))))
    return competition, want


def write(path: Path, masks: dict[str, np.ndarray], want: Expected) -> None:
    """Writes masks (C, h, w) by id."""
    texts = {key: text for name, own in masks.items() for key, text in submission.texts_of(name, own, want).items()}
    submission.write(path, texts, want)


@pytest.mark.parametrize("order", ["column", "row"])
@pytest.mark.parametrize("rows", ["image", "instance"])
def test_a_file_is_judged_by_its_texts(tmp_path: Path, order: str, rows: str) -> None:
    settings = SubmissionSettings.model_validate({"rows": rows})
    mine = rle.Convention(order, 0, "-1")  # type: ignore[arg-type]
    competition, want = wanted({"thing": population(200, (60, 96))}, 100, mine, settings)
    found = population(100, (60, 96), seed=1)
    write(tmp_path / "good.csv", {f"t{row}": mask[None] for row, mask in enumerate(found)}, want)
    assert sanity.examine(tmp_path / "good.csv", want, competition) == ([], [])
    other = {"column": row_order, "row": lambda mask: mask.ravel(order="F").reshape(mask.shape)}[order]
    swapped = {f"t{row}": other(mask)[None] for row, mask in enumerate(found)}
    write(tmp_path / "swapped.csv", swapped, want)  # the right pixels in the wrong order
    faults, warned = sanity.examine(tmp_path / "swapped.csv", want, competition)
    assert (faults, kinds(warned)) == ([], ["transposed masks"])
    broken = (tmp_path / "swapped.csv").read_text() + "x,5 1\n"
    (tmp_path / "broken.csv").write_text(broken)
    faults, warned = sanity.examine(tmp_path / "broken.csv", want, competition)
    assert (faults, warned) == ([f"row {len(broken.splitlines())}: id 'x' is not in the test set"], [])


def class_maps(count: int, seed: int = 0) -> dict[str, list[np.ndarray]]:
    """Masks of ground, of soil (what population draws) and of rock, little, at the lower edge."""
    soil, random = population(count, (64, 64), seed), np.random.default_rng(seed)
    rock = [np.zeros_like(mask) for mask in soil]
    for mask in rock:
        mask[-4:, : random.integers(2, 12)] = 1
    return {"ground": [1 - one - other for one, other in zip(soil, rock, strict=True)], "soil": soil, "rock": rock}


SPOILED: dict[str, tuple[Callable[[np.ndarray], np.ndarray], list[str]]] = {
    "as drawn": (lambda planes: planes, []),
    "transposed": (lambda planes: planes.swapaxes(1, 2), ["Masks look transposed"]),
    "ground alone": (lambda planes: np.stack([np.ones_like(planes[0]), *np.zeros_like(planes[1:])]),
                     ["One class is everywhere"]),
    "no rock": (lambda planes: np.stack([planes[0], planes[1] + planes[2], np.zeros_like(planes[2])]),
                ["There is no rock"]),
    "soil is rock": (lambda planes: planes[[0, 2, 1]], ["Too little soil", "Too much rock"]),
}  # fmt: skip


@pytest.mark.parametrize("failure", SPOILED)
def test_class_maps(tmp_path: Path, failure: str) -> None:
    spoil, words = SPOILED[failure]
    settings = SubmissionSettings.model_validate({"format": "labels"})
    competition, want = wanted(class_maps(200), 100, rle.INTERNAL, settings)
    planes = np.stack([np.stack(masks) for masks in class_maps(100, seed=1).values()], axis=1)
    write(tmp_path / "mine.csv", {f"t{row}": spoil(own) for row, own in enumerate(planes)}, want)
    faults, warned = sanity.examine(tmp_path / "mine.csv", want, competition)
    assert (faults, [text.split(":")[0] for text in texts(warned)][: len(words)]) == ([], words)
    assert bool(warned) == bool(words)


def test_a_class_that_is_never_predicted_on_purpose(tmp_path: Path) -> None:
    settings = SubmissionSettings.model_validate({"format": "labels"})
    competition, want = wanted(class_maps(200), 100, rle.INTERNAL, settings)
    planes = np.stack([np.stack(masks) for masks in class_maps(100, seed=1).values()], axis=1)
    without = SPOILED["no rock"][0]
    write(tmp_path / "mine.csv", {f"t{row}": without(own) for row, own in enumerate(planes)}, want)
    assert sanity.examine(tmp_path / "mine.csv", want, competition, never=["rock"]) == ([], [])


def test_statistics_of_training_rows() -> None:
    masks = population(30, (60, 96))
    _, want = wanted({"thing": masks}, 3, rle.INTERNAL, SubmissionSettings())
    found = of_table(want.images, ["thing"], False)
    assert found.images == 30
    np.testing.assert_allclose(found.area[:, 0], [mask.mean() for mask in masks])
    areas = [cv2.resize(mask.astype(np.float32), (16, 16), interpolation=cv2.INTER_AREA) for mask in masks]
    np.testing.assert_allclose(found.position[0], np.mean(areas, axis=0), atol=0.05)


def test_guards_say_the_same_from_what_tune_stored(tmp_path: Path) -> None:
    settings = SubmissionSettings.model_validate({"format": "labels"})
    competition, want = wanted(class_maps(200), 100, rle.INTERNAL, settings)
    stored = tmp_path / "mask_statistics.npz"
    save(stored, of_table(want.images, competition.classes, True))
    planes = np.stack([np.stack(masks) for masks in class_maps(100, seed=1).values()], axis=1)
    for spoil, words in SPOILED.values():
        write(tmp_path / "mine.csv", {f"t{row}": spoil(own) for row, own in enumerate(planes)}, want)
        alone = replace(want, images=want.images[want.images["subset"] == "test"])
        found = sanity.examine(tmp_path / "mine.csv", alone, competition, (), stored)
        assert found == sanity.examine(tmp_path / "mine.csv", want, competition)
        assert bool(found[1]) == bool(words)
    chosen = load(stored, ["soil"], False)
    assert (chosen.names, chosen.area.shape, chosen.maps.shape) == (["soil"], (200, 1), (200, 1, 2, 16, 16))
    stored.write_bytes(stored.read_bytes()[:100])
    with pytest.raises(PipelineError, match="cannot be read .*run the tune stage"):
        load(stored, ["soil"], False)


# --- few images ------------------------------------------------------------------------------------------------------


def found_in_draws(change: Callable[[Statistics, np.random.Generator], Statistics], draws: int) -> list[list[Reason]]:
    """What is said of 24 images after a change, beside 24 others, both drawn from the same population."""
    everything, random = statistics(population(2000, (64, 64))), np.random.default_rng(0)
    found = []
    for _ in range(draws):
        order = random.permutation(everything.images)
        found.append(find_reasons(change(everything.only(order[:24]), random), everything.only(order[24:48])))
    return found


def rescaled(area: np.ndarray, one: Statistics) -> Statistics:
    return Statistics(one.names, one.exclusive, one.groups, area, one.maps, one.marks)


def test_few_honest_images_raise_hardly_an_alarm() -> None:
    found = found_in_draws(lambda test, random: test, 600)
    assert sum(map(bool, found)) <= 3


def test_few_images_show_masks_that_are_three_or_seventeen_times_too_large() -> None:
    for factor, level in ((3, "check"), (17, "stop")):
        found = found_in_draws(lambda test, random, by=factor: rescaled(by * test.area, test), 100)  # type: ignore[misc]
        sizes = [one.level for reasons in found for one in reasons if one.kind == "size of masks"]
        assert sizes.count(level) >= 95


def test_few_images_show_masks_where_there_are_none() -> None:
    """Three in ten training masks are empty; nine in ten of these."""

    def emptied(test: Statistics, random: np.random.Generator) -> Statistics:
        return rescaled(test.area * (random.random((24, 1)) < 0.1 / 0.7), test)

    found = found_in_draws(emptied, 100)
    assert sum(verdict_of(reasons) == "do not submit" for reasons in found) >= 75


def test_a_class_that_few_images_have_is_not_missed_in_few() -> None:
    """No test image has a mask of the class, and so no spread: in 24 draws of one in 25 that is no wonder."""
    area = np.zeros((500, 2))
    area[:, 0], area[::25, 1] = 0.99, 0.01
    training = class_maps_of(area)
    assert find_reasons(class_maps_of(area[1:25]), training) == []
    assert kinds(find_reasons(class_maps_of(np.tile(area[1:25], (200, 1))), training)) == ["share of a class"]


def class_maps_of(area: np.ndarray) -> Statistics:
    """Class maps of these shares, with nothing else to tell them by."""
    found = blank(["ground", "rock"], True, [str(number) for number in range(len(area))])
    area = area + np.outer(np.random.default_rng(0).uniform(0, 1e-4, len(area)), [1, 0])
    marks = np.arange(area.size).reshape(area.shape)
    return Statistics(found.names, True, found.groups, area, found.maps, marks)
