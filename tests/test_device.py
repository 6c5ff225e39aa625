"""Device and number format."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import device
from pipeline.errors import PipelineError
from pipeline.geometry import IGNORE
from pipeline.recipe import ModelSettings

SMALL = ModelSettings(encoder="mobilenet_v2", options={"decoder_channels": [32, 16, 8, 8, 8]})
MIXED = [
    {"HorizontalFlip": {"p": 0.5}},
    {"RandomBrightnessContrast": {"p": 0.5}},
    {"Affine": {"scale": [0.9, 1.1], "rotate": [-10, 10], "p": 0.7}},
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On a busy machine, threads that wait for each other make small networks many times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def picture(rows: int = 12, columns: int = 16, channels: int = 1, classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (rows, columns, channels), dtype=np.uint8)
    return image, rng.choice(np.array([0, 1, IGNORE], np.uint8), (classes, rows, columns))


def pretend(monkeypatch: pytest.MonkeyPatch, cuda: bool = False, mps: bool = False, bf16: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)


@pytest.mark.parametrize(
    ("machine", "asked", "accelerator", "precision"),
    [
        ({}, "auto", "cpu", "32-true"),
        ({"bf16": True}, "auto", "cpu", "bf16-mixed"),
        ({"cuda": True}, "auto", "cuda", "16-mixed"),
        ({"cuda": True, "bf16": True}, "auto", "cuda", "bf16-mixed"),
        ({"cuda": True, "mps": True, "bf16": True}, "32", "cuda", "32-true"),
        ({"cuda": True}, "16", "cuda", "16-mixed"),
        ({"mps": True}, "auto", "mps", "32-true"),
        ({"bf16": True}, "32", "cpu", "32-true"),
        ({}, "bf16", "cpu", "bf16-mixed"),
    ],
)
def test_choice_of_device_and_precision(
    monkeypatch: pytest.MonkeyPatch, machine: dict[str, bool], asked: Any, accelerator: str, precision: str
) -> None:
    pretend(monkeypatch, **machine)
    chosen = device.choose(asked)
    assert (chosen.accelerator, chosen.precision) == (accelerator, precision)
    assert chosen.reason
    assert chosen.device.type == accelerator


def test_fp16_on_a_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    with pytest.raises(PipelineError, match="train.precision is 16, which needs a GPU; use bf16, 32 or auto"):
        device.choose("16")


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_predictions_use_the_number_format_of_training(precision: Any, dtype: torch.dtype) -> None:
    with device.Compute("cpu", precision, "a test").autocast():
        assert (torch.ones((2, 2)) @ torch.ones((2, 2))).dtype == dtype
    assert (torch.ones((2, 2)) @ torch.ones((2, 2))).dtype == torch.float32
