"""Detectors of what is wrong with training images: pure functions from tables and arrays to findings.

A finding is one row: image_id, reason, score, partner_id, action, note. What `score` counts depends on the reason:

    broken           robust standard deviations from the other images; 0 where no such distance is needed
    identical mask   images that share the mask
    duplicate        cosine distance of the block histograms; each row joins an image to the nearest one of its cluster
                     on the way to the cluster's first image, so that the rows of a cluster hold it together
    contradiction    cosine distance of the block histograms: the smaller, the surer
    pixel outlier    robust standard deviations from the other images, of whichever statistic is farthest
    test duplicate   cosine distance to the image of the test set
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from pipeline.clean.duplicates import Pairs, connected_groups, forest, orient
from pipeline.core.config.cleaning import (
    BrokenSettings,
    ContradictionSettings,
    IdenticalMaskSettings,
    PixelOutlierSettings,
)
from pipeline.core.console import track
from pipeline.decode.descriptors import BINS, block_numbers
from pipeline.masks import rle
from pipeline.masks.pixels import largest_of

COLUMNS = ["image_id", "reason", "score", "partner_id", "action", "note"]
ENOUGH = 20
"""Images from which on it can be said what is unusual among them."""


def findings(rows: Sequence[tuple[str, str, float, str, str, str]]) -> pd.DataFrame:
    """Returns findings in the order of COLUMNS as a table."""
    return pd.DataFrame(rows, columns=COLUMNS)


def count_findings(found: pd.DataFrame) -> list[dict[str, Any]]:
    """Returns reason, action, number of images and an example for every kind of finding."""
    counts = found.groupby(["reason", "action"], sort=False, as_index=False)
    return counts.agg(images=("image_id", "nunique"), example=("note", "first")).to_dict("records")


# --- single images ---------------------------------------------------------------------------------------------------


def find_faulty(images: pd.DataFrame) -> pd.DataFrame:
    """Returns a finding for every image that decode could not use: unreadable, of the wrong size, without a mask."""
    faulty = images[images["fault"] != ""]
    return findings([
        (image_id, "broken", 0.0, "", "drop", fault)
        for image_id, fault in zip(faulty["image_id"], faulty["fault"], strict=True)
    ])  # fmt: skip


def find_broken(images: pd.DataFrame, settings: BrokenSettings) -> pd.DataFrame:
    """Returns a finding for every image (training rows of the table) that shows nothing."""
    top = images["dtype"].map(lambda name: largest_of(name) if name else 1).to_numpy()
    share, smoothness = images["mean"].to_numpy() / top, images["smoothness"].to_numpy()
    constant = (images["minimum"] == images["maximum"]).to_numpy()
    mean_z, smooth_z = (robust_z(values, ~constant) for values in (share, smoothness))
    middle = float(images["mean"][~constant].median()) if (~constant).any() else 0.0
    dark = (share < settings.extreme) & (mean_z < -settings.z)
    bright = (share > 1 - settings.extreme) & (mean_z > settings.z)
    noise = (smoothness < settings.noise) & (smooth_z < -settings.z)
    kinds = np.select(
        [constant & settings.constant, dark, bright, noise], ["constant", "nearly black", "nearly white", "noise"], ""
    )
    rows = []
    for number in np.flatnonzero(kinds != ""):
        image, kind = images.iloc[number], str(kinds[number])
        notes = {"constant": f"every pixel is {image['minimum']}"}
        notes |= {"noise": f"neighbouring pixels correlate {image['smoothness']:.2f}"}
        note = notes.get(kind, f"mean {image['mean']:.1f}, the middle image has {middle:.1f}")
        z = {"constant": 0.0, "noise": smooth_z[number]}.get(kind, mean_z[number])
        rows.append((image["image_id"], "broken", round(abs(float(z)), 2), "", settings.action, f"{kind}: {note}"))
    return findings(rows)


def find_pixel_outliers(images: pd.DataFrame, settings: PixelOutlierSettings) -> pd.DataFrame:
    """Returns a finding for every image (training rows that are not broken) with unusual statistics: a robust z-score
    of mean, contrast or entropy, or the anomaly score of an isolation forest over all three (Liu, Ting, Zhou 2008)."""
    names = {"mean": "mean", "standard_deviation": "contrast", "entropy": "entropy"}
    if len(images) < ENOUGH:
        return findings([])
    values = images[list(names)].to_numpy(np.float64)
    scores = np.stack([robust_z(column, np.ones(len(column), bool)) for column in values.T], axis=1)
    anomaly = _anomaly(scores) if settings.isolation is not None else np.zeros(len(images))
    rows = []
    for number in np.flatnonzero((np.abs(scores).max(1) >= settings.z) | (anomaly >= (settings.isolation or 2))):
        farthest = int(np.abs(scores[number]).argmax())
        name, middle = list(names.values())[farthest], np.median(values[:, farthest])
        note = f"{name} {values[number, farthest]:.2f}, the middle image has {middle:.2f}"
        score = round(float(np.abs(scores[number]).max()), 2)
        rows.append((images["image_id"].iat[number], "pixel outlier", score, "", settings.action, note))
    return findings(rows)


def robust_z(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Returns how many robust standard deviations (1.4826 × the median absolute deviation) each value (N,) lies from
    the median of those that `counted` (N,) bool names; a spread below a hundredth of the median is taken as that."""
    if not counted.any():
        return np.zeros(len(values))
    middle = np.median(values[counted])
    spread = 1.4826 * np.median(np.abs(values[counted] - middle))
    return (values - middle) / max(spread, 0.01 * abs(middle), 1e-6)


def _anomaly(scores: np.ndarray) -> np.ndarray:
    from sklearn.ensemble import IsolationForest  # slow to import, seldom needed

    return -IsolationForest(n_estimators=200, random_state=0).fit(scores).score_samples(scores)


# --- images beside images --------------------------------------------------------------------------------------------


def exact_pairs(images: pd.DataFrame) -> Pairs:
    """Returns every image (rows of the table) with the first one of the same pixels."""
    _, first, number = np.unique(images["pixel_hash"].to_numpy(str), return_index=True, return_inverse=True)
    left, right = first[number], np.arange(len(images))
    again = left != right
    zeros = np.zeros(again.sum(), np.float32)
    return Pairs(left[again], right[again], zeros, zeros + 1)


def find_duplicates(images: pd.DataFrame, pairs: Pairs) -> pd.DataFrame:
    """Returns the findings that hold every cluster of near-duplicates together (images: training rows, 0 … N - 1)."""
    chosen = pairs.only(forest(len(images), pairs))
    parts = connected_groups(len(images), chosen.left, chosen.right)
    size = np.bincount(parts, minlength=1)[parts]
    child, parent = orient(len(images), chosen.left, chosen.right)
    near = {
        frozenset((int(left), int(right))): (float(distance), float(correlation))
        for left, right, distance, correlation in zip(
            chosen.left, chosen.right, chosen.distance, chosen.correlation, strict=True
        )
    }
    ids, hashes, rows = images["image_id"].to_numpy(), images["pixel_hash"].to_numpy(), []
    for one, other in zip(child, parent, strict=True):
        distance, correlation = near[frozenset((int(one), int(other)))]
        how = "the same pixels" if hashes[one] == hashes[other] else f"thumbnails correlate {correlation:.3f}"
        note = f"{how}; cluster of {size[one]} images"
        rows.append((ids[one], "duplicate", round(distance, 5), ids[other], "keep", note))
    return findings(rows)


def find_test_duplicates(train: pd.DataFrame, test: pd.DataFrame, pairs: Pairs) -> pd.DataFrame:
    """Returns a finding for every training image with a near-duplicate in the test set, naming the nearest."""
    nearest = (
        pd.DataFrame(vars(pairs)).sort_values("distance", kind="stable").drop_duplicates("left").sort_values("left")
    )
    return findings([
        (train["image_id"].iat[row.left], "test duplicate", round(float(row.distance), 5),
         test["image_id"].iat[row.right], "keep", f"a test image; thumbnails correlate {row.correlation:.3f}")
        for row in nearest.itertuples()
    ])  # fmt: skip


def find_identical_masks(
    images: pd.DataFrame, clusters: np.ndarray, classes: list[str], settings: IdenticalMaskSettings
) -> pd.DataFrame:
    """Returns a finding for every image that has its mask in common with images that are no near-duplicates of it.

    A mask that is empty, or one class all over, says nothing and is left out. Those who made the Mars data copied one
    mask to all pictures that do not belong: no likeness of the images would have found every one of them.

    Args:
        images: training rows of the table.
        clusters: number of the duplicate cluster of each image (N,).
        classes: the foreground's.
        settings: how many images make it a reason to drop them.
    """
    areas = images[[f"area_{name}" for name in classes]].to_numpy()
    pixels = (images["height"] * images["width"]).to_numpy()
    telling = (areas.sum(1) > 0) & (areas.max(1, initial=0) < pixels)
    masks = images[[f"rle_{name}" for name in classes]].agg("|".join, axis=1)[telling]
    rows = []
    for _, same in masks.groupby(masks, sort=False):
        members = same.index.to_numpy()
        different = len(set(clusters[members]))
        if different < 2:
            continue
        action = settings.action if different >= settings.images else "keep"
        note = f"the mask of {len(members)} images, {different} of them no near-duplicates"
        for member in members:
            partner = next(other for other in members if clusters[other] != clusters[member])
            ids = images["image_id"].iat[member], images["image_id"].iat[partner]
            rows.append((ids[0], "identical mask", float(len(members)), ids[1], action, note))
    return findings(rows)


# --- contradictions --------------------------------------------------------------------------------------------------


def find_contradictions(
    images: pd.DataFrame, histograms: np.ndarray, pairs: Pairs, classes: list[str], settings: ContradictionSettings,
    grid: tuple[int, int],
) -> pd.DataFrame:  # fmt: skip
    """Returns a finding for every image whose mask disagrees with a near-duplicate's, with the nearest such partner.

    After raghakot's cleaning of the nerve data, where an image without a mask is dropped when one that looks the same
    has a mask. Here the blocks under the mask must look the same too: as the probe moves on, a nerve comes into view
    while the rest of the picture stays, and there both masks are right.

    Args:
        images: training rows of the table.
        histograms: block histograms of these images (N, D) uint8.
        pairs: near-duplicates among them.
        classes: the foreground's.
        settings: what a contradiction is, and what follows.
        grid: rows × columns of blocks.
    """
    rows: dict[str, tuple[str, str, float, str, str, str]] = {}
    area = images[[f"area_{name}" for name in classes]].sum(axis=1).to_numpy()
    for one, other, distance in _disagreeing(images, histograms, pairs, classes, settings, grid):
        empty_first, full = (one, other) if area[one] <= area[other] else (other, one)
        empty = area[empty_first] == 0
        for image, partner in ((empty_first, full), (full, empty_first)):
            action = _action(settings.policy, empty, image == empty_first)
            if action is None:
                continue
            ids = images["image_id"].iat[image], images["image_id"].iat[partner]
            note = f"mask of {area[image]} px, that of {ids[1]} has {area[partner]}"
            rows.setdefault(ids[0], (ids[0], "contradiction", round(distance, 5), ids[1], action, note))
    return findings(list(rows.values()))


def _action(policy: str, one_is_empty: bool, is_smaller: bool) -> str | None:
    """What happens to one of two contradicting images; None: nothing, and it is not listed."""
    if policy in ("drop_both", "soft"):
        return policy.removesuffix("_both")
    if not is_smaller:
        return None
    return {"drop_empty": "drop", "relabel": "relabel"}.get(policy, "keep") if one_is_empty else "keep"


def _disagreeing(
    images: pd.DataFrame, histograms: np.ndarray, pairs: Pairs, classes: list[str], settings: ContradictionSettings,
    grid: tuple[int, int],
) -> Iterator[tuple[int, int, float]]:  # fmt: skip
    """Contradicting pairs and their distance, nearest first."""
    columns = [f"rle_{name}" for name in classes]
    texts = images[columns].to_numpy()

    @lru_cache(maxsize=64)
    def masks(row: int) -> np.ndarray:
        shape = (int(images["height"].iat[row]), int(images["width"].iat[row]))
        return np.stack([rle.decode(text, shape) for text in texts[row]]) == 1

    for position in track(np.argsort(pairs.distance, kind="stable"), "contradictions", len(pairs)):
        one, other = int(pairs.left[position]), int(pairs.right[position])
        if (texts[one] == texts[other]).all():
            continue
        first, second = masks(one), masks(other)
        if first.shape != second.shape or overlap(first, second) >= settings.dice:
            continue
        if settings.under_mask is not None:
            under = (first | second).any(0)
            if local_distance(histograms[one], histograms[other], under, grid) > settings.under_mask:
                continue
        yield one, other, float(pairs.distance[position])


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the Dice of two sets of masks (C, h, w) bool, all classes together; 0 when one alone is empty."""
    total = int(one.sum()) + int(other.sum())
    return 2 * int((one & other).sum()) / total if total else 1.0


def local_distance(one: np.ndarray, other: np.ndarray, mask: np.ndarray, grid: tuple[int, int]) -> float:
    """Returns the cosine distance of two images' block histograms (D,) in the blocks that a mask (h, w) bool covers
    best: at least half as much as it does any block."""
    blocks = block_numbers(mask.shape, grid).ravel()
    count = grid[0] * grid[1]
    share = np.bincount(blocks, mask.ravel(), count) / np.maximum(np.bincount(blocks, minlength=count), 1)
    chosen = share >= share.max() / 2
    first, second = (np.asarray(each, np.float64).reshape(count, BINS)[chosen].ravel() for each in (one, other))
    length = float(np.linalg.norm(first) * np.linalg.norm(second))
    return 1 - float(first @ second) / length if length else 0.0
