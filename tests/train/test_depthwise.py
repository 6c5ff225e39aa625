"""The gradients of depthwise convolutions in float32: same outputs, and gradients close to those of float32."""

from typing import Any

import pytest
import torch
from torch.nn import Conv2d, functional

from pipeline.train.depthwise import _Depthwise, fast_gradients

CPU = torch.device("cpu")


def gradients(layer: Conv2d, images: torch.Tensor, fast: bool) -> list[torch.Tensor]:
    """Returns the output, and the gradients of the images and of all parameters, under bfloat16 autocast."""
    images = images.clone().requires_grad_()
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        if fast:
            with fast_gradients(CPU):
                output = layer(images)
        else:
            output = layer(images)
    output.float().square().sum().backward()
    return [output.detach(), images.grad, *(parameter.grad.clone() for parameter in layer.parameters())]


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 5, "padding": 2, "bias": False},
        {"kernel_size": (5, 3), "stride": (2, 1), "dilation": 2},
    ],
)
def test_gradients_are_those_of_float32(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer, images = Conv2d(8, 8, groups=8, **options), torch.randn(2, 8, 16, 14)
    usual, fast = gradients(layer, images, False), gradients(layer, images, True)
    assert torch.equal(usual[0], fast[0]) and fast[0].dtype == torch.bfloat16
    for expected, gradient in zip(usual[1:], fast[1:], strict=True):
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, expected, rtol=0.03, atol=0.03 * float(expected.abs().max()))


def test_only_slow_depthwise_convolutions_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    replaced: list[tuple[int, ...]] = []
    monkeypatch.setattr(_Depthwise, "apply", lambda *given: replaced.append(given[3]) or torch.zeros(1))
    images, depthwise, full = torch.zeros(1, 4, 8, 8), torch.zeros(4, 1, 3, 3), torch.zeros(4, 4, 3, 3)
    with torch.autocast("cpu", torch.bfloat16), fast_gradients(CPU):
        functional.conv2d(images, depthwise, stride=2, groups=4)
        functional.conv2d(images, depthwise, groups=4)
        functional.conv2d(images, full, stride=2)
        with torch.no_grad():
            functional.conv2d(images, depthwise, stride=2, groups=4)
    with fast_gradients(CPU):  # without autocast
        functional.conv2d(images, depthwise, stride=2, groups=4)
    assert replaced == [(2, 2)]
