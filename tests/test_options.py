"""Which options each command has, and what they make of a run."""

from typing import Any

import pytest
import typer

from pipeline.__main__ import app
from pipeline.core.errors import PipelineError
from pipeline.core.version import VERSION
from pipeline.options import RunOptions
from pipeline.stages import STAGE_HELP

RUN = {"--quick", "--name", "--set"}
ELSEWHERE = {"--folds", "--time", "--competition", "--oof", "--test"}
HOW = {"--force", "--verbose", "-v", "--quiet", "-q", "--verify"}
EVENTS = {"--json"}
ENGINE = {"--engine", "--ray-address"}
OPTIONS = {
    "run": RUN
    | ELSEWHERE
    | HOW
    | EVENTS
    | ENGINE
    | {"--from", "--to", "--strict", "--stop-after", "--on", "--accelerator", "--wait"},
    **dict.fromkeys(("decode", "clean", "split"), RUN | HOW | EVENTS | {"--competition"}),
    "train": RUN | HOW | EVENTS | ENGINE | {"--folds", "--time", "--competition"},
    **dict.fromkeys(("tune", "evaluate"), RUN | ELSEWHERE | HOW | EVENTS),
    "validate": RUN | ELSEWHERE | HOW | EVENTS | ENGINE,
    "predict": RUN | ELSEWHERE | HOW | EVENTS | ENGINE | {"--images", "--to", "--masks"},
    "encode": RUN | ELSEWHERE | HOW | EVENTS | {"--strict"},
    "report": RUN | ELSEWHERE | HOW | EVENTS | {"--compare"},
    "review": RUN | ELSEWHERE | {"--port", "--no-browser"},
    "export": RUN | {"--folds", "--time", "--competition", "--to", "--format"},
    "status": RUN | ELSEWHERE,
    "compare": {"--json"},
    "sweep": RUN | ENGINE | {"--over", "--trials", "--no-prune", "--folds", "--verbose", "-v", "--quiet", "-q"},
    "liars-test": RUN | ELSEWHERE | {"--permutations"},
    "sample": {"--train", "--test", "--seed"},
    "new": {"--from", "--to", "--force", "--set"},
    "check": {"--competition", "--strict"},
    "score": {"--competition", "--json"},
    "download": set(),
    "submit": RUN
    | ELSEWHERE
    | {"-m", "--message", "-k", "--kernel", "-v", "--kernel-version", "--file", "--yes", "--force", "--wait"},
    "submissions": set(),
    "leaderboard": {"--competition", "--public", "--seed", "--json"},
    "save": {"-m", "--message"},
    "restore": {"--force"},
    "bundle": RUN
    | HOW
    | ENGINE
    | {"--folds", "--competition", "--python", "--wheels", "--time", "--output", "--user", "--half", "--rehearse"}
    | {"--push", "-m", "--message", "--yes"},
    "infer": {"--to", "--time", "--started"},
    "infer-part": set(),
    "check-model": {"--size", "--channels", "--classes", "--encoder", "--option", "--minutes", "--seed", "--json"},
    "make-competition": {
        "--from",
        "--name",
        "--title",
        "--test",
        "--public",
        "--group",
        "--metric",
        "--masks",
        "--seed",
    }
    | {"--keep-apart", "--force", "--set"},
    "doctor": set(),
}


def commands() -> dict[str, Any]:
    return typer.main.get_command(app).commands  # type: ignore[attr-defined]


def test_every_command_has_these_options() -> None:
    offered = {
        name: {word for option in command.params for word in option.opts if word.startswith("-")}
        for name, command in commands().items()
    }
    assert offered == OPTIONS


def test_the_line_of_a_stage_is_the_tables() -> None:
    assert {name: command.help for name, command in commands().items() if name in STAGE_HELP} == STAGE_HELP


def test_options_make_a_run() -> None:
    run = RunOptions(name="other", assignments=["train.epochs=3"], folds="0,2").open("sample")
    assert (run.name, run.recipe.train.epochs, run.recipe.train.folds) == ("other", 3, [0, 2])
    with pytest.raises(PipelineError, match="--folds x: expected numbers separated by commas"):
        RunOptions(folds="x").open("sample")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert typer.main.get_command(app).main(["--version"], standalone_mode=False) == 0
    assert capsys.readouterr().out == f"segpipe {VERSION}\n"


def test_verify_compares_contents(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr("pipeline.core.freshness.compare_contents", lambda: called.append(True))
    for words, times in ((["sample"], 0), (["sample", "--verify"], 1)):
        commands()["decode"].make_context("decode", words)
        assert len(called) == times
