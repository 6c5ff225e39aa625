"""Detectors of problems with training images: pure functions from tables and arrays to findings.

A finding is one row: image_id, reason, score, partner_id, action, note. The meaning of `score` depends on the reason:

    broken           robust standard deviations from the other images; 0 if the finding does not depend on them
    identical mask   number of images with this mask
    duplicate        cosine distance of the block histograms; each row connects an image with its nearest neighbour on
                     the way to the first image of its cluster, so that the rows of a cluster connect all of its images
    contradiction    cosine distance of the block histograms; the smaller it is, the more certain is the contradiction
    pixel outlier    robust standard deviations from the other images, for the statistic with the largest distance
    test duplicate   cosine distance of the block histograms from the image of the test set
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
"""Minimum number of images for finding unusual ones among them."""


def findings(rows: Sequence[tuple[str, str, float, str, str, str]]) -> pd.DataFrame:
    """Returns a table of findings, whose values are in the order of COLUMNS."""
    return pd.DataFrame(rows, columns=COLUMNS)


def count_findings(listed: pd.DataFrame) -> list[dict[str, Any]]:
    """Returns reason, action, number of images and an example for each kind of finding."""
    counts = listed.groupby(["reason", "action"], sort=False, as_index=False)
    return counts.agg(images=("image_id", "nunique"), example=("note", "first")).to_dict("records")


# --- single images ---------------------------------------------------------------------------------------------------


def find_faulty(images: pd.DataFrame) -> pd.DataFrame:
    """Returns a finding for each image that decode could not use: unreadable, of the wrong size, or without a mask."""
    faulty = images[images["fault"] != ""]
    return findings([
        (image_id, "broken", 0.0, "", "drop", fault)
        for image_id, fault in zip(faulty["image_id"], faulty["fault"], strict=True)
    ])  # fmt: skip


def find_broken(images: pd.DataFrame, settings: BrokenSettings) -> pd.DataFrame:
    """Returns a finding for each image without content: constant, nearly black, nearly white, or noise. `images` are
    training rows of the table."""
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
        note = notes.get(kind, f"mean {image['mean']:.1f}, the median is {middle:.1f}")
        z = {"constant": 0.0, "noise": smooth_z[number]}.get(kind, mean_z[number])
        rows.append((image["image_id"], "broken", round(abs(float(z)), 2), "", settings.action, f"{kind}: {note}"))
    return findings(rows)


def find_pixel_outliers(images: pd.DataFrame, settings: PixelOutlierSettings) -> pd.DataFrame:
    """Returns a finding for each image with unusual statistics: by the robust z-scores of mean, contrast and entropy,
    or by the anomaly score of an isolation forest over all three (Liu, Ting, Zhou 2008). `images` are training rows
    that are not broken."""
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
        note = f"{name} {values[number, farthest]:.2f}, the median is {middle:.2f}"
        score = round(float(np.abs(scores[number]).max()), 2)
        rows.append((images["image_id"].iat[number], "pixel outlier", score, "", settings.action, note))
    return findings(rows)


def robust_z(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Returns the distance of each value (N,) from the median in robust standard deviations (1.4826 × the median
    absolute deviation). Median and deviation are those of the values selected by `counted` (N,) bool. The deviation is
    at least a hundredth of the median."""
    if not counted.any():
        return np.zeros(len(values))
    middle = np.median(values[counted])
    spread = 1.4826 * np.median(np.abs(values[counted] - middle))
    return (values - middle) / max(spread, 0.01 * abs(middle), 1e-6)


def _anomaly(scores: np.ndarray) -> np.ndarray:
    from sklearn.ensemble import IsolationForest  # slow to import, seldom needed

    return -IsolationForest(n_estimators=200, random_state=0).fit(scores).score_samples(scores)


# --- pairs of images -------------------------------------------------------------------------------------------------


def exact_pairs(images: pd.DataFrame) -> Pairs:
    """Returns the pairs of each image (rows of the table) and the first image with the same pixels."""
    _, first, number = np.unique(images["pixel_hash"].to_numpy(str), return_index=True, return_inverse=True)
    left, right = first[number], np.arange(len(images))
    again = left != right
    zeros = np.zeros(again.sum(), np.float32)
    return Pairs(left[again], right[again], zeros, zeros + 1)


def find_duplicates(images: pd.DataFrame, pairs: Pairs) -> pd.DataFrame:
    """Returns the findings that connect the images of each cluster of near-duplicates. `images` are training rows,
    numbered from 0."""
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
    for row, partner in zip(child, parent, strict=True):
        distance, correlation = near[frozenset((int(row), int(partner)))]
        how = "the same pixels" if hashes[row] == hashes[partner] else f"thumbnails correlate {correlation:.3f}"
        note = f"{how}; cluster of {size[row]} images"
        rows.append((ids[row], "duplicate", round(distance, 5), ids[partner], "keep", note))
    return findings(rows)


def find_test_duplicates(train: pd.DataFrame, test: pd.DataFrame, pairs: Pairs) -> pd.DataFrame:
    """Returns a finding for each training image with a near-duplicate in the test set. The partner is the nearest
    one."""
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
    """Returns a finding for each image whose mask is identical to that of an image that is not its near-duplicate.

    Masks that are empty, or that have one class everywhere, are left out. In the Mars data, for instance, one mask was
    copied to all pictures that do not belong there, and comparing the images would not have found all of them.

    Args:
        images: training rows of the table.
        clusters: number of the duplicate cluster of each image (N,).
        classes: the foreground classes.
        settings: the minimum number of such images for dropping them.
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
        note = f"the same mask on {len(members)} images, {different} of which are not near-duplicates of each other"
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
    """Returns a finding for each image whose mask contradicts that of a near-duplicate, with the nearest such partner.

    This follows raghakot's cleaning of the nerve data, in which an image with an empty mask is dropped if a
    near-duplicate has a mask. Here the blocks under the mask must be similar too. When the probe moves, a nerve can
    come into view while the rest of the picture hardly changes, and then both masks are right.

    Args:
        images: training rows of the table.
        histograms: block histograms of these images (N, D) uint8.
        pairs: near-duplicates among them.
        classes: the foreground classes.
        settings: what counts as a contradiction, and what training does with it.
        grid: rows × columns of blocks.
    """
    rows: dict[str, tuple[str, str, float, str, str, str]] = {}
    area = images[[f"area_{name}" for name in classes]].sum(axis=1).to_numpy()
    for row, partner_row, distance in _disagreeing(images, histograms, pairs, classes, settings, grid):
        smaller, larger = (row, partner_row) if area[row] <= area[partner_row] else (partner_row, row)
        empty = area[smaller] == 0
        for image, partner in ((smaller, larger), (larger, smaller)):
            action = _action(settings.policy, empty, image == smaller)
            if action is None:
                continue
            ids = images["image_id"].iat[image], images["image_id"].iat[partner]
            note = f"mask of {area[image]} px, that of {ids[1]} has {area[partner]}"
            rows.setdefault(ids[0], (ids[0], "contradiction", round(distance, 5), ids[1], action, note))
    return findings(list(rows.values()))


def _action(policy: str, one_is_empty: bool, is_smaller: bool) -> str | None:
    """Returns what training does with one of two contradicting images; None: nothing, and it is not listed."""
    if policy in ("drop_both", "soft"):
        return policy.removesuffix("_both")
    if not is_smaller:
        return None
    return {"drop_empty": "drop", "relabel": "relabel"}.get(policy, "keep") if one_is_empty else "keep"


def _disagreeing(
    images: pd.DataFrame, histograms: np.ndarray, pairs: Pairs, classes: list[str], settings: ContradictionSettings,
    grid: tuple[int, int],
) -> Iterator[tuple[int, int, float]]:  # fmt: skip
    """Yields contradicting pairs with their distance, the nearest first."""
    columns = [f"rle_{name}" for name in classes]
    texts = images[columns].to_numpy()

    @lru_cache(maxsize=64)
    def masks(row: int) -> np.ndarray:
        shape = (int(images["height"].iat[row]), int(images["width"].iat[row]))
        return np.stack([rle.decode(text, shape) for text in texts[row]]) == 1

    for position in track(np.argsort(pairs.distance, kind="stable"), "contradictions", len(pairs)):
        row_left, row_right = int(pairs.left[position]), int(pairs.right[position])
        if (texts[row_left] == texts[row_right]).all():
            continue
        first, second = masks(row_left), masks(row_right)
        if first.shape != second.shape or overlap(first, second) >= settings.dice:
            continue
        if settings.under_mask is not None:
            under = (first | second).any(0)
            if local_distance(histograms[row_left], histograms[row_right], under, grid) > settings.under_mask:
                continue
        yield row_left, row_right, float(pairs.distance[position])


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the Dice of two sets of masks (C, h, w) bool over all classes together; 0 if only one is empty, 1 if both
    are."""
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else 1.0


def local_distance(one: np.ndarray, other: np.ndarray, mask: np.ndarray, grid: tuple[int, int]) -> float:
    """Returns the cosine distance of two images' block histograms (D,) in the blocks that a mask (h, w) bool covers at
    least half as much as the block that it covers most."""
    blocks = block_numbers(mask.shape, grid).ravel()
    count = grid[0] * grid[1]
    share = np.bincount(blocks, mask.ravel(), count) / np.maximum(np.bincount(blocks, minlength=count), 1)
    chosen = share >= share.max() / 2
    first, second = (np.asarray(each, np.float64).reshape(count, BINS)[chosen].ravel() for each in (one, other))
    length = float(np.linalg.norm(first) * np.linalg.norm(second))
    return 1 - float(first @ second) / length if length else 0.0
