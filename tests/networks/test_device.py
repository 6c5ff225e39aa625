"""Device and number format."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import status
from pipeline.core.config.recipe import load_recipe
from pipeline.core.errors import PipelineError
from pipeline.networks import device, loader


def pretend(monkeypatch: pytest.MonkeyPatch, cuda: bool = False, mps: bool = False, bf16: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(device, "_gpu_fault", lambda: "")
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
    chosen = device.detect(asked)
    assert (chosen.accelerator, chosen.precision) == (accelerator, precision)
    assert chosen.reason
    assert chosen.device.type == accelerator


def test_a_gpu_that_this_torch_does_not_know_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU, and it works")
    fault = device._gpu_fault
    pretend(monkeypatch, cuda=True)
    monkeypatch.setattr(device, "_gpu_fault", fault)
    with pytest.raises(PipelineError, match=r"torch .+ cannot compute on Some GPU \(.+\): use another GPU"):
        device.detect()
    assert any(re.match("device: torch .+ cannot compute on Some GPU", line) for line in status.examine())


@pytest.mark.parametrize(("count", "words"), [(1, "; 1 thread"), (2, "; 2 threads")])
def test_threads_are_counted_in_words(count: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    assert device.detect().reason.endswith(words)


def test_a_loader_process_that_died() -> None:
    error = RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error.")
    with pytest.raises(PipelineError, match="--shm-size=8g, or lower train.workers"):
        device.explain_memory(error, load_recipe("sample"), predicting=True)


def test_an_error_in_a_loader_process_is_not_taken_for_its_death() -> None:
    error = RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback: shapes differ")
    device.explain_memory(error, load_recipe("sample"), predicting=False)  # says nothing


def test_the_advice_steps_as_often_as_before() -> None:
    recipe = load_recipe("sample", assignments=["train.batch_size=16", "train.accumulate=4"])
    with pytest.raises(PipelineError, match="train.batch_size=8 --set train.accumulate=8, which keeps the number"):
        device.explain_memory(RuntimeError("CUDA out of memory"), recipe, predicting=False)


def test_fp16_on_a_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    with pytest.raises(PipelineError, match="train.precision is 16, which needs a GPU; use bf16, 32 or auto"):
        device.detect("16")


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_predictions_use_the_number_format_of_training(precision: Any, dtype: torch.dtype) -> None:
    with device.Compute("cpu", precision, "a test").autocast():
        assert (torch.ones((2, 2)) @ torch.ones((2, 2))).dtype == dtype
    assert (torch.ones((2, 2)) @ torch.ones((2, 2))).dtype == torch.float32


def test_images_that_stay_on_the_device_come_as_others_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    np.save(tmp_path / "train_images.npy", random.integers(0, 256, (7, 8, 6, 1), dtype=np.uint8))
    np.save(tmp_path / "train_masks.npy", random.integers(0, 2, (7, 2, 8, 6), dtype=np.uint8))
    dataset = loader.PlainDataset(tmp_path, "train", np.array([6, 1, 2, 4, 5]), with_masks=True)
    resident = loader.ResidentBatches(dataset, 2, torch.device("cpu"))
    for _ in range(2):
        for one, other in zip(resident, loader.plain_loader(dataset, 2, 0), strict=True):
            assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))
    assert len(resident) == 3
    assert not loader.fits(dataset, torch.device("cpu"))  # there they are in memory anyway
    size = 5 * 3 * 8 * 6  # five images, each with a plane of pixels and two of masks
    for free, expected in ((4 * size, True), (4 * size - 4, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, free))
        assert loader.fits(dataset, torch.device("cuda")) is expected
