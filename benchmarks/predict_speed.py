"""Prediction with ResNet34-UNet: this pipeline against a plain fp32 NCHW loop, in turn in one process.

    python -m benchmarks.predict_speed [--sizes 128x128 224x320] [--batch 32] [--batches 2] [--rounds 7] [--variants]
    python -m benchmarks.predict_speed --memory 420x580 [--tta d4]

Both start from the same pixels in memory and the same weights, and end with uint8 probabilities in memory. Ours is the
code that validate and predict run. The plain loop is that of smp's example, with model.eval() and torch.no_grad().
--variants also times our loop without fusing and without casting the weights once. The weights are from scratch, and
the BatchNorm statistics are from a few batches of noise; the differences from fp32 probabilities are measured on them.
--memory prints the memory that a process, or a GPU, needs in addition to the loaded network.
"""

import argparse
import copy
import platform
import resource
import statistics
import time
from collections.abc import Callable
from datetime import date

import numpy as np
import segmentation_models_pytorch as smp
import torch
from torch import Tensor
from torch.nn import Module

from pipeline.networks import device
from pipeline.networks.models import SegmentationNetwork
from pipeline.networks.predictor import Predictor
from pipeline.networks.ready import fuse, ready
from pipeline.networks.views import views

Predict = Callable[[Tensor], np.ndarray]


def size_of(text: str) -> tuple[int, int]:
    rows, columns = text.split("x")
    return int(rows), int(columns)


def network_of() -> SegmentationNetwork:
    torch.manual_seed(0)
    network = SegmentationNetwork(smp.Unet("resnet34", encoder_weights=None, in_channels=1, classes=1), 1, "unit", 255)
    network.train()
    with torch.no_grad():
        for _ in range(4):
            network(noise(8, (64, 64)))
    return network.eval()


def noise(batch: int, size: tuple[int, int]) -> Tensor:
    """Returns blobs of several sizes, as smooth as real images."""
    layers = [torch.rand(batch, 1, -(-size[0] // scale), -(-size[1] // scale)) for scale in (1, 4, 16)]
    grown = [torch.nn.functional.interpolate(layer, size, mode="bilinear") for layer in layers]
    return (255 * torch.stack(grown).mean(0)).to(torch.uint8)


def plain(network: SegmentationNetwork, where: torch.device) -> Predict:
    inner = copy.deepcopy(network.network).eval().to(where)

    def predict(pixels: Tensor) -> np.ndarray:
        with torch.no_grad():
            probability = inner(pixels.to(where).float() / 255).sigmoid()
        return (probability * 255).round().to(torch.uint8).cpu().numpy()

    return predict


def ours(network: Module, size: tuple[int, int], compute: device.Compute, tta: str = "none") -> Predict:
    predictor = Predictor([network], compute, views(tta), size, 0.25, None)
    return lambda pixels: predictor(pixels.to(compute.device))[0][0][0]


def variants(network: SegmentationNetwork, size: tuple[int, int], compute: device.Compute) -> dict[str, Predict]:
    alone, fused = copy.deepcopy(network), copy.deepcopy(network)
    fuse(fused, 1)
    named = {"autocast and channels_last alone": alone, "and fused": fused}
    for one in named.values():
        one.to(compute.device).to(memory_format=torch.channels_last)
    return {name: ours(one, size, compute) for name, one in named.items()}


def compare(size: tuple[int, int], options: argparse.Namespace) -> None:
    compute, network = device.detect(), network_of()
    loops = {"plain fp32 NCHW": plain(network, compute.device)}
    loops |= variants(network, size, compute) if options.variants else {}
    loops["pipeline"] = ours(ready(copy.deepcopy(network), 1, compute), size, compute)
    pixels = [noise(options.batch, size) for _ in range(options.batches)]
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for round_number in range(options.rounds + 1):
        for name, predict in loops.items():
            started = time.perf_counter()
            found = [predict(batch) for batch in pixels]
            if round_number:  # the first round is a warm-up
                seconds[name].append(time.perf_counter() - started)
            elif name == "plain fp32 NCHW":
                expected = np.concatenate(found).astype(int)
            else:
                off = np.abs(np.concatenate(found) - expected)
                print(f"  {name}: off by {off.mean():.2f} of 255 on average, {off.max()} at most")
    images, base = options.batch * options.batches, seconds["plain fp32 NCHW"]
    print(f"{date.today()}, {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
          f"{compute.precision}, {size[0]}×{size[1]}, batch {options.batch}, {options.rounds} rounds")  # fmt: skip
    for name, times in seconds.items():
        ratios = [one / other for one, other in zip(base, times, strict=True)]
        print(f"{name}: {images / statistics.median(times):.1f} images/s, ratio {statistics.median(ratios):.2f} "
              f"({min(ratios):.2f} to {max(ratios):.2f})")  # fmt: skip


def resident() -> int:
    """Returns the peak resident memory of this process in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def memory(size: tuple[int, int], options: argparse.Namespace) -> None:
    """Prints the memory of prediction. Can be called once per process, because the system only keeps the peak."""
    compute = device.detect()
    predict = ours(ready(network_of(), 1, compute), size, compute, options.tta)
    highest = torch.cuda.max_memory_allocated if compute.accelerator == "cuda" else resident
    before = highest()
    for _ in range(options.batches):
        predict(noise(options.batch, size))
    needed = (highest() - before) / 2**30
    print(f"{date.today()}, {size[0]}×{size[1]}, batch {options.batch}, {options.tta}: {needed:.2f} GiB beyond "
          f"{before / 2**30:.2f} GiB with the network loaded, after {options.batches} batches")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=size_of, default=[(128, 128), (224, 320)])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--variants", action="store_true")
    parser.add_argument("--memory", type=size_of)
    parser.add_argument("--tta", default="none")
    options = parser.parse_args()
    if options.memory:
        memory(options.memory, options)
        return
    for size in options.sizes:
        compare(size, options)


if __name__ == "__main__":
    main()
