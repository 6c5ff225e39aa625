"""Adapts encoders to any input size and number of channels, and loads their weights from a file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.markup import escape
from segmentation_models_pytorch.encoders._utils import patch_first_conv
from torch.nn import Module

from pipeline.core.console import console
from pipeline.core.errors import PipelineError
from pipeline.networks.weight_files import difference, match, norm_remark, padding_remark, read_state


def any_size(construct: Callable[..., Module], encoder: str) -> Module:
    """Returns construct(), with `dynamic_img_size=True` if a timm encoder has this option. Without it, vision
    transformers accept images of only one size."""
    if encoder.startswith("tu-"):
        try:
            return construct(dynamic_img_size=True)
        except TypeError as error:
            if "dynamic_img_size" not in str(error):
                raise
    return construct()


def load_encoder(encoder: Module, path: Path, name: str = "") -> None:
    """Loads an encoder's weights from a .safetensors file or a PyTorch state dict of timm, torchvision or
    segmentation-models-pytorch. The file must hold every tensor of the encoder.

    Args:
        encoder: the encoder.
        path: the file.
        name: the encoder's name in model.encoder.

    Raises:
        PipelineError: the file is not a readable state dict, or its tensors do not fit this encoder.
    """
    state = read_state(path)
    matched = match(state, encoder)
    if not matched.fits:
        which = f"{name} ({type(encoder).__name__})" if name else type(encoder).__name__
        why = difference(matched, state, encoder, name)
        raise PipelineError(f"{path} does not fit the encoder {which}: {why}")
    encoder.load_state_dict(matched.state)
    if matched.in_order:
        console.print(
            f"[dim]model.weights: {escape(path.name)} uses the names of another library; all tensors were matched by "
            "their order and shapes[/dim]"
        )
    for remark in (padding_remark(state, encoder, name), norm_remark(state, encoder)):
        if remark:
            console.print(f"[dim]model.weights: {escape(remark)}[/dim]")


def set_in_channels(encoder: Any, channels: int) -> None:
    """Adapts the first convolution of an encoder with three input channels to another number of channels."""
    if channels == 3:
        return
    if hasattr(encoder, "set_in_channels"):
        encoder.set_in_channels(channels, pretrained=True)
    else:  # an encoder of timm
        patch_first_conv(encoder, channels, pretrained=True)
