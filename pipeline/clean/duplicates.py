"""Search for near-duplicate images by the descriptors of decode/descriptors.py, and clusters of them.

Two images are near-duplicates if the histograms of their blocks are close, as in the best-known public code for the
nerve competition (github.com/raghakot/ultrasound-nerve-segmentation), and if their thumbnails correlate. Without the
second condition, any two dark images would be near-duplicates.

The search compares all images with each other, in blocks. Matrix products in float32 exclude pairs that are clearly too
far apart. The remaining pairs are computed in float64, in which sums of products of uint8, or of float16 below 1, are
exact. The result therefore does not depend on blocks, threads or processor, and equal images have distance 0.
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
"""Number of images per block. Comparing two blocks takes well below 1 GiB, even with the longest histograms."""
MOST_PAIRS = 10_000_000
"""Maximum number of pairs, which take 0.3 GB. With more, the settings make nearly all images near-duplicates."""

_MARGIN = 1e-4
"""A bound on the float32 error of the cosine of two vectors of 10,240 values."""
_SPARSE = 1 / 32
"""Up to this share of the pairs of two blocks, computing them one by one is faster than a matrix product."""
_PART = 16
"""Number of pairs that are computed at a time, so that their histograms fit into the processor's cache."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of images, given by their rows, and how similar they are. All arrays have the shape (P,)."""

    left: np.ndarray  # int64
    right: np.ndarray  # int64; larger than left if both images are of the same set
    distance: np.ndarray  # float32, cosine distance of the block histograms
    correlation: np.ndarray  # float32, of the thumbnails

    def __len__(self) -> int:
        return len(self.left)

    def only(self, which: np.ndarray) -> "Pairs":
        """Returns some of the pairs, selected by index or by a mask (P,) bool."""
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
        histograms: block histograms (N, D) uint8; may be a memmap.
        thumbnails: thumbnails (N, 256) float16. Zeros, the thumbnail of a constant image, correlate with no other.
        settings: maximum distance and minimum correlation.
        groups: names of groups (N,). If given, only images of the same group are compared.
        on_progress: called with the number of finished images and the number of all images.

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
    """Returns all pairs of near-duplicates between one set of images (left) and another (right), sorted by left, then
    right.

    Raises:
        PipelineError: there are more than 10,000,000 pairs.
    """
    images, others = _Images.of(histograms, thumbnails), _Images.of(other_histograms, other_thumbnails)
    return _collected(
        _compare(images, left, others, right, np.ones((len(left), len(right)), bool), settings)
        for left in _blocks(np.arange(len(histograms)))
        for right in _blocks(np.arange(len(other_histograms)))
    )


# --- clusters --------------------------------------------------------------------------------------------------------


def connected_groups(count: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Returns the number of the cluster of each of `count` rows (count,) int64, where edges connect the rows `left` and
    `right`.

    Clusters are numbered from 0 in the order of their first rows. A row without an edge is a separate cluster.
    """
    if not count:
        return np.zeros(0, np.int64)
    from scipy.sparse.csgraph import connected_components

    labels = connected_components(_graph(count, left, right), directed=False)[1]
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int64)


def forest(count: int, pairs: Pairs) -> np.ndarray:
    """Returns the indices (K,) int64, ascending, of the fewest and nearest pairs that connect the clusters.

    This is a minimum spanning forest, with n - 1 pairs for a cluster of n rows. Among equal distances, lower rows come
    first.
    """
    if not len(pairs):
        return np.zeros(0, np.int64)
    from scipy.sparse.csgraph import minimum_spanning_tree

    low, high = np.minimum(pairs.left, pairs.right), np.maximum(pairs.left, pairs.right)
    order = np.lexsort((high, low, pairs.distance))
    # weights are ranks, because scipy treats a weight of 0 as no edge, adds repeated edges and breaks ties arbitrarily
    _, ranks = np.unique(low[order].astype(np.int64) * count + high[order], return_index=True)
    kept = order[ranks]
    tree = minimum_spanning_tree(_graph(count, low[kept], high[kept], ranks + 1.0))
    return np.sort(order[tree.data.astype(np.int64) - 1])


def orient(count: int, left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the child and parent rows (K,) int64 of the edges of a forest. The root of each tree is its first row.

    Each other row of a tree occurs once as a child, in ascending order. Its parent is its neighbour on the way to the
    root.
    """
    from scipy.sparse.csgraph import breadth_first_order

    # an additional row that is connected to the first row of each tree lets one search reach all trees
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
    """Vectors for cosines, and their squared lengths. The squared length of a zero vector is set to 1, so that its
    cosine is 0."""

    values: np.ndarray  # (N, D) uint8 or float16
    squares: np.ndarray  # (N,) float64

    @classmethod
    def of(cls, values: np.ndarray) -> "_Vectors":
        """Returns vectors with their squared lengths."""
        parts = (values[start : start + _PART] for start in range(0, len(values), _PART))
        squares = np.concatenate([np.zeros(0), *(_products(part, part) for part in parts)])
        return cls(values, np.where(squares > 0, squares, 1))

    def at(self, rows: np.ndarray) -> "_Vectors":
        """Returns the vectors of these rows."""
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
    """Returns the rows of each group, ascending; without groups, all rows as one group."""
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
    """Yields the near-duplicates between each block of images and itself or a later block."""
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
    """Returns the near-duplicates among the candidates (L, R) bool, which are pairs of the rows `left` and `right`.
    `candidates` is modified."""
    if settings.correlation > -1:
        candidates &= _may_reach(settings.correlation, images.thumbnails.at(left), others.thumbnails.at(right))
    used, others_used = candidates.any(1), candidates.any(0)
    left, right, candidates = left[used], right[others_used], candidates[np.ix_(used, others_used)]
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
    """Returns whether the cosine of each pair may reach `bound` (L, R) bool. False is certain; True is not."""
    products = left.values.astype(np.float32) @ right.values.astype(np.float32).T
    lengths = [np.sqrt(part.squares).astype(np.float32) for part in (left, right)]
    return products >= np.float32(bound - _MARGIN) * lengths[0][:, None] * lengths[1]


def _cosines(left: _Vectors, right: _Vectors, which: np.ndarray) -> np.ndarray:
    """Returns the cosines (P,) float64 of the pairs selected by `which` (L, R) bool, row by row."""
    row, column = np.nonzero(which)
    if len(row) > _SPARSE * which.size:
        products = (left.values.astype(np.float64) @ right.values.astype(np.float64).T)[which]
    else:
        parts = (slice(start, start + _PART) for start in range(0, len(row), _PART))
        products_of_parts = (_products(left.values[row[part]], right.values[column[part]]) for part in parts)
        products = np.concatenate([np.zeros(0), *products_of_parts])
    # the square root of a square is exact, so the cosine of a row with itself is 1
    return np.clip(products / np.sqrt(left.squares[row] * right.squares[column]), -1, 1)


def _products(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Returns the scalar product of each row with its partner (P,) float64."""
    return np.einsum("ij,ij->i", left.astype(np.float64), right.astype(np.float64))


def _collected(parts: Iterator[Pairs]) -> Pairs:
    """Returns all parts as one, sorted by left, then right."""
    nothing, number = np.zeros(0, np.float32), 0
    kept = [Pairs(nothing.astype(np.int64), nothing.astype(np.int64), nothing, nothing)]
    for part in parts:
        number += len(part)
        if number > MOST_PAIRS:
            raise PipelineError(
                f"More than {MOST_PAIRS:,} pairs of images count as near-duplicates; lower clean.duplicates.distance "
                "or raise clean.duplicates.correlation in the competition's YAML."
            )
        if len(part):
            kept.append(part)
    columns = ([getattr(part, name) for part in kept] for name in ("left", "right", "distance", "correlation"))
    pairs = Pairs(*(np.concatenate(column) for column in columns))
    return pairs.only(np.lexsort((pairs.right, pairs.left)))
