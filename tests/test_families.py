"""Class maps, pets and large images from raw files to a submission, in this process, on a few tiny images."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from layouts import LAYOUTS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline import stages
from pipeline.core import driver, freshness
from pipeline.core.config.raw_layouts import load_competition
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json
from pipeline.core.run import Member, Run, open_run
from pipeline.decode import table
from pipeline.encode import scoring, submission
from pipeline.masks import overlaps, rle
from pipeline.masks.decision import decide, decision_of
from pipeline.predictions import blends
from pipeline.predictions.files import read_probabilities
from pipeline.train import losses
from pipeline.train.module import SegmentationModule

SMALL = {
    "image": {"size": [32, 64], "channels": 1},
    "model": {"encoder": "resnet18"},
    "train": {"folds": [0, 1], "epochs": 2, "batch_size": 8, "learning_rate": 0.003},
}
MARS = {
    "title": "Tiny Mars",
    "reader": "npz_labels",
    "file": "mars.npz",
    "classes": {"ground": 0, "soil": 1, "sand": 2, "rock": 3},
    "ignore_class": "ground",
    "ignored_prediction": "zero",
    "metric": "mean_iou",
    "forbids_pretrained": "the rules forbid it",
    "split": {"folds": 3},
}
PETS = {"title": "Tiny pets", "reader": "oxford_pet", "border": "ignore", "metric": "dice", "split": {"folds": 3}}


@pytest.fixture(scope="module", autouse=True)
def root(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One root for all competitions of this file."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("families")
        patch.setenv("PIPELINE_ROOT", str(folder))
        patch.setenv("PIPELINE_INPUT", str(folder / "input"))
        yield folder


def described(root: Path, name: str, competition: dict[str, Any], recipe: dict[str, Any]) -> str:
    """Writes both YAML files and returns the recipe's path."""
    (root / f"{name}.yaml").write_text(yaml.safe_dump(competition, sort_keys=False))
    path = root / f"{name}-recipe.yaml"
    path.write_text(yaml.safe_dump({"competition": f"{name}.yaml", **recipe}, sort_keys=False))
    return str(path)


def finished(recipe: str, *assignments: str) -> Run:
    """Runs every stage."""
    run = open_run(recipe, assignments=list(assignments))
    for stage in stages.STAGES:
        driver.run_stage(run, stage)
    return run


def rewritten(run: Run) -> dict[str, np.ndarray]:
    """The masks (C, h, w) of every out-of-fold image, by the function that makes the submission."""
    images = table.read_table(run.table, "train").set_index("image_id", drop=False)
    decision, found = decision_of(read_json(run.postprocess)), {}
    for fold in run.trained_folds():
        blend = blends.out_of_fold(run, fold, blends.plain_of(run))
        for row, name in enumerate(blend.ids):
            shape = (int(images.loc[name, "height"]), int(images.loc[name, "width"]))
            found[name] = decide(blend.native(row, shape), decision)
    return found


# --- class maps ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mars(root: Path) -> Run:
    """24 + 6 images of 30×50, whose brightness tells the class; rock is in every fourth image only."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.repeat(random.integers(0, 3, (30, 6, 5)), 5, 1), 10, 2)
    labels[::4, :10, :10] = 3
    images = labels * 60 + random.integers(0, 30, labels.shape)
    folder = root / "input" / "mars"
    folder.mkdir(parents=True)
    pairs = np.stack([images, labels], 1).astype(np.float64)
    np.savez(folder / "mars.npz", training_set=pairs[:24], test_set=pairs[24:, 0])
    recipe = {**SMALL, "predict": {"never": ["ground"]}}
    return finished(described(root, "mars", MARS, recipe))


def test_class_maps_with_everything_that_training_has_for_them(mars: Run) -> None:
    settings = [
        "loss={cross_entropy: {class_weights: [0, 1, 1, 2], smoothing: 0.1}, lovasz: 1, focal: 1}",
        "train={sampler: {rare_classes: 0.5}, mix: {cutmix: 0.3, paste: 0.6, paste_classes: [rock]}, final: true}",
        f"train.pseudo={{recipe: {mars.name}, min_confidence: 0.3}}",
        "model.presence=true",
    ]
    recipe = mars.competition_folder.parents[1] / "mars-recipe.yaml"
    run = open_run(str(recipe), name="everything", assignments=settings)
    for stage in stages.STAGES:
        driver.run_stage(run, stage)
    assert (
        submission.faults_of(run.submission, submission.expected(run.competition, run.input, run.competition_folder))
        == []
    )
    for fold in (0, 1):
        ids = pd.read_csv(run.predictions("oof", fold).with_suffix(".csv"), dtype=str)
        assert list(ids.columns) == ["image_id", *(f"presence_{name}" for name in run.competition.classes)]
        assert set(ids["image_id"]) == set(
            pd.read_csv(mars.predictions("oof", fold).with_suffix(".csv"), dtype=str)["image_id"]
        )
    assert (
        read_json(run.fold_folder(0) / "fold.json")["images"]
        == read_json(mars.fold_folder(0) / "fold.json")["images"] + 6
    )
    assert "no out-of-fold score" in read_json(run.record)["expect"]["remark"]


def test_class_maps_end_in_a_valid_submission(mars: Run) -> None:
    want = submission.expected(mars.competition, mars.input, mars.competition_folder)
    assert submission.faults_of(mars.submission, want) == []
    rows = pd.read_csv(mars.submission)
    assert rows.columns.tolist() == ["id", *map(str, range(1500))]
    assert rows["id"].tolist() == list(range(6))
    assert set(np.unique(rows.to_numpy()[:, 1:])) <= {1, 2, 3}
    array, _ = read_probabilities(mars.predictions("test", 0))
    assert array.dtype == np.float16
    assert array.shape == (6, 4, 32, 64)
    assert not array[:, 0].any()
    np.testing.assert_allclose(array.astype(np.float32).sum(1), 1, atol=2e-3)
    assert len(re.findall("<figcaption>(?:best|median|worst): ", mars.report.read_text())) == 12


def test_writing_the_held_out_images_reproduces_the_score(mars: Run) -> None:
    images = table.read_table(mars.table, "train").set_index("image_id", drop=False)
    total, rock = np.zeros((4, 4), np.int64), []
    for name, masks in rewritten(mars).items():
        true = table.true_labels(table.true_mask(images.loc[name], mars.competition.classes))
        total += overlaps.confusion(masks.argmax(0).astype(np.uint8), true, 4)
        rock.append((true == 3).mean())
    result = read_json(mars.postprocess)
    assert result["score"] == float(overlaps.mean_iou(total, 0, "zero"))
    assert result["readings"]["leave_out"]["all"] == result["readings"]["zero"]["all"] == result["score"]
    assert result["bias"]["ground"] == 0
    assert result["score"] >= result["untuned"]
    low, high = result["interval_95"]
    assert low <= result["score"] <= high
    assert result["class_share_true"]["rock"] == pytest.approx(np.mean(rock))


def test_rare_classes_are_spread_over_the_folds(mars: Run) -> None:
    folds = pd.read_csv(mars.folds_file).set_index("image_id")
    images = table.read_table(mars.table, "train").set_index("image_id")
    rare = folds.loc[images.index[images["area_rock"] > 0], "fold"]
    assert rare.value_counts().tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("0," + ",".join(["4"] * 1500), "row 8: id 0 is already in row 2"),
        ("9," + ",".join(["1"] * 1500), "row 8: id '9' is not in the test set"),
    ],
)
def test_check_of_a_row_too_many(mars: Run, tmp_path: Path, row: str, fault: str) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(mars.submission.read_text() + row + "\n")
    assert submission.faults_of(path, submission.expected(mars.competition, mars.input, mars.competition_folder)) == [
        fault
    ]


def test_class_maps_that_are_not_there_or_no_text(mars: Run, tmp_path: Path) -> None:
    want, text = submission.expected(mars.competition, mars.input, mars.competition_folder), mars.submission.read_text()
    (tmp_path / "marked.csv").write_text(text, encoding="utf-8-sig")
    assert submission.faults_of(tmp_path / "marked.csv", want) == []
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\xff\xfe")
    for name, words in (("picture.csv", "is not a readable CSV"), ("gone.csv", "does not exist")):
        with pytest.raises(PipelineError, match=words):
            submission.faults_of(tmp_path / name, want)
        with pytest.raises(PipelineError, match=words):
            scoring.score(mars.submission, tmp_path / name, mars.competition, want)


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        (["1"] * 1499, "row 2: id 0: has 1499 pixels; expected 1500"),
        (["7"] + ["1"] * 1499, "row 2: id 0: 7 is not a class (0, 1, 2, 3)"),
        (["-1"] + ["1"] * 1499, "row 2: id 0: -1 is not a class (0, 1, 2, 3)"),
        (["1.5"] + ["1"] * 1499, "row 2: id 0: '1.5' is not a whole number"),
        (["--1"] + ["1"] * 1499, "row 2: id 0: '--1' is not a whole number"),
        (["9" * 23] + ["1"] * 1499, f"row 2: id 0: '{'9' * 23}' is not a class"),
    ],
)
def test_check_of_pixels(mars: Run, tmp_path: Path, values: list[str], fault: str) -> None:
    lines = mars.submission.read_text().splitlines()
    lines[1] = ",".join(["0", *values])
    path = tmp_path / "mine.csv"
    path.write_text("\n".join(lines) + "\n")
    want = submission.expected(mars.competition, mars.input, mars.competition_folder)
    assert submission.faults_of(path, want) == [fault]
    with pytest.raises(PipelineError, match="submission row 2: id 0: "):
        scoring.score(path, mars.submission, mars.competition, want)
    path.write_text("\n".join([lines[0], *lines[2:]]) + "\n")
    assert submission.faults_of(path, want) == ["1 of 6 test ids are missing: 0"]


def test_score_of_class_maps_in_both_readings(mars: Run, tmp_path: Path) -> None:
    want = submission.expected(mars.competition, mars.input, mars.competition_folder)
    assert scoring.score(mars.submission, mars.submission, mars.competition, want) == (1.0, 6)
    header = mars.submission.read_text().splitlines()[0]
    truth, mine = tmp_path / "truth.csv", tmp_path / "mine.csv"
    truth.write_text(f"{header}\n0," + ",".join(["0"] * 500 + ["1"] * 500 + ["2"] * 500) + "\n")
    mine.write_text(f"{header}\n0," + ",".join(["1"] * 500 + ["1"] * 500 + ["2"] * 250 + ["0"] * 250) + "\n")
    # soil 500/500; sand 250/500; ground is predicted on 250 pixels that count
    assert scoring.score(mine, truth, mars.competition, want)[0] == pytest.approx((1 + 0.5 + 0) / 3)
    other = mars.competition.model_copy(update={"ignored_prediction": "leave_out"})
    assert scoring.score(mine, truth, other, want)[0] == pytest.approx((1 + 0.5) / 2)


def test_an_ignored_class_may_be_learned(mars: Run, root: Path) -> None:
    mask = torch.tensor([[[[0, 1, 255]]]])
    for learned, expected in ((False, [255, 1, 255]), (True, [0, 1, 255])):
        run = open_run(str(root / "mars-recipe.yaml"), assignments=[f"loss.learn_ignored_class={learned}"])
        losses.check(run)
        module = SegmentationModule(torch.nn.Identity(), run, Member(0, 0), ([], []))
        assert module._without_ignored(mask).flatten().tolist() == expected
    other = replace(run, competition=run.competition.model_copy(update={"ignore_class": None}))
    with pytest.raises(PipelineError, match="learn_ignored_class is true, but competition mars has no `ignore_class`"):
        losses.check(other)


def test_pretrained_weights_and_unknown_classes_are_refused(mars: Run, root: Path) -> None:
    recipe = str(root / "mars-recipe.yaml")
    with pytest.raises(PipelineError, match=r"^model.weights is imagenet, but the rules forbid it: set model.weights="):
        open_run(recipe, assignments=["model.weights=imagenet"])
    with pytest.raises(
        PipelineError, match=r"predict.never is \['lava'\]; expected some classes .*: ground, soil, sand"
    ):
        open_run(recipe, assignments=["predict.never=[lava]"])
    with pytest.raises(PipelineError, match="multiclass competitions need mean_iou"):
        load_competition(str(write_changed(root, "dice", {**MARS, "metric": "dice"})))


def write_changed(root: Path, name: str, settings: dict[str, Any]) -> Path:
    """Writes a competition YAML."""
    path = root / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


# --- pets ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pets(root: Path) -> Run:
    """18 + 12 bright ellipses on grey, of many sizes, with a border two pixels wide."""
    folder = root / "input" / "pets"
    (folder / "images").mkdir(parents=True)
    (folder / "annotations" / "trimaps").mkdir(parents=True)
    random = np.random.default_rng(0)
    names = [f"cat_{number}" for number in range(30)]
    for name in names:
        height, width = (int(side) for side in random.integers(30, 70, 2))
        trimap = np.full((height, width), 2, np.uint8)
        cv2.ellipse(trimap, (width // 2, height // 2), (width // 3, height // 4), 0, 0, 360, 1, -1)
        inside = cv2.dilate((trimap == 1).astype(np.uint8), np.ones((5, 5), np.uint8))
        trimap[(inside == 1) & (trimap == 2)] = 3
        image = np.where(trimap[..., None] == 1, 200, 90) + random.integers(0, 40, (height, width, 3))
        cv2.imwrite(str(folder / f"images/{name}.jpg"), image.astype(np.uint8))
        cv2.imwrite(str(folder / f"annotations/trimaps/{name}.png"), trimap)
    for file, part in (("trainval", names[:18]), ("test", names[18:])):
        (folder / f"annotations/{file}.txt").write_text("".join(f"{name} 1 1 1\n" for name in part))
    recipe = SMALL | {"image": {"size": [32, 32], "channels": 3}, "folds": "half"}
    return finished(described(root, "pets", PETS | {"splits": {"half": {"folds": 2}}}, recipe))


def test_pets_are_scored_at_their_own_size_without_the_border(pets: Run) -> None:
    summary, scores = read_json(pets.folder / "test.json"), pd.read_csv(pets.folder / "test_scores.csv")
    rows = pd.read_csv(pets.submission, dtype=str, keep_default_na=False)
    assert rows.columns.tolist() == ["image_id", "encoded_mask"]
    want = submission.expected(pets.competition, pets.input, pets.competition_folder)
    images = table.read_table(pets.test_table)
    found = []
    for (_, row), text in zip(images.iterrows(), rows["encoded_mask"], strict=True):
        true = table.true_mask(row, ["pet"])
        predicted = rle.decode(text, true.shape[1:], want.convention)
        counted = true[0] != 255
        assert 0 < (~counted).sum() < counted.sum()
        mine, theirs = predicted[counted] == 1, true[0][counted] == 1
        found.append((2 * (mine & theirs).sum() / (mine.sum() + theirs.sum()), (mine & theirs).sum(), mine, theirs))
    np.testing.assert_allclose(scores["dice"], [one[0] for one in found])
    assert summary["over_images"]["dice"]["mean"] == pytest.approx(np.mean([one[0] for one in found]))
    assert summary["over_images"]["dice"]["standard_deviation"] == pytest.approx(np.std([one[0] for one in found]))
    both = sum(one[1] for one in found)
    union = sum((one[2] | one[3]).sum() for one in found)
    assert summary["data_set_iou"] == pytest.approx(both / union)
    batches = [2 * sum(one[1] for one in part) / sum(one[2].sum() + one[3].sum() for one in part)
               for part in (found[:8], found[8:])]  # fmt: skip
    assert summary["over_batches_of_8"]["dice"]["mean"] == pytest.approx(np.mean(batches))
    assert summary["over_batches_of_8"]["dice"]["standard_deviation"] == pytest.approx(np.std(batches))
    assert summary["remark"] == "border: ignore"
    assert 0 < summary["over_images"]["loss"]["mean"] < 5


def test_an_evaluation_leaves_overlays_and_a_row_a_run(pets: Run) -> None:
    overlays = sorted((pets.folder / "test_overlays").glob("*.png"))
    assert len(overlays) == 10
    assert overlays[0].name == "00_cat_18.png"
    events = EventAccumulator(str(pets.folder / "test_tensorboard"), {"images": 0, "scalars": 0}).Reload()
    summary = read_json(pets.folder / "test.json")
    for name in ("dice", "iou", "loss"):
        (mean,) = events.Scalars(f"test/over_images/{name}_mean")
        assert mean.value == pytest.approx(summary["over_images"][name]["mean"])
        assert len(events.Scalars(f"test/batches/{name}")) == 2
    pictures = events.Images("test/image_truth_probability_mask")
    assert [one.step for one in pictures] == list(range(10))
    height, width = cv2.imread(str(overlays[0])).shape[:2]
    assert (pictures[0].height, pictures[0].width) == (height, 4 * width)
    driver.run_stage(pets, "evaluate", force=True)
    runs = pd.read_csv(pets.competition_folder / "runs.csv")
    assert runs["run"].tolist() == ["pets-recipe"] * 2
    assert set(runs["remark"]) == {"border: ignore"}
    assert runs["test"].nunique() == 1
    assert "(border: ignore)" in pets.report.read_text()
    record = json.loads(pets.record.read_text())
    assert record["expect"]["remark"] == "border: ignore"


def test_a_split_by_name(pets: Run) -> None:
    assert pets.folds_file.name == "pets-half.csv"
    assert pd.read_csv(pets.folds_file)["fold"].value_counts().tolist() == [9, 9]
    with pytest.raises(PipelineError, match="define the split in the competition's YAML: `splits: {third: "):
        run = open_run(str(Path(pets.recipe.competition).parent / "pets-recipe.yaml"), assignments=["folds=third"])
        driver.run_stage(run, "split")


# --- large images ----------------------------------------------------------------------------------------------------


def test_images_stored_larger_than_the_network_sees(pets: Run, root: Path) -> None:
    recipe = str(root / "pets-recipe.yaml")
    run = open_run(recipe, name="tiles", assignments=["image.store=[48, 80]", "train.folds=[0]", "train.epochs=1"])
    for stage in stages.STAGES:
        driver.run_stage(run, stage)
    assert run.pixels.name == "pixels_48x80_stretch_rgb"
    assert np.load(run.pixels / "train_images.npy", mmap_mode="r").shape == (18, 48, 80, 3)
    assert read_probabilities(run.predictions("test", 0))[0].shape == (12, 1, 48, 80)
    assert read_json(run.folder / "test.json")["images"] == 12
    with pytest.raises(PipelineError, match=r"store \[16, 80\] must not be smaller than size \[32, 32\]"):
        open_run(recipe, assignments=["image.store=[16, 80]"])


# --- further layouts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_from_a_yaml_alone(name: str, root: Path) -> None:
    layout = LAYOUTS[name](root / "input" / name)
    metric = {"metric": "mean_iou"} if name == "palette" else {"metric": "dice"}
    recipe = SMALL | {"train": {"folds": [0], "epochs": 1, "batch_size": 8}}
    run = finished(described(root, name, layout.settings | metric, recipe))
    want = submission.expected(run.competition, run.input, run.competition_folder)
    assert submission.faults_of(run.submission, want) == []
    assert want.ids == list(layout.test_masks)
    truth = root / f"{name}-truth.csv"
    texts = [submission.texts_of(image_id, masks, want) for image_id, masks in layout.test_masks.items()]
    submission.write(truth, {key: text for one in texts for key, text in one.items()}, want)
    assert scoring.score(truth, truth, run.competition, want)[0] == 1
    assert 0 <= scoring.score(run.submission, truth, run.competition, want)[0] < 1
    rows = table.read_table(run.table, "train").set_index("image_id")
    for image_id, masks in layout.masks.items():
        np.testing.assert_array_equal(table.true_mask(rows.loc[image_id], run.competition.classes), masks)


def test_a_test_set_of_several_classes_is_evaluated(root: Path) -> None:
    layout = LAYOUTS["classes"](root / "input" / "known")
    rows = [
        {"ImageId_ClassId": f"{name}_{number}", "EncodedPixels": rle.encode(mask)}
        for name, masks in layout.test_masks.items()
        for number, mask in enumerate(masks, start=1)
    ]
    pd.DataFrame(rows).to_csv(layout.folder / "truth.csv", index=False)
    test = layout.settings["test"] | {"masks": "truth.csv", "evaluate": True}
    recipe = SMALL | {"train": {"folds": [0], "epochs": 1, "batch_size": 8}}
    run = finished(described(root, "known", layout.settings | {"test": test}, recipe))
    want = submission.expected(run.competition, run.input, run.competition_folder)
    truth = root / "known-truth.csv"
    pd.DataFrame(rows).to_csv(truth, index=False)
    scored, number = scoring.score(run.submission, truth, run.competition, want)
    assert number == 24
    assert read_json(run.folder / "test.json")["score"] == pytest.approx(scored)
    assert len(list((run.folder / "test_overlays").glob("*.png"))) == 8
    # the others keep their predictions when an image of the table goes
    before = pd.read_csv(run.folder / "test_scores.csv").iloc[1:].reset_index(drop=True)
    images = table.read_table(run.test_table)
    images.drop(images.index[0]).to_parquet(run.test_table)
    freshness.rewrote(run.test_table.with_suffix(".manifest.json"), run.test_table)
    driver.run_stage(run, "evaluate", force=True)
    pd.testing.assert_frame_equal(pd.read_csv(run.folder / "test_scores.csv"), before)
