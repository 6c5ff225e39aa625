"""model.instances from raw files to a submission, on the twelve tiny images with two touching things in each."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import SHAPE, TEST_IDS, TRAIN_IDS, Tiny, encoded
from finished import with_summaries
from predicted import RECIPE, go, named, reasons, with_weights
from safetensors.torch import load_file

from pipeline.core import driver
from pipeline.core.config.losses import LossSettings
from pipeline.core.config.settings import merge
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json
from pipeline.core.run import Run, open_run
from pipeline.decode import table
from pipeline.encode import scoring, submission
from pipeline.masks import rle
from pipeline.masks.decision import decision_of
from pipeline.masks.geometry import IGNORE, Geometry
from pipeline.masks.metrics import named as metric_named
from pipeline.masks.separators import FULL, border_of, distance_of
from pipeline.networks.loader import open_masks
from pipeline.networks.output import Output
from pipeline.predictions import blends
from pipeline.predictions.blends import Subset
from pipeline.train.losses import WeightedLoss
from pipeline.train.stage import preflight

COLUMNS = {"id": "id", "rle": "mask", "rows": "instance", "absent": "empty"}
SIZE = [40, 64]


def truth(number: int) -> np.ndarray:
    """Two things that touch (40, 60) int32, and one alone."""
    labels = np.zeros(SHAPE, np.int32)
    cv2.circle(labels, (13 + number % 5, 20), 9, 1, -1)
    cv2.circle(labels, (30 + number % 5, 20 + number % 3), 9, 2, -1)
    cv2.circle(labels, (52, 6), 4, 3, -1)
    return labels


def rows_of(name: str, labels: np.ndarray) -> list[dict[str, str]]:
    masks = [(labels == one).astype(np.uint8) for one in range(1, labels.max() + 1)]
    return [{"id": name, "mask": rle.encode(mask)} for mask in masks]


TRUTHS = {name: truth(number) for number, name in enumerate(TRAIN_IDS + TEST_IDS)}


def competition(root: Path) -> Tiny:
    """A row per thing, in the training table and in the submission."""
    tiny = Tiny(root)
    tiny.rows = [row for name in TRAIN_IDS for row in rows_of(name, TRUTHS[name])]
    random = np.random.default_rng(0)
    for name, labels in TRUTHS.items():
        image = (30 * (labels > 0) + random.integers(0, 220, SHAPE)).astype(np.uint8)
        tiny.path(name).write_bytes(encoded(image))
    tiny.settings |= {"columns": COLUMNS, "submission": COLUMNS, "metric": "instance_precision"}
    tiny.recipe = merge(
        {"competition": str(tiny.competition_path), **RECIPE},
        {"image": {"size": SIZE, "fit": "pad"}, "tune": {"method": "search"}, "predict": {"tta": "none"}},
    )
    tiny.save()
    return tiny


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Tiny, Run]]:
    """The competition, decoded and split, for a recipe without separators."""
    root = tmp_path_factory.mktemp("touching")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPELINE_ROOT", str(root))
        patch.setenv("PIPELINE_INPUT", str(root / "input"))
        tiny = competition(root)
        yield tiny, tiny.run("decode", "clean", "split")


def asking(run: Run, instances: str, **changes: Any) -> Run:
    """The run with another network, decoded."""
    found = named(run, changes.pop("name", instances), **merge(changes, {"model": {"instances": instances}}))
    return go(found, "decode")


# --- decode ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("instances", ["border", "distance"])
def test_decode_draws_separators_and_reads_no_raw_file_again(split: tuple[Tiny, Run], instances: str) -> None:
    run = named(split[1], instances, model={"instances": instances})
    images = run.pixels / "train_images.npy"
    before, waiting = images.stat().st_mtime_ns, [state.step.title for state in driver.states(run, "decode")]
    assert waiting[-1] == f"decode the training {instances}s"
    go(run, "decode")
    assert images.stat().st_mtime_ns == before and reasons(run, "decode") == []
    assert run.separators
    found = np.load(run.separators)
    assert found.shape == (12, 1, *SIZE) and found.dtype == np.uint8
    drawn = border_of if instances == "border" else distance_of
    for one, name in zip(found, TRAIN_IDS, strict=True):
        np.testing.assert_array_equal(one[0, :, 2:62], drawn(TRUTHS[name]))
    masks = open_masks(run.pixels, run.separators)
    both = masks[3]
    assert both.shape == (2, *SIZE) and both.dtype == (np.uint8 if instances == "border" else np.float32)
    np.testing.assert_array_equal(both[:1], np.load(run.pixels / "train_masks.npy")[3])
    np.testing.assert_array_equal(masks[3, :, 4:9, 5:], both[:, 4:9, 5:])
    np.testing.assert_allclose(both[1:], found[3] / (1 if instances == "border" else FULL), rtol=1e-6)


def test_what_cannot_be_separated_is_said_in_one_sentence(split: tuple[Tiny, Run], tmp_path: Path) -> None:
    tiny, run = split

    def refused(settings: dict[str, Any], **recipe: Any) -> str:
        yaml_path, recipe_path = tmp_path / "tiny.yaml", tmp_path / "small.yaml"
        yaml_path.write_text(yaml.safe_dump(tiny.settings | settings))
        recipe_path.write_text(yaml.safe_dump(merge(tiny.recipe, {"competition": str(yaml_path), **recipe})))
        with pytest.raises(PipelineError) as caught:
            opened = open_run(str(recipe_path), assignments=["model.instances=border"])
            preflight(opened)
            driver.run_stage(opened, "decode")
        return str(caught.value)

    assert "metric of tiny, dice, does not distinguish instances" in refused({"metric": "dice"})
    regions = {"columns": {"id": "id", "rle": "mask"}, "title": "one row per image", "submission": {}}
    whole = {name: rle.encode((TRUTHS[name] > 0).astype(np.uint8)) for name in TRAIN_IDS}
    pd.DataFrame({"id": whole.keys(), "mask": whole.values()}).to_csv(tiny.input / "whole.csv", index=False)
    train = {"images": "train/{id}.tif", "masks": "whole.csv"}
    assert "do not distinguish instances. Expected a row" in refused(regions | {"train": train})
    assert "model.background_output is true" in refused({}, model={"background_output": True})
    assert "train.pseudo labels masks" in refused({}, train={"pseudo": {"recipe": "other"}})
    assert "set model.instances=border or model.instances=distance" in str(
        pytest.raises(PipelineError, LossSettings(separator=1.0).terms, "binary").value  # type: ignore[arg-type]
    )


# --- train -----------------------------------------------------------------------------------------------------------


def test_the_loss_of_separators() -> None:
    """It sees the last planes alone, its weight is a factor, and ignored pixels change nothing."""
    torch.manual_seed(0)
    masks = torch.randint(0, 2, (2, 4, 6, 6)).float()
    logits = torch.randn(2, 4, 6, 6)
    alone = WeightedLoss(LossSettings())(Output(logits[:, :2]), masks[:, :2])
    for instances in ("border", "distance"):
        once, twice, never = (
            WeightedLoss(LossSettings(separator=weight), instances=instances)(Output(logits), masks)  # type: ignore[arg-type]
            for weight in (1.0, 2.0, 0.0)
        )
        torch.testing.assert_close(never, alone)
        torch.testing.assert_close(twice - alone, 2 * (once - alone))
        deep = WeightedLoss(LossSettings(), instances=instances)(Output(logits, None, (logits,)), masks)
        torch.testing.assert_close(deep, 1.4 * once)
        ignored, other = masks.clone(), logits.clone()
        ignored[:, 2:, 0], other[:, 2:, 0] = IGNORE, 99.0
        left = WeightedLoss(LossSettings(), instances=instances)
        torch.testing.assert_close(
            left(Output(other), ignored), left(Output(logits), ignored), msg="ignored pixels count"
        )
    soft = WeightedLoss(LossSettings(), instances="distance")
    target = torch.full((1, 2, 4, 4), 0.3)
    at_target, beside = (soft(Output(torch.full((1, 2, 4, 4), value)), target) for value in (-0.8473, -0.5))
    assert at_target < beside


@pytest.mark.parametrize(
    ("instances", "changes"),
    [
        ("border", {"train": {"mix": {"cutmix": 0.4, "mixup": 0.4}, "half_size": 0.5}}),
        ("distance", {"train": {"augment_on": "device"}}),
    ],
)
def test_training_with_everything_beside(split: tuple[Tiny, Run], instances: str, changes: dict[str, Any]) -> None:
    """A second output per class, which deep supervision has too and the presence head has not."""
    size = {"image": {"size": [32, 48], "store": [40, 64]}} if instances == "border" else {}
    model = {"presence": True, "options": {"channels": [4, 8, 8], "deep_supervision": True}}
    train = {"folds": [0], "epochs": 2, "batch_size": 4, "ema": 0.9}
    changed = merge({"model": model, "train": train, "augment": [{"HorizontalFlip": {}}], **size}, changes)
    run = asking(split[1], instances, name=f"trained-{instances}", **changed)
    go(run, "train", "validate")
    state = load_file(run.weights(run.members(0)[0])[0])
    heads = [value.shape for name, value in state.items() if "segmentation_head" in name and value.ndim == 4]
    assert heads[0][0] == 2
    array = np.load(run.predictions("oof", 0))
    assert array.shape == (4, 2, *SIZE) and array.dtype == np.uint8
    blend = blends.out_of_fold(run, 0, [False])
    assert blend.presence is not None and blend.presence.shape == (4, 1)
    assert blend.native(0, SHAPE).shape == (1, *SHAPE) and blend.separator
    np.testing.assert_array_equal(blend.separator.native(0, SHAPE)[0], array[0, 1][:, 2:62])


# --- tune, encode ----------------------------------------------------------------------------------------------------


def predict_truth(run: Run, subset: Subset) -> None:
    """Writes true masks and true separators in the place of predictions."""
    for path in (run.predictions(subset, fold) for fold in run.trained_folds()):
        array = np.load(path)
        for planes, name in zip(array, pd.read_csv(path.with_suffix(".csv"))["image_id"], strict=True):
            labels = np.zeros(SIZE, np.int32)
            labels[:, 2:62] = TRUTHS[name]
            planes[0] = 230 * (labels > 0)
            if run.recipe.model.separates:
                is_border = run.recipe.model.instances == "border"
                planes[1] = 255 * border_of(labels) if is_border else distance_of(labels)
        written = path.stat().st_mtime_ns
        np.save(path, array)
        os.utime(path, ns=(written, written))  # or the file would be taken for damaged


def submitted(run: Run, instances: str, **changes: Any) -> tuple[Run, dict[str, Any], float]:
    """The run with true predictions, what tune makes of them, and the score of its submission."""
    found = with_summaries(with_weights(asking(run, instances, **changes)))
    go(found, "validate")
    predict_truth(found, "oof")
    go(found, "tune", "predict")
    predict_truth(found, "test")
    go(found, "encode")
    want = submission.expected(found.competition, found.input, found.competition_folder)
    assert submission.faults_of(found.submission, want) == []
    path = found.folder / "truth.csv"
    pd.DataFrame([row for name in TEST_IDS for row in rows_of(name, TRUTHS[name])]).to_csv(path, index=False)
    return found, read_json(found.postprocess), scoring.score(found.submission, path, found.competition, want)[0]


@pytest.mark.parametrize("instances", ["none", "distance"])
def test_tune_separates_and_encode_writes_what_tune_scored(split: tuple[Tiny, Run], instances: str) -> None:
    run, result, of_test = submitted(split[1], instances, name=f"tuned-{instances}")
    steps = {step["step"]: step for step in result["steps"]}
    assert ("separator" in steps) == (instances != "none") and "watershed" in steps
    assert result["untuned"] < 0.7 < result["score"] and result["procedure"]["ships"] == "tuned"
    decision, metric, scores = decision_of(result), metric_named("instance_precision"), []
    images = table.read_table(run.table, "train").set_index("image_id", drop=False)
    for fold in run.trained_folds():
        blend = blends.out_of_fold(run, fold, [False])
        for row, name in enumerate(blend.ids):
            found = blend.objects(row, blend.native(row, SHAPE), decision)
            true = table.scored_truth(images.loc[name], run.competition, metric)
            scores.append(metric.by_class(metric.measured([found], [true]))[0, 0])
    assert result["score"] == pytest.approx(np.mean(scores), abs=1e-12)
    assert of_test > 0.7 and pd.read_csv(run.submission).groupby("id").size().tolist() == [3] * 4


def test_a_true_border_loses_nothing(split: tuple[Tiny, Run]) -> None:
    """Without a watershed of the mask, true borders give the score 1, and the submission is the truth."""
    tune = {"steps": ["threshold", "separator", "components"]}
    run, result, of_test = submitted(split[1], "border", name="ceiling", tune=tune)
    assert result["rules"]["thing"]["separation"]["source"] == "border"
    assert result["score"] == result["nested"] == of_test == 1.0
    rows = [{tuple(row) for row in pd.read_csv(path).to_numpy()} for path in (run.submission, run.folder / "truth.csv")]
    assert rows[0] == rows[1]


def test_ensembles_average_what_separates(split: tuple[Tiny, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that say nothing do not count; borders and distances have no mean."""
    arrays = np.random.default_rng(0).integers(0, 256, (2, 1, 2, 8, 8)).astype(np.uint8)
    geometry = Geometry((8, 8), "stretch", 1)
    one, other = (blends.RunPredictions.of([array], geometry, None, 1) for array in arrays)
    plain = blends.RunPredictions.of([arrays[0][:, :1]], geometry, None, 1)
    blend = blends.Blend(["a"], (one, plain, other), (0.3, 0.6, 0.1))
    assert blend.separator and blend.separator.weights == pytest.approx((0.75, 0.25)) and plain.separators is None
    mean = 0.75 * arrays[0][:, 1].astype(float) + 0.25 * arrays[1][:, 1]
    np.testing.assert_allclose(blend.separator.native(0, (8, 8)), mean, atol=0.501)
    assert one.only(0).separators and blends.Blend(["a"], (plain,), (1.0,)).separator is None
    runs = [named(split[1], kind, model={"instances": kind}) for kind in ("none", "border", "distance")]
    assert [blends.separator_of(run) for run in runs] == [None, "border", "distance"]
    monkeypatch.setattr(blends.other_runs, "runs_of", lambda run: runs if run.name == "all" else runs[:2])
    assert blends.separator_of(named(split[1], "some")) == "border"
    with pytest.raises(PipelineError, match="none: none, border: border, distance: distance.*cannot be averaged"):
        blends.separator_of(named(split[1], "all"))
