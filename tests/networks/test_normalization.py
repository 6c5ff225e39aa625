"""Mean and standard deviation that an encoder's weights expect."""

import pytest
import torch

from pipeline.core.config.recipe import ImageSettings, ModelSettings, Recipe
from pipeline.networks.models import SegmentationNetwork
from pipeline.networks.normalization import IMAGENET_MEAN, describe, statistics_of


@pytest.mark.parametrize(
    ("encoder", "mean", "known"),
    [
        ("resnet34", 0.485, True), ("mit_b0", 0.485, True), ("timm-skresnet18", 0.485, True),
        ("dpn68", 124 / 255, True), ("xception", 0.5, True),
        ("tu-tf_efficientnet_lite0", 0.5, True), ("timm-tf_efficientnet_lite0", 0.5, True),
        ("timm-mobilenetv3_large_100", 0.5, True), ("tu-mobilenetv3_large_100", 0.485, True),
        ("tu-resnet18.nosuch", 0.485, False), ("tu-nosuch", 0.485, False),
    ],
)  # fmt: skip
def test_statistics_of_encoders(encoder: str, mean: float, known: bool) -> None:
    found = statistics_of(ModelSettings(encoder=encoder))
    assert found.mean[0] == pytest.approx(mean)
    assert found.known == known
    assert ("not known" in describe(ModelSettings(encoder=encoder))) != known


def test_other_numbers_of_channels_get_the_mean() -> None:
    found = statistics_of(ModelSettings(encoder="resnet18"))
    grey, four = (found.of_channels(channels)[0].tolist() for channels in (1, 4))
    assert grey == pytest.approx([sum(IMAGENET_MEAN) / 3])
    assert four == pytest.approx([*IMAGENET_MEAN, sum(IMAGENET_MEAN) / 3])


def test_pretrained_weights_are_normalised_as_they_expect_unless_told() -> None:
    def chosen(weights: str, **image: str) -> str | None:
        model, images = ModelSettings(weights=weights), ImageSettings.model_validate(image)
        return Recipe(name="one", competition="sample", model=model, image=images).image.normalize

    assert [chosen(weights) for weights in ("none", "imagenet", "w.pth")] == ["imagenet", "encoder", "encoder"]
    assert chosen("imagenet", normalize="unit") == "unit"


def test_mean_and_deviation_are_saved_with_the_weights() -> None:
    network, other = (SegmentationNetwork(torch.nn.Identity(), 3, "encoder", 255) for _ in range(2))
    network.set_statistics([127.5] * 3, [127.5] * 3)
    other.load_state_dict(network.state_dict())
    seen = other(torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)).mask
    assert torch.equal(seen, torch.ones_like(seen))
