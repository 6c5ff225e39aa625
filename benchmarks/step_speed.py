"""Time of a training step by encoder, decoder channels, image size and frozen stages, in turn in one process.

    python -m benchmarks.step_speed [--encoders tu-tf_efficientnet_lite0 …] [--decoders 128-64-32-16 …] [--sizes 128 …]
        [--freeze none stem 2 all] [--own-gradients] [--batch 16] [--rounds 5] [--threads 1]

On a CPU, `train` computes some gradients of depthwise convolutions in float32; --own-gradients adds a column without
that. A step is forward, BCE + Dice, backward and AdamW on synthetic pixels of three channels, in the number format that
`train` chooses on this machine. Reading and augmentation are left out. A decoder of four widths belongs to an encoder
of depth 4. In each round every network takes one step, so that a noisy moment affects all of them alike. The first
round is a warm-up. With one thread on a CPU the time is processor time, which excludes other processes on the machine.
The figures are medians over rounds: images/s, and the ratio to the first row without anything frozen.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.core.config.raw_layouts import load_competition
from pipeline.core.config.recipe import ModelSettings, Recipe
from pipeline.core.run import Member, Run
from pipeline.networks import device, models
from pipeline.networks.freezing import kept_in_evaluation
from pipeline.train.depthwise import fast_gradients
from pipeline.train.module import SegmentationModule, split_parameters
from pipeline.train.optimization import build_optimizer

Choice = tuple[str, str, int]
"""Encoder, decoder channels such as 64-32-16-8, and side of the images in pixels."""
Way = tuple[str | int, bool]
"""The frozen stages, and whether depthwise convolutions have the fast gradients of `train`."""


def step_of(choice: Choice, freeze: str | int, fast: bool, batch: int) -> Callable[[], None]:
    """Returns a function that takes one training step of a network, with the fast gradients of depthwise convolutions
    that `train` uses on a CPU, or without them."""
    encoder, decoder, side = choice
    widths = [int(width) for width in decoder.split("-")]
    options = {"encoder_depth": len(widths), "decoder_channels": widths}
    settings, compute = ModelSettings(encoder=encoder, options=options, freeze=freeze), device.detect()
    inner: Any = models.build(settings, 3, 1, None)
    still = kept_in_evaluation(inner.encoder, settings)
    network: Any = models.SegmentationNetwork(inner, 3, "unit", 255, kept_in_evaluation=still).train()
    network.to(compute.device).to(memory_format=torch.channels_last)
    run = Run(Recipe(name="speed", competition="sample"), load_competition("sample"), "speed")
    module = SegmentationModule(network, run, Member(0, 0), ([], []))
    optimizer = build_optimizer(run.recipe.train, *split_parameters(network))
    pixels = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, device=compute.device)
    masks = torch.randint(0, 2, (batch, 1, side, side), dtype=torch.uint8, device=compute.device)

    def step() -> None:
        with compute.autocast():
            with fast_gradients(pixels.device) if fast else nullcontext():
                output = network(pixels)
            loss = module.loss(output, masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # waits for a GPU

    return step


def measure(steps: list[Callable[[], None]], rounds: int) -> np.ndarray:
    """Returns the seconds of each step in each round (rounds, steps), all steps in turn."""
    alone = torch.get_num_threads() == 1 and device.detect().accelerator == "cpu"
    clock = time.process_time if alone else time.perf_counter
    seconds = np.zeros((rounds + 1, len(steps)))
    for row in seconds:
        for number, step in enumerate(steps):
            started = clock()
            step()
            row[number] = clock() - started
    return seconds[1:]


def lines(choices: list[Choice], ways: list[Way], seconds: np.ndarray, batch: int) -> list[str]:
    """Returns the table: one row per network with images/s and one column of ratios per way to train."""
    by_row = seconds.reshape(len(seconds), len(choices), len(ways))
    rates = batch / np.median(by_row[:, :, 0], 0)
    ratios = np.median(by_row[:, :1, :1] / by_row, 0)
    names = [
        {"none": "nothing frozen", "stem": "stem", "all": "all"}.get(str(freeze), f"stem and {freeze}")
        + ("" if fast else ", torch's own gradients")
        for freeze, fast in ways
    ]
    head = ["encoder", "decoder", "size", "images/s", *names]
    rows = [
        f"| {encoder} | {decoder} | {side}² | {rate:.1f} | {' | '.join(f'{ratio:.2f}' for ratio in of_row)} |"
        for (encoder, decoder, side), rate, of_row in zip(choices, rates, ratios, strict=True)
    ]
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *rows]


def processor() -> str:
    """Returns the name of the CPU, if the system knows it."""
    path = Path("/proc/cpuinfo")
    found = [line for line in path.read_text().splitlines() if line.startswith("model name")] if path.exists() else []
    return found[0].partition(":")[2].strip() if found else "unknown CPU"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", default=["tu-tf_efficientnet_lite0", "mobilenet_v2", "resnet18"])
    parser.add_argument("--decoders", nargs="+", default=["128-64-32-16", "64-32-16-8"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 112])
    parser.add_argument("--freeze", nargs="+", default=["none", "stem", "2", "all"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--own-gradients", action="store_true", help="a column with torch's own gradients")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    frozen = [int(one) if one.isdecimal() else one for one in options.freeze]
    choices = list(itertools.product(options.encoders, options.decoders, options.sizes))
    started, compute = time.perf_counter(), device.detect()
    ways: list[Way] = [(one, True) for one in frozen] + [("none", False)] * options.own_gradients
    steps = [step_of(choice, *way, options.batch) for choice in choices for way in ways]
    seconds = measure(steps, options.rounds)
    took = time.perf_counter() - started
    print(
        f"{date.today()}, {compute.accelerator} ({processor()}, {options.threads} threads), {compute.precision}, torch "
        f"{torch.__version__}, batch {options.batch}, {options.rounds} rounds, {took:.0f} s"
    )
    print("\n".join(lines(choices, ways, seconds, options.batch)))


if __name__ == "__main__":
    main()
