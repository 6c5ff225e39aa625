"""A competition's metric as a Python file: run as it is for every final number, and its faults in one sentence each."""

import json
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import SHAPE, TEST_IDS, Tiny
from evidence import few_partitions, held_out_of, random_labels, run_of
from typer.testing import CliRunner

from pipeline import stages
from pipeline.__main__ import app
from pipeline.core import driver
from pipeline.core.config.competition import Competition
from pipeline.core.config.raw_layouts import RleCsv, load_competition
from pipeline.core.config.settings import validate
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json
from pipeline.core.run import Run, open_run
from pipeline.encode import submission
from pipeline.kaggle.bundle import project
from pipeline.masks import rle
from pipeline.masks.metrics import final_metric, named
from pipeline.masks.statistics import blank
from pipeline.predictions import metric_tables, published
from pipeline.predictions.published import Draws, Published, Table
from pipeline.report.compare import compare
from pipeline.tune import final_scores, nearest
from pipeline.tune import stage as tune
from pipeline.tune.held_out import held_out

PIXELS = """
import numpy as np
import pandas as pd


class ParticipantVisibleError(Exception):
    pass


def pixels(text):
    if not isinstance(text, str):
        return set()
    numbers = list(map(int, text.split()))
    return {one for start, length in zip(numbers[::2], numbers[1::2]) for one in range(start, start + length)}
"""
F_HALF = (
    PIXELS
    + '''

def score(solution, submission, row_id_column_name, beta=0.5):
    """All pixels together; it writes into its tables, and prints, as published ones do."""
    print("scoring", len(solution))
    del solution["patient"]
    if (solution.pop(row_id_column_name) != submission.pop(row_id_column_name)).any():
        raise ParticipantVisibleError("ids do not match")
    both = predicted = true = 0
    for a, b in zip(solution["mask"], submission["mask"]):
        a, b = pixels(a), pixels(b)
        both, predicted, true = both + len(a & b), predicted + len(b), true + len(a)
    return (1 + beta**2) * both / (predicted + beta**2 * true) if predicted + true else 1.0
'''
)
IOU = (
    PIXELS
    + """

def score(solution, submission, row_id_column_name):
    found = []
    for a, b in zip(map(pixels, solution["mask"]), map(pixels, submission["mask"])):
        found.append(len(a & b) / len(a | b) if a | b else 1.0)
    return np.mean(found)
"""
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Predictions made elsewhere, through every stage, by a published metric that says nothing of what to tune by."""
    root = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPELINE_ROOT", str(root))
        patch.setenv("PIPELINE_INPUT", str(root / "input"))
        patch.setattr(final_scores, "DRAWS", 60)
        tiny, rng = Tiny(root), np.random.default_rng(1)
        (tiny.input / "metric.py").write_text(F_HALF)
        tiny.settings |= {"metric": {"file": "metric.py", "seconds": 10_000}, "group": "patient"}
        tiny.settings["test"] = {"images": "test/{id}.tif", "masks": "test.csv", "evaluate": True}
        truth = {name: np.roll(tiny.masks["a02"], 3 * number, 0) for number, name in enumerate(TEST_IDS)}
        listed = [{"id": name, "mask": rle.encode(mask), "patient": f"q{name}"} for name, mask in truth.items()]
        pd.DataFrame(listed).to_csv(tiny.input / "test.csv", index=False)
        for part, masks in (("oof", tiny.masks), ("test", truth)):
            blurred = []
            for mask in masks.values():
                noise = cv2.GaussianBlur(rng.standard_normal(SHAPE).astype(np.float32), (0, 0), 3)
                moved = np.roll(mask.astype(np.float32), 2, 1) * 0.9 + 0.05 + 0.6 * noise
                blurred.append(np.clip(cv2.GaussianBlur(moved, (0, 0), 2), 0, 1)[None])
            np.save(root / f"{part}.npy", np.stack(blurred))
            (root / f"{part}.csv").write_text("\n".join(["image_id", *masks]) + "\n")
        tiny.recipe = {"competition": str(tiny.competition_path), "arrays": {"oof": "oof.npy", "test": "test.npy"}}
        tiny.save()
        run = open_run(str(tiny.recipe_path))
        for stage in stages.STAGES:
            driver.run_stage(run, stage)
        yield run


def test_every_final_number_is_the_functions(finished: Run) -> None:
    result = read_json(finished.postprocess)
    assert result["metric"] == "metric.py"
    told, by = result["published"], result["tuned_by"]
    assert (told["tuned_by"], told["chosen"], by["metric"]) == (
        *["f_beta(beta=0.5, over=data_set)", True],
        told["tuned_by"],
    )
    assert told["differences"][told["tuned_by"]] == pytest.approx(0, abs=1e-12)
    # of this metric the built-in one says the same, to rounding
    for name in ("score", "untuned", "nested", "nested_spread", "score_by_fold"):
        assert result[name] == pytest.approx(by[name], rel=1e-12), name
    assert result["rows"]["raw"]["score"] == pytest.approx(by["score"])
    assert result["constants"] == {"all_empty": 0.0, "mean_mask": None}
    assert result["scores"]["fold_model"]["score"] == result["nested"]
    for name in ("interval_95", "nested_interval_95"):  # 2000 draws, and 60
        assert np.abs(np.subtract(result[name], by[name])).max() < 0.02, name
    assert told["draws"] == 60
    assert [one["level"] for one in result["reasons"] if one["kind"] == "tuned by another metric"] == ["note"]


def test_the_record_the_report_and_evaluate_say_it(finished: Run) -> None:
    result, test = read_json(finished.postprocess), read_json(finished.folder / "test.json")
    expected = read_json(finished.record)["expect"]
    assert (expected["metric"], expected["score"]) == ("metric.py", result["score"])
    page = finished.report.read_text(encoding="utf-8")
    assert "metric.py is the competition's own function" in page and "Mean score differences" in page
    assert test["metric"] == "metric.py" and test["tuned_by"]["metric"] == result["tuned_by"]["metric"]
    assert test["score"] == pytest.approx(test["tuned_by"]["score"], rel=1e-12)
    words = [
        "score",
        finished.submission,
        finished.input / "test.csv",
        "--competition",
        finished.recipe.competition,
        "--json",
    ]
    done = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert json.loads(done.stdout) == {"score": test["score"], "rows": 4, "metric": "metric.py"}
    (row,) = compare([finished.name])
    assert (row.metric, row.score) == ("metric.py", result["score"])


def test_a_bundle_names_the_built_in_metric(finished: Run, tmp_path: Path) -> None:
    project.write_project(finished, tmp_path)
    loaded = load_competition(str(tmp_path / "competition.yaml"))
    assert (loaded.metric, loaded.metric_file) == (read_json(finished.postprocess)["tuned_by"]["metric"], None)


def test_a_changed_file_is_tuned_and_evaluated_again(finished: Run) -> None:
    path = finished.input / "metric.py"
    for stage in ("tune", "evaluate"):
        assert not driver.unfinished(finished, stage)
    path.write_text(F_HALF + "\n# changed\n")
    for stage in ("tune", "evaluate"):
        (state,) = driver.unfinished(finished, stage)
        assert "metric.py" in state.reasons[0].text
    path.write_text(F_HALF)


@pytest.mark.parametrize(
    ("code", "tune", "expected", "chosen"),
    [(IOU, None, "iou", True), (F_HALF, "dice", "dice", False)],
)
def test_tuning_goes_by_the_nearest_metric_or_by_what_the_yaml_names(
    finished: Run, code: str, tune: str | None, expected: str, chosen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (finished.input / "other.py").write_text(code)
    settings = finished.competition.metric_file
    assert settings is not None
    file = settings.model_copy(update={"file": "other.py", "tune": tune})
    competition = finished.competition.model_copy(update={"metric_file": file, "metric": tune or "dice"})
    held = held_out(replace(finished, competition=competition))
    changed, found = nearest.nearest(held, np.arange(len(held.rows)))
    assert (found.tuned_by, found.chosen, changed.run.competition.metric) == (expected, chosen, expected)
    assert (found.differences[expected] < 1e-9) == chosen
    assert found.probes == len(nearest.PROBES)


LABELS = """
import numpy as np


def score(solution, submission, row_id_column_name):
    true, predicted = (one.drop(columns=row_id_column_name).to_numpy() for one in (solution, submission))
    pairs = [(true == label, predicted == label) for label in range(3)]
    return np.mean([(a & b).sum() / max(1, (a | b).sum()) for a, b in pairs])
"""


def test_class_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The function counts ignored pixels, which it does not know of, as background."""
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    monkeypatch.setattr(final_scores, "DRAWS", 30)
    few_partitions(monkeypatch, 2)
    (tmp_path / "metric.py").write_text(LABELS)
    told = {"kind": "multiclass", "classes": ["zero", "one", "two"], "submission": {"id": "id", "format": "labels"}}
    run = run_of({**told, "metric": {"file": str(tmp_path / "metric.py"), "seconds": 10_000}})
    images = random_labels(0, classes=3, number=12, shape=(12, 14))
    held = held_out_of(images, run)
    monkeypatch.setattr(tune, "held_out", lambda run: held)
    monkeypatch.setattr(tune, "_mask_statistics", lambda run: blank(["thing"], False, []))
    list(tune.execute(run, []))
    result = read_json(run.postprocess)
    assert (result["metric"], result["tuned_by"]["metric"], result["search"]) == ("metric.py", "mean_iou", "confusion")
    assert result["published"]["draws"] == 30 and result["constants"]["all_empty"] is None
    for name in ("score", "untuned", "nested"):
        assert result[name] == pytest.approx(result["tuned_by"][name], abs=0.1)
    assert result["nested_interval_95"][0] < result["nested"] < result["nested_interval_95"][1]


# --- what cannot be --------------------------------------------------------------------------------------------------

FRAME = pd.DataFrame({"id": ["a", "b"], "mask": ["1 1", "2 2"]})
SETTINGS: dict[str, Any] = {
    "name": "tiny",
    "title": "Tiny",
    "classes": ["thing"],
    "train": {"images": "train/{id}.tif", "masks": "train.csv"},
    "test": {"images": "test/{id}.tif"},
    "columns": {"id": "id", "rle": "mask"},
}


def competition_of(folder: Path, code: str | None, **metric: Any) -> Competition:
    path = folder / "metric.py"
    if code is not None:
        path.write_text(textwrap.dedent(code))
    return validate(RleCsv, SETTINGS | {"metric": {"file": str(path), **metric}}, "competition tiny")


@pytest.mark.parametrize(
    ("code", "metric", "sentence"),
    [
        (None, {}, "metric.py does not exist: put the competition's published metric there"),
        ("def score(:\n", {}, "metric.py line 1: SyntaxError: invalid syntax"),
        ("x = 1\ny = x / 0\n", {}, "metric.py line 2: ZeroDivisionError: division by zero"),
        ("import kaggle_metric_utilities\n", {}, "imports kaggle_metric_utilities, which exists only on Kaggle's"),
        ("import no_such_thing\n", {}, "line 1 imports no_such_thing, which is not installed"),
        ("def points(a, b, c):\n    return 1\n", {}, "has no function `score`; it has points: name the"),
        ("def score(solution):\n    return 1\n", {}, "line 1: score(solution) cannot be called with (solution"),
        ("def score(a, b, c, tolerance):\n    return 1\n", {}, "a required argument: 'tolerance'. Give its other"),
        ("def score(a, b, c):\n    return 1\n", {"arguments": {"k": 1}}, "unexpected keyword argument 'k'"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used(code: str | None, metric: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(PipelineError) as caught:
        published.load(competition_of(tmp_path, code, **metric))
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.glob("**/__pycache__"))


@pytest.mark.parametrize(
    ("body", "metric", "sentence"),
    [
        ("raise ParticipantVisibleError('Pixels must\\nnot overlap.')", {},
         "metric.py line 6: score raised ParticipantVisibleError: Pixels must not overlap."),
        ("return solution['shape'].sum()", {}, "metric.py line 6: score raised KeyError: 'shape'."),
        ("raise SystemExit(3)", {}, "line 6: score raised SystemExit: 3."),
        ("return float('nan')", {}, "metric.py: score returned nan for 2 rows; expected a number."),
        ("return None", {}, "score returned None for 2 rows; expected a number."),
        ("return True", {}, "score returned True for 2 rows; expected a number."),
        ("return '0.5'", {}, "score returned '0.5' for 2 rows; expected a number."),
        ("return 10**400", {}, "for 2 rows; expected a number."),
        ("return 1", {"row_id": "row"}, "metric.row_id is row, but the solution has the columns id, mask."),
    ],
)  # fmt: skip
def test_a_function_that_fails(body: str, metric: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    code = "class ParticipantVisibleError(Exception):\n    pass\n\n\ndef score(solution, submission, row_id):\n    "
    code += f"{body}\n"
    function = published.load(competition_of(tmp_path, code, **metric))
    with pytest.raises(PipelineError) as caught:
        function.score(FRAME, FRAME)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("metric", "sentence"),
    [
        ({"file": "metric.py", "functoin": "x"}, "metric: unknown key `functoin`; did you mean `function`?"),
        ({"file": "metric.py", "tune": "dise"}, "there is no metric `dise`; did you mean `dice`?"),
        ({"file": "metric.py", "better": "best"}, "metric: `better` is 'best'"),
        ({"file": "metric.py", "tune": "mean_iou"}, "metric mean_iou does not fit kind binary"),
    ],
)
def test_settings_that_cannot_be(metric: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PipelineError) as caught:
        validate(RleCsv, SETTINGS | {"metric": metric}, "competition tiny")
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"windows": {}}, "metric.file scores whole images, not windows"),
        (
            {"submission": {"columns": {"confidence": "{score}"}}},
            "without {score}, not mask images or COCO results",
        ),
        ({"submission": {"format": "images", "image": "{id}.tif"}}, "use a built-in metric"),
    ],
)
def test_submissions_that_no_function_scores(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PipelineError) as caught:
        validate(RleCsv, SETTINGS | {"metric": {"file": "metric.py"}} | settings, "competition tiny")
    assert sentence in str(caught.value)


def test_settings_come_back_from_the_record(tmp_path: Path) -> None:
    competition = competition_of(tmp_path, F_HALF, better="lower", tune="iou")
    assert (competition.metric, competition.scored_by) == ("iou", "metric.py")
    assert final_metric(competition).sign == -1 and named("iou").sign == 1
    again = validate(RleCsv, competition.model_dump(mode="json") | {"name": "tiny"}, "competition tiny")
    assert again == competition


# --- resampled groups ------------------------------------------------------------------------------------------------


def table_of(ids: list[str], groups: list[str], values: list[Any]) -> Table:
    frame = pd.DataFrame({"id": ids, "group": groups, "value": values})
    return Table(frame, np.array(ids), np.array(groups), ("id", "group"))


def drawn(function: Any, draws: int = 300, seconds: float = 60, groups: int = 6) -> Draws:
    ids = [f"g{group}_slice_{number}" for group in range(groups) for number in range(3)]
    names = [one.partition("_")[0] for one in ids]
    solution, own = (table_of(ids, names, values) for values in ([1.0] * len(ids), list(np.arange(len(ids)) / 18)))
    metric = Published(Path("metric.py"), function, "score", "id", {}, 1)
    return published.resampled(metric, solution, lambda number: [own], draws, seconds)


def by_id(solution: pd.DataFrame, submission: pd.DataFrame, row_id: str) -> float:
    """Joined by id, then the mean over groups, whose names are taken from the ids."""
    both = solution.merge(submission, on=row_id, suffixes=("", "_there"), validate="one_to_one")
    return float(both.groupby(both[row_id].str.split("_slice_").str[0])["value_there"].mean().mean())


def test_groups_are_drawn_whole_and_copies_are_groups_of_their_own() -> None:
    found = drawn(by_id, 100)
    assert (found.reason, found.scores.shape) == ("", (100, 1))
    means = (np.arange(6) * 3 + 1) / 18
    assert found.scores.std() == pytest.approx(means.std() / 6**0.5, rel=0.2)
    assert found.scores.mean() == pytest.approx(means.mean(), abs=0.03)
    low, high = found.interval(0) or (0, 0)
    assert low < means.mean() < high


def test_no_interval_where_rows_of_other_ids_score_otherwise() -> None:
    def first(solution: pd.DataFrame, submission: pd.DataFrame, row_id: str) -> float:
        return float(len(set(submission[row_id])))

    def known(solution: pd.DataFrame, submission: pd.DataFrame, row_id: str) -> float:
        if submission[row_id].str.contains("copy").any():
            raise ValueError("strange id")
        return 1.0

    assert "with every group twice the score is 36, with every group once 18" in drawn(first).reason
    assert (
        "the metric cannot score groups that are drawn twice" in drawn(known).reason
        and "strange id" in drawn(known).reason
    )
    assert drawn(by_id, groups=1).reason == "all images belong to one group"
    assert drawn(by_id, groups=1).interval(0) is None


def test_a_slow_function_is_called_as_often_as_its_time_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def slow(solution: pd.DataFrame, submission: pd.DataFrame, row_id: str) -> float:
        calls.append(len(solution))  # a second for every 18 rows
        return 1.0

    monkeypatch.setattr(published.time, "perf_counter", lambda: sum(calls) / 18)
    few = drawn(slow, seconds=50)
    assert (len(few.scores), few.reason) == (50, "metric.seconds allowed 50 of 300 draws")
    assert sum(calls) / 18 == 3 + 50
    assert drawn(slow, seconds=15).reason == "20 draws take 20 s, and metric.seconds leaves 15 s for them"


# --- rows as encode writes them --------------------------------------------------------------------------------------

INSTANCES_OF_CLASSES = {
    "classes": ["one", "two"],
    "columns": {"id": "id", "rle": "mask", "label": "class"},
    "submission": {"rows": "instance"},
}


@pytest.mark.parametrize(
    ("settings", "sample"),
    [
        ({}, ""),
        ({"rle": {"order": "row", "base": 0, "empty": "-"}}, ""),
        ({"submission": {"rows": "instance"}}, ""),
        ({"classes": ["one", "two"], "columns": {"id": "id", "rle": "mask", "label": "class"}}, ""),
        ({"classes": ["one", "two"], "columns": {"id": "id", "rle": "mask", "pattern": "{id}_{label}"}}, ""),
        ({"submission": {"cell": "{rle}"}, "rle": {"several": ";", "as_json": "list", "empty": "authentic"}}, ""),
        ({"classes": ["one", "two"], "columns": {"id": "id", "rle": "mask", "label": "class"},
          "submission": {"cell": "{class} {rle}"}, "rle": {"several": ";"}}, ""),
        ({"submission": {"columns": {"height": "{height:04}", "Usage": "Public"}}}, ""),
        ({"submission": {"columns": {"id": "{id}-{width}"}}}, ""),
        (INSTANCES_OF_CLASSES, ""),
        # a placeholder: every image has a row, and not every class
        (INSTANCES_OF_CLASSES, "id,class,mask\na,one,\nb,one,\nc,one,\n"),
    ],
)  # fmt: skip
def test_published_metrics_see_what_encode_writes(
    settings: dict[str, Any], sample: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPELINE_INPUT", str(tmp_path))
    settings = SETTINGS | {"metric": "dice"} | settings
    if sample:
        (tmp_path / "tiny").mkdir()
        (tmp_path / "tiny" / "sample.csv").write_text(sample)
        settings["sample_submission"] = "sample.csv"
    competition = validate(RleCsv, settings, "competition tiny")
    masks = (np.random.default_rng(0).random((3, len(competition.classes), 6, 7)) < 0.3).astype(np.uint8)
    masks[1] = masks[2, :1] = 0
    images = pd.DataFrame({"image_id": ["a", "b", "c"], "subset": "test", "height": 6, "width": 7})
    want = submission.expected_of(competition, tmp_path / "tiny", images)
    written: dict[Any, list[str]] = {}
    for name, own in zip(images["image_id"], masks, strict=True):
        written |= submission.texts_of(name, own, want)
    submission.write(tmp_path / "written.csv", written, want)
    tables = metric_tables.metric_tables(images.assign(subset="train"), np.array(["g"] * 3), competition)
    found = tables.submission(tables.texts(*pair) for pair in zip(images["image_id"], masks, strict=True))
    pd.testing.assert_frame_equal(found.frame, pd.read_csv(tmp_path / "written.csv"))
    assert all(text.startswith(one) for text, one in zip(found.frame["id"], found.images, strict=True))


def test_class_maps_of_training_images_leave_ignored_pixels_to_the_background(tmp_path: Path) -> None:
    told = {
        "kind": "multiclass",
        "classes": ["zero", "one"],
        "metric": "mean_iou",
        "submission": {"id": "id", "format": "labels"},
    }
    competition = run_of(told).competition
    row = {"image_id": "a", "height": 1, "width": 3, "rle_zero": "1 1", "rle_one": "2 2", "ignore": "3 1"}
    tables = metric_tables.metric_tables(pd.DataFrame([row]), np.array(["g"]), competition)
    found = tables.submission([tables.true_texts(pd.Series(row))])
    assert found.frame.to_dict("list") == {"id": ["a"], "0": [0], "1": [1], "2": [0]}


IMAGES = pd.DataFrame(
    {"image_id": ["a", "b"], "height": 6, "width": 7, "extra_patient": ["p", "q"], "extra_age": ["30", "40"]}
)


def test_the_solution_has_the_columns_that_the_yaml_makes(tmp_path: Path) -> None:
    competition = competition_of(tmp_path, F_HALF, solution={"shape": "[{height}, {width}]", "unit": "{group}/{age}"})
    tables = metric_tables.metric_tables(IMAGES, np.array(["p", "q"]), competition)
    found = tables.solution([{("a", None): ["1 2"]}, {("b", None): [""]}])
    assert found.frame.to_dict("list") == {
        **{"id": ["a", "b"], "mask": ["1 2", found.frame["mask"][1]], "patient": ["p", "q"], "age": [30, 40]},
        **{"shape": ["[6, 7]"] * 2, "unit": ["p/30", "q/40"]},
    }
    assert np.isnan(found.frame["mask"][1]) and set(found.named) == {"id", "unit", "patient"}
    twice = found.drawn(["p", "q"], np.array([2, 0]))
    assert twice["unit"].tolist() == ["p/30", "p-copy1/30"] and twice["id"].tolist() == ["a", "a-copy1"]


@pytest.mark.parametrize("name", ["weight", "class"])
def test_a_column_of_the_solution_that_cannot_be_made(name: str, tmp_path: Path) -> None:
    competition = competition_of(tmp_path, F_HALF, solution={"unit": f"{{{name}}}"})
    with pytest.raises(PipelineError) as caught:
        metric_tables.columns_of(IMAGES, np.array(["p", "q"]), competition)
    assert f"metric.solution.unit names {{{name}}}, which the images do not have; they have {{age}}" in str(
        caught.value
    )


def test_instances_share_a_cell_where_the_yaml_says_so(tmp_path: Path) -> None:
    changed = SETTINGS | {
        "submission": {"cell": "{rle}"},
        "rle": {"several": ";", "as_json": "list", "empty": "authentic"},
        "metric": "instance_f1",
    }
    images = pd.DataFrame({"image_id": ["a", "b"], "height": 4, "width": 6})
    tables = metric_tables.metric_tables(images, np.array(["g", "g"]), validate(RleCsv, changed, "competition tiny"))
    masks = np.zeros((2, 1, 4, 6), np.uint8)
    masks[1, 0, :2, 0] = masks[1, 0, 3, 5] = 1
    found = tables.submission(tables.texts(*pair) for pair in zip("ab", masks, strict=True))
    assert found.frame["mask"].tolist() == ["authentic", "[1, 2];[24, 1]"]
