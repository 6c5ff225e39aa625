"""Which images look nearly the same, by the descriptors of pipeline.descriptors, and which of them belong together.

Two images are near-duplicates when the histograms of their blocks are close, as in the best-known public code for the
nerve competition (github.com/raghakot/ultrasound-nerve-segmentation), and their thumbnails correlate: histograms alone
take any two dark images for the same.

The search compares every image with every other, a block of each at a time. Matrix products in float32 rule out what is
clearly far; what is left is computed in float64, where sums of products of uint8, or of float16 below 1, are exact. So
the pairs do not depend on blocks, threads or processor, and two equal images have distance 0.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.core.config.cleaning import DuplicateSettings
from pipeline.core.errors import PipelineError

if TYPE_CHECKING:
    from scipy.sparse import csr_array  # slow to import, seldom needed

BLOCK = 1024
"""Images that are compared with as many others at a time: with the longest histograms, well below 1 GiB."""
MOST_PAIRS = 10_000_000
"""As many take 0.3 GB; more would mean that the settings call nearly everything a duplicate."""

_MARGIN = 1e-4
"""More than float32 can be wrong by in the cosine of two vectors of 10,240 values."""
_SPARSE = 1 / 32
"""Up to this share of a block, computing pairs one by one is faster than the product of the matrices."""
_PART = 16
"""Pairs that are computed at a time: their histograms stay in the processor's cache."""


@dataclass(frozen=True)
class Pairs:
    """Two images each, by their rows, and how alike they are; every array (P,)."""

    left: np.ndarray  # int64
    right: np.ndarray  # int64; after a search of one set, larger than left
    distance: np.ndarray  # float32, cosine distance of the block histograms
    correlation: np.ndarray  # float32, of the thumbnails

    def __len__(self) -> int:
        return len(self.left)

    def only(self, which: np.ndarray) -> "Pairs":
        """Returns some of the pairs, by their positions or by a mask (P,) bool."""
        return Pairs(self.left[which], self.right[which], self.distance[which], self.correlation[which])


def near_pairs(
    histograms: np.ndarray,
    thumbnails: np.ndarray,
    settings: DuplicateSettings,
    groups: np.ndarray | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Pairs:
    """Returns all pairs of images that are near-duplicates, sorted by left, then right.

    Args:
        histograms: (N, D) uint8, also a memmap.
        thumbnails: (N, 256) float16; zeros, for an image of one colour, correlate with nothing.
        settings: how near and how correlated.
        groups: (N,) names; if given, both images of a pair have one group.
        on_progress: gets the number of images done, and of all.

    Raises:
        PipelineError: there are more than 10,000,000 pairs.
    """
    images, members = _Images.of(histograms, thumbnails), _members(len(histograms), groups)
    return _collected(_search(images, members, settings, on_progress))


def cross_pairs(
    histograms: np.ndarray,
    thumbnails: np.ndarray,
    other_histograms: np.ndarray,
    other_thumbnails: np.ndarray,
    settings: DuplicateSettings,
) -> Pairs:
    """Returns all pairs of an image (left) and one of another set (right) that are near-duplicates, sorted.

    Raises:
        PipelineError: there are more than 10,000,000 pairs.
    """
    images, others = _Images.of(histograms, thumbnails), _Images.of(other_histograms, other_thumbnails)
    return _collected(
        _compare(images, left, others, right, np.ones((len(left), len(right)), bool), settings)
        for left in _blocks(np.arange(len(histograms)))
        for right in _blocks(np.arange(len(other_histograms)))
    )


# --- what belongs together -------------------------------------------------------------------------------------------


def connected_groups(count: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Returns the number of the cluster that each of `count` rows is in (count,) int64, under edges left - right.

    Clusters are numbered from 0 in the order of their first rows; a row without an edge is a cluster of its own.
    """
    if not count:
        return np.zeros(0, np.int64)
    from scipy.sparse.csgraph import connected_components

    labels = connected_components(_graph(count, left, right), directed=False)[1]
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int64)


def forest(count: int, pairs: Pairs) -> np.ndarray:
    """Returns the positions (K,) int64, ascending, of the fewest and nearest pairs that hold the clusters together.

    A minimum spanning forest: n - 1 pairs for a cluster of n rows. Of equal distances lower rows come first.
    """
    if not len(pairs):
        return np.zeros(0, np.int64)
    from scipy.sparse.csgraph import minimum_spanning_tree

    low, high = np.minimum(pairs.left, pairs.right), np.maximum(pairs.left, pairs.right)
    order = np.lexsort((high, low, pairs.distance))
    # ranks for weights: scipy takes a weight of 0 for no edge, sums those of repeated edges, and may break ties anyhow
    _, ranks = np.unique(low[order].astype(np.int64) * count + high[order], return_index=True)
    kept = order[ranks]
    tree = minimum_spanning_tree(_graph(count, low[kept], high[kept], ranks + 1.0))
    return np.sort(order[tree.data.astype(np.int64) - 1])


def orient(count: int, left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns child and parent rows (K,) int64 of a forest's edges; the root of each tree is its first row.

    Every other row of a tree is a child once, in ascending order; its parent is its neighbour on the way to the root.
    """
    from scipy.sparse.csgraph import breadth_first_order

    # one more row, joined to the first row of every tree, lets one search reach all of them
    first = np.unique(connected_groups(count, left, right), return_index=True)[1]
    top = np.full(len(first), count)
    graph = _graph(count + 1, np.concatenate([left, top]), np.concatenate([right, first]))
    parent = breadth_first_order(graph, count, directed=False)[1][:count].astype(np.int64)
    child = np.flatnonzero(parent != count)
    return child, parent[child]


def _graph(count: int, left: np.ndarray, right: np.ndarray, weights: np.ndarray | None = None) -> "csr_array":
    from scipy.sparse import coo_array

    weights = np.ones(len(left)) if weights is None else weights
    return coo_array((weights, (left, right)), shape=(count, count)).tocsr()


# --- the search ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Vectors:
    """Rows to take cosines of, and their squared lengths: 1 for a row of zeros, so that its cosine is 0."""

    values: np.ndarray  # (N, D) uint8 or float16
    squares: np.ndarray  # (N,) float64

    @classmethod
    def of(cls, values: np.ndarray) -> "_Vectors":
        """Returns these rows with their squared lengths."""
        parts = (values[start : start + _PART] for start in range(0, len(values), _PART))
        squares = np.concatenate([np.zeros(0), *(_products(part, part) for part in parts)])
        return cls(values, np.where(squares > 0, squares, 1))

    def at(self, rows: np.ndarray) -> "_Vectors":
        """Returns some of the rows."""
        return _Vectors(self.values[rows], self.squares[rows])


@dataclass(frozen=True)
class _Images:
    histograms: _Vectors
    thumbnails: _Vectors

    @classmethod
    def of(cls, histograms: np.ndarray, thumbnails: np.ndarray) -> "_Images":
        """Returns the descriptors of images as vectors."""
        return cls(_Vectors.of(histograms), _Vectors.of(thumbnails))


def _members(count: int, groups: np.ndarray | None) -> list[np.ndarray]:
    """The rows of each group, ascending; of all images where there are no groups."""
    if groups is None or not count:
        return [np.arange(count)]
    _, number = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    return np.split(np.argsort(number, kind="stable"), np.cumsum(np.bincount(number))[:-1])


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), BLOCK):
        yield rows[start : start + BLOCK]


def _search(
    images: _Images,
    members: list[np.ndarray],
    settings: DuplicateSettings,
    on_progress: Callable[[int, int], None] | None,
) -> Iterator[Pairs]:
    """The near-duplicates of each block of images among itself and those that come after it."""
    count, done = sum(map(len, members)), 0
    for rows in members:
        for start in range(0, len(rows), BLOCK):
            left = rows[start : start + BLOCK]
            for right in _blocks(rows[start:]):
                yield _compare(images, left, images, right, left[:, None] < right, settings)
            done += len(left)
            if on_progress is not None:
                on_progress(done, count)


def _compare(
    images: _Images,
    left: np.ndarray,
    others: _Images,
    right: np.ndarray,
    candidates: np.ndarray,
    settings: DuplicateSettings,
) -> Pairs:
    """The near-duplicates among the candidates (L, R) bool, which it changes: pairs of rows `left` and `right`."""
    if settings.correlation > -1:
        candidates &= _may_reach(settings.correlation, images.thumbnails.at(left), others.thumbnails.at(right))
    some, others_some = candidates.any(1), candidates.any(0)
    left, right, candidates = left[some], right[others_some], candidates[np.ix_(some, others_some)]
    histograms, other_histograms = images.histograms.at(left), others.histograms.at(right)
    if np.count_nonzero(candidates) > _SPARSE * candidates.size:
        candidates &= _may_reach(1 - settings.distance, histograms, other_histograms)
    distance = 1 - _cosines(histograms, other_histograms, candidates)
    near = distance < settings.distance
    candidates[candidates] = near
    correlation = _cosines(images.thumbnails.at(left), others.thumbnails.at(right), candidates)
    row, column = np.nonzero(candidates)
    pairs = Pairs(left[row], right[column], distance[near].astype(np.float32), correlation.astype(np.float32))
    return pairs.only(correlation >= settings.correlation)


def _may_reach(bound: float, left: _Vectors, right: _Vectors) -> np.ndarray:
    """Whether the cosine of each two rows may be `bound` or more (L, R) bool: sure where it is False."""
    products = left.values.astype(np.float32) @ right.values.astype(np.float32).T
    lengths = [np.sqrt(part.squares).astype(np.float32) for part in (left, right)]
    return products >= np.float32(bound - _MARGIN) * lengths[0][:, None] * lengths[1]


def _cosines(left: _Vectors, right: _Vectors, which: np.ndarray) -> np.ndarray:
    """The cosines (P,) float64 of the pairs that `which` (L, R) bool holds, row by row."""
    row, column = np.nonzero(which)
    if len(row) > _SPARSE * which.size:
        products = (left.values.astype(np.float64) @ right.values.astype(np.float64).T)[which]
    else:
        parts = (slice(start, start + _PART) for start in range(0, len(row), _PART))
        found = (_products(left.values[row[part]], right.values[column[part]]) for part in parts)
        products = np.concatenate([np.zeros(0), *found])
    # the root of a square is exact, so a row's cosine with itself is 1
    return np.clip(products / np.sqrt(left.squares[row] * right.squares[column]), -1, 1)


def _products(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The product of each row with its partner (P,) float64."""
    return np.einsum("ij,ij->i", left.astype(np.float64), right.astype(np.float64))


def _collected(parts: Iterator[Pairs]) -> Pairs:
    """All parts in one, sorted by left, then right."""
    nothing, number = np.zeros(0, np.float32), 0
    found = [Pairs(nothing.astype(np.int64), nothing.astype(np.int64), nothing, nothing)]
    for part in parts:
        number += len(part)
        if number > MOST_PAIRS:
            raise PipelineError(
                f"More than {MOST_PAIRS:,} pairs of images look alike; lower clean.duplicates.distance or raise "
                "clean.duplicates.correlation in the competition's YAML."
            )
        if len(part):
            found.append(part)
    columns = ([getattr(part, name) for part in found] for name in ("left", "right", "distance", "correlation"))
    pairs = Pairs(*(np.concatenate(column) for column in columns))
    return pairs.only(np.lexsort((pairs.right, pairs.left)))
