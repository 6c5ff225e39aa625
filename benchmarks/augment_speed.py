"""Images per second of augmentation, in the loader and on the device.

    python -m benchmarks.augment_speed [--recipe tgs-salt] [--sizes 128x128 224x320] [--batch 64] [--rounds 5]

Synthetic grey images from memory-mapped arrays are augmented by the recipe's list and by a list of slow transforms.
Four parts are timed in turn in one process:

loader       the training loader in this process, with albumentations: the rate of one core
bare loader  the same loader without transforms: the work that `train.augment_on: device` leaves to it
device       `train.augment_on: device` alone: drawing parameters, sending the batch and transforming it, to the end
draws        only the drawing of parameters, which one core does on every device

The rate is the best of the rounds. On a CPU the device is the same core.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import torch

from pipeline.core.run import open_run
from pipeline.networks import device
from pipeline.networks.transforms import Entries
from pipeline.train.batches.augment import Augmentation
from pipeline.train.batches.dataset import Batch, TrainDataset, train_loader
from pipeline.train.batches.device_augment import DeviceAugmentation

SLOW: Entries = [
    {"HorizontalFlip": {"p": 0.5}},
    {"Affine": {"rotate": [-15, 15], "scale": [0.9, 1.1], "translate_percent": [-0.05, 0.05], "p": 1}},
    {"RandomBrightnessContrast": {"p": 1}},
    {"GaussNoise": {"p": 1}},
]


def write_arrays(folder: Path, size: tuple[int, int], count: int) -> None:
    """Writes pixel arrays as decode does: grey images and binary masks."""
    random = np.random.default_rng(0)
    np.save(folder / "train_images.npy", random.integers(0, 256, (count, *size, 1), np.uint8))
    np.save(folder / "train_masks.npy", random.integers(0, 2, (count, 1, *size), np.uint8))


def works(
    entries: Entries, size: tuple[int, int], batch: int, folder: Path, compute: device.Compute
) -> dict[str, Callable[[], object]]:
    """Returns functions that make one batch, by the name of their column."""
    augmentation, rows = DeviceAugmentation(entries, size), np.arange(batch)
    full, bare = (
        train_loader(TrainDataset(folder, rows, Augmentation(transforms), 0), batch, 0) for transforms in (entries, [])
    )
    first: Batch = next(iter(bare))
    if compute.accelerator == "cuda":
        first = Batch(*(tensor.pin_memory() for tensor in first))

    def on_device() -> None:
        sent = [tensor.to(compute.device, non_blocking=True) for tensor in (first.pixels, first.masks)]
        pixels, _ = augmentation(sent[0], sent[1], 0)
        pixels[0, 0, 0, 0].item()  # waits for a GPU

    return {
        "loader": lambda: list(full),
        "bare loader": lambda: list(bare),
        "device": on_device,
        "draws": lambda: augmentation.draw(batch, (*size, 1), 0),
    }


def best_rates(work: dict[str, Callable[[], object]], batch: int, rounds: int) -> dict[str, float]:
    """Returns images per second by name: the best of the rounds, after a warm-up round."""
    rates = dict.fromkeys(work, 0.0)
    for number in range(rounds + 1):
        for name, run in work.items():
            started = time.perf_counter()
            run()
            rate = batch / (time.perf_counter() - started)
            rates[name] = max(rates[name], rate) if number else 0.0
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="tgs-salt")
    parser.add_argument("--sizes", nargs="+", default=["128x128", "224x320"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    compute = device.detect("32")
    name = torch.cuda.get_device_name() if compute.accelerator == "cuda" else compute.accelerator
    print(f"{date.today()}, {os.cpu_count()} cores, device: {name}; batches of {options.batch}, images/s\n")
    print("| list | size | loader | bare loader | device | draws |\n|---|---|---|---|---|---|")
    lists = {options.recipe: open_run(options.recipe).recipe.augment, "slow transforms": SLOW}
    for text in options.sizes:
        rows, columns = map(int, text.split("x"))
        with tempfile.TemporaryDirectory() as folder:
            write_arrays(Path(folder), (rows, columns), options.batch)
            for title, entries in lists.items():
                work = works(entries, (rows, columns), options.batch, Path(folder), compute)
                rates = best_rates(work, options.batch, options.rounds)
                print(
                    f"| {title} | {text} | " + " | ".join(f"{rate:.0f}" for rate in rates.values()) + " |", flush=True
                )


if __name__ == "__main__":
    main()
