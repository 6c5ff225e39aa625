"""Detects test images that differ from the training images, with a classifier that tries to tell them apart.

If it succeeds, scores of held-out training images say little about the test set. The classifier uses what decode stored
for every image: statistics (size, channels, brightness, contrast, entropy, smoothness), the shares of ten grey levels,
and a coarse map of bright and dark parts. Whole groups are held out, so that differences between patients alone cause
no alarm. The groups of test images are not known; clusters of similar images are used instead.
"""

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.core.errors import PipelineError
from pipeline.core.intact import read_array
from pipeline.core.run import Run
from pipeline.core.verdict import Reason
from pipeline.decode import table
from pipeline.decode.descriptors import BINS, SIDE
from pipeline.split.folds import groups_of, read_folds

MOST = 2000
"""The largest number of images of either set that are used; a random sample is taken from larger sets."""
FEWEST = 8
"""The smallest number of images of either set for which there is a comparison."""
UNLIKE = 0.7
"""The area under the ROC curve above which the sets count as different."""
SURE = 0.6
"""The value that the lower end of the area's 95 % interval must exceed too."""
EFFECT = 0.5
"""The difference of means, in standard deviations, from which on a statistic is named."""
EXAMPLES = 3
PARTS = 5
"""The number of parts of the cross-validation."""
CELLS = 4
"""The number of cells along each side of the coarse map of brightness."""
WORDS = {
    "mean": ("brighter", "darker", "mean grey value"),
    "standard_deviation": ("of higher contrast", "of lower contrast", "standard deviation of grey values"),
    "entropy": ("richer in grey values", "poorer in grey values", "entropy"),
    "smoothness": ("smoother or more blurred", "sharper or noisier", "correlation of neighbouring pixels"),
    "height": ("taller", "less tall", "height in pixels"),
    "width": ("wider", "less wide", "width in pixels"),
    "channels": ("of more channels", "of fewer channels", "channels"),
    "bits": ("of more bits per value", "of fewer bits per value", "bits"),
}
"""For each statistic that is named: a description of images with more of it, one of images with less, and its name."""


@dataclass(frozen=True)
class Descriptors:
    """The inputs of the classifier for the images of one set."""

    ids: np.ndarray
    groups: np.ndarray
    """The group of each image (n,)."""
    figures: pd.DataFrame
    """The statistics, one column per entry of WORDS."""
    coarse: np.ndarray
    """The relative brightness of each of 4×4 parts of an image (n, 16)."""
    features: np.ndarray
    """All features of the classifier (n, features), including figures and coarse."""


def files(run: Run) -> tuple[Path, ...]:
    """Returns the files that the comparison reads; none if one is missing, as in a bundle that has only weights."""
    needed = (run.table, run.test_table, run.histograms, run.test_histograms, run.thumbnails, run.test_thumbnails)
    splits = tuple(path for path in (run.folds_file, run.outliers) if path.exists())
    return (*needed, *splits) if all(path.exists() for path in needed) else ()


def find_reasons(run: Run) -> list[Reason]:
    """Returns a reason if the test images differ from the training images, with the differences and examples.

    Without training images to compare with, there is none.
    """
    if not files(run):
        return []
    training = _read(run.table, run.histograms, run.thumbnails, "train", _groups(run))
    test = _read(run.test_table, run.test_histograms, run.test_thumbnails, "test", None)
    return compare(training, test)


def compare(training: Descriptors, test: Descriptors) -> list[Reason]:
    """Returns the same as find_reasons, from descriptors."""
    if min(len(training.ids), len(test.ids)) < FEWEST or len(np.unique(training.groups)) < 2:
        return []
    test = replace(test, groups=_alike(test, training))
    scores = _held_out_scores(training, test)
    area, error = _area(scores, (training.groups, test.groups))
    if area <= UNLIKE or area - _errors(training.groups, test.groups) * error <= SURE:
        return []
    ways = _differences(training.figures, test.figures) or _place(training.coarse, test.coarse)
    examples = ", ".join(test.ids[np.argsort(-scores[1], kind="stable")[:EXAMPLES]])
    likest = training.ids[np.argsort(-scores[0], kind="stable")[:EXAMPLES]].tolist()
    text = (
        f"Test images differ from training images, so scores of training images may not hold for them: {ways}; a "
        f"classifier tells them apart (area under the curve {area:.2f} ± {error:.2f}), for instance {examples}."
    )
    return [Reason("check", "test images unlike training images", text, "notebooks/01_look_at_the_data.ipynb", likest)]


# --- reading ---------------------------------------------------------------------------------------------------------


def _groups(run: Run) -> np.ndarray:
    """Returns the group of every training image; near-duplicates share a group if there is a split."""
    images = table.read_table(run.table, "train")
    folds = images[["image_id"]]
    with suppress(PipelineError):  # stages that need the split report if it is of other images
        folds = read_folds(run) if run.folds_file.exists() and run.outliers.exists() else folds
    return groups_of(images, folds)


def _read(images: Path, histograms: Path, thumbnails: Path, subset: str, groups: np.ndarray | None) -> Descriptors:
    rows = table.read_table(images, subset)
    if groups is None:
        groups = groups_of(rows, rows[["image_id"]])
    sound = np.flatnonzero((rows["fault"] == "").to_numpy())
    chosen = np.sort(np.random.default_rng(0).permutation(sound)[:MOST])
    blocks = read_array(histograms)[chosen]
    small = read_array(thumbnails)[chosen].astype(np.float32).reshape(-1, SIDE, SIDE)
    figures, coarse = _figures(rows.iloc[chosen]), _coarse(small)
    ids = rows["image_id"].to_numpy(str)[chosen]
    return Descriptors(ids, groups[chosen], figures, coarse, _features(figures, blocks, coarse))


def _figures(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns the statistics of WORDS as numbers."""
    bits = rows["dtype"].map(lambda name: 8 * np.dtype(name).itemsize)
    return rows.assign(bits=bits)[list(WORDS)].astype(np.float64).reset_index(drop=True)


def _coarse(thumbnails: np.ndarray) -> np.ndarray:
    """Returns the means (n, 16) over parts of thumbnails (n, 16, 16), rescaled so that a typical pixel is 1 or -1."""
    side = SIDE // CELLS
    return SIDE * thumbnails.reshape(-1, CELLS, side, CELLS, side).mean((2, 4)).reshape(len(thumbnails), -1)


def _features(figures: pd.DataFrame, blocks: np.ndarray, coarse: np.ndarray) -> np.ndarray:
    """Returns the features of the classifier (n, features).

    These are the statistics, with sizes as logarithms, and the aspect ratio; the shares of grey levels and their
    variation between blocks; the brightness of parts, and how much of the thumbnail it explains.
    """
    sizes = np.log(figures[["height", "width"]].clip(lower=1).to_numpy())
    detail = np.log(np.maximum(1 - figures["smoothness"].to_numpy(), 1e-4))
    others = figures.drop(columns=["height", "width", "smoothness"]).to_numpy()
    shares = blocks.reshape(len(blocks), -1, BINS).astype(np.float32) / 255
    means = shares @ np.linspace(0, 1, BINS, dtype=np.float32)
    explained = (coarse**2).mean(1)
    return np.column_stack(
        [sizes, sizes[:, 0] - sizes[:, 1], detail, others, shares.mean(1), means.std(1), coarse, explained]
    ).astype(np.float64)


# --- classification --------------------------------------------------------------------------------------------------


def _alike(test: Descriptors, training: Descriptors) -> np.ndarray:
    """Returns groups of the test images (n,): their own if known, else clusters of similar images with the mean size of
    training groups."""
    size = len(training.ids) / len(np.unique(training.groups))
    count = max(2, round(len(test.ids) / size))
    if len(np.unique(test.groups)) < len(test.ids) or count >= len(test.ids):
        return test.groups
    from sklearn.cluster import KMeans

    spread = np.maximum(test.features.std(0), 1e-9)
    clusters = KMeans(count, n_init=1, max_iter=50, random_state=0).fit_predict(test.features / spread)
    return clusters.astype(str)


def _held_out_scores(training: Descriptors, test: Descriptors) -> tuple[np.ndarray, np.ndarray]:
    """Returns the classifier's score that an image is a test image, for all training and test images, each held out."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features = np.concatenate([training.features, test.features])
    truth = np.arange(len(features)) >= len(training.ids)
    groups = np.concatenate([np.char.add("training ", training.groups), np.char.add("test ", test.groups)])
    parts = min(PARTS, len(np.unique(training.groups)), len(np.unique(test.groups)))
    scores = np.zeros(len(features))
    for known, held in StratifiedGroupKFold(parts, shuffle=True, random_state=0).split(features, truth, groups):
        if len(np.unique(truth[known])) < 2:  # with few large groups, the images of this part keep the score 0
            continue
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=200))
        scores[held] = model.fit(features[known], truth[known]).decision_function(features[held])
    return scores[~truth], scores[truth]


def _area(scores: tuple[np.ndarray, np.ndarray], groups: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
    """Returns the area under the ROC curve of training and test images, and its standard error over groups (DeLong et
    al. 1988; Obuchowski 1997 for clusters)."""
    below = _share_below(scores[0], scores[1])  # the share of training images below each test image
    above = 1 - _share_below(scores[1], scores[0])
    return float(below.mean()), float(np.sqrt(_variance(above, groups[0]) + _variance(below, groups[1])))


def _errors(*groups: np.ndarray) -> float:
    """Returns the number of standard errors in half of a 95 % interval (Student's t with the smaller number of
    groups)."""
    from scipy.special import stdtrit

    return float(stdtrit(min(len(np.unique(names)) for names in groups) - 1, 0.975))


def _share_below(values: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Returns, for each element of `of` (n,), the share of `values` below it; equal values count half."""
    ordered = np.sort(values)
    return (np.searchsorted(ordered, of, "left") + np.searchsorted(ordered, of, "right")) / (2 * len(values))


def _variance(values: np.ndarray, groups: np.ndarray) -> float:
    """Returns the variance of the mean of values (n,) if whole groups are sampled; there must be at least two
    groups."""
    _, group = np.unique(groups, return_inverse=True)
    count = group.max() + 1
    sums = np.bincount(group, weights=values - values.mean())
    return float((sums**2).sum() / len(values) ** 2 * count / (count - 1))


def _differences(training: pd.DataFrame, test: pd.DataFrame) -> str:
    """Returns a phrase with the statistics in which the test images differ, the largest difference first."""
    differences = []
    for name, (more, less, statistic) in WORDS.items():
        effect = _effect(training[name].to_numpy(), test[name].to_numpy())
        if abs(effect) >= EFFECT:
            means = f"{statistic} {test[name].mean():.3g}, in training {training[name].mean():.3g}"
            differences.append((abs(effect), f"{more if effect > 0 else less} ({means})"))
    differences.sort(key=lambda pair: -pair[0])
    return f"they are {', '.join(text for _, text in differences[:3])}" if differences else ""


def _place(training: np.ndarray, test: np.ndarray) -> str:
    """Returns a phrase with the part of the image whose brightness differs most, from parts (n, 16)."""
    effects = [_effect(*pair) for pair in zip(training.T, test.T, strict=True)]
    row, column = divmod(int(np.argmax(np.abs(effects))), CELLS)
    rows, columns = ("top", "upper middle", "lower middle", "bottom"), ("left", "centre left", "centre right", "right")
    how = "brighter" if effects[row * CELLS + column] > 0 else "darker"
    return f"relative to the rest of the image, they are {how} at the {rows[row]}, {columns[column]}"


def _effect(training: np.ndarray, test: np.ndarray) -> float:
    """Returns the difference of the means, test minus training, in standard deviations; infinite without any spread."""
    gap, spread = test.mean() - training.mean(), np.sqrt((test.var(ddof=1) + training.var(ddof=1)) / 2)
    return float(gap / spread if spread > 0 else np.copysign(np.inf, gap) if gap else 0.0)
