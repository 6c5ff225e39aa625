"""The suite of benchmarks: its table names every benchmark, and one that fails does not stop the others."""

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import REPOSITORY

from benchmarks import __main__ as command
from benchmarks import step_profile
from benchmarks.suite import ELSEWHERE, SUITE, Benchmark, Need
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json


def test_every_benchmark_is_in_the_table_or_said_to_be_elsewhere() -> None:
    folder = REPOSITORY / "benchmarks"
    modules = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__main__.py")}
    runnable = {name for name in modules if _source(folder, name).count('__name__ == "__main__"')} - {"__main__"}
    names = [one.name for one in SUITE]
    assert len(set(names)) == len(names) and not set(names) & ELSEWHERE.keys()
    assert {*names, *ELSEWHERE} == runnable
    listed = "\n".join(command.listed())
    assert all(f"| {name} |" in listed for name in names)


def _source(folder: Path, name: str) -> str:
    path = folder / f"{name}.py"
    return (path if path.exists() else folder / name / "__main__.py").read_text(encoding="utf-8")


def test_every_event_of_a_profile_is_in_one_row() -> None:
    def event(name: str, seconds: float, inside: Any = None) -> Any:
        return SimpleNamespace(name=name, self_cpu_time_total=1e6 * seconds, cpu_parent=inside)

    step = event("Optimizer.step#AdamW.step", 0.1)  # it holds the forward and backward pass
    loss = event("loss", 0.2, step)
    events = [step, loss, event("aten::copy_", 0.3, loss), event("aten::mkldnn_convolution", 1, step)]
    events += [event("aten::convolution_backward", 2, step), event("aten::_fused_adamw_", 0.5, step)]
    rows = step_profile.rows_of_events([*events, event("aten::clamp", 0.4)], 5.0)
    assert rows["loss"] == pytest.approx(0.5) and rows["optimiser"] == 0.5 and rows[step_profile.OTHERS] == 0.4
    assert rows[step_profile.PYTHON] == pytest.approx(0.1 + 0.5) and sum(rows.values()) == pytest.approx(5)
    assert set(rows) <= set(step_profile.ROWS)
    measured = step_profile.Measured(steps=2, timed=4.0, profiled=5.0, rows=rows)
    assert measured.convolutions == pytest.approx(0.6)
    assert "| above the convolutions | 67% of their time |" in step_profile.lines({"network": measured})


def test_the_table_says_what_failed_and_what_was_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = Need("input/salt", lambda: False, "python -m pipeline download salt")
    suite = [
        Benchmark("one", "a number", "--size 3", "--size 1"),
        Benchmark("two", "a table", "{folder}", "{folder}", result=r"^\|(?! ?-).*\|$"),
        Benchmark("three", "nothing", short=""),
        Benchmark("four", "needs data", needs=(missing,)),
        Benchmark("five", "takes long", short=None),
    ]
    outputs = {
        "one": (0, "…\n3 images/s\n"),
        "two": (0, "| a | b |\n|---|---|\n| 1 | 2 |\n"),
        "three": (1, "Error: no\n"),
    }
    asked: list[list[str]] = []

    def run(arguments: list[str], **options: Any) -> subprocess.CompletedProcess:
        asked.append(arguments[2:])
        code, text = outputs[arguments[2].rpartition(".")[2]]
        return subprocess.CompletedProcess(arguments, code, text)

    monkeypatch.setattr(command, "SUITE", suite)
    monkeypatch.setattr(command, "device", lambda: "a core")
    monkeypatch.setattr(command.subprocess, "run", run)
    monkeypatch.setattr("sys.argv", ["benchmarks", str(tmp_path), "--short"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 1 and "failed: three" in capsys.readouterr().out
    assert asked == [["benchmarks.one", "--size", "1"], ["benchmarks.two", str(tmp_path / "two")], ["benchmarks.three"]]
    table = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "| one | `python -m benchmarks.one --size 1` |" in table and "| 3 images/s (short: the figures" in table
    assert "| see below (short" in table and "**two**\n\n| a | b |\n|---|---|\n| 1 | 2 |\n" in table
    assert "failed: Error: no" in table and "skipped: it has no short form" in table
    assert "skipped: needs input/salt (python -m pipeline download salt)" in table
    assert read_json(tmp_path / "three.json")["failed"] is True
    with pytest.raises(PipelineError, match="--only onee: no benchmark of the suite"):
        command.chosen(["onee"])
