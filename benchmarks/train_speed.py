"""Training steps of ResNet34-UNet: this pipeline against a plain fp32 NCHW loop, alternating in one process.

    python -m benchmarks.train_speed [--size 128 128] [--batch 16] [--steps 6] [--rounds 5]

Both do forward, BCE + Dice, backward and an AdamW step on the same batch of synthetic pixels. Ours goes through the
module, network and precision that `train` uses; the plain loop is what smp's example does.
"""

import argparse
import platform
import time
from collections.abc import Callable
from datetime import date

import segmentation_models_pytorch as smp
import torch

from pipeline import device, models
from pipeline.competition import load_competition
from pipeline.lightning_module import SegmentationModule, split_parameters
from pipeline.optimization import build_optimizer
from pipeline.recipe import ModelSettings, Recipe
from pipeline.workspace import Member, Run


def plain_step(channels: int) -> Callable[[torch.Tensor, torch.Tensor], float]:
    network = smp.Unet("resnet34", encoder_weights=None, in_channels=channels, classes=1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    bce, dice = torch.nn.BCEWithLogitsLoss(), smp.losses.DiceLoss("binary")

    def step(pixels: torch.Tensor, masks: torch.Tensor) -> float:
        images, target = pixels.float() / 255, masks.float()
        logits = network(images)
        loss = bce(logits, target) + dice(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def our_step(channels: int) -> Callable[[torch.Tensor, torch.Tensor], float]:
    compute = device.choose()
    run = Run(Recipe(name="speed", competition="sample"), load_competition("sample"), "speed")
    inner = models.build(ModelSettings(), channels, 1, None)
    network = models.SegmentationNetwork(inner, channels, "imagenet", 255).to(memory_format=torch.channels_last)
    module = SegmentationModule(network, run, Member(0, 0), ([], []))
    optimizer = build_optimizer(run.recipe.train, *split_parameters(network))

    def step(pixels: torch.Tensor, masks: torch.Tensor) -> float:
        with compute.autocast():
            loss = module.loss(module.network(pixels), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs=2, default=(128, 128))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (options.batch, 1, *options.size), dtype=torch.uint8)
    masks = (torch.rand(options.batch, 1, *options.size) < 0.2).to(torch.uint8)
    steps = {"plain fp32 NCHW": plain_step(1), "pipeline": our_step(1)}
    best = dict.fromkeys(steps, 0.0)
    for round_number in range(options.rounds + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            for _ in range(options.steps):
                step(pixels, masks)
            rate = options.batch * options.steps / (time.perf_counter() - started)
            best[name] = max(best[name], rate) if round_number else 0.0  # the first round warms up
    ratio = best["pipeline"] / best["plain fp32 NCHW"]
    where = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{date.today()}, {where}, {options.size[0]}×{options.size[1]}, batch {options.batch}")
    for name, rate in best.items():
        print(f"{name}: {rate:.1f} images/s")
    print(f"ratio: {ratio:.2f}")


if __name__ == "__main__":
    main()
