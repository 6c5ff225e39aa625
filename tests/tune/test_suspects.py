"""Which images are suspects, in which order, why and in what words; and lists of images that training leaves out."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import TRAIN_IDS, Tiny

from pipeline.core.config.competition import Competition
from pipeline.core.errors import PipelineError
from pipeline.core.files import write_text
from pipeline.core.run import open_run
from pipeline.masks import metrics
from pipeline.masks.decision import Presence, Rule, Rules
from pipeline.masks.geometry import IGNORE
from pipeline.masks.metric import Metric
from pipeline.masks.overlaps import confusion
from pipeline.train.stage import preflight, steps
from pipeline.tune import suspects
from pipeline.tune.evidence import Evidence, histogram_counts

SHAPE = (10, 10)
PLAIN = Rules((Rule(),))


def square(rows: slice, columns: slice, value: int = 1) -> np.ndarray:
    plane = np.zeros(SHAPE, np.uint8)
    plane[rows, columns] = value
    return plane


NOTHING = square(slice(0), slice(0))
TRUE = square(slice(0, 4), slice(0, 5))  # 20 pixels


def evidence_of(cases: dict[str, tuple[np.ndarray, np.ndarray]]) -> Evidence:
    """From the probability and truth, (h, w) or (C, h, w), of each image."""
    counted = [histogram_counts(*(np.atleast_3d(part.T).T for part in case)) for case in cases.values()]
    images = pd.DataFrame({"image_id": list(cases), "fold": np.arange(len(cases)) % 3, "group": list(cases)})
    return Evidence(images, *(np.stack(part) for part in zip(*counted, strict=True)))


def one(found: pd.DataFrame, image_id: str) -> pd.Series:
    return found.set_index("image_id").loc[image_id]


def test_the_worst_come_first_and_each_has_its_reason() -> None:
    confident, fair = square(slice(0, 4), slice(0, 5), 255), square(slice(1, 4), slice(0, 5), 255)
    found = suspects.of_masks(
        evidence_of({
            "fair": (fair, TRUE),  # Dice 2·15/35
            "empty": (NOTHING, NOTHING),
            "low": (square(slice(0, 2), slice(0, 3), 60), TRUE),  # 6 of 20 pixels, Dice 12/26
            "part": (square(slice(0, 1), slice(0, 5), 255), TRUE),  # 5 of 20 pixels, Dice 10/25
            "weak blob": (square(slice(0, 4), slice(0, 5), 127), NOTHING),
            "blob": (confident, NOTHING),
            "half a blob": (square(slice(0, 2), slice(0, 6), 255), NOTHING),  # 12 of 20 pixels
            "aside": (square(slice(6, 10), slice(0, 5), 255), TRUE),
        }),
        PLAIN,
        ["thing"],
    )  # fmt: skip
    assert list(found["image_id"]) == ["blob", "aside", "part", "half a blob", "low"]
    assert list(found["score"]) == pytest.approx([1, 1, 0.6, 0.6, 1 - 12 / 26], abs=1e-4)
    assert list(found["reason"]) == [
        "predicted where empty", "predicted elsewhere", "poor overlap", "predicted where empty", "predicted empty",
    ]  # fmt: skip
    assert list(found["true_area"]) == [0, 20, 20, 0, 20]
    assert list(found["predicted_area"]) == [20, 20, 5, 12, 0]
    assert list(found["best_dice"].isna()) == [True, False, False, True, False]
    assert one(found, "low")["best_dice"] == pytest.approx(12 / 26, abs=1e-4)
    assert list(found["fold"]) == [2, 1, 0, 0, 2]
    assert one(found, "blob")["note"] == "20 px at 0.5 or more, true masks have 20 px (median)"
    assert one(found, "part")["note"] == "20 px true, 5 px predicted, Dice 0.40 at the best threshold"
    assert list(found.columns) == [
        "image_id", "reason", "score", "fold", "true_area", "predicted_area", "best_dice", "note",
    ]  # fmt: skip


def test_what_is_predicted_where_empty_weighs_by_its_probability() -> None:
    sure, unsure = square(slice(0, 4), slice(0, 4), 255), square(slice(0, 4), slice(0, 4), 128)
    found = suspects.of_masks(evidence_of({"true": (TRUE, TRUE), "sure": (sure, NOTHING)}), PLAIN, ["thing"])
    assert one(found, "sure")["score"] == pytest.approx(16 / 20)
    cases = {"true": (255 * TRUE, TRUE), "unsure": (unsure, NOTHING)}
    assert not len(suspects.of_masks(evidence_of(cases), PLAIN, ["thing"]))  # 16 · 0.502 / 20
    mixed = np.maximum(square(slice(0, 2), slice(0, 4), 204), square(slice(2, 4), slice(0, 4), 153))
    found = suspects.of_masks(evidence_of({**cases, "mixed": (mixed, NOTHING)}), PLAIN, ["thing"])
    assert one(found, "mixed")["score"] == pytest.approx(8 * (0.8 + 0.6) / 20)


def test_the_best_threshold_is_not_the_chosen_one() -> None:
    low = square(slice(0, 4), slice(0, 5), 40)
    cases = {"low": (low, TRUE), "flat": (np.full(SHAPE, 0, np.uint8), np.ones(SHAPE, np.uint8))}
    found = suspects.of_masks(evidence_of(cases), PLAIN, ["thing"])
    assert list(found["image_id"]) == ["flat"]  # threshold 0 takes any image for all foreground, so it does not count
    assert one(found, "flat")["score"] == 1


def test_areas_follow_the_decision() -> None:
    cases = {"aside": (square(slice(6, 10), slice(0, 5), 200), TRUE)}
    emptied = (Rule(201), Rule(128, 21), Rule(128, 1, top=201), Rule(presence=Presence(cut=0.5)))
    for rule, area in ((Rule(), 20), (Rule(presence=Presence(cut=0.4)), 20), *((rule, 0) for rule in emptied)):
        found = suspects.of_masks(evidence_of(cases), Rules((rule,)), ["thing"])
        assert list(found["predicted_area"]) == [area]
        assert list(found["score"]) == [1]


def test_ignored_pixels_accuse_nobody() -> None:
    ignored = np.where(TRUE == 1, IGNORE, 0).astype(np.uint8)
    found = suspects.of_masks(evidence_of({"ignored": (TRUE * 255, ignored)}), PLAIN, ["thing"])
    assert list(found["image_id"]) == []


def test_several_classes() -> None:
    left, right = square(slice(0, 4), slice(0, 5)), square(slice(0, 4), slice(5, 10))
    found = suspects.of_masks(
        evidence_of({
            "one is missed": (np.stack([left * 255, NOTHING]), np.stack([left, right])),
            "only this one": (np.stack([left * 255, right * 255]), np.stack([left, NOTHING])),
            "both are missed": (np.stack([right * 255, left * 255]), np.stack([left, right])),
            "empty": (np.stack([NOTHING, right * 255]), np.stack([NOTHING, NOTHING])),
        }),
        Rules((Rule(), Rule())),
        ["cat", "dog"],
    )  # fmt: skip
    assert list(found["image_id"]) == ["both are missed", "empty", "one is missed"]
    assert list(found["score"]) == [1, 1, 0.5]
    assert one(found, "empty")["note"].startswith("dog: 20 px at 0.5")
    assert one(found, "one is missed")["note"].startswith("dog: 20 px true, 0 px predicted")


def test_a_class_without_any_mask() -> None:
    found = suspects.of_masks(evidence_of({"blob": (TRUE * 255, NOTHING)}), PLAIN, ["thing"])
    assert list(found["score"]) == [1]
    assert list(suspects.of_masks(evidence_of({"none": (NOTHING, NOTHING)}), PLAIN, ["thing"])["image_id"]) == []


def test_images_that_clean_has_dropped_are_no_suspects() -> None:
    evidence = evidence_of({name: (NOTHING, TRUE) for name in ("kept", "dropped", "relabelled")})
    images = evidence.images.assign(use=["train", "drop", "relabel"])
    assert list(suspects.of_masks(evidence, PLAIN, ["thing"])["image_id"]) == ["kept", "dropped", "relabelled"]
    found = suspects.of_masks(replace(evidence, images=images), PLAIN, ["thing"])
    assert list(found["image_id"]) == ["kept", "relabelled"]


# --- multiclass ------------------------------------------------------------------------------------------------------


def competition_of(ignore: str | None = None, reading: str = "leave_out") -> Competition:
    settings: dict[str, Any] = {"classes": ["rock", "soil", "sand"], "kind": "multiclass", "metric": "mean_iou"}
    settings |= {"ignore_class": ignore, "ignored_prediction": reading}
    given: dict[str, Any] = {"name": "x", "title": "X", "reader": "any", "submission": {"format": "labels"}}
    return Competition(**given, **settings)


def test_class_maps() -> None:
    truth = np.repeat(np.array([0, 1, 2], np.uint8), (20, 100, 80))
    mistaken = truth.copy()
    mistaken[20:61] = 2  # 41 of 100 soil pixels
    swapped = np.array([1, 2, 0], np.uint8)[truth]
    counts = np.stack([confusion(one, truth, 3) for one in (truth, mistaken, swapped)])
    images = pd.DataFrame({"image_id": ["right", "mistaken", "swapped"], "fold": [0, 1, 1]})
    found = suspects.of_labels(images, counts, competition_of())
    assert list(found["image_id"]) == ["swapped"]
    assert found.loc[0, ["score", "mean_iou", "fold", "true_area", "predicted_area"]].tolist() == [1, 0, 1, 180, 120]
    assert found.loc[0, "note"] == "soil taken for sand: 100 % of its pixels"
    counts[1, 0] = [0, 20, 0]  # rock is gone: (0 + 59/120 + 80/121) / 3
    found = suspects.of_labels(images, counts, competition_of())
    assert list(found["image_id"]) == ["swapped", "mistaken"]
    assert found["score"][1] == pytest.approx(1 - (59 / 120 + 80 / 121) / 3, abs=1e-4)
    assert found["note"][1] == "soil taken for sand: 41 % of its pixels"
    assert "mean_iou" in found and "best_dice" not in found


@pytest.mark.parametrize("reading", ["leave_out", "zero"])
def test_an_image_without_pixels_that_count_is_no_suspect(reading: str) -> None:
    counts = np.zeros((3, 3, 3), np.int64)
    counts[1, 0] = [0, 50, 50]  # all true pixels are of the ignored class
    counts[2, 1] = [0, 20, 80]
    images = pd.DataFrame({"image_id": ["nothing", "ignored", "wrong"], "fold": 0})
    found = suspects.of_labels(images, counts, competition_of("rock", reading))
    assert list(found["image_id"]) == ["wrong"]
    assert found["note"][0] == "soil taken for sand: 80 % of its pixels"
    assert not found.isna().any().any()


def test_where_lower_is_better_the_highest_is_the_suspect(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(matrix: np.ndarray, **_: Any) -> np.ndarray:
        return 1 - np.trace(matrix, axis1=-2, axis2=-1) / matrix.sum((-2, -1))

    monkeypatch.setitem(metrics.METRICS, "wrong", Metric("wrong", wrong, "confusion", higher_is_better=False))
    counts = np.array([np.diag([5, 5]), [[1, 4], [4, 1]], [[2, 3], [3, 2]]])
    settings: dict[str, Any] = {"classes": ["rock", "soil"], "kind": "multiclass", "metric": "mean_iou"}
    competition = Competition(name="x", title="X", reader="any", **settings).model_copy(update={"metric": "wrong"})
    images = pd.DataFrame({"image_id": ["right", "bad", "poor"], "fold": 0, "use": "train"})
    found = suspects.of_labels(images, counts, competition)
    assert list(found["image_id"]) == ["bad", "poor"] and list(found["score"]) == [0.8, 0.6]


# --- train.exclude ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,score\na01,1\n", "train.exclude: folds/wrong.csv has no column `image_id`; it has `id`, `score`."),
        ("", "folds/wrong.csv is not a readable CSV: No columns to parse from file."),
        ('image_id\na01\nx1\n""\nx2\nx3', "lists 4 ids that no training image has: 'x1' (row 3), '' (row 4), 'x2' ("),
        ("image_id\n" + "\n".join(TRAIN_IDS[4:]), "folds/wrong.csv (train.exclude): fold 0 has 0 images to train on ("),
        (
            "image_id\n" + "\n".join(TRAIN_IDS[:4]),
            "fold 0 has 8 images to train on, 0 held out; expected at least one image",
        ),
    ],
)
def test_a_list_that_does_not_fit(tiny: Tiny, text: str, said: str) -> None:
    tiny.settings["split"] = {"folds": 2}
    tiny.recipe["train"] = {"exclude": "folds/wrong.csv"}
    tiny.save()
    write_text(tiny.root / "folds" / "wrong.csv", text)
    folds = pd.DataFrame({"image_id": TRAIN_IDS, "fold": [0] * 4 + [1] * 8, "use": "train"})
    folds.to_csv(tiny.root / "folds" / "tiny.csv", index=False)
    assert said in tiny.refused("decode", "clean", "train")


def test_lists_that_are_refused_before_anything_is_done(tiny: Tiny) -> None:
    def refused(name: str) -> str:
        run = open_run(str(tiny.recipe_path), assignments=[f"train.exclude={name}"])
        with pytest.raises(PipelineError, match="train.exclude is"):
            steps(run)
        with pytest.raises(PipelineError) as caught:
            preflight(run)
        return str(caught.value)

    own = open_run(str(tiny.recipe_path)).suspects
    assert "train.exclude is gone.csv, but there is no file gone.csv; expected a CSV" in refused("gone.csv")
    write_text(own, "image_id\n")
    for path in (own, own.relative_to(tiny.root), own.parent / ".." / own.parent.name / own.name):
        assert "which is a result of this run's own training: copy it" in refused(str(path))
    second = open_run(str(tiny.recipe_path), name="second", assignments=[f"train.exclude={own}"])
    assert own in steps(second)[0].inputs
    own.write_text("id\n")
    with pytest.raises(PipelineError, match="has no column `image_id`; it has `id`"):
        preflight(second)
