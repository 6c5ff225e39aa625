"""Test images unlike training images: said where they are, by what, and not where only patients differ."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import TEST_IDS, TRAIN_IDS, Tiny

from pipeline.encode import shift
from pipeline.encode.shift import Descriptors

PLAIN = {"mean": 90.0, "standard_deviation": 40.0, "entropy": 7.0, "smoothness": 0.9, "height": 400, "width": 500,
         "channels": 1, "bits": 8}  # fmt: skip


def images(patients: int, each: int, seed: int, known: bool = True, **changes: float) -> Descriptors:
    """Images of patients, each of a brightness, contrast and layout of their own, with figures added to these."""
    random, count = np.random.default_rng(seed), patients * each
    patient = np.repeat(np.arange(patients), each)
    figures = pd.DataFrame([PLAIN] * count).astype(float)
    for name, spread in (("mean", 15.0), ("standard_deviation", 5.0), ("entropy", 0.3)):
        figures[name] += random.normal(0, spread, patients)[patient] + random.normal(0, spread / 10, count)
    for name, more in changes.items():
        figures[name] += more
    own = random.dirichlet(np.ones(10 * 9), patients).reshape(patients, 9, 10)[patient]
    blocks = np.rint(255 * np.clip(own + random.normal(0, 0.01, (count, 9, 10)), 0, 1)).reshape(count, -1)
    small = random.normal(size=(patients, 16, 16))[patient] + random.normal(0, 0.2, (count, 16, 16))
    small /= np.linalg.norm(small, axis=(1, 2), keepdims=True)
    ids = np.array([f"{'train' if known else 'test'}{number}" for number in range(count)])
    groups = patient.astype(str) if known else ids
    coarse = shift._coarse(small)
    return Descriptors(ids, groups, figures, coarse, shift._features(figures, blocks.astype(np.uint8), coarse))


def test_other_patients_are_no_reason() -> None:
    said = [shift.compare(images(10, 12, seed), images(5, 12, 100 + seed, known=False)) for seed in range(12)]
    assert sum(map(bool, said)) <= 1


def test_a_classifier_that_learns_patients_by_heart_would_say_so() -> None:
    """The same images, with every image a group: what whole groups are held out for."""
    training, test = images(6, 30, 0), images(6, 30, 1, known=False)
    assert shift.compare(training, test) == []
    (found,) = shift.compare(replace(training, groups=training.ids), test)
    assert found.level == "check"


@pytest.mark.parametrize(("changes", "words"), [
    ({"mean": 60.0}, "they are brighter (mean grey value 15"),
    ({"mean": -60.0}, "they are darker (mean grey value 3"),
    ({"standard_deviation": -25.0}, "they are of lower contrast (standard deviation of grey values 1"),
    ({"height": -200.0, "width": -250.0}, "they are less tall (height in pixels 200, in training 400), less wide (wid"),
    ({"channels": 2.0}, "they are of more channels (channels 3, in training 1)"),
    ({"bits": 8.0}, "they are of more bits per value (bits 16, in training 8)"),
])  # fmt: skip
def test_images_that_differ_are_told_by_what(changes: dict[str, float], words: str) -> None:
    (found,) = shift.compare(images(10, 12, 0), images(8, 12, 1, known=False, **changes))
    assert (found.level, found.kind) == ("check", "test images unlike training images")
    assert f"may not hold for them: {words}" in found.text
    assert ", for instance test" in found.text and found.text.endswith(".")
    assert len(found.images) == 3 and all(name.startswith("train") for name in found.images)


def test_images_that_differ_in_one_corner_are_told_where() -> None:
    training, test = images(10, 12, 0), images(8, 12, 1, known=False)
    corner = np.arange(16) == 15
    assert shift._place(training.coarse, test.coarse + corner) == (
        "relative to the rest of the image, they are brighter at the bottom, right"
    )
    assert shift._place(training.coarse, test.coarse - np.roll(corner, 7)) == (
        "relative to the rest of the image, they are darker at the upper middle, centre right"
    )


def test_few_images_say_nothing() -> None:
    assert shift.compare(images(10, 12, 0), images(1, 7, 1, known=False, mean=60)) == []
    assert shift.compare(images(1, 12, 0), images(5, 12, 1, known=False, mean=60)) == []


def test_the_area_under_the_curve_and_its_error() -> None:
    scores, alone = (np.array([0.0, 1, 1, 2]), np.array([1.0, 3])), (np.arange(4), np.arange(2))
    area, error = shift._area(scores, alone)
    assert area == (4 + 1 + 0.5 * 2) / 8
    assert shift._area(scores, (np.array([0, 0, 1, 1]), alone[1]))[1] > 0
    random = np.random.default_rng(0)
    draws = [(random.normal(0, 1, 40), random.normal(1, 1, 30)) for _ in range(200)]
    found = np.array([shift._area(one, (np.arange(40), np.arange(30))) for one in draws])
    assert found[:, 1].mean() == pytest.approx(found[:, 0].std(), rel=0.2)
    grouped = [(np.repeat(one[0], 5), np.repeat(one[1], 5)) for one in draws]  # five copies of each say no more
    copies = np.array([shift._area(one, (np.repeat(range(40), 5), np.repeat(range(30), 5))) for one in grouped])
    np.testing.assert_allclose(copies, found, rtol=1e-9)


def test_descriptors_are_read_as_decode_left_them(tiny: Tiny) -> None:
    run = tiny.run("decode")
    found = shift._read(run.test_table, run.test_histograms, run.test_thumbnails, "test", None)
    assert found.ids.tolist() == found.groups.tolist() == TEST_IDS
    assert found.figures["height"].tolist() == [40] * 4 and found.figures["bits"].tolist() == [8] * 4
    assert np.isfinite(found.features).all() and found.features.shape == (4, 37)
    assert shift.find_reasons(run) == []  # of four images nothing is said
    training = shift._read(run.table, run.histograms, run.thumbnails, "train", shift._groups(run))
    assert training.ids.tolist() == TRAIN_IDS


def test_near_duplicates_are_held_out_together(tiny: Tiny) -> None:
    run = tiny.run("decode", "clean", "split")
    folds = pd.read_csv(run.folds_file, dtype=str, keep_default_na=False)
    folds["cluster"] = np.repeat(["a", "b", "c"], 4)
    folds.to_csv(run.folds_file, index=False)
    assert len(set(shift._groups(run))) == 3 and run.folds_file in shift.files(run)
    folds.head(5).to_csv(run.folds_file, index=False)  # of other images: encode needs no split
    assert len(set(shift._groups(run))) == 12
