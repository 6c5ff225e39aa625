"""Freezes parts of an encoder: its stem and first stages, and its BatchNorm statistics."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.core.config.training import ModelSettings
from pipeline.core.errors import PipelineError


def freeze(encoder: Module | None, settings: ModelSettings, image: Tensor) -> None:
    """Sets `requires_grad` to false for the parameters that `model.freeze` names.

    Args:
        encoder: the encoder of the network; None if it has none.
        settings: the model settings, for `freeze` and `freeze_norm`.
        image: a normalised image (1, channels, H, W) of a size that the encoder accepts.

    Raises:
        PipelineError: there is no encoder, no such stage, or no BatchNorm.
    """
    if settings.freeze == "none" and not settings.freeze_norm:
        return
    if encoder is None:
        name = "model.freeze" if settings.freeze != "none" else "model.freeze_norm"
        raise PipelineError(f"{name} is set, but {settings.architecture} has no `encoder`: remove the setting.")
    if settings.freeze_norm and not _norms(encoder):
        raise PipelineError(
            f"model.freeze_norm is true, but encoder {settings.encoder} has no BatchNorm: remove the setting."
        )
    for parameter in _chosen(encoder, settings, image):
        parameter.requires_grad_(False)


def kept_in_evaluation(encoder: Module | None, settings: ModelSettings) -> list[Module]:
    """Returns the modules of an encoder that stay in evaluation mode while the network trains: modules of which
    `freeze` has frozen every parameter, and with `model.freeze_norm` every BatchNorm."""
    if encoder is None or (settings.freeze == "none" and not settings.freeze_norm):
        return []
    return [*_frozen(encoder), *(_norms(encoder) if settings.freeze_norm else [])]


def stages_of(encoder: Module, image: Tensor) -> list[list[Parameter]]:
    """Returns the parameters of an encoder's stem and of each stage, one list per feature size, the largest size first.

    A parameter belongs to the largest feature that is computed from it. This is read from the graph of autograd, so it
    does not depend on the names of the encoder's parts.

    Raises:
        PipelineError: the encoder does not return a list of features.
    """
    training = encoder.training
    wanted = [parameter.requires_grad for parameter in encoder.parameters()]
    try:
        with torch.enable_grad():
            features = encoder.eval().requires_grad_(True)(image)
    finally:
        encoder.train(training)
        for parameter, learns in zip(encoder.parameters(), wanted, strict=True):
            parameter.requires_grad_(learns)
    if not isinstance(features, list | tuple) or not all(isinstance(feature, Tensor) for feature in features):
        raise PipelineError(
            f"model.freeze: {type(encoder).__name__} returns {type(features).__name__}; expected a list of features, "
            "the largest first. Set model.freeze to all or none."
        )
    of_encoder, known, stages = {id(parameter) for parameter in encoder.parameters()}, set[int](), []
    for feature in features:
        added = [parameter for parameter in _behind(feature) if id(parameter) in of_encoder - known]
        known |= {id(parameter) for parameter in added}
        if added:  # the image itself and repeated features add no parameters
            stages.append(added)
    return stages


def _chosen(encoder: Module, settings: ModelSettings, image: Tensor) -> list[Parameter]:
    if settings.freeze in ("none", "all"):
        return list(encoder.parameters()) if settings.freeze == "all" else []
    stages = stages_of(encoder, image)
    count = 1 if settings.freeze == "stem" else int(settings.freeze) + 1
    if count > len(stages):
        last = len(stages) - 1
        raise PipelineError(
            f"model.freeze is {settings.freeze}, but encoder {settings.encoder} has a stem and {last} "
            f"stage{'s' * (last != 1)}: expected none, stem, a number from 1 to {last}, or all."
        )
    return [parameter for stage in stages[:count] for parameter in stage]


def _behind(feature: Tensor) -> list[Parameter]:
    """Returns the parameters from which a tensor was computed."""
    parameters: list[Parameter] = []
    seen: set[Any] = set()
    waiting: list[Any] = [feature.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            parameters.append(node.variable)
        waiting += [previous for previous, _ in node.next_functions]
    return parameters


def _frozen(module: Module) -> list[Module]:
    """Returns the outermost modules whose parameters are all frozen; modules without parameters are left out."""
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        return [module]
    return [inner for child in module.children() for inner in _frozen(child)]


def _norms(encoder: Module) -> list[Module]:
    return [module for module in encoder.modules() if isinstance(module, _BatchNorm)]
