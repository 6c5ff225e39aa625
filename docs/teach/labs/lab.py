"""What the seven labs share: predictions, small drawn images of patients, a small network and its training, pictures.

An image is (32, 32) uint8, a mask (32, 32) bool. Everything follows from seeds and runs on a CPU.
"""

import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import cv2
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import BatchNorm2d, Module
from torch.nn.functional import binary_cross_entropy_with_logits

from pipeline.core.files import root, shown
from pipeline.masks.metrics import METRICS
from pipeline.masks.overlaps import counts
from pipeline.masks.overlay import overlay
from pipeline.networks.output import Output
from pipeline.networks.unet import ConfigurableUnet
from pipeline.notebook import HOME

SIDE = 32
"""Height and width of a drawn image, in pixels."""
NOISE = 0.55
"""Standard deviation of the noise; the nerve is about 1 brighter than the tissue."""
BATCH = 16
TRUE_COLOUR, PREDICTED_COLOUR, GREY = "#2882ff", "#ff8c00", "#888888"
"""Truth is blue and a prediction is orange, as in the report."""
_STARTED = time.perf_counter()


def predict(prediction: float | str | None) -> None:
    """Repeats the prediction that a student wrote down, or says that there is none yet."""
    if prediction is None:
        print("No prediction yet. Replace None above, and run this cell again: you learn most from a wrong prediction.")
    else:
        print(f"Your prediction: {prediction}. It is written down; now measure.")


def compare(prediction: float | str | None, measured: float | str) -> None:
    """Prints the prediction beside what was measured."""
    shown = measured if isinstance(measured, str) else f"{measured:.2f}"
    print(f"predicted {'nothing' if prediction is None else prediction}, measured {shown}")


def spent() -> None:
    """Prints how long this notebook took so far, and the seconds that processors worked for it and for what it
    started."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds = sum(part.ru_utime + part.ru_stime for part in used)
    print(
        f"{seconds:.0f} s of CPU time, {time.perf_counter() - _STARTED:.0f} s by the clock; {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, {platform.machine()}, {date.today()}"
    )


def command(*words: str | Path) -> None:
    """Runs `python -m pipeline` with these words, as in a terminal, and prints what it says."""
    print("$ python -m pipeline", *(shown(word) if isinstance(word, Path) else word for word in words))
    environment = {**os.environ, "PIPELINE_ROOT": str(root()), "PYTHONPATH": str(HOME), "COLUMNS": "110"}
    line = [sys.executable, "-m", "pipeline", *map(str, words)]
    ran = subprocess.run(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(ran.stdout, f"exit code {ran.returncode}", sep="")


# --- drawn images ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Images:
    """Drawn images of patients."""

    pixels: np.ndarray
    """(N, 32, 32) uint8."""
    masks: np.ndarray
    """(N, 32, 32) bool."""
    patients: np.ndarray
    """(N,) int64."""

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, rows: np.ndarray) -> "Images":
        """Returns the images of these rows: numbers, or a choice (N,) bool."""
        return Images(self.pixels[rows], self.masks[rows], self.patients[rows])


def draw(patients: int, frames: int, seed: int, empty: float = 0.5, alike: bool = False) -> Images:
    """Returns images of a nerve and a vessel, `frames` per patient; the probe moves a little between the frames.

    Args:
        patients: how many. Each has a tissue and places of the nerve and of the vessel of their own.
        frames: images per patient.
        seed: of everything that is drawn.
        empty: share of the images without a nerve.
        alike: the nerve and the vessel look the same, and only its place in the patient tells which is which.
            Otherwise the nerve has a dark core.
    """
    drawn = [_draw_patient(number, frames, seed, empty, alike) for number in range(patients)]
    pixels, masks = (np.concatenate(part) for part in zip(*drawn, strict=True))
    return Images(pixels, masks, np.repeat(np.arange(patients), frames))


def _draw_patient(number: int, frames: int, seed: int, empty: float, alike: bool) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng([seed, number])
    tissue = cv2.GaussianBlur(random.standard_normal((SIDE + 16, SIDE + 16)), (0, 0), 3)
    tissue = 0.6 * tissue / tissue.std() + random.normal(0, 0.4)
    places = np.array([[9, 9], [22, 22]]) if random.random() < 0.5 else np.array([[22, 9], [9, 22]])
    nerve, vessel = random.permutation(places + random.integers(-1, 2, (2, 2)))
    sizes = random.uniform(4.5, 6.5, (2, 2))
    images, masks = [], []
    for _ in range(frames):
        move = random.integers(-2, 3, 2)
        rows, columns = (slice(8 - offset, 8 - offset + SIDE) for offset in move)
        image = tissue[rows, columns].copy()
        outline, other = _ellipse(nerve + move, sizes[0]), _ellipse(vessel + move, sizes[1])
        shown = random.random() >= empty
        image += (other < 1) * 1.0 + shown * (outline < 1) * 1.0
        if not alike:
            image -= shown * 1.1 * (outline < 0.45)
        image += random.normal(0, NOISE, image.shape)
        images.append(np.clip(110 + 40 * image, 0, 255).astype(np.uint8))
        masks.append((outline < 1) & shown)
    return np.stack(images), np.stack(masks)


def _ellipse(centre: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Returns the distance (32, 32) from the centre: 1 on the outline."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return np.hypot((rows - centre[0]) / radii[0], (columns - centre[1]) / radii[1])


# --- a network and its training --------------------------------------------------------------------------------------


def network(seed: int, momentum: float = 0.1) -> Module:
    """Returns a small U-Net of this project, from scratch: 6 to 24 channels, two poolings.

    Args:
        seed: of the first weights.
        momentum: of every BatchNorm layer; PyTorch's default is 0.1.
    """
    torch.manual_seed(seed)
    built = ConfigurableUnet("plain", 1, 1, channels=[6, 12, 24])
    for layer in built.modules():
        if isinstance(layer, BatchNorm2d):
            layer.momentum = momentum
    return built


def as_input(pixels: np.ndarray) -> Tensor:
    """Returns pixels (N, 32, 32) uint8 as (N, 1, 32, 32) float32, about -2 to 2."""
    return (torch.from_numpy(pixels).float()[:, None] - 128) / 64


def logits_of(net: Module, batch: Tensor) -> Tensor:
    """Returns the logits (N, 1, H, W) of a batch, by a network of this project or any other."""
    output: Output | Tensor = net(batch)
    return output.mask if isinstance(output, Output) else output


def bce(logits: Tensor, masks: Tensor) -> Tensor:
    """Returns the binary cross-entropy of logits and masks (N, 1, H, W) of 0 and 1."""
    return binary_cross_entropy_with_logits(logits, masks)


def train(
    net: Module,
    images: Images,
    steps: int,
    seed: int = 0,
    every: int | None = None,
    rate: float = 3e-3,
    largest: float = 1.0,
) -> Iterator[tuple[int, float]]:
    """Trains with Adam, and yields the step and the mean loss since the last time: every so many steps, and at the end.

    Args:
        net: changed in place.
        images: to train on, in batches of 16.
        steps: how many.
        seed: of the order of the images, and of dropout.
        every: how often to yield; None: at the end only.
        rate: the learning rate, which does not change.
        largest: the value of a mask's pixels.
    """
    torch.manual_seed(seed)
    random, losses = np.random.default_rng(seed), []
    pixels, masks = as_input(images.pixels), torch.from_numpy(images.masks).float()[:, None] * largest
    optimiser, order = torch.optim.Adam(net.parameters(), rate), np.empty(0, int)
    for step in range(1, steps + 1):
        if len(order) < BATCH:
            order = random.permutation(len(images))
        rows, order = order[:BATCH], order[BATCH:]
        net.train()
        loss = bce(logits_of(net, pixels[rows]), masks[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        if step == steps or (every and step % every == 0):
            yield step, float(np.mean(losses))
            losses = []


def trained(net: Module, images: Images, steps: int, **options: Any) -> Module:
    """Returns the network after `train`."""
    for _ in train(net, images, steps, **options):
        pass
    return net


@torch.no_grad()
def probabilities(net: Module, pixels: np.ndarray, training: bool = False) -> np.ndarray:
    """Returns probabilities (N, 32, 32) float32 of images (N, 32, 32) uint8; nothing in the network changes.

    Args:
        net: a network.
        pixels: the images.
        training: leave the network in training mode: BatchNorm takes the statistics of each batch of 64, and dropout
            drops.
    """
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.train(training)
    parts = [logits_of(net, batch).sigmoid()[:, 0].numpy() for batch in as_input(pixels).split(64)]
    net.load_state_dict(before)
    return np.concatenate(parts)


def dice(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Returns the Dice (N,) of masks (N, 32, 32) bool; 1 where both are empty."""
    return METRICS["dice"](*counts(predicted, true.astype(np.uint8)))


# --- pictures --------------------------------------------------------------------------------------------------------


def panels(columns: int, width: float = 9.0, height: float = 2.8) -> tuple[Figure, list[Axes]]:
    """Returns a figure with one row of axes."""
    plt.close("all")
    figure, axes = plt.subplots(1, columns, figsize=(width, height), squeeze=False, layout="constrained")
    for axis in axes[0]:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes[0])


def show(axis: Axes, picture: np.ndarray, title: str = "") -> None:
    """Shows an image (h, w) or (h, w, 3) uint8, a mask of 0 and 1, or probabilities from black (0) to white (1)."""
    largest = 255 if picture.max() > 1 else 1
    axis.imshow(picture, cmap="gray", vmin=0, vmax=largest, interpolation="nearest")
    axis.set_title(title, fontsize=9)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set(visible=True, color=GREY, linewidth=0.5)  # a white picture would vanish


def outlined(image: np.ndarray, true: np.ndarray, predicted: np.ndarray | None = None) -> np.ndarray:
    """Returns a picture (6 h, 6 w, 3) uint8: the truth blue, the prediction orange and dashed."""
    large = [
        cv2.resize(part.astype(np.uint8), None, fx=6, fy=6, interpolation=cv2.INTER_NEAREST)
        for part in (image, true, np.zeros_like(true) if predicted is None else predicted)
    ]
    return overlay(large[0][..., None], large[1] > 0, large[2] > 0, strength=0.2)


def strips(axis: Axes, values: Sequence[Sequence[float]], names: Sequence[str], label: str) -> None:
    """Draws one column of points per name, and their mean as a line."""
    for place, column in enumerate(values):
        jitter = np.linspace(-0.15, 0.15, len(column)) if len(column) > 1 else np.zeros(1)
        axis.scatter(place + jitter, column, s=16, color=GREY, zorder=2)
        axis.hlines(float(np.mean(column)), place - 0.3, place + 0.3, color=PREDICTED_COLOUR, linewidth=2.5, zorder=3)
    axis.set_xticks(range(len(names)), names)
    axis.set(ylabel=label, xlim=(-0.6, len(names) - 0.4))


def spread(values: Sequence[float]) -> str:
    """Returns the mean and the range of values, as text."""
    return f"{np.mean(values):.3f} ({np.min(values):.3f} to {np.max(values):.3f})"
