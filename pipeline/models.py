"""Networks by name from segmentation-models-pytorch, for any image size, with pretrained encoders from a file."""

import inspect
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
from safetensors.torch import load_file
from torch.nn import functional

from pipeline.errors import PipelineError
from pipeline.recipe import ModelSettings

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STRIDE = 32


class SegmentationNetwork(torch.nn.Module):
    """Raw pixels (N, C, H, W) of any integer type and any size in, logits (N, classes, H, W) out."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: torch.nn.Module, channels: int, normalize: str, largest_pixel: int) -> None:
        super().__init__()
        self.network = network
        mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        if channels != 3:  # one channel, or a fourth that ImageNet does not know, gets the mean of its three
            kept = 3 if channels == 4 else 0
            mean, std = (torch.cat([values[:kept], values.mean(0, keepdim=True)]) for values in (mean, std))
        if normalize == "none":
            mean, std = torch.zeros(channels), torch.ones(channels)
        self.register_buffer("mean", mean.view(1, -1, 1, 1) * largest_pixel, persistent=False)
        self.register_buffer("std", std.view(1, -1, 1, 1) * largest_pixel, persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Returns logits at the size of the input; the network itself sees it padded to its stride."""
        images = (pixels.float() - self.mean) / self.std
        height, width = images.shape[2:]
        bottom, right = -height % STRIDE, -width % STRIDE
        if bottom or right:
            images = functional.pad(images, (0, right, 0, bottom), mode="replicate")
        images = images.contiguous(memory_format=torch.channels_last)
        return self.network(images)[:, :, :height, :width]


def build(settings: ModelSettings, channels: int, classes: int, weights: Path | None) -> torch.nn.Module:
    """Returns an smp network; its encoder starts from `weights` where given, else from scratch.

    Raises:
        PipelineError: an unknown architecture, encoder or option, or weights that do not fit the encoder.
    """
    architecture: Any = getattr(smp, settings.architecture, None)
    if not _is_model(architecture):
        raise PipelineError(f"model.architecture: segmentation-models-pytorch has no `{settings.architecture}`.")
    _check_options(architecture, settings)
    # three channels first: pretrained files have them, and set_in_channels adapts the first convolution afterwards
    first_channels = channels if weights is None else 3
    try:
        network = architecture(
            settings.encoder, encoder_weights=None, in_channels=first_channels, classes=classes, **settings.options
        )
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise PipelineError(f"model: {settings.architecture} with encoder {settings.encoder}: {error}") from None
    if weights is not None:
        load_encoder(network.encoder, weights)
        if channels != 3:
            network.encoder.set_in_channels(channels, pretrained=True)
    return network


def load_encoder(encoder: torch.nn.Module, path: Path) -> None:
    """Loads an encoder's weights strictly from .safetensors or a PyTorch state dict.

    Raises:
        PipelineError: not a readable state dict, or its tensors are not this encoder's.
    """
    try:
        state: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # damaged files raise many types
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PipelineError(f"{path} holds no readable weights: {reason}") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise PipelineError(f"{path} holds {type(state).__name__}; expected a state dict, tensors by name.")
    if any(key.startswith("encoder.") for key in state):
        state = {key.removeprefix("encoder."): value for key, value in state.items() if key.startswith("encoder.")}
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        summary = " ".join(str(error).split())[:300]
        raise PipelineError(f"{path} does not fit the encoder {type(encoder).__name__}: {summary}") from None


def parameter_count(network: torch.nn.Module) -> int:
    """Returns the number of trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def _is_model(architecture: Any) -> bool:
    return inspect.isclass(architecture) and issubclass(architecture, smp.base.SegmentationModel)


def _check_options(architecture: type, settings: ModelSettings) -> None:
    ours = {"self", "kwargs", "encoder_name", "encoder_weights", "in_channels", "classes", "activation", "aux_params"}
    known = [name for name in inspect.signature(architecture).parameters if name not in ours]
    unknown = [name for name in settings.options if name not in known]
    if unknown:
        raise PipelineError(
            f"model.options: smp.{settings.architecture} has no {', '.join(unknown)} (it would swallow it); "
            f"it has {', '.join(known)}."
        )
