"""benchmarks.portfolio, with a stand-in for the runs: what it runs, what it skips, and its tables."""

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks import portfolio
from pipeline.auto.machine import Machine
from pipeline.core.config.recipe import load_recipe
from pipeline.core.files import write_json

CALLS: list[tuple[str, ...]] = []


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    CALLS.clear()
    monkeypatch.setattr(portfolio, "RESULTS", tmp_path / "portfolio.csv")
    monkeypatch.setattr(portfolio, "call", stand_in)
    monkeypatch.setattr(portfolio, "notebook_rate", lambda size: 20.0)
    monkeypatch.setattr(portfolio, "this_machine", lambda: Machine(cores=2, has_weights=True))
    return tmp_path / "portfolio.csv"


def stand_in(root: Path, *words: str) -> str:
    """A run that writes the record of a submission at once; masks-scratch fails."""
    CALLS.append(words)
    if words[0] == "score":
        return json.dumps({"score": 0.9})
    if "--time" not in words:
        return ""
    if words[1].endswith("/masks-scratch.yaml"):
        raise RuntimeError("out of memory")
    name = words[words.index("--name") + 1]
    nested = 0.8 if "instances" in words[1] else 0.75
    fold = {"images_per_second": 50.0, "compute": {"precision": "bf16"}}
    write_json(root / "work" / "nuclei" / name / "fold_0" / "fold.json", fold)
    record = {
        "postprocess": {"nested": nested, "nested_interval_95": [0.7, 0.9]},
        "code": {"commit": "0123456789", "modified": False},
    }  # fmt: skip
    write_json(root / "submissions" / f"{name}.json", record)
    (root / "submissions" / f"{name}.csv").write_text("")
    return ""


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, str]:
    monkeypatch.setattr(sys, "argv", ["portfolio", *words])
    portfolio.main()
    said = capsys.readouterr()
    return said.out, said.err


def test_recipes_that_fit_are_run_once(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(portfolio.touching, "TRAIN", 10)
    monkeypatch.setattr(portfolio.touching, "TEST", 1)
    words = [str(tmp_path / "runs"), "--on", "nuclei", "tgs-salt", "--minutes", "5"]
    out, err = run(monkeypatch, capsys, *words)
    rows = portfolio.read_results()
    assert rows["recipe"].tolist() == ["instances", "instances-scratch", "masks"]
    assert rows.columns.tolist() == portfolio.COLUMNS
    first: dict[str, Any] = rows.iloc[0].to_dict()
    assert {key: first[key] for key in ("data_set", "minutes", "nested", "test", "auto", "commit")} == {
        "data_set": "nuclei", "minutes": 5, "nested": 0.8, "test": 0.9, "auto": "instances", "commit": "0123456",
    }  # fmt: skip
    assert "| nuclei | 5 | **instances** | instance_precision | 0.8000 [0.7000, 0.9000] | 0.9000 | 50.0 | 2.5 |" in out
    assert (
        "masks-scratch on nuclei: not measured: RuntimeError('out of memory')" in err
        and "tgs-salt: left out, DATA/tgs-salt" in err
    )
    timed = next(call for call in CALLS if "--time" in call)
    path = tmp_path / "runs/nuclei/recipes/instances.yaml"
    assert timed == ("run", str(path), "--name", "nuclei-instances-5m", "--time", "5m")
    recipe = load_recipe(str(path))
    assert (recipe.model.instances, recipe.image.size, recipe.train.batch_size) == ("border", (128, 128), 8)

    CALLS.clear()
    run(monkeypatch, capsys, *words, "--only", "instances", "masks")
    assert CALLS == []
    run(monkeypatch, capsys, *words[:-1], "20", "--only", "instances")
    assert len([call for call in CALLS if "--time" in call]) == 1 and len(pd.read_csv(results)) == 4


def test_nothing_is_measured_yet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--table", "--leave-one-out"):
        assert run(monkeypatch, capsys, option) == ("nothing is measured yet\n", "")


def test_leave_one_out(results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"minutes": 5, "metric": "dice", "low": 0.1, "high": 0.9, "images_per_second": 1, "auto": "masks"}
    for recipe, data_set, nested in (
        ("masks", "a", 0.8), ("tiles", "a", 0.805), ("masks", "b", 0.7), ("tiles", "b", 0.75), ("tiles", "c", 0.6),
        ("masks", "d", 0.5),
    ):  # fmt: skip
        portfolio.append({**row, "recipe": recipe, "data_set": data_set, "nested": nested})
    out, _ = run(monkeypatch, capsys, "--leave-one-out")
    assert out.splitlines()[2:] == [
        "| a | 5 | masks | 0.8000 | tiles | 0.8050 | -0.0050 | yes |",
        "| b | 5 | masks | 0.7000 | tiles | 0.7500 | -0.0500 | no |",
        "| c | 5 | masks | not measured | tiles | 0.6000 |  |  |",
        "| d | 5 | masks | 0.5000 | masks | 0.5000 | +0.0000 | only recipe |",
    ]


def test_data_sets_are_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data/tgs-salt").mkdir(parents=True)
    data_set = portfolio.DATA_SETS["tgs-salt"]
    data_set.prepare(tmp_path / "runs", tmp_path / "data")
    data_set.prepare(tmp_path / "runs", tmp_path / "data")
    assert (tmp_path / "runs/input/tgs-salt").resolve() == tmp_path / "data/tgs-salt"
    monkeypatch.setattr(portfolio, "DRAWN", 3)
    portfolio.DATA_SETS["made-cells"].prepare(tmp_path / "cells", None)
    assert CALLS[-1][:3] == ("make-competition", str(tmp_path / "cells/made-cells"), "--from")
    assert not (tmp_path / "cells/drawn/test").exists()
