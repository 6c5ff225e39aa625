"""Checks of a network that need no training: parameters, shapes, and what evaluation does otherwise than training."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from pipeline.networks.models import padded, parameter_count, smallest, stride
from pipeline.teach.model_probe import Probe, Result, UnusableOutput

ODD = (101, 67)
"""Rows × columns of the images whose sides are odd."""
SAME = 1e-3
"""Outputs that differ by less than this share of their deviation count as the same: sums of other order."""
NAMES = 4
"""Names that a message lists."""


def check_parameters(probe: Probe) -> Result:
    """Returns how many parameters there are, and whether layers hide from `parameters()` in plain Python lists."""
    network = probe.network
    if hidden := list(_hidden(network)):
        return Result(
            "parameters",
            "fail",
            f"{listed(hidden)} holds layers that are not registered: they neither train nor are they saved.",
            "Use torch.nn.ModuleList or torch.nn.ModuleDict in place of a Python list or dict, and Parameter for "
            "single tensors.",
        )
    every = sum(parameter.numel() for parameter in network.parameters())
    size = sum(tensor.numel() * tensor.element_size() for tensor in [*network.parameters(), *network.buffers()])
    text = f"{every:,} parameters, {size / 1e6:.1f} MB"
    if not parameter_count(network):
        reason = "all parameters are frozen" if every else "the network has no parameters"
        return Result("parameters", "fail", f"{text}: {reason}.", "Give it layers that train (requires_grad=True).")
    frozen = every - parameter_count(network)
    return Result("parameters", "pass", text + (f", {frozen:,} of them frozen" if frozen else ""))


def _hidden(network: Module) -> Iterator[str]:
    """Names of attributes that hold modules or parameters which the network does not know of."""
    known = {id(module) for module in network.modules()} | {id(one) for one in network.parameters()}
    for name, module in network.named_modules():
        for attribute, value in vars(module).items():
            parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
            if attribute.startswith("_") or not any(isinstance(part, Module | Parameter) for part in parts):
                continue
            if any(id(part) not in known for part in parts if isinstance(part, Module | Parameter)):
                yield f"{name}.{attribute}" if name else attribute


def check_shapes(probe: Probe, size: tuple[int, int]) -> Result:
    """Returns whether the logits have the size of the images: of several sizes, one image and several."""
    network = probe.network
    network.eval()
    step, least = stride(network), smallest(network)
    rows, columns = (padded(side, step, least) for side in size)
    half = tuple(padded(side // 2, step, least) for side in size)
    shapes = [(1, rows, columns), (3, rows, columns), (2, *half), (2, rows, columns + step)]
    for count, height, width in shapes:
        try:
            probe.logits(torch.randn(count, probe.channels, height, width))
        except UnusableOutput as problem:
            return Result("shapes", "fail", problem.reason, problem.remedy)
    tried = ", ".join(f"{count} of {height}×{width}" for count, height, width in shapes)
    text = f"Images: {tried} in, logits of that size out."
    try:
        probe.logits(torch.randn(1, probe.channels, *ODD))
        text += f" {ODD[0]}×{ODD[1]} works too."
    except UnusableOutput:
        text += f" {ODD[0]}×{ODD[1]} does not, which is not a fault: the pipeline pads to multiples of {step}."
    return Result("shapes", "pass", text)


def check_one_image(probe: Probe, size: tuple[int, int]) -> Result:
    """Returns whether a batch of one image works in training."""
    probe.network.train()
    shape = [padded(side, stride(probe.network), smallest(probe.network)) for side in size]
    try:
        probe.logits(torch.randn(1, probe.channels, *shape))
    except UnusableOutput as problem:
        return Result(
            "one image",
            "note",
            f"In training, {problem.reason[0].lower()}{problem.reason[1:]}",
            f"{problem.remedy} Or keep train.batch_size such that no batch has one image.",
        )
    return Result("one image", "pass", "A batch of one image works in training, too.")


def check_evaluation(probe: Probe, images: Tensor) -> Result:
    """Returns whether evaluation gives the same answer twice, and for an image alone as among others."""
    probe.network.eval()
    first, again = probe.logits(images), probe.logits(images)
    if _differ(first, again):
        return Result(
            "evaluation",
            "fail",
            "Two calls in evaluation on the same images give different logits.",
            "Use torch.nn.Dropout, or functional.dropout(x, p, training=self.training): without `training` it never "
            "stops. Draw no random numbers in forward.",
        )
    alone = torch.cat([probe.logits(image[None]) for image in images[:2]])
    if _differ(first[:2], alone):
        return Result(
            "evaluation",
            "fail",
            "In evaluation, the logits of an image depend on the other images of its batch.",
            "BatchNorm must keep track_running_stats=True and go to evaluation with the network: do not override "
            "train() or eval(), and take no mean over the batch.",
        )
    return Result("evaluation", "pass", "The same logits twice, and for an image alone as in a batch.")


def check_dropout(probe: Probe, images: Tensor, options: dict[str, Any]) -> Result:
    """Returns whether the network drops anything in training: modules, or an option that asks for it, should."""
    network = probe.network
    network.train()
    modules = [name for name, module in network.named_modules() if isinstance(module, _DropoutNd) and module.p > 0]
    asked = [f"{key}={value}" for key, value in options.items() if "drop" in key.lower() and value]
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.eval()  # its batch statistics are no randomness, and must not be changed here
    random = _differ(probe.logits(images), probe.logits(images))
    network.eval()
    if random:
        named = f": {listed(modules)}" if modules else ", without a module of torch.nn.Dropout"
        return Result("dropout", "pass", f"Active in training, off in evaluation{named}.")
    if modules:
        return Result(
            "dropout",
            "fail",
            f"The layer {listed(modules)} drops nothing in training: it is never called, or its output is not used.",
            "Call it in forward, and go on with what it returns: x = self.dropout(x).",
        )
    if asked:
        return Result(
            "dropout",
            "fail",
            f"The option {listed(asked)} asks for dropout, and nothing is dropped in training.",
            "Use the option in the constructor; one that ends in **kwargs is swallowed silently.",
        )
    return Result("dropout", "note", "There is none. That is a choice, not a fault.")


def norm_statistics(network: Module) -> dict[str, Tensor]:
    """Returns a copy of the running means of all BatchNorm layers, by name."""
    layers = ((name, module) for name, module in network.named_modules() if isinstance(module, _BatchNorm))
    return {name: module.running_mean.clone() for name, module in layers if module.running_mean is not None}


def check_norm(probe: Probe, before: dict[str, Tensor]) -> Result:
    """Returns whether the statistics of BatchNorm have moved in training.

    Args:
        probe: the network after some steps of training.
        before: what norm_statistics returned before them.
    """
    network = probe.network
    layers = {name: module for name, module in network.named_modules() if isinstance(module, _BatchNorm)}
    if not layers:
        return Result("batch norm", "pass", "There is none: evaluation needs no running statistics.")
    after = norm_statistics(network)
    still = [name for name in before if torch.equal(before[name], after[name])]
    if still:
        momentum = layers[still[0]].momentum
        reason = f"momentum={momentum}" if momentum == 0 else "kept in evaluation, or never called"
        return Result(
            "batch norm",
            "fail" if probe.user_class or momentum == 0 else "note",
            f"The running mean of {listed(still)} does not move in training ({reason}).",
            "Leave momentum at its default 0.1, and let train() reach every layer: evaluation goes by these means.",
        )
    odd = {name: module.momentum for name, module in layers.items() if module.momentum is not None}
    odd = {name: momentum for name, momentum in odd.items() if not 0.005 <= momentum <= 0.5}
    if odd:
        name, momentum = next(iter(odd.items()))
        return Result(
            "batch norm",
            "note",
            f"{name} has momentum={momentum} (with it {len(odd)} layers in all).",
            "In PyTorch momentum is the weight of the new batch: Keras' 0.99 is 0.01 here. 0.1 is usual.",
        )
    return Result("batch norm", "pass", f"{len(layers)} layers, whose running statistics follow training.")


def listed(names: list[str]) -> str:
    """Returns the first names as text."""
    more = len(names) - NAMES
    return ", ".join(names[:NAMES]) + (f" and {more} more" if more > 0 else "")


def _differ(first: Tensor, second: Tensor) -> bool:
    return bool((first - second).abs().max() > SAME * (first.std() + 1e-6))
