"""What only training touches: augmentation, batches, losses, networks, encoder weights, device."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from safetensors.torch import save_file

from pipeline import device, weights
from pipeline.augment import Augmentation
from pipeline.errors import PipelineError
from pipeline.geometry import IGNORE
from pipeline.loader import EpochSampler, PlainDataset, TrainDataset, derive_seed, plain_loader, train_loader
from pipeline.losses import WeightedLoss
from pipeline.models import SegmentationNetwork, build, load_encoder, parameter_count
from pipeline.recipe import LossSettings, ModelSettings

SMALL = ModelSettings(encoder="mobilenet_v2", options={"decoder_channels": [32, 16, 8, 8, 8]})
MIXED = [
    {"HorizontalFlip": {"p": 0.5}},
    {"RandomBrightnessContrast": {"p": 0.5}},
    {"Affine": {"scale": [0.9, 1.1], "rotate": [-10, 10], "p": 0.7}},
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On a busy machine, threads that wait for each other make small networks many times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def picture(rows: int = 12, columns: int = 16, channels: int = 1, classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (rows, columns, channels), dtype=np.uint8)
    return image, rng.choice(np.array([0, 1, IGNORE], np.uint8), (classes, rows, columns))


# --- augmentation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_the_seed_decides_the_draw(channels: int) -> None:
    image, masks = picture(channels=channels)
    first, second = Augmentation(MIXED), Augmentation(MIXED)
    seen = []
    for seed in range(12):
        once = first(image.copy(), masks.copy(), seed)
        second(image.copy(), masks.copy(), seed + 100)  # what was drawn before does not matter
        again = second(image.copy(), masks.copy(), seed)
        for one, other, before in zip(once, again, (image, masks), strict=True):
            np.testing.assert_array_equal(one, other)
            assert (one.shape, one.dtype) == (before.shape, before.dtype)
        assert set(np.unique(once[1])) <= {0, 1, IGNORE}
        seen.append(once[0].tobytes())
    assert len(set(seen)) > 6


def test_image_and_masks_move_together() -> None:
    image, masks = picture()
    moved_image, moved_masks = Augmentation([{"HorizontalFlip": {"p": 1}}])(image, masks, 0)
    np.testing.assert_array_equal(moved_image, image[:, ::-1])
    np.testing.assert_array_equal(moved_masks, masks[:, :, ::-1])
    rows, columns = np.mgrid[:64, :64]
    disc = ((rows - 20) ** 2 + (columns - 40) ** 2 < 150).astype(np.uint8)
    affine = Augmentation([{"Affine": {"rotate": [-90, 90], "translate_percent": [-0.2, 0.2], "p": 1}}])
    for seed in range(5):
        image_again, masks_again = affine((disc * 255)[..., None], disc[None], seed)
        assert ((image_again[..., 0] > 127) == masks_again[0]).mean() > 0.99
        assert (masks_again[0] != disc).any()


def test_pixel_changes_leave_masks_alone() -> None:
    image, masks = picture()
    brighter = Augmentation([{"RandomBrightnessContrast": {"brightness_limit": [0.2, 0.2], "p": 1}}])
    changed, same = brighter(image, masks, 0)
    assert (changed != image).any()
    np.testing.assert_array_equal(same, masks)


def test_no_transforms_change_nothing() -> None:
    image, masks = picture()
    same_image, same_masks = Augmentation([])(image, masks, 0)
    np.testing.assert_array_equal(same_image, image)
    np.testing.assert_array_equal(same_masks, masks)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([{"HorizontalFlop": {}}], "albumentations has no transform named `HorizontalFlop`"),
        ([{"Compose": {}}], "albumentations has no transform named `Compose`"),
        ([{"np": {}}], "albumentations has no transform named `np`"),
        ([{"HorizontalFlip": {"probability": 1}}], "HorizontalFlip has no setting probability; it has p"),
        ([{"RandomBrightnessContrast": {"limit": 1, "p": 1}}], "has no setting limit; it has brightness_limit"),
        ([{"HorizontalFlip": {"p": 2}}], "HorizontalFlip refuses its settings: .*less than or equal to 1"),
        ([{"HorizontalFlip": {"p": "often"}}], "HorizontalFlip refuses its settings: .*often"),
    ],
)
def test_wrong_transforms_are_named(settings: list[dict[str, dict[str, Any]]], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        Augmentation(settings)


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def pixels(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "train_images.npy", rng.integers(0, 256, (11, 12, 16, 1), dtype=np.uint8))
    np.save(tmp_path / "train_masks.npy", rng.choice(np.array([0, 1, IGNORE], np.uint8), (11, 2, 12, 16)))
    np.save(tmp_path / "test_images.npy", rng.integers(0, 60000, (5, 12, 16, 3), dtype=np.uint16))
    return tmp_path


def test_seeds_depend_on_every_part() -> None:
    seeds = {derive_seed(a, b, c) for a in range(5) for b in range(5) for c in range(5)} | {derive_seed(0, 0)}
    assert len(seeds) >= 125
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert derive_seed(1, 2) == derive_seed(1, 2)


def test_the_order_belongs_to_the_epoch() -> None:
    first, second = EpochSampler(20, seed=1), EpochSampler(20, seed=1)
    orders = []
    for epoch in range(3):
        first.set_epoch(epoch)
        orders.append(list(first))
        assert {one for one, _ in orders[-1]} == {epoch}
        assert sorted(position for _, position in orders[-1]) == list(range(20))
    second.set_epoch(2)
    assert list(second) == orders[2]
    assert len({tuple(position for _, position in order) for order in orders}) == 3
    assert list(EpochSampler(20, seed=2)) != orders[0]


def batches_of(pixels: Path, workers: int, epochs: range) -> list[list[torch.Tensor]]:
    rows = np.array([1, 2, 3, 5, 7, 8, 10])
    loader = train_loader(TrainDataset(pixels, rows, Augmentation(MIXED), seed=4), 3, workers)
    found = []
    for epoch in epochs:
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        found += [list(batch) for batch in loader]
    return found


def test_samples_do_not_depend_on_workers_or_on_earlier_epochs(pixels: Path) -> None:
    alone = batches_of(pixels, 0, range(2))
    assert len(alone) == 4  # two whole batches an epoch, the seventh image is left out
    for others, expected in ((batches_of(pixels, 2, range(2)), alone), (batches_of(pixels, 0, range(1, 2)), alone[2:])):
        assert len(others) == len(expected)
        for batch, other in zip(expected, others, strict=True):
            assert torch.equal(batch[0], other[0])
            assert torch.equal(batch[1], other[1])
    images, masks = alone[0]
    assert (images.shape, images.dtype) == ((3, 1, 12, 16), torch.uint8)
    assert (masks.shape, masks.dtype) == ((3, 2, 12, 16), torch.uint8)


def test_the_draw_belongs_to_the_image_not_to_its_place(pixels: Path) -> None:
    whole = TrainDataset(pixels, np.arange(11), Augmentation(MIXED), seed=4)
    part = TrainDataset(pixels, np.array([9, 4]), Augmentation(MIXED), seed=4)
    for one, other in zip(whole[(3, 4)], part[(3, 1)], strict=True):
        assert torch.equal(one, other)
    assert any(not torch.equal(whole[(epoch, 4)][0], whole[(0, 4)][0]) for epoch in range(1, 5))


def test_a_lone_small_batch_is_not_left_out(pixels: Path) -> None:
    dataset = TrainDataset(pixels, np.arange(3), Augmentation([]), seed=0)
    assert [len(batch[0]) for batch in train_loader(dataset, 8, 0)] == [3]


def test_plain_batches_come_in_order_as_stored(pixels: Path) -> None:
    rows = np.array([4, 0, 9])
    images = np.load(pixels / "train_images.npy")
    batches = list(plain_loader(PlainDataset(pixels, "train", rows, with_masks=True), 2, 0))
    assert [len(batch[0]) for batch in batches] == [2, 1]
    np.testing.assert_array_equal(torch.cat([batch[0] for batch in batches]), images[rows].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(torch.cat([batch[1] for batch in batches]), np.load(pixels / "train_masks.npy")[rows])
    ((test,),) = list(plain_loader(PlainDataset(pixels, "test", np.arange(5), with_masks=False), 8, 0))
    assert test.dtype == torch.int32  # uint16 pixels, all values kept
    np.testing.assert_array_equal(test, np.load(pixels / "test_images.npy").transpose(0, 3, 1, 2))


# --- losses ----------------------------------------------------------------------------------------------------------


def loss_and_gradient(bce: float, dice: float, logits: torch.Tensor, masks: torch.Tensor) -> tuple[float, torch.Tensor]:
    leaf = logits.clone().requires_grad_()
    loss = WeightedLoss(LossSettings(cross_entropy=bce, dice=dice))(leaf, masks)
    loss.backward()
    assert leaf.grad is not None
    return loss.item(), leaf.grad


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((2, 2, 5, 6), generator=generator)
    masks = (torch.rand((2, 2, 5, 6), generator=generator) < 0.4).to(torch.uint8)
    masks[:, :, 3:] = IGNORE
    return logits, masks


@pytest.mark.parametrize(("bce", "dice"), [(1, 0), (0, 1), (1, 1)])
def test_ignored_pixels_count_in_no_loss(bce: float, dice: float, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, masks = batch
    loss, gradient = loss_and_gradient(bce, dice, logits, masks)
    assert gradient[masks == IGNORE].abs().max() == 0
    assert gradient[masks != IGNORE].abs().min() > 0
    other = torch.where(masks == IGNORE, -7 * logits + 3, logits)
    other_loss, other_gradient = loss_and_gradient(bce, dice, other, masks)
    assert other_loss == loss
    assert torch.equal(other_gradient, gradient)
    cut_loss, cut_gradient = loss_and_gradient(bce, dice, logits[:, :, :3], masks[:, :, :3])
    assert cut_loss == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(cut_gradient, gradient[:, :, :3])


def test_losses_by_hand() -> None:
    logits, masks = torch.zeros((1, 1, 2, 2)), torch.tensor([[[[1, 0], [0, 0]]]], dtype=torch.uint8)
    assert loss_and_gradient(1, 0, logits, masks)[0] == pytest.approx(np.log(2))
    assert loss_and_gradient(0, 1, logits, masks)[0] == pytest.approx(1 - 2 * 0.5 / (2 + 1))  # p is 1/2 everywhere
    right = torch.where(masks == 1, 50.0, -50.0)
    assert loss_and_gradient(1, 1, right, masks)[0] == pytest.approx(0, abs=1e-6)


def test_weights_sum_and_0_leaves_a_term_out(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    bce, dice = loss_and_gradient(1, 0, *batch)[0], loss_and_gradient(0, 1, *batch)[0]
    assert loss_and_gradient(0.5, 2, *batch)[0] == pytest.approx(0.5 * bce + 2 * dice)
    assert WeightedLoss(LossSettings(cross_entropy=0, dice=2)).weights == {"dice": 2}
    assert WeightedLoss(LossSettings(cross_entropy=2, dice=0)).weights == {"cross_entropy": 2}
    with pytest.raises(ValueError, match="at least one of cross_entropy and dice must be above 0"):
        LossSettings(cross_entropy=0, dice=0)


def test_a_batch_without_foreground_still_teaches(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    loss, gradient = loss_and_gradient(1, 1, batch[0], torch.zeros_like(batch[1]))
    assert np.isfinite(loss)
    assert gradient.abs().min() > 0


@pytest.mark.parametrize(("bce", "dice"), [(1, 0), (0, 1), (1, 1)])
def test_a_batch_of_ignored_pixels_teaches_nothing(
    bce: float, dice: float, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    loss, gradient = loss_and_gradient(bce, dice, batch[0], torch.full_like(batch[1], IGNORE))
    assert (loss, gradient.abs().max()) == (0, 0)


# --- networks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_logits_have_the_size_of_the_image(channels: int) -> None:
    inner = build(SMALL, channels, 2, None)
    network = SegmentationNetwork(inner, channels, "imagenet", 255).eval()
    for size in ((101, 101), (70, 50), (64, 32)):
        images = torch.randint(0, 256, (1, channels, *size), dtype=torch.uint8)
        with torch.inference_mode():
            logits = network(images)
            assert logits.shape == (1, 2, *size)
            assert torch.isfinite(logits).all()
            torch.testing.assert_close(network(images.int()), logits)


class Echo(torch.nn.Module):
    """A network that gives back what it sees."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.shape = images.shape
        return images


@pytest.mark.parametrize(("largest", "dtype"), [(255, torch.uint8), (65535, torch.int32)])
def test_pixels_are_normalized_and_padding_is_cut_off(largest: int, dtype: torch.dtype) -> None:
    images = torch.full((1, 3, 33, 40), largest).to(dtype)
    echo = Echo()
    seen = SegmentationNetwork(echo, 3, "imagenet", largest)(images)
    assert echo.shape == (1, 3, 64, 64)
    assert seen.shape == (1, 3, 33, 40)
    expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(seen[0, :, 0, 0], expected)
    grey = SegmentationNetwork(echo, 1, "imagenet", largest)(images[:, :1])
    torch.testing.assert_close(grey[0, 0, 0, 0].item(), (1 - 0.449) / 0.226, atol=1e-5, rtol=0)
    assert SegmentationNetwork(echo, 1, "none", largest)(images[:, :1]).unique().tolist() == [1.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"options": {"decoder_dropout": 0.2}}, "smp.Unet has no decoder_dropout.*it has .*decoder_channels"),
        ({"options": {"encoder_name": "resnet34"}}, "smp.Unet has no encoder_name"),
        ({"options": {"decoder_channels": [16, 8]}}, "Unet with encoder resnet18: .*decoder_channels"),
        ({"architecture": "Unett"}, "model.architecture: segmentation-models-pytorch has no `Unett`"),
        ({"architecture": "encoders"}, "model.architecture: segmentation-models-pytorch has no `encoders`"),
        ({"encoder": "resnet999"}, "Unet with encoder resnet999: .*resnet34"),
        ({"encoder": "tu-resnet999"}, "Unet with encoder tu-resnet999: "),
    ],
)
def test_wrong_models_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        build(ModelSettings(**{"encoder": "resnet18", **settings}), 1, 1, None)


def test_options_reach_the_architecture() -> None:
    plain = ModelSettings(encoder="mobilenet_v2")
    assert parameter_count(build(SMALL, 1, 1, None)) < parameter_count(build(plain, 1, 1, None))


# --- encoder weights -------------------------------------------------------------------------------------------------


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
        ("w.pth", {"layer": torch.zeros(2)}, "does not fit the encoder MobileNetV2Encoder: .*Missing key"),
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
    with pytest.raises(PipelineError, match="does not fit the encoder ResNetEncoder"):
        load_encoder(new_encoder("resnet18", seed=0), path)


def test_no_weights_and_a_file(tmp_path: Path) -> None:
    assert weights.resolve(ModelSettings(weights="none")) is None
    path = tmp_path / "w.pth"
    with pytest.raises(PipelineError, match=r"model\.weights: .*w\.pth does not exist; give a file, `imagenet` or"):
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


def test_imagenet_without_an_answer(cache: Path, silent_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_url", lambda **_: silent_server)
    started = time.perf_counter()
    with pytest.raises(PipelineError, match="ImageNet weights for resnet34 are not in the cache") as caught:
        weights.resolve(ModelSettings(weights="imagenet"))
    assert both_ways_on(str(caught.value))
    assert time.perf_counter() - started < 5


def test_imagenet_with_a_stuck_name_lookup(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = threading.Event()
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: stuck.wait(60) and None)
    started = time.perf_counter()
    with pytest.raises(PipelineError) as caught:
        weights.resolve(ModelSettings(weights="imagenet"))
    stuck.set()
    assert both_ways_on(str(caught.value))
    assert time.perf_counter() - started < 5


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
    with pytest.raises(PipelineError, match=r"broke off \(connection reset\)") as caught:
        weights.resolve(ModelSettings(weights="imagenet"))
    assert both_ways_on(str(caught.value))


@pytest.mark.parametrize("encoder", ["nosuch", "tu-resnet18"])
def test_imagenet_for_an_encoder_without(encoder: str, cache: Path) -> None:
    with pytest.raises(PipelineError, match=f"no ImageNet weights for encoder {encoder}") as caught:
        weights.resolve(ModelSettings(encoder=encoder, weights="imagenet"))
    assert both_ways_on(str(caught.value))


def test_waiting_is_bounded() -> None:
    assert weights.SECONDS_TO_ANSWER <= 15


# --- device ----------------------------------------------------------------------------------------------------------


def pretend(monkeypatch: pytest.MonkeyPatch, cuda: bool = False, mps: bool = False, bf16: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)


@pytest.mark.parametrize(
    ("machine", "asked", "accelerator", "precision"),
    [
        ({}, "auto", "cpu", "32-true"),
        ({"bf16": True}, "auto", "cpu", "bf16-mixed"),
        ({"cuda": True}, "auto", "cuda", "16-mixed"),
        ({"cuda": True, "bf16": True}, "auto", "cuda", "bf16-mixed"),
        ({"cuda": True, "mps": True, "bf16": True}, "32", "cuda", "32-true"),
        ({"cuda": True}, "16", "cuda", "16-mixed"),
        ({"mps": True}, "auto", "mps", "32-true"),
        ({"bf16": True}, "32", "cpu", "32-true"),
        ({}, "bf16", "cpu", "bf16-mixed"),
    ],
)
def test_choice_of_device_and_precision(
    monkeypatch: pytest.MonkeyPatch, machine: dict[str, bool], asked: Any, accelerator: str, precision: str
) -> None:
    pretend(monkeypatch, **machine)
    chosen = device.choose(asked)
    assert (chosen.accelerator, chosen.precision) == (accelerator, precision)
    assert chosen.reason
    assert chosen.device.type == accelerator


def test_fp16_on_a_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    with pytest.raises(PipelineError, match="train.precision is 16, which needs a GPU; use bf16, 32 or auto"):
        device.choose("16")


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_predictions_use_the_number_format_of_training(precision: Any, dtype: torch.dtype) -> None:
    with device.Compute("cpu", precision, "a test").autocast():
        assert (torch.ones((2, 2)) @ torch.ones((2, 2))).dtype == dtype
    assert (torch.ones((2, 2)) @ torch.ones((2, 2))).dtype == torch.float32
