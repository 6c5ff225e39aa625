"""The U-Net whose parts are settings."""

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import SEModule

from pipeline.core.config.recipe import ModelSettings
from pipeline.core.errors import PipelineError
from pipeline.networks.models import SegmentationNetwork, build, encoder_of, parameter_count
from pipeline.networks.output import Output
from pipeline.networks.unet import ConfigurableUnet, DecoderBlock

TINY: dict[str, Any] = {"encoder": "plain", "channels": [4, 8, 16], "attention_reduction": 1}
RESNET: dict[str, Any] = {"encoder": "resnet18", "decoder_channels": [16, 16, 8, 8, 8], "attention_reduction": 1}


def shapes(network: ConfigurableUnet, size: int) -> list[tuple[int, int, int]]:
    """Channels and rows of what each block gets from below, of its skip's channels, and what it gives."""
    found: list[tuple[int, int, int]] = []

    def note(block: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        skip = inputs[1].shape[1] if inputs[1] is not None else 0
        found.append((skip, output.shape[1], output.shape[2]))

    for block in network.blocks:
        assert isinstance(block, DecoderBlock)
        block.register_forward_hook(note)
    channels = next(network.encoder.parameters()).shape[1]
    with torch.inference_mode():
        output = network.eval()(torch.zeros(1, channels, size, size))
    assert output.mask.shape == (1, 1, size, size)
    return found


# --- networks that are well known ------------------------------------------------------------------------------------


def plain_parameters(widths: list[int], in_channels: int, classes: int, per_channel: int) -> int:
    """Weights of a plain U-Net with transposed convolutions; a 3x3 convolution has `per_channel` more a channel."""

    def double(below: int, channels: int) -> int:
        return 9 * channels * (below + channels) + 2 * per_channel * channels

    down = sum(double(*pair) for pair in zip([in_channels, *widths], widths, strict=False))
    up = sum(
        4 * wide * narrow + narrow + double(2 * narrow, narrow)
        for narrow, wide in zip(widths, widths[1:], strict=False)
    )
    return down + up + widths[0] * classes + classes


@pytest.mark.parametrize(("norm", "per_channel", "known"), [("batch", 2, 31_037_633), ("none", 1, 31_031_745)])
def test_the_plain_unet_has_its_parameters(norm: str, per_channel: int, known: int) -> None:
    # milesial/Pytorch-UNet has 31,037,698 with two classes (65 a class): no bias in front of the normalisation, whose
    # weight and shift are 2 a channel; without it, the bias is 1 a channel
    network: Any = ConfigurableUnet("plain", upsampling="transposed", norm=norm)
    assert parameter_count(network) == known == plain_parameters([64, 128, 256, 512, 1024], 3, 1, per_channel)
    assert shapes(network, 64) == [(512, 512, 8), (256, 256, 16), (128, 128, 32), (64, 64, 64)]


def test_the_resnet_unet_of_transposed_convolutions() -> None:
    network: Any = ConfigurableUnet("resnet34", decoder_channels=[256, 128, 64, 64, 64], upsampling="transposed")
    assert shapes(network, 64) == [(256, 256, 4), (128, 128, 8), (64, 64, 16), (64, 64, 32), (0, 64, 64)]
    assert [block.upsample.weight.shape[:2] for block in network.blocks] == [
        (512, 256), (256, 128), (128, 64), (64, 64), (64, 64),
    ]  # fmt: skip
    assert [block.convolutions[0].in_channels for block in network.blocks] == [512, 256, 128, 128, 64]


def test_the_resnet_unet_with_attention() -> None:
    network: Any = ConfigurableUnet(
        "resnet34",
        decoder_channels=[32] * 5,
        skips=[True, True, True, False, False],
        upsampling="transposed",
        attention="cbam",
        center_channels=256,
    )
    assert network.center.convolutions[0].weight.shape[:2] == (32, 768)
    assert [block.convolutions[0].in_channels for block in network.blocks] == [288, 160, 96, 32, 32]
    assert all(type(block.convolutions[-1]).__name__ == "CbamModule" for block in (network.center, *network.blocks))
    assert network.segmentation_head[0].weight.shape == (1, 32, 1, 1)
    assert shapes(network, 64) == [(256, 32, 4), (128, 32, 8), (64, 32, 16), (0, 32, 32), (0, 32, 64)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"channels": [64, 128, 256, 512, 512], "upsampling": "bilinear", "decoder_channels": [256, 128, 64, 64]}, 4),
        ({"channels": [32, 64, 128, 256, 512]}, 4),
        ({"channels": [4, 8, 16, 32, 64, 128]}, 5),
        ({"channels": [4, 8, 16], "skips": False}, 2),
    ],
)
def test_plain_unets(options: dict[str, Any], expected: int) -> None:
    network: Any = ConfigurableUnet("plain", 1, **options)
    channels = options["channels"][-2::-1]
    widths = options.get("decoder_channels", channels)
    skips = [number * options.get("skips", True) for number in channels]
    sizes = [64 >> (expected - 1 - block) for block in range(expected)]
    assert shapes(network, 64) == list(zip(skips, widths, sizes, strict=True))
    if options.get("upsampling") == "bilinear":  # as milesial's
        assert network.blocks[0].convolutions[0].in_channels == 1024


def test_squeeze_and_excitation_in_every_block() -> None:
    network = ConfigurableUnet(
        "plain", 1, 5, channels=[8, 16, 32], attention="se", encoder_attention=True, attention_reduction=8
    )
    blocks = [*network.encoder.levels, *(block.convolutions for block in network.blocks)]
    assert [block[-1].fc1.out_channels for block in blocks] == [1, 2, 4, 2, 1]
    assert all(isinstance(block[-1], SEModule) for block in blocks)


# --- options ---------------------------------------------------------------------------------------------------------

OPTIONS: list[dict[str, Any]] = [
    *({"upsampling": one} for one in ("nearest", "bilinear", "transposed")),
    *({"norm": one} for one in ("batch", "none", "group", "instance")),
    *({"attention": one} for one in ("none", "se", "scse", "cbam")),
    {"center_channels": 4},
    {"center_channels": 4, "attention": "scse", "norm": "group", "upsampling": "transposed"},
    *({"dropout": 0.2, "dropout_kind": one} for one in ("element", "spatial")),
    {"hypercolumn": True},
    {"deep_supervision": True},
    {"presence": True},
    {"skips": False},
    {"hypercolumn": True, "deep_supervision": True, "presence": True, "center_channels": 8, "attention": "cbam"},
]


@pytest.mark.parametrize("base", [TINY, RESNET], ids=["plain", "resnet18"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradients_reach_all_parameters(base: dict[str, Any], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network: Any = ConfigurableUnet(**base, in_channels=1, classes=2, **options)
    output = network(torch.randn(2, 1, 64, 64))
    blocks = len(network.blocks)
    assert (output.presence is not None) == options.get("presence", False)
    assert len(output.deep) == (blocks - 1) * options.get("deep_supervision", False)
    values = [output.mask, *output.deep, *([] if output.presence is None else [output.presence])]
    assert all(one.shape == (2, 2, 64, 64) for one in (output.mask, *output.deep))
    torch.stack([(one * torch.randn_like(one)).sum() for one in values]).sum().backward()
    silent = [name for name, one in network.named_parameters() if one.grad is None or not one.grad.any()]
    assert not silent
    assert network.eval()(torch.randn(1, 1, 64, 64)).deep == ()


@pytest.mark.parametrize("encoder", ["resnet18", "tu-resnet18"])
def test_without_the_pool_of_the_stem_features_are_twice_as_large(encoder: str) -> None:
    network: Any = ConfigurableUnet(encoder, stem_pool=False)
    assert shapes(network, 64) == [(256, 256, 8), (128, 128, 16), (64, 64, 32), (0, 32, 64)]
    usual = ConfigurableUnet(encoder)
    assert shapes(usual, 64) == [(256, 256, 4), (128, 128, 8), (64, 64, 16), (64, 32, 32), (0, 16, 64)]
    usual.encoder.load_state_dict(network.encoder.state_dict())


def test_fewer_stages() -> None:
    network: Any = ConfigurableUnet("resnet18", encoder_depth=4, deep_supervision=True)
    assert shapes(network, 64) == [(128, 256, 8), (64, 128, 16), (64, 64, 32), (0, 32, 64)]
    assert len(network.train()(torch.randn(2, 3, 64, 64)).deep) == 3


@pytest.mark.parametrize(
    ("encoder", "skips"),
    [
        ("mit_b0", [160, 64, 32, 0, 0]),
        ("tu-convnext_atto", [160, 80, 40, 0, 0]),
        ("mobilenet_v2", [96, 32, 24, 16, 0]),
        ("vgg11", [512, 512, 256, 128, 64]),
    ],
)
def test_other_encoders(encoder: str, skips: list[int]) -> None:
    found = shapes(ConfigurableUnet(encoder), 64)
    assert found == list(zip(skips, [256, 128, 64, 32, 16], [4, 8, 16, 32, 64], strict=True))


def test_dropout_comes_before_the_convolutions_of_each_block() -> None:
    network: Any = ConfigurableUnet(**TINY, dropout=0.3, dropout_kind="spatial")
    assert [type(block.convolutions[0]) for block in network.blocks] == [torch.nn.Dropout2d] * 2
    images = torch.randn(1, 3, 16, 16)
    assert not torch.equal(network(images).mask, network(images).mask)
    assert torch.equal(network.eval()(images).mask, network(images).mask)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"upsampling": "cubic"}, "model.options.upsampling is 'cubic': .*'nearest', 'bilinear' or 'transposed'"),
        ({"norm": True}, "model.options.norm is True"),
        ({"attention": "eca"}, "model.options.attention is 'eca'"),
        ({"encoder_attention": True}, "encoder_attention is true, but model.options.attention is none"),
        ({"encoder_attention": True, "attention": "se", "attention_reduction": 5}, "reduction is 5; .* at most 4"),
        ({"encoder": "resnet18", "channels": None, "encoder_attention": True}, "encoder_attention is only for encoder"),
        ({"channels": [64]}, "model.options.channels is"),
        ({"channels": [64, 0]}, "model.options.channels is"),
        ({"decoder_channels": [8, 8, 8]}, "model.options.decoder_channels is .*expected 2 numbers"),
        ({"decoder_channels": "many"}, "model.options.decoder_channels is 'many'"),
        ({"skips": [True]}, "model.options.skips is .*expected 2 values"),
        ({"skips": "all"}, "model.options.skips is 'all'"),
        ({"center_channels": -1}, "model.options.center_channels is -1"),
        ({"dropout": 1.0}, "model.options.dropout is 1.0"),
        ({"dropout_kind": "some"}, "model.options.dropout_kind is 'some'"),
        ({"attention": "cbam", "attention_reduction": 16}, "model.options.attention_reduction is 16; .* at most 4"),
        ({"attention_reduction": 0}, "model.options.attention_reduction is 0"),
        ({"encoder_depth": 4}, "model.options.encoder_depth is not for encoder plain"),
        ({"encoder_depth": 2}, "model.options.encoder_depth is 2"),
        ({"stem_pool": False}, "model.options.stem_pool is false, but encoder plain has no pool"),
        ({"encoder": "densenet121", "channels": None, "stem_pool": False}, "encoder densenet121 has no pool"),
        ({"encoder": "resnet18"}, "model.options.channels is only for encoder plain"),
        ({"encoder": "resnet18", "channels": None, "skips": [True] * 5}, "model.options.skips .* decoder block 5"),
        ({"encoder": "resnet999", "channels": None}, "ConfigurableUnet with encoder resnet999: .*resnet34"),
    ],
)
def test_wrong_options_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        ConfigurableUnet(**{**TINY, **given})


# --- as a recipe asks for it -----------------------------------------------------------------------------------------


def test_built_from_settings() -> None:
    options = {"channels": [4, 8, 16], "deep_supervision": True, "hypercolumn": True}
    settings = ModelSettings(architecture="ConfigurableUnet", encoder="plain", options=options, presence=True)
    network = SegmentationNetwork(build(settings, 1, 3, None), 1, "unit", 255)
    output = network(torch.randint(0, 256, (2, 1, 30, 45), dtype=torch.uint8))
    assert isinstance(output, Output)
    assert output.presence is not None
    assert output.presence.shape == (2, 3)
    assert [one.shape for one in (output.mask, *output.deep)] == [(2, 3, 30, 45)] * 2
    assert encoder_of(network) is network.network.encoder


def test_faults_in_settings(tmp_path: Path) -> None:
    def message(source: Path | None = None, **settings: Any) -> str:
        with pytest.raises(PipelineError) as caught:
            build(ModelSettings(architecture="ConfigurableUnet", **settings), 1, 1, source)
        return str(caught.value)

    unknown = message(options={"presence": True, "depth": 3})
    assert unknown.startswith(
        "model.options: ConfigurableUnet has no presence, depth; it has channels, encoder_depth, decoder_channels"
    )
    small = {"channels": [4, 8]}
    assert "encoder plain cannot load weights" in message(
        tmp_path / "w.pth", encoder="plain", weights="w", options=small
    )
