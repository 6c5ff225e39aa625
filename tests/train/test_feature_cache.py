"""Stored features of a frozen encoder."""

from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from conftest import Tiny
from safetensors.torch import save_file
from torch import Tensor
from trainings import prepare, train

from pipeline.core.config.recipe import Recipe
from pipeline.core.errors import PipelineError
from pipeline.train import feature_cache
from pipeline.train.feature_cache import KEY, FeatureCache


class Encoder(torch.nn.Module):
    """Returns its input, two features, tokens and nothing, as smp's encoders of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.seen = 0

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor | None]]:
        self.seen += len(images)
        half = torch.nn.functional.avg_pool2d(self.convolution(images), 2)
        return [images, half, torch.nn.functional.avg_pool2d(half, 2)], [half.mean((2, 3))[:, None], None]


def tensors(value: object) -> list[Tensor]:
    features, tokens = value  # type: ignore[misc]
    return [*features, *(token for token in tokens if token is not None)]


@pytest.mark.parametrize("half", [False, True])
def test_features_are_computed_once(tmp_path: Path, half: bool) -> None:
    torch.manual_seed(0)
    encoder, images = Encoder().eval(), torch.randn(5, 3, 8, 12)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        expected = tensors(encoder(images))
    cache, encoder.seen = FeatureCache(encoder, tmp_path, (8, 12), 10), 0
    for batch in ([0, 1, 1], [1, 2], [2, 0, 1]):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            found = cache(images[batch])
        assert found[1][1] is None
        for value, wanted in zip(tensors(found), expected, strict=True):
            torch.testing.assert_close(value, wanted[batch], rtol=1e-2 if half else 1e-3, atol=1e-3)
            assert not value.requires_grad
    assert encoder.seen == 1 + 3  # the first image also shows the shapes
    cache(images[..., :8])
    assert encoder.seen == 1 + 3 + 5  # another size is not stored


@pytest.mark.parametrize("lost", ["key", "feature"])
def test_continues_after_a_kill(tmp_path: Path, lost: str) -> None:
    torch.manual_seed(0)
    encoder, images = Encoder().eval(), torch.randn(4, 3, 8, 8)
    before = tensors(FeatureCache(encoder, tmp_path, (8, 8), 10)(images[:3]))
    kind, size = ("keys", KEY - 3) if lost == "key" else ("bin", 7)
    (file,) = tmp_path.glob(f"features_*.{kind}")
    file.write_bytes(file.read_bytes()[:-size])
    encoder.seen = 0
    after = tensors(FeatureCache(encoder, tmp_path, (8, 8), 10)(images))
    assert encoder.seen == 1 + 2
    for value, wanted in zip(after, before, strict=True):
        torch.testing.assert_close(value[:3], wanted, rtol=1e-3, atol=1e-3)
    encoder.convolution.bias.data += 1
    changed = tensors(FeatureCache(encoder, tmp_path, (8, 8), 10)(images))
    assert (changed[1] - after[1] > 0.9).all()  # features of other weights are not used


def test_needs_few_distinct_images() -> None:
    model = {"cache_features": True, "freeze": "all", "weights": "encoder.safetensors"}
    settings: dict[str, Any] = {"name": "x", "competition": "sample", "model": model}
    flips = [{"HorizontalFlip": {"p": 0.5}}, {"D4": {}}]
    feature_cache.check(Recipe(**settings | {"augment": flips}))
    wrong = {"augment": [*flips, {"RandomGamma": {}}], "train": {"half_size": 0.5}}
    with pytest.raises(PipelineError, match=r"it has RandomGamma\); train\.half_size=0"):
        feature_cache.check(Recipe(**settings | wrong))


def test_a_training_stores_features_until_it_is_done(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tiny.root / "encoder.safetensors"
    save_file(smp.encoders.get_encoder("mobilenet_v2", depth=3, weights=None).state_dict(), weights)
    model = {"encoder": "mobilenet_v2", "weights": str(weights), "freeze": "all", "cache_features": True}
    options = {"channels": None, "encoder_depth": 3, "decoder_channels": [8, 8, 8]}
    caches: list[FeatureCache] = []
    opened = FeatureCache._open
    monkeypatch.setattr(FeatureCache, "_open", lambda cache, size: (caches.append(cache), opened(cache, size)))
    flips = {"model": {**model, "options": options}, "augment": [{"HorizontalFlip": {"p": 0.5}}]}
    run = train(prepare(tiny, {"train": {"folds": [0], "epochs": 1}}, flips))
    assert 12 <= len(caches[0].rows) <= 24  # each of the twelve images, flipped or not
    assert not list(run.folder.rglob("features_*"))
