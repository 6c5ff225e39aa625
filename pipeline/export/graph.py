"""Writes a trained network as an ONNX graph from raw pixels to probabilities, and compares it with torch."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from pipeline.core.errors import PipelineError, first_line
from pipeline.core.shortage import pass_on
from pipeline.masks.pixels import largest_of, loaded
from pipeline.networks.loader import to_tensor
from pipeline.networks.models import SegmentationNetwork

CLOSE = 1e-3
"""The largest allowed difference of a probability from torch's."""
OPSET = 18


class Probabilities(Module):
    """A network that returns a tuple of probabilities: of the masks (N, classes, H, W) and, if the network predicts it,
    of presence (N, classes)."""

    never: Tensor

    def __init__(self, network: SegmentationNetwork, multiclass: bool, never: tuple[int, ...], planes: int) -> None:
        super().__init__()
        self.network, self.multiclass = network.eval(), multiclass
        bias = torch.zeros(1, planes, 1, 1)
        bias[:, list(never)] = -torch.inf
        self.register_buffer("never", bias)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Returns the probabilities for raw pixels (N, C, H, W)."""
        mask, presence, _ = self.network(pixels)
        mask = (mask + self.never).softmax(1) if self.multiclass else mask.sigmoid()
        return (mask,) if presence is None else (mask, presence.sigmoid())


def noise(dtype: np.dtype, shape: tuple[int, int, int]) -> Tensor:
    """Returns two images of noise (2, C, H, W), as the loaders return images of a dtype.

    Args:
        dtype: uint8, uint16, or float16 from 0 to 1.
        shape: channels, rows, columns.
    """
    draws = np.random.default_rng(0).random((2, *shape[1:], shape[0])) * largest_of(dtype)
    return torch.stack([to_tensor(loaded(image.astype(dtype))) for image in draws])


def write(module: Probabilities, pixels: Tensor, target: Path) -> list[np.ndarray]:
    """Writes the ONNX graph of a module for any number of images of the size of `pixels`, and returns torch's outputs
    for `pixels` (N, C, H, W), N > 1.

    Raises:
        PipelineError: the network cannot be exported, or the probabilities of the graph differ from torch's.
    """
    names = ["probability", "presence"]
    with torch.no_grad():
        expected = [output.numpy() for output in module(pixels)]
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter warns of what does not concern these networks
            images: Any = torch.export.Dim("images")
            torch.onnx.export(
                module, (pixels,), target, input_names=["pixels"], output_names=names[: len(expected)], dynamo=True,
                dynamic_shapes=({0: images},), opset_version=OPSET, external_data=False, verbose=False,
            )  # fmt: skip
    except Exception as error:  # torch raises many types
        pass_on(error)
        raise PipelineError(
            f"torch cannot export this network as ONNX ({type(error).__name__}: {first_line(error)})."
        ) from error
    _compare(target, pixels.numpy(), expected)
    return expected


def _compare(path: Path, pixels: np.ndarray, expected: list[np.ndarray]) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    # in batches of one, which also shows that the graph takes any number of images
    of_images = [session.run(None, {"pixels": pixels[row : row + 1]}) for row in range(len(pixels))]
    outputs = [np.concatenate(values) for values in zip(*of_images, strict=True)]
    worst = max(float(np.abs(ours - theirs).max()) for ours, theirs in zip(outputs, expected, strict=True))
    if not worst <= CLOSE:
        raise PipelineError(
            f"the probabilities of the ONNX graph differ from torch's by up to {worst:.4f}; expected at most {CLOSE:g}."
        )
