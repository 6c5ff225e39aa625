"""Parts of an encoder that do not learn: its stem and first stages, and its BatchNorm statistics."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.core.config.training import ModelSettings
from pipeline.core.errors import PipelineError


def freeze(encoder: Module | None, settings: ModelSettings, image: Tensor) -> None:
    """Takes the gradients from the parameters that `model.freeze` names.

    Args:
        encoder: the network's, None where it has none.
        settings: with `freeze` and `freeze_norm`.
        image: normalised (1, channels, H, W), of a size that the encoder takes.

    Raises:
        PipelineError: there is no encoder, no such stage, or no BatchNorm.
    """
    if settings.freeze == "none" and not settings.freeze_norm:
        return
    if encoder is None:
        name = "model.freeze" if settings.freeze != "none" else "model.freeze_norm"
        raise PipelineError(f"{name} is set, and {settings.architecture} has no `encoder`: leave it out.")
    if settings.freeze_norm and not _norms(encoder):
        raise PipelineError(
            f"model.freeze_norm is true, and encoder {settings.encoder} has no BatchNorm: leave it out."
        )
    for parameter in _chosen(encoder, settings, image):
        parameter.requires_grad_(False)


def kept_in_evaluation(encoder: Module | None, settings: ModelSettings) -> list[Module]:
    """Returns the modules of a frozen encoder that stay in evaluation while the network trains: those whose parameters
    `freeze` has all frozen, and with `model.freeze_norm` every BatchNorm."""
    if encoder is None or (settings.freeze == "none" and not settings.freeze_norm):
        return []
    return [*_frozen(encoder), *(_norms(encoder) if settings.freeze_norm else [])]


def stages_of(encoder: Module, image: Tensor) -> list[list[Parameter]]:
    """Returns the parameters that each size of an encoder's features adds, the largest first: its stem, its stages.

    A feature's stage is what it is computed from and no larger feature is, which the graph of autograd knows whatever
    the encoder calls its parts.

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
            "the largest first. Freeze all of it, or none."
        )
    own, known, stages = {id(parameter) for parameter in encoder.parameters()}, set[int](), []
    for feature in features:
        added = [parameter for parameter in _behind(feature) if id(parameter) in own - known]
        known |= {id(parameter) for parameter in added}
        if added:  # the image itself, and features that other sizes share, add none
            stages.append(added)
    return stages


def _chosen(encoder: Module, settings: ModelSettings, image: Tensor) -> list[Parameter]:
    if settings.freeze in ("none", "all"):
        return list(encoder.parameters()) if settings.freeze == "all" else []
    stages = stages_of(encoder, image)
    count = 1 if settings.freeze == "stem" else int(settings.freeze) + 1
    if count > len(stages):
        raise PipelineError(
            f"model.freeze is {settings.freeze}, and encoder {settings.encoder} has a stem and {len(stages) - 1} "
            f"stages: expected none, stem, a number from 1 to {len(stages) - 1}, or all."
        )
    return [parameter for stage in stages[:count] for parameter in stage]


def _behind(feature: Tensor) -> list[Parameter]:
    """The parameters that a tensor was computed from."""
    found: list[Parameter] = []
    seen: set[Any] = set()
    waiting: list[Any] = [feature.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        waiting += [before for before, _ in node.next_functions]
    return found


def _frozen(module: Module) -> list[Module]:
    """The outermost modules that have parameters, none of which learns."""
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        return [module]
    return [inner for child in module.children() for inner in _frozen(child)]


def _norms(encoder: Module) -> list[Module]:
    return [module for module in encoder.modules() if isinstance(module, _BatchNorm)]
