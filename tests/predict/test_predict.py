"""Predictions of held-out and test images: views, what they bring, files that survive a kill, and speed."""

import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import TEST_IDS, Tiny
from safetensors.torch import load_file, save_file
from torch.nn import BatchNorm2d, Conv2d, Module, ReLU, Sequential

from pipeline.core import driver, freshness
from pipeline.core.config.competition import load_competition
from pipeline.core.config.recipe import TuneSettings
from pipeline.core.config.settings import merge
from pipeline.core.config.training import ModelSettings
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json
from pipeline.core.run import Run, open_run
from pipeline.decode import table
from pipeline.masks.decision import Rule, Rules, decide
from pipeline.masks.metrics import METRICS, confusion, counts, pooled_score
from pipeline.networks import device
from pipeline.networks import predictor as inference
from pipeline.networks.device import Compute
from pipeline.networks.models import SegmentationNetwork, build, build_network
from pipeline.networks.output import Output
from pipeline.networks.views import views
from pipeline.predictions.blends import out_of_fold
from pipeline.predictions.files import Predicted, partial_folder, read_predictions, write_resumable
from pipeline.split.folds import groups_of, read_folds
from pipeline.tune.views import THRESHOLDS, measure, read

RECIPE: dict[str, Any] = {
    "image": {"size": [32, 64]},
    "model": {"architecture": "ConfigurableUnet", "encoder": "plain", "options": {"channels": [4, 8]}},
    "train": {"folds": [0, 1], "precision": "32"},
    "predict": {"batch_size": 3, "tta": "hflip"},
    "tune": {"method": "fixed"},
}
CPU = Compute("cpu", "32-true", "a test")


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Twelve training images of 40×60 in three folds, and four test images; nothing is trained."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("predict")
        patch.setenv("PIPELINE_ROOT", str(root))
        patch.setenv("PIPELINE_INPUT", str(root / "input"))
        tiny = Tiny(root)
        tiny.recipe = {"competition": str(tiny.competition_path), **RECIPE}
        tiny.save()
        yield tiny.run("decode", "clean", "split")


@pytest.fixture
def run(split: Run, request: pytest.FixtureRequest) -> Run:
    """A run of its own, with weights that nobody trained."""
    return with_weights(named(split, request.node.name.replace("[", "-").rstrip("]")))


def named(run: Run, name: str, **changes: Any) -> Run:
    recipe = type(run.recipe).model_validate(merge(run.recipe.model_dump(mode="json"), changes))
    return replace(run, recipe=recipe, name=name)


def changed(run: Run, **changes: Any) -> Run:
    return named(run, run.name, **changes)


def with_weights(run: Run) -> Run:
    """Writes weights as if every member had been trained, each with others."""
    for number, member in enumerate(one for fold in run.trained_folds() for one in run.members(fold)):
        torch.manual_seed(number)
        for path in run.weights(member):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(build_network(run, None).state_dict(), path)
    return run


def array(path: Path) -> np.ndarray:
    return np.load(path)


def outputs(run: Run) -> dict[str, bytes]:
    """Everything that the stage wrote, but for manifests, which hold times."""
    files = sorted((run.folder / "predictions").rglob("*"))
    return {path.name: path.read_bytes() for path in files if path.is_file() and "manifest" not in path.name}


def times(run: Run) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (run.folder / "predictions").glob("*.npy")}


def assert_up_to_date(run: Run) -> None:
    assert [reason.text for state in driver.states(run, "predict") for reason in state.reasons] == []


class Counted(Module):
    """A network whose logits depend on the place, and that notes what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[tuple[int, ...]] = []

    def forward(self, pixels: torch.Tensor) -> Output:
        self.shown.append(tuple(pixels.shape))
        rows = torch.arange(pixels.shape[2])[:, None] / 10
        return Output(pixels.float() / 100 + rows - torch.arange(pixels.shape[3]) / 20)


# --- views -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "number"), [("none", 1), ("hflip", 2), ("flips", 4), ("d4", 8)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_views_are_distinct_and_come_back_exactly(name: str, number: int, dtype: torch.dtype) -> None:
    pixels = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).to(dtype)
    found = views(name)
    assert torch.equal(found[0].forward(pixels), pixels)
    for view in found:
        seen = view.forward(pixels)
        assert seen.shape[2:] == view.size((4, 5))
        assert torch.equal(view.inverse(seen), pixels)
    assert (
        len({(tuple(seen.shape), tuple(seen.flatten().tolist())) for seen in (v.forward(pixels) for v in found)})
        == number
    )


def test_d4_is_all_turns_and_mirrored_turns() -> None:
    pixels = torch.arange(15).reshape(1, 1, 3, 5)
    turns = [torch.rot90(one, times, (2, 3)) for one in (pixels, pixels.flip(3)) for times in range(4)]
    assert {str(turn) for turn in turns} == {str(view.forward(pixels)) for view in views("d4")}


def test_a_turned_view_is_seen_in_turned_tiles_and_averaged_in_place() -> None:
    network = Counted()
    predictor = inference.Predictor([network], CPU, views("d4"), (8, 12), 0.0, None, plain=True)
    pixels = torch.randint(0, 256, (2, 1, 16, 24), dtype=torch.uint8)
    (averaged, plain), wrong = predictor(pixels)
    assert set(network.shown[:16]) == {(2, 1, 8, 12)}
    assert set(network.shown[16:]) == {(2, 1, 12, 8)}
    assert len(network.shown) == 8 * 4

    whole = inference.Predictor([Counted()], CPU, views("d4"), (24, 24), 0.0, None)
    found = whole(pixels)[0][0][0]
    expected = torch.zeros(2, 1, 16, 24)
    for mirrored in (False, True):
        for turn in range(4):
            seen = torch.rot90(pixels.flip(3) if mirrored else pixels, turn, (2, 3))
            back = torch.rot90(Counted()(seen).mask.sigmoid(), -turn, (2, 3))
            expected += (back.flip(3) if mirrored else back) / 8
    np.testing.assert_allclose(found, 255 * expected.numpy(), atol=0.51)
    assert not wrong.any()
    assert not np.array_equal(averaged[0], plain[0])


def test_networks_take_a_turned_image_that_is_padded_to_their_stride() -> None:
    inner = build(ModelSettings(encoder="resnet18"), 1, 1, None)
    network = inference.ready(SegmentationNetwork(inner, 1, "unit", 255), 1, CPU)
    predictor = inference.Predictor([network], CPU, views("d4"), (40, 70), 0.25, None)
    ((mask, presence),), _ = predictor(torch.randint(0, 256, (1, 1, 40, 70)))
    assert (mask.shape, mask.dtype, presence) == ((1, 1, 40, 70), np.uint8, None)


def test_never_is_left_out_before_the_softmax() -> None:
    class Constant(Module):
        def forward(self, pixels: torch.Tensor) -> Output:
            return Output(torch.tensor([9.0, 1.0, 0.0])[:, None, None].repeat(1, 1, 4, 6))

    predictor = inference.Predictor([Constant()], CPU, views("none"), (4, 6), 0.0, (0,))
    ((mask, _),), _ = predictor(torch.zeros(1, 1, 4, 6))
    assert mask.dtype == np.float16
    np.testing.assert_allclose(mask[0, :, 0, 0], [0, 0.7311, 0.2689], atol=1e-3)


# --- speed that changes nothing --------------------------------------------------------------------------------------


def warmed(encoder: str = "resnet18") -> SegmentationNetwork:
    """A network whose BatchNorm has seen something."""
    torch.manual_seed(0)
    network = SegmentationNetwork(build(ModelSettings(encoder=encoder, presence=True), 1, 1, None), 1, "unit", 255)
    network.train()
    for _ in range(3):
        network(torch.randint(0, 256, (4, 1, 64, 64)))
    return network.eval()


def test_a_fused_network_predicts_the_same() -> None:
    network, pixels = warmed(), torch.randint(0, 256, (2, 1, 48, 80))
    norms = sum(isinstance(module, BatchNorm2d) for module in network.modules())
    with torch.no_grad():
        before = network(pixels)
        assert len(inference.fuse(network, 1)) == norms > 20
        after = network(pixels)
    assert not any(isinstance(module, BatchNorm2d) for module in network.modules())
    torch.testing.assert_close(after.mask, before.mask, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after.presence, before.presence, rtol=1e-4, atol=1e-4)
    assert not torch.equal(after.mask, before.mask)


def test_a_convolution_that_is_used_otherwise_too_is_not_fused() -> None:
    class Both(Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = Conv2d(1, 1, 3, padding=1), BatchNorm2d(1)
            self.norm.running_var.fill_(9.0)  # type: ignore[union-attr]

        def forward(self, x: torch.Tensor) -> Output:
            found = self.conv(x.float())
            return Output(self.norm(found) + found)

    network = Both().eval()
    with torch.no_grad():
        before = network(torch.ones(1, 1, 8, 8)).mask
        assert inference.fuse(network, 1) == []
        assert torch.equal(network(torch.ones(1, 1, 8, 8)).mask, before)


def test_weights_cast_once_give_what_autocast_gives() -> None:
    layers = Sequential(Conv2d(1, 8, 3), ReLU(), Conv2d(8, 1, 3)).eval()
    pixels, compute = torch.rand(2, 1, 16, 16), Compute("cpu", "bf16-mixed", "a test")

    class Wrapped(Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, x: torch.Tensor) -> Output:
            return Output(self.layers(x.float()))

    network: Module = Wrapped()
    with torch.inference_mode(), compute.autocast():
        before = network(pixels.to(memory_format=torch.channels_last)).mask
    network = inference.ready(network, 1, compute)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}
    with torch.inference_mode(), compute.autocast():
        assert torch.equal(network(pixels.to(memory_format=torch.channels_last)).mask, before)


def test_a_network_with_parts_that_autocast_leaves_alone_keeps_its_weights() -> None:
    class Exact(Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Conv2d(1, 8, 3), Conv2d(8, 1, 3)

        def forward(self, x: torch.Tensor) -> Output:
            inner = self.first(x.float())
            with torch.autocast("cpu", enabled=False):
                return Output(self.second(inner.float()))

    network = inference.ready(Exact(), 1, Compute("cpu", "bf16-mixed", "a test"))
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


# --- files -----------------------------------------------------------------------------------------------------------


def test_plain_predictions_come_from_the_same_passes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    forward = SegmentationNetwork.forward

    def counting(self: Any, pixels: torch.Tensor) -> Output:
        seen.append(len(pixels))
        return forward(self, pixels)

    monkeypatch.setattr(SegmentationNetwork, "forward", counting)
    monkeypatch.setattr(inference, "fuse", lambda network, channels: [])
    driver.run_stage(run, "predict")
    assert sum(seen) == 2 * (2 * 4 + 2 * 4)  # two views of four held-out and of four test images, in two folds
    plain = with_weights(named(run, f"{run.name}_none", predict={"tta": "none"}))
    driver.run_stage(plain, "predict")
    for fold in (0, 1):
        alone = array(plain.predictions("oof", fold))
        np.testing.assert_array_equal(array(run.predictions("oof", fold, plain=True)), alone)
        assert np.abs(array(run.predictions("oof", fold)).astype(int) - alone).max() > 3
    names = {path.name for path in plain.tta.parent.glob("*.np*")} | {
        path.name for path in plain.tta.parent.glob("tta*")
    }
    assert names == {"oof_fold_0.npy", "oof_fold_1.npy", "test_fold_0.npy", "test_fold_1.npy"}


def test_held_out_images_have_a_file_a_seed_and_test_images_their_mean(split: Run) -> None:
    change: dict[str, Any] = {
        "train": {"seeds": [3, 4], "folds": [0]},
        "predict": {"tta": "none"},
        "model": {"presence": True},
    }
    run = with_weights(named(split, "seeds", **change))
    driver.run_stage(run, "predict")
    names = sorted(path.name for path in (run.folder / "predictions").glob("*.npy"))
    assert names == ["oof_fold_0.npy", "oof_fold_0_seed_4.npy", "test_fold_0.npy"]
    first, second = (array(path) for path in run.oof_predictions(0))
    assert np.abs(first.astype(int) - second).max() > 3
    parts, presences = [], []
    for seed in (3, 4):
        one = named(split, f"seed{seed}", **merge(change, {"train": {"seeds": [seed]}}))
        shutil.copytree(run.fold(0, seed), one.fold(0))
        driver.run_stage(one, "predict")
        assert np.array_equal(array(one.predictions("oof", 0)), (first, second)[seed - 3])
        parts.append(array(one.predictions("test", 0)).astype(float))
        presences.append(read_predictions(one.predictions("test", 0), ["thing"])[2])
    assert np.abs(array(run.predictions("test", 0)) - np.mean(parts, axis=0)).max() <= 1
    found = read_predictions(run.predictions("test", 0), ["thing"])[2]
    np.testing.assert_allclose(found, np.mean(presences, axis=0), atol=2e-5)  # type: ignore[arg-type]
    assert pd.read_csv(run.predictions("test", 0).with_suffix(".csv"))["image_id"].tolist() == TEST_IDS


# --- what test-time augmentation brings ------------------------------------------------------------------------------


def test_the_gain_is_that_of_the_best_thresholds(run: Run) -> None:
    driver.run_stage(run, "predict")
    images = table.read_table(run.table, "train").set_index("image_id", drop=False)
    split, ids = read_folds(run).set_index("image_id"), []
    scores: dict[bool, list[list[float]]] = {True: [], False: []}
    for fold in run.trained_folds():
        blends = {plain: out_of_fold(run, fold, (plain,)) for plain in (True, False)}
        for row, image_id in enumerate(blends[True].ids):
            true = table.true_mask(images.loc[image_id], ["thing"])
            for plain, blend in blends.items():
                masks = [
                    decide(blend.native(row, true.shape[1:]), Rules((Rule(int(threshold)),)))
                    for threshold in THRESHOLDS
                ]
                scores[plain].append([METRICS["dice"](*counts(mask, true)).mean() for mask in masks])
            ids.append(image_id)
    found, measured = read_json(run.tta), read(run)
    assert list(found) == ["tta", "kept", "gain", "standard_error", "confidence", "metric", "images"]
    best = {plain: np.mean(of, axis=0).max() for plain, of in scores.items()}
    assert found["gain"] == pytest.approx(best[False] - best[True])
    assert (found["tta"], found["metric"], found["images"], found["kept"]) == ("hflip", "dice", len(ids), True)
    assert measured.images["image_id"].tolist() == ids
    assert measured.images["fold"].tolist() == split.loc[ids, "fold"].tolist()
    assert measured.plain.shape == measured.tta.shape == (len(ids), len(THRESHOLDS), 3, 1)
    np.testing.assert_allclose(METRICS["dice"](*np.moveaxis(measured.tta, 2, 0))[..., 0], scores[False])
    again = measured.of(pd.Series(ids[::-1]))
    np.testing.assert_array_equal(again[0], measured.plain[::-1])
    with pytest.raises(PipelineError, match=r"tta.npz lacks image nobody"):
        measured.of(pd.Series([ids[0], "nobody"]))


def test_without_a_gain_test_images_are_predicted_plain(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run = changed(run, tune={"method": "search", "confidence": 0.999})
    driver.run_stage(run, "predict")
    found = read_json(run.tta)
    said = capsys.readouterr().err
    assert not found["kept"]
    assert f"test-time augmentation hflip: dice {found['gain']:+.4f} ± {found['standard_error']:.4f} on 8" in said
    assert "less than the 100% of tune.confidence, so the test images are predicted without it" in said
    plain = with_weights(named(run, f"{run.name}_none", predict={"tta": "none"}))
    driver.run_stage(plain, "predict")
    for fold in (0, 1):
        np.testing.assert_array_equal(array(run.predictions("test", fold)), array(plain.predictions("test", fold)))
    assert_up_to_date(run)

    before = times(run)
    fixed = changed(run, tune={"method": "fixed"})  # the test predictions follow, in the same call
    assert len([state for state in driver.states(fixed, "predict") if state.reasons]) == 1
    driver.run_stage(fixed, "predict")
    assert read_json(run.tta)["kept"]
    assert "kept, as tune.method is fixed" in capsys.readouterr().err
    assert {name for name, time in times(run).items() if time != before[name]} == {"test_fold_0.npy", "test_fold_1.npy"}
    assert not np.array_equal(array(run.predictions("test", 0)), array(plain.predictions("test", 0)))
    assert_up_to_date(fixed)


def test_other_weights_bring_everything_up_to_date_in_one_call(run: Run) -> None:
    driver.run_stage(run, "predict")
    before, measured = times(run), run.tta.read_bytes()
    (path,) = run.weights(run.members(1)[0])
    save_file({name: value + 0.3 if "head" in name else value for name, value in load_file(path).items()}, path)
    driver.run_stage(run, "predict")
    again = {name for name, time in times(run).items() if time != before[name]}
    assert again == {"oof_fold_1.npy", "oof_fold_1_plain.npy", "test_fold_1.npy"}
    assert run.tta.read_bytes() != measured
    assert_up_to_date(run)


def test_other_views_predict_again_and_train_nothing(run: Run) -> None:
    from pipeline.train.stage import steps

    for step in steps(run):
        for path in step.outputs:
            path.touch()
        freshness.record(step, 0)
    driver.run_stage(run, "predict")
    d4, none = changed(run, predict={"tta": "d4"}), changed(run, predict={"tta": "none"})
    for other in (d4, none):
        assert [state.reasons for state in driver.states(other, "train")] == [[], []]
        assert all(state.reasons for state in driver.states(other, "predict"))
    driver.run_stage(d4, "predict")
    assert read_json(run.tta)["tta"] == "d4"
    assert_up_to_date(d4)
    left = partial_folder(run.predictions("oof", 2))
    left.mkdir()
    driver.run_stage(none, "predict")
    assert {name.split(".")[0] for name in outputs(none)} == {"oof_fold_0", "oof_fold_1", "test_fold_0", "test_fold_1"}
    assert not left.exists()
    assert_up_to_date(none)


def test_predictions_of_others_are_not_predicted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.predict import stage as predict
    from pipeline.predictions import importing

    ensemble = type(run.recipe).model_validate(run.recipe.model_dump() | {"ensemble": {"one": None, "two": None}})
    assert predict.steps(replace(run, recipe=ensemble)) == []
    arrays = type(run.recipe).model_validate(run.recipe.model_dump() | {"arrays": {"oof": "oof.npy"}})
    step = freshness.Step("predict", "import", run.folder / "m.json", (), (), {})
    monkeypatch.setattr(importing, "steps", lambda run: [step])
    monkeypatch.setattr(importing, "execute", lambda run, waiting: iter(waiting))
    brought = replace(run, recipe=arrays)
    assert predict.steps(brought) == list(predict.execute(brought, [step])) == [step]


def test_class_maps_in_turned_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    monkeypatch.setenv("PIPELINE_INPUT", str(tmp_path / "input"))
    random = np.random.default_rng(0)
    labels = np.repeat(np.repeat(random.integers(0, 3, (14, 6, 5)), 5, 1), 10, 2)
    pairs = np.stack([labels * 60 + random.integers(0, 30, labels.shape), labels], 1).astype(float)
    (tmp_path / "input" / "maps").mkdir(parents=True)
    np.savez(tmp_path / "input" / "maps" / "maps.npz", training_set=pairs[:12], test_set=pairs[12:, 0])
    competition: dict[str, Any] = {"title": "Maps", "reader": "npz_labels", "file": "maps.npz", "metric": "mean_iou"}
    competition |= {"classes": {"ground": 0, "soil": 1, "sand": 2}, "ignore_class": "ground", "split": {"folds": 3}}
    (tmp_path / "maps.yaml").write_text(yaml.safe_dump(competition))
    recipe = merge(RECIPE, {"image": {"size": [16, 32], "store": [32, 64]}, "model": {"presence": True}})
    recipe = merge(recipe, {"competition": "maps.yaml", "predict": {"tta": "d4", "never": ["ground"]}})
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(recipe))
    run = open_run(str(tmp_path / "small.yaml"))
    for stage in ("decode", "clean", "split"):
        driver.run_stage(run, stage)
    driver.run_stage(with_weights(run), "predict")
    measured, total = read(run), np.zeros((2, 3, 3), np.int64)
    images = table.read_table(run.table, "train").set_index("image_id", drop=False)
    for fold in run.trained_folds():
        for number, plain in enumerate((True, False)):
            blend = out_of_fold(run, fold, (plain,))
            assert blend.presence is not None
            for row, image_id in enumerate(blend.ids):
                true = table.true_labels(table.true_mask(images.loc[image_id], run.competition.classes))
                probability = blend.native(row, true.shape)
                np.testing.assert_allclose(probability.sum(0), 1, atol=2e-3)
                total[number] += confusion(probability.argmax(0).astype(np.uint8), true, 3)
    assert total[:, :, 0].sum() == 0  # ground is never predicted
    np.testing.assert_array_equal([measured.plain[:, 0].sum(0), measured.tta[:, 0].sum(0)], total)
    gain = pooled_score(run.competition)(total[1]) - pooled_score(run.competition)(total[0])
    assert read_json(run.tta)["gain"] == pytest.approx(float(gain))
    assert array(run.predictions("test", 0)).shape == (2, 3, 32, 64)


def test_measure_by_hand() -> None:
    competition = load_competition("tgs-salt").model_copy(update={"metric": "iou"})
    plain = np.array([[[5], [10], [10]], [[0], [4], [0]], [[0], [0], [0]]])[:, None]
    tta = np.array([[[10], [10], [10]], [[0], [0], [0]], [[0], [0], [0]]])[:, None]
    worse = np.stack([plain[:, 0], np.tile([[3], [30], [10]], (3, 1, 1))], axis=1)  # a threshold that is never best
    assert measure(worse, tta, np.array(list("abb")), competition, TuneSettings())[0].value > 0
    groups = np.array(["a", "b", "b"])
    search, fixed = TuneSettings(confidence=0.7), TuneSettings(method="fixed")
    found, kept = measure(plain, tta, groups, competition, search)
    assert found.value == pytest.approx(1 - (5 / 15 + 0 + 1) / 3)
    assert (found.confidence, kept) == (1.0, True)
    back, kept = measure(tta, plain, groups, competition, search)
    assert (back.value, kept) == (pytest.approx(-found.value), False)
    assert measure(tta, plain, groups, competition, fixed)[1]
    one_in_four = TuneSettings(presence_prior=0.25)
    weighted, _ = measure(plain, tta, groups, competition, one_in_four)
    assert weighted.value == pytest.approx(0.25 * (10 / 15) + 0.75 * 0.5)


def test_measure_of_class_maps_pools_pixels() -> None:
    competition = load_competition("mars-terrain")
    classes = len(competition.classes)
    right, wrong = np.zeros((2, 4, 1, classes, classes), np.int64)
    right[..., [1, 2], [1, 2]] = 10
    wrong[..., [1, 2], [2, 1]] = 10
    found, kept = measure(wrong, right, np.array(list("abcd")), competition, TuneSettings())
    assert (found.value, found.confidence, kept) == (1.0, 1.0, True)


def test_groups_are_the_competitions_then_clusters_then_images() -> None:
    images = pd.DataFrame({"image_id": ["a", "b", "c"], "group": ["p", "", ""]})
    clusters = pd.DataFrame({"image_id": ["a", "b", "c"], "cluster": ["0", "0", ""]})
    assert groups_of(images, clusters).tolist() == ["p", "cluster 0", "c"]
    assert groups_of(images, clusters[["image_id"]]).tolist() == ["p", "b", "c"]


# --- interrupted -----------------------------------------------------------------------------------------------------


def test_an_interrupted_stage_goes_on_with_the_rest(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = with_weights(named(run, f"{run.name}_undisturbed"))
    driver.run_stage(undisturbed, "predict")
    called, seen = inference.Predictor.__call__, []
    breaks = iter([False, True, False, False, False, True])  # in the second batch of two files

    def breaking(self: Any, pixels: torch.Tensor) -> Any:
        if next(breaks, False):
            raise KeyboardInterrupt
        seen.append(len(pixels))
        return called(self, pixels)

    monkeypatch.setattr(inference.Predictor, "__call__", breaking)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            driver.run_stage(run, "predict")
        assert len(list(run.tta.parent.glob(".*.partial"))) == 1
    driver.run_stage(run, "predict")
    assert seen == [3, 1, 3, 1, 3, 1, 3, 1]  # two folds of four, held out and test: none twice
    assert outputs(run) == outputs(undisturbed)
    assert not list(run.folder.rglob("*.partial"))
    assert_up_to_date(run)


def test_what_was_begun_otherwise_is_begun_anew(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    called, seen = inference.Predictor.__call__, []

    def breaking(self: Any, pixels: torch.Tensor) -> Any:
        seen.append(len(pixels))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return called(self, pixels)

    monkeypatch.setattr(inference.Predictor, "__call__", breaking)
    with pytest.raises(KeyboardInterrupt):
        driver.run_stage(run, "predict")
    driver.run_stage(changed(run, predict={"tta": "flips"}), "predict")
    assert seen == [3, 1, *[3, 1] * 4]


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from pipeline.predictions.files import write_resumable

folder, dies = Path(sys.argv[1]), int(sys.argv[2])
values = np.random.default_rng(0).integers(0, 256, (2, 11, 2, 5, 7), np.uint8)

def predict(first):
    for start in range(first, 11, 2):
        if start == dies:
            os.kill(os.getpid(), signal.SIGKILL)
        print(start)
        presence = values[0, start:start + 2, :, 0, 0] / 255
        yield [(one[start:start + 2], presence) for one in values]

paths = [folder / "oof_fold_0.npy", folder / "oof_fold_0_plain.npy"]
ids = [str(number) for number in range(11)]
write_resumable(paths, (11, 2, 5, 7), np.dtype(np.uint8), predict, ids, ["a", "b"], lambda count: None, "same", 2)
"""


def test_killed_and_run_again_gives_the_same_bytes(tmp_path: Path) -> None:
    def written(folder: Path, dies: int) -> tuple[int, list[int]]:
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-c", KILLED, str(folder), str(dies)]
        done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60)
        return done.returncode, [int(line) for line in done.stdout.split()]

    assert written(tmp_path / "undisturbed", -1) == (0, [0, 2, 4, 6, 8, 10])
    killed = tmp_path / "killed"
    code, _ = written(killed, 6)
    assert (code, [path.name for path in killed.iterdir()]) == (-signal.SIGKILL, [".oof_fold_0.partial"])
    with (killed / ".oof_fold_0.partial" / "oof_fold_0.npy").open("ab") as torn:
        torn.write(b"half a row")
    assert written(killed, -1) == (0, [6, 8, 10])
    files = sorted(path.name for path in killed.iterdir())
    assert files == ["oof_fold_0.csv", "oof_fold_0.npy", "oof_fold_0_plain.csv", "oof_fold_0_plain.npy"]
    for name in files:
        assert (killed / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()
    presence = read_predictions(killed / files[1], ["a", "b"])[2]
    assert presence is not None
    np.testing.assert_allclose(presence, array(killed / files[1])[:, :, 0, 0] / 255, atol=1e-5)


# --- bad input -------------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    path, ids, begun = tmp_path / "test_fold_0.npy", [str(number) for number in range(8)], []

    def write(value: int, fingerprint: str) -> None:
        def predict(first: int) -> Iterator[list[Predicted]]:
            begun.append(first)
            return ([(np.full((2, 1, 64, 64), value, np.uint8), None)] for _ in range(first, 8, 2))

        shape, dtype = (8, 1, 64, 64), np.dtype(np.uint8)
        write_resumable([path], shape, dtype, predict, ids, ["thing"], lambda count: None, fingerprint, 2)

    write(7, "first")
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(PipelineError, match="test_fold_0.npy could not be written: File too large. What was there"):
            write(8, "second")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {file: file.read_bytes() for file in before} == before
    write(8, "second")
    assert begun == [0, 0, 4]  # it goes on where the disk was full
    assert (array(path) == 8).all()
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10))
    with pytest.raises(PipelineError, match="probabilities of 8 images take .* make room"):
        write(9, "third")
    assert (array(path) == 8).all()


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
        driver.run_stage(run, "predict")
    for part in ("fold 1, seed 7 (", "fold_1_seed_7/best.safetensors) gives", f"of image {first} that are no numbers"):
        assert part in str(caught.value)
    written = {name for name in outputs(run) if name.endswith(".npy")}
    assert written - {f"oof_fold_{fold}{seed}_plain.npy" for fold in "01" for seed in ("", "_seed_7")} == {
        "oof_fold_0.npy", "oof_fold_0_seed_7.npy", "oof_fold_1.npy",
    }  # fmt: skip
    assert not list(run.folder.rglob(".*.partial"))


def test_weights_that_are_missing_or_of_another_network(run: Run) -> None:
    (path,) = run.weights(run.members(1)[0])
    other = changed(run, model={"options": {"channels": [4, 6]}})
    with pytest.raises(PipelineError, match=r"fold_0/best.safetensors does not fit this recipe's network: .*model"):
        driver.run_stage(other, "predict")
    path.unlink()
    with pytest.raises(PipelineError, match=r"weights of folds 0 and 1, and those of 1 are missing"):
        driver.run_stage(run, "predict")
    with pytest.raises(PipelineError, match=r"fold_1/best.safetensors does not exist; the train stage of .* makes it"):
        inference.load(run, path, device.choose("32"))
