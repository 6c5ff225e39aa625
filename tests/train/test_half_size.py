"""Epochs on images of half the size."""

import pytest
import torch
from conftest import Tiny

from pipeline.core import driver
from pipeline.core.run import Member, Run
from pipeline.networks.output import Output
from pipeline.train.batches.dataset import Batch
from pipeline.train.losses import WeightedLoss
from pipeline.train.module import SegmentationModule


def prepare(tiny: Tiny, size: list[int], **train: int) -> Run:
    tiny.recipe = {
        "competition": str(tiny.competition_path),
        "image": {"size": size},
        "model": {"architecture": "ConfigurableUnet", "encoder": "plain", "options": {"channels": [8, 16, 16]}},
        "train": {"folds": [0], "epochs": 4, "half_size": 0.5, "batch_size": 4, "precision": "32"} | train,
    }
    tiny.save()
    return tiny.run("decode", "clean", "split")


@pytest.mark.parametrize("length", [{"epochs": 4}, {"epochs": 1, "steps": 7}])  # two steps per epoch
def test_the_first_epochs_may_see_half_the_size(
    tiny: Tiny, length: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, tuple[int, ...], tuple[int, ...]]] = []
    forward = WeightedLoss.forward

    def spy(self: WeightedLoss, output: Output, masks: torch.Tensor) -> torch.Tensor:
        seen.append((output.mask.requires_grad, tuple(output.mask.shape[2:]), tuple(masks.shape[2:])))
        return forward(self, output, masks)

    monkeypatch.setattr(WeightedLoss, "forward", spy)
    driver.run_stage(prepare(tiny, [32, 26], **length), "train")
    whole, half = ((32, 26),) * 2, ((16, 13),) * 2
    learnt = [sizes for learns, *sizes in seen if learns]
    assert len(learnt) == 4 * 2
    assert [tuple(sizes) for sizes in learnt] == [half] * (len(learnt) // 2) + [whole] * (len(learnt) // 2)
    assert {tuple(sizes) for learns, *sizes in seen if not learns} == {whole}


def test_a_halved_image_and_its_mask_stay_aligned(tiny: Tiny) -> None:
    run = prepare(tiny, [32, 32])
    module = SegmentationModule(torch.nn.Identity(), run, Member(0, 0), ([], []))
    ramp = torch.arange(31)[:, None] * 4 + torch.arange(22) * 3
    batch = Batch(
        ramp[None, None].to(torch.uint8), (ramp > 100)[None, None].to(torch.uint8), torch.zeros(1), torch.ones(1)
    )
    halved = module._downscaled(batch)
    inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    assert halved.pixels.shape == halved.masks.shape == (1, 1, 16, 11)
    assert torch.equal(halved.masks[inside], (halved.pixels[inside] > 100).to(torch.uint8))
