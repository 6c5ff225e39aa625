"""Builds networks by name, or from a user's own class, for any image size."""

import inspect
import math
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import segmentation_models_pytorch as smp
import torch
from torch import Tensor
from torch.nn import Module, Parameter, functional

from pipeline.core.config.training import ModelSettings
from pipeline.core.errors import PipelineError, did_you_mean, first_line
from pipeline.core.files import root
from pipeline.core.run import Run
from pipeline.core.shortage import pass_on
from pipeline.masks.pixels import largest_of
from pipeline.networks.encoders import any_size, load_encoder, set_in_channels
from pipeline.networks.freezing import freeze, kept_in_evaluation
from pipeline.networks.normalization import Statistics
from pipeline.networks.output import Output
from pipeline.networks.unet import ConfigurableUnet
from pipeline.networks.user_class import user_network

NORMALIZATIONS = ("imagenet", "unit", "dataset", "image", "encoder")
LEARNED = ("dataset", "encoder")
"""Normalisations whose mean and deviation are saved with the weights."""
STRIDE = 32
CHECKED_SIZE = 64


class SegmentationNetwork(Module):
    """A network from raw pixels (N, C, H, W) of any integer dtype and any size to an Output of the same size.

    Args:
        network: the inner network, on normalised images.
        channels: the number of channels of the images.
        normalize: `imagenet`, `unit` (pixels in [0, 1]), `image` (mean and standard deviation of each image, over its
            channels and pixels), or `dataset` or `encoder` (mean and deviation from set_statistics, which are saved
            with the weights).
        largest_pixel: the largest value of the images' dtype.
        background_output: whether the inner network returns [background, class]. The logit of the class is then their
            difference.
        kept_in_evaluation: modules of the network that stay in evaluation mode while it trains.
        classes: the number of classes. Further outputs of a presence head are dropped.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: Module,
        channels: int,
        normalize: str,
        largest_pixel: int,
        background_output: bool = False,
        kept_in_evaluation: Sequence[Module] = (),
        classes: int | None = None,
    ) -> None:
        super().__init__()
        if normalize not in NORMALIZATIONS:
            raise ValueError(f"normalize is {normalize!r}; expected one of {', '.join(NORMALIZATIONS)}")
        self.network, self.normalize, self.largest_pixel = network, normalize, largest_pixel
        self.background_output, self.kept_in_evaluation = background_output, list(kept_in_evaluation)
        self.classes = classes
        self.stride, self.smallest = stride(network), smallest(network)
        if normalize != "image":
            mean, std = _statistics(normalize, channels)
            # only values found by training are saved with the weights
            persistent = normalize in LEARNED
            self.register_buffer("mean", mean.view(1, -1, 1, 1) * largest_pixel, persistent)
            self.register_buffer("std", std.view(1, -1, 1, 1) * largest_pixel, persistent)

    def set_statistics(self, mean: list[float], std: list[float]) -> None:
        """Sets the mean and standard deviation of each channel, in units of raw pixels; a deviation of 0 becomes 1.

        Raises:
            ValueError: normalize is neither `dataset` nor `encoder`, or there is not one value per channel.
        """
        if self.normalize not in LEARNED or not len(mean) == len(std) == self.mean.numel():
            raise ValueError(f"normalize is {self.normalize}; got {len(mean)} means and {len(std)} deviations")
        self.mean.copy_(torch.tensor(mean).view_as(self.mean))
        self.std.copy_(torch.tensor([value or 1.0 for value in std]).view_as(self.std))

    def train(self, mode: bool = True) -> "SegmentationNetwork":
        """Sets training or evaluation mode and returns the network; frozen modules stay in evaluation mode."""
        super().train(mode)
        for module in self.kept_in_evaluation:
            module.eval()
        return self

    def forward(self, pixels: Tensor) -> Output:
        """Returns the outputs at the size of the input. The inner network sees the input padded to its stride."""
        images = self._normalized(pixels.float())
        height, width = images.shape[2:]
        bottom = padded(height, self.stride, self.smallest) - height
        right = padded(width, self.stride, self.smallest) - width
        if bottom or right:
            images = functional.pad(images, (0, right, 0, bottom), mode="replicate")
        output = as_output(self.network(images.contiguous(memory_format=torch.channels_last)))
        if self.background_output:
            output = _without_background(output)
        mask, presence, deep = output
        presence = None if presence is None else presence[:, : self.classes]
        return Output(mask[:, :, :height, :width], presence, tuple(mask[:, :, :height, :width] for mask in deep))

    def _normalized(self, pixels: Tensor) -> Tensor:
        if self.normalize != "image":
            return (pixels - self.mean) / self.std
        std, mean = torch.std_mean(pixels, (1, 2, 3), correction=0, keepdim=True)
        # the added term turns images with a single value into 0 instead of NaN
        return (pixels - mean) / (std + 1e-6 * self.largest_pixel)


def build(settings: ModelSettings, channels: int, classes: int, weights: Path | None) -> Module:
    """Returns the network of the settings. Its encoder starts from `weights` if given, else from scratch.

    The network takes float images (N, channels, H, W) whose sides are multiples of its `stride` and at least
    `smallest`. It returns logits (N, classes, H, W), or (logits, presence), or an Output. There is one more plane of
    logits with background_output, and twice as many with model.instances. Parameters that `model.freeze` names do not
    require gradients.

    Raises:
        PipelineError: an unknown architecture, encoder or option; weights that do not fit the encoder; a user's class
            that cannot be imported or returns something else than expected; or nothing to freeze.
    """
    if settings.background_output and classes != 1:
        raise PipelineError(f"model.background_output is for one class, but there are {classes}: set it to false.")
    outputs = settings.planes(classes) + settings.background_output
    with _first_on_path(root()):
        # pretrained files have three channels; the first convolution is adapted after loading
        network = _constructed(settings, channels if weights is None else 3, classes, outputs)
        if weights is not None:
            encoder = _encoder_for_weights(network, settings)
            load_encoder(encoder, weights, "" if ":" in settings.architecture else settings.encoder)
            set_in_channels(encoder, channels)
        if settings.dropout:
            _add_dropout(network, settings)
        _check(network, settings, channels, classes, outputs)
    size = padded(CHECKED_SIZE, stride(network), smallest(network))
    freeze(encoder_of(network), settings, torch.zeros((1, channels, size, size)))
    return network


def construct(settings: ModelSettings, channels: int, classes: int) -> Module:
    """Returns the network of the settings, from scratch, before any image has gone through it.

    Raises:
        PipelineError: as `build`, except that the outputs of the network are not checked.
    """
    with _first_on_path(root()):
        network = _constructed(settings, channels, classes, settings.planes(classes) + settings.background_output)
        if settings.dropout:
            _add_dropout(network, settings)
    return network


def build_network(run: Run, source: Path | None, dtype: np.dtype) -> SegmentationNetwork:
    """Returns the recipe's network for images of a dtype (uint8, uint16 or float16).

    The encoder starts from the weights in `source`, or from scratch if it is None.
    """
    image, model, classes = run.recipe.image, run.recipe.model, len(run.competition.classes)
    inner = build(model, image.channels, classes, source)
    largest, normalize = largest_of(dtype), image.normalize or "imagenet"
    fixed = kept_in_evaluation(encoder_of(inner), model)
    return SegmentationNetwork(inner, image.channels, normalize, largest, model.background_output, fixed, classes)


def stride(network: Module) -> int:
    """Returns the number of which both sides of the images must be a multiple.

    It is 32, with two exceptions. Vision transformers whose patch size does not divide 32 need a common multiple. smp's
    Unet with fewer than five stages needs only its own stride, and padding 112×112 to 128×128 would cost a quarter of
    the time.
    """
    of_encoder = getattr(encoder_of(network), "output_stride", None)
    if not isinstance(of_encoder, int):
        return STRIDE
    return of_encoder if isinstance(network, smp.Unet) and STRIDE % of_encoder == 0 else math.lcm(STRIDE, of_encoder)


def smallest(network: Module) -> int:
    """Returns the minimum length of both sides of the images.

    PAN halves its deepest features three more times.
    """
    return 8 * network.encoder.output_stride if isinstance(network, smp.PAN) else 1


def encoder_of(network: Module) -> Module | None:
    """Returns the `encoder` of a network or of the network inside a SegmentationNetwork; None if it has none."""
    inner = network.network if isinstance(network, SegmentationNetwork) else network
    encoder = getattr(inner, "encoder", None)
    return encoder if isinstance(encoder, Module) else None


def encoder_parameters(network: Module) -> list[Parameter]:
    """Returns the parameters of the encoder; an empty list if there is no encoder."""
    encoder = encoder_of(network)
    return [] if encoder is None else list(encoder.parameters())


def parameter_count(network: Module) -> int:
    """Returns the number of trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


# --- sizes and outputs -----------------------------------------------------------------------------------------------


def _statistics(normalize: str, channels: int) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation (channels,) of pixels in [0, 1]."""
    if normalize == "unit":
        return torch.zeros(channels), torch.ones(channels)
    if normalize in LEARNED:  # NaN shows that set_statistics was not called
        return torch.full((channels,), torch.nan), torch.full((channels,), torch.nan)
    return Statistics().of_channels(channels)


def padded(length: int, stride: int, smallest: int) -> int:
    """Returns the side that an image of this side is padded to before a network sees it."""
    return -(-max(length, smallest) // stride) * stride


def as_output(value: Any) -> Output:
    """Returns what a network returned as an Output: logits, (logits, presence), or an Output."""
    if isinstance(value, Output):
        return value
    return Output(*value) if isinstance(value, tuple | list) else Output(value)


def _without_background(output: Output) -> Output:
    mask, presence, deep = output
    # a presence head may have an output for the background, which is present in every image
    presence = None if presence is None else presence[:, -1:]
    return Output(mask[:, 1:] - mask[:, :1], presence, tuple(logits[:, 1:] - logits[:, :1] for logits in deep))


# --- construction ----------------------------------------------------------------------------------------------------


def _constructed(settings: ModelSettings, channels: int, classes: int, outputs: int) -> Module:
    if ":" in settings.architecture:
        return user_network(settings, channels, outputs)
    if settings.architecture == "ConfigurableUnet":
        from_settings = {"encoder", "in_channels", "classes", "presence"}
        known = [name for name in inspect.signature(ConfigurableUnet).parameters if name not in from_settings]
        _check_options(settings, known, "ConfigurableUnet", "")
        return ConfigurableUnet(settings.encoder, channels, outputs, presence=settings.presence, **settings.options)
    return _smp_network(settings, channels, classes, outputs)


def _smp_network(settings: ModelSettings, channels: int, classes: int, outputs: int) -> Module:
    architecture: Any = getattr(smp, settings.architecture, None)
    if not _is_model(architecture):
        meant = did_you_mean(settings.architecture, [name for name in dir(smp) if _is_model(getattr(smp, name))])
        raise PipelineError(
            f"model.architecture: segmentation-models-pytorch has no `{settings.architecture}`{meant} A class of your "
            "own is written module:Class."
        )
    set_here = {
        "self",
        "kwargs",
        "encoder_name",
        "encoder_weights",
        "in_channels",
        "classes",
        "activation",
        "aux_params",
    }
    known = [name for name in inspect.signature(architecture).parameters if name not in set_here]
    _check_options(settings, known, f"smp.{settings.architecture}", " (smp would silently ignore it)")
    given = {"in_channels": channels, "classes": outputs, **settings.options}
    if settings.presence:
        given["aux_params"] = {"classes": classes, "dropout": 0.0}
    try:
        return any_size(partial(architecture, settings.encoder, encoder_weights=None, **given), settings.encoder)
    except Exception as error:  # smp and timm raise many types
        pass_on(error)
        if "Wrong encoder name" in str(error):  # the message continues with all names
            meant = did_you_mean(settings.encoder, smp.encoders.get_encoder_names(), 3)
            raise PipelineError(
                f"model.encoder: segmentation-models-pytorch has no `{settings.encoder}`{meant}"
            ) from None
        raise PipelineError(f"model: {settings.architecture} with encoder {settings.encoder}: {error}") from None


def _is_model(architecture: Any) -> bool:
    return inspect.isclass(architecture) and issubclass(architecture, smp.base.SegmentationModel)


def _check_options(settings: ModelSettings, known: list[str], name: str, remark: str) -> None:
    unknown = [option for option in settings.options if option not in known]
    if unknown:
        raise PipelineError(f"model.options: {name} has no {', '.join(unknown)}{remark}; it has {', '.join(known)}.")


def _encoder_for_weights(network: Module, settings: ModelSettings) -> Module:
    encoder = encoder_of(network)
    if encoder is None or (settings.architecture == "ConfigurableUnet" and settings.encoder == "plain"):
        name = "encoder plain" if encoder is not None else f"{settings.architecture}, which has no `encoder`,"
        raise PipelineError(
            f"model.weights is {settings.weights}, but {name} cannot load weights: only encoders of "
            "segmentation-models-pytorch can; set model.weights=none."
        )
    return encoder


def _add_dropout(network: Any, settings: ModelSettings) -> None:
    """Adds dropout before the head. The names of the weights do not change, so that a run may start from any other."""
    if ":" in settings.architecture:
        raise PipelineError(
            f"model.dropout is {settings.dropout}, but the place for it in {settings.architecture} is not known: add "
            "dropout in the class, with an option in model.options, and set model.dropout=0."
        )
    kind = torch.nn.Dropout2d if settings.dropout_kind == "spatial" else torch.nn.Dropout
    head = network.segmentation_head
    owner, name = (network, "segmentation_head") if isinstance(head, torch.nn.Sequential) else (head, "head")
    layers = OrderedDict([("dropout", kind(settings.dropout)), *getattr(owner, name).named_children()])
    setattr(owner, name, torch.nn.Sequential(layers))


# --- a user's own network --------------------------------------------------------------------------------------------


@contextmanager
def _first_on_path(folder: Path) -> Iterator[None]:
    """Puts a folder first on Python's module search path."""
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = before


def _check(network: Module, settings: ModelSettings, channels: int, classes: int, outputs: int) -> None:
    """Checks the outputs of one forward pass, so that a wrong network is found before anything is trained."""
    size = padded(CHECKED_SIZE, stride(network), smallest(network))
    name, shape, training = settings.architecture, (1, channels, size, size), network.training
    try:
        with torch.no_grad():
            output = as_output(network.eval()(torch.zeros(shape)))
    except (Exception, SystemExit) as error:  # a user's code may raise anything
        pass_on(error)
        encoder = "" if ":" in name else f" with encoder {settings.encoder}"
        raise PipelineError(
            f"model: {name}{encoder} failed on an image of shape {shape}, but it must accept any size: "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error
    finally:
        network.train(training)
    mask, presence = output.mask, output.presence
    expected = (1, outputs, size, size)
    if not isinstance(mask, Tensor) or mask.shape != expected:
        raise PipelineError(
            f"model: {name} returned {_described(mask)} for an image of shape {shape}; expected logits of shape "
            f"{expected}. Correct the class or model.options."
        )
    if presence is None and not settings.presence:
        return
    if not isinstance(presence, Tensor) or presence.shape not in ((1, classes), (1, outputs)):
        raise PipelineError(
            f"model.presence is {settings.presence}, but {name} returned {_described(presence)} as presence; expected "
            f"(logits, presence) with presence of shape {(1, classes)}."
        )


def _described(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else "none" if value is None else f"{type(value)}"
