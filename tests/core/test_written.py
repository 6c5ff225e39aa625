"""Files that stages wrote are read whole, or refused in one sentence."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import written
from conftest import Tiny

from pipeline.core.errors import PipelineError
from pipeline.core.results import read_scored, read_submission, read_test_scores, read_tuned
from pipeline.core.run import Run, open_run
from pipeline.core.trainings import epochs_of, history_of, read_training
from pipeline.core.verdict import judge
from pipeline.core.written import if_sound
from pipeline.status import summary


@pytest.fixture
def run(tiny: Tiny) -> Run:
    opened = open_run(str(tiny.recipe_path))
    put(opened.postprocess, written.RESULT)
    put(opened.submission, "")
    put(opened.record, written.record_of(written.RESULT, []))
    return opened


def put(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def refused(run: Run, content: Any) -> str:
    put(run.postprocess, content)
    with pytest.raises(PipelineError) as caught:
        read_tuned(run)
    return str(caught.value)


def test_sound_files_are_returned_as_they_are(run: Run) -> None:
    assert read_tuned(run) == read_scored(run.folder) == written.RESULT
    assert read_submission(run) == written.record_of(written.RESULT, [])
    put(run.folder / "fold.json", written.FOLD)
    assert read_training(run.folder / "fold.json") == written.FOLD
    alone = {"interval_95": None, "nested_interval_95": None}
    put(run.postprocess, written.RESULT | alone)
    assert read_tuned(run)["interval_95"] is None


@pytest.mark.parametrize(("content", "fault"), [
    ("", "it is not JSON"), ("{", "it is not JSON"), ("\x00", "it is not JSON"), ("[" * 100_000, "it is not JSON"),
    ("[1]", "it holds [1], and not an object {…}"), ("null", "it holds null, and not an object {…}"),
    ("{}", "it lacks metric"),
])  # fmt: skip
def test_what_is_no_object(run: Run, content: str, fault: str) -> None:
    said = f"work/tiny/small/postprocess.json is damaged ({fault}): restore the file, or run the tune stage again"
    assert refused(run, content) == f"{said} with --force."
    assert if_sound(read_tuned, run) is None


RULE = written.RESULT["rules"]["thing"]


@pytest.mark.parametrize(("change", "fault"), [
    ({"score": float("nan")}, "score: input should be a finite number, not 'nan'"),
    ({"nested": float("inf")}, "nested: input should be a finite number"),
    ({"images": -1}, "images: input should be greater than or equal to 0, not '-1'"),
    ({"shares_of_empty": [[-1, 0.5]]}, "shares_of_empty.0.0: input should be greater than or equal to 0"),
    ({"calibration": {"thing": {"0": {"slope": 1e30, "intercept": 0.0, "images": 3, "own_slope": 1.0,
                                      "standard_error": None}}}}, "calibration.thing.0.slope: input should be less"),
    ({"rules": {"thing": RULE | {"threshold": 0}}}, "rules.thing.threshold: input should be greater than or equal"),
    ({"rules": {"thing": RULE | {"min_area": -5}}}, "rules.thing.min_area: input should be greater than or equal to 0"),
    ({"rules": {"thing": RULE | {"separation": {"source": "x", "level": 1, "min_seed": 0}}}}, "separation.source: "),
])  # fmt: skip
def test_values_out_of_range(run: Run, change: dict[str, Any], fault: str) -> None:
    assert fault in refused(run, written.RESULT | change)


def test_a_rule_that_is_edited_within_its_range_is_used(run: Run) -> None:
    put(run.postprocess, written.RESULT | {"rules": {"thing": RULE | {"threshold": 99, "min_area": 40}}})
    assert read_tuned(run)["rules"]["thing"]["threshold"] == 99


def keys(part: Mapping[str, Any], before: str = "") -> list[str]:
    """The dotted keys of an object, those of its parts too."""
    inner = [one for key, value in part.items() if isinstance(value, dict) for one in keys(value, f"{before}{key}.")]
    return [*(before + key for key in part), *inner]


def without(whole: dict[str, Any], key: str) -> dict[str, Any]:
    first, _, rest = key.partition(".")
    if rest:
        return whole | {first: without(whole[first], rest)}
    return {name: value for name, value in whole.items() if name != first}


def test_every_key_that_tune_writes_is_asked_for_or_not_needed(run: Run) -> None:
    spared = []
    for key in keys(written.RESULT):
        put(run.postprocess, without(written.RESULT, key))
        if if_sound(read_tuned, run):
            spared.append(key)
        else:
            assert refused(run, without(written.RESULT, key)).partition(" (")[2]
    assert {one.partition(".")[0] for one in spared} <= {"scores", "rows", "rules", "score_by_fold", "reasons"}
    assert not {"scores", "interval_95", "rules", "oof", "rows", "steps"} & {*spared}


def test_what_is_of_another_type_or_of_other_classes(run: Run) -> None:
    assert "scores.fold_model.score: input should be a valid number, not 'x'" in refused(
        run, written.RESULT | {"scores": written.RESULT["scores"] | {"fold_model": {"score": "x"}}}
    )
    assert "(it lacks rules.thing.threshold)" in refused(run, written.RESULT | {"rules": {"thing": {}}})
    other = {"rules": {"other": written.RESULT["rules"]["thing"]}}
    assert "(it has the classes other, and the competition has thing)" in refused(run, written.RESULT | other)


def test_a_damaged_record_counts_as_missing(run: Run) -> None:
    for content in ("", "[]", "{}", json.dumps({"postprocess": written.RESULT, "reasons": [1]})):
        put(run.record, content)
        found = judge(run)
        assert found and not found.submitted
        with pytest.raises(PipelineError, match=r"submissions/small.json is damaged .* encode stage again"):
            read_submission(run)
    put(run.folder / "test.json", "{")
    assert if_sound(read_test_scores, run) is None


def test_the_end_of_a_run_says_that_the_verdict_is_not_known(run: Run) -> None:
    put(run.postprocess, "{")
    (_, said, *_) = summary(run, 1)
    assert said.startswith("  verdict         not known: work/tiny/small/postprocess.json is damaged")


@pytest.mark.parametrize("content", ["", "{", "{}", "[1]", "null", "text"])
def test_epochs_of_a_damaged_history(tmp_path: Path, content: str) -> None:
    put(tmp_path / "history.json", content)
    for read in (epochs_of, history_of):
        with pytest.raises(PipelineError, match=r"history.json is damaged .* train again with --force"):
            read(tmp_path / "history.json")
    assert epochs_of(tmp_path / "none.json") == [] and len(history_of(tmp_path / "none.json")) == 0


def test_a_history_may_hold_only_numbers(tmp_path: Path) -> None:
    rows = [("0", 1.5, ""), ("x", 2, ""), (1, "y", "empty")]
    table = [dict(zip(("epoch", "valid/loss", "collapsed"), row, strict=True)) for row in rows]
    put(tmp_path / "history.json", json.dumps(table))
    found = history_of(tmp_path / "history.json")
    assert list(found) == ["epoch", "valid/loss"] and found["epoch"].tolist() == [0, 1]
    assert found["valid/loss"].isna().tolist() == [False, True]
