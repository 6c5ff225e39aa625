"""Which weights a training keeps: the last, their average, or those of the lowest smoothed loss."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Tiny
from safetensors.torch import load_file
from trainings import BASE, hashes, named, prepare, summary, train

from pipeline.core.config.training import TrainSettings
from pipeline.core.run import Run
from pipeline.networks import predictor
from pipeline.networks.device import detect
from pipeline.networks.models import build_network
from pipeline.train import callbacks
from pipeline.tune import estimate
from pipeline.tune.held_out import held_out

AVERAGE = {
    "train": {"folds": [0], "epochs": 5, "keep": "average", "schedule": {"name": "one_cycle"}, "early_stopping": None}
}
STEPS, AVERAGED = 10, 4
"""Two batches per epoch, and in some tests not the last tenth is averaged but more."""


def spied(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """The weights after every step."""
    seen: list[dict[str, torch.Tensor]] = []
    moved = callbacks.TailAverage.on_train_batch_end

    def spy(self: Any, trainer: Any, module: Any, *rest: Any) -> None:
        seen.append({key: value.clone() for key, value in module.network.state_dict().items()})
        moved(self, trainer, module, *rest)

    monkeypatch.setattr(callbacks.TailAverage, "on_train_batch_end", spy)
    return seen


def interrupted(run: Run, monkeypatch: pytest.MonkeyPatch, *after: int) -> Run:
    """Another run of the same recipe, killed after these epochs, one after the other."""
    ended, left = callbacks.ShowProgress.on_train_epoch_end, list(after)

    def breaks(self: Any, trainer: Any, module: Any) -> None:
        ended(self, trainer, module)
        if left and trainer.current_epoch == left[0]:
            left.pop(0)
            raise KeyboardInterrupt

    other = named(run, "interrupted")
    with monkeypatch.context() as patch:
        patch.setattr(callbacks.ShowProgress, "on_train_epoch_end", breaks)
        for _ in after:
            with pytest.raises(KeyboardInterrupt):
                train(other)
    return train(other)


def test_the_average_is_that_of_the_last_steps(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "TAIL", AVERAGED / STEPS)
    seen = spied(monkeypatch)
    run = train(prepare(tiny, AVERAGE), "validate")
    assert list(hashes(run)) == ["fold_0/average.safetensors"] and len(seen) == STEPS
    kept = load_file(run.fold_folder(0) / "average.safetensors")
    norms = {key for key in kept if "running" in key or key.endswith("num_batches_tracked")}
    assert norms and norms < kept.keys()
    for key in kept.keys() - norms:
        torch.testing.assert_close(kept[key], torch.stack([one[key] for one in seen[-AVERAGED:]]).mean(0))
    # torch's own estimate, of the same images as they are predicted
    network = build_network(run, None, np.dtype(np.uint8))
    network.load_state_dict(kept)
    pixels = np.load(run.pixels / "train_images.npy")[fit_rows(run)].transpose(0, 3, 1, 2)
    torch.optim.swa_utils.update_bn([torch.from_numpy(pixels[start : start + 4]) for start in (0, 4)], network)
    for key in norms:
        torch.testing.assert_close(network.state_dict()[key], kept[key])
    assert any(not torch.allclose(seen[-1][key].float(), kept[key].float()) for key in norms)
    # what is written down is of the average: the last row, and what validate predicts
    rows = pd.read_csv(run.fold_folder(0) / "history.csv")
    assert summary(run)["best_epoch"] == 4
    assert summary(run)["best_score"] == pytest.approx(rows["valid/score"].iloc[-1])
    compute = detect("32")
    ready = predictor.load(run, run.fold_folder(0) / "average.safetensors", compute, np.dtype(np.uint8))
    held = np.load(run.pixels / "train_images.npy")[fit_rows(run, held_out=True)].transpose(0, 3, 1, 2)
    with torch.no_grad():
        predicted = (ready(torch.from_numpy(np.ascontiguousarray(held))).mask > 0).sum((2, 3))
    counts = np.load(run.fold_folder(0) / "epochs.npz")["counts"][-1]
    np.testing.assert_allclose(counts[:, 1], predicted.numpy(), atol=2)


def fit_rows(run: Run, held_out: bool = False) -> np.ndarray:
    from pipeline.train.stage import rows_of

    chosen = rows_of(run, 0)
    return chosen.valid if held_out else chosen.train


HARD = {
    "model": {"presence": True, "dropout": 0.2},
    "loss": {"bce": 1, "presence": 0.1},
    "train": {"half_size": 0.25, "freeze_encoder": 1, "accumulate": 2, "final": True, "folds": [0]},
    "image": {"normalize": "dataset", "store": [40, 48], "preprocess": [{"CLAHE": {}}]},
}


def test_a_resumed_average_is_the_same(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "TAIL", 0.4)
    run = train(prepare(tiny, AVERAGE, HARD))
    assert list(hashes(run)) == ["final/last.safetensors", "fold_0/average.safetensors"]
    # before anything is averaged, and within it
    assert hashes(interrupted(run, monkeypatch, 1, 3)) == hashes(run)


@pytest.mark.parametrize("model", [{"norm": "group"}, {"frozen": True}])
def test_networks_whose_statistics_do_not_move(
    tiny: Tiny, model: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = BASE["model"]["options"] | {key: value for key, value in model.items() if key != "frozen"}
    change = {"train": {"freeze_encoder": 20 if "frozen" in model else 0, "epochs": 10}}  # two steps are averaged
    seen = spied(monkeypatch)
    run = train(prepare(tiny, AVERAGE, {"model": {"options": options}}, change))
    kept = load_file(run.fold_folder(0) / "average.safetensors")
    fixed = [key for key in kept if "running" in key and "encoder" in key]
    assert bool(fixed) == ("frozen" in model)
    for key in fixed:
        assert torch.equal(kept[key], seen[0][key])
    key = "network.segmentation_head.0.weight"
    torch.testing.assert_close(kept[key], (seen[-1][key] + seen[-2][key]) / 2)


def test_the_best_epoch_is_that_of_the_lowest_smoothed_loss(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = {"folds": [0], "epochs": 8, "keep": "best", "monitor": "loss", "learning_rate": 0.05, "early_stopping": 3}
    noisy["schedule"] = {"name": "plateau"}
    run = train(prepare(tiny, {"train": noisy}))
    losses = pd.read_csv(run.fold_folder(0) / "history.csv")["valid/loss"]
    smooth = losses.rolling(3, min_periods=1).mean()
    assert summary(run)["best_epoch"] == int(smooth.idxmin()) != int(losses.idxmin())
    assert len(losses) == min(8, int(smooth.idxmin()) + 4)
    assert hashes(interrupted(run, monkeypatch, 1)) == hashes(run)


def test_weights_of_the_end_cost_no_optimism(tiny: Tiny) -> None:
    change = {"train": {"epochs": 2, "keep": "average"}}
    run = train(prepare(tiny, AVERAGE, change), "validate")
    held = held_out(run)
    assert estimate.files(run) == () and estimate.epoch_selection_bias(held) == 0


def test_one_average_at_a_time() -> None:
    with pytest.raises(ValueError, match="train.keep is average and train.ema is set, and both average the weights"):
        TrainSettings(keep="average", ema=0.99)
    assert TrainSettings(keep="average", ema=0.99, snapshots=2, schedule={"name": "restarts"}).keep == "average"
