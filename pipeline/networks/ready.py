"""Prepares a network for fast prediction: BatchNorm is folded into convolutions, and weights are cast once."""

import copy

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor
from torch.nn import BatchNorm2d, Conv2d, ConvTranspose2d, Identity, Linear, Module
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline.networks.device import Compute
from pipeline.networks.output import Output

PROBED_SIZE = 64
CLOSE = 1e-3
"""The relative and absolute tolerance for the logits of a fused network; with fp32 they differ by about 1e-5."""
CONVOLUTIONS = (Conv2d, Conv2dSame)
"""The classes of convolutions that use their weights in torch.conv2d alone."""


def ready(network: Module, channels: int, compute: Compute) -> Module:
    """Returns the network on the device, optimised for speed; its predictions are the same up to rounding.

    BatchNorm is folded into the preceding convolutions. Weights are cast once to the dtype to which autocast would cast
    them at every call, unless the network then fails because some of its parts are not subject to autocast.
    """
    fuse(network.eval(), channels)
    network = network.to(compute.device).to(memory_format=torch.channels_last)
    with compute.autocast():
        enabled, dtype = (
            function(compute.accelerator) for function in (torch.is_autocast_enabled, torch.get_autocast_dtype)
        )
    if not enabled:
        return network
    cast = copy.deepcopy(network)
    for module in cast.modules():
        # not other subclasses, which may use their weights in ways that autocast does not cover
        if type(module) in (*CONVOLUTIONS, ConvTranspose2d, Linear):
            module.to(dtype)
    try:
        with torch.no_grad(), compute.autocast():
            cast(torch.zeros((2, channels, PROBED_SIZE, PROBED_SIZE), dtype=torch.uint8, device=compute.device))
    except RuntimeError:  # any other fault appears again in prediction
        return network
    return cast


@torch.no_grad()
def fuse(network: Module, channels: int) -> list[tuple[str, str]]:
    """Folds every BatchNorm2d into the convolution before it, and returns the names of the folded pairs. Of timm's
    BatchNormAct2d, the activation remains.

    The pairs are found while the network, in evaluation mode, predicts two images of noise. If its predictions differ
    after folding, for instance because the output of a convolution is also used elsewhere, the network is restored.
    """
    random = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (2, channels, PROBED_SIZE, PROBED_SIZE), generator=random)
    pairs, before = _followed(network, noise)
    replaced = {name: network.get_submodule(name) for pair in pairs for name in pair}
    for convolution, norm in pairs:
        fused = fuse_conv_bn_eval(replaced[convolution], replaced[norm])  # type: ignore[arg-type, type-var]
        network.set_submodule(convolution, fused)
        network.set_submodule(norm, _without_norm(replaced[norm]))
    if _close(before, network(noise)):
        return pairs
    for name, module in replaced.items():
        network.set_submodule(name, module)
    return []


def _followed(network: Module, pixels: Tensor) -> tuple[list[tuple[str, str]], Output]:
    """Returns the names of convolutions with the BatchNorm2d that takes their output, and the network's output."""
    made: dict[int, tuple[str, Tensor]] = {}
    pairs: dict[tuple[str, str], None] = {}
    handles = []
    for name, module in network.named_modules():
        if type(module) in CONVOLUTIONS:

            def note(_: Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
                made[id(output)] = name, output  # a kept tensor's id is not reused

            handles.append(module.register_forward_hook(note))
        elif type(module) in (BatchNorm2d, BatchNormAct2d):

            def look(_: Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                if inputs and id(inputs[0]) in made:
                    pairs[made[id(inputs[0])][0], name] = None

            handles.append(module.register_forward_pre_hook(look))
    try:
        output = network(pixels)
    finally:
        for handle in handles:
            handle.remove()
    return list(pairs), output


def _without_norm(norm: Module) -> Module:
    """Returns what remains of a normalisation that was folded."""
    return torch.nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else Identity()


def _close(before: Output, after: Output) -> bool:
    pairs = [(before.mask, after.mask)]
    if before.presence is not None and after.presence is not None:
        pairs.append((before.presence, after.presence))
    return all(torch.allclose(*pair, rtol=CLOSE, atol=CLOSE) for pair in pairs)
