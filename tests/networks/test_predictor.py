"""Views of an image come back in place, and networks are made fast without another prediction."""

import numpy as np
import pytest
import torch
from torch.nn import BatchNorm2d, Conv2d, Module, ReLU, Sequential

from pipeline.core.config.training import ModelSettings
from pipeline.networks import predictor as inference
from pipeline.networks.device import Compute
from pipeline.networks.models import SegmentationNetwork, build
from pipeline.networks.output import Output
from pipeline.networks.ready import fuse, ready
from pipeline.networks.views import views

CPU = Compute("cpu", "32-true", "a test")


class Counted(Module):
    """A network whose logits depend on the place, and that notes what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[tuple[int, ...]] = []

    def forward(self, pixels: torch.Tensor) -> Output:
        self.shown.append(tuple(pixels.shape))
        rows = torch.arange(pixels.shape[2])[:, None] / 10
        return Output(pixels.float() / 100 + rows - torch.arange(pixels.shape[3]) / 20)


# --- views -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "number"), [("none", 1), ("hflip", 2), ("flips", 4), ("d4", 8)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_views_are_distinct_and_come_back_exactly(name: str, number: int, dtype: torch.dtype) -> None:
    pixels = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).to(dtype)
    found = views(name)
    assert torch.equal(found[0].forward(pixels), pixels)
    for view in found:
        seen = view.forward(pixels)
        assert seen.shape[2:] == view.size((4, 5))
        assert torch.equal(view.inverse(seen), pixels)
    assert (
        len({(tuple(seen.shape), tuple(seen.flatten().tolist())) for seen in (v.forward(pixels) for v in found)})
        == number
    )


def test_d4_is_all_turns_and_mirrored_turns() -> None:
    pixels = torch.arange(15).reshape(1, 1, 3, 5)
    turns = [torch.rot90(one, times, (2, 3)) for one in (pixels, pixels.flip(3)) for times in range(4)]
    assert {str(turn) for turn in turns} == {str(view.forward(pixels)) for view in views("d4")}


def test_a_turned_view_is_seen_in_turned_tiles_and_averaged_in_place() -> None:
    network = Counted()
    predictor = inference.Predictor([network], CPU, views("d4"), (8, 12), 0.0, None, plain=True)
    pixels = torch.randint(0, 256, (2, 1, 16, 24), dtype=torch.uint8)
    (averaged, plain), wrong = predictor(pixels)
    assert set(network.shown[:16]) == {(2, 1, 8, 12)}
    assert set(network.shown[16:]) == {(2, 1, 12, 8)}
    assert len(network.shown) == 8 * 4

    whole = inference.Predictor([Counted()], CPU, views("d4"), (24, 24), 0.0, None)
    found = whole(pixels)[0][0][0]
    expected = torch.zeros(2, 1, 16, 24)
    for mirrored in (False, True):
        for turn in range(4):
            seen = torch.rot90(pixels.flip(3) if mirrored else pixels, turn, (2, 3))
            back = torch.rot90(Counted()(seen).mask.sigmoid(), -turn, (2, 3))
            expected += (back.flip(3) if mirrored else back) / 8
    np.testing.assert_allclose(found, 255 * expected.numpy(), atol=0.51)
    assert not wrong.any()
    assert not np.array_equal(averaged[0], plain[0])


def test_networks_take_a_turned_image_that_is_padded_to_their_stride() -> None:
    inner = build(ModelSettings(encoder="resnet18"), 1, 1, None)
    network = ready(SegmentationNetwork(inner, 1, "unit", 255), 1, CPU)
    predictor = inference.Predictor([network], CPU, views("d4"), (40, 70), 0.25, None)
    ((mask, presence),), _ = predictor(torch.randint(0, 256, (1, 1, 40, 70)))
    assert (mask.shape, mask.dtype, presence) == ((1, 1, 40, 70), np.uint8, None)


def test_never_is_left_out_before_the_softmax() -> None:
    class Constant(Module):
        def forward(self, pixels: torch.Tensor) -> Output:
            return Output(torch.tensor([9.0, 1.0, 0.0])[:, None, None].repeat(1, 1, 4, 6))

    predictor = inference.Predictor([Constant()], CPU, views("none"), (4, 6), 0.0, (0,))
    ((mask, _),), _ = predictor(torch.zeros(1, 1, 4, 6))
    assert mask.dtype == np.float16
    np.testing.assert_allclose(mask[0, :, 0, 0], [0, 0.7311, 0.2689], atol=1e-3)


# --- speed that changes nothing --------------------------------------------------------------------------------------


def warmed(encoder: str = "resnet18") -> SegmentationNetwork:
    """A network whose BatchNorm has seen something."""
    torch.manual_seed(0)
    network = SegmentationNetwork(build(ModelSettings(encoder=encoder, presence=True), 1, 1, None), 1, "unit", 255)
    network.train()
    for _ in range(3):
        network(torch.randint(0, 256, (4, 1, 64, 64)))
    return network.eval()


@pytest.mark.parametrize("encoder", ["resnet18", "tu-tf_efficientnet_lite0"])
def test_a_fused_network_predicts_the_same(encoder: str) -> None:
    network, pixels = warmed(encoder), torch.randint(0, 256, (2, 1, 48, 80))
    norms = sum(isinstance(module, BatchNorm2d) for module in network.modules())
    with torch.no_grad():
        before = network(pixels)
        assert len(fuse(network, 1)) == norms > 20
        after = network(pixels)
    assert not any(isinstance(module, BatchNorm2d) for module in network.modules())
    torch.testing.assert_close(after.mask, before.mask, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after.presence, before.presence, rtol=1e-4, atol=1e-4)
    assert not torch.equal(after.mask, before.mask)


def test_a_convolution_that_is_used_otherwise_too_is_not_fused() -> None:
    class Both(Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = Conv2d(1, 1, 3, padding=1), BatchNorm2d(1)
            self.norm.running_var.fill_(9.0)  # type: ignore[union-attr]

        def forward(self, x: torch.Tensor) -> Output:
            found = self.conv(x.float())
            return Output(self.norm(found) + found)

    network = Both().eval()
    with torch.no_grad():
        before = network(torch.ones(1, 1, 8, 8)).mask
        assert fuse(network, 1) == []
        assert torch.equal(network(torch.ones(1, 1, 8, 8)).mask, before)


def test_weights_cast_once_give_what_autocast_gives() -> None:
    layers = Sequential(Conv2d(1, 8, 3), ReLU(), Conv2d(8, 1, 3)).eval()
    pixels, compute = torch.rand(2, 1, 16, 16), Compute("cpu", "bf16-mixed", "a test")

    class Wrapped(Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, x: torch.Tensor) -> Output:
            return Output(self.layers(x.float()))

    network: Module = Wrapped()
    with torch.inference_mode(), compute.autocast():
        before = network(pixels.to(memory_format=torch.channels_last)).mask
    network = ready(network, 1, compute)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}
    with torch.inference_mode(), compute.autocast():
        assert torch.equal(network(pixels.to(memory_format=torch.channels_last)).mask, before)


def test_a_network_with_parts_that_autocast_leaves_alone_keeps_its_weights() -> None:
    class Exact(Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Conv2d(1, 8, 3), Conv2d(8, 1, 3)

        def forward(self, x: torch.Tensor) -> Output:
            inner = self.first(x.float())
            with torch.autocast("cpu", enabled=False):
                return Output(self.second(inner.float()))

    network = ready(Exact(), 1, Compute("cpu", "bf16-mixed", "a test"))
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
