"""Charts take the page's colours and show what their tables say; what the report picks of long tables."""

from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.core.config.competition import Competition
from pipeline.masks import overlay
from pipeline.report import charts, compare_page, sections

SCORES = pd.DataFrame({"true_area": [0, 0, 4, 40, 400], "score": [1.0, 0.0, 0.2, 0.5, 0.9], "group": list("aabbc")})
HISTORY = pd.DataFrame({"epoch": [0, 1, 2], "train/loss": [3.0, 2, 1], "valid/loss": [3.0, 1, 2],
                        "valid/score": [0.1, 0.3, 0.2]})  # fmt: skip
TRAININGS = {"fold 0": ({"best_epoch": 1}, HISTORY)}
RESULT = {
    "metric": "dice",
    "curves": {"nerve": {"threshold": [[10, 0.5], [20, 0.7]], "min_area": [[0, 0.6], [50, 0.7]]}},
    "rules": {"nerve": {"threshold": 20, "min_area": 50}},
}


def competition(classes: list[str], **settings: Any) -> Competition:
    return Competition(name="x", title="X", reader="rle_csv", classes=classes, metric="dice", **settings)


@cache
def drawn() -> dict[str, Any]:
    images = pd.DataFrame({"subset": ["train", "test"], "height": [10, 20], "width": [10, 30], "area_nerve": [0, 60]})
    return {
        "mask_areas": charts.mask_areas(images, competition(["nerve"])),
        "image_sizes": charts.image_sizes(images),
        "loss_curves": charts.loss_curves(TRAININGS),
        "score_curves": charts.score_curves(TRAININGS, "dice"),
        "threshold_curve": charts.threshold_curve(RESULT),
        "area_curve": charts.area_curve(RESULT),
        "score_by_area": charts.score_by_area(SCORES, "dice"),
        "scores_by_area": charts.scores_by_area({"one": SCORES, "two": SCORES}, "dice"),
        "intervals": charts.intervals({"one": (0.5, 0.4, 0.6), "two": (0.7, 0.6, 0.8)}, "dice"),
        "score_by_group": charts.score_by_group(SCORES, "dice"),
    }


@pytest.mark.parametrize("name", drawn())
def test_a_chart_takes_the_colour_of_the_text(name: str) -> None:
    text = charts.to_svg(drawn()[name])
    assert text.startswith("<svg") and "currentColor" in text
    assert "#000000" not in text and "fill: black" not in text


def test_the_same_figures_give_the_same_bytes() -> None:
    assert charts.to_svg(charts.area_curve(RESULT)) == charts.to_svg(charts.area_curve(RESULT))


def test_a_notebook_shows_a_chart_by_itself() -> None:
    assert charts.threshold_curve(RESULT)._repr_svg_().startswith("<svg")  # type: ignore[attr-defined]


def test_the_kept_epoch_and_the_chosen_threshold_are_marked() -> None:
    (axes,) = charts.score_curves(TRAININGS, "dice").axes
    assert [line.get_xydata().tolist() for line in axes.lines if line.get_marker() == "o"] == [[[2, 0.3]]]
    (axes,) = charts.threshold_curve(RESULT).axes
    assert [line.get_xdata() for line in axes.lines if line.get_linestyle() == "--"] == [[20, 20]]


def test_a_score_that_hardly_changes_looks_flat() -> None:
    flat = RESULT | {"curves": {"nerve": {"min_area": [[0, 0.6], [50, 0.6001]]}}}
    (axes,) = charts.area_curve(flat).axes
    low, high = axes.get_ylim()
    assert high - low == pytest.approx(charts.LEAST_SPAN)
    assert (low + high) / 2 == pytest.approx(0.60005)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("areas", "score"), [([], 0.0), ([0, 0], 0.0), ([7, 7], -3.0), ([0, 7], np.nan)])
def test_images_without_a_mask_or_all_alike_are_drawn(areas: list[int], score: float) -> None:
    scores = pd.DataFrame({"true_area": areas, "score": [score] * len(areas), "group": ["$p$"] * len(areas)})
    images = pd.DataFrame({"subset": "train", "height": 10, "width": 10, "area_nerve": areas}, range(len(areas)))
    for chart in (
        charts.score_by_area(scores, "dice"), charts.scores_by_area({"$a$": scores, "b": scores}, "dice"),
        charts.score_by_group(scores, "dice"), charts.mask_areas(images, competition(["nerve"])),
        charts.image_sizes(images), charts.intervals({"$a$": (score, score, score)}, "dice"),
    ):  # fmt: skip
        assert charts.to_svg(chart).startswith("<svg")


@pytest.mark.filterwarnings("error")
def test_an_interval_need_not_hold_its_score() -> None:
    (axes,) = charts.intervals({"one": (0.5, 0.6, 0.7)}, "dice").axes
    assert axes.collections[0].get_segments()[0][:, 0].tolist() == [0.5, 0.7]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("curve", [[], [[0, 0.0]], [[0, np.nan], [5, np.nan]], [[0, -1.0], [5, -1.0]]])
def test_curves_without_a_slope_are_drawn(curve: list[list[float]]) -> None:
    result = RESULT | {"curves": {"nerve": {"threshold": curve, "min_area": curve}, "other": {}}}
    for chart in (charts.threshold_curve(result), charts.area_curve(result)):
        assert charts.to_svg(chart).startswith("<svg")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "history", [pd.DataFrame(), HISTORY.head(0), HISTORY.head(1), HISTORY * np.nan, HISTORY * 0, HISTORY[["epoch"]]]
)
def test_histories_that_say_little_are_drawn(history: pd.DataFrame) -> None:
    for best in (0, 9):
        of = {"fold 0": ({"best_epoch": best}, history)}
        assert charts.to_svg(charts.loss_curves(of)).startswith("<svg")
        assert charts.to_svg(charts.score_curves(of, "dice")).startswith("<svg")


def test_the_mean_of_each_tenth_follows_the_area() -> None:
    scores = pd.DataFrame({"true_area": np.arange(100, 0, -1), "score": np.arange(100, 0, -1) / 100})
    (axes,) = charts.scores_by_area({"one": scores}, "dice").axes
    np.testing.assert_allclose(axes.lines[0].get_xydata()[:2], [[5.5, 0.055], [15.5, 0.155]])


def test_a_page_shows_pictures_from_the_first_to_the_last() -> None:
    rows = pd.DataFrame({"a": range(100)})
    assert sections.evenly(rows, 5)["a"].tolist() == [0, 24, 49, 74, 99]
    assert sections.evenly(rows.head(2), 5)["a"].tolist() == [0, 1]
    assert sections.evenly(rows.head(0), 5).empty


def test_only_settings_that_differ_are_set_side_by_side() -> None:
    settings = {"one": {"a": 1, "b": [1, 2]}, "two": {"a": 1, "b": [1, 3], "c": 0}}
    assert compare_page.differing(settings) == {"b": [[1, 2], [1, 3]], "c": [None, 0]}


def test_pictures_of_truth_prediction_or_both() -> None:
    image, mask = np.full((20, 30, 1), 100, np.uint8), np.zeros((1, 20, 30), np.uint8)
    mask[0, 5:15, 5:15] = 1
    one = competition(["nerve"])
    plain = overlay.drawn(image, None, None, one)
    assert (plain == 100).all()
    for true, predicted, colour in ((mask, None, overlay.TRUE_COLOUR), (None, mask, overlay.PREDICTED_COLOUR)):
        inside = overlay.drawn(image, true, predicted, one)[10, 10]
        assert inside.tolist() == [int(0.65 * 100 + 0.35 * channel) for channel in colour]
    several = SimpleNamespace(classes=["a", "b"], foreground=["a", "b"])
    both = np.concatenate([mask, mask])
    assert overlay.drawn(image, both, None, several).shape == (20, 30, 3)  # type: ignore[arg-type]
    assert overlay.drawn(image, both, both, several).shape == (20, 62, 3)  # type: ignore[arg-type]
