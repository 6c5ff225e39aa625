"""The search for near-duplicates against brute force, and the clusters, forests and trees made of its pairs."""

from itertools import combinations
from pathlib import Path
from random import Random

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import minimum_spanning_tree

from pipeline.clean import duplicates
from pipeline.clean.duplicates import Pairs, connected_groups, cross_pairs, forest, near_pairs, orient
from pipeline.core.config.cleaning import DuplicateSettings
from pipeline.core.errors import PipelineError
from pipeline.decode.descriptors import block_grid, block_histograms, grey, thumbnail

Descriptors = tuple[np.ndarray, np.ndarray]
Edges = tuple[int, list[tuple[int, int, float]]]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "BLOCK", 7)
    monkeypatch.setattr(duplicates, "_PART", 3)


def standardised(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean(1, keepdims=True)
    return (centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-9)).astype(np.float16)


def planted(count: int, seed: int, length: int = 40) -> Descriptors:
    """Random descriptors, of which a third come twice: equal, or more and more unlike; a few thumbnails are zeros."""
    generator = np.random.default_rng(seed)
    histograms = generator.integers(0, 200, (count, length))
    thumbnails = generator.normal(size=(count, 256))
    for row in generator.choice(count, count // 3, replace=False):
        other, change = generator.integers(count), generator.choice([0, 0.1, 0.3, 0.6])
        histograms[row] = histograms[other] + change * generator.integers(0, 55, length)
        thumbnails[row] = thumbnails[other] + change * generator.normal(size=256)
    thumbnails[generator.choice(count, 3)] = 0
    return histograms.astype(np.uint8), standardised(thumbnails)


def cosine(left: np.ndarray, right: np.ndarray) -> float:
    left, right = left.astype(np.float64), right.astype(np.float64)
    lengths = np.linalg.norm(left) * np.linalg.norm(right)
    return float(left @ right / lengths) if lengths else 0.0


def brute(
    images: Descriptors, others: Descriptors, couples: list[tuple[int, int]], settings: DuplicateSettings
) -> dict[tuple[int, int], tuple[float, float]]:
    found = {}
    for left, right in couples:
        distance = 1 - cosine(images[0][left], others[0][right])
        correlation = cosine(images[1][left], others[1][right])
        if distance < settings.distance and correlation >= settings.correlation:
            found[left, right] = (distance, correlation)
    return found


def assert_pairs(pairs: Pairs, expected: dict[tuple[int, int], tuple[float, float]]) -> None:
    assert list(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)) == sorted(expected)
    columns = (pairs.left, pairs.right, pairs.distance, pairs.correlation)
    assert [column.dtype.name for column in columns] == ["int64", "int64", "float32", "float32"]
    values = np.array([expected[key] for key in sorted(expected)]).reshape(-1, 2)
    np.testing.assert_allclose(pairs.distance, values[:, 0], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(pairs.correlation, values[:, 1], rtol=1e-6)
    assert (pairs.distance >= 0).all()


# --- the search against brute force ----------------------------------------------------------------------------------

EVERY_SETTING = pytest.mark.parametrize(
    "settings",
    [
        DuplicateSettings(),
        DuplicateSettings(distance=0.1, correlation=0.5),
        DuplicateSettings(distance=0.02, correlation=-1),
        DuplicateSettings(distance=0.2, correlation=0.05),
        DuplicateSettings(distance=0.3, correlation=-0.5),
        DuplicateSettings(distance=2, correlation=-1),
    ],
    ids=lambda settings: f"{settings.distance}, {settings.correlation}",
)


@EVERY_SETTING
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [1, 6, 7, 8, 36])
def test_every_near_pair_is_found(small_blocks: None, count: int, seed: int, settings: DuplicateSettings) -> None:
    images = planted(count, seed)
    expected = brute(images, images, list(combinations(range(count), 2)), settings)
    assert_pairs(near_pairs(*images, settings), expected)
    assert count < 36 or expected


@EVERY_SETTING
@pytest.mark.parametrize(("count", "other_count"), [(20, 31), (14, 7), (1, 9), (8, 0)])
def test_pairs_across_two_sets(small_blocks: None, count: int, other_count: int, settings: DuplicateSettings) -> None:
    histograms, thumbnails = planted(count + other_count, 5)
    images, others = (histograms[:count], thumbnails[:count]), (histograms[count:], thumbnails[count:])
    couples = [(left, right) for left in range(count) for right in range(other_count)]
    assert_pairs(cross_pairs(*images, *others, settings), brute(images, others, couples, settings))


@EVERY_SETTING
@pytest.mark.parametrize("dtype", [str, object])
def test_pairs_inside_groups_only(small_blocks: None, dtype: type, settings: DuplicateSettings) -> None:
    images = planted(60, 6)
    numbers = np.random.default_rng(6).choice(4, 60, p=[0.5, 0.3, 0.15, 0.05])
    groups: np.ndarray = np.array(["b", "a 10", "a 9", "Ä"], dtype)[numbers]
    couples = [(left, right) for left, right in combinations(range(60), 2) if groups[left] == groups[right]]
    assert_pairs(near_pairs(*images, settings, groups), brute(images, images, couples, settings))


def test_pairs_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    images, found = planted(90, 7), []
    for block, sparse in [(1024, 0), (1024, 1), (11, 1 / 32), (1, 0), (1, 1)]:
        monkeypatch.setattr(duplicates, "BLOCK", block)
        monkeypatch.setattr(duplicates, "_SPARSE", sparse)
        pairs = near_pairs(*images, DuplicateSettings(distance=0.1, correlation=0.3))
        found.append([pairs.left, pairs.right, pairs.distance, pairs.correlation])
    assert len(found[0][0]) > 10
    for other in found[1:]:
        for column, other_column in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(column, other_column)


def test_a_memmap_is_searched_as_an_array(tmp_path: Path) -> None:
    histograms, thumbnails = planted(50, 8)
    np.save(tmp_path / "histograms.npy", histograms)
    np.save(tmp_path / "thumbnails.npy", thumbnails)
    expected = near_pairs(histograms, thumbnails, DuplicateSettings())
    mapped = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("histograms", "thumbnails")]
    found = near_pairs(mapped[0], mapped[1], DuplicateSettings())
    assert len(expected) > 3
    np.testing.assert_array_equal(found.left, expected.left)
    assert type(found.left) is type(found.distance) is np.ndarray


@pytest.mark.parametrize("groups", [None, np.zeros(0, object)])
def test_no_images_have_no_pairs(groups: np.ndarray | None) -> None:
    images = np.zeros((0, 40), np.uint8), np.zeros((0, 256), np.float16)
    assert_pairs(near_pairs(*images, DuplicateSettings(), groups), {})


def test_the_bound_of_the_distance_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # three, two and three of four ones in common: distances 0.25, 0.5 and 0.25, in any precision
    histograms = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 1, 0], [1, 1, 0, 0, 1, 1]], np.uint8)
    thumbnails = np.ones((3, 256), np.float16)
    for sparse in (0, 1):
        monkeypatch.setattr(duplicates, "_SPARSE", sparse)
        for bound, expected in ((0.25, 0), (0.25 + 1e-9, 2), (0.5, 2), (0.5 + 1e-9, 3)):
            settings = DuplicateSettings(distance=bound, correlation=-1)
            assert len(near_pairs(histograms, thumbnails, settings)) == expected


def test_the_bound_of_the_correlation_is_let_in() -> None:
    thumbnails = np.zeros((2, 256), np.float16)
    thumbnails[:, :4] = [[0.5, -0.5, 0.5, -0.5], [0.75, -0.25, 0.25, -0.75]]  # product 1 of lengths 1 and √1.25
    histograms = np.full((2, 5), 51, np.uint8)
    found = near_pairs(histograms, thumbnails, DuplicateSettings(correlation=1 / np.sqrt(1.25)))
    assert found.correlation.tolist() == [np.float32(1 / np.sqrt(1.25))]
    assert not len(near_pairs(histograms, thumbnails, DuplicateSettings(correlation=1 / np.sqrt(1.25) + 1e-9)))


def test_equal_images_are_at_distance_0_and_correlate_fully() -> None:
    histograms, thumbnails = planted(40, 9, 6090)
    twice = np.concatenate([histograms, histograms]), np.concatenate([thumbnails, thumbnails])
    pairs = near_pairs(*twice, DuplicateSettings(distance=1e-12, correlation=1))
    shown = np.flatnonzero(thumbnails.any(1))
    assert set(zip(shown, shown + 40, strict=True)) <= set(zip(pairs.left, pairs.right, strict=True))
    assert not pairs.distance.any()
    assert (pairs.correlation == 1).all()


def test_images_of_one_colour_are_near_duplicates_of_nothing() -> None:
    histograms, thumbnails = np.full((30, 50), 255, np.uint8), np.zeros((30, 256), np.float16)
    assert not len(near_pairs(histograms, thumbnails, DuplicateSettings(correlation=0.01)))
    for correlation in (0, -0.5, -1):
        found = near_pairs(histograms, thumbnails, DuplicateSettings(correlation=correlation))
        assert len(found) == 30 * 29 / 2
        assert not found.correlation.any()


def test_a_set_of_nothing_but_duplicates_is_refused(monkeypatch: pytest.MonkeyPatch, small_blocks: None) -> None:
    histograms, thumbnails = planted(1, 0)[0].repeat(20, 0), np.eye(1, 256, dtype=np.float16).repeat(20, 0)
    monkeypatch.setattr(duplicates, "MOST_PAIRS", 190)
    assert len(near_pairs(histograms, thumbnails, DuplicateSettings())) == 190
    monkeypatch.setattr(duplicates, "MOST_PAIRS", 189)
    with pytest.raises(PipelineError, match=r"More than 189 pairs .* clean.duplicates.distance or raise .* YAML"):
        near_pairs(histograms, thumbnails, DuplicateSettings())
    with pytest.raises(PipelineError, match=r"More than 189 pairs"):
        cross_pairs(histograms, thumbnails, histograms, thumbnails, DuplicateSettings())


def test_progress_reaches_all_images(small_blocks: None) -> None:
    images, groups = planted(20, 1), np.array(["b"] * 9 + ["a"] * 11)
    calls: list[tuple[int, int]] = []
    near_pairs(*images, DuplicateSettings(), None, lambda *call: calls.append(call))
    assert calls == [(7, 20), (14, 20), (20, 20)]
    near_pairs(*images, DuplicateSettings(), groups, lambda *call: calls.append(call))
    assert calls[3:] == [(7, 20), (11, 20), (18, 20), (20, 20)]


# --- real descriptors ------------------------------------------------------------------------------------------------


def described(pictures: list[np.ndarray]) -> Descriptors:
    values = [grey(picture[..., None]) for picture in pictures]
    grid = block_grid(pictures[0].shape[:2])
    return np.stack([block_histograms(one, grid) for one in values]), np.stack([thumbnail(one) for one in values])


def scene(seed: int, low: float = 20, high: float = 235) -> np.ndarray:
    """A smooth picture of 210×290 pixels, uint8."""
    coarse = np.random.default_rng(seed).uniform(low, high, (8, 10)).astype(np.float32)
    return np.clip(cv2.resize(coarse, (290, 210), interpolation=cv2.INTER_CUBIC), 0, 255).astype(np.uint8)


def noised(picture: np.ndarray, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 1.5, picture.shape)
    return np.clip(np.rint(picture + noise), 0, 255).astype(np.uint8)


def test_a_noised_picture_is_near_and_another_is_not() -> None:
    pairs = near_pairs(*described([scene(0), scene(1), noised(scene(0), 2), scene(3)]), DuplicateSettings())
    assert (pairs.left.tolist(), pairs.right.tolist()) == ([0], [2])
    assert 0 < pairs.distance[0] < 0.004
    assert pairs.correlation[0] > 0.999


def test_dark_pictures_are_told_apart_by_correlation_alone() -> None:
    dark = described([scene(0, 2, 20), scene(1, 2, 20), noised(scene(0, 2, 20), 2)])
    without = near_pairs(*dark, DuplicateSettings(correlation=-1))
    assert list(zip(without.left, without.right, strict=True)) == [(0, 1), (0, 2), (1, 2)]
    pairs = near_pairs(*dark, DuplicateSettings())
    assert (pairs.left.tolist(), pairs.right.tolist()) == ([0], [2])


# --- clusters, forests, trees ----------------------------------------------------------------------------------------


@st.composite
def graphs(draw: st.DrawFn) -> Edges:
    """Up to 12 rows and edges with few different weights, 0 among them, in any order, some of them repeated."""
    count = draw(st.integers(2, 12))
    row, weight = st.integers(0, count - 1), st.sampled_from([0.0, 0.001, 0.002, 0.005])
    edges = draw(st.lists(st.tuples(row, row, weight).filter(lambda edge: edge[0] != edge[1]), max_size=30))
    return count, edges


def pairs_of(edges: list[tuple[int, int, float]]) -> Pairs:
    left, right, distance = (np.array([edge[part] for edge in edges]) for part in range(3))
    return Pairs(left.astype(int), right.astype(int), distance.astype(np.float32), np.ones(len(edges), np.float32))


def spread(count: int, edges: list[tuple[int, int, float]]) -> list[int]:
    """The cluster of each row, by handing the lowest row number on along the edges until nothing changes."""
    lowest = list(range(count))
    for _ in range(count):
        for left, right, _ in edges:
            lowest[left] = lowest[right] = min(lowest[left], lowest[right])
    return [sorted(set(lowest)).index(row) for row in lowest]


@given(graphs())
def test_components_are_numbered_by_their_first_rows(graph: Edges) -> None:
    count, edges = graph
    pairs = pairs_of(edges)
    found = connected_groups(count, pairs.left, pairs.right)
    assert found.dtype == np.int64
    assert found.tolist() == spread(count, edges)


@given(graphs())
def test_a_forest_is_the_least_that_holds_clusters_together(graph: Edges) -> None:
    count, edges = graph
    pairs = pairs_of(edges)
    positions = forest(count, pairs)
    assert positions.dtype == np.int64
    assert (np.diff(positions) > 0).all()
    chosen, clusters = pairs.only(positions), connected_groups(count, pairs.left, pairs.right)
    np.testing.assert_array_equal(connected_groups(count, chosen.left, chosen.right), clusters)
    assert len(chosen) == count - len(set(clusters.tolist()))
    assert chosen.distance.sum(dtype=np.float64) == pytest.approx(least_weight(count, edges), abs=1e-6)


def least_weight(count: int, edges: list[tuple[int, int, float]]) -> float:
    """By scipy on a matrix of the smallest weight of each edge, all of them 1 larger so that none is 0."""
    weights = np.zeros((count, count))
    for left, right, weight in sorted(edges, key=lambda edge: -edge[2]):
        weights[min(left, right), max(left, right)] = 1 + weight
    tree = minimum_spanning_tree(csr_array(weights))
    return float(tree.sum() - tree.nnz)


@given(graphs(), st.randoms(use_true_random=False))
def test_a_forest_does_not_depend_on_the_order_of_pairs(graph: Edges, random: Random) -> None:
    count, edges = graph
    shuffled = list(edges)
    random.shuffle(shuffled)
    chosen = [[order[position] for position in forest(count, pairs_of(order))] for order in (edges, shuffled)]
    one, other = ({frozenset(edge[:2]) for edge in part} for part in chosen)
    assert one == other


@given(graphs())
def test_trees_hang_on_their_first_rows(graph: Edges) -> None:
    count, edges = graph
    pairs = pairs_of(edges)
    pairs = pairs.only(forest(count, pairs))
    child, parent = orient(count, pairs.left, pairs.right)
    assert (child.dtype, parent.dtype) == (np.int64, np.int64)
    assert (np.diff(child) > 0).all()
    undirected = {frozenset(edge) for edge in zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)}
    assert {frozenset(edge) for edge in zip(child.tolist(), parent.tolist(), strict=True)} == undirected
    above = dict(zip(child.tolist(), parent.tolist(), strict=True))
    clusters = connected_groups(count, pairs.left, pairs.right)
    for row in range(count):
        top = row
        for _ in range(count):
            top = above.get(top, top)
        assert top == clusters.tolist().index(clusters[row])


def test_pairs_at_distance_0_hold_a_cluster_together() -> None:
    pairs = pairs_of([(0, 1, 0), (0, 2, 0.004), (1, 2, 0), (2, 3, 0.001), (0, 3, 0.002), (4, 5, 0)])
    assert forest(7, pairs).tolist() == [0, 2, 3, 5]
    child, parent = orient(7, *(column[[0, 2, 3, 5]] for column in (pairs.left, pairs.right)))
    assert (child.tolist(), parent.tolist()) == ([1, 2, 3, 5], [0, 1, 2, 4])


@pytest.mark.parametrize("count", [0, 4])
def test_without_pairs_every_row_is_a_separate_cluster(count: int) -> None:
    nothing = pairs_of([])
    assert connected_groups(count, nothing.left, nothing.right).tolist() == list(range(count))
    assert forest(count, nothing).tolist() == []
    assert [part.tolist() for part in orient(count, nothing.left, nothing.right)] == [[], []]


@pytest.mark.parametrize("width", [1, 2, 40_000])
def test_many_rows_in_one_or_many_clusters(width: int) -> None:
    """Chains of `width` rows each, 40,000 rows in all."""
    later = np.flatnonzero(np.arange(40_000) % width)
    order = np.random.default_rng(0).permutation(len(later))
    child, parent = orient(40_000, later[order], later[order] - 1)
    np.testing.assert_array_equal(child, later)
    np.testing.assert_array_equal(parent, later - 1)
    np.testing.assert_array_equal(connected_groups(40_000, child, parent), np.arange(40_000) // width)


def test_pairs_can_be_chosen_by_position_or_mask() -> None:
    pairs = pairs_of([(0, 1, 0.001), (0, 2, 0.002), (1, 2, 0.003)])
    assert len(pairs) == 3
    assert pairs.only(np.array([2, 0])).right.tolist() == [2, 1]
    assert pairs.only(pairs.distance < 0.0025).left.tolist() == [0, 0]
