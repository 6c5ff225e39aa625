"""Charts take the page's colours and show what their tables say; what the report picks of long tables."""

from functools import cache
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from pipeline.core.config.competition import Competition
from pipeline.masks import overlay
from pipeline.report import charts, compare_page, sections
from pipeline.report.axes import Axis, number, share
from pipeline.report.svg import WIDTH, Chart, Dots, Mark, Row, Series

SCORES = pd.DataFrame({"true_area": [0, 0, 4, 40, 400], "score": [1.0, 0.0, 0.2, 0.5, 0.9], "group": list("aabbc")})
HISTORY = pd.DataFrame({"epoch": [0, 1, 2], "train/loss": [3.0, 2, 1], "valid/loss": [3.0, 1, 2],
                        "valid/score": [0.1, 0.3, 0.2]})  # fmt: skip
TRAININGS = {"fold 0": ({"best_epoch": 1}, HISTORY)}
MEASURED = {
    "fold 0": ({"best_epoch": 1}, HISTORY.assign(**{"train/iou": [0.2, 0.5, 0.7], "valid/iou": [0.1, 0.4, 0.3]}))
}
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
        "mean_pixel_values": charts.mean_pixel_values(images.assign(mean=[3.0, 5.0])),
        "loss_curves": charts.loss_curves(TRAININGS),
        "iou_curves": charts.iou_curves(MEASURED),
        "score_curves": charts.score_curves(TRAININGS, "dice"),
        "threshold_curve": charts.threshold_curve(RESULT),
        "area_curve": charts.area_curve(RESULT),
        "score_by_area": charts.score_by_area(SCORES, "dice"),
        "scores_by_area": charts.scores_by_area({"one": SCORES, "two": SCORES}, "dice"),
        "threshold_curves": charts.threshold_curves({"one": RESULT, "two": RESULT}),
        "fold_scores": charts.fold_scores(SCORES.assign(fold=0), RESULT | {"score_by_fold": {"0": 0.5}}, True),
        "intervals": charts.intervals({"one": (0.5, 0.4, 0.6), "two": (0.7, 0.6, 0.8)}, "dice"),
        "score_by_group": charts.score_by_group(SCORES, "dice"),
    }


@pytest.mark.parametrize("name", drawn())
def test_a_chart_takes_the_colour_of_the_text(name: str) -> None:
    element = ElementTree.fromstring(charts.to_svg(drawn()[name]))
    assert element.tag.endswith("svg") and element.get("fill") == "currentColor"
    assert not {one.get("fill") for one in element.iter() if one.tag.endswith("text")} - {None}


def test_the_same_figures_give_the_same_text() -> None:
    assert charts.to_svg(charts.area_curve(RESULT)) == charts.to_svg(charts.area_curve(RESULT))


def test_a_notebook_shows_a_chart_by_itself() -> None:
    assert charts.threshold_curve(RESULT)._repr_svg_().startswith("<svg")


def test_the_kept_epoch_and_the_chosen_threshold_are_marked() -> None:
    chart = charts.score_curves(TRAININGS, "dice")
    (kept,) = [one for one in chart.series if one.shape == "points"]
    assert (list(kept.x), list(kept.y)) == ([2], [0.3])
    (mark,) = charts.threshold_curve(RESULT).marks
    assert (mark.value, mark.name, mark.vertical) == (20, "chosen: 20", True)


def test_iou_of_both_sets_and_of_none_in_earlier_trainings() -> None:
    training, held_out, kept = charts.iou_curves(MEASURED).series
    assert (training.dashed, list(training.y)) == (True, [0.2, 0.5, 0.7])
    assert (list(held_out.y), list(kept.x), list(kept.y)) == ([0.1, 0.4, 0.3], [2], [0.4])
    assert not charts.iou_curves(TRAININGS).series


def test_the_share_of_each_set_by_its_mean_pixel_value() -> None:
    images = pd.DataFrame({"subset": ["train"] * 4 + ["test"] * 2, "mean": [10.0, 10, 10, 40, 40, 40]})
    both = charts.mean_pixel_values(images).series
    assert [(one.name, one.shape, one.y[0], one.y[-1]) for one in both] == [
        ("train", "line", 75, 25), ("test", "line", 0, 100)
    ]  # fmt: skip
    (alone,) = charts.mean_pixel_values(images.assign(mean=7.0).head(4)).series  # all alike, and no test set
    assert alone.shape == "bars" and alone.y.max() == 100
    assert not charts.mean_pixel_values(images.head(0)).series


def test_a_score_that_hardly_changes_looks_flat() -> None:
    flat = RESULT | {"curves": {"nerve": {"min_area": [[0, 0.6], [50, 0.6001]]}}}
    chart = charts.area_curve(flat)
    _, axis = chart._axes(list(chart.series))
    assert charts.LEAST_SPAN <= axis.high - axis.low < 1.1 * charts.LEAST_SPAN
    assert (axis.low + axis.high) / 2 == pytest.approx(0.60005)


def test_the_same_folds_are_highlighted_in_all_charts() -> None:
    keys = [{one.key for one in chart.series} for chart in (
        charts.loss_curves(TRAININGS), charts.score_curves(TRAININGS, "dice"))]  # fmt: skip
    assert keys == [{"fold 0"}, {"fold 0"}]


def test_a_legend_is_never_cut_off() -> None:
    marks = [Mark(0.5, f"the mean of {number} images with an empty mask", False) for number in range(4)]
    element = ElementTree.fromstring(Chart("x", "a", "b", [Series("s" * 200, [1, 2], [1, 2])], marks).svg())
    assert float(element.get("viewBox", "").split()[3]) > 220 + 4 * 18
    for group in (one for one in element.iter() if (one.get("transform") or "").startswith("translate(")):
        for text in (one for one in group if one.tag.endswith("text") and one.get("x") == "28"):
            left = float(group.get("transform", "")[10:].split()[0]) + 28
            assert left + 6.7 * len(text.text or "") < WIDTH
    rows = ElementTree.fromstring(Dots("x", "a", [Row("fold 0", 0.5), Row("y" * 99, 0.5)]).svg())
    names = [one.text for one in rows.iter() if one.get("text-anchor") == "end" and one.tag.endswith("text")]
    assert names[0] == "fold 0" and (names[1] or "").endswith("…")


@pytest.mark.parametrize(
    ("values", "log", "ticks"),
    [
        ([0.0, 1.0], False, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        ([3000, 12000], True, [4000, 6000, 8000, 10000, 12000]),
        ([100, 12000], True, [100, 300, 1000, 3000, 10000]),
        ([0, 1, 512, 4096], True, [0, 1, 10, 100, 1000]),
        ([7, 7], False, [6.8, 7.0, 7.2]),
    ],
)
def test_ticks_are_round_numbers_written_out(values: list[float], log: bool, ticks: list[float]) -> None:
    axis = Axis.over(np.array(values), 0, 100, log, margin=0.0)
    assert axis.ticks(5) == pytest.approx(ticks)
    places = axis.places(ticks)
    assert (np.diff(places) > 0).all() and places[0] >= -1e-9 and places[-1] <= 100 + 1e-9


def test_numbers_and_shares_say_what_they_are() -> None:
    assert [number(one) for one in (0, 0.025, 5000, 2.5e6, 1e-5)] == ["0", "0.025", "5,000", "2.5 M", "1e-05"]
    assert [share(one) for one in (0, 0.00001, 0.0042, 0.123)] == ["none", "under 0.01 %", "0.42 %", "12 %"]


def test_zero_stands_at_the_left_end_of_a_logarithmic_axis() -> None:
    axis = Axis.over(np.array([0, 2, 50]), 0, 100, log=True)
    assert 0 <= axis.at(0) < 5 and 15 < axis.at(2) < 30 and 95 < axis.at(50) <= 100  # not half of it is empty


def test_one_large_mask_does_not_empty_the_histogram() -> None:
    areas = [*range(100, 200), 9000]
    images = pd.DataFrame({"height": 100, "width": 100, "area_nerve": areas})
    chart = charts.mask_areas(images, competition(["nerve"]))
    (bars,) = chart.series
    assert max(bars.x) < 4 and sum(bars.y) == 101 and "the last bar includes" in chart.title


def test_hostile_names_are_escaped() -> None:
    name = "<script>alert(1)</script>\"'&" + "x" * 200
    for drawing in (
        Chart(name, name, name, [Series(name, [1], [1], "cloud", key=name, ids=[name]), Series(name, [1], [1])]),
        Dots(name, name, [Row(name, 0.5, 0.4, 0.6, name)], [Mark(0.5, name)]),
    ):
        assert "<script" not in drawing.svg()
        ElementTree.fromstring(drawing.svg())


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


def test_an_interval_need_not_hold_its_score() -> None:
    (row,) = charts.intervals({"one": (0.5, 0.6, 0.7)}, "dice").rows
    assert (row.low, row.high) == (0.5, 0.7)


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
    (line,) = charts.scores_by_area({"one": scores}, "dice").series
    np.testing.assert_allclose([line.x[:2], line.y[:2]], [[5.5, 15.5], [0.055, 0.155]])


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
