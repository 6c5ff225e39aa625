"""How much faster is a training step with a frozen encoder, and with its stored features (`model.cache_features`)?

    python -m benchmarks.stored_features [--steps 4]

Processor time of one thread per step (forward, BCE, backward, AdamW; bfloat16), the median over steps, in turn in one
process: everything trained, the encoder frozen, and its features read from the file. Weights and images are random.
"""

import argparse
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch
from torch.nn import Module, functional

from pipeline.core.config.training import ModelSettings
from pipeline.networks import models
from pipeline.train.feature_cache import FeatureCache

BATCH = 16
SMALL = {"encoder_depth": 4, "decoder_channels": [64, 32, 16, 8]}
CASES = [
    ("tu-tf_efficientnet_lite0", (128, 128)),
    ("tu-tf_efficientnet_lite2", (128, 128)),
    ("resnet34", (128, 128)),
    ("tu-convnext_tiny.dinov3_lvd1689m", (128, 128)),
]


def network(encoder: str, frozen: bool) -> Module:
    """Returns a Unet with a small decoder, from scratch."""
    settings = ModelSettings(encoder=encoder, options=SMALL)
    built = models.build(settings, 3, 1, None).to(memory_format=torch.channels_last).train()
    if frozen:
        models.encoder_of(built).eval().requires_grad_(False)  # type: ignore[union-attr]
    return built


def step(built: Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, masks: torch.Tensor) -> float:
    """Takes one step and returns its processor time in seconds."""
    started = time.process_time()
    with torch.autocast("cpu", torch.bfloat16):
        logits = models.as_output(built(images)).mask
    functional.binary_cross_entropy_with_logits(logits.float(), masks).backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.process_time() - started


def measure(encoder: str, size: tuple[int, int], steps: int, folder: Path) -> tuple[list[float], int]:
    """Returns the median seconds per step of the three kinds, and the bytes of stored features per image."""
    images = torch.randn(BATCH, 3, *size).contiguous(memory_format=torch.channels_last)
    masks = (torch.rand(BATCH, 1, *size) > 0.5).float()
    trained, frozen, stored = network(encoder, False), network(encoder, True), network(encoder, True)
    inner = models.encoder_of(stored)
    assert inner is not None
    cache = FeatureCache(inner, folder, size, BATCH)
    inner.forward = lambda pixels: cache(pixels)
    optimizers = [
        torch.optim.AdamW(value for value in built.parameters() if value.requires_grad)
        for built in (trained, frozen, stored)
    ]
    seconds: list[list[float]] = [[], [], []]
    for number in range(steps + 1):  # the first step also stores the features
        for times, built, optimizer in zip(seconds, (trained, frozen, stored), optimizers, strict=True):
            taken = step(built, optimizer, images, masks)
            if number:
                times.append(taken)
    assert cache.layout is not None
    return [float(np.median(times)) for times in seconds], 2 * cache.layout.values


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{date.today()}, one thread, batches of {BATCH}")
    print("| encoder | size | trained | frozen | stored features | times faster | KiB per image |")
    print("|---|---|---|---|---|---|---|")
    for encoder, size in CASES:
        with tempfile.TemporaryDirectory() as folder:
            (trained, frozen, stored), size_of = measure(encoder, size, options.steps, Path(folder))
        milliseconds = " | ".join(f"{1000 * value:.0f} ms" for value in (trained, frozen, stored))
        faster = f"{trained / stored:.1f}×, {frozen / stored:.1f}×"
        print(f"| {encoder} | {size[0]}×{size[1]} | {milliseconds} | {faster} | {size_of // 1024} |", flush=True)


if __name__ == "__main__":
    main()
