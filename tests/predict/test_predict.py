"""Predictions of the test images: with the views that tune kept, the mean of the seeds, interrupted, and undecided."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import TEST_IDS
from predicted import (
    array,
    assert_up_to_date,
    changed,
    go,
    images_shown,
    named,
    newer,
    outputs,
    reasons,
    run_of_test,
    split_run,
    times,
    with_other_weights,
    with_weights,
)

from pipeline import stages
from pipeline.core import driver, freshness
from pipeline.core.config.settings import merge
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json, shown
from pipeline.core.run import Run
from pipeline.predict import stage as predict
from pipeline.predictions import importing
from pipeline.predictions.files import partial_folder, read_predictions
from pipeline.status import status_table
from pipeline.validate import stage as validate

TEST_FILES = {"test_fold_0.npy", "test_fold_1.npy"}
SEARCH: dict[str, Any] = {"method": "search", "confidence": 0.999}
"""With which tune refuses the views of these untrained networks."""


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    yield from split_run(tmp_path_factory.mktemp("predict"))


@pytest.fixture
def run(split: Run, request: pytest.FixtureRequest) -> Run:
    return run_of_test(split, request)


# --- files -----------------------------------------------------------------------------------------------------------


def test_the_mean_of_the_seeds(split: Run) -> None:
    change: dict[str, Any] = {
        "train": {"seeds": [3, 4], "folds": [0]},
        "predict": {"tta": "none"},
        "model": {"presence": True},
    }
    run = go(with_weights(named(split, "seeds", **change)), "predict")
    assert set(times(run)) == {"test_fold_0.npy"}
    parts, presences = [], []
    for seed in (3, 4):
        one = named(split, f"seed{seed}", **merge(change, {"train": {"seeds": [seed]}}))
        shutil.copytree(run.fold_folder(0, seed), one.fold_folder(0))
        go(one, "predict")
        parts.append(array(one.predictions("test", 0)).astype(float))
        presences.append(read_predictions(one.predictions("test", 0), ["thing"])[2])
    assert np.abs(parts[0] - parts[1]).max() > 3
    assert np.abs(array(run.predictions("test", 0)) - np.mean(parts, axis=0)).max() <= 1
    found = read_predictions(run.predictions("test", 0), ["thing"])[2]
    np.testing.assert_allclose(found, np.mean(presences, axis=0), atol=2e-5)  # type: ignore[arg-type]
    assert pd.read_csv(run.predictions("test", 0).with_suffix(".csv"))["image_id"].tolist() == TEST_IDS


# --- the views that tune kept ----------------------------------------------------------------------------------------


def test_without_a_gain_test_images_are_predicted_plain(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run = go(changed(run, tune=SEARCH))
    found = read_json(run.postprocess)
    assert not found["tta"]["kept"]
    said = capsys.readouterr().err
    step = f"refused   test-time augmentation hflip  {found['tta']['gain']:+.4f} ± {found['tta']['standard_error']:.4f}"
    assert step in said and "predict fold 0: 4 images → " in said
    plain = go(with_weights(named(run, f"{run.name}_none", predict={"tta": "none"})))
    for fold in (0, 1):
        np.testing.assert_array_equal(array(run.predictions("test", fold)), array(plain.predictions("test", fold)))
    assert_up_to_date(run)

    before = times(run)
    fixed = changed(run, tune={"method": "fixed"})  # tune keeps the views, and the test images follow, nothing else
    assert reasons(fixed, "validate") == []
    go(fixed)
    assert read_json(run.postprocess)["tta"]["kept"]
    said = capsys.readouterr().err
    assert "kept      test-time augmentation hflip" in said
    assert "predict fold 0: 4 images, test-time augmentation hflip → " in said
    assert newer(run, before) == TEST_FILES
    assert not np.array_equal(array(run.predictions("test", 0)), array(plain.predictions("test", 0)))
    assert_up_to_date(fixed)

    other = changed(fixed, predict={"backend": "openvino"})  # recorded, and no reason to train again
    assert all("backend: torch → openvino" in reasons(other, stage) for stage in ("validate", "predict"))
    assert not any("backend" in reason for reason in reasons(other, "train"))

    before = times(run)
    go(changed(run, tune=SEARCH))  # and back
    assert newer(run, before) == TEST_FILES
    np.testing.assert_array_equal(array(run.predictions("test", 0)), array(plain.predictions("test", 0)))


@pytest.mark.parametrize("tta", ["none", "hflip"])
def test_another_decision_on_the_same_views_predicts_nothing_again(run: Run, tta: str) -> None:
    run = go(changed(run, predict={"tta": tta}))
    before, decided = times(run), run.postprocess.read_bytes()
    other = changed(run, tune={"presence_prior": 0.3})
    assert reasons(other, "tune")
    go(other)
    assert run.postprocess.read_bytes() != decided
    assert newer(run, before) == set()
    assert_up_to_date(other)


def test_other_weights_bring_everything_up_to_date(run: Run) -> None:
    before, decided = times(go(run)), run.postprocess.read_bytes()
    with_other_weights(run, 1)
    go(run)
    assert newer(run, before) == {"oof_fold_1.npy", "oof_fold_1_plain.npy", "test_fold_1.npy"}
    assert run.postprocess.read_bytes() != decided
    assert_up_to_date(run)


def test_other_views_predict_again(run: Run) -> None:
    go(run)
    d4, none = changed(run, predict={"tta": "d4"}), changed(run, predict={"tta": "none"})
    for other in (d4, none):
        assert all(state.reasons for stage in ("tune", "predict") for state in driver.states(other, stage))
    go(d4)
    assert read_json(run.postprocess)["tta"]["views"] == "d4"
    assert_up_to_date(d4)
    left = partial_folder(run.predictions("test", 2))
    left.mkdir()
    go(none)
    assert "tta" not in read_json(run.postprocess)
    assert {name.split(".")[0] for name in outputs(none)} == {"oof_fold_0", "oof_fold_1", "test_fold_0", "test_fold_1"}
    assert not left.exists()
    assert_up_to_date(none)


@pytest.mark.parametrize("force", [False, True])
def test_views_that_tune_has_not_decided_on_stop(run: Run, force: bool) -> None:
    with pytest.raises(PipelineError) as caught:
        driver.run_stage(run, "predict", force)
    command = f"run `{run.command('--to', 'predict')}`."
    file = f"predict needs tune's decision on test-time augmentation, but {shown(run.postprocess)}"
    assert str(caught.value).endswith(f"{file} does not exist; {command}")
    assert times(run) == {}
    plain = changed(run, predict={"tta": "none"})
    driver.run_stage(plain, "predict", force)  # asks nobody
    assert set(times(run)) == TEST_FILES and not run.postprocess.exists()

    go(run)
    before, d4 = times(run), changed(run, predict={"tta": "d4"})
    with pytest.raises(PipelineError, match="postprocess.json has no decision on predict.tta=d4; "):
        driver.run_stage(d4, "predict", force)
    assert newer(run, before) == set()


def test_a_lost_decision_costs_no_predictions(run: Run) -> None:
    """Until tune has decided again, what was predicted stays as it was."""
    run = go(changed(run, tune=SEARCH))
    before = times(run)
    run.postprocess.unlink()
    with pytest.raises(PipelineError, match="predict needs tune's decision on test-time augmentation"):
        go(run, "predict")
    go(run)
    assert newer(run, before) == set()
    assert_up_to_date(run)


def test_what_is_said_where_tune_must_decide_again(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    go(run)
    other = changed(run, tune={"presence_prior": 0.3})
    capsys.readouterr()
    stages.warn_of_stale(other, "predict")
    said = " ".join(capsys.readouterr().err.split())
    assert "tune is not up to date (tune.presence_prior: None → 0.3). This run starts at predict and uses" in said
    assert "validate is not up to date" not in said
    table, _ = status_table(other)
    states = dict(zip(*(list(column.cells) for column in table.columns[:2]), strict=True))
    assert states["validate"].startswith("up to date") and states["predict"].startswith("up to date so far")
    assert states["tune"] == "tune.presence_prior: None → 0.3"


# --- predictions of others -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stage", "steps"), [(validate, "oof_steps"), (predict, "test_steps")])
def test_predictions_of_others_are_not_predicted(
    stage: Any, steps: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensemble = type(run.recipe).model_validate(run.recipe.model_dump() | {"ensemble": {"one": None, "two": None}})
    assert stage.steps(replace(run, recipe=ensemble)) == []
    arrays = type(run.recipe).model_validate(run.recipe.model_dump() | {"arrays": {"oof": "oof.npy"}})
    step = freshness.Step("predict", "import", run.folder / "m.json", (), (), {})
    monkeypatch.setattr(importing, steps, lambda run: [step])
    monkeypatch.setattr(importing, "execute", lambda run, waiting: iter(waiting))
    brought = replace(run, recipe=arrays)
    assert stage.steps(brought) == list(stage.execute(brought, [step])) == [step]


# --- interrupted -----------------------------------------------------------------------------------------------------


def test_an_interrupted_stage_goes_on_with_the_rest(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = go(with_weights(named(run, f"{run.name}_undisturbed")))
    go(run, "validate", "tune")
    breaks = iter([False, True, False, False, True])  # in the second batch of the first fold, and of the second
    seen = images_shown(monkeypatch, breaks)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            go(run, "predict")
        assert len(list((run.folder / "predictions").glob(".*.partial"))) == 1
    go(run, "predict")
    assert seen == [3, 1, 3, 1]  # four test images by the models of two folds: none twice
    assert outputs(run) == outputs(undisturbed)
    assert not list(run.folder.rglob("*.partial"))
    assert_up_to_date(run)
