"""Small pictures for the glossary: images, labels, folds and run lengths."""

import numpy as np
from drawing import FOLDS, GREY, INK, PALE, TRUE, arrow, box, diagram, disc, panels, picture, save, show, squares
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from pipeline.masks import rle
from pipeline.masks.rle_text import Convention
from pipeline.new.sample import make_subject, make_sweep, plan_frames, render


def fold() -> None:
    """Four folds: each model trains on three of them and holds one out."""
    figure, axis = diagram()
    axis.text(60, 162, "all training images, cut into four folds:", va="center")
    for part in range(4):
        axis.text(60 + 66 * part + 29, 142, f"fold {part}", ha="center", va="center")
    for row in range(4):
        y = 112 - 29 * row
        axis.text(4, y + 9, f"model {row}", va="center")
        for part in range(4):
            out = part == row
            box(axis, 60 + 66 * part, y, 60, 18, "held out" if out else "train", FOLDS[part] if out else PALE)
    save(figure, "fold")


def _patients(axis: Axes, folds: list[list[int]], title: str) -> None:
    axis.text(6, 160, title, va="center")
    for row, numbers in enumerate(folds):
        y = 132 - 27 * row
        axis.text(6, y + 7, f"patient {row + 1}", va="center")
        squares(axis, [FOLDS[number] for number in numbers], 66, y, 14)


def group() -> None:
    """All images of a patient have the colour of one fold."""
    figure, axis = diagram()
    _patients(axis, [[0] * 7, [1] * 5, [2] * 6, [0] * 4, [1] * 7], "one square per image, one colour per fold")
    axis.text(220, 90, "group: patient\nstays in one fold", ha="left", va="center")
    save(figure, "group")


def leak() -> None:
    """The images of a patient stand in several folds."""
    figure, axis = diagram()
    rows = np.random.default_rng(3).integers(0, 3, (5, 7)).tolist()
    sizes = [7, 5, 6, 4, 7]
    _patients(
        axis, [row[:size] for row, size in zip(rows, sizes, strict=True)], "one square per image, one colour per fold"
    )
    axis.text(210, 90, "the model has seen\nthe patient that it\nis scored on", ha="left", va="center")
    save(figure, "leak")


def out_of_fold() -> None:
    """Every image is predicted by the model that never saw it."""
    figure, axis = diagram()
    for row in range(4):
        y = 138 - 24 * row
        axis.text(4, y + 7, f"model {row} predicts", va="center")
        for part in range(4):
            box(
                axis,
                96 + 56 * part,
                y,
                50,
                14,
                "" if part != row else f"fold {part}",
                FOLDS[part] if part == row else "white",
            )
    arrow(axis, (206, 62), (206, 44))
    for part in range(4):
        box(axis, 96 + 56 * part, 24, 50, 16, f"fold {part}", FOLDS[part])
    axis.text(4, 32, "out-of-fold\npredictions", va="center")
    save(figure, "out-of-fold")


def run_length() -> None:
    """One mask of 4×6 pixels, numbered down the columns from 1 and along the rows from 0."""
    mask = np.zeros((4, 6), bool)
    mask[1:3, 1:4] = True
    mask[3, 2] = True
    figure, axes = panels(2)
    for axis, order, base in ((axes[0], "column", 1), (axes[1], "row", 0)):
        numbers = np.arange(24).reshape(mask.shape, order="F" if order == "column" else "C") + base
        for (row, column), number in np.ndenumerate(numbers):
            colour = TRUE if mask[row, column] else "white"
            axis.add_patch(Rectangle((column, -row), 1, 1, fc=colour, ec=GREY, lw=0.6))
            axis.text(column + 0.5, 0.5 - row, str(number), ha="center", va="center", fontsize=7)
        axis.set(xlim=(-0.2, 6.2), ylim=(-3.2, 1.2), aspect="equal")
        text = rle.encode(mask, Convention(order=order, base=base))  # type: ignore[arg-type]
        axis.set_title(f"order: {order}, base: {base}\n{text}")
    save(figure, "run-length")


def wrong_order() -> None:
    """A true mask, and the same run lengths read with the wrong order and the wrong first pixel."""
    mask = disc((60, 84), 26, 34, 13, 22) & ~disc((60, 84), 16, 44, 8, 10)
    image = picture(mask, 4)
    text = rle.encode(mask)
    figure, axes = panels(4, (7.4, 1.75))
    readings = {
        "order: column, base: 1\n(right)": rle.decode(text, mask.shape),
        "order: row\n(torn: rows and columns exchanged)": rle.decode(text, mask.shape, Convention(order="row")),
        "square image, order: row\n(mirrored along the diagonal)": mask[:60, :60].T,
        "base: 0\n(shifted by one pixel)": np.roll(mask, 1, axis=0),
    }
    for axis, (title, read) in zip(axes, readings.items(), strict=True):
        shown = image[:60, :60] if "square" in title else image
        show(axis, shown, read)
        axis.set_title(title, fontsize=7)
    axes[3].set(xlim=(9, 25), ylim=(38, 22))
    axes[3].contour(mask, [0.5], colors="white", linewidths=0.8)
    save(figure, "wrong-order")


def empty_mask() -> None:
    """An image without an object, and what Dice makes of two predictions."""
    figure, axes = panels(3)
    image = picture(np.zeros((48, 48), bool), 5)
    few = disc((48, 48), 30, 20, 3, 3)
    for axis, predicted, title in zip(
        axes,
        (None, None, few),
        ("true mask: empty", "nothing predicted:\nDice 1", "a few pixels:\nDice 0"),
        strict=True,
    ):
        show(axis, image, None, predicted)
        axis.set_title(title)
    save(figure, "empty-mask")


def _frames(count: int, repeated: bool) -> list[tuple[np.ndarray, np.ndarray, str]]:
    """Returns neighbouring frames of the sample competition as images, masks and kinds."""
    frames, _ = plan_frames(240, 120, 0)
    key = {frame.key: frame for frame in frames}
    if repeated:
        odd = next(frame for frame in frames if frame.kind == "contradiction")
        chosen = [odd, key[odd.partner]]
    else:
        shown = sorted(
            (f for f in frames if not f.kind and f.strength == 1), key=lambda f: (f.subject, f.sweep, f.time)
        )
        chosen = shown[:count]
    subject, sweep = make_subject(0, chosen[0].subject), make_sweep(0, chosen[0].subject, chosen[0].sweep)
    drawn = [render(frame, subject, sweep, 0) for frame in chosen]
    return [(image / 255, mask > 0, frame.kind) for frame, (image, mask) in zip(chosen, drawn, strict=True)]


def near_duplicate() -> None:
    """Two neighbouring frames of the sample competition."""
    figure, axes = panels(2, (3.3, 1.45))
    for axis, (image, _, _) in zip(axes, _frames(2, False), strict=True):
        show(axis, image)
    figure.suptitle("two frames of one subject", fontsize=8)
    save(figure, "near-duplicate")


def contradiction() -> None:
    """Two nearly equal frames, of which one has a mask."""
    figure, axes = panels(2, (3.3, 1.45))
    for axis, (image, mask, kind) in zip(axes, _frames(2, True), strict=True):
        empty = kind == "contradiction"
        show(axis, image, None if empty else mask)
        axis.set_title("labelled as empty" if empty else "labelled")
    save(figure, "contradiction")


def tile() -> None:
    """A large image under overlapping tiles."""
    figure, axis = diagram()
    image = picture(disc((70, 110), 35, 55, 20, 30), 6)
    axis.imshow(image, cmap="gray", extent=(10, 240, 12, 160), vmin=0, vmax=1, aspect="auto")
    for row in range(2):
        for column in range(3):
            colour = FOLDS[(row + column) % 4]
            axis.add_patch(Rectangle((10 + 68 * column, 12 + 58 * row), 94, 90, fill=False, ec=colour, lw=2))
    text = "the network\nsees one tile\nat a time;\nwhere tiles\noverlap, their\nprobabilities\nare averaged"
    axis.text(254, 86, text, va="center", fontsize=7)
    save(figure, "tile")


def up_to_date() -> None:
    """Stages as boxes: what depends on a changed setting is stale."""
    figure, axis = diagram()
    for number, stage in enumerate(["decode", "clean", "split", "train"]):
        box(axis, 8 + 80 * number, 110, 64, 26, stage, FOLDS[2])
        arrow(axis, (72 + 80 * number, 123), (88 + 80 * number, 123)) if number < 3 else None
    arrow(axis, (280, 110), (280, 66))
    for number, stage in enumerate(["encode", "predict", "tune", "validate"]):
        box(axis, 8 + 80 * number, 40, 64, 26, stage, FOLDS[2] if stage == "validate" else FOLDS[0])
        arrow(axis, (88 + 80 * number, 53), (72 + 80 * number, 53)) if number < 3 else None
    axis.text(8, 158, "a setting of tune has changed:", va="center")
    axis.text(8, 88, "green: up to date\norange: runs again", va="center", color=INK)
    save(figure, "up-to-date")


def border() -> None:
    """Two touching objects: the mask, the border, and what a watershed makes of both."""
    left, right = disc((96, 128), 48, 44, 30.5, 28.5), disc((96, 128), 48, 88, 26.5, 28.5)
    mask = left | right
    figure, axes = panels(3, (3.3, 1.4))
    show(axes[0], picture(mask, 7), mask)
    axes[0].set_title("one region")
    between = disc((96, 128), 48, 68, 20, 4.4) & mask
    axes[1].imshow(np.where(mask, 0.7, 0.98) - 0.7 * between, cmap="gray", vmin=0, vmax=1)
    axes[1].set_title("border, predicted")
    parts = np.where(mask & (np.arange(128) < 68), 1, np.where(mask, 2, 0))
    axes[2].imshow(np.array([[252, 252, 250], [230, 159, 0], [86, 180, 233]], np.uint8)[parts])
    axes[2].set_title("two instances")
    save(figure, "border")


FIGURES = (
    fold, group, leak, out_of_fold, run_length, wrong_order, empty_mask, near_duplicate, contradiction, tile,
    up_to_date, border,
)  # fmt: skip
