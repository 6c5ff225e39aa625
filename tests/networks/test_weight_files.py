"""Weights of timm, torchvision and segmentation-models-pytorch load into the encoder they belong to."""

import re
from collections import Counter
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.core.errors import PipelineError
from pipeline.networks.encoders import load_encoder
from pipeline.networks.known_encoders import KNOWN
from pipeline.networks.torchvision_files import without_encoder
from pipeline.networks.weight_files import looks_like, norm_remark, padding_remark

State = dict[str, Tensor]


def randomized(network: nn.Module) -> nn.Module:
    """The network with random weights and statistics, none of which is its default."""
    generator = torch.Generator().manual_seed(3)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.2 + 0.02)
    return network.eval()


def encoder_of(name: str) -> nn.Module:
    return smp.encoders.get_encoder(name, weights=None).eval()


def loaded(name: str, state: State, path: Path) -> nn.Module:
    torch.save(state, path)
    encoder = encoder_of(name)
    load_encoder(encoder, path, name)
    return encoder


@pytest.mark.parametrize(
    "name", ["resnet18", "convnext_atto", "efficientnet_b0", "mobilenetv3_small_050", "regnety_002"]
)
def test_timm_files_load_into_their_encoders(name: str, tmp_path: Path) -> None:
    state = randomized(timm.create_model(name)).state_dict()
    encoder = loaded(f"tu-{name}", state, tmp_path / "w.pth")
    own = timm.create_model(name, features_only=True).eval()
    own.load_state_dict({key.removeprefix("model."): value for key, value in encoder.state_dict().items()})
    plain = {key.replace(".", "_"): value for key, value in state.items()}
    for key, value in own.state_dict().items():
        assert torch.equal(value, plain[key.replace(".", "_")]), key


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("resnet18", "resnet18"), ("mobilenet_v2", "mobilenet_v2"), ("efficientnet-b0", "efficientnet_b0"),
        ("vgg11_bn", "vgg11_bn"), ("densenet121", "densenet121"), ("tu-resnet18", "resnet18"),
        ("tu-efficientnet_b0", "efficientnet_b0"), ("tu-mobilenetv2_100", "mobilenet_v2"),
    ],
)  # fmt: skip
def test_torchvision_files_load_into_their_encoders(name: str, theirs: str, tmp_path: Path) -> None:
    network = randomized(getattr(torchvision.models, theirs)(weights=None))
    encoder = loaded(name, network.state_dict(), tmp_path / "w.pth")
    floats = [value for value in network.state_dict().values() if value.is_floating_point()]
    own = [value for value in encoder.state_dict().values() if value.is_floating_point()]
    assert all(torch.equal(one, other) for one, other in zip(own, floats, strict=False))


def trunk(network: nn.Module, images: Tensor) -> Tensor:
    """The last features of a network of torchvision, as timm's encoders return them: without a last 1×1 convolution."""
    if isinstance(network, torchvision.models.RegNet):
        return network.trunk_output(network.stem(images))
    if isinstance(network, torchvision.models.MNASNet):
        return network.layers[:14](images)
    if isinstance(network, torchvision.models.EfficientNet):
        return network.features[:-1](images)
    features = network.features(images)
    return features.movedim(-1, 1) if isinstance(network, torchvision.models.SwinTransformer) else features


@pytest.mark.parametrize(
    ("name", "theirs", "suffix"),
    [
        ("tu-efficientnet_b0", "efficientnet_b0", ".pth"), ("tu-efficientnet_b0", "efficientnet_b0", ".safetensors"),
        ("tu-mobilenetv3_large_100", "mobilenet_v3_large", ".pth"), ("tu-mnasnet_100", "mnasnet1_0", ".pth"),
        ("tu-mobilenetv3_small_100", "mobilenet_v3_small", ".safetensors"),
        ("tu-convnext_tiny", "convnext_tiny", ".pth"), ("tu-swin_tiny_patch4_window7_224", "swin_t", ".pth"),
        ("tu-regnety_008_tv", "regnet_y_800mf", ".pth"), ("tu-regnetx_004_tv", "regnet_x_400mf", ".pth"),
    ],
)  # fmt: skip
def test_torchvision_files_of_other_names_compute_the_same(name: str, theirs: str, suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = getattr(torchvision.models, theirs)(weights=None).eval()
    state = network.state_dict()
    for key, tensor in state.items():  # no two layers alike
        if tensor.is_floating_point() and (tensor.ndim < 2 or "layer_scale" in key or "bias_table" in key):
            tensor.add_(torch.rand(tensor.shape) * 0.3)
    path = tmp_path / f"w{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    encoder = encoder_of(name)
    load_encoder(encoder, path, name)
    side = 224 if theirs == "swin_t" else 64
    images = torch.rand(1, 3, side, side)
    with torch.inference_mode():
        expected, features = trunk(network, images), encoder(images)[-1]
    assert expected.std() > 1e-3
    torch.testing.assert_close(features, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "theirs", "said"),
    [
        ("tu-mobilenetv3_small_100", "mobilenet_v3_small", "adds 0.001 .* 1e-05 .*features in evaluation are the same"),
        ("efficientnet-b0", "efficientnet_b0", "adds 1e-05 .* 0.001 .*features differ"),
        ("tu-efficientnet_b0", "efficientnet_b0", ""),
        ("tu-convnext_atto", "convnext_tiny", ""),
    ],
)
def test_another_eps_of_batchnorm_is_mentioned(name: str, theirs: str, said: str) -> None:
    with torch.device("meta"):
        state = getattr(torchvision.models, theirs)(weights=None).state_dict()
        remark = norm_remark(state, encoder_of(name))
    assert re.search(said, remark) if said else not remark


@pytest.mark.parametrize(
    ("name", "theirs", "said"),
    [
        ("efficientnet-b0", "efficientnet_b0", "pads on all sides, but encoder efficientnet-b0 pads as TensorFlow"),
        ("tu-tf_efficientnet_b0", "efficientnet_b0", r"model\.encoder=tu-efficientnet_b0 pads like the file's"),
        ("tu-efficientnet_b0", "efficientnet_b0", ""),
        ("mobilenet_v2", "mobilenet_v2", ""),
    ],
)
def test_other_padding_is_mentioned(name: str, theirs: str, said: str) -> None:
    state = getattr(torchvision.models, theirs)(weights=None).state_dict()
    remark = padding_remark(state, encoder_of(name), name)
    assert re.search(said, remark) if said else not remark


def test_padding_as_tensorflow_is_told_by_the_names() -> None:
    state = {"_conv_stem.weight": torch.zeros(1), "_blocks.0._depthwise_conv.weight": torch.zeros(1)}
    remark = padding_remark(state, encoder_of("timm-tf_efficientnet_lite0"), "timm-tf_efficientnet_lite0")
    assert "pads as TensorFlow does" in remark and "model.encoder=tu-tf_efficientnet_lite0 pads" in remark
    assert not padding_remark(state, encoder_of("tu-tf_efficientnet_lite0"), "tu-tf_efficientnet_lite0")


def wrapped(state: State, form: str) -> dict:
    if form in ("state_dict", "model"):
        return {form: state, "epoch": 3}
    if form == "module.encoder.":
        return {form + key: value for key, value in state.items()} | {"module.decoder.weight": torch.ones(1)}
    if form == "lightning":
        return {"state_dict": {f"network.model.{key}": value for key, value in state.items()}, "epoch": 3}
    return {form + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    "form", ["state_dict", "model", "module.", "encoder.", "module.encoder.", "lightning", "model."]
)
@pytest.mark.parametrize("name", ["resnet18", "tu-resnet18"])
def test_wrappers_and_prefixes(form: str, name: str, tmp_path: Path) -> None:
    state = randomized(timm.create_model("resnet18")).state_dict()
    encoder = loaded(name, wrapped(state, form), tmp_path / "w.pth")
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, state[key.removeprefix("model.")])


@pytest.mark.parametrize("name", ["resnet18", "tu-convnext_atto", "timm-efficientnet-b0", "mit_b0"])
def test_files_of_smp_encoders(name: str, tmp_path: Path) -> None:
    state = randomized(encoder_of(name)).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    encoder = encoder_of(name)
    load_encoder(encoder, tmp_path / "w.safetensors", name)
    assert all(torch.equal(value, state[key]) for key, value in encoder.state_dict().items())


def test_counters_of_batches_may_be_missing(tmp_path: Path) -> None:
    state = randomized(torchvision.models.resnet18(weights=None)).state_dict()
    state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    assert torch.equal(loaded("resnet18", state, tmp_path / "w.pth").conv1.weight, state["conv1.weight"])


@pytest.mark.parametrize(
    ("name", "theirs", "message"),
    [
        (
            "resnet18",
            "resnet34",
            r"\d+ tensors of the file do not belong to it \(layer1\.2\..*looks like resnet34: set model",
        ),
        ("resnet50", "resnet101", r"do not belong to it \(layer3\.6\..*looks like resnet101"),
        (
            "resnet50",
            "resnet34",
            r"are missing \(.*have another shape \(layer1\.0\.conv1\.weight is 64×64×3×3, expected",
        ),
        ("tu-convnext_atto", "resnet18", r"124 of its 124 tensors are missing .*looks like resnet18"),
        ("efficientnet-b0", "mobilenet_v2", "looks like mobilenet_v2"),
        (
            "tu-efficientnet_b0",
            "efficientnet_b1",
            "does not fit the encoder tu-efficientnet_b0 .*looks like tu-efficientnet_b1",
        ),
        (
            "tu-regnety_008",
            "regnet_y_800mf",
            r"s2\.b1\.conv1\.conv\.weight is 144×64.*looks like tu-regnety_008_tv: set model",
        ),
        ("tu-mnasnet_100", "mnasnet1_3", "torchvision's weights of an MNASNet, which fit no encoder"),
    ],
)
def test_a_file_of_another_network_is_named(name: str, theirs: str, message: str, tmp_path: Path) -> None:
    state = getattr(torchvision.models, theirs)(weights=None).state_dict()
    with pytest.raises(PipelineError, match=message) as caught:
        loaded(name, state, tmp_path / "w.pth")
    assert str(tmp_path / "w.pth") in str(caught.value)
    assert len(str(caught.value)) < 600 + len(str(tmp_path))


def test_a_file_of_nothing_known(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="holds layer and others, which fit no known encoder: give the file"):
        loaded("resnet18", {"layer": torch.zeros(2)}, tmp_path / "w.pth")
    with pytest.raises(PipelineError, match="the file holds no tensors"):
        loaded("resnet18", {}, tmp_path / "w.pth")


def test_a_network_of_torchvision_without_encoder_is_named() -> None:
    with torch.device("meta"):
        assert without_encoder(torchvision.models.swin_v2_t(weights=None).state_dict()) == "a Swin transformer v2"
        assert without_encoder(torchvision.models.swin_t(weights=None).state_dict()) is None


def test_names_of_tensorflow_are_matched_in_the_order_of_the_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs, images = encoder_of("efficientnet-b0"), torch.rand(1, 3, 64, 64)
    encoder = loaded("tu-tf_efficientnet_b0", theirs.state_dict(), tmp_path / "w.pth")
    with torch.inference_mode():
        torch.testing.assert_close(encoder(images)[-1], theirs(images)[-1], atol=1e-5, rtol=1e-4)


def test_a_deeper_timm_network_is_named() -> None:
    assert looks_like(timm.create_model("convnext_nano").state_dict()) == "tu-convnext_nano"


@pytest.mark.parametrize(
    "name", ["resnet34", "vgg11", "tu-mobilenetv3_small_100", "tu-regnety_008_tv", "tu-swin_tiny_patch4_window7_224"]
)
def test_known_encoders_have_the_frequent_shape_that_is_listed(name: str) -> None:
    with torch.device("meta"):
        shapes = Counter(tuple(tensor.shape) for tensor in encoder_of(name).state_dict().values() if tensor.ndim > 1)
    count, shape = KNOWN[name]
    assert shapes[shape] == count == max(shapes.values())
