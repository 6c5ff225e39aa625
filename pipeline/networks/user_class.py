"""Networks of the user: a class in a module of the folder that holds input/ and work/."""

import importlib
import inspect

from torch.nn import Module

from pipeline.core.config.training import ModelSettings
from pipeline.core.errors import PipelineError, did_you_mean, first_line
from pipeline.core.files import root
from pipeline.core.shortage import pass_on


def user_network(settings: ModelSettings, channels: int, outputs: int) -> Module:
    """Returns the network that `model.architecture` names as module:Class.

    Args:
        settings: the recipe's `model`; its options are arguments of the class.
        channels: of the images.
        outputs: channels of the logits.

    Raises:
        PipelineError: the module cannot be imported, it has no such class, or the class cannot be constructed.
    """
    name = settings.architecture
    architecture = _class_of(name)
    try:
        inspect.signature(architecture).bind(channels, outputs, **settings.options)
    except TypeError as error:
        raise PipelineError(
            f"model.architecture: {name} must be constructed as (channels, classes, **model.options): {error}."
        ) from None
    try:
        return architecture(channels, outputs, **settings.options)
    except (Exception, SystemExit) as error:  # a user's code may raise anything
        pass_on(error)
        raise PipelineError(
            f"model.architecture: {name}({channels}, {outputs}) failed: {type(error).__name__}: {first_line(error)}"
        ) from error


def _class_of(name: str) -> type[Module]:
    module_name, _, class_name = name.partition(":")
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a user's code may raise anything
        pass_on(error)
        raise PipelineError(
            f"model.architecture: the module of {name} cannot be imported, with {root()} first on the path: "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error
    network_class = getattr(module, class_name, None)
    if not inspect.isclass(network_class) or not issubclass(network_class, Module):
        classes = [key for key, value in vars(module).items() if inspect.isclass(value) and issubclass(value, Module)]
        meant = did_you_mean(class_name, classes)
        if network_class is not None:
            meant = f": it is {_kind_of(network_class)}, and a class that derives from torch.nn.Module was expected."
        raise PipelineError(f"model.architecture: {module_name} has no torch.nn.Module named `{class_name}`{meant}")
    return network_class


def _kind_of(value: object) -> str:
    if inspect.isclass(value):
        return "another class"
    return "a function" if inspect.isfunction(value) else f"an object of type {type(value).__name__}"
