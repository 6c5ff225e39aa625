"""What all figures of the documentation share: colours, small drawn images, and how a figure is saved."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image
from scipy.ndimage import gaussian_filter

FOLDER = Path(__file__).parent
TRUE, PREDICTED = "#2882ff", "#ff8c00"
"""Truth is blue and a prediction is orange, as in the report."""
FOLDS = ["#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#f0e442"]
"""Okabe and Ito's colours, which colour-blind eyes tell apart too."""
INK, GREY, PALE, PAPER = "#222222", "#888888", "#dddddd", "#fcfcfa"
SMALL, WIDE = (3.3, 1.75), (7.4, 3.0)
DPI = 120

plt.rcParams.update({
    "font.size": 8, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": GREY, "xtick.color": INK,
    "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False, "axes.facecolor": PAPER,
    "figure.facecolor": PAPER, "savefig.facecolor": PAPER, "legend.frameon": False, "axes.titlesize": 8,
})  # fmt: skip


def panels(columns: int, size: tuple[float, float] = SMALL, bare: bool = True) -> tuple[Figure, list[Axes]]:
    """Returns a figure of one row of axes; bare ones show no frame and no ticks."""
    figure, axes = plt.subplots(1, columns, figsize=size, squeeze=False, layout="constrained")
    if bare:
        for axis in axes[0]:
            axis.set_axis_off()
    return figure, list(axes[0])


def diagram(size: tuple[float, float] = SMALL) -> tuple[Figure, Axes]:
    """Returns a figure of one axis without frame, whose units are hundredths of an inch from the lower left."""
    figure = plt.figure(figsize=size)
    axis = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axis.set(xlim=(0, 100 * size[0]), ylim=(0, 100 * size[1]))
    axis.set_axis_off()
    return figure, axis


def save(figure: Figure, name: str) -> None:
    """Writes docs/figures/<name>.png with a palette of 128 colours, and closes the figure."""
    path = FOLDER / f"{name}.png"
    figure.savefig(path, dpi=DPI, bbox_inches="tight", pad_inches=0.08, metadata={"Software": None})
    plt.close(figure)
    with Image.open(path) as image:
        image.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


def box(axis: Axes, x: float, y: float, width: float, height: float, text: str = "", colour: str = PALE) -> None:
    """Draws a box with rounded corners whose lower left corner is (x, y), and a text in its middle."""
    axis.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=3", fc=colour, ec=INK, lw=0.6)
    )
    axis.text(x + width / 2, y + height / 2, text, ha="center", va="center")


def arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = INK) -> None:
    """Draws an arrow from `start` to `end`."""
    axis.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=8, lw=1, color=colour, shrinkA=1, shrinkB=1)
    )


def squares(axis: Axes, colours: list[str], x: float, y: float, side: float = 9, gap: float = 2) -> None:
    """Draws one square per image in a row that starts at (x, y)."""
    for number, colour in enumerate(colours):
        left = x + number * (side + gap)
        axis.add_patch(plt.Rectangle((left, y), side, side, fc=colour, ec=INK, lw=0.5))


def disc(shape: tuple[int, int], row: float, column: float, rows: float, columns: float) -> np.ndarray:
    """Returns an ellipse as a mask (h, w) bool, of the radii `rows` and `columns` around (row, column)."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    return ((y - row) / rows) ** 2 + ((x - column) / columns) ** 2 <= 1


def picture(mask: np.ndarray, seed: int = 0, contrast: float = 0.38) -> np.ndarray:
    """Returns a grey image (h, w) of values 0 to 1 with smooth texture, brighter where the mask is."""
    random = np.random.default_rng(seed)
    texture = gaussian_filter(random.normal(size=mask.shape), 3)
    grain = gaussian_filter(random.normal(size=mask.shape), 0.7)
    values = 0.3 + 0.07 * texture / texture.std() + 0.04 * grain / grain.std()
    return np.asarray(np.clip(values + contrast * gaussian_filter(mask.astype(float), 1.5), 0, 1))


def probabilities(mask: np.ndarray, seed: int = 0, blur: float = 3.0, noise: float = 0.8) -> np.ndarray:
    """Returns a probability map (h, w) of a network that finds the mask, but not exactly."""
    random = np.random.default_rng(seed)
    wobble = gaussian_filter(random.normal(size=mask.shape), 6)
    logits = 8 * (gaussian_filter(mask.astype(float), blur) - 0.5) + noise * wobble / wobble.std()
    return np.asarray(1 / (1 + np.exp(-logits)))


def show(axis: Axes, image: np.ndarray, true: np.ndarray | None = None, predicted: np.ndarray | None = None) -> None:
    """Draws an image with the outlines of a true mask (solid) and a predicted one (dashed)."""
    axis.imshow(image, cmap="gray", vmin=0, vmax=1)
    if true is not None and true.any():
        axis.contour(true, [0.5], colors=TRUE, linewidths=1.6)
    if predicted is not None and predicted.any():
        axis.contour(predicted, [0.5], colors=PREDICTED, linewidths=1.6, linestyles="dashed")
