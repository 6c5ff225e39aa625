"""Metrics that the package does not have go through every stage: pooled pixels, a mean over groups, whole masks.

What each of them scores is worked out again from the masks that are drawn, by a plain function of its own.
"""

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import SHAPE, TEST_IDS, Tiny

from pipeline import stages
from pipeline.core import driver
from pipeline.core.config import metric_text
from pipeline.core.config.raw_layouts import load_competition
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json
from pipeline.core.run import Run, open_run
from pipeline.decode import table
from pipeline.encode import scoring, submission
from pipeline.masks import metrics, rle
from pipeline.masks.bootstrap import interval
from pipeline.masks.decision import decision_of
from pipeline.masks.metric import Metric
from pipeline.masks.overlaps import dice
from pipeline.predictions import blends
from pipeline.report.compare import compare

Masks = dict[str, tuple[np.ndarray, np.ndarray]]
"""By image id, the predicted and the true mask (h, w) of 0 and 1."""
TRUE_AREA = np.pi * 30 * 40 / 16


def regions(mask: np.ndarray) -> list[np.ndarray]:
    number, marked = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    return [marked == region for region in range(1, number)]


def instance_precision(predicted: np.ndarray, true: np.ndarray) -> float:
    """The metric of Data Science Bowl 2018, by loops over the regions of both masks."""
    mine, theirs = regions(predicted), regions(true == 1)
    ious = [[(a & b).sum() / (a | b).sum() for b in theirs] for a in mine]
    found = []
    for threshold in np.arange(0.5, 1.0, 0.05):
        hits = sum(iou > threshold + 1e-9 for row in ious for iou in row)
        objects = len(mine) + len(theirs) - hits
        found.append(hits / objects if objects else 1.0)
    return float(np.mean(found))


def volume_counts(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Predicted and true voxels (2, C) of all slices of a patient."""
    return np.stack([(predicted == 1).sum((1, 2, 3)), (true == 1).sum((1, 2, 3))])


def volume_error(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    return np.abs(predicted - true) / np.maximum(true, 100)


def dice_of(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    both, total = sum((a & b).sum() for a, b in pairs), sum(a.sum() + b.sum() for a, b in pairs)
    return float(2 * both / total) if total else 1.0


def by_patient(masks: Masks, patients: dict[str, str]) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    names = [patients[image_id] for image_id in masks]
    return [[pair for pair, other in zip(masks.values(), names, strict=True) if other == name] for name in set(names)]


def relative_error(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    predicted, true = (sum(int(one.sum()) for one in side) for side in zip(*pairs, strict=True))
    return abs(predicted - true) / max(true, 100)


@dataclass(frozen=True)
class Case:
    metric: Metric
    expected: Callable[[Masks, dict[str, str]], float]


CASES = {
    "pooled_dice": Case(
        Metric("pooled_dice", dice, unit="data_set"), lambda masks, patients: dice_of(list(masks.values()))
    ),
    "patient_dice": Case(
        Metric("patient_dice", dice, unit="group"),
        lambda masks, patients: float(np.mean([dice_of(pairs) for pairs in by_patient(masks, patients)])),
    ),
    "instance_precision": Case(
        metrics.METRICS["instance_precision"],
        lambda masks, patients: float(np.mean([instance_precision(*pair) for pair in masks.values()])),
    ),
    "volume_error": Case(
        Metric("volume_error", volume_error, "masks", "group", volume_counts, together=True, higher_is_better=False),
        lambda masks, patients: float(np.mean([relative_error(pairs) for pairs in by_patient(masks, patients)])),
    ),
}
RECIPE: dict[str, Any] = {
    "image": {"size": [32, 64]},
    "model": {"architecture": "ConfigurableUnet", "encoder": "plain", "options": {"channels": [4, 8]}},
    "train": {
        "folds": [0, 1],
        "epochs": 2,
        "batch_size": 4,
        "precision": "32",
        "learning_rate": 0.02,
        "keep": "best",
        "monitor": "score",
    },
    "predict": {"tta": "hflip"},
    "tune": {"confidence": 0.5},
}


@pytest.fixture(scope="module", params=list(CASES))
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Case, Run]]:
    """A run of the tiny competition, scored by a metric that was registered under its name, through every stage."""
    root, case = tmp_path_factory.mktemp("metric"), CASES[request.param]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPELINE_ROOT", str(root))
        patch.setenv("PIPELINE_INPUT", str(root / "input"))
        patch.setitem(metrics.METRICS, case.metric.name, case.metric)
        patch.setitem(metric_text.METRICS, case.metric.name, "masks")
        tiny = Tiny(root)
        for name, mask in tiny.masks.items():  # something that can be learned in a few steps
            image = np.clip(tiny.images[name] // 3 + 120 * mask, 0, 255).astype(np.uint8)
            tiny.path(name).write_bytes(cv2.imencode(".tif", image)[1].tobytes())
        tiny.settings |= {"metric": case.metric.name, "group": "patient", "clean": {"broken": {"action": "off"}}}
        tiny.settings["test"] = {"images": "test/{id}.tif", "masks": "test.csv", "evaluate": True}
        tiny.recipe |= RECIPE
        tiny.save()
        truth = [np.roll(tiny.masks["a02"], 3 * number, 0) for number in range(len(TEST_IDS))]
        rows = [
            {"id": name, "mask": rle.encode(mask), "patient": f"q{number // 2}", "age": "40"}
            for number, (name, mask) in enumerate(zip(TEST_IDS, truth, strict=True))
        ]
        pd.DataFrame(rows).to_csv(tiny.input / "test.csv", index=False)
        run = open_run(str(tiny.recipe_path))
        for stage in stages.STAGES:
            driver.run_stage(run, stage)
        yield case, run


def drawn(run: Run) -> Masks:
    """The masks of all out-of-fold images, as tune decided."""
    images = table.read_table(run.table).set_index("image_id", drop=False)
    decision, found = decision_of(read_json(run.postprocess)), {}
    for fold in run.trained_folds():
        blend = blends.out_of_fold(run, fold, blends.plain_of(run))
        for row, name in enumerate(blend.ids):
            true = table.true_mask(images.loc[name], run.competition.classes)
            found[name] = (blend.decide(row, blend.native(row, SHAPE), decision)[0], true[0])
    return found


def patients_of(run: Run) -> dict[str, str]:
    return table.read_table(run.table).set_index("image_id")["group"].to_dict()


def test_tune_scores_the_masks_that_it_draws(finished: tuple[Case, Run]) -> None:
    case, run = finished
    result, masks = read_json(run.postprocess), drawn(run)
    assert len(masks) == result["images"] == 8
    assert result["metric"] == case.metric.name
    assert result["score"] == pytest.approx(case.expected(masks, patients_of(run)), rel=1e-12)
    better = (result["score"] - result["untuned"]) * case.metric.sign
    assert better >= -1e-12
    assert result["interval_95"][0] <= result["score"] <= result["interval_95"][1]
    low, high = result["nested_interval_95"]
    assert low <= result["nested"] <= high
    (views, *steps) = result["steps"]
    assert views["step"] == "test-time augmentation hflip"
    whole = case.metric.counted == "masks"
    apart = ["watershed"] if case.metric.instances else []
    tried = ["threshold", "area", *apart, "components"] if whole else ["threshold", "area", "triplet", "components"]
    assert [step["step"] for step in steps] == tried
    assert result["curves"]["thing"]["threshold"] and result["curves"]["thing"]["min_area"]
    rows = pd.read_csv(run.folder / "oof_scores.csv", dtype={"group": str})
    assert np.isfinite(rows["score"]).all()
    if case.metric.unit == "group":  # at each of its images
        assert rows.groupby("group")["score"].nunique().max() == 1
        assert rows.groupby("group")["score"].first().mean() == pytest.approx(result["score"])
    if case.metric.unit == "image":
        assert rows["score"].mean() == pytest.approx(result["score"])


def test_the_score_of_each_fold_is_that_of_its_images(finished: tuple[Case, Run]) -> None:
    case, run = finished
    masks, patients = drawn(run), patients_of(run)
    folds = pd.read_csv(run.folder / "oof_scores.csv").set_index("image_id")["fold"]
    for fold, score in read_json(run.postprocess)["score_by_fold"].items():
        part = {name: pair for name, pair in masks.items() if str(folds[name]) == fold}
        assert score == pytest.approx(case.expected(part, patients), rel=1e-12)


def test_training_keeps_the_epoch_that_scores_best(finished: tuple[Case, Run]) -> None:
    case, run = finished
    for fold in (0, 1):
        history = pd.read_csv(run.fold_folder(fold) / "history.csv")
        scores = case.metric.sign * history["valid/score"]
        assert read_json(run.fold_folder(fold) / "fold.json")["best_epoch"] == scores.idxmax()
        assert np.load(run.fold_folder(fold) / "epochs.npz")["counts"].shape[:2] == (2, 4)
    assert "epoch_optimism" in read_json(run.postprocess)["scores"]["fold_model"]


def test_evaluate_and_score_agree(finished: tuple[Case, Run]) -> None:
    case, run = finished
    summary, want = (
        read_json(run.folder / "test.json"),
        submission.expected(run.competition, run.input, run.competition_folder),
    )
    images = table.read_table(run.test_table).set_index("image_id", drop=False)
    texts = pd.read_csv(run.submission, dtype=str, keep_default_na=False).set_index("id")["mask"]
    masks = {
        name: (rle.decode(texts[name], SHAPE), table.true_mask(images.loc[name], ["thing"])[0]) for name in TEST_IDS
    }
    expected = case.expected(masks, images["extra_patient"].to_dict())  # the table of their masks says it
    assert summary["score"] == pytest.approx(expected, rel=1e-12)
    value, rows = scoring.score(run.submission, run.input / "test.csv", run.competition, want)
    assert (value, rows) == (pytest.approx(expected, rel=1e-12), 4)


def test_compare_and_the_report_show_it(finished: tuple[Case, Run]) -> None:
    case, run = finished
    other = run.folder.with_name("other")
    subprocess.run(["cp", "-r", run.folder, other], check=True)
    first, second = compare([run.name, "other"])
    assert (first.metric, second.difference) == (case.metric.name, pytest.approx(0))
    assert (second.standard_error is None) == (case.metric.unit == "data_set")
    assert case.metric.name in run.report.read_text(encoding="utf-8")
    assert json.loads(run.record.read_text())["expect"]["metric"] == case.metric.name


# --- what cannot be ---------------------------------------------------------------------------------------------------


def test_a_mean_over_groups_needs_groups(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(metrics.METRICS, "patient_dice", CASES["patient_dice"].metric)
    monkeypatch.setitem(metric_text.METRICS, "patient_dice", "masks")
    tiny.settings["metric"] = "patient_dice"
    tiny.save()
    loaded = load_competition(str(tiny.competition_path))
    with pytest.raises(PipelineError, match="patient_dice is a mean over groups: set `group`"):
        metrics.metric_of(loaded)


def test_an_unknown_metric_is_refused(tiny: Tiny) -> None:
    tiny.settings["metric"] = "dise"
    tiny.save()
    with pytest.raises(PipelineError, match="there is no metric `dise`; did you mean `dice`"):
        load_competition(str(tiny.competition_path))


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"counted": "masks"}, "`measure` must be given exactly if"),
        ({"measure": volume_counts}, "`measure` must be given exactly if"),
        ({"together": True}, "`together` needs"),
    ],
)
def test_parts_of_a_metric_that_do_not_go_together(settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        Metric("made_up", dice, **settings)


def test_images_measured_together_are_of_one_size() -> None:
    masks = [np.zeros((1, 4, 4), np.uint8), np.zeros((1, 4, 5), np.uint8)]
    with pytest.raises(PipelineError, match="all images of a group together, and images of one group differ in size"):
        CASES["volume_error"].metric.measured(masks, masks)


@pytest.mark.parametrize("name", list(CASES))
def test_rows_add_up_to_the_score(name: str, tmp_path: Path) -> None:
    """Of any whole groups, weighed or not, two classes alike."""
    metric, rng = CASES[name].metric, np.random.default_rng(0)
    masks, groups = rng.integers(0, 2, (2, 9, 2, 6, 7)).astype(np.uint8), np.repeat(["b", "a", "c"], 3)
    measured = metric.measured_all(masks[0], masks[1], groups)
    rows = metric.rows(measured, np.ones((9, 2)), groups)
    assert float(metric.score(rows.sum(0))) == pytest.approx(metric.score_of(measured, groups))
    some = groups != "a"
    assert float(metric.score(rows[some].sum(0))) == pytest.approx(metric.score_of(measured[some], groups[some]))
    alone = metric.score_of(metric.measured_all(masks[0, :3], masks[1, :3], groups[:3]), groups[:3])
    assert metric.unit == "data_set" or float(metric.score(rows[:3].sum(0))) == pytest.approx(alone)
    found = interval(rows, metric.score, groups)
    assert found is not None and found[0] <= float(metric.score(rows.sum(0))) <= found[1]
