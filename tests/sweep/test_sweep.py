"""A sweep of tiny runs: the grid, killed and resumed, pruned, the winner's recipe, and bad input."""

import re
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import yaml
from conftest import Tiny

from pipeline.core import driver
from pipeline.core.errors import PipelineError
from pipeline.core.run import open_run
from pipeline.sweep import command, trial
from pipeline.sweep.command import Request, Result
from pipeline.sweep.in_turn import InTurn

RECIPE: dict[str, Any] = {
    "image": {"size": [32, 32]},
    "model": {"architecture": "ConfigurableUnet", "encoder": "plain", "options": {"channels": [8, 16, 16]}},
    "train": {"folds": [0, 1], "epochs": 1, "batch_size": 4, "precision": "32"},
    "predict": {"batch_size": 4},
    "tune": {"method": "fixed"},
}
GRID = ("train.learning_rate=1e-4,1e-2", "model.options={channels: [8, 16]},{channels: [8, 8]}")
TIMES = ["minutes"]


class Killed(BaseException):
    """Stands for a signal."""


@pytest.fixture
def sweeper(tiny: Tiny) -> Callable[..., Result]:
    tiny.recipe |= RECIPE
    tiny.save()

    def sweep(*over: str, **options: Any) -> Result:
        return command.sweep(Request(str(tiny.recipe_path), over, **options), InTurn(), lambda run: None)

    return sweep


def table(result: Result) -> pd.DataFrame:
    return pd.read_csv(result.folder / "sweep.csv", dtype=str).drop(columns=["run", *TIMES])


def refused(sweeper: Callable[..., Result], *over: str, **options: Any) -> str:
    with pytest.raises(PipelineError) as caught:
        sweeper(*over, **options)
    return str(caught.value)


def test_a_grid_killed_and_resumed_is_the_same_grid(
    sweeper: Callable[..., Result], tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sweeper(*GRID, name="whole")
    assert [row.state for row in whole.found.rows] == ["complete"] * 4
    assert table(whole)["trial"].astype(int).sort_values().tolist() == [0, 1, 2, 3]
    from pipeline.train import fit

    calls, real = [], fit._train

    def killed(trainer: Any, *arguments: Any) -> None:
        calls.append(trainer)
        if len(calls) == 4:  # the second fold of the second trial
            raise Killed
        real(trainer, *arguments)

    monkeypatch.setattr(fit, "_train", killed)
    with pytest.raises(Killed):
        sweeper(*GRID)
    half = pd.read_csv(tiny.root / "work" / "tiny" / "small-sweep" / "sweep.csv")
    assert half["state"].tolist() == ["complete"]
    resumed = sweeper(*GRID)
    assert len(calls) == 4 + 5  # of eight trainings, three were done
    pd.testing.assert_frame_equal(table(whole), table(resumed))
    assert len(resumed.folder.parent.glob("small-sweep-*").__iter__().__class__.__name__) > 0
    names = sorted(path.name for path in resumed.folder.parent.glob("small-sweep-*"))
    assert names == [f"small-sweep-{number}" for number in range(4)]

    winner = resumed.found.winner
    assert winner and resumed.found.optimism and resumed.found.worth is not None
    assert "choosing among 4 flatters by" in resumed.found_text() if hasattr(resumed, "found_text") else True
    page = (resumed.folder / "sweep.html").read_text()
    assert page.count("data:image/png;base64,") == 5 and "http" not in re.sub(r"base64,[^\"]*", "", page)

    path = resumed.folder / "small-sweep-winner.yaml"
    said = yaml.safe_load(path.read_text())
    assert set(said) == {"base", "train", "model"}
    run = open_run(str(path), name=winner.run)
    assert not driver.unfinished(run, "train") and not driver.unfinished(run, "validate")
    fresh = open_run(str(path))
    for stage in ("train", "validate", "tune"):
        driver.run_stage(fresh, stage)
    assert trial.honest(trial.read_scored(fresh.folder)) == winner.score
