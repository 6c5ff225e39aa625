"""Scores of constant answers, worked out again from masks that are drawn."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evidence import Images, held_out_of, random_images, random_labels, run_of

from pipeline.masks import metrics
from pipeline.masks.geometry import IGNORE
from pipeline.masks.metric import Metric
from pipeline.masks.overlaps import confusion, counts, dice, mean_iou
from pipeline.tune import constants
from pipeline.tune.constants import Constants

LABELS: dict[str, Any] = {
    "classes": ["ground", "soil", "sand", "rock"],
    "kind": "multiclass",
    "metric": "mean_iou",
    "submission": {"format": "labels"},
}


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))


def error(intersection: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    return 1 - dice(intersection, predicted, true)


def measured(images: Images, **competition: Any) -> Constants:
    return constants.measure(held_out_of(images, run_of(competition)), np.arange(len(images.truths)))


def centred(number: int = 20, empty: int = 5) -> Images:
    """Images with one square each, nearly at the same place; the first masks are empty."""
    rng, truths = np.random.default_rng(0), []
    for place in range(number):
        true, (top, left) = np.zeros((1, 64, 64), np.uint8), rng.integers(14, 19, 2)
        if place >= empty:
            true[:, top : top + 30, left : left + 30] = 1
        truths.append(true)
    return Images([np.zeros_like(true) for true in truths], truths)


def best_cut(images: Images, score: Callable[[np.ndarray], float]) -> float:
    """The best score of the mean mask, of any threshold, of images of 64 × 64 pixels."""
    mean = np.mean([np.rint((true == 1) * 255.0) for true in images.truths], axis=0)
    levels = np.rint(mean / mean.max() * 255)
    return max(score((levels >= cut).astype(np.uint8)) for cut in range(8, 256, 8))


def test_the_mean_mask_is_cut_where_it_scores_best() -> None:
    images = centred()
    found = measured(images)
    expected = best_cut(images, lambda mask: float(np.mean([dice(*counts(mask, true)) for true in images.truths])))
    assert found.described() == {"all_empty": pytest.approx(5 / 20), "mean_mask": pytest.approx(expected)}
    assert found.mean_mask.score > 0.6
    assert found.best is found.mean_mask
    assert measured(centred(20, 15)).best.name == "an empty mask everywhere"


def test_where_lower_is_better_the_lower_answer_is_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(metrics.METRICS, "error", Metric("error", error, higher_is_better=False))
    images = centred()
    run = run_of()
    held = held_out_of(images, run)
    competition = run.competition.model_copy(update={"metric": "error"})
    held = replace(held, run=replace(run, competition=competition))
    found = constants.measure(held, np.arange(20))
    other = measured(images).mean_mask.score
    assert found.described() == {"all_empty": pytest.approx(0.75), "mean_mask": pytest.approx(1 - other)}
    assert found.best is found.mean_mask


def with_metric(images: Images, metric: Metric, monkeypatch: pytest.MonkeyPatch) -> Constants:
    monkeypatch.setitem(metrics.METRICS, metric.name, metric)
    run = run_of({"group": "patient"})
    run = replace(run, competition=run.competition.model_copy(update={"metric": metric.name}))
    return constants.measure(held_out_of(images, run), np.arange(len(images.truths)))


def test_pooled_pixels_and_groups_are_scored_as_the_metric_does(monkeypatch: pytest.MonkeyPatch) -> None:
    images = centred()
    images.groups = [f"p{place // 4}" for place in range(20)]

    def pooled(mask: np.ndarray, own: list[np.ndarray]) -> float:
        total = np.sum([np.stack(counts(mask, true)) for true in own], axis=0)
        return float(dice(*total).mean())

    def by_group(mask: np.ndarray) -> float:
        return float(np.mean([pooled(mask, images.truths[start : start + 4]) for start in range(0, 20, 4)]))

    found = with_metric(images, Metric("pooled", dice, unit="data_set"), monkeypatch)
    assert found.mean_mask.score == pytest.approx(best_cut(images, lambda mask: pooled(mask, images.truths)))
    assert found.described()["all_empty"] == 0
    found = with_metric(images, Metric("by_group", dice, unit="group"), monkeypatch)
    assert found.mean_mask.score == pytest.approx(best_cut(images, by_group))
    assert found.described()["all_empty"] == pytest.approx(1 / 5)  # the first four masks are empty


def test_a_metric_of_whole_masks_is_measured_on_masks_that_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
        return np.stack(counts(predicted, true)).astype(np.float64)

    images = centred()
    found = with_metric(images, Metric("drawn", dice, "masks", measure=measure), monkeypatch)
    pixels = measured(images)
    assert found.described()["all_empty"] == pixels.described()["all_empty"]
    assert pixels.mean_mask.score - 0.05 < found.mean_mask.score <= pixels.mean_mask.score + 1e-9


@pytest.mark.parametrize("never", [[], ["ground"]], ids=str)
def test_class_maps_take_the_commonest_class_or_one_everywhere(never: list[str]) -> None:
    images = random_labels(3, number=12, shape=(16, 16))
    for true in images.truths:  # the left half is always soil
        true[:, :, :8], true[1, :, :8] = 0, 1
    run = run_of(LABELS, predict={"never": never})
    found = constants.measure(held_out_of(images, run), np.arange(12))
    assert found.described()["all_empty"] is None

    def score(label: np.ndarray) -> float:
        maps = [np.where(true[0] == IGNORE, IGNORE, true.argmax(0)).astype(np.uint8) for true in images.truths]
        return float(mean_iou(np.sum([confusion(label.astype(np.uint8), one, 4) for one in maps], axis=0)))

    allowed = [1, 2, 3] if never else [0, 1, 2, 3]
    everywhere = max(score(np.full((16, 16), number)) for number in allowed)
    frequency = np.mean([true == 1 for true in images.truths], axis=0)
    by_place = score(np.array(allowed)[frequency[allowed].argmax(0)])
    assert found.mean_mask.score == pytest.approx(max(everywhere, by_place), abs=0.02)
    assert by_place > everywhere and found.mean_mask.name == "the most frequent class of each position"


def test_several_classes_are_cut_apart() -> None:
    images = random_images(1, classes=3, number=15, shape=(64, 64), ignored=False)
    found = measured(images, classes=["a", "b", "c"], submission={"label": "class"})
    alone = [measured(images.of_class(index)).mean_mask.score for index in range(3)]
    assert found.mean_mask.score == pytest.approx(np.mean(alone))
