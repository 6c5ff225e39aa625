"""The optimism from choosing the best epoch on the scored fold, and how well it is estimated.

    python -m benchmarks.epoch_optimism [FILE …] [--draws 500]

FILE is work/<competition>/<run>/fold_<k>/epochs.npz, the counts of every held-out image after every epoch.

Synthetic epochs: scores of n images after E epochs, whose true means are known. The means are all equal (flat), rise to
a plateau, rise and fall (hump), have one clear best (peak), or are the plateau with noise from epoch to epoch (jitter).
A share of the noise of an image, --shared, is the same in all epochs. The optimism is the score of the best epoch minus
its true mean.

Real epochs: n of a file's images are drawn, each as its own group. For an epoch, take the score of the drawn images
minus the score of all other images. The optimism is this difference at the epoch that is best on the drawn images,
minus the same difference at the epoch that is best on the whole file. The second term removes the noise that all epochs
share. Its mean over draws is 0, except for a mean IoU, which depends on the number of images (some classes are on few
images); that dependence is no optimism.

The table shows the mean optimism and, for the same n images, `estimates.epoch_optimism` as mean ± standard deviation
over the draws: by halving (the optimism at n/2 images), by halving divided by √2, which is the estimate, and by halving
divided by 2. For comparison it shows ten-fold cross-fitting, which needs no factor: choose on nine tenths, score the
other tenth. The last column is the factor by which halving would have to be multiplied.
"""

import argparse
import os
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np

from pipeline.core.config.competition import Competition
from pipeline.core.config.raw_layouts import load_competition
from pipeline.masks.bootstrap import Score, epoch_optimism, group_sums, mean_counts, mean_score
from pipeline.masks.metrics import metric_of

SPREAD = 0.25
"""Standard deviation of an image's score."""
SIZES = {"synthetic": (64, 256), "real": (32, 64, 128)}
SHAPES: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "flat": lambda part, random: np.full(len(part), 0.8),
    "plateau": lambda part, random: 0.8 - 0.5 * np.exp(-10 * part),
    "hump": lambda part, random: 0.8 - 0.4 * (part - 0.6) ** 2,
    "peak": lambda part, random: 0.8 - 0.8 * np.abs(part - 0.5),
    "jitter": lambda part, random: 0.8 - 0.5 * np.exp(-10 * part) + random.normal(0, 0.01, len(part)),
}
"""The true means of epochs at parts 0 … 1 of the training."""


def synthetic(shape: str, epochs: int, shared: float, images: int, draws: int) -> str:
    """Returns a row of the table."""
    random, found = np.random.default_rng(0), []
    for _ in range(draws):
        means = SHAPES[shape](np.arange(epochs) / epochs, random)
        luck = random.normal(0, SPREAD * shared**0.5, images)
        scores = means[:, None] + luck + random.normal(0, SPREAD * (1 - shared) ** 0.5, (epochs, images))
        best = scores.mean(1).argmax()
        # noise that all epochs share is no optimism: its mean over draws is 0, so it is removed
        found.append((
            scores[best].mean() - means[best] - luck.mean(),
            *estimates(np.stack([mean_counts(one) for one in scores]), mean_score),
        ))  # fmt: skip
    return row(f"{shape}, {epochs} epochs, {shared:.0%} shared", images, found)


def real(path: Path, images: int, draws: int) -> str:
    """Returns a row of the table."""
    counts, score = read(path)
    random, found, fixed = np.random.default_rng(0), [], score(counts.sum(1)).argmax()
    for _ in range(draws):
        drawn = np.zeros(counts.shape[1], bool)
        drawn[random.choice(len(drawn), images, replace=False)] = True
        chosen, others = (score(counts[:, rows].sum(1)) for rows in (drawn, ~drawn))
        best = chosen.argmax()
        above = chosen - others
        found.append((above[best] - above[fixed], *estimates(counts[:, drawn], score)))
    return row(f"{path.parts[-3]} {path.parts[-2]}, {len(counts)} epochs, {counts.shape[1]} images", images, found)


def estimates(counts: np.ndarray, score: Score) -> tuple[float, float]:
    """Returns the optimism of counts (E, n, …) as estimated by halving and by ten-fold cross-fitting."""
    return epoch_optimism(counts, score, np.arange(counts.shape[1])), cross_fitted(counts, score)


def cross_fitted(counts: np.ndarray, score: Score, folds: int = 10, repeats: int = 20) -> float:
    """Returns the optimism at (1 - 1/folds)·n images. The held-out images of a repeat are scored together."""
    random, total, above = np.random.default_rng(0), counts.sum(1), []
    for _ in range(repeats):
        held_out = group_sums(counts.swapaxes(0, 1), random.permutation(counts.shape[1]) % folds)
        scores = score(total - held_out)
        best = scores.argmax(1)
        left = score(held_out[np.arange(folds), best].sum(0))
        above.append(scores.max(1).mean() - left)
    return float(np.mean(above))


def read(path: Path) -> tuple[np.ndarray, Score]:
    """Returns counts (E, N, …) of every epoch and image, and the competition's score of their sums."""
    competition: Competition = load_competition(path.parts[-4])
    counts = np.load(path)["counts"].astype(np.int64)
    metric = metric_of(competition)
    return np.stack([metric.rows(one) for one in counts]), metric.score


def row(name: str, images: int, found: list[tuple[float, float, float]]) -> str:
    """Returns a row of the table from each draw's optimism and estimates."""
    optimism, halved, cross = np.transpose(found)
    halving = halved * 2**0.5
    error, factor = optimism.std(ddof=1) / len(optimism) ** 0.5, optimism.mean() / halving.mean()
    shown = " | ".join(f"{one.mean():+.4f} ± {one.std(ddof=1):.4f}" for one in (halving, halved, halving / 2, cross))
    return f"| {name} | {images} | {optimism.mean():+.4f} ± {error:.4f} | {shown} | {factor:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--shared", type=float, default=0.9)
    options = parser.parse_args()
    print(f"{date.today()}, {os.cpu_count()} CPU cores, {options.draws} draws")
    print("| epochs | n | optimism ± standard error | halving | halving/√2 | halving/2 | cross-fitting | factor |")
    print("|---|---|---|---|---|---|---|---|")
    for shape in SHAPES:
        for images in SIZES["synthetic"]:
            print(synthetic(shape, options.epochs, options.shared, images, options.draws), flush=True)
    for path in options.files:
        for images in SIZES["real"]:
            print(real(path, images, options.draws), flush=True)


if __name__ == "__main__":
    main()
