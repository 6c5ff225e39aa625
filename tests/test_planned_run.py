"""`run RECIPE --time 10m`: an early submission, then a better one; trainings are cut short here."""

from typing import Any

import pytest
import torch
from conftest import Tiny
from trainings import BASE

from pipeline.core import driver
from pipeline.core.config.settings import merge
from pipeline.core.errors import PipelineError
from pipeline.core.plan import read_plan, seconds_used
from pipeline.core.run import Member, open_run
from pipeline.options import HowOptions, RunOptions
from pipeline.plan import pilot
from pipeline.planned_run import BEFORE, run_in_time
from pipeline.train.pace import FollowPlan
from pipeline.train.stage import rows_of

# trainings at the same time would be other processes, in which they are not cut short
OPTIONS = RunOptions(time="10m", assignments=["train.parallel=1"])


@pytest.fixture
def short(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """A recipe whose planned trainings take a second."""
    monkeypatch.setattr(FollowPlan, "seconds_left", property(lambda self: 1.0))
    tiny.recipe = merge(
        {"competition": str(tiny.competition_path)}, merge(BASE, {"train": {"folds": None, "epochs": 9}})
    )
    tiny.save()
    return tiny


def start(tiny: Tiny, options: RunOptions = OPTIONS) -> None:
    run_in_time(str(tiny.recipe_path), options, HowOptions())


def test_a_first_submission_comes_early_and_a_killed_run_continues(
    short: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, final = (short.root / "submissions" / f"small-10m{suffix}.csv" for suffix in ("-first", ""))
    begun, trained = FollowPlan.setup, []

    def killed_in_main(self: FollowPlan, *arguments: Any, **options: Any) -> None:
        trained.append(self.pace.epochs)
        if len(trained) == 2:
            assert first.exists() and not final.exists()
            raise KeyboardInterrupt
        begun(self, *arguments, **options)

    monkeypatch.setattr(FollowPlan, "setup", killed_in_main)
    with pytest.raises(KeyboardInterrupt):
        start(short)
    assert "submission so far: submissions/small-10m-first.csv (dice 0." in capsys.readouterr().out
    used = seconds_used(short.root / "work" / "tiny" / "small-10m" / "clock.json")
    assert used > 0
    start(short)
    run = open_run(str(short.recipe_path), time="10m")
    assert final.exists() and seconds_used(run.clock) > used
    assert len(trained) == 2 + len(run.trained_folds()) * len(run.recipe.train.seeds)  # the first run only once
    plan, submitted = run.plan.read_bytes(), final.stat().st_mtime_ns
    assert len(read_plan(run.plan).rounds) == 2
    start(short)
    assert final.stat().st_mtime_ns == submitted  # the first round's submission does not replace it
    assert run.plan.read_bytes() == plan and len(trained) == 2 + len(run.trained_folds()) * len(run.recipe.train.seeds)
    assert (
        open_run(str(short.recipe_path), name="small-10m").recipe == run.recipe
    )  # the plan is found by the run's name
    for options, message in (
        (
            RunOptions(time="10m", folds="1"),
            r"planned with train.folds=\[0, 1, 2\], and this command sets \[1\]. Leave",
        ),
        (RunOptions(time="20m", name="small-10m"), "small-10m is planned for 600 s, and --time gives 1200 s"),
    ):
        with pytest.raises(PipelineError, match=message):
            start(short, options)
    assert len(trained) == 2 + len(run.trained_folds()) * len(run.recipe.train.seeds)


def test_force_plans_again_even_if_the_plan_is_damaged(short: Tiny) -> None:
    options = RunOptions(time="10m", folds="0")
    start(short, options)
    run = options.open(str(short.recipe_path))
    before = run.weights(run.members(0)[0])[0].stat().st_mtime_ns
    run.plan.write_text("{")
    with pytest.raises(PipelineError, match=r"small-10m/plan.json is damaged.*or plan and train again with --force"):
        start(short, options)
    run_in_time(str(short.recipe_path), options, HowOptions(force=True))
    assert run.weights(run.members(0)[0])[0].stat().st_mtime_ns > before
    run.plan.unlink()
    with pytest.raises(PipelineError, match="work/tiny/small-10m holds training without plan.json"):
        start(short, options)


def test_a_time_too_short_for_a_submission_is_refused(short: Tiny) -> None:
    with pytest.raises(PipelineError, match=r"--time 1 s is too short: .* Give --time \d+m or more"):
        start(short, RunOptions(time="1s"))
    assert not list((short.root / "submissions").glob("*"))
    # what was prepared does not count when the command is repeated
    assert seconds_used(short.root / "work" / "tiny" / "small-1s" / "clock.json") < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quick": True}, "--time plans a training, and --quick does not fit to it"),
        ({"assignments": ["train.epochs=3"]}, "--time plans train.epochs itself"),
        ({"assignments": ["train.schedule.name=plateau"]}, "--set train.schedule.name=plateau does not fit"),
        (
            {"assignments": ["train.snapshots=3", "train.schedule.name=restarts"]},
            "--set train.snapshots=3 does not fit",
        ),
        ({"time": "1001h"}, "--time 1001h: expected at most 1000h"),
    ],
)
def test_options_that_contradict_a_plan(short: Tiny, options: dict[str, Any], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        start(short, RunOptions(**{"time": "10m"} | options))


def test_parts_of_a_run_are_not_planned(short: Tiny) -> None:
    done = short.cli("run", short.recipe_path, "--time", "10m", "--to", "tune")
    assert (
        done.returncode == 2 and "--time plans a whole run on this machine: leave --from and --to out." in done.stderr
    )
    done = short.cli("tune", short.recipe_path, "--time", "10m")
    assert done.returncode == 2 and "small-10m is not planned yet: `python -m pipeline run" in done.stderr


def test_steps_with_half_of_the_threads_are_measured(short: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(str(short.recipe_path))
    for stage in BEFORE:
        driver.run_stage(run, stage)
    monkeypatch.setattr(pilot, "_step", lambda *_: 6.0 / torch.get_num_threads())
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        for sharing, slower in ((1, 1.0), (2, 2.0)):
            costs = pilot.measure(run, Member(0, 0), rows_of(run, 0), sharing)
            assert (costs.full, costs.side_by_side, torch.get_num_threads()) == (1.5, slower, 4)
    finally:
        torch.set_num_threads(before)
