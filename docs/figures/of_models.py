"""Small pictures for the glossary: scores, training, and what is made of predictions."""

import numpy as np
from drawing import (
    FOLDS,
    GREY,
    INK,
    PALE,
    PAPER,
    PREDICTED,
    TRUE,
    arrow,
    box,
    diagram,
    disc,
    panels,
    picture,
    probabilities,
    save,
    show,
)
from matplotlib.colors import to_rgb
from scipy.ndimage import label

from pipeline.masks.overlaps import dice as dice_of
from pipeline.masks.overlaps import iou as iou_of

SHAPE = (48, 64)
PAIR = disc((96, 128), 48, 54, 30.5, 34.5), disc((96, 128), 48, 76, 30.5, 34.5)


def _overlap(name: str, formula: str, score: float) -> None:
    true, predicted = PAIR
    figure, axes = panels(2)
    colours = np.tile(to_rgb(PAPER), (*true.shape, 1))
    for area, colour in ((true & ~predicted, TRUE), (predicted & ~true, PREDICTED), (true & predicted, "#b0b0b0")):
        colours[area] = to_rgb(colour)
    axes[0].imshow(colours)
    axes[1].text(0.5, 0.62, f"{formula}\n= {score:.2f} here", ha="center", va="center", fontsize=9)
    axes[1].text(
        0.5, 0.18, "blue: true alone\norange: predicted alone\ngrey: both", ha="center", va="center", fontsize=7
    )
    save(figure, name)


def dice() -> None:
    """Two overlapping discs and their Dice."""
    true, predicted = PAIR
    score = dice_of((true & predicted).sum(), predicted.sum(), true.sum())
    _overlap("dice", "Dice = 2 · both /\n(true + predicted)", float(score))


def iou() -> None:
    """Two overlapping discs and their IoU."""
    true, predicted = PAIR
    score = iou_of((true & predicted).sum(), predicted.sum(), true.sum())
    _overlap("iou", "IoU = both /\n(true or predicted)", float(score))


def threshold() -> None:
    """A probability map, and the masks at two thresholds."""
    mask = disc(SHAPE, 24, 32, 13, 18)
    values = probabilities(mask, 2, 4, 0.4) ** 0.9
    figure, axes = panels(3, (3.3, 1.3))
    axes[0].imshow(values, cmap="gray", vmin=0, vmax=1)
    axes[0].set_title("probability")
    for axis, level in zip(axes[1:], (0.3, 0.7), strict=True):
        show(axis, picture(mask, 2), mask, values >= level)
        axis.set_title(f"threshold {level}")
    save(figure, "threshold")


def view() -> None:
    """The image and its mirror image are predicted, turned back and averaged."""
    mask = disc(SHAPE, 22, 22, 12, 14)
    figure, axes = panels(4, (3.3, 1.15))
    image, plain = picture(mask, 8), probabilities(mask, 3)
    mirrored = probabilities(mask[:, ::-1], 9)[:, ::-1]
    for axis, shown, title in zip(
        axes,
        (image, plain, mirrored, (plain + mirrored) / 2),
        ("image", "as it is", "mirrored,\nturned back", "mean"),
        strict=True,
    ):
        axis.imshow(shown, cmap="gray", vmin=0, vmax=1)
        axis.set_title(title, fontsize=7)
    save(figure, "view")


def region() -> None:
    """A mask whose three connected regions have different colours."""
    shape = (96, 128)
    mask = disc(shape, 28, 32, 18.5, 22.5) | disc(shape, 64, 84, 22.5, 28.5) | disc(shape, 76, 24, 6.5, 6.5)
    numbers, _ = label(mask)
    colours = np.array([to_rgb("#fcfcfa"), *[to_rgb(colour) for colour in FOLDS[:3]]])
    figure, axes = panels(2, (3.3, 1.4))
    axes[0].imshow(np.where(mask, 0.1, 0.98), cmap="gray", vmin=0, vmax=1)
    axes[0].set_title("a mask")
    axes[1].imshow(colours[numbers])
    axes[1].set_title("its three regions")
    save(figure, "region")


def member() -> None:
    """One trained model among those of all folds and seeds."""
    figure, axis = diagram()
    for row in range(2):
        axis.text(6, 98 - 44 * row, f"seed {row}", va="center")
        for column in range(4):
            chosen = (row, column) == (0, 1)
            box(
                axis,
                52 + 68 * column,
                82 - 44 * row,
                58,
                32,
                "a member" if chosen else "",
                FOLDS[1] if chosen else PALE,
            )
    for column in range(4):
        axis.text(81 + 68 * column, 134, f"fold {column}", ha="center")
    axis.text(6, 160, "four folds and two seeds: eight members", va="center")
    save(figure, "member")


def ensemble() -> None:
    """Three models' probabilities, their mean, and its mask."""
    mask = disc(SHAPE, 24, 32, 13, 18)
    maps = [probabilities(mask, seed, 3, 1.4) for seed in (1, 4, 7)]
    figure, axes = panels(5, (4.2, 1.1))
    mean = np.mean(maps, axis=0)
    for axis, values, title in zip(axes, (*maps, mean), ("model 1", "model 2", "model 3", "mean"), strict=False):
        axis.imshow(values, cmap="gray", vmin=0, vmax=1)
        axis.set_title(title)
    show(axes[4], picture(mask, 2), mask, mean >= 0.5)
    axes[4].set_title("mask")
    save(figure, "ensemble")


def presence() -> None:
    """A network with two heads."""
    figure, axis = diagram()
    box(axis, 10, 62, 62, 46, "image", PALE)
    box(axis, 110, 62, 72, 46, "network", FOLDS[1])
    box(axis, 222, 110, 96, 40, "mask head:\nwhere is it?", FOLDS[2])
    box(axis, 222, 22, 96, 40, "presence head:\nis it there?  0.92", FOLDS[0])
    arrow(axis, (72, 85), (110, 85))
    arrow(axis, (182, 92), (222, 128))
    arrow(axis, (182, 78), (222, 44))
    save(figure, "presence")


def seed() -> None:
    """The same training with three seeds."""
    figure, axes = panels(1, bare=False)
    epochs = np.arange(1, 25)
    for number, colour in enumerate(FOLDS[:3]):
        noise = np.random.default_rng(number).normal(0, 0.02, epochs.size)
        curve = (0.84 + 0.03 * number) * (1 - np.exp(-epochs / 5)) + noise / np.sqrt(epochs / 4)
        axes[0].plot(epochs, curve, color=colour, label=f"seed {number}")
    axes[0].set(xlabel="epoch", ylabel="score")
    axes[0].legend(loc="lower right")
    save(figure, "seed")


def ema() -> None:
    """A weight that jumps from step to step, and its moving average."""
    figure, axes = panels(1, bare=False)
    steps = np.arange(160)
    weight = 1 - np.exp(-steps / 40) + np.random.default_rng(1).normal(0, 0.13, steps.size)
    average = [weight[0]]
    for step, value in enumerate(weight[1:], 1):
        decay = min(0.95, (1 + step) / (10 + step))
        average.append(decay * average[-1] + (1 - decay) * value)
    axes[0].plot(steps, weight, color=GREY, lw=0.7, label="a weight")
    axes[0].plot(steps, average, color=FOLDS[3], lw=2, label="its moving average")
    axes[0].set(xlabel="step")
    axes[0].legend(loc="lower right")
    save(figure, "ema")


def early_stopping() -> None:
    """Training loss falls on; the held-out loss has a minimum."""
    figure, axes = panels(1, bare=False)
    epochs = np.arange(1, 24)
    held_out = 0.32 + 0.75 * np.exp(-epochs / 4) + 0.012 * np.clip(epochs - 11, 0, None)
    best = int(held_out.argmin()) + 1
    axes[0].plot(epochs, 0.1 + 0.95 * np.exp(-epochs / 6), color=GREY, label="training images")
    axes[0].plot(epochs, held_out, color=FOLDS[0], lw=2, label="held-out images")
    axes[0].axvline(best, ymax=0.55, color=FOLDS[2], ls="--")
    axes[0].text(best, 0.58, f"best epoch: {best}", ha="center", color=FOLDS[2])
    axes[0].axvline(best + 10, ymax=0.45, color=INK, ls=":")
    axes[0].text(best + 10, 0.5, "stopped", ha="center")
    axes[0].set(xlabel="epoch", ylabel="loss", ylim=(0, 0.95), xlim=(0, 26))
    axes[0].legend(fontsize=7, loc="upper right")
    save(figure, "early-stopping")


def snapshot() -> None:
    """A learning rate with four cycles, and a model at the end of each."""
    figure, axes = panels(1, bare=False)
    epochs = np.linspace(0, 40, 400, endpoint=False)
    axes[0].plot(epochs, (1 + np.cos(np.pi * (epochs % 10) / 10)) / 2, color=GREY)
    axes[0].plot([10, 20, 30, 40], [0.02] * 4, "o", color=FOLDS[3], clip_on=False, label="a snapshot is kept")
    axes[0].set(xlabel="epoch", ylabel="learning rate", yticks=[], ylim=(-0.05, 1.45))
    axes[0].legend(loc="upper right")
    save(figure, "snapshot")


def pseudo_labels() -> None:
    """Predictions of the test images become training masks."""
    figure, axis = diagram()
    box(axis, 6, 104, 92, 46, "training\nimages and\ntheir masks", PALE)
    box(axis, 126, 104, 72, 46, "first\nmodel", FOLDS[1])
    box(axis, 226, 104, 98, 46, "test images,\nits predictions\nas their masks", FOLDS[0])
    box(axis, 126, 24, 72, 40, "second\nmodel", FOLDS[2])
    arrow(axis, (98, 127), (126, 127))
    arrow(axis, (198, 127), (226, 127))
    arrow(axis, (60, 104), (128, 62))
    arrow(axis, (266, 104), (198, 56))
    save(figure, "pseudo-labels")


FIGURES = (
    dice, iou, threshold, view, region, member, ensemble, presence, seed, ema, early_stopping, snapshot, pseudo_labels,
)  # fmt: skip
