"""Which images a score is of: raw ones, cleaned ones, and what stands beside it when the folds leak."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import SHAPE, TRAIN_IDS, Tiny, encoded

from pipeline.core.run import open_run
from pipeline.predictions.files import write_probabilities
from pipeline.split.folds import read_folds

WRONG = "a06"
"""Looks like a12, but has no mask: what is predicted there is right, and scores 0."""


@pytest.fixture
def predicted(tiny: Tiny) -> Tiny:
    """A tiny competition with a contradiction and a broken image, predicted as well as 32×32 pixels allow."""
    noise = np.random.default_rng(0).standard_normal((len(tiny.images), 5, 8)).astype(np.float32)
    for number, name in enumerate(tiny.images):
        smooth = cv2.resize(noise[number], SHAPE[::-1], interpolation=cv2.INTER_CUBIC)
        tiny.images[name] = np.clip(110 + 40 * smooth, 0, 255).astype(np.uint8)
    tiny.images[WRONG] = tiny.images["a12"]
    tiny.images["a01"][:] = 7
    tiny.row(WRONG)["mask"] = ""
    for name, image in tiny.images.items():
        tiny.path(name).write_bytes(encoded(image))
    tiny.settings |= {"group": "patient", "clean": {"contradictions": {"policy": "drop_empty"}}}
    tiny.recipe["tune"] = {"method": "fixed"}
    return tiny


def tuned(tiny: Tiny, **recipe: Any) -> tuple[dict[str, Any], Path]:
    """What tune writes about predictions that equal the masks, on the contradiction the mask of its partner."""
    tiny.recipe |= recipe
    tiny.save()
    run = tiny.run("decode", "clean", "split")
    folds = read_folds(run)
    masks = np.load(run.pixels / "train_masks.npy")
    names = folds["image_id"].tolist()
    masks[names.index(WRONG)] = masks[names.index("a12")]
    for fold in run.trained_folds():
        rows = np.flatnonzero(folds["fold"] == fold)
        path, ids = run.predictions("oof", fold), [names[row] for row in rows]
        path.parent.mkdir(parents=True, exist_ok=True)
        batches = iter([(255 * masks[rows], None)])
        write_probabilities(path, masks[rows].shape, np.dtype(np.uint8), batches, ids, ["thing"], lambda count: None)
    tiny.run("tune")
    return json.loads(run.postprocess.read_text()), run.folder


def test_the_score_is_of_all_but_the_broken_images(predicted: Tiny) -> None:
    result, folder = tuned(predicted)
    scores = pd.read_csv(folder / "oof_scores.csv").set_index("image_id")
    assert sorted(scores.index) == [name for name in TRAIN_IDS if name != "a01"]  # which is constant
    assert scores["use"].value_counts().to_dict() == {"train": 10, "drop": 1}
    assert scores["score"][WRONG] == 0
    assert result["images"] == 11
    assert result["score"] == result["rows"]["raw"]["score"] == pytest.approx(scores["score"].mean())
    others = scores["score"].drop(WRONG).mean()
    assert result["rows"]["cleaned"] == {"images": 10, "score": pytest.approx(others)}
    assert others > result["score"] + 0.05


def test_cleaned_rows_may_be_the_headline(predicted: Tiny) -> None:
    result, _ = tuned(predicted, tune={"method": "fixed", "rows": "cleaned"})
    assert result["images"] == result["rows"]["cleaned"]["images"] == 10
    assert result["score"] == result["rows"]["cleaned"]["score"] > result["rows"]["raw"]["score"]
    assert result["rows"]["raw"]["images"] == 11
    assert result["share_empty_true"] == pytest.approx(2 / 10)  # a05 and a09, of those that count


def test_the_contradiction_is_the_first_suspect_unless_it_was_dropped(predicted: Tiny) -> None:
    _, folder = tuned(predicted)
    assert WRONG not in set(pd.read_csv(folder / "suspects.csv")["image_id"])
    predicted.settings["clean"] = {"contradictions": {"policy": "keep"}}
    _, folder = tuned(predicted)
    first = pd.read_csv(folder / "suspects.csv").iloc[0]
    assert (first["image_id"], first["reason"], first["score"]) == (WRONG, "predicted where empty", 1)


def test_sound_folds_have_no_remark_and_leaking_ones_have(predicted: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    assert tuned(predicted)[0]["remark"] == ""
    predicted.settings["split"] = {"folds": 3, "method": "random"}
    result, folder = tuned(predicted)
    folds = read_folds(open_run(str(predicted.recipe_path))).set_index("image_id")["fold"]
    assert folds.groupby(lambda name: (int(name[1:]) - 1) // 2).nunique().max() == 2  # a patient's two images
    assert result["remark"].startswith("folds leak: ")
    assert "folds leak: " in capsys.readouterr().err.split("\ntune")[-1]
    assert predicted.run().folder == folder


def test_near_duplicates_are_drawn_together(predicted: Tiny) -> None:
    predicted.settings["group"] = None
    _, folder = tuned(predicted)
    groups = pd.read_csv(folder / "oof_scores.csv", dtype=str).set_index("image_id")["group"]
    assert groups["a12"] == groups[WRONG] == "cluster 0"
    assert groups["a03"] == "a03"
