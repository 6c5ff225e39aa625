"""A small, configurable U-Net decoder, on a plain encoder or any of segmentation-models-pytorch and timm."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import segmentation_models_pytorch as smp
import torch
from pydantic import Field, PositiveInt, ValidationError
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from segmentation_models_pytorch.base.modules import SCSEModule
from timm.layers import SEModule
from timm.layers.cbam import CbamModule
from torch import Tensor
from torch.nn import Identity, Module, ModuleList, Sequential, functional

from pipeline.core.config.settings import Settings
from pipeline.core.errors import PipelineError
from pipeline.core.shortage import pass_on
from pipeline.networks.encoders import any_size
from pipeline.networks.output import Output

PLAIN_CHANNELS = [64, 128, 256, 512, 1024]
USUAL_CHANNELS = [256, 128, 64, 32, 16]


class UnetOptions(Settings):
    """The settings that `model.options` may hold for a ConfigurableUnet."""

    channels: list[PositiveInt] | None = Field(None, min_length=2)
    """For encoder `plain`: the channels of each level, the bottleneck last. There is one pooling between two levels.
    null is 64, 128, 256, 512, 1024."""
    encoder_depth: int | None = Field(None, ge=3, le=5)
    """The number of encoder stages that are used, each of which halves the size; not for encoder `plain`, whose
    `channels` give their number. null is 5, or the number that the encoder has."""
    decoder_channels: list[PositiveInt] | None = None
    """The channels of each decoder block, the deepest first. null mirrors the channels of a plain encoder, and is
    256, 128, 64, 32, 16 for any other."""
    skips: bool | list[bool] = True
    """Whether decoder blocks get the encoder's features of their size. A list has one value per decoder block, the
    deepest first."""
    upsampling: Literal["nearest", "bilinear", "transposed"] = "nearest"
    """`transposed` is a learned 2×2 convolution of stride 2 to the channels of the block. The others keep the number of
    channels."""
    norm: Literal["batch", "none", "group", "instance"] = "batch"
    """The normalisation after each 3×3 convolution of the plain encoder and the decoder. Convolutions have a bias only
    with `none`. Groups have 16 channels."""
    attention: Literal["none", "se", "scse", "cbam"] = "none"
    """The attention at the end of each decoder block: `se` (squeeze-and-excitation, Hu et al. 2018), `scse` (Roy et al.
    2018) or `cbam` (Woo et al. 2018)."""
    encoder_attention: bool = False
    """Whether the levels of a plain encoder end with this attention, too."""
    attention_reduction: PositiveInt = 16
    """The factor by which the hidden layer of the attention is narrower than the block."""
    center_channels: int = Field(0, ge=0)
    """If above 0: a 3×3 convolution of the bottleneck to this number of channels is concatenated with the bottleneck,
    and one decoder block without upsampling reduces both to decoder_channels[0]."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """The probability of dropping a value (or a channel) before the first convolution of each decoder block."""
    dropout_kind: Literal["element", "spatial"] = "element"
    """`element` drops single values, `spatial` whole channels."""
    hypercolumn: bool = False
    """Whether the head sees the outputs of all decoder blocks at full size, instead of only the last one."""
    deep_supervision: bool = False
    """Whether, in training, each decoder block except the last predicts a mask too (`loss.deep`)."""
    stem_pool: bool = True
    """false removes the pooling in the stem of a ResNet-like encoder. Its features are then twice as large, and there
    is one decoder block fewer: the features before and after the pool have the same size, and only the latter are
    used."""


class ConfigurableUnet(Module):
    """A U-Net from normalised images (N, in_channels, H, W) to an Output.

    Both sides of the images must be multiples of 32, or of 2 to the power of the number of poolings. The options are
    described in UnetOptions. `presence` adds a linear layer on the mean of the bottleneck. The architecture is that of
    Ronneberger et al. 2015, except that convolutions are padded and keep the size.
    """

    def __init__(
        self,
        encoder: str = "resnet34",
        in_channels: int = 3,
        classes: int = 1,
        *,
        presence: bool = False,
        channels: Sequence[int] | None = None,
        encoder_depth: int | None = None,
        decoder_channels: Sequence[int] | None = None,
        skips: bool | Sequence[bool] = True,
        upsampling: str = "nearest",
        norm: str = "batch",
        attention: str = "none",
        encoder_attention: bool = False,
        attention_reduction: int = 16,
        center_channels: int = 0,
        dropout: float = 0.0,
        dropout_kind: str = "element",
        hypercolumn: bool = False,
        deep_supervision: bool = False,
        stem_pool: bool = True,
    ) -> None:
        given = {name: value for name, value in locals().items() if name in UnetOptions.model_fields}
        super().__init__()
        options = _validated(given)
        self.hypercolumn = options.hypercolumn
        self.encoder, self.first_level, levels, has_full_size = _encoder(encoder, in_channels, options)
        available = levels[-2::-1] + ([] if has_full_size else [0])
        usual = available if encoder == "plain" else USUAL_CHANNELS[: len(available)]
        widths = _decoder_channels(options, len(available), usual)
        self.skips = _skips(options, available)
        skip_channels = [number * used for number, used in zip(available, self.skips, strict=True)]
        self.center = Center(levels[-1], widths[0], options) if options.center_channels else Identity()
        below = [widths[0] if options.center_channels else levels[-1], *widths[:-1]]
        blocks = zip(below, skip_channels, widths, strict=True)
        self.blocks = ModuleList(DecoderBlock(*channels_of_block, options) for channels_of_block in blocks)
        head_channels = sum(widths) if options.hypercolumn else widths[-1]
        self.segmentation_head = smp.base.SegmentationHead(head_channels, classes, kernel_size=1)
        deep_widths = widths[:-1] if options.deep_supervision else []
        self.deep_heads = ModuleList(torch.nn.Conv2d(width, classes, 1) for width in deep_widths)
        self.classification_head = smp.base.ClassificationHead(levels[-1], classes, dropout=0.0) if presence else None
        self._initialize()

    def forward(self, images: Tensor) -> Output:
        """Returns mask logits (N, classes, H, W), with the outputs that presence and deep_supervision add."""
        features = self.encoder(images)[self.first_level :]
        x, skips = self.center(features[-1]), features[-2::-1]
        outputs = []
        for number, block in enumerate(self.blocks):
            x = block(x, skips[number] if self.skips[number] else None)
            outputs.append(x)
        resize = partial(functional.interpolate, size=images.shape[2:], mode="bilinear", align_corners=False)
        if self.hypercolumn:
            x = torch.cat([resize(output) for output in outputs], 1)
        # deep_heads are one fewer than outputs
        heads = zip(self.deep_heads, outputs, strict=False) if self.training else ()
        deep = tuple(resize(head(output)) for head, output in heads)
        presence = None if self.classification_head is None else self.classification_head(features[-1])
        return Output(self.segmentation_head(x), presence, deep)

    def _initialize(self) -> None:
        """Applies He initialisation; without it, a deep network without normalisation hardly starts to learn."""
        for module in (
            self.center,
            self.blocks,
            self.encoder if isinstance(self.encoder, PlainEncoder) else Identity(),
        ):
            initialize_decoder(module)
        for head in (self.segmentation_head, self.deep_heads, self.classification_head):
            if head is not None:
                initialize_head(head)


class PlainEncoder(Module):
    """An encoder with two 3×3 convolutions per level and 2×2 max-pooling between the levels."""

    def __init__(self, in_channels: int, channels: Sequence[int], options: UnetOptions) -> None:
        super().__init__()
        self.out_channels = list(channels)
        below = [in_channels, *channels[:-1]]
        self.levels = ModuleList(
            Sequential(
                *_convolution(before, after, options.norm),
                *_convolution(after, after, options.norm),
                *(_attention(after, options) if options.encoder_attention else []),
            )
            for before, after in zip(below, channels, strict=True)
        )
        self.output_stride = 2 ** (len(channels) - 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Returns the features (N, C, H, W) of all levels, the largest first."""
        features: list[Tensor] = []
        for level in self.levels:
            x = level(functional.max_pool2d(x, 2) if features else x)
            features.append(x)
        return features


class DecoderBlock(Module):
    """A decoder block: upsampling by 2, concatenation with the skip, dropout, two convolutions, attention."""

    def __init__(self, below: int, skip: int, channels: int, options: UnetOptions) -> None:
        super().__init__()
        self.upsample: Module
        if options.upsampling == "transposed":
            self.upsample = torch.nn.ConvTranspose2d(below, channels, 2, stride=2)
            below = channels
        else:
            self.upsample = torch.nn.Upsample(scale_factor=2, mode=options.upsampling)
        self.convolutions = _block(below + skip, channels, options)

    def forward(self, below: Tensor, skip: Tensor | None) -> Tensor:
        """Returns features (N, channels, H, W) with twice the size of `below`; `skip` has this size too."""
        x = self.upsample(below)
        return self.convolutions(x if skip is None else torch.cat([skip, x], 1))


class Center(Module):
    """A decoder block without upsampling on the bottleneck concatenated with a narrower convolution of it."""

    def __init__(self, below: int, channels: int, options: UnetOptions) -> None:
        super().__init__()
        self.branch = Sequential(*_convolution(below, options.center_channels, options.norm))
        self.convolutions = _block(below + options.center_channels, channels, options)

    def forward(self, x: Tensor) -> Tensor:
        """Returns features (N, channels, H, W) of the size of x."""
        return self.convolutions(torch.cat([x, self.branch(x)], 1))


# --- parts -----------------------------------------------------------------------------------------------------------


def _group_norm(channels: int) -> Module:
    return torch.nn.GroupNorm(channels // math.gcd(channels, 16), channels)


NORMS: dict[str, Callable[[int], Module]] = {
    "batch": torch.nn.BatchNorm2d,
    "group": _group_norm,
    "instance": partial(torch.nn.InstanceNorm2d, affine=True),
}


def _convolution(below: int, channels: int, norm: str) -> list[Module]:
    # normalisation layers have their own shift, so no bias is needed
    layers: list[Module] = [torch.nn.Conv2d(below, channels, 3, padding=1, bias=norm == "none")]
    if norm != "none":
        layers.append(NORMS[norm](channels))
    return [*layers, torch.nn.ReLU(inplace=True)]


def _block(below: int, channels: int, options: UnetOptions) -> Module:
    layers: list[Module] = []
    if options.dropout:
        kind = torch.nn.Dropout2d if options.dropout_kind == "spatial" else torch.nn.Dropout
        layers.append(kind(options.dropout))
    layers += _convolution(below, channels, options.norm) + _convolution(channels, channels, options.norm)
    return Sequential(*layers, *_attention(channels, options))


def _attention(channels: int, options: UnetOptions) -> list[Module]:
    narrow = channels // options.attention_reduction
    match options.attention:
        case "se":
            return [SEModule(channels, rd_channels=narrow)]
        case "scse":
            return [SCSEModule(channels, options.attention_reduction)]
        case "cbam":
            return [CbamModule(channels, rd_channels=narrow)]
    return []


def _encoder(name: str, in_channels: int, options: UnetOptions) -> tuple[Module, int, list[int], bool]:
    """Returns an encoder, the index of its first feature that is used, the channels of the used features, and whether
    the first one has full size.

    Raises:
        PipelineError: an unknown encoder, or an option that it does not support.
    """
    if name == "plain":
        if not options.stem_pool:
            raise PipelineError(
                "model.options.stem_pool is false, but encoder plain has no pool in its stem: remove the setting."
            )
        if options.encoder_depth is not None:
            raise PipelineError(
                "model.options.encoder_depth is not for encoder plain; give its channels in model.options.channels."
            )
        channels = options.channels or PLAIN_CHANNELS
        if options.encoder_attention:
            if options.attention == "none":
                raise PipelineError(
                    "model.options.encoder_attention is true, but model.options.attention is none: choose se, scse or "
                    "cbam."
                )
            _check_reduction(options, channels, "level of the encoder")
        return PlainEncoder(in_channels, channels, options), 0, channels, True
    if options.encoder_attention:
        raise PipelineError(
            f"model.options.encoder_attention is only for encoder plain, not for {name}: remove the setting."
        )
    if options.channels is not None:
        raise PipelineError(
            f"model.options.channels is only for encoder plain; the channels of {name} are fixed: remove the setting."
        )
    try:
        depth = {} if options.encoder_depth is None else {"depth": options.encoder_depth}
        encoder: Any = any_size(partial(smp.encoders.get_encoder, name, in_channels=in_channels, **depth), name)
    except Exception as error:  # smp and timm raise many types
        pass_on(error)
        raise PipelineError(f"model: ConfigurableUnet with encoder {name}: {error}") from None
    channels = list(encoder.out_channels)
    # the features of full size are the image itself, except for VGG
    first = int(channels[0] == in_channels)
    if not options.stem_pool:
        _remove_stem_pool(encoder, name)
        first = 2
    return encoder, first, channels[first:], first == 0


def _remove_stem_pool(encoder: Any, name: str) -> None:
    owner = encoder if hasattr(encoder, "maxpool") else getattr(encoder, "model", None)  # encoders of timm
    if not isinstance(getattr(owner, "maxpool", None), Module):
        raise PipelineError(
            f"model.options.stem_pool is false, but encoder {name} has no pool in its stem (`maxpool`): remove the "
            "setting, or use an encoder with such a pool, e.g. resnet34."
        )
    owner.maxpool = Identity()  # type: ignore[union-attr]


# --- options ---------------------------------------------------------------------------------------------------------


def _validated(given: dict[str, Any]) -> UnetOptions:
    try:
        return UnetOptions.model_validate(given)
    except ValidationError as error:
        fault = error.errors()[0]
        key = str(fault["loc"][0])
        raise PipelineError(f"model.options.{key} is {given[key]!r}: {fault['msg']}.") from None


def _decoder_channels(options: UnetOptions, blocks: int, usual: list[int]) -> list[int]:
    widths = options.decoder_channels or usual
    if len(widths) != blocks:
        raise PipelineError(
            f"model.options.decoder_channels is {widths}; expected {blocks} numbers, one per decoder block, the "
            "deepest first."
        )
    if options.attention != "none":
        _check_reduction(options, widths, "decoder block")
    return widths


def _check_reduction(options: UnetOptions, widths: Sequence[int], part: str) -> None:
    if options.attention_reduction > min(widths):
        raise PipelineError(
            f"model.options.attention_reduction is {options.attention_reduction}; expected at most {min(widths)}, the "
            f"number of channels of the narrowest {part}."
        )


def _skips(options: UnetOptions, available: list[int]) -> list[bool]:
    """Returns which decoder blocks get a skip. `available` holds the channels of each block's skip, 0 if it has
    none."""
    if isinstance(options.skips, bool):
        return [options.skips and channels > 0 for channels in available]
    if len(options.skips) != len(available):
        raise PipelineError(
            f"model.options.skips is {options.skips}; expected {len(available)} values, one per decoder block."
        )
    for number, (wanted, channels) in enumerate(zip(options.skips, available, strict=True), 1):
        if wanted and not channels:
            raise PipelineError(
                f"model.options.skips is {options.skips}, but the encoder has no features for decoder block {number}."
            )
    return options.skips
