"""The figures of docs/scores.md: each computes what it shows, on drawn data."""

import numpy as np
from drawing import FOLDS, GREY, PALE, TRUE, WIDE, box, diagram, disc, panels, picture, save, show, squares
from matplotlib.axes import Axes
from sklearn.model_selection import GroupKFold, KFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from pipeline.masks.overlaps import dice, iou, iou_precision
from pipeline.tune.regression import sigmoid

DRAWS = 40


def numbers() -> None:
    """Which images and which models the three numbers are made of."""
    figure, axis = diagram((7.4, 3.1))
    axis.text(18, 290, "one square per group of held-out images, for example a patient", va="center")
    fifths = "chosen on four fifths (grey),\nscored on the fifth (blue);\nfor all fifths, 20 times"
    mean = "the mean of all folds' models\non test images without labels"
    rows = (
        (222, "optimistic", ["#b0b0b0"] * 20, "chosen on all of them,\nscored on all of them", "too high"),
        (140, "honest (nested)", ["#b0b0b0"] * 16 + [TRUE] * 4, fifths, "the one to trust"),
        (58, "submission", [], mean, "cannot be measured here"),
    )
    for y, name, colours, how, verdict in rows:
        axis.text(18, y + 30, name, va="center", fontsize=10, weight="bold")
        if colours:
            squares(axis, colours, 18, y, 10, 3)
        else:
            box(axis, 18, y - 4, 257, 20, "test images", "white")
        axis.text(300, y + 8, how, va="center")
        axis.text(560, y + 8, verdict, va="center", style="italic")
    for y in (190, 108):
        axis.plot([18, 720], [y + 5, y + 5], color=PALE, lw=0.8)
    axis.text(
        18, 18, "grey: the choice of thresholds and views has seen these labels     blue: it has not", va="center"
    )
    save(figure, "numbers")


def _patients(random: np.random.Generator, patients: int, frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns features (N, 6), labels (N,) and patients (N,) of frames that resemble others of their patient."""
    centre = random.normal(0, 1.2, (patients, 6))
    tendency = random.normal(0, 1.2, patients)
    owner = np.repeat(np.arange(patients), frames)
    signal = random.normal(size=owner.size)
    labels = signal + tendency[owner] + random.normal(0, 0.7, owner.size) > 0
    features = centre[owner] + random.normal(0, 0.5, (owner.size, 6))
    features[:, 0] = 2.0 * signal + random.normal(0, 0.5, owner.size)
    return features, labels, owner


def folds() -> None:
    """Random folds and folds by patient: what each promises, and what new patients give."""
    scores = []
    for draw in range(DRAWS):
        random = np.random.default_rng(draw)
        features, labels, owner = _patients(random, 60, 20)
        old = owner < 20
        model = KNeighborsClassifier(5)
        by_image = cross_val_score(model, features[old], labels[old], cv=KFold(5, shuffle=True, random_state=0))
        by_patient = cross_val_score(model, features[old], labels[old], groups=owner[old], cv=GroupKFold(5))
        new = model.fit(features[old], labels[old]).score(features[~old], labels[~old])
        scores.append((by_image.mean(), by_patient.mean(), new))
    figure, axes = panels(3, WIDE, bare=False)
    random = np.random.default_rng(0)
    for axis, title, parts in (
        (axes[0], "folds by image: patients leak", random.integers(0, 3, (8, 9))),
        (axes[1], "folds by patient: no leak", np.repeat(np.arange(8)[:, None] % 3, 9, axis=1)),
    ):
        for row, numbers_ in enumerate(parts):
            squares(axis, [FOLDS[number] for number in numbers_], 0, 90 - 13 * row, 9)
        axis.set(xlim=(-4, 104), ylim=(-8, 106), title=title, aspect="equal")
        axis.set_axis_off()
    _strips(axes[2], np.array(scores), ["folds by\nimage", "folds by\npatient", "new\npatients"])
    axes[2].set(ylabel="accuracy", title=f"a drawn example, {DRAWS} times")
    figure.text(0.02, 0.03, "one row per patient, one square per image, one colour per fold")
    save(figure, "folds")


def _strips(axis: Axes, values: np.ndarray, names: list[str]) -> None:
    """Draws the columns of `values` as clouds of points with their means."""
    random = np.random.default_rng(1)
    for number in range(len(names)):
        across = number + random.uniform(-0.18, 0.18, len(values))
        axis.plot(across, values[:, number], ".", color=FOLDS[number % 4], ms=4, alpha=0.7)
        mean = values[:, number].mean()
        axis.plot([number - 0.3, number + 0.3], [mean, mean], color="#222222", lw=1.5)
        axis.text(number + 0.33, mean, f"{mean:.2f}", va="center", fontsize=7)
    axis.set_xticks(range(len(names)), names)
    axis.set_xlim(-0.5, len(names) - 0.2)


def _nested(scores: np.ndarray, random: np.random.Generator) -> float:
    """Returns the score of images (N,) under the rule (of K) that is best on the other four fifths: scores (N, K)."""
    part = random.permutation(len(scores)) % 5
    kept = [scores[part == fifth, scores[part != fifth].mean(0).argmax()] for fifth in range(5)]
    return float(np.concatenate(kept).mean())


def nested() -> None:
    """How far the optimistic score and the nested estimate lie from the truth, by the number of images."""
    sizes, rules, draws = [25, 50, 100, 200, 400], 60, 300
    errors = np.empty((len(sizes), draws, 2))
    for place, size in enumerate(sizes):
        for draw in range(draws):
            random = np.random.default_rng((size, draw))
            quality = 0.8 + random.normal(0, 0.006, rules)
            scores = quality + random.normal(0, 0.2, (size, 1)) + random.normal(0, 0.12, (size, rules))
            shift = scores.mean() - quality.mean()  # how easy these images are: the same for both numbers
            true = quality[scores.mean(0).argmax()] + shift
            estimate = np.median([_nested(scores, random) for _ in range(5)])
            errors[place, draw] = scores.mean(0).max() - true, estimate - true
    figure, axes = panels(2, WIDE, bare=False)
    for row in range(5):
        axes[0].text(-3, 4.4 - row, f"round {row + 1}", ha="right", va="center")
        squares(
            axes[0],
            [TRUE if fifth == row else "#b0b0b0" for fifth in range(5) for _ in range(3)],
            0,
            4.1 - row,
            0.6,
            0.2,
        )
    axes[0].set(xlim=(-6, 14), ylim=(-1.6, 6), title="one of twenty partitions into fifths")
    axes[0].set_aspect("auto")
    axes[0].set_axis_off()
    axes[0].text(-3, -0.8, "grey groups choose the rule, blue groups score it", va="center")
    axes[0].set_xlim(-7, 13)
    for number, (name, colour) in enumerate((("optimistic", FOLDS[0]), ("nested", TRUE))):
        mean, spread = errors[:, :, number].mean(1), errors[:, :, number].std(1)
        axes[1].plot(sizes, mean, "o-", color=colour, label=name)
        axes[1].fill_between(sizes, mean - spread, mean + spread, color=colour, alpha=0.18, lw=0)
    axes[1].axhline(0, color=GREY, lw=0.8)
    axes[1].set(
        xscale="log",
        xlabel="held-out images",
        ylabel="score minus the truth",
        title=f"a drawn example: the best of {rules} rules, {draws} draws",
    )
    axes[1].set_xticks(sizes, [str(size) for size in sizes])
    axes[1].minorticks_off()
    axes[1].legend()
    save(figure, "nested")


def calibration() -> None:
    """Two networks of different scale: what they say, which threshold suits each, and both after calibration."""
    random = np.random.default_rng(0)
    logit = random.normal(-1.2, 1.8, 40_000)
    true = random.random(logit.size) < sigmoid(logit)
    said = {"steep (slope 0.5 needed)": sigmoid(2.0 * logit + 1.5), "flat (slope 2 needed)": sigmoid(0.5 * logit - 1.2)}
    figure, axes = panels(3, WIDE, bare=False)
    levels = np.arange(0.02, 1, 0.02)
    for (name, values), colour in zip(said.items(), (FOLDS[0], FOLDS[2]), strict=True):
        shares = [
            true[np.abs(values - level) < 0.02].mean() for level in levels if (np.abs(values - level) < 0.02).sum() > 50
        ]
        there = [level for level in levels if (np.abs(values - level) < 0.02).sum() > 50]
        axes[0].plot(there, shares, color=colour, label=name)
        axes[1].plot(levels, [_dice(values >= level, true) for level in levels], color=colour)
        offset, slope = _fit(values, true)
        calibrated = sigmoid(slope * np.log(values / (1 - values)) + offset)
        axes[2].plot(
            levels,
            [_dice(calibrated >= level, true) for level in levels],
            color=colour,
            ls="-" if "steep" in name else "--",
        )
    axes[0].plot([0, 1], [0, 1], color=GREY, lw=0.8)
    axes[0].legend(fontsize=6.5, loc="lower right")
    axes[0].set(
        xlabel="probability that it says",
        ylabel="share of pixels in the mask",
        ylim=(-0.25, 1.02),
        yticks=[0, 0.5, 1],
        title="what two networks mean by 0.5",
    )
    axes[1].set(xlabel="threshold", ylabel="Dice", title="no one threshold suits both")
    axes[2].set(xlabel="threshold", ylabel="Dice", title="after calibration")
    save(figure, "calibration")


def _dice(predicted: np.ndarray, true: np.ndarray) -> float:
    return float(dice((predicted & true).sum(), predicted.sum(), true.sum()))


def _fit(values: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """Returns intercept and slope of the logit that fit the pixels best."""
    inputs = np.stack([np.ones(values.size), np.log(values / (1 - values))], 1)
    weights = np.zeros(2)
    for _ in range(25):  # Newton's method for the log loss
        chance = sigmoid(inputs @ weights)
        curvature = inputs.T @ (inputs * (chance * (1 - chance))[:, None])
        weights -= np.linalg.solve(curvature, inputs.T @ (chance - true))
    return float(weights[0]), float(weights[1])


def metrics() -> None:
    """The same predictions under three metrics."""
    shape = (48, 60)
    large, none = disc(shape, 24, 30, 14, 18), np.zeros(shape, bool)
    cases = {
        "good": (large, disc(shape, 25, 31, 14, 18)),
        "half of it": (large, disc(shape, 24, 22, 13, 11)),
        "small one missed": (disc(shape, 24, 30, 4, 4), none),
        "false alarm": (none, disc(shape, 30, 20, 3, 3)),
        "both empty": (none, none),
    }
    figure, axes = panels(5, (7.4, 1.9))
    for axis, (name, (true, predicted)) in zip(axes, cases.items(), strict=True):
        counts = (true & predicted).sum(), predicted.sum(), true.sum()
        show(axis, picture(true, 3), true, predicted)
        values = [float(metric(*counts)) for metric in (dice, iou, iou_precision)]
        axis.set_title(name)
        axis.text(
            0.5,
            -0.04,
            "dice {:.2f}\niou {:.2f}\niou_precision {:.2f}".format(*values),
            transform=axis.transAxes,
            ha="center",
            va="top",
        )
    save(figure, "metrics")


FIGURES = (numbers, folds, nested, calibration, metrics)
