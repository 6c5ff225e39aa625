"""A list that users may edit, written by a process that is killed before its manifest, is no edited list."""

import shutil
from typing import Any

import pytest
from conftest import Tiny

from pipeline.core import editable, freshness
from pipeline.core.driver import Stage


@pytest.mark.parametrize(("stage", "file"), [("clean", "work/tiny/outliers.csv"), ("split", "folds/tiny.csv")])
def test_a_kill_before_the_manifest_leaves_no_list_that_looks_edited(
    stage: str, file: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = ("decode", "clean", "split")
    folders = (tiny.root / "folds", tiny.root / "work" / "tiny")
    tiny.run(*stages)
    expected = {path: path.read_bytes() for folder in folders for path in folder.rglob("*.csv")}
    expected |= {path: path.read_bytes() for path in folders[0].rglob("*.audit.json")}
    for folder in folders:
        shutil.rmtree(folder)
    record = freshness.record

    def killed(step: freshness.Step, *arguments: Any, **options: Any) -> None:
        if tiny.root / file in step.outputs:
            raise KeyboardInterrupt
        record(step, *arguments, **options)

    monkeypatch.setattr(freshness, "record", killed)
    with pytest.raises(KeyboardInterrupt):
        tiny.run(*stages)
    assert (tiny.root / file).exists()
    monkeypatch.setattr(freshness, "record", record)
    run = tiny.run(*stages)
    (step,) = [step for step in Stage(stage).module.steps(run) if tiny.root / file in step.outputs]
    assert not editable.is_user_edited(step, tiny.root / file)
    assert {path: path.read_bytes() for path in expected} == expected
    assert not list(tiny.root.rglob("*.announced"))
    (tiny.root / file).write_bytes(expected[tiny.root / file] + b"\n")
    assert editable.is_user_edited(step, tiny.root / file)
