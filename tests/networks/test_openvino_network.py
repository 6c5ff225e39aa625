"""OpenVINO gives the probabilities of torch, and says what is missing."""

import ctypes
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from pipeline.core.config.training import ModelSettings
from pipeline.core.errors import PipelineError
from pipeline.networks import openvino_network
from pipeline.networks.device import Compute
from pipeline.networks.models import SegmentationNetwork, build
from pipeline.networks.openvino_network import OpenvinoNetwork
from pipeline.networks.output import Output
from pipeline.networks.predictor import Predictor
from pipeline.networks.views import views

CPU = Compute("cpu", "32-true", "a test")


@pytest.fixture
def network() -> SegmentationNetwork:
    torch.manual_seed(0)
    options = {"channels": [4, 8, 8]}
    settings = ModelSettings(
        architecture="ConfigurableUnet", encoder="plain", weights="none", presence=True, options=options
    )
    return SegmentationNetwork(build(settings, 1, 1, None), 1, "unit", 255, classes=1).eval()


def test_the_probabilities_are_those_of_torch(network: SegmentationNetwork) -> None:
    if importlib.util.find_spec("openvino") is None:  # importing it here would load its telemetry
        pytest.skip("openvino is not installed")
    pixels = torch.randint(0, 256, (3, 1, 20, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    converted = OpenvinoNetwork(network, CPU)
    ours, theirs = (
        Predictor([each], CPU, views("d4"), (20, 30), 0.25, None)(pixels)[0][0] for each in (converted, network)
    )
    assert sys.modules["openvino_telemetry"] is None  # nothing in a run needs the network
    assert abs(ours[0].astype(int) - theirs[0]).max() <= 1
    assert ours[1] == pytest.approx(theirs[1], abs=1e-3)
    assert len(converted.requests) == 2  # d4 also shows the images on their side
    assert converted(pixels[:1]).mask.shape == (1, 1, 20, 30)


def test_ctrl_c_finds_its_stack_after_networks_are_deleted(network: SegmentationNetwork) -> None:
    if importlib.util.find_spec("openvino") is None or not sys.platform.startswith("linux"):
        pytest.skip("openvino is not installed, or this is not Linux")
    networks = [OpenvinoNetwork(network, CPU) for _ in range(2)]
    for each in networks:
        each(torch.zeros((2, 1, 16, 16), dtype=torch.uint8))
    del each
    while networks:
        del networks[0]
    stack = (ctypes.c_size_t * 3)()  # address, flags, size
    assert ctypes.CDLL(None).sigaltstack(None, stack) == 0
    ranges = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines()]
    assert not stack[0] or any(int(start, 16) <= stack[0] < int(end, 16) for start, end in ranges)


def test_a_difference_from_torch_is_an_error(network: SegmentationNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(OpenvinoNetwork, "_converted", lambda self, pixels: None)
    monkeypatch.setattr(openvino_network, "_infer", lambda request, pixels: Output(network(pixels).mask.detach() + 1))
    with pytest.raises(PipelineError, match="differ from torch's by up to 0.2.*set predict.backend=torch"):
        OpenvinoNetwork(network, CPU)(torch.zeros((1, 1, 16, 16), dtype=torch.uint8))


def test_what_is_missing_is_said(network: SegmentationNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PipelineError, match="openvino, which is for CPUs, but this machine predicts on cuda"):
        OpenvinoNetwork(network, Compute("cuda", "32-true", "a test"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PipelineError, match="OpenVINO is not installed: pip install 'openvino.*set predict.backend"):
        OpenvinoNetwork(network, CPU)
