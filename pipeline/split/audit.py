"""The audit of a split: how balanced the folds are, and whether they leak. All functions are pure functions of arrays.

The statistics include dropped images, because these keep their fold. Near-duplicates are searched among all training
images by their descriptors, regardless of the findings of clean and of what the split kept together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pipeline.clean.duplicates import Pairs, connected_groups, near_pairs
from pipeline.core.config.cleaning import DuplicateSettings

EXAMPLES = 10
"""Maximum number of groups, clusters and pairs in two folds that are named."""
UNEVEN = 1.5
"""Ratio of the largest fold to the smallest from which on there is a warning."""

_NO_LEAK = {
    True: "no group, cluster or near-duplicate pair is in two folds",
    False: "no group is in two folds; near-duplicates were not searched (clean.duplicates.search is false)",
}
"""The verdict on folds that do not leak, by whether near-duplicates were searched."""
QUARTILES = {
    "area_25": "mask at the lower quartile",
    "area_50": "median mask",
    "area_75": "mask at the upper quartile",
}


@dataclass(frozen=True)
class Deviation:
    """The difference of one statistic of one fold from that of all images."""

    value: float
    """The relative difference, e.g. 0.31 for 31 % more or fewer; for the share of empty masks the absolute
    difference."""
    fold: int
    text: str


@dataclass(frozen=True)
class Split:
    """The training images in the order of their table, and the properties that determine their folds."""

    image_ids: np.ndarray  # (N,) texts
    fold: np.ndarray  # (N,) int64, from 0 without gaps
    group: np.ndarray  # (N,) texts, "" without a group
    cluster: np.ndarray  # (N,) int64, number of the cluster of near-duplicates, -1 if there is none
    unit: np.ndarray  # (N,) int64, number of the component of images that groups and clusters connect
    areas: np.ndarray  # (N, C) number of true pixels of each foreground class
    sizes: np.ndarray  # (N,) number of pixels of the image


# --- components ------------------------------------------------------------------------------------------------------


def clusters_of(image_ids: pd.Series, findings: pd.DataFrame) -> np.ndarray:
    """Returns the number of each image's cluster of near-duplicates (N,) int64, from 0 in the order of the images; -1
    for images without near-duplicates.

    Args:
        image_ids: ids of the images (N,).
        findings: the findings of clean, in which each row with the reason `duplicate` connects two images.
    """
    rows, edges = pd.Index(image_ids), findings[findings["reason"] == "duplicate"]
    left, right = rows.get_indexer(edges["image_id"]), rows.get_indexer(edges["partner_id"])
    known = (left >= 0) & (right >= 0)
    number = connected_groups(len(rows), left[known], right[known])
    several = np.bincount(number, minlength=1)[number] > 1
    return pd.factorize(pd.Series(number).where(several))[0].astype(np.int64)


def components_of(group: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """Returns the number of each image's component (N,) int64. Images are connected, directly or through other images,
    if they have the same group (N,), "" for none, or the same cluster (N,) int64, -1 for none."""
    left, right = [], []
    for names, rows in ((group, np.flatnonzero(group != "")), (cluster, np.flatnonzero(cluster >= 0))):
        _, first, inverse = np.unique(names[rows], return_index=True, return_inverse=True)
        left.append(rows[first[inverse]])
        right.append(rows)
    return connected_groups(len(group), np.concatenate(left), np.concatenate(right))


# --- balance ---------------------------------------------------------------------------------------------------------


def balance(fold: np.ndarray, areas: np.ndarray, sizes: np.ndarray, classes: list[str]) -> pd.DataFrame:
    """Returns a table of statistics with one row per fold, in the order of their numbers.

    Its columns are: images, their number; share_empty, the share of images without foreground; area_25, area_50 and
    area_75, the quartiles of the foreground's share of an image, among images with foreground (nan if there are none);
    and per class images_<class>, the share of images with this class, and pixels_<class>, its share of all pixels.
    """
    return pd.DataFrame(
        [_figures(areas[fold == number], sizes[fold == number], classes) for number in range(fold.max() + 1)]
    )


def whole(areas: np.ndarray, sizes: np.ndarray, classes: list[str]) -> pd.Series:
    """Returns the same statistics for all images together."""
    return balance(np.zeros(len(sizes), np.int64), areas, sizes, classes).iloc[0]


def deviations(figures: pd.DataFrame, overall: pd.Series) -> list[Deviation]:
    """Returns the differences of all statistics of all folds from those of all images, the largest first.

    Statistics that are 0 overall, or nan in a fold, are left out. So is images_<class> if there is only one class,
    because it carries the same information as share_empty.
    """
    differences, with_class = [], [name for name in figures.columns if name.startswith("images_")]
    for name in figures.columns.drop(with_class if len(with_class) == 1 else []):
        expected = overall[name] / len(figures) if name == "images" else overall[name]
        for fold, value in enumerate(figures[name]):
            if name == "share_empty":
                text = f"fold {fold}: {_percent(value)} empty masks, {_percent(expected)} overall"
                differences.append(Deviation(abs(value - expected), fold, text))
            elif expected > 0 and not np.isnan(value):
                ratio = float(value / expected - 1)
                differences.append(Deviation(abs(ratio), fold, f"fold {fold}: {_in_words(name, ratio)}"))
    return sorted(differences, key=lambda deviation: -deviation.value)


def _figures(areas: np.ndarray, sizes: np.ndarray, classes: list[str]) -> dict[str, float]:
    shares = areas.sum(1) / np.maximum(sizes, 1)
    quartiles = np.quantile(shares[shares > 0], [0.25, 0.5, 0.75]) if (shares > 0).any() else [np.nan] * 3
    count, pixels = max(len(sizes), 1), max(sizes.sum(), 1)
    figures = {"images": len(sizes), "share_empty": (shares == 0).sum() / count}
    figures |= dict(zip(QUARTILES, quartiles, strict=True))
    for number, name in enumerate(classes):
        figures[f"images_{name}"] = (areas[:, number] > 0).sum() / count
        figures[f"pixels_{name}"] = areas[:, number].sum() / pixels
    return {name: float(value) for name, value in figures.items()}


def _in_words(name: str, ratio: float) -> str:
    size, more, larger = _percent(abs(ratio)), "fewer" if ratio < 0 else "more", "smaller" if ratio < 0 else "larger"
    if name == "images":
        return f"{size} {more} images than on average"
    if name.startswith("area_"):
        return f"the {QUARTILES[name]} is {size} {larger} than overall"
    what, _, of = name.partition("_")
    return f"{'images with' if what == 'images' else 'pixels of'} {of} {size} {more} than on average"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


# --- leaks -----------------------------------------------------------------------------------------------------------


def crossing(fold: np.ndarray, names: np.ndarray) -> list[Any]:
    """Returns the names that occur in more than one fold, in order of appearance; `names` has one entry per image
    (N,)."""
    folds = pd.Series(fold).groupby(names, sort=False).nunique()
    return folds.index[folds > 1].tolist()


def leaking_pairs(
    fold: np.ndarray,
    histograms: np.ndarray,
    thumbnails: np.ndarray,
    broken: np.ndarray,
    settings: DuplicateSettings,
    on_progress: Callable[[int, int], None] | None = None,
) -> Pairs:
    """Returns the pairs of near-duplicates whose images are in different folds, the closest first.

    Args:
        fold: the fold of each image (N,) int64.
        histograms: block histograms (N, D) uint8.
        thumbnails: thumbnails (N, 256) float16. Constant images, whose thumbnails are zeros, are left out.
        broken: images that are left out too (N,) bool.
        settings: what counts as a near-duplicate.
        on_progress: called with the number of finished images and the number of all images.
    """
    rows = np.flatnonzero(~broken & thumbnails.any(1))
    pairs = near_pairs(histograms[rows], thumbnails[rows], settings, on_progress=on_progress)
    pairs = Pairs(rows[pairs.left], rows[pairs.right], pairs.distance, pairs.correlation)
    pairs = pairs.only(fold[pairs.left] != fold[pairs.right])
    return pairs.only(np.lexsort((-pairs.correlation, pairs.distance)))


def _leak_remark(counts: dict[str, int]) -> str:
    parts = [f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in counts.items() if count]
    if not parts:
        return ""
    listed = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    return f"folds leak: {listed} {'is' if sum(counts.values()) == 1 else 'are'} in two folds"


# --- warnings --------------------------------------------------------------------------------------------------------


def balance_warnings(split: Split, classes: list[str]) -> list[str]:
    """Returns one sentence for each property of the folds that makes scores difficult to compare or unreliable."""
    return [*_uneven(split), *_absent(split, classes), *_one_component(split)]


def _uneven(split: Split) -> list[str]:
    counts = np.bincount(split.fold)
    most, least = counts.max(), counts.min()
    if most <= UNEVEN * least or most - least <= 1:
        return []
    text = f"fold {counts.argmax()} has {most} images and fold {counts.argmin()} has {least}"
    sizes = np.bincount(split.unit)
    if sizes.max() <= len(split.fold) / len(counts):
        return [f"{text}."]
    name = describe(split, split.unit == sizes.argmax())
    return [f"{text}: {name} alone is {_percent(sizes.max() / len(split.fold))} of all images."]


def _absent(split: Split, classes: list[str]) -> list[str]:
    warnings, empty = [], split.areas.sum(1) == 0
    for number, name in enumerate(classes):
        without = _folds_without(split, split.areas[:, number] > 0)
        if without:
            known = f"{(split.areas[:, number] > 0).sum()} of {len(empty)}"
            warnings.append(f"class {name} occurs in no image of {without} (overall in {known}).")
    without = _folds_without(split, ~empty)
    if without and len(classes) > 1:
        warnings.append(f"{without}: all masks are empty ({empty.sum()} of {len(empty)} overall).")
    without = _folds_without(split, empty)
    if without and empty.sum() > split.fold.max():  # fewer empty masks could not be in all folds
        warnings.append(f"{without}: no mask is empty ({empty.sum()} of {len(empty)} overall).")
    return warnings


def _folds_without(split: Split, rows: np.ndarray) -> str:
    """Returns a text that names the folds without any of these images (N,) bool; "" if there are none."""
    folds = np.flatnonzero(np.bincount(split.fold[rows], minlength=split.fold.max() + 1) == 0)
    return f"fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, folds))}" if len(folds) else ""


def _one_component(split: Split) -> list[str]:
    warnings = []
    for fold in range(split.fold.max() + 1):
        rows = split.fold == fold
        if rows.sum() > 1 and len(np.unique(split.unit[rows])) == 1:
            warnings.append(f"fold {fold} consists only of {describe(split, rows)}.")
    return warnings


def describe(split: Split, rows: np.ndarray) -> str:
    """Returns a text that names these images (N,) bool: by their groups, or without groups by the first of their
    ids."""
    groups = [name for name in pd.unique(split.group[rows]) if name]
    if groups:
        return f"group {groups[0]}" if len(groups) == 1 else f"groups {_listed(groups)}"
    return f"images {_listed(split.image_ids[rows].tolist())}"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


# --- the whole audit -------------------------------------------------------------------------------------------------


def audit(split: Split, use: np.ndarray, classes: list[str], pairs: Pairs | None) -> dict[str, Any]:
    """Returns the content of the audit's JSON file.

    Args:
        split: the images and their folds.
        use: what training does with each image (N,): train, drop, relabel or soft.
        classes: the foreground classes.
        pairs: the near-duplicates in different folds, the closest first; None if they were not searched.
    """
    figures = balance(split.fold, split.areas, split.sizes, classes)
    largest = deviations(figures, whole(split.areas, split.sizes, classes))[0]
    groups = crossing(split.fold[split.group != ""], split.group[split.group != ""])
    clusters = crossing(split.fold[split.cluster >= 0], split.cluster[split.cluster >= 0])
    counts = {"group": len(groups), "duplicate cluster": len(clusters), "near-duplicate pair": len(pairs or [])}
    remark = _leak_remark(counts)
    return {
        "folds": [_fold_record(split, use, fold, row) for fold, row in enumerate(figures.to_dict("records"))],
        "largest_deviation": {"value": round(largest.value, 4), "text": largest.text},
        "crossing_groups": {"count": len(groups), "examples": groups[:EXAMPLES]},
        "crossing_clusters": {
            "count": len(clusters),
            "examples": [
                split.image_ids[split.cluster == cluster].tolist()[:EXAMPLES] for cluster in clusters[:EXAMPLES]
            ],
        },
        "leaking_pairs": {"count": None if pairs is None else len(pairs), "closest": _closest(split, pairs)},
        "leaks": bool(remark),
        "leak_remark": remark,
        "verdict": remark or _NO_LEAK[pairs is not None],
        "warnings": balance_warnings(split, classes),
    }


def _fold_record(split: Split, use: np.ndarray, fold: int, row: dict[str, float]) -> dict[str, Any]:
    rows = split.fold == fold
    figures = {name: None if np.isnan(value) else round(value, 6) for name, value in row.items()}
    return {
        "fold": fold,
        **(figures | {"images": int(rows.sum())}),
        "components": len(np.unique(split.unit[rows])),
        "dropped": int((use[rows] == "drop").sum()),
    }


def _closest(split: Split, pairs: Pairs | None) -> list[list[Any]]:
    if pairs is None:
        return []
    names, first = split.image_ids, pairs.only(np.arange(min(EXAMPLES, len(pairs))))
    columns = (names[first.left], names[first.right], first.distance.round(5), first.correlation.round(4))
    return [list(row) for row in zip(*(column.tolist() for column in columns), strict=True)]
