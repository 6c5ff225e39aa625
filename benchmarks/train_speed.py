"""Training speed of ResNet34-UNet: this pipeline against benchmarks/baseline_notebook.py, in turn in one process.

    python -m benchmarks.train_speed [--size 128 128] [--native 101 101] [--batch 16] [--steps 6] [--rounds 5]
        [--augment-on loader]

Both train on synthetic images with the same augmentation and BCE + Dice. The notebook reads PNG files of the native
size, which two workers resize and augment, in fp32. Ours reads the pixel arrays that decode writes, in the precision
that `train` chooses. The time runs from asking the loader for a batch to the end of the optimiser's step; `waiting` is
the loader's share of it. On a GPU it also prints the peak memory, with the weights of both, and how near each comes to
the time that memory traffic alone would take.
"""

import argparse
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch

from benchmarks.baseline_notebook import Notebook, SegmentationDataset, make_loader
from pipeline.core.config.raw_layouts import load_competition
from pipeline.core.config.recipe import ModelSettings, Recipe
from pipeline.core.run import Member, Run
from pipeline.masks import geometry, rle
from pipeline.networks import device, loader, models
from pipeline.train.batches.augment import Augmentation
from pipeline.train.batches.dataset import TrainDataset, train_loader
from pipeline.train.batches.device_augment import DeviceAugmentation
from pipeline.train.depthwise import fast_gradients
from pipeline.train.module import SegmentationModule, split_parameters
from pipeline.train.optimization import build_optimizer

AUGMENT: list[dict[str, dict[str, Any]]] = [{"HorizontalFlip": {"p": 0.5}}, {"RandomBrightnessContrast": {"p": 0.5}}]
ACTIVATIONS = 71e6 * 5 / (224 * 320)
"""Bytes per pixel that a training step must move: 71 MB of bf16 activations per image at 224×320, written once and
passed over four times more."""
Step = Callable[[], tuple[float, float]]
"""Takes one training step and returns the seconds spent waiting for the batch, and in all."""


def write_images(folder: Path, native: tuple[int, int], size: tuple[int, int], count: int) -> pd.DataFrame:
    """Writes synthetic images with elliptic masks, as files and as pixel arrays; returns image_id and rle_mask."""
    generator, masks, images = np.random.default_rng(0), [], []
    for number in range(count):
        image = cv2.GaussianBlur(generator.integers(0, 256, native, dtype=np.uint8), (0, 0), 2)
        mask = np.zeros(native, np.uint8)
        centre = tuple(int(side * generator.uniform(0.3, 0.7)) for side in native[::-1])
        cv2.ellipse(mask, centre, (native[1] // 5, native[0] // 6), 0, 0, 360, (1,), -1)
        cv2.imwrite(str(folder / f"{number:05}.png"), image)
        images.append(image)
        masks.append(mask)
    stretched = geometry.Geometry(size, "stretch", 1)
    fitted = np.stack([geometry.image_to_network(image[..., None], stretched) for image in images])
    np.save(folder / "train_images.npy", fitted)
    np.save(folder / "train_masks.npy", np.stack([geometry.mask_to_network(mask[None], stretched) for mask in masks]))
    return pd.DataFrame(
        {"image_id": [f"{number:05}" for number in range(count)], "rle_mask": [rle.encode(mask) for mask in masks]}
    )


def endless(batches: Any) -> Iterator[Any]:
    """Yields the batches of one epoch after another."""
    while True:
        yield from batches


def notebook_step(folder: Path, table: pd.DataFrame, size: tuple[int, int], batch: int) -> Step:
    """Returns the notebook's loader and step."""
    batches = endless(make_loader(SegmentationDataset(folder, table, size, True), batch, True))
    notebook, where = Notebook(), device.detect().device
    notebook.model.to(where)

    def step() -> tuple[float, float]:
        started = time.perf_counter()
        images, masks = next(batches)
        waited = time.perf_counter() - started
        notebook.step(images.to(where), masks.to(where))
        return waited, time.perf_counter() - started

    return step


def our_step(folder: Path, size: tuple[int, int], count: int, batch: int, on_device: bool) -> Step:
    """Returns the loader, network, loss, precision and optimiser that `train` uses."""
    compute = device.detect()
    run = Run(Recipe(name="speed", competition="sample"), load_competition("sample"), "speed")
    network = models.SegmentationNetwork(models.build(ModelSettings(), 1, 1, None), 1, "imagenet", 255)
    network.to(compute.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    module = SegmentationModule(network, run, Member(0, 0), ([], []))
    optimizer = build_optimizer(run.recipe.train, *split_parameters(network))
    scaler = torch.amp.GradScaler(compute.accelerator, enabled=compute.precision == "16-mixed")
    augment = DeviceAugmentation(AUGMENT if on_device else [], size)
    dataset = TrainDataset(folder, np.arange(count), Augmentation([] if on_device else AUGMENT), 0)
    batches = endless(train_loader(dataset, batch, loader.loader_workers(run, compute)))

    def step() -> tuple[float, float]:
        started = time.perf_counter()
        drawn = next(batches)
        waited = time.perf_counter() - started
        with compute.autocast():
            pixels, masks = (one.to(compute.device, non_blocking=True) for one in drawn[:2])
            pixels, masks = augment(pixels, masks, 0)
            with fast_gradients(pixels.device):
                output = module.network(pixels)
            loss = module.loss(output, masks)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        loss.item()
        return waited, time.perf_counter() - started

    return step


def copied_bytes_per_second() -> float:
    """Returns the GPU's memory traffic, reads and writes, in a copy of 4 GB."""
    source = torch.empty(2**32, dtype=torch.uint8, device="cuda").random_()
    target, seconds = torch.empty_like(source), []
    for _ in range(10):
        torch.cuda.synchronize()
        started = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * len(source) / float(np.median(seconds))


def main() -> None:
    """Prints images/s, the share of waiting and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(128, 128))
    parser.add_argument("--native", type=int, nargs=2, default=(101, 101))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--augment-on", choices=["loader", "device"], default="loader", help="ours")
    options = parser.parse_args()
    torch.manual_seed(0)
    size, native, count = tuple(options.size), tuple(options.native), options.batch * 16
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = write_images(folder, native, size, count)
        steps = {
            "notebook": notebook_step(folder, table, size, options.batch),
            "pipeline": our_step(folder, size, count, options.batch, options.augment_on == "device"),
        }
        rates: dict[str, list[float]] = {name: [] for name in steps}
        waits: dict[str, list[float]] = {name: [] for name in steps}
        memory = dict.fromkeys(steps, 0)
        on_gpu = torch.cuda.is_available()
        for round_number in range(options.rounds + 1):
            for name, step in steps.items():
                if on_gpu:
                    torch.cuda.reset_peak_memory_stats()
                waited, whole = np.array([step() for _ in range(options.steps)]).sum(0)
                if round_number:  # the first round is a warm-up
                    rates[name].append(options.batch * options.steps / whole)
                    waits[name].append(waited / whole)
                memory[name] = torch.cuda.max_memory_allocated() if on_gpu else 0
                time.sleep(1)  # the notebook's workers fill their queue before the other's turn
    where = (
        f"{platform.machine()}, {device.detect().accelerator}, {torch.get_num_threads()} threads, {torch.__version__}"
    )
    print(f"{date.today()}, {where}, {size[0]}×{size[1]} from {native[0]}×{native[1]}, batch {options.batch}")
    traffic = copied_bytes_per_second() if on_gpu else 0
    for name in steps:
        rate = float(np.median(rates[name]))
        share = rate * ACTIVATIONS * size[0] * size[1] / traffic if on_gpu else 0
        more = f", peak memory {memory[name] / 2**30:.1f} GiB, {share:.0%} of what memory allows" if on_gpu else ""
        print(f"{name}: {rate:.1f} images/s, waiting {np.median(waits[name]):.1%}{more}")
    ratios = np.array(rates["pipeline"]) / np.array(rates["notebook"])
    print(f"ratio: {np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f} in {len(ratios)} rounds)")


if __name__ == "__main__":
    main()
