"""Encoders of any input size and number of channels, and their weights from a file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from segmentation_models_pytorch.encoders._utils import patch_first_conv
from torch.nn import Module

from pipeline.core.errors import PipelineError, first_line


def any_size(construct: Callable[..., Module], encoder: str) -> Module:
    """Returns construct(), with `dynamic_img_size` where a timm encoder has it: vision transformers otherwise take
    images of one size only."""
    if encoder.startswith("tu-"):
        try:
            return construct(dynamic_img_size=True)
        except TypeError as error:
            if "dynamic_img_size" not in str(error):
                raise
    return construct()


def load_encoder(encoder: Module, path: Path) -> None:
    """Loads an encoder's weights strictly from .safetensors or a PyTorch state dict.

    Raises:
        PipelineError: not a readable state dict, or its tensors are not this encoder's.
    """
    try:
        state: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # damaged files raise many types
        raise PipelineError(f"{path} holds no readable weights: {first_line(error)}") from None
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


def set_in_channels(encoder: Any, channels: int) -> None:
    """Adapts the first convolution of an encoder of three channels to another number."""
    if channels == 3:
        return
    if hasattr(encoder, "set_in_channels"):
        encoder.set_in_channels(channels, pretrained=True)
    else:  # timm's
        patch_first_conv(encoder, channels, pretrained=True)
