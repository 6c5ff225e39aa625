"""Experiment trackers behind Lightning's loggers; none of them is installed where the tests run."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Tiny

from pipeline.train import trackers


def test_trackio_records_settings_and_metrics(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[Any] = []

    def init(project: str, title: str, config: dict[str, Any], resume: str, embed: bool) -> Any:
        print("* Trackio project initialized")
        told.append((project, title, resume, embed, config["train.epochs"], config["train.ema"]))
        return SimpleNamespace(log=lambda metrics, step: told.append((metrics, step)))

    stand_in = SimpleNamespace(init=init, finish=lambda: told.append("finished"))
    monkeypatch.setitem(sys.modules, "trackio", stand_in)
    monkeypatch.delenv("TRACKIO_DIR", raising=False)
    tiny.recipe["train"] = {"epochs": 3, "loggers": ["trackio"]}
    tiny.save()
    run = tiny.run()
    loggers = trackers.trackers(run, run.fold_folder(0))
    assert os.environ["TRACKIO_DIR"] == str(run.competition_folder / "trackio")
    trackers.tell_settings(run, loggers)
    assert told == []  # nothing is begun before there is a figure
    loggers[0].log_metrics({"train/loss": 0.5}, 7)
    loggers[0].finalize("success")
    trackers.finish(loggers)
    assert told == [("tiny", "small/fold_0", "allow", False, 3, "null"), ({"train/loss": 0.5}, 7), "finished"]
    assert capsys.readouterr().out == ""
    monkeypatch.delenv("TRACKIO_DIR")


def test_a_tracker_of_another_folder_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace())
    monkeypatch.setenv("TRACKIO_DIR", "elsewhere")
    trackers.TrackioLogger("project", "run", tmp_path)
    assert os.environ["TRACKIO_DIR"] == "elsewhere"
