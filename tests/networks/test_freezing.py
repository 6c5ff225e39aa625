"""Parts of encoders that do not learn."""

from typing import Any

import pytest
import torch

from pipeline.core.config.recipe import ModelSettings, Recipe, TrainSettings
from pipeline.core.config.settings import validate
from pipeline.core.errors import PipelineError
from pipeline.networks.freezing import kept_in_evaluation, stages_of
from pipeline.networks.models import SegmentationNetwork, build
from pipeline.train.module import split_parameters
from pipeline.train.optimization import build_optimizer

UNET = {"architecture": "ConfigurableUnet", "options": {"decoder_channels": [8] * 5}}


def made(**settings: Any) -> tuple[Any, SegmentationNetwork]:
    """A network and what is inside of it."""
    chosen = ModelSettings(**{"options": {"decoder_channels": [8] * 5}, **settings})
    inner: Any = build(chosen, 3, 1, None)
    still = kept_in_evaluation(getattr(inner, "encoder", None), chosen)
    return inner, SegmentationNetwork(inner, 3, "unit", 255, kept_in_evaluation=still)


@pytest.mark.parametrize(
    ("encoder", "stem", "second"),
    [
        ("resnet18", {"conv1", "bn1"}, {"layer2"}),
        ("mobilenet_v2", {"features.0", "features.1"}, {"features.4", "features.5", "features.6"}),
        ("efficientnet-b0", {"_conv_stem", "_bn0"}, {"_blocks.3", "_blocks.4"}),
        ("tu-tf_efficientnet_lite0", {"model.conv_stem", "model.bn1", "model.blocks.0"}, {"model.blocks.2"}),
    ],
)
@pytest.mark.parametrize("more", [{}, UNET])
def test_stem_and_stages(encoder: str, stem: set[str], second: set[str], more: dict[str, Any]) -> None:
    inner, _ = made(encoder=encoder, freeze=2, **more)
    frozen = {name for name, parameter in inner.encoder.named_parameters() if not parameter.requires_grad}
    names = {id(parameter): name for name, parameter in inner.encoder.named_parameters()}
    stages = [{names[id(one)] for one in stage} for stage in stages_of(inner.encoder, torch.zeros((1, 3, 64, 64)))]
    assert len(stages) == 5
    assert set().union(*stages[:3]) == frozen
    for found, expected in ((stages[0], stem), (stages[2], second)):
        prefixes = {one for name in found for one in expected if name.startswith(f"{one}.")}
        assert prefixes == expected and all(name.startswith(tuple(f"{one}." for one in expected)) for name in found)
    assert all(parameter.requires_grad for name, parameter in inner.named_parameters() if "encoder" not in name)


@pytest.mark.parametrize(
    ("settings", "still", "moves"),
    [
        ({"encoder": "resnet18", "freeze": "stem"}, ("conv1", "bn1"), ("layer1", "layer4")),
        ({"encoder": "tu-tf_efficientnet_lite0", "freeze": 1}, ("model.bn1", "model.blocks.1"), ("model.blocks.2",)),
        ({"encoder": "resnet18", "freeze": "all", **UNET}, ("",), ()),
        (
            {"architecture": "ConfigurableUnet", "encoder": "plain", "options": {"channels": [8, 8, 8]}, "freeze": 1},
            ("levels.0", "levels.1"),
            ("levels.2",),
        ),
    ],
)
def test_what_is_frozen_does_not_change_in_a_step(settings: Any, still: tuple, moves: tuple) -> None:
    inner, network = made(**settings)
    before, after = stepped(inner, network, TrainSettings())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not [name for name in changed if name.startswith(tuple(f"encoder.{one}" for one in still))]
    for one in moves:
        assert f"encoder.{one}" in " ".join(changed) and any("running_mean" in name for name in changed if one in name)
    assert any(not name.startswith("encoder.") for name in changed)


def test_freeze_norm_keeps_statistics_and_lets_weights_learn() -> None:
    inner, network = made(encoder="resnet18", freeze_norm=True)
    before, after = stepped(inner, network, TrainSettings(encoder_learning_rate_factor=0.5))
    changed = {name for name in before if name.startswith("encoder.") and not torch.equal(before[name], after[name])}
    assert not [name for name in changed if "running" in name or "num_batches" in name]
    assert {name for name, _ in inner.encoder.named_parameters(prefix="encoder")} == changed


def stepped(inner: Any, network: SegmentationNetwork, settings: TrainSettings) -> tuple[dict, dict]:
    """The state before and after a step, in training; the optimiser holds what learns and nothing else."""
    torch.manual_seed(0)
    network.train()
    encoder, rest = split_parameters(network)
    optimizer = build_optimizer(settings, encoder, rest)
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(held) == sum(parameter.requires_grad for parameter in network.parameters())
    assert all(parameter.requires_grad for parameter in held)
    before = {name: value.clone() for name, value in inner.state_dict().items()}
    network(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)).mask.square().sum().backward()
    optimizer.step()
    return before, inner.state_dict()


def test_the_rest_trains_and_evaluates_as_usual() -> None:
    inner, network = made(encoder="resnet18", freeze="stem")
    for mode in (True, False, True):
        assert network.train(mode).training == mode == inner.encoder.layer1.training
        assert not inner.encoder.bn1.training


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"freeze": 5}, "encoder resnet34 has a stem and 4 stages: expected none, stem, a number from 1 to 4, or all"),
        ({"encoder": "tu-convnext_atto", "freeze_norm": True}, "encoder tu-convnext_atto has no BatchNorm"),
    ],
)
def test_freezing_an_unsuitable_encoder_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        made(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": {"freeze": "stage1"}}, "`model.freeze` is 'stage1': expected none, stem, a number of stages"),
        ({"model": {"freeze": 0}}, "`model.freeze` is 0: expected none"),
        ({"model": {"freeze": True}}, "`model.freeze` is True: expected none"),
        ({"model": {"freeze": 1}}, "model.freeze is 1, and model.weights is none: random weights"),
        ({"model": {"freeze_norm": True}}, "model.freeze_norm is True, and model.weights is none"),
        (
            {"train": {"encoder_learning_rate": 1e-3, "encoder_learning_rate_factor": 0.1}},
            "give train.encoder_learning_rate or train.encoder_learning_rate_factor, not both",
        ),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        validate(Recipe, {"name": "one", "competition": "sample", **settings}, "recipe")


def test_the_encoders_learning_rate_as_a_factor() -> None:
    encoder, rest = split_parameters(made(encoder="resnet18", freeze="stem")[1])
    settings = TrainSettings(learning_rate=2e-3, encoder_learning_rate_factor=0.3)
    rates = [group["lr"] for group in build_optimizer(settings, encoder, rest).param_groups]
    assert rates == pytest.approx([2e-3, 6e-4])
    with pytest.raises(PipelineError, match="train.encoder_learning_rate_factor is set, .* no trainable encoder"):
        build_optimizer(settings, [], rest)
