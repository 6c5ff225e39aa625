"""Training as a whole, on twelve tiny images: members, what they start from, what they leave, and why they stop."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import segmentation_models_pytorch as smp
import torch
from conftest import Tiny
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trainings import hashes, named, prepare, summary, train

from pipeline.core import driver
from pipeline.core.config.settings import merge
from pipeline.core.config.training import ModelSettings
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json, write_text
from pipeline.core.freshness import hash_file
from pipeline.core.run import Member, Run, open_run
from pipeline.core.trainings import MEASURED
from pipeline.masks.metrics import METRICS
from pipeline.networks.models import SegmentationNetwork
from pipeline.running import check_training
from pipeline.train import callbacks, checkpoints, finish, fit, module
from pipeline.train.batches import loaders
from pipeline.train.batches.augment import Augmentation
from pipeline.train.batches.dataset import Batch, TrainDataset
from pipeline.train.module import CHECKED, SegmentationModule
from pipeline.train.stage import preflight

EVERYTHING: dict[str, Any] = {
    "image": {
        "size": [64, 64],
        "fit": "pad",
        "position": "random",
        "normalize": "dataset",
        "preprocess": [{"CLAHE": {}}],
    },
    "model": {
        "encoder": "resnet18",
        "options": {
            "channels": None,
            "decoder_channels": [16, 16, 8, 8, 8],
            "deep_supervision": True,
            "hypercolumn": True,
            "attention": "cbam",
            "attention_reduction": 4,
            "dropout": 0.1,
        },
        "presence": True,
        "dropout": 0.2,
    },
    "loss": {"bce": 1, "dice": {"weight": 0.5, "per_image": True}, "presence": 0.1},
    "train": {
        "folds": [0],
        "epochs": 4,
        "seeds": [0, 5],
        "snapshots": 2,
        "schedule": {"name": "restarts", "warm_up": 0.5},
        "optimizer": "lookahead_radam",
        "encoder_learning_rate": 0.001,
        "freeze_encoder": 1,
        "accumulate": 2,
        "gradient_clip": 1,
        "ema": 0.9,
        "half_size": 0.25,
        "sampler": {"positive_share": 0.6, "one_per_group": True},
        "mix": {"cutmix": 0.3, "mixup": 0.3},
    },
}


# --- reproducible ----------------------------------------------------------------------------------------------------


def test_with_everything_on_a_resumed_run_ends_in_the_same_weights(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = smp.encoders.get_encoder("resnet18", weights=None)
    for name, value in encoder.state_dict().items():
        if "running" in name:
            value.add_(0.01)
    save_file(encoder.state_dict(), tiny.root / "resnet18.safetensors")
    frozen = {"weights": str(tiny.root / "resnet18.safetensors"), "freeze": 1, "freeze_norm": True}
    run = prepare(tiny, merge(EVERYTHING, {"model": frozen}), group=True)
    train(run, "validate")
    undisturbed = hashes(run)
    _check_frozen(encoder.state_dict(), load_file(run.weights(Member(0, 0))[-1]))
    assert list(undisturbed) == [
        f"{folder}/snapshot_{number}.safetensors" for folder in ("fold_0", "fold_0_seed_5") for number in (1, 2)
    ]
    assert len(set(undisturbed.values())) == 4
    assert not list(run.folder.rglob("*.ckpt"))

    ended = callbacks.ShowProgress.on_train_epoch_end
    broken = iter([False, True, False, False, True, False])  # in the second epoch of the first seed, and once later

    def breaks(self: Any, trainer: Any, module: Any) -> None:
        ended(self, trainer, module)
        if next(broken, False):
            raise KeyboardInterrupt

    monkeypatch.setattr(callbacks.ShowProgress, "on_train_epoch_end", breaks)
    other = named(run, "interrupted")
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(other)
    train(other, "validate")
    assert hashes(other) == undisturbed
    for one, same in zip(run.fold_folder(0).glob("history.csv"), other.fold_folder(0).glob("history.csv"), strict=True):
        columns = ["epoch", "train/loss", "valid/loss", "valid/score", "learning_rate"]
        pd.testing.assert_frame_equal(pd.read_csv(one)[columns], pd.read_csv(same)[columns])
    counts = [np.load(folder / "epochs.npz")["counts"] for folder in (run.fold_folder(0), other.fold_folder(0))]
    np.testing.assert_array_equal(*counts)
    predictions = [np.load(one.predictions("oof", 0)) for one in (run, other)]
    np.testing.assert_array_equal(*predictions)
    presence = pd.read_csv(run.predictions("oof", 0).with_suffix(".csv"))["presence_thing"]
    assert presence.between(0, 1).all()
    assert presence.nunique() > 1


def _check_frozen(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> None:
    """The first stage and all statistics are the file's to the last bit, and the other stages have learned."""
    same = {key: torch.equal(value, after[f"network.encoder.{key}"]) for key, value in before.items()}
    kept = [key for key in same if key.startswith("layer1") or "running" in key or "num_batches" in key]
    assert all(same[key] for key in kept)
    assert not any(value for key, value in same.items() if key not in kept and not key.startswith(("conv1", "bn1")))


# --- members ---------------------------------------------------------------------------------------------------------


def test_predictions_are_the_mean_of_the_members(tiny: Tiny) -> None:
    run = train(prepare(tiny, {"train": {"seeds": [3, 4], "folds": [0]}}), "validate", "predict")
    alone = [named(run, f"alone{seed}", {"train": {"seeds": [seed]}}) for seed in (3, 4)]
    for one in alone:
        train(one, "validate", "predict")
    assert list(hashes(run).values()) == [value for one in alone for value in hashes(one).values()]
    mean, *parts = (np.load(one.predictions("test", 0)).astype(float) for one in (run, *alone))
    assert np.abs(mean - np.mean(parts, axis=0)).max() <= 1
    assert np.abs(parts[0] - parts[1]).max() > 3
    assert [path.read_bytes() for path in run.oof_predictions(0)] == [
        one.oof_predictions(0)[0].read_bytes() for one in alone
    ]


def test_another_seed_is_trained_beside_the_first(tiny: Tiny) -> None:
    run = train(prepare(tiny, {"train": {"folds": [0]}}))
    before = hashes(run)
    more = train(named(run, run.name, {"train": {"seeds": [0, 1]}}))
    assert hashes(more).items() > before.items()
    assert len(hashes(more)) == 2


@pytest.mark.parametrize(
    ("settings", "names"),
    [({"keep": "last", "early_stopping": None}, ["last"]), ({"keep": "best", "monitor": "score"}, ["best"])],
)
def test_which_weights_are_kept(tiny: Tiny, settings: dict[str, Any], names: list[str]) -> None:
    run = train(prepare(tiny, {"train": {"folds": [0], "epochs": 3, "learning_rate": 0.02, **settings}}))
    assert list(hashes(run)) == [f"fold_0/{name}.safetensors" for name in names]
    rows = pd.read_csv(run.fold_folder(0) / "history.csv")
    best = 2 if settings["keep"] == "last" else int(rows["valid/score"].idxmax())
    assert summary(run)["best_epoch"] == best
    assert summary(run)["best_score"] == pytest.approx(rows["valid/score"][best])


def test_a_checkpoint_knows_its_best_score_where_the_folder_was_moved(tmp_path: Path) -> None:
    before, after = (
        callbacks.ModelCheckpoint(filename="best", monitor="valid/score", mode="max", dirpath=tmp_path / name)
        for name in ("before", "after")
    )
    best = str(tmp_path / "before" / "best.ckpt")
    before.best_k_models, before.best_model_score = {best: torch.tensor(0.9)}, torch.tensor(0.9)
    before.best_model_path = before.kth_best_model_path = best
    after.load_state_dict(before.state_dict())
    assert after.best_model_score == 0.9
    assert after.best_model_path == after.kth_best_model_path == str(tmp_path / "after" / "best.ckpt")
    assert list(after.best_k_models) == [after.best_model_path]


def test_patience_begins_with_the_whole_size(tiny: Tiny) -> None:
    still = {"epochs": 6, "half_size": 0.5, "early_stopping": 1, "learning_rate": 1e-12, "folds": [0]}
    still["monitor"] = "score"
    run = train(prepare(tiny, {"train": still}))
    # the first of the whole size, and one or two more
    assert len(pd.read_csv(run.fold_folder(0) / "history.csv")) in (4, 5)
    assert list(hashes(run)) == ["fold_0/best.safetensors"]  # what early stopping keeps where `keep` is not set


def test_a_checkpoint_that_cannot_be_written_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:783] . PytorchStreamWriter failed writing file\nmore")

    (tmp_path / "last.ckpt").write_text("before")
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(PipelineError, match="last.ckpt could not be written: .* failed writing file"):
        checkpoints.AtomicCheckpointIO().save_checkpoint({}, tmp_path / "last.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert (tmp_path / "last.ckpt").read_text() == "before"


def test_statistics_are_those_of_all_pixels(tiny: Tiny) -> None:
    run = prepare(tiny)
    dataset = TrainDataset(run.pixels, np.arange(12), Augmentation([]), 0)
    mean, deviation = loaders.statistics(dataset)
    pixels = np.asarray(dataset.images, np.float64)
    np.testing.assert_allclose([mean, deviation], [pixels.mean((0, 1, 2)), pixels.std((0, 1, 2))])


def test_a_network_that_cannot_learn_from_one_image(tiny: Tiny) -> None:
    run = prepare(tiny, {"image": {"size": [64, 64]}, "train": {"batch_size": 1, "epochs": 1, "folds": [0]}})
    model = ModelSettings(architecture="PAN", encoder="resnet18", weights="none")
    run = replace(run, recipe=run.recipe.model_copy(update={"model": model}))
    with pytest.raises(PipelineError, match="PAN normalises over the images of a batch .* set train.batch_size to 2"):
        train(run)


@pytest.mark.parametrize(("train", "valid", "reported"), [(0.45, 0.0, True), (0.45, 0.3, False), (0.1, 0.0, False)])
def test_a_gap_between_training_and_held_out_dice_is_reported(
    train: float, valid: float, reported: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    finish.warn_batchnorm_gap({"train/dice": train, "valid/dice": valid}, "fold 0")
    assert ("BatchNorm's running statistics lag" in " ".join(capsys.readouterr().err.split())) == reported


# --- other runs ------------------------------------------------------------------------------------------------------


def test_a_fold_starts_from_the_same_fold_of_another_run(tiny: Tiny) -> None:
    teacher = train(prepare(tiny))
    still = {"start_from": teacher.name, "learning_rate": 1e-12, "epochs": 1, "weight_decay": 0.0}
    pupil = train(named(teacher, "pupil", {"train": still, "model": {"weights": "not_needed.pth"}}))
    for fold in (0, 1):
        weights, started = (load_file(run.fold_folder(fold) / "last.safetensors") for run in (teacher, pupil))
        for name in weights:
            if "running" not in name and "num_batches" not in name:
                torch.testing.assert_close(started[name], weights[name], atol=1e-6, rtol=0, msg=name)
    folds = pd.read_csv(teacher.folds_file, dtype=str)
    folds["fold"] = folds["fold"].map({"0": "1", "1": "0", "2": "2"})
    folds.to_csv(teacher.folds_file, index=False)
    with pytest.raises(PipelineError, match="not trained on the folds that are now in .* its fold 0 has seen images"):
        train(named(teacher, "other", {"train": still}))


def test_weights_that_have_seen_the_images_held_out_now_do_not_predict(tiny: Tiny) -> None:
    run = train(prepare(tiny))
    folds = pd.read_csv(run.folds_file, dtype=str)
    moved = folds["fold"].map({"0": "1", "1": "0", "2": "2"})
    write_text(run.folds_file, folds.assign(fold=moved).to_csv(index=False))
    with pytest.raises(
        PipelineError, match=r"fold_0 was not trained on the folds that are now in .* Restore the old folds, or train"
    ):
        driver.run_stage(run, "validate")
    write_text(run.folds_file, folds.to_csv(index=False))
    driver.run_stage(run, "validate")
    assert run.predictions("oof", 0).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start_from": "nobody"}, "train.start_from is nobody, and .*Trained so far: small"),
        ({"pseudo": {"recipe": "nobody"}}, "train.pseudo.recipe is nobody, and "),
        ({"pseudo": {"recipe": "pupil"}}, "which is this run itself"),
        ({"pseudo": {"recipe": "small"}}, "test_fold_0.npy does not exist; finish that run first"),
    ],
)
def test_other_runs_that_are_not_there(tiny: Tiny, change: dict[str, Any], message: str) -> None:
    run = prepare(tiny, {"train": {"folds": [0], "epochs": 1}})
    train(run)
    with pytest.raises(PipelineError, match=message):
        train(named(run, "pupil", {"train": change}))


def test_pseudo_labels_cannot_leak(tiny: Tiny) -> None:
    """The test images are the held-out images of fold 0. Teachers of other folds, who learned from them, know their
    masks: it changes nothing. Only if the teacher of fold 0 itself knew them would its pupil gain."""
    run = prepare(tiny, {"train": {"epochs": 1}})
    folds = pd.read_csv(run.folds_file, dtype=str)
    held_out = [name for name in folds.loc[folds["fold"] == "0", "image_id"]]
    for test, name in zip(["t1", "t2", "t3", "t4"], held_out, strict=True):
        tiny.path(test).write_bytes(tiny.path(name).read_bytes())
    run = tiny.run("decode", "clean", "split")
    train(run, "predict")
    rows = pd.read_parquet(run.table).query("subset == 'train'").reset_index(drop=True)
    truth = np.load(run.pixels / "train_masks.npy")[[rows.index[rows["image_id"] == name][0] for name in held_out]]
    answers = truth * np.uint8(255)

    def pupil(name: str, knows: list[int]) -> Run:
        teacher = named(run, f"teacher_of_{name}")
        shutil.copytree(run.folder, teacher.folder)
        for fold in (0, 1):
            known = answers if fold in knows else np.full_like(answers, 128)
            np.save(teacher.predictions("test", fold), known)
        change = {"pseudo": {"recipe": teacher.name, "weight": 5.0}, "epochs": 25, "folds": [0]}
        return train(named(run, name, {"train": change}))

    nobody, others, itself = pupil("nobody", []), pupil("others", [1]), pupil("itself", [0, 1])
    assert hashes(nobody) == hashes(others)
    assert hashes(nobody) != hashes(itself)
    last = [pd.read_csv(one.fold_folder(0) / "history.csv")["valid/loss"].min() for one in (nobody, itself)]
    assert last[1] < last[0] - 0.05  # the check can fail: where there is a leak, it shows


# --- a final model ---------------------------------------------------------------------------------------------------


def test_a_final_model_on_all_images(tiny: Tiny) -> None:
    run = train(prepare(tiny, {"train": {"final": True, "epochs": 3, "schedule": {"name": "cosine"}}}))
    for stage in ("validate", "tune", "predict", "encode"):
        driver.run_stage(run, stage)
    epochs = max(1, round(np.mean([summary(run, fold)["best_epoch"] + 1 for fold in (0, 1)])))
    final = summary(run, None)
    assert (final["fold"], final["epochs"], final["best_score"]) == (None, epochs, None)
    rates = [pd.read_csv(run.fold_folder(fold) / "history.csv")["learning_rate"][:epochs] for fold in (0, 1, None)]
    np.testing.assert_allclose(rates[2], np.mean(rates[:2], axis=0), rtol=1e-6)
    names = sorted(path.name for path in run.predictions("oof", 0).parent.glob("*.npy"))
    assert names == ["oof_fold_0.npy", "oof_fold_1.npy", "test_final.npy"]
    record = json.loads(run.record.read_text())
    assert "no out-of-fold score" in record["expect"]["remark"]
    assert list(record["folds"]) == ["0", "1", "final"]
    assert not (run.fold_folder(None) / "epochs.npz").exists()


# --- what is written down --------------------------------------------------------------------------------------------


def test_every_epoch_of_every_held_out_image_is_kept(tiny: Tiny) -> None:
    run = train(prepare(tiny, {"train": {"folds": [0], "epochs": 3}}))
    stored = np.load(run.fold_folder(0) / "epochs.npz")
    rows = pd.read_csv(run.fold_folder(0) / "history.csv")
    folds = pd.read_csv(run.folds_file, dtype=str)
    assert (
        stored["image_id"].tolist()
        == folds.loc[(folds["fold"] == "0") & (folds["use"] == "train"), "image_id"].tolist()
    )
    scores = METRICS["dice"](*stored["counts"].transpose(2, 0, 1, 3).astype(np.int64)).mean((1, 2))
    np.testing.assert_allclose(scores, rows["valid/score"], rtol=1e-6)
    overlaps = METRICS["iou"](*stored["counts"].transpose(2, 0, 1, 3).astype(np.int64)).mean((1, 2))
    np.testing.assert_allclose(overlaps, rows["valid/iou"], rtol=1e-6)
    assert json.loads((run.fold_folder(0) / "history.json").read_text())[2]["valid/score"] == pytest.approx(scores[2])
    assert summary(run)["images_per_second"] > 0
    assert 0.1 < summary(run)["memory_gib"] < 100 and summary(run)["gpu_memory_gib"] is None


def test_iou_of_all_pixels() -> None:
    binary = SimpleNamespace(kind="binary")
    assert module._pooled_iou(np.array([[6], [8], [10]]), binary) == 6 / 12
    matrix = np.array([[50, 5, 0], [9, 6, 2], [9, 0, 4]])  # rows are true classes
    assert module._pooled_iou(matrix, SimpleNamespace(kind="multiclass", ignored=None)) == pytest.approx(
        np.mean([50 / 73, 6 / 22, 4 / 15])
    )
    # true pixels of class 0 are left out, and predictions of it are misses
    assert module._pooled_iou(matrix, SimpleNamespace(kind="multiclass", ignored=0)) == pytest.approx(
        np.mean([6 / 17, 4 / 15])
    )
    counts = np.array([[[0], [0], [0]], [[1], [2], [2]]])
    assert module._iou(counts, binary) == pytest.approx((1 + 1 / 3) / 2)


def test_an_earlier_version_s_unfinished_training_goes_on(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(self: Any, trainer: Any, network: Any) -> None:
        for row in self.history.rows:  # as it was before IoU was measured
            row.pop("train/iou", None), row.pop("valid/iou", None)
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt

    run = prepare(tiny, {"train": {"folds": [0]}})
    with monkeypatch.context() as patch:
        patch.setattr(callbacks.ShowProgress, "on_train_epoch_end", stops)
        with pytest.raises(KeyboardInterrupt):
            train(run)
    train(run)
    rows = pd.read_csv(run.fold_folder(0) / "history.csv")
    assert rows["valid/iou"].notna().tolist() == [False, True]  # the second was interrupted, and came again
    assert rows["valid/score"].notna().all() and rows["epoch"].tolist() == [0, 1]


def test_tensorboard_has_curves_graph_and_pictures(tiny: Tiny) -> None:
    run = train(prepare(tiny, {"train": {"folds": [0]}}))
    events = EventAccumulator(str(run.fold_folder(0) / "tensorboard"), {"images": 0, "scalars": 0}).Reload()
    tags = events.Tags()
    for name in MEASURED[1:]:
        assert len(events.Scalars(name)) == 2, name
    assert len(events.Images("valid/image_truth_probability_mask")) == 2
    assert events.Images("valid/image_truth_probability_mask")[0].width == 4 * 32
    assert tags["graph"]
    rows = pd.read_csv(run.fold_folder(0) / "history.csv")
    np.testing.assert_allclose([one.value for one in events.Scalars("train/dice")], rows["train/dice"], rtol=1e-5)


@pytest.mark.parametrize("name", ["mlflow", "wandb", "trackio"])
def test_a_logger_that_is_not_installed(tiny: Tiny, name: str) -> None:
    run = prepare(tiny, {"train": {"folds": [0], "loggers": [name]}})
    with pytest.raises(PipelineError, match=f"names {name}, which is not installed: pip install {name}"):
        train(run)


# --- stops for good reasons ------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_the_fold(tiny: Tiny) -> None:
    change = {"optimizer": "momentum", "learning_rate": 1e30, "epochs": 3, "schedule": {"name": "constant"}}
    run = prepare(tiny, {"train": {"folds": [0], **change}})
    expected = (
        r"fold 0: the loss is (nan|inf) in epoch \d, batch \d, at learning rate 1.00e\+30, with the images a\d\d, "
    )
    with pytest.raises(PipelineError, match=expected):
        train(run)
    assert not (run.fold_folder(0) / "manifest.json").exists()


def test_a_gpu_is_not_asked_for_every_loss(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGpu:
        device = torch.device("cuda")

        def __init__(self, value: float) -> None:
            self.value = value

        def detach(self) -> torch.Tensor:
            return torch.tensor(self.value)

    monkeypatch.setattr(SegmentationModule, "trainer", SimpleNamespace(num_training_batches=CHECKED + 10))
    module = SegmentationModule(torch.nn.Identity(), prepare(tiny), Member(0, 0), (["a", "b"], []))
    batch = Batch(*(torch.tensor([1]) for _ in range(4)))
    wrong, last = CHECKED + 2, CHECKED + 9
    for index in range(last):
        module._check(OnGpu(torch.nan if index == wrong else 1.0), batch, index)  # type: ignore[arg-type]
        assert len(module.unchecked) == (index + 1) % CHECKED
    with pytest.raises(PipelineError, match=f"fold 0: the loss is nan in epoch 1, batch {wrong + 1}, .* images b. "):
        module._check(OnGpu(1.0), batch, last)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("can't allocate memory: you"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
def test_no_memory_left(tiny: Tiny, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    run = prepare(tiny, {"train": {"folds": [0]}})
    monkeypatch.setattr("pipeline.train.fit.Trainer.fit", fails)
    with pytest.raises(PipelineError, match="batches of 4: try --set train.batch_size=2 --set train.accumulate=2"):
        train(run)


def test_no_memory_left_for_held_out_images(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    run, advice = prepare(tiny, {"train": {"folds": [0], "epochs": 1}}), "batches of 4 images to predict: try --set "
    with monkeypatch.context() as patch, pytest.raises(PipelineError, match=f"{advice}predict.batch_size=2"):
        patch.setattr(SegmentationModule, "validation_step", fails)
        train(run)
    train(run)
    monkeypatch.setattr("pipeline.networks.predictor.Predictor.__call__", fails)
    with pytest.raises(PipelineError, match=advice):
        train(run, "validate")


@pytest.mark.parametrize(("level", "word"), [(-9.0, "empty"), (9.0, "full")])
def test_a_fold_that_collapses_says_so(tiny: Tiny, level: float, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tiny.root / f"stubborn_{word}.py").write_text(
        "import torch\n\n\n"
        "class Stubborn(torch.nn.Module):\n"
        "    def __init__(self, channels, classes, level):\n"
        "        super().__init__()\n"
        "        self.level, self.scale = level, torch.nn.Parameter(torch.zeros(classes, 1, 1))\n\n"
        "    def forward(self, images):\n"
        "        return self.level + 0 * self.scale * images[:, :1]\n"
    )
    model = {"architecture": f"stubborn_{word}:Stubborn", "options": {"level": level}}
    run = prepare(tiny, {"train": {"folds": [0], "epochs": 1}})
    run = named(run, "stubborn", {"model": {**model, "encoder": "none"}})
    run = replace(run, recipe=run.recipe.model_copy(update={"model": type(run.recipe.model)(**model)}))
    train(run, "validate", "predict")
    assert summary(run)["collapsed"] == word
    assert f"EVERY HELD-OUT IMAGE IS PREDICTED {word.upper()}" in capsys.readouterr().err
    assert run.recipe.model.architecture.split(":")[0] + ".py" in "".join(
        read_json(run.fold_folder(0) / "manifest.json")["inputs"]
    )


def test_one_image_a_group_needs_groups(tiny: Tiny) -> None:
    run = prepare(tiny, {"train": {"folds": [0], "sampler": {"one_per_group": True}}})
    with pytest.raises(PipelineError, match="one_per_group needs groups, but the images have none"):
        train(run)


def test_nothing_of_a_wrong_recipe_is_trained(tiny: Tiny) -> None:
    run = prepare(tiny)
    for change, message in (
        ({"train": {"optimizer": "adamm"}}, "train.optimizer is `adamm`"),
        ({"loss": {"cross_entropy": {"class_weights": [1, 2, 3]}}}, "loss.cross_entropy.class_weights"),
        ({"train": {"mix": {"cutmix": 0.8, "mixup": 0.8}}}, "train.mix"),
    ):
        with pytest.raises(PipelineError, match=message):
            preflight(named(run, "other", change))
    assert not list((run.competition_folder / "other").rglob("*.safetensors"))
    assert open_run(str(tiny.recipe_path)).folder == run.folder


def test_paths(tiny: Tiny) -> None:
    run = prepare(tiny, {"train": {"seeds": [2, 0]}})
    assert run.fold_folder(1) == run.fold_folder(1, 2) == Path(run.folder / "fold_1")
    assert run.fold_folder(1, 0) == run.folder / "fold_1_seed_0"
    assert run.fold_folder(None, 0) == run.folder / "final_seed_0"


@pytest.mark.parametrize("kept", [{}, {"snapshots": 2, "schedule": {"name": "restarts"}}])
def test_the_moving_average_is_kept(tiny: Tiny, kept: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    write, seen = finish.write_weights, []

    def compare(checkpoint: Path, path: Path) -> None:
        write(checkpoint, path)
        found = torch.load(checkpoint, weights_only=False)
        averaged, current = found["state_dict"], found["current_model_state"]
        for key, value in load_file(path).items():
            assert torch.equal(value, averaged[f"network.{key}"])
        seen.append(any(not torch.equal(averaged[key], current[key]) for key in averaged))

    monkeypatch.setattr(finish, "write_weights", compare)
    train(prepare(tiny, {"train": {"folds": [0], "epochs": 2, "ema": 0.9, **kept}}))
    assert seen == [True] * (2 if kept else 1)


def test_a_moving_average_forgets_the_weights_of_the_start() -> None:
    network = torch.nn.BatchNorm2d(1)
    torch.nn.init.constant_(network.weight, 1.0)
    shares = {}
    for decay in (0.999, 0.5):
        average = callbacks.MovingAverage(decay, torch.device("cpu"))
        averaged = torch.optim.swa_utils.AveragedModel(network, **average._kwargs, use_buffers=True)
        averaged.update_parameters(network)  # the first takes the weights as they are
        after = torch.nn.BatchNorm2d(1)
        torch.nn.init.constant_(after.weight, 0.0)
        after.num_batches_tracked += 7
        for number in range(240):
            average._latest_update_step = number + 1  # as Lightning counts
            averaged.update_parameters(after)
        shares[decay] = float(averaged.module.weight.detach())
        assert averaged.module.num_batches_tracked == 7
    assert 0 <= shares[0.5] <= shares[0.999] < 1e-6  # without a warm-up it would be 0.999 ** 240 = 0.79


def test_missing_raw_files_and_weights_are_reported_at_once(tiny: Tiny) -> None:
    run = open_run(str(tiny.recipe_path), assignments=["model.weights=w.pth"])
    weights = "model.weights: w.pth does not exist; expected a file, `imagenet` or `none`."
    with pytest.raises(PipelineError) as alone:
        check_training(run, force=False, decodes=True)
    assert str(alone.value) == weights
    shutil.rmtree(tiny.input)
    with pytest.raises(PipelineError) as both:
        check_training(run, force=False, decodes=True)
    raw, besides = str(both.value).splitlines()
    assert raw.startswith(f"{tiny.input} does not exist. Put the raw files of Tiny there")
    assert besides == f"Also: {weights}"


def test_a_missing_library_for_prediction_is_reported_before_training(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(str(tiny.recipe_path), assignments=["predict.backend=openvino"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PipelineError, match="OpenVINO is not installed: pip install 'openvino"):
        check_training(run, force=False, decodes=False)
    check_training(run, force=False, decodes=False, predicts=False)  # trained here, predicted elsewhere


def test_a_run_that_starts_from_another_normalises_as_that_one_did(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"

    def started(before: str, after: str, **pixels: list[float]) -> SegmentationNetwork:
        first, second = (SegmentationNetwork(torch.nn.Conv2d(3, 1, 1), 3, one, 255) for one in (before, after))
        for network in (first, second):
            if network.normalize == "encoder":
                network.set_statistics([1.0 if network is first else 5.0] * 3, [2.0] * 3)
        save_file({key: value.contiguous() for key, value in first.state_dict().items()}, path)
        write_text(tmp_path / "fold.json", json.dumps({"sha256": [hash_file(path)], "pixels": pixels}))
        fit._start(second, path)
        assert torch.equal(second.network.weight, first.network.weight)
        return second

    assert started("encoder", "encoder").mean.flatten().tolist() == [1.0] * 3
    assert started("imagenet", "encoder", mean=[3.0] * 3, std=[4.0] * 3).mean.flatten().tolist() == [3.0] * 3
    assert started("image", "encoder").mean.flatten().tolist() == [5.0] * 3  # which has none to take over
    with pytest.raises(PipelineError, match="contains its own mean and deviation.*set image.normalize=encoder"):
        started("encoder", "imagenet")
