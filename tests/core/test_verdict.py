"""What reasons amount to, how a console shows them, and what is next; and which reasons are a run's."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Tiny
from written import RESULT, record_of

from pipeline.core import verdict
from pipeline.core.console import plain
from pipeline.core.run import Run, open_run
from pipeline.core.verdict import Judged, Level, Reason


def reason(level: Level, number: int = 0, command: str = "") -> Reason:
    return Reason(level, f"kind {number}", f"Sentence {number}.", command)


def judged(*reasons: Reason, submitted: bool = True) -> Judged:
    return Judged(verdict.gravest_first(reasons), {}, submitted)


@pytest.fixture
def run(tiny: Tiny) -> Run:
    return open_run(str(tiny.recipe_path))


def put(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def test_the_most_serious_reason_decides_and_comes_first() -> None:
    assert judged().verdict == judged(reason("note")).verdict == "fine"
    found = judged(reason("note", 1), reason("check", 2), reason("check", 3))
    assert found.verdict == "check first" and [one.kind for one in found.reasons] == ["kind 2", "kind 3", "kind 1"]
    assert judged(reason("check"), reason("stop")).verdict == "do not submit"


def test_reasons_on_a_console() -> None:
    long = Reason("check", "long", "word " * 60 + "end.", "a command " * 30)
    shown = list(map(plain, verdict.lines([long, reason("stop", 1, "go on")])))
    assert shown[:3] == ["  stop  Sentence 1.", "        → go on", "  check " + ("word " * 22).rstrip()]
    assert all(len(line) <= 120 for line in shown[:-1]) and shown[-2] == "        " + "word " * 16 + "end."
    assert shown[-1] == "        → " + "a command " * 30  # a command can be copied as it stands
    reasons = [reason("check", 1, "go on"), reason("check", 2, "go on"), reason("note", 3, "a.csv")]
    same = list(map(plain, verdict.lines(reasons)))
    assert same == ["  check Sentence 1.", "        → go on", "  check Sentence 2.", "  note  Sentence 3.",
                    "        → look at a.csv"]  # fmt: skip
    many = list(map(plain, verdict.lines([reason("note", number) for number in range(8)], "the page")))
    assert many[5:] == ["  note  Sentence 5.", "        2 more in the page"]


def test_an_upload_is_suggested_only_if_the_verdict_allows_it(run: Run) -> None:
    note, check, stop = reason("note", 0, "read it"), reason("check", 1, "look well"), reason("stop", 2, "train on")
    silent = reason("check", 3)
    page = "look at work/tiny/small/report.html"
    for reasons, commands in (
        ([], ["upload"]), ([note], ["upload"]), ([note, check], ["look well", "upload"]),
        ([silent, check], ["look well", "upload"]), ([silent, note], [page, "upload"]), ([check, stop], ["train on"]),
    ):  # fmt: skip
        assert verdict.next_steps(run, judged(*reasons), "upload") == commands
    whole = f"python -m pipeline run {run.options[0]}"
    assert verdict.next_steps(run, judged(check, submitted=False), "upload") == ["look well", whole]
    assert verdict.next_steps(run, judged(stop, submitted=False), "upload") == ["train on"]


def test_a_run_is_judged_by_its_submission_or_by_what_was_tuned_since(run: Run) -> None:
    assert verdict.judge(run) is None
    old = {key: value for key, value in RESULT.items() if key != "reasons"}
    put(run.postprocess, old)
    found = verdict.judge(run)  # of a version that wrote no reasons
    assert found and (found.verdict, [one.kind for one in found.reasons]) == ("check first", ["not known"])
    result = old | {"reasons": []}
    put(run.postprocess, result)
    found = verdict.judge(run)
    assert found and (found.verdict, found.submitted, found.reasons) == ("fine", False, [])
    put(run.submission, "")
    put(run.record, record_of(result, verdict.to_json([reason("stop")])))
    found = verdict.judge(run)
    assert found and (found.verdict, found.submitted) == ("do not submit", True)
    put(run.postprocess, result | {"score": 0.6, "reasons": verdict.to_json([reason("check")])})
    found = verdict.judge(run)
    assert found and (found.verdict, found.submitted) == ("check first", False)


def test_constants_by_their_names() -> None:
    assert verdict.constants({}) == {}
    binary = {"constants": {"all_empty": 0.5, "mean_mask": 0.2}}
    assert verdict.constants(binary) == {"an all-empty file": 0.5, "the mean mask": 0.2}
    classes = {"constants": {"all_empty": None, "mean_mask": 0.2}, "class_iou": {}}
    assert verdict.constants(classes) == {"the most frequent class at each pixel": 0.2}
