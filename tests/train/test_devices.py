"""One training on two devices, here two CPU processes: the same batches, the same weights, every image scored once."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Tiny
from jobs import take_part
from safetensors.torch import load_file
from timm.layers import BatchNormAct2d
from trainings import named, prepare, summary, train

from pipeline.core.config.training import TrainSettings
from pipeline.core.errors import PipelineError
from pipeline.core.launch import Launched, launched
from pipeline.core.trainings import MEASURED
from pipeline.networks.device import Compute
from pipeline.train import collectives, devices
from pipeline.train.batches.sampling import EpochSampler
from pipeline.train.batches.sharing import Share, SharedBatches
from pipeline.train.module import SegmentationModule

CPU = Compute("cpu", "32-true", "")
SHARED: dict[str, Any] = {
    "model": {"presence": True},
    "loss": {"bce": 1, "dice": 1, "presence": 0.1},
    "train": {
        "folds": [0],
        "epochs": 3,
        "batch_size": 3,
        "keep": "average",
        "half_size": 0.3,
        "augment_on": "device",
        "sampler": {"positive_share": 0.6},
        "mix": {"cutmix": 0.5},
    },
    "predict": {"batch_size": 3},
}
"""Batches that two devices cannot halve, and two held-out batches of unequal size."""


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_devices_share_each_batch_of_one_device(count: int) -> None:
    sampler = EpochSampler(23, 5)
    order = list(sampler)
    shares = [Share(rank, count, batch=5) for rank in range(count)]
    batches = list(zip(*(SharedBatches(sampler, share) for share in shares), strict=True))
    assert [sum(parts, []) for parts in batches] == [order[first : first + 5] for first in range(0, 20, 5)]
    assert all(max(map(len, parts)) - min(map(len, parts)) <= 1 for parts in batches)


@pytest.mark.parametrize("images", [1, 4, 10, 11])
def test_held_out_images_are_on_one_device_each(images: int) -> None:
    rows = np.arange(images) + 100
    shares = [Share(rank, 3, batch=3).held_out(rows, 2) for rank in range(3)]
    np.testing.assert_array_equal(np.sort(np.concatenate(shares)), rows)


def test_two_processes_train_as_one_and_go_on_after_one_was_killed(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = prepare(tiny, SHARED)
    shared = named(run, "shared", {"train": {"devices": 2}})
    monkeypatch.setattr(devices.multiprocessing, "get_context", _forked(multiprocessing.get_context))
    began = SegmentationModule.on_train_epoch_start

    def dies(self: Any) -> None:
        if self.share.rank == 1 and self.current_epoch == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        began(self)

    with monkeypatch.context() as patched:
        patched.setattr(SegmentationModule, "on_train_epoch_start", dies)
        with pytest.raises(PipelineError, match=r"device 2 of 2 ended with code -9 .*The same command continues"):
            train(shared)
    assert not multiprocessing.active_children()
    assert len(pd.read_csv(shared.fold_folder(0) / "history.csv")) == 2
    capsys.readouterr()
    train(shared)
    said = capsys.readouterr().err
    assert said.count("resuming from") == said.count(" 3/3 ") == 1
    train(run)
    _check_alike(run.fold_folder(0), shared.fold_folder(0))
    assert summary(run).keys() == summary(shared).keys()
    names = [{path.name for path in folder.iterdir()} for folder in (run.fold_folder(0), shared.fold_folder(0))]
    assert names[0] == names[1]
    capsys.readouterr()
    train(named(run, "shared", {"train": {"devices": 1}}))  # how many devices makes no training stale
    assert "train: up to date" in capsys.readouterr().err


def _check_alike(one: Path, other: Path) -> None:
    """The same images in the same order, and numbers that differ by the order of sums."""
    weights = [load_file(folder / "average.safetensors") for folder in (one, other)]
    for name, values in weights[0].items():
        torch.testing.assert_close(weights[1][name], values, atol=1e-4, rtol=1e-4, msg=name)
    epochs = [np.load(folder / "epochs.npz") for folder in (one, other)]
    ids = epochs[0]["image_id"].tolist()
    assert ids == epochs[1]["image_id"].tolist()
    assert len(ids) == len(set(ids)) == 4
    assert epochs[0]["counts"].shape == epochs[1]["counts"].shape
    np.testing.assert_allclose(epochs[0]["counts"], epochs[1]["counts"], atol=3)  # pixels
    rows = [pd.read_csv(folder / "history.csv")[list(MEASURED)] for folder in (one, other)]
    pd.testing.assert_frame_equal(*rows, rtol=1e-3)


def _forked(real: Callable[[str], Any]) -> Callable[[str], Any]:
    """Processes that have imported everything, which takes spawned ones seconds."""
    return lambda _: real("fork")


def test_processes_are_spawned_and_the_first_is_heard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    advanced: list[tuple[str, float]] = []

    class Bar:
        def advance(self, task: str, share: float) -> None:
            advanced.append((task, share))

    with pytest.raises(PipelineError, match="device 1 says so"):
        devices.everywhere(take_part, (tmp_path / "said",), (Bar(), "task", 3), TrainSettings(devices=2), CPU)
    started, said, *_ = capsys.readouterr().err.split("\n")
    assert "starting 2 processes" in started and said == "device 0 of 2, 3 come after it"
    assert advanced == [("task", 0.5)]
    assert not multiprocessing.active_children()


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "by", "words"),
    [
        ({"devices": 3}, None, "train.devices is 3, but this machine has 2 GPUs: set it to at most 2"),
        (
            {"devices": 2, "num_nodes": 2},
            None,
            "this command was started on one machine only: start it on every machine with srun",
        ),
        ({"devices": 2}, ("torchrun", 4), "torchrun started 4 processes, but train.devices is 2 .* which requires 2"),
        ({"devices": 2, "parallel": 2}, ("SLURM", 2), "SLURM has started one process per device, .*parallel=1"),
    ],
)
def test_more_than_there_is(
    settings: dict[str, Any], by: tuple[Any, int] | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(devices, "launched", lambda: by and Launched(by[0], 0, 0, by[1]))
    with pytest.raises(PipelineError, match=words):
        devices.check(TrainSettings(**settings), Compute("cuda", "16-mixed", ""))


def test_more_devices_than_images_of_a_batch() -> None:
    with pytest.raises(PipelineError, match="4 devices .* share batches of 3 images .*; expected at least one image"):
        Share(0, 4, batch=3)


def test_who_started_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    assert launched() is None
    for name, value in {"SLURM_NTASKS": 4, "SLURM_PROCID": 3, "SLURM_LOCALID": 1}.items():
        monkeypatch.setenv(name, str(value))
    assert launched() == Launched("SLURM", 3, 1, 4)
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")
    assert launched() is None
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    assert launched() == Launched("torchrun", 1, 1, 2)


# --- BatchNorm -------------------------------------------------------------------------------------------------------


def test_norms_stay_the_same_objects_and_keep_their_activation() -> None:
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(3), BatchNormAct2d(3))
    layers, pixels = list(network), torch.randn(4, 3, 5, 5)
    before, names = network.eval()(pixels), list(network.state_dict())
    collectives.synchronize_norms(network, on_cpu=True)
    assert list(network) == layers
    assert list(network.state_dict()) == names
    torch.testing.assert_close(network(pixels), before)
    assert (network(pixels) >= 0).all()


def test_a_norm_of_ones_own_is_refused() -> None:
    class Own(torch.nn.BatchNorm2d):
        pass

    with pytest.raises(PipelineError, match=r"train\.devices: 0 of the network is a Own, .* set train\.devices=1"):
        collectives.synchronize_norms(torch.nn.Sequential(Own(3)), on_cpu=True)
