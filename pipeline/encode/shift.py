"""Test images that are unlike the training images: whether a classifier can tell them apart, and by what.

Where it can, held-out training images say little about the test set. The classifier sees what decode took of every
image: figures of the tables (size, channels, brightness, contrast, entropy, smoothness), the shares of ten grey values,
and where an image is bright and dark, coarsely. Whole groups are held out, of the test images sets of like ones, whose
groups nobody knows: that patients differ is no reason for an alarm.
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
"""Images of either set that are looked at; a random part of larger ones."""
FEWEST = 8
"""Images of either set, below which nothing is said."""
UNLIKE = 0.7
"""The area under the ROC curve above which the sets are unlike."""
SURE = 0.6
"""What the lower end of that area's 95 % interval must be above, too."""
EFFECT = 0.5
"""A figure is named where the means differ by this many standard deviations."""
EXAMPLES = 3
PARTS = 5
"""Parts of the cross-validation."""
CELLS = 4
"""Cells along each side, of what a thumbnail says of where an image is bright."""
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
"""Of each figure that has a name: what an image is that has more of it, what one is that has less, and its name."""


@dataclass(frozen=True)
class Descriptors:
    """What the classifier sees of the images of one set."""

    ids: np.ndarray
    groups: np.ndarray
    """What each image (n,) belongs to."""
    figures: pd.DataFrame
    """One column per entry of WORDS."""
    coarse: np.ndarray
    """How bright each of 4×4 parts of an image is beside the others (n, 16)."""
    features: np.ndarray
    """All that it sees (n, features), figures and parts among it."""


def files(run: Run) -> tuple[Path, ...]:
    """Returns the files that the comparison reads; none where one is missing, as in a bundle of weights alone."""
    needed = (run.table, run.test_table, run.histograms, run.test_histograms, run.thumbnails, run.test_thumbnails)
    splits = tuple(path for path in (run.folds_file, run.outliers) if path.exists())
    return (*needed, *splits) if all(path.exists() for path in needed) else ()


def find_reasons(run: Run) -> list[Reason]:
    """Returns that the test images are unlike the training images, by what, and examples; nothing where they are not,
    or where there is no training image to compare them with."""
    if not files(run):
        return []
    training = _read(run.table, run.histograms, run.thumbnails, "train", _groups(run))
    test = _read(run.test_table, run.test_histograms, run.test_thumbnails, "test", None)
    return compare(training, test)


def compare(training: Descriptors, test: Descriptors) -> list[Reason]:
    """Returns what find_reasons does, of descriptors that were read."""
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
        f"Test images are unlike training images, so that scores of the latter may not hold for them: {ways}; a "
        f"classifier tells them apart (area under the curve {area:.2f} ± {error:.2f}), for instance {examples}."
    )
    return [Reason("check", "test images unlike training images", text, "notebooks/01_look_at_the_data.ipynb", likest)]


# --- reading ---------------------------------------------------------------------------------------------------------


def _groups(run: Run) -> np.ndarray:
    """The group of every training image, with near-duplicates in one where a split knows them."""
    images = table.read_table(run.table, "train")
    folds = images[["image_id"]]
    with suppress(PipelineError):  # a split of other images is a matter of the stages that need one
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
    """The figures that have names, as numbers."""
    bits = rows["dtype"].map(lambda name: 8 * np.dtype(name).itemsize)
    return rows.assign(bits=bits)[list(WORDS)].astype(np.float64).reset_index(drop=True)


def _coarse(thumbnails: np.ndarray) -> np.ndarray:
    """Means (n, 16) over parts of standardised thumbnails (n, 16, 16), of which a typical pixel is 1 or -1."""
    side = SIDE // CELLS
    return SIDE * thumbnails.reshape(-1, CELLS, side, CELLS, side).mean((2, 4)).reshape(len(thumbnails), -1)


def _features(figures: pd.DataFrame, blocks: np.ndarray, coarse: np.ndarray) -> np.ndarray:
    """Figures, with sizes as logarithms, and the aspect; shares of grey values, and how much blocks differ; how bright
    parts are, and how much of the thumbnail they explain."""
    sizes = np.log(figures[["height", "width"]].clip(lower=1).to_numpy())
    detail = np.log(np.maximum(1 - figures["smoothness"].to_numpy(), 1e-4))
    others = figures.drop(columns=["height", "width", "smoothness"]).to_numpy()
    shares = blocks.reshape(len(blocks), -1, BINS).astype(np.float32) / 255
    means = shares @ np.linspace(0, 1, BINS, dtype=np.float32)
    explained = (coarse**2).mean(1)
    return np.column_stack(
        [sizes, sizes[:, 0] - sizes[:, 1], detail, others, shares.mean(1), means.std(1), coarse, explained]
    ).astype(np.float64)


# --- telling apart ---------------------------------------------------------------------------------------------------


def _alike(test: Descriptors, training: Descriptors) -> np.ndarray:
    """Groups of the test images (n,): their own, or else as many sets of like images as groups of the training set's
    size would be."""
    size = len(training.ids) / len(np.unique(training.groups))
    count = max(2, round(len(test.ids) / size))
    if len(np.unique(test.groups)) < len(test.ids) or count >= len(test.ids):
        return test.groups
    from sklearn.cluster import KMeans

    spread = np.maximum(test.features.std(0), 1e-9)
    found = KMeans(count, n_init=1, max_iter=50, random_state=0).fit_predict(test.features / spread)
    return found.astype(str)


def _held_out_scores(training: Descriptors, test: Descriptors) -> tuple[np.ndarray, np.ndarray]:
    """How like a test image the classifier finds every training and every test image, which it has not seen."""
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
        if len(np.unique(truth[known])) < 2:  # few large groups: what this part holds stays without an opinion
            continue
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=200))
        scores[held] = model.fit(features[known], truth[known]).decision_function(features[held])
    return scores[~truth], scores[truth]


def _area(scores: tuple[np.ndarray, np.ndarray], groups: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
    """The area under the ROC curve of training and test images, and its standard error, for which whole groups were
    drawn (DeLong et al. 1988; Obuchowski 1997 for clusters)."""
    below = _share_below(scores[0], scores[1])  # of training images, for each test image
    above = 1 - _share_below(scores[1], scores[0])
    return float(below.mean()), float(np.sqrt(_variance(above, groups[0]) + _variance(below, groups[1])))


def _errors(*groups: np.ndarray) -> float:
    """How many standard errors half of a 95 % interval has, where so many groups have told the error (Student)."""
    from scipy.special import stdtrit

    return float(stdtrit(min(len(np.unique(one)) for one in groups) - 1, 0.975))


def _share_below(values: np.ndarray, of: np.ndarray) -> np.ndarray:
    """The share of values that are below each of others (n,); equal ones count half."""
    ordered = np.sort(values)
    return (np.searchsorted(ordered, of, "left") + np.searchsorted(ordered, of, "right")) / (2 * len(values))


def _variance(values: np.ndarray, groups: np.ndarray) -> float:
    """The variance of the mean of values (n,) when two or more whole groups were drawn."""
    _, group = np.unique(groups, return_inverse=True)
    count = group.max() + 1
    sums = np.bincount(group, weights=values - values.mean())
    return float((sums**2).sum() / len(values) ** 2 * count / (count - 1))


def _differences(training: pd.DataFrame, test: pd.DataFrame) -> str:
    """By what figures the test images differ, the clearest first, as half a sentence."""
    found = []
    for name, (more, less, what) in WORDS.items():
        effect = _effect(training[name].to_numpy(), test[name].to_numpy())
        if abs(effect) >= EFFECT:
            means = f"{what} {test[name].mean():.3g}, in training {training[name].mean():.3g}"
            found.append((abs(effect), f"{more if effect > 0 else less} ({means})"))
    found.sort(key=lambda pair: -pair[0])
    return f"they are {', '.join(text for _, text in found[:3])}" if found else ""


def _place(training: np.ndarray, test: np.ndarray) -> str:
    """Where the test images differ in brightness, from parts (n, 16), as half a sentence."""
    effects = [_effect(*pair) for pair in zip(training.T, test.T, strict=True)]
    row, column = divmod(int(np.argmax(np.abs(effects))), CELLS)
    rows, columns = ("top", "upper middle", "lower middle", "bottom"), ("left", "centre left", "centre right", "right")
    how = "brighter" if effects[row * CELLS + column] > 0 else "darker"
    return f"they are {how} beside their other parts at the {rows[row]}, {columns[column]}"


def _effect(training: np.ndarray, test: np.ndarray) -> float:
    """By how many standard deviations the mean of test values is above that of training values; endless without any."""
    gap, spread = test.mean() - training.mean(), np.sqrt((test.var(ddof=1) + training.var(ddof=1)) / 2)
    return float(gap / spread if spread > 0 else np.copysign(np.inf, gap) if gap else 0.0)
