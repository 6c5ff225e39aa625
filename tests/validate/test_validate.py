"""Predictions of the held-out images: plain and the mean over views, a file per seed, interrupted, and bad weights."""

import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from predicted import (
    array,
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
from safetensors.torch import load_file, save_file

from pipeline.core import driver, freshness
from pipeline.core.config.settings import merge
from pipeline.core.errors import PipelineError
from pipeline.core.files import write_json
from pipeline.core.run import Run
from pipeline.networks import device
from pipeline.networks import predictor as inference
from pipeline.networks.models import SegmentationNetwork
from pipeline.networks.output import Output
from pipeline.predictions.files import partial_folder
from pipeline.split.folds import read_folds


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    yield from split_run(tmp_path_factory.mktemp("validate"))


@pytest.fixture
def run(split: Run, request: pytest.FixtureRequest) -> Run:
    return run_of_test(split, request)


# --- files -----------------------------------------------------------------------------------------------------------


def test_plain_predictions_come_from_the_same_passes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    forward = SegmentationNetwork.forward

    def counting(self: Any, pixels: torch.Tensor) -> Output:
        seen.append(len(pixels))
        return forward(self, pixels)

    monkeypatch.setattr(SegmentationNetwork, "forward", counting)
    monkeypatch.setattr("pipeline.networks.ready.fuse", lambda network, channels: [])
    go(run, "validate")
    assert sum(seen) == 2 * 2 * 4  # two views of four held-out images in two folds; no test image
    plain = go(with_weights(named(run, f"{run.name}_none", predict={"tta": "none"})), "validate")
    assert sum(seen) == 2 * 2 * 4 + 2 * 4
    for fold in (0, 1):
        alone = array(plain.predictions("oof", fold))
        np.testing.assert_array_equal(array(run.predictions("oof", fold, plain=True)), alone)
        assert np.abs(array(run.predictions("oof", fold)).astype(int) - alone).max() > 3
    assert set(times(plain)) == {"oof_fold_0.npy", "oof_fold_1.npy"}
    assert set(times(run)) == set(times(plain)) | {"oof_fold_0_plain.npy", "oof_fold_1_plain.npy"}


def test_every_seed_has_a_file(split: Run) -> None:
    change: dict[str, Any] = {"train": {"seeds": [3, 4], "folds": [0]}, "predict": {"tta": "none"}}
    run = go(with_weights(named(split, "seeds", **change)), "validate")
    assert set(times(run)) == {"oof_fold_0.npy", "oof_fold_0_seed_4.npy"}
    first, second = (array(path) for path in run.oof_predictions(0))
    assert np.abs(first.astype(int) - second).max() > 3
    for seed in (3, 4):
        one = named(split, f"seed{seed}", **merge(change, {"train": {"seeds": [seed]}}))
        shutil.copytree(run.fold_folder(0, seed), one.fold_folder(0))
        go(one, "validate")
        assert np.array_equal(array(one.predictions("oof", 0)), (first, second)[seed - 3])


# --- what predicts again ---------------------------------------------------------------------------------------------


def test_other_weights_predict_their_fold_again(run: Run) -> None:
    before = times(go(run, "validate"))
    with_other_weights(run, 1)
    go(run, "validate")
    assert newer(run, before) == {"oof_fold_1.npy", "oof_fold_1_plain.npy"}
    assert reasons(run, "validate") == []


def test_other_views_predict_again_and_train_nothing(run: Run) -> None:
    from pipeline.train.stage import steps

    for step in steps(run):
        for path in step.outputs:
            path.touch()
        weights = step.manifest.with_name("last.safetensors")
        write_json(weights.with_name("fold.json"), {"sha256": [freshness.hash_file(weights)]})
        freshness.record(step, 0)
    go(run, "validate")
    d4, none = changed(run, predict={"tta": "d4"}), changed(run, predict={"tta": "none"})
    for other in (d4, none):
        assert reasons(other, "train") == []
        assert all(state.reasons for state in driver.states(other, "validate"))
    before = times(run)
    go(d4, "validate")
    assert newer(d4, before) == set(before)
    assert reasons(d4, "validate") == []
    left = partial_folder(run.predictions("oof", 2))
    left.mkdir()
    for name in ("tta.json", "tta.npz", "tta.manifest.json"):  # of version 0.1.0
        left.with_name(name).touch()
    go(none, "validate")
    assert {name.split(".")[0] for name in outputs(none)} == {"oof_fold_0", "oof_fold_1"}
    assert not left.exists()
    assert not list(left.parent.glob("*plain*")) + list(left.parent.glob("tta*"))
    assert reasons(none, "validate") == []


def test_another_setting_of_tune_predicts_nothing_again(run: Run) -> None:
    go(run, "validate")
    assert reasons(changed(run, tune={"method": "search", "confidence": 0.7}), "validate") == []


# --- interrupted -----------------------------------------------------------------------------------------------------


def test_an_interrupted_stage_goes_on_with_the_rest(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = go(with_weights(named(run, f"{run.name}_undisturbed")), "validate")
    breaks = iter([False, True, False, False, True])  # in the second batch of the first fold, and of the second
    seen = images_shown(monkeypatch, breaks)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            go(run, "validate")
        assert len(list((run.folder / "predictions").glob(".*.partial"))) == 1
    go(run, "validate")
    assert seen == [3, 1, 3, 1]  # two folds of four: none twice
    assert outputs(run) == outputs(undisturbed)
    assert not list(run.folder.rglob("*.partial"))
    assert reasons(run, "validate") == []


def test_what_was_begun_otherwise_is_begun_anew(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = images_shown(monkeypatch, iter([False, True]))
    with pytest.raises(KeyboardInterrupt):
        go(run, "validate")
    go(changed(run, predict={"tta": "flips"}), "validate")
    assert seen == [3, *[3, 1] * 2]


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tta", ["none", "hflip"])
def test_probabilities_that_are_no_numbers(run: Run, tta: str) -> None:
    run = changed(run, predict={"tta": tta}, train={"seeds": [0, 7]})
    with_weights(run)
    (path,) = run.weights(run.members(1)[1])
    state = load_file(path)
    state["network.segmentation_head.0.bias"].fill_(torch.nan)
    save_file(state, path)
    first = read_folds(run).query("fold == 1")["image_id"].iloc[0]
    with pytest.raises(PipelineError) as caught:
        go(run, "validate")
    for part in ("fold 1, seed 7 (", "fold_1_seed_7/last.safetensors) predicts", f"infinite values for image {first}."):
        assert part in str(caught.value)
    written = {name for name in outputs(run) if name.endswith(".npy")}
    assert written - {f"oof_fold_{fold}{seed}_plain.npy" for fold in "01" for seed in ("", "_seed_7")} == {
        "oof_fold_0.npy", "oof_fold_0_seed_7.npy", "oof_fold_1.npy",
    }  # fmt: skip
    assert not list(run.folder.rglob(".*.partial"))


def test_weights_that_are_missing_or_of_another_network(run: Run) -> None:
    (path,) = run.weights(run.members(1)[0])
    other = changed(run, model={"options": {"channels": [4, 6]}})
    with pytest.raises(PipelineError, match=r"fold_0/last.safetensors does not fit this recipe's network: .*model"):
        go(other, "validate")
    path.unlink()
    with pytest.raises(PipelineError, match=r"validate reads the weights of folds 0 and 1, and those of 1 are missing"):
        go(run, "validate")
    with pytest.raises(PipelineError, match=r"fold_1/last.safetensors does not exist; run the train stage of"):
        inference.load(run, path, device.detect("32"), np.dtype(np.uint8))
