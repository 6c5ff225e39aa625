"""The trainers of benchmarks/nnunet_trainers, on an imitation of nnU-Net whose batches take given seconds of a fake
clock; nnU-Net is not needed."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

TRAIN_SECONDS, VALIDATION_SECONDS = 0.7, 0.2


class Imitation:
    """What the trainers use of nnU-Net's."""

    def __init__(
        self, plans: dict[str, Any], configuration: str, fold: int, dataset_json: dict[str, Any], device: torch.device
    ) -> None:
        self.now, self.current_epoch, self.num_epochs, self.save_every = 100.0, 0, 1000, 50
        self.rates: list[float] = []
        self.validated: list[int] = []
        self.stamps: dict[str, list[float]] = {"epoch_start_timestamps": [], "epoch_end_timestamps": []}
        self.trained: list[int] = []
        self.lr_scheduler = SimpleNamespace(step=self.rates.append)
        self.logger = SimpleNamespace(get_value=lambda key, step: self.stamps[key])
        self.dataloader_train = self.dataloader_val = iter(lambda: {}, None)

    def on_train_start(self) -> None: ...
    def on_train_end(self) -> None: ...
    def on_train_epoch_start(self) -> None: ...
    def on_validation_epoch_start(self) -> None: ...
    def print_to_log_file(self, text: str) -> None: ...

    def on_epoch_start(self) -> None:
        self.stamps["epoch_start_timestamps"].append(self.now)

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        self.now += TRAIN_SECONDS
        return {}

    def on_train_epoch_end(self, outputs: list[dict[str, Any]]) -> None:
        self.trained.append(len(outputs))

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        self.now += VALIDATION_SECONDS
        return {}

    def on_validation_epoch_end(self, outputs: list[dict[str, Any]]) -> None:
        self.validated.append(len(outputs))

    def on_epoch_end(self) -> None:
        self.stamps["epoch_end_timestamps"].append(self.now)
        self.current_epoch += 1


@pytest.fixture
def minutes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of the trainers, as nnU-Net imports it."""
    names = "nnunetv2", "nnunetv2.training", "nnunetv2.training.nnUNetTrainer"
    for name in (*names, "nnunetv2.training.nnUNetTrainer.nnUNetTrainer"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["nnunetv2.training.nnUNetTrainer.nnUNetTrainer"].nnUNetTrainer = Imitation  # type: ignore[attr-defined]
    path = Path(__file__).parents[1] / "benchmarks" / "nnunet_trainers" / "minutes.py"
    spec = importlib.util.spec_from_file_location("minutes", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def trainer_of(module: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    trainer = getattr(module, name)({}, "2d", 0, {}, torch.device("cuda"))
    monkeypatch.setattr(module, "monotonic", lambda: trainer.now)
    return trainer


def test_ends_on_time_with_a_rate_that_falls_to_zero(minutes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(minutes, "nnUNetTrainer_5minutes", monkeypatch)
    trainer.run_training()
    assert trainer.now - 100 == pytest.approx(300, abs=2 * TRAIN_SECONDS)
    assert trainer.rates == sorted(trainer.rates)
    assert trainer.rates[0] == 0 and 19.8 < trainer.rates[-1] <= trainer.num_epochs == 20
    assert len(trainer.rates) == sum(trainer.trained) > 300 / (TRAIN_SECONDS + VALIDATION_SECONDS)
    assert trainer.validated == [count // 5 for count in trainer.trained]


def test_a_resumed_training_has_the_time_that_is_left(minutes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(minutes, "nnUNetTrainer_5minutes", monkeypatch)
    trainer.current_epoch = 15  # the sixteenth epoch was begun and killed
    trainer.stamps = {
        "epoch_start_timestamps": [1000 + 20.0 * number for number in range(16)],
        "epoch_end_timestamps": [1015 + 20.0 * number for number in range(15)],
    }
    trainer.run_training()
    assert trainer.now - 100 == pytest.approx(75, abs=2 * TRAIN_SECONDS)
    assert 15 <= trainer.rates[0] < 15.1 and len(trainer.trained) == 5


def test_batches_longer_than_an_epoch(minutes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(minutes, "nnUNetTrainer_1minutes", monkeypatch)
    monkeypatch.setattr(sys.modules[__name__], "TRAIN_SECONDS", 4.0)
    trainer.run_training()
    assert trainer.trained == trainer.validated == [1] * 15
    assert trainer.now - 100 == pytest.approx(60, abs=2 * TRAIN_SECONDS)
    assert max(trainer.rates) <= trainer.num_epochs  # beyond it, nnU-Net's polynomial is complex


def test_names(minutes: ModuleType) -> None:
    trainer = minutes.nnUNetTrainer_45minutes
    assert (trainer.__name__, trainer.minutes, issubclass(trainer, Imitation)) == ("nnUNetTrainer_45minutes", 45, True)
    for name in ("nnUNetTrainer_20epochs", "nnUNetTrainer_0minutes", "nnUNetTrainer_minutes"):
        assert not hasattr(minutes, name)
