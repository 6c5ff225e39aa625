"""Prediction on a CPU by torch, torch.compile, ONNX Runtime and OpenVINO, in turn in one process.

    python -m benchmarks.predict_backends [--sizes 128x128 224x320] [--networks resnet34 lite0] [--batch 16]
        [--rounds 5] [--compile] [--threads 1]

U-Nets of four stages, as in the recipes `tgs-salt` and `tgs-salt-lite0`, trained for a few steps on smooth noise so
that their probabilities are not all alike. `torch` is the code that validate and predict run today, in bfloat16 if the
processor has it; all others are ratios to it. The difference is that of the probabilities from torch in float32, the
largest and the mean. With one thread the time is processor time, which excludes other processes. Packages that are not
installed are left out; torch.compile only with --compile.
"""

import argparse
import copy
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import segmentation_models_pytorch as smp
import torch
from torch import Tensor
from torch.nn import Module, functional

from benchmarks.predict_speed import size_of
from benchmarks.step_speed import processor
from pipeline.export.graph import Probabilities, write
from pipeline.networks import device
from pipeline.networks.device import Compute
from pipeline.networks.models import SegmentationNetwork
from pipeline.networks.openvino_network import OpenvinoNetwork
from pipeline.networks.ready import ready

NETWORKS: dict[str, tuple[str, int, list[int]]] = {
    "resnet34": ("resnet34", 1, [128, 64, 32, 16]),
    "lite0": ("tu-tf_efficientnet_lite0", 3, [64, 32, 16, 8]),
}
"""The encoder, the number of channels of the images, and the decoder's channels."""
Loop = Callable[[Tensor], np.ndarray]


def noise(count: int, channels: int, size: tuple[int, int]) -> Tensor:
    """Returns smooth images (count, channels, H, W) uint8."""
    layers = [torch.rand(count, channels, -(-size[0] // scale), -(-size[1] // scale)) for scale in (1, 4, 16)]
    grown = [functional.interpolate(layer, size, mode="bilinear") for layer in layers]
    return (255 * torch.stack(grown).mean(0)).to(torch.uint8)


def network_of(name: str, steps: int = 8) -> SegmentationNetwork:
    """Returns a network that was trained for a few steps to find the bright pixels."""
    torch.manual_seed(0)
    encoder, channels, widths = NETWORKS[name]
    inner = smp.Unet(encoder, 4, encoder_weights=None, decoder_channels=widths, in_channels=channels, classes=1)
    network = SegmentationNetwork(inner, channels, "unit", 255).train()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    for _ in range(steps):
        pixels = noise(8, channels, (64, 64))
        bright = (pixels.float().mean(1, keepdim=True) > 127).float()
        optimizer.zero_grad()
        functional.binary_cross_entropy_with_logits(network(pixels).mask, bright).backward()
        optimizer.step()
    return network.eval()


def loop_of(network: Module, compute: Compute) -> Loop:
    """Returns a function from pixels to probabilities (N, 1, H, W) float32."""

    def predict(pixels: Tensor) -> np.ndarray:
        with torch.inference_mode(), compute.autocast():
            return network(pixels).mask.float().sigmoid().numpy()

    return predict


def onnx_loop(network: SegmentationNetwork, example: Tensor) -> Loop:
    """Returns the same for ONNX Runtime, in float32."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        write(Probabilities(copy.deepcopy(network), False, (), 1), example, path)
        session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {"pixels": pixels.numpy()})[0]


def loops_of(network: SegmentationNetwork, channels: int, size: tuple[int, int], compiled: bool) -> dict[str, Loop]:
    """Returns the ways to predict images of a size."""
    auto, exact = device.detect(), device.detect("32")
    formats = {"fp32": exact} if auto.precision == "32-true" else {"bf16": auto, "fp32": exact}
    loops = {
        f"torch, {name}": loop_of(ready(copy.deepcopy(network), channels, compute), compute)
        for name, compute in formats.items()
    }
    if compiled:
        for name, compute in formats.items():
            module: Module = torch.compile(ready(copy.deepcopy(network), channels, compute))  # type: ignore[assignment]
            loops[f"torch.compile, {name}"] = loop_of(module, compute)
    if all(importlib.util.find_spec(package) for package in ("onnx", "onnxscript", "onnxruntime")):
        loops["ONNX Runtime, fp32"] = onnx_loop(network, noise(2, channels, size))
    if importlib.util.find_spec("openvino"):
        for name, compute in formats.items():
            converted = OpenvinoNetwork(copy.deepcopy(network), compute)
            loops[f"OpenVINO, {name}"] = loop_of(converted, compute)
    return loops


def compare(name: str, size: tuple[int, int], options: argparse.Namespace) -> list[str]:
    """Returns the rows of the table for a network and a size."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    network, channels = network_of(name), NETWORKS[name][1]
    loops = loops_of(network, channels, size, options.compile)
    pixels, seconds, first = noise(options.batch, channels, size), {way: [] for way in loops}, {}  # type: ignore[var-annotated]
    for round_number in range(options.rounds + 1):
        for way, loop in loops.items():
            started = clock()
            probability = loop(pixels)
            if round_number:  # the first round is a warm-up
                seconds[way].append(clock() - started)
            else:
                first[way] = probability
    base, rows = next(iter(seconds.values())), []
    for way, times in seconds.items():
        ratios = [one / other for one, other in zip(base, times, strict=True)]
        off = np.abs(first[way] - first["torch, fp32"])
        rows.append(
            f"| {name}, {size[0]}×{size[1]} | {way} | {options.batch / statistics.median(times):.1f} | "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | {off.max():.5f} | "
            f"{off.mean():.5f} |"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=size_of, default=[(128, 128), (224, 320)])
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device_of = f"{processor()}, {options.threads} thread(s), torch {torch.__version__}"
    print(f"{date.today()}, {device_of}, {options.rounds} rounds")
    print("| network | computed by | images/s | ratio to the first | largest difference from fp32 | mean |")
    print("|---|---|---|---|---|---|")
    for name in options.networks:
        for size in options.sizes:
            print("\n".join(compare(name, size, options)), flush=True)


if __name__ == "__main__":
    main()
