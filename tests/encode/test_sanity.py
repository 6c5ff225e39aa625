"""Guards against submissions that are valid and wrong: planted failures are named, and sound masks raise no alarm."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from layouts import drawn

from pipeline.core.config.competition import RleCsv, SubmissionSettings
from pipeline.core.errors import PipelineError
from pipeline.core.files import input_root
from pipeline.encode import sanity, submission
from pipeline.encode.sanity import find_warnings
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


def capitals(found: list[str]) -> list[str]:
    """The words in capitals that the sentences begin with."""
    return [sentence.split(":")[0] for sentence in found]


def row_order(mask: np.ndarray) -> np.ndarray:
    """What comes back when runs are written row by row and read down the columns."""
    return mask.ravel().reshape(mask.shape, order="F")


def unit_transposed(mask: np.ndarray) -> np.ndarray:
    return cv2.resize(np.ascontiguousarray(mask.T), mask.shape[::-1], interpolation=cv2.INTER_NEAREST)


FAILURES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "transposed": (unit_transposed, "MASKS LOOK TRANSPOSED"),
    "row order": (row_order, "MASKS LOOK TRANSPOSED"),
    "all full": (np.ones_like, "ALL MASKS ARE FULL"),
    "all empty": (np.zeros_like, "ALL MASKS ARE EMPTY"),
    "inverted": (lambda mask: 1 - mask, "MANY MASKS ARE FULL"),
    "eroded": (lambda mask: cv2.erode(mask, np.ones((5, 5), np.uint8)), "MASKS ARE TOO SMALL"),
    "dilated": (lambda mask: cv2.dilate(mask, np.ones((9, 9), np.uint8)), "MASKS ARE TOO LARGE"),
    "half of them emptied": (
        lambda mask: mask * mask[mask.shape[0] // 4, -1 - mask.shape[1] // 4],
        "TOO MANY MASKS ARE EMPTY",
    ),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("failure", FAILURES)
def test_a_planted_failure_is_named(failure: str, shape: tuple[int, int]) -> None:
    spoil, words = FAILURES[failure]
    test = statistics([spoil(mask) for mask in population(150, shape, seed=1)])
    assert words in capitals(find_warnings(test, statistics(population(300, shape))))


def test_one_mask_for_all_images() -> None:
    masks, true = population(150, (64, 64), seed=1), statistics(population(300, (64, 64)))
    mask = max(masks, key=np.sum)
    found = find_warnings(statistics([mask] * 150), true)
    assert "THE SAME MASK FOR MANY IMAGES: 150 of 150 non-empty masks are equal; in training" in found[-1]
    assert "TOO FEW MASKS ARE EMPTY" in capitals(found)
    some = [mask if number % 4 == 0 else one for number, one in enumerate(masks)]
    assert capitals(find_warnings(statistics(some), true)) == ["THE SAME MASK FOR MANY IMAGES"]


def test_numbers_stand_in_the_sentences() -> None:
    full = statistics([np.ones((20, 20), np.uint8)] * 8)
    true = statistics([np.zeros((20, 20), np.uint8)] * 3 + [np.eye(20, dtype=np.uint8)] * 9)
    assert find_warnings(full, true) == ["ALL MASKS ARE FULL: 8 of 8 images are filled; in training 0 %"]
    none = statistics([np.zeros((20, 20), np.uint8)] * 8)
    assert find_warnings(none, true) == ["ALL MASKS ARE EMPTY: 8 of 8 images; in training 25 %"]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_random_halves_raise_no_alarm(shape: tuple[int, int]) -> None:
    everything, random = statistics(population(300, shape)), np.random.default_rng(0)
    assert alarms(everything, random, 200, 150) + alarms(everything, random, 100, 12) == []


def alarms(everything: Statistics, random: np.random.Generator, draws: int, size: int) -> list[str]:
    """The warnings of random parts beside the rest."""
    orders = [random.permutation(everything.images) for _ in range(draws)]
    return [
        one for order in orders for one in find_warnings(everything.only(order[:size]), everything.only(order[size:]))
    ]


def test_the_sample_competition_raises_no_alarm() -> None:
    sample = drawn()
    train = statistics(list(sample.masks.values()), [name.split("_")[0] for name in sample.masks])
    assert find_warnings(statistics(list(sample.test_masks.values())), train) == []


@pytest.mark.skipif(not (input_root() / "tgs-salt" / "train.csv").exists(), reason="TGS Salt is not there")
def test_tgs_salt_raises_no_alarm_and_shows_planted_failures() -> None:
    texts = pd.read_csv(input_root() / "tgs-salt" / "train.csv", dtype=str, keep_default_na=False)["rle_mask"]
    masks = [rle.decode(text, (101, 101)) for text in texts]
    everything, random = statistics(masks), np.random.default_rng(0)
    assert alarms(everything, random, 200, len(masks) // 2) == []
    test, train = statistics([mask.T for mask in masks[::2]]), everything.only(np.arange(1, len(masks), 2))
    assert capitals(find_warnings(test, train)) == ["MASKS LOOK TRANSPOSED"]
    test = statistics([1 - mask for mask in masks[::2]])
    assert capitals(find_warnings(test, train))[0] == "MANY MASKS ARE FULL"


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(("centre", "axes", "words"), [((0.7, 0.3), (0.1, 0.1), "they lie where"),
                                                       ((0.5, 0.5), (0.25, 0.1), "they are elongated as")])  # fmt: skip
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
    assert find_warnings(statistics(test), true) == []
    (found,) = find_warnings(statistics([unit_transposed(mask) for mask in test]), true)
    assert found.startswith(f"MASKS LOOK TRANSPOSED: with rows and columns exchanged {words}")


def test_a_symmetric_training_set_cannot_tell() -> None:
    masks = [mask | mask.T for mask in population(300, (64, 64))]
    test = statistics([mask.T for mask in masks[:150]])
    assert find_warnings(test, statistics(masks[150:])) == []


def test_images_of_few_patients_say_less() -> None:
    """Each patient's images are all empty or none is: many images of few patients are few draws."""
    shape, random = (40, 40), np.random.default_rng(0)
    empty = random.permutation(20) < 8
    mask = population(20, shape)[1]
    masks = [np.zeros_like(mask) if empty[patient] else np.roll(mask, shift, 1)
             for patient in range(20) for shift in range(20)]  # fmt: skip
    groups = [f"p{number // 20}" for number in range(400)]
    test = statistics([np.roll(mask, shift, 1) for shift in range(100)])
    assert "TOO FEW MASKS ARE EMPTY" in capitals(find_warnings(test, statistics(masks)))
    assert "TOO FEW MASKS ARE EMPTY" not in capitals(find_warnings(test, statistics(masks, groups)))


def test_a_few_images_say_nothing() -> None:
    true = statistics(population(300, (64, 64)))
    assert find_warnings(statistics([unit_transposed(mask) for mask in population(4, (64, 64), 1)]), true) == []
    assert find_warnings(statistics([]), true) == []
    assert find_warnings(true, statistics([])) == []


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
    assert (faults, capitals(warned)) == ([], ["MASKS LOOK TRANSPOSED"])
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
    "transposed": (lambda planes: planes.swapaxes(1, 2), ["MASKS LOOK TRANSPOSED"]),
    "ground alone": (lambda planes: np.stack([np.ones_like(planes[0]), *np.zeros_like(planes[1:])]),
                     ["ONE CLASS EVERYWHERE"]),
    "no rock": (lambda planes: np.stack([planes[0], planes[1] + planes[2], np.zeros_like(planes[2])]), ["NO rock"]),
    "soil is rock": (lambda planes: planes[[0, 2, 1]], ["TOO LITTLE soil", "TOO MUCH rock"]),
}  # fmt: skip


@pytest.mark.parametrize("failure", SPOILED)
def test_class_maps(tmp_path: Path, failure: str) -> None:
    spoil, words = SPOILED[failure]
    settings = SubmissionSettings.model_validate({"format": "labels"})
    competition, want = wanted(class_maps(200), 100, rle.INTERNAL, settings)
    planes = np.stack([np.stack(masks) for masks in class_maps(100, seed=1).values()], axis=1)
    write(tmp_path / "mine.csv", {f"t{row}": spoil(own) for row, own in enumerate(planes)}, want)
    faults, warned = sanity.examine(tmp_path / "mine.csv", want, competition)
    assert (faults, capitals(warned)[: len(words)]) == ([], words)
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
