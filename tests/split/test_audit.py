"""The audit of a split: which fold is unlike the others, what stands in two of them, and what it warns of."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.clean.duplicates import Pairs
from pipeline.clean.outliers import COLUMNS
from pipeline.core.config.cleaning import DuplicateSettings
from pipeline.split.audit import (
    Split,
    audit,
    balance,
    balance_warnings,
    clusters_of,
    components_of,
    crossing,
    deviations,
    leaking_pairs,
    whole,
)

SIZE = 1000


def split_of(fold: list[int], areas: Any = 100, group: Any = None, cluster: Any = None) -> Split:
    """Images of 1000 pixels, named i0, i1, …; `areas` of one class, or (N, C)."""
    count = len(fold)
    areas = np.array(np.broadcast_to(areas, count) if np.ndim(areas) < 2 else areas)
    group = np.array([""] * count if group is None else group)
    cluster = np.array([-1] * count if cluster is None else cluster)
    component = components_of(group, cluster)
    names = np.array([f"i{number}" for number in range(count)], object)
    sizes = np.full(count, SIZE)
    return Split(names, np.array(fold), group, cluster, component, areas.reshape(count, -1), sizes)


def far(split: Split, classes: list[str]) -> list[Any]:
    figures = balance(split.fold, split.areas, split.sizes, classes)
    return deviations(figures, whole(split.areas, split.sizes, classes))


# --- balance ---------------------------------------------------------------------------------------------------------


def test_the_figures_of_a_fold() -> None:
    areas = np.array([[0, 0], [100, 0], [300, 0], [200, 200], [0, 0], [0, 500]])
    figures = balance(np.array([0, 0, 0, 0, 1, 1]), areas, np.full(6, SIZE), ["a", "b"])
    assert figures.loc[0].to_dict() == pytest.approx({
        "images": 4, "share_empty": 0.25, "area_25": 0.2, "area_50": 0.3, "area_75": 0.35,
        "images_a": 0.75, "pixels_a": 0.15, "images_b": 0.25, "pixels_b": 0.05,
    })  # fmt: skip
    assert figures.loc[1, ["images", "share_empty", "pixels_a", "pixels_b"]].tolist() == [2, 0.5, 0, 0.25]
    empty = balance(np.array([0, 1]), np.array([[0], [5]]), np.full(2, SIZE), ["a"])
    assert empty["area_50"].isna().tolist() == [True, False]


def test_folds_that_are_all_alike_do_not_deviate() -> None:
    split = split_of([0, 0, 1, 1, 2, 2], [0, 70] * 3)
    assert max(one.value for one in far(split, ["a"])) == pytest.approx(0)


@pytest.mark.parametrize(
    ("fold", "areas", "number", "value", "text"),
    [
        ([0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2], 100, 0, 0.25, "25 % fewer images than on average"),
        ([0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2], 100, 0, 0.5, "50 % fewer images than on average"),
        # the same pixels in each, but in one image of four
        (
            [0] * 4 + [1] * 4,
            [25] * 4 + [0] * 3 + [100],
            1,
            3,
            "the mask at the lower quartile is 300 % larger than overall",
        ),
        ([0] * 8 + [1] * 8 + [2] * 8, [10] * 23 + [90], 2, 0.5, "pixels of a 50 % more than on average"),
    ],
)
def test_the_farthest_fold_is_named(fold: list[int], areas: Any, number: int, value: float, text: str) -> None:
    first = far(split_of(fold, areas), ["a"])[0]
    assert (first.fold, first.text) == (number, f"fold {number}: {text}")
    assert first.value == pytest.approx(value)


def test_a_share_of_empty_masks_is_a_difference() -> None:
    found = far(split_of([0] * 4 + [1] * 4, [0, 0, 0, 40, 0, 10, 10, 20]), ["a"])
    texts = {one.text: one.value for one in found}
    assert texts["fold 0: 75 % empty masks, 50 % overall"] == pytest.approx(0.25)
    assert not [text for text in texts if "images with a" in text]  # which says the same of a single class


def test_a_rare_class_is_named() -> None:
    rocks = np.zeros((90, 2), int)
    rocks[:, 0], rocks[[0, 1, 2, 3, 40, 41, 42, 43, 80], 1] = 100, 10
    first = far(split_of(np.repeat([0, 1, 2], 30).tolist(), rocks), ["soil", "big rock"])[0]
    assert first.text == "fold 2: images with big rock 67 % fewer than on average"
    assert first.value == pytest.approx(2 / 3)


# --- what belongs in one fold ----------------------------------------------------------------------------------------


def test_clusters_are_chains_of_duplicate_findings() -> None:
    rows = [["b", "duplicate", "d"], ["d", "duplicate", "e"], ["f", "duplicate", "a"], ["c", "contradiction", "a"],
            ["c", "duplicate", "t1"], ["g", "broken", ""]]  # fmt: skip
    found = pd.DataFrame([[one, reason, "0", partner, "keep", ""] for one, reason, partner in rows], columns=COLUMNS)
    cluster = clusters_of(pd.Series(list("abcdefg")), found)
    assert cluster.tolist() == [0, 1, -1, 1, 1, 0, -1]
    assert clusters_of(pd.Series(["a", "b"]), found.iloc[:0]).tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("group", "cluster", "component"),
    [
        (["", "", ""], [-1, -1, -1], [0, 1, 2]),
        (["p", "", "p"], [-1, -1, -1], [0, 1, 0]),
        (["p", "q", "r", "p"], [-1, 0, 0, -1], [0, 1, 1, 0]),
        (["p", "q", "q", "p", "r"], [0, 0, -1, 1, 1], [0, 0, 0, 0, 0]),  # through a group, a cluster and a group
        (["", "", "", "q"], [0, -1, 0, -1], [0, 1, 0, 2]),
    ],
)
def test_groups_and_clusters_hang_together(group: list[str], cluster: list[int], component: list[int]) -> None:
    assert components_of(np.array(group), np.array(cluster)).tolist() == component


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["", "a", "b", "c", "d"]), st.integers(-1, 3)), min_size=1, max_size=15))
def test_what_shares_a_group_or_a_cluster_shares_a_component(pairs: list[tuple[str, int]]) -> None:
    group, cluster = np.array([one[0] for one in pairs]), np.array([one[1] for one in pairs])
    component = components_of(group, cluster)
    assert crossing(component[group != ""], group[group != ""]) == []
    assert crossing(component[cluster >= 0], cluster[cluster >= 0]) == []
    for number in np.flatnonzero((group == "") & (cluster < 0)):
        assert (component == component[number]).sum() == 1


# --- leaks -----------------------------------------------------------------------------------------------------------


def test_what_crosses_folds() -> None:
    fold = np.array([0, 1, 0, 1, 1])
    assert crossing(fold, np.array(["b", "a", "a", "b", "c"])) == ["b", "a"]
    assert crossing(fold, np.arange(5)) == []


def described(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Descriptors of images that are all unlike each other."""
    rng = np.random.default_rng(0)
    thumbnails = rng.standard_normal((count, 256))
    thumbnails /= np.linalg.norm(thumbnails, axis=1, keepdims=True)
    return rng.integers(0, 256, (count, 300), np.uint8), thumbnails.astype(np.float16)


def test_near_duplicates_in_two_folds_are_found_from_the_descriptors_alone() -> None:
    histograms, thumbnails = described(10)
    for one, other in ((1, 6), (2, 4), (3, 8), (0, 9), (5, 7)):
        histograms[other], thumbnails[other] = histograms[one], thumbnails[one]
    histograms[6, :100] = np.minimum(histograms[6, :100], 235) + 20  # alike, not the same
    thumbnails[[0, 9]] = 0  # of one colour
    broken = np.isin(np.arange(10), [3])
    fold = np.arange(10) % 2
    fold[4] = 0  # with its duplicate
    fold[7], fold[8] = 0, 0
    pairs = leaking_pairs(fold, histograms, thumbnails, broken, DuplicateSettings())
    assert list(zip(pairs.left, pairs.right, strict=True)) == [(5, 7), (1, 6)]  # the closest first
    assert pairs.distance[0] == 0 < pairs.distance[1]
    assert len(leaking_pairs(fold * 0, histograms, thumbnails, broken, DuplicateSettings())) == 0
    said = audit(split_of(fold.tolist()), np.full(10, "train"), ["a"], pairs)
    assert said["leaking_pairs"]["count"] == 2
    assert said["leaking_pairs"]["closest"][0] == ["i5", "i7", 0.0, 1.0]
    assert said["leak_remark"] == "folds leak: 2 near-duplicate pairs are in two folds"


def pairs_of(*rows: tuple[int, int]) -> Pairs:
    left, right = np.array(rows, np.int64).reshape(-1, 2).T
    return Pairs(left, right, np.full(len(left), 0.001, np.float32), np.full(len(left), 0.95, np.float32))


def test_the_remark_counts_what_leaks() -> None:
    group, cluster = ["p", "p", "q", "q", "r", "r"], [-1, 0, 0, -1, -1, -1]
    split = split_of([0, 1, 0, 1, 0, 0], group=group, cluster=cluster)
    said = audit(split, np.full(6, "train"), ["a"], pairs_of((1, 2)))
    assert said["leak_remark"] == (
        "folds leak: 2 groups, 1 duplicate cluster and 1 near-duplicate pair are in two folds"
    )
    assert said["crossing_groups"] == {"count": 2, "examples": ["p", "q"]}
    assert said["crossing_clusters"] == {"count": 1, "examples": [["i1", "i2"]]}
    one = audit(split_of([0, 1, 1], group=["p", "p", ""]), np.full(3, "train"), ["a"], pairs_of())
    assert one["leak_remark"] == "folds leak: 1 group is in two folds"


def test_the_audit_is_json_and_counts_what_is_dropped() -> None:
    use = np.array(["train", "drop", "soft", "drop", "relabel", "drop"])
    split = split_of([0, 0, 0, 1, 1, 1], [10, 20, 30, 0, 0, 0], group=list("ppqrss"))
    said = audit(split, use, ["a"], pairs_of())
    assert json.loads(json.dumps(said, allow_nan=False)) == said
    assert [(fold["fold"], fold["images"], fold["dropped"]) for fold in said["folds"]] == [(0, 3, 1), (1, 3, 2)]
    assert [fold["components"] for fold in said["folds"]] == [2, 2]
    assert [fold["area_50"] for fold in said["folds"]] == [0.02, None]
    assert (said["leaks"], said["leak_remark"]) == (False, "")
    assert said["verdict"] == "no group, cluster or near-duplicate pair is in two folds"
    unseen = audit(split, use, ["a"], None)
    assert unseen["leaking_pairs"] == {"count": None, "closest": []}
    assert (
        unseen["verdict"]
        == "no group is in two folds; near-duplicates were not searched (clean.duplicates.search is false)"
    )


# --- warnings --------------------------------------------------------------------------------------------------------


def test_even_folds_warn_of_nothing() -> None:
    assert balance_warnings(split_of([0, 0, 1, 1, 2, 2], [0, 70] * 3), ["a"]) == []
    assert balance_warnings(split_of([0, 0, 1]), ["a"]) == []  # one image more is no huge group


def test_a_huge_group_is_named() -> None:
    fold = [0] * 12 + [1] * 4 + [2] * 4
    group = ["p7"] * 11 + ["q"] + list("rstu") + list("vwxy")
    expected = "fold 0 has 12 images and fold 1 has 4: group p7 alone is 55 % of all images."
    assert balance_warnings(split_of(fold, group=group), ["a"]) == [expected]
    cluster = [0] * 11 + [-1] * 9
    (text,) = balance_warnings(split_of(fold, cluster=cluster), ["a"])
    assert text.endswith("images i0, i1, i2 and 8 more alone is 55 % of all images.")
    (text,) = balance_warnings(split_of([0] * 12 + [1] * 4 + [2] * 4), ["a"])
    assert text == "fold 0 has 12 images and fold 1 has 4."  # somebody's own, whose reason is not known


def test_a_class_absent_from_a_fold_is_named() -> None:
    areas = np.full((6, 2), 10)
    areas[[2, 3, 5], 1] = 0
    split = split_of([0, 0, 1, 1, 2, 2], areas)
    assert balance_warnings(split, ["soil", "big rock"]) == [
        "class big rock occurs in no image of fold 1 (overall in 3 of 6)."
    ]
    areas[[0, 1], 1] = 0
    assert (
        "no image of folds 0, 1 (overall in 1 of 6)"
        in balance_warnings(split_of([0, 0, 1, 1, 2, 2], areas), ["a", "b"])[0]
    )


def test_folds_with_only_empty_masks_or_none() -> None:
    fold = [0, 0, 1, 1]
    (absent, filled) = balance_warnings(split_of(fold, [0, 0, 9, 9]), ["a"])
    assert absent == "class a occurs in no image of fold 0 (overall in 2 of 4)."
    assert filled == "fold 1: no mask is empty (2 of 4 overall)."
    texts = balance_warnings(split_of(fold, [[0, 0], [0, 0], [9, 9], [9, 9]]), ["a", "b"])
    assert "fold 0: all masks are empty (2 of 4 overall)." in texts
    assert balance_warnings(split_of(fold, [0, 9, 9, 9]), ["a"]) == []  # one empty mask cannot be in both


def test_a_fold_of_one_group_is_named() -> None:
    assert balance_warnings(split_of([0, 0, 1, 1, 1], group=list("ppqqr")), ["a"]) == [
        "fold 0 consists only of group p."
    ]
    joined = split_of([0, 0, 1, 1], group=list("pqrs"), cluster=[0, 0, -1, -1])
    assert balance_warnings(joined, ["a"]) == ["fold 0 consists only of groups p, q."]
    assert balance_warnings(split_of([0, 1]), ["a"]) == []  # an image is no group
