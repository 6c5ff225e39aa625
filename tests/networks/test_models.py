"""Networks and encoder weights from a file."""

import copy
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch

from pipeline.core.config.recipe import ModelSettings
from pipeline.core.errors import PipelineError
from pipeline.networks.models import (
    SegmentationNetwork,
    build,
    encoder_of,
    encoder_parameters,
    parameter_count,
    smallest,
    stride,
)
from pipeline.networks.output import Output

SMALL = ModelSettings(encoder="mobilenet_v2", options={"decoder_channels": [32, 16, 8, 8, 8]})


@pytest.mark.parametrize("channels", [1, 3])
def test_logits_have_the_size_of_the_image(channels: int) -> None:
    inner = build(SMALL, channels, 2, None)
    network = SegmentationNetwork(inner, channels, "imagenet", 255).eval()
    for size in ((101, 101), (70, 50), (64, 32)):
        images = torch.randint(0, 256, (1, channels, *size), dtype=torch.uint8)
        with torch.inference_mode():
            logits = network(images).mask
            assert logits.shape == (1, 2, *size)
            assert torch.isfinite(logits).all()
            torch.testing.assert_close(network(images.int()).mask, logits)


class Echo(torch.nn.Module):
    """A network that gives back what it sees."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.shape = images.shape
        return images


@pytest.mark.parametrize(("largest", "dtype"), [(255, torch.uint8), (65535, torch.int32)])
def test_pixels_are_normalized_and_padding_is_cut_off(largest: int, dtype: torch.dtype) -> None:
    images = torch.full((1, 3, 33, 40), largest).to(dtype)
    echo = Echo()
    seen = SegmentationNetwork(echo, 3, "imagenet", largest)(images).mask
    assert echo.shape == (1, 3, 64, 64)
    assert seen.shape == (1, 3, 33, 40)
    expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(seen[0, :, 0, 0], expected)
    grey = SegmentationNetwork(echo, 1, "imagenet", largest)(images[:, :1]).mask
    torch.testing.assert_close(grey[0, 0, 0, 0].item(), (1 - 0.449) / 0.226, atol=1e-5, rtol=0)
    unit = SegmentationNetwork(echo, 1, "unit", largest)
    assert unit(images[:, :1]).mask.unique().tolist() == [1.0]
    assert not unit.state_dict()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"options": {"decoder_dropout": 0.2}}, "smp.Unet has no decoder_dropout.*it has .*decoder_channels"),
        ({"options": {"encoder_name": "resnet34"}}, "smp.Unet has no encoder_name"),
        ({"options": {"decoder_channels": [16, 8]}}, "Unet with encoder resnet18: .*decoder_channels"),
        ({"architecture": "Unett"}, r"model.architecture: .* has no `Unett`; did you mean `Unet`\?"),
        ({"architecture": "PSPNet", "options": {"encoder_depth": 5}}, r"PSPNet returned shape \(1, 1, 16, 16\)"),
        (
            {
                "architecture": "DPT",
                "encoder": "tu-vit_relpos_small_patch16_224",
                "options": {"decoder_readout": "ignore"},
            },
            "must accept any size: .*match model",
        ),
        ({"architecture": "encoders"}, "model.architecture: segmentation-models-pytorch has no `encoders`"),
        (
            {"encoder": "resnet999"},
            r"model.encoder: .* has no `resnet999`; did you mean (`\w*resnet\w+`(, | or |\?$)){3}",
        ),
        ({"encoder": "resnet35"}, "has no `resnet35`; did you mean `resnet34`, `resnet50` or "),
        ({"encoder": "tu-resnet999"}, "Unet with encoder tu-resnet999: "),
    ],
)
def test_wrong_models_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        build(ModelSettings(**{"encoder": "resnet18", **settings}), 1, 1, None)


def test_options_reach_the_architecture() -> None:
    plain = ModelSettings(encoder="mobilenet_v2")
    assert parameter_count(build(SMALL, 1, 1, None)) < parameter_count(build(plain, 1, 1, None))


def made(channels: int = 3, classes: int = 1, normalize: str = "imagenet", **settings: Any) -> Any:
    """A network whose encoder is small, unless said otherwise."""
    chosen = ModelSettings(**{"encoder": "resnet18", **settings})
    inner = build(chosen, channels, classes, None)
    return SegmentationNetwork(inner, channels, normalize, 255, chosen.background_output)


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", [one.__name__ for one in smp.MODEL_ARCHITECTURES_MAPPING.values()])
def test_every_architecture_takes_any_size(architecture: str) -> None:
    network = made(
        architecture=architecture,
        encoder="tu-vit_tiny_patch16_224" if architecture == "DPT" else "resnet18",
        presence=True,
        dropout=0.3,
        classes=2,
    ).eval()
    for size in ((101, 101), (420, 580), (20, 33)):
        with torch.inference_mode():
            output = network(noise(1, 3, *size))
        assert output.mask.shape == (1, 2, *size)
        assert output.presence is not None
        assert output.presence.shape == (1, 2)
        assert all(torch.isfinite(values).all() for values in output[:2])
        assert output.deep == ()


@pytest.mark.parametrize(
    "encoder", ["tu-resnet18", "tu-convnext_atto", "tu-swin_tiny_patch4_window7_224", "tu-mobilenetv3_small_050"]
)
def test_timm_encoders_take_any_size(encoder: str) -> None:
    with torch.inference_mode():
        assert made(1, encoder=encoder).eval()(noise(1, 1, 70, 101)).mask.shape == (1, 1, 70, 101)


def test_what_pan_and_large_patches_need() -> None:
    assert [smallest(smp.PAN("resnet18", encoder_weights=None, encoder_output_stride=one)) for one in (16, 32)] == [
        128,
        256,
    ]
    patches: Any = torch.nn.Module()
    patches.encoder = torch.nn.Module()
    patches.encoder.output_stride = 14
    assert (stride(patches), stride(Echo()), smallest(patches)) == (224, 32, 1)


@pytest.mark.parametrize("encoder", ["resnet18", "mobilenet_v2", "tu-tf_efficientnet_lite0"])
def test_a_shallow_unet_is_not_padded_further_than_it_halves(encoder: str) -> None:
    inner = build(ModelSettings(encoder=encoder, options={"encoder_depth": 4, "decoder_channels": [8] * 4}), 3, 1, None)
    network, images = SegmentationNetwork(inner, 3, "unit", 255).eval(), torch.zeros((1, 3, 112, 80), dtype=torch.uint8)
    seen: list[torch.Size] = []
    inner.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].shape[2:]))
    with torch.inference_mode():
        assert [network(images[:, :, :height]).mask.shape[2] for height in (112, 101)] == [112, 101]
    assert stride(inner) == 16 and seen == [(112, 80), (112, 80)]


# --- normalisation ---------------------------------------------------------------------------------------------------


def test_statistics_of_the_dataset_are_saved_with_the_weights() -> None:
    network, other = (SegmentationNetwork(Echo(), 3, "dataset", 255) for _ in range(2))
    pixels = torch.full((1, 3, 32, 32), 60, dtype=torch.uint8)
    assert network(pixels).mask.isnan().all()
    network.set_statistics([10.0, 20.0, 60.0], [5.0, 20.0, 0.0])
    other.load_state_dict(network.state_dict())
    assert other(pixels).mask[0, :, 0, 0].tolist() == [10.0, 2.0, 0.0]
    with pytest.raises(ValueError, match="1 means"):
        network.set_statistics([1.0], [1.0])
    with pytest.raises(ValueError, match="normalize is imagenet"):
        SegmentationNetwork(Echo(), 1, "imagenet", 255).set_statistics([1.0], [1.0])
    with pytest.raises(ValueError, match="normalize is 'none'"):
        SegmentationNetwork(Echo(), 1, "none", 255)


@pytest.mark.parametrize(("largest", "dtype"), [(255, torch.uint8), (65535, torch.int32)])
def test_each_image_by_its_own_statistics(largest: int, dtype: torch.dtype) -> None:
    pixels = torch.randint(0, largest + 1, (3, 3, 33, 40)).to(dtype)
    pixels[1] //= 7
    pixels[2] = 93
    found = SegmentationNetwork(Echo(), 3, "image", largest)(pixels).mask
    torch.testing.assert_close(found[:2].mean((1, 2, 3)), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(found[:2].std((1, 2, 3), correction=0), torch.ones(2), atol=1e-3, rtol=0)
    assert found[2].unique().tolist() == [0.0]


# --- what is added to the network ------------------------------------------------------------------------------------


class Fixed(torch.nn.Module):
    """Gives what it was given, whatever it sees."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, images: torch.Tensor) -> Any:
        return self.value


def test_all_that_a_network_may_return() -> None:
    mask, presence, pixels = torch.randn(1, 2, 32, 32), torch.randn(1, 2), noise(1, 1, 20, 30)
    for value in (mask, (mask, presence), Output(mask, presence, (mask * 2,))):
        found = SegmentationNetwork(Fixed(value), 1, "unit", 255)(pixels)
        assert torch.equal(found.mask, mask[:, :, :20, :30])
        assert (found.presence is None) == isinstance(value, torch.Tensor)
        assert [one.shape for one in found.deep] == [(1, 2, 20, 30)] * isinstance(value, Output)
    difference = (mask[:, 1:] - mask[:, :1])[:, :, :20, :30]
    found = SegmentationNetwork(Fixed(Output(mask, presence, (mask * 2,))), 1, "unit", 255, True)(pixels)
    assert torch.equal(found.mask, difference)
    assert torch.equal(found.deep[0], 2 * difference)
    assert found.presence is not None
    assert found.presence.tolist() == presence[:, 1:].tolist()


@pytest.mark.parametrize("architecture", ["Unet", "ConfigurableUnet"])
def test_two_outputs_of_one_class(architecture: str) -> None:
    network = made(architecture=architecture, background_output=True, presence=True).eval()
    found = network(noise(2, 3, 40, 40))
    assert found.mask.shape == (2, 1, 40, 40)
    assert found.presence is not None
    assert found.presence.shape == (2, 1)
    assert network.network.segmentation_head[0].out_channels == 2
    with pytest.raises(PipelineError, match="background_output is for one class, but there are 2"):
        made(classes=2, background_output=True)


@pytest.mark.parametrize("architecture", ["Unet", "FPN", "DPT", "ConfigurableUnet"])
@pytest.mark.parametrize("kind", ["element", "spatial"])
def test_dropout_comes_before_the_head(architecture: str, kind: str) -> None:
    encoder = "tu-vit_tiny_patch16_224" if architecture == "DPT" else "mobilenet_v2"
    settings: dict[str, Any] = {"architecture": architecture, "encoder": encoder}
    network, plain = made(dropout=0.5, dropout_kind=kind, **settings).network, made(**settings).network
    expected = torch.nn.Dropout2d if kind == "spatial" else torch.nn.Dropout
    head = network.segmentation_head.head if architecture == "DPT" else network.segmentation_head
    assert type(head[0]) is expected
    assert head[0].p == 0.5
    assert list(network.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(network.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(network.eval()(images), plain.eval()(images))
        head.train()
        assert not torch.equal(_mask(network(images)), _mask(network(images)))


def _mask(value: Any) -> torch.Tensor:
    return value if isinstance(value, torch.Tensor) else value[0]


def test_the_encoder_is_found() -> None:
    network = made(encoder="mobilenet_v2")
    encoder: Any = network.network.encoder
    assert [encoder_of(one) for one in (network, network.network)] == [encoder, encoder]
    assert encoder_parameters(network) == list(encoder.parameters())
    echo = SegmentationNetwork(Echo(), 1, "unit", 255)
    assert encoder_of(echo) is None
    assert encoder_parameters(echo) == []


@pytest.mark.parametrize("settings", [{"architecture": "Unet"}, {"architecture": "ConfigurableUnet"}])
def test_compiled_and_channels_last(settings: dict[str, Any]) -> None:
    network = made(normalize="image", presence=True, background_output=True, **settings).eval()
    pixels = noise(1, 3, 40, 50)
    with torch.no_grad():
        expected = network(pixels)
        copied = copy.deepcopy(network).to(memory_format=torch.channels_last)
        torch.testing.assert_close(copied(pixels), expected, atol=1e-4, rtol=1e-4)
        network.compile(backend="eager", fullgraph=True)
        torch.testing.assert_close(network(pixels), expected)
    torch._dynamo.reset()


@pytest.mark.parametrize("architecture", ["Unet", "ConfigurableUnet"])
@pytest.mark.parametrize("encoder", ["mobilenet_v2", "tu-resnet18"])
def test_weights_of_three_channels_start_one_of_one(architecture: str, encoder: str, tmp_path: Path) -> None:
    source: Any = smp.encoders.get_encoder(encoder, weights=None)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    settings = ModelSettings(architecture=architecture, encoder=encoder)
    found = encoder_of(build(settings, 1, 1, tmp_path / "w.pth"))
    assert found is not None
    first, other = next(source.parameters()), next(found.parameters())
    torch.testing.assert_close(other, first.sum(1, keepdim=True))
    torch.testing.assert_close(list(found.parameters())[3], list(source.parameters())[3])


# --- a network of one's own ------------------------------------------------------------------------------------------

OWN = """
import torch

class Net(torch.nn.Module):
    def __init__(self, channels, classes, width=4, presence=False, fault=None):
        super().__init__()
        self.first, self.last = torch.nn.Conv2d(channels, width, 3, padding=1), torch.nn.Conv2d(width, classes, 1)
        self.presence, self.fault = presence, fault
        if fault == "constructor":
            raise RuntimeError("no memory")

    def forward(self, images):
        if self.fault == "forward":
            raise RuntimeError("no way")
        mask = self.last(self.first(images).relu())
        mask = mask[:, :, ::2] if self.fault == "size" else {} if self.fault == "type" else mask
        return (mask, mask.mean((2, 3))) if self.presence else mask

class Encoded(Net):
    def __init__(self, channels, classes):
        super().__init__(channels, classes)
        self.encoder = torch.nn.Conv2d(channels, 4, 1)

    def forward(self, images):
        return super().forward(images[:, :self.first.in_channels]) + self.encoder(images).mean()

Number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module in the root, which no other test has imported."""
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    name = f"own_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(OWN))
    (tmp_path / f"{name}_broken.py").write_text("import nothing_like_this")
    before = list(sys.path)
    yield name
    assert sys.path == before
    sys.modules.pop(name, None)


def test_a_network_of_ones_own(own: str) -> None:
    network = made(2, 3, "unit", architecture=f"{own}:Net", options={"width": 5, "presence": True}, presence=True)
    found = network(noise(2, 2, 33, 50))
    assert network.network.first.out_channels == 5
    assert found.mask.shape == (2, 3, 33, 50)
    assert found.presence is not None
    assert found.presence.shape == (2, 3)
    both = made(1, 1, "unit", architecture=f"{own}:Net", options={"presence": True}, background_output=True)
    found = both(noise(2, 1, 33, 50))
    assert found.presence is not None
    assert (found.mask.shape, found.presence.shape) == ((2, 1, 33, 50), (2, 1))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("{}_missing:Net", {}, "cannot be imported, with .* first on the path: ModuleNotFoundError"),
        ("{}_broken:Net", {}, "cannot be imported, .*nothing_like_this"),
        (":Net", {}, "cannot be imported"),
        ("{}:Nat", {}, "has no torch.nn.Module named `Nat`"),
        ("{}:Number", {}, "has no torch.nn.Module named `Number`"),
        ("{}:Net", {"options": {"depth": 3}}, "must be constructed as .*unexpected keyword argument 'depth'"),
        ("{}:Net", {"options": {"fault": "constructor"}}, "failed: RuntimeError: no memory"),
        ("{}:Net", {"options": {"fault": "forward"}}, r"failed on an image of shape \(1, 1, 64, 64\).*no way"),
        ("{}:Net", {"options": {"fault": "size"}}, r"returned shape \(1, 1, 32, 64\).*expected .*\(1, 1, 64, 64\)"),
        ("{}:Net", {"options": {"fault": "type"}}, "returned <class 'dict'> for an image"),
        ("{}:Net", {"presence": True}, "model.presence is True, but .* returned none as presence"),
        ("{}:Net", {"dropout": 0.5}, "model.dropout is 0.5, .*set model.dropout=0"),
    ],
)
def test_faults_of_ones_own_network_are_named(own: str, name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        made(1, 1, architecture=name.format(own), **settings)


def test_weights_for_ones_own_network(own: str, tmp_path: Path) -> None:
    weights = tmp_path / "w.pth"
    torch.save(torch.nn.Conv2d(3, 4, 1).state_dict(), weights)
    with pytest.raises(PipelineError, match="only encoders of segmentation-models-pytorch can"):
        build(ModelSettings(architecture=f"{own}:Net", weights="w.pth"), 3, 1, weights)
    found = encoder_of(build(ModelSettings(architecture=f"{own}:Encoded", weights="w.pth"), 3, 1, weights))
    assert found is not None
    torch.testing.assert_close(found.state_dict(), torch.load(weights))
