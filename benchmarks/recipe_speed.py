"""Training speed and number of parameters of each recipe's network, in turn in one process.

    python -m benchmarks.recipe_speed [RECIPE…] [--size 128 128] [--batch 8] [--rounds 3]

A step is forward, the recipe's losses, backward and a step of its optimiser on synthetic pixels of one size, in the
number format that `train` chooses on this machine. Augmentation and reading are left out.
"""

import argparse
import os
import time
from collections.abc import Callable
from datetime import date

import torch

from pipeline.core.config.recipe_files import FOLDER
from pipeline.core.run import Member, open_run
from pipeline.networks import device, models
from pipeline.train.depthwise import fast_gradients
from pipeline.train.module import SegmentationModule, split_parameters
from pipeline.train.optimization import build_optimizer


def step_of(name: str, size: tuple[int, int], batch: int) -> tuple[Callable[[], None], int]:
    """Returns a training step of a recipe's network, and its number of parameters."""
    run, compute = open_run(name, assignments=["model.weights=none"]), device.detect()
    image, model, classes = run.recipe.image, run.recipe.model, len(run.competition.classes)
    inner = models.build(model, image.channels, classes, None)
    network = models.SegmentationNetwork(inner, image.channels, "unit", 255, model.background_output).train()
    network.to(compute.device).to(memory_format=torch.channels_last)
    module = SegmentationModule(network, run, Member(0, 0), ([], []))
    optimizer = build_optimizer(run.recipe.train, *split_parameters(network))
    pixels = torch.randint(0, 256, (batch, image.channels, *size), dtype=torch.uint8, device=compute.device)
    planes = 1 if run.competition.kind == "multiclass" else classes
    masks = torch.randint(0, 2, (batch, planes, *size), dtype=torch.uint8, device=compute.device)

    def step() -> None:
        with compute.autocast():
            with fast_gradients(pixels.device):
                output = network(pixels)
            loss = module.loss(output, masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # waits for a GPU

    return step, models.parameter_count(network)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", default=sorted(path.stem for path in FOLDER.glob("*.yaml")))
    parser.add_argument("--size", type=int, nargs=2, default=(128, 128))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    compute = device.detect()
    print(f"{date.today()}, {compute.accelerator} ({os.cpu_count()} cores), {compute.precision}: {compute.reason}")
    print(
        f"| recipe, {options.size[0]}×{options.size[1]}, batch {options.batch} | parameters | images/s |\n|---|---|---|"
    )
    steps = {name: step_of(name, tuple(options.size), options.batch) for name in options.recipes}
    best = dict.fromkeys(steps, 0.0)
    for round_number in range(options.rounds + 1):
        for name, (step, _) in steps.items():
            started = time.perf_counter()
            step()
            rate = options.batch / (time.perf_counter() - started)
            best[name] = max(best[name], rate) if round_number else 0.0  # the first round is a warm-up
    for name, (_, parameters) in steps.items():
        print(f"| {name} | {parameters / 1e6:.1f} M | {best[name]:.1f} |")


if __name__ == "__main__":
    main()
