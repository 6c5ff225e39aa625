"""`run RECIPE --time 10m`: an early submission, then a better one; trainings are cut short here."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import Tiny
from trainings import BASE
from typer.testing import CliRunner

from pipeline import planned_run, running
from pipeline.__main__ import app
from pipeline.core import driver
from pipeline.core.config.settings import merge
from pipeline.core.errors import PipelineError
from pipeline.core.files import write_json
from pipeline.core.plan import Costs, Plan, Round, find_clock, read_plan
from pipeline.core.run import Member, open_run
from pipeline.options import HowOptions, RunOptions
from pipeline.plan import pilot
from pipeline.planned_run import BEFORE, _seconds_to_do, run_in_time
from pipeline.status import next_command, plan_lines, status_table
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


def used_by(tiny: Tiny, name: str = "small-10m") -> float:
    """The seconds that a run has used."""
    clock = find_clock(tiny.root / "work" / "tiny" / name)
    return clock.used if clock else 0.0


def test_a_first_submission_comes_early_and_a_killed_run_continues(
    short: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, final = (short.root / "submissions" / f"small-10m{suffix}.csv" for suffix in ("-first", ""))
    begun, trained = FollowPlan.setup, []

    def killed_in_main(self: FollowPlan, *arguments: Any, **options: Any) -> None:
        trained.append(self.pace.epochs)
        if len(trained) == 2:
            assert first.exists() and not final.exists()
            first.unlink()  # by hand
            raise KeyboardInterrupt
        begun(self, *arguments, **options)

    monkeypatch.setattr(FollowPlan, "setup", killed_in_main)
    with pytest.raises(KeyboardInterrupt):
        start(short)
    assert "submission so far: submissions/small-10m-first.csv (dice 0." in capsys.readouterr().out
    used = used_by(short)
    assert used > 0
    start(short)
    run = open_run(str(short.recipe_path), time="10m")
    assert first.exists() and final.exists() and used_by(short) > used
    assert len(trained) == 2 + len(run.trained_folds()) * len(run.recipe.train.seeds)  # the first run only once
    total, plan, submitted = used_by(short), run.plan.read_bytes(), final.stat().st_mtime_ns
    assert len(read_plan(run.plan).rounds) == 2
    start(short)
    assert final.stat().st_mtime_ns == submitted  # the first round's submission does not replace it
    assert used_by(short) == total  # there was nothing to do
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
    wrong = replace(options, assignments=["train.parallel=1", "model.encoder=nope"])
    with pytest.raises(PipelineError, match="nope"):
        run_in_time(str(short.recipe_path), wrong, HowOptions(force=True))
    assert run.plan.exists()
    before = run.weights(run.members(0)[0])[0].stat().st_mtime_ns
    early = run.plan.parent.with_name("small-10m-first") / "plan.json"
    text = early.read_text()
    early.write_text("{")
    start(short, options)  # everything is done
    early.write_text(text)
    changed = {"snapshots": 3, "schedule": {"name": "restarts"}}
    whole = short.recipe
    short.recipe = merge(whole, {"train": changed})
    write_json(run.plan, read_plan(run.plan).model_dump() | {"settings": {"train.epochs": 20}})
    short.save()
    with pytest.raises(PipelineError, match=r"small-10m/plan.json does not fit to this recipe: .*train.snapshots is 3"):
        start(short, options)
    short.recipe = whole
    short.save()
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
    assert used_by(short, "small-1s") == 0


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
        ({"assignments": ["train.final=true"]}, "--set train.final=true does not fit"),
        ({"name": "x-first"}, "--name x-first: names that end in -first are those of first runs; choose another"),
        ({"time": "٤m"}, "--time ٤m: expected a number and a unit"),
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
    assert done.returncode == 2 and "small-10m has no plan; finish the run first: python -m pipeline run" in done.stderr


def test_a_later_round_without_time_is_left_out(
    short: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun, trained = FollowPlan.setup, []

    def killed_in_second_round(self: FollowPlan, *arguments: Any, **options: Any) -> None:
        trained.append(1)
        if len(trained) == 4:
            raise KeyboardInterrupt
        begun(self, *arguments, **options)

    monkeypatch.setattr(FollowPlan, "setup", killed_in_second_round)
    with pytest.raises(KeyboardInterrupt):
        start(short)
    run = open_run(str(short.recipe_path), time="10m")
    plan = read_plan(run.plan)
    assert [_seconds_to_do(run, plan, number) for number in (0, 1)] == [0, plan.rounds[1].training]
    submitted = run.submission.stat().st_mtime_ns
    write_json(run.clock, {"used": 595.0})
    start(short)
    assert "too short for more trainings; the result is that of round 1" in capsys.readouterr().err
    assert len(trained) == 4 and run.submission.stat().st_mtime_ns == submitted and run.report.exists()
    run = open_run(str(short.recipe_path), name="small-10m")
    assert run.trained_folds() == [0]
    assert status_table(run)[1] is None and len(list(plan_lines(run))) == 1


def test_an_interrupted_training_is_planned_for_its_rest_only(short: Tiny) -> None:
    run = open_run(str(short.recipe_path), time="10m")
    driver.run_stage(run, "decode")
    folder = run.folder / "fold_0"
    write_json(folder / "history.json", [{}, {}, {}])
    (folder / "last.ckpt").touch()
    costs = Costs(half=1, full=1, image=1)
    one = Round(folds=[0], seeds=[0, 1], trainings=2, at_once=1, seconds=90, passes=1, after=0)
    plan = Plan(
        budget=600, settings={}, validate_every=1, rounds=[one, one.model_copy(update={"folds": [0, 1], "at_once": 2})],
        costs=costs, reasons=[],
    )  # fmt: skip
    write_json(run.plan, plan.model_dump())
    assert run.recipe.train.epochs == 9
    assert _seconds_to_do(run, plan, 0) == pytest.approx(90 * (6 / 9 + 1))
    assert _seconds_to_do(run, plan, 1) == 90


def test_a_run_that_has_begun_is_planned_by_its_name_too(short: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = str(short.recipe_path)
    new = open_run(recipe, name="small-10m")
    assert new.command("--to", "tune").endswith(f" run {recipe} --time 10m") and new.budget is None
    assert open_run(recipe, name="small-best").command("--to", "tune").endswith("--name small-best --to tune")
    done = CliRunner().invoke(app, ["run", recipe, "--name", "small-10m"])
    with pytest.raises(PipelineError, match=r"small-10m is the name of a planned run.* --time 10m` plans and runs it"):
        running.run_stage(new, "train", HowOptions())
    assert isinstance(done.exception, PipelineError) and "Give another --name" in str(done.exception)
    write_json(new.clock, {"used": 40.0, "budget": 600.0})
    write_json(new.folder.with_name("small-10m-first") / "plan.json", {})
    seen = []
    monkeypatch.setattr(planned_run, "run_in_time", lambda recipe, options, how: seen.append(options))
    done = CliRunner().invoke(app, ["run", recipe, "--name", "small-10m"])
    assert done.exit_code == 0 and [one.time for one in seen] == ["10m"]
    with pytest.raises(PipelineError, match="small-10m is planned for 600 s, and --time gives 1200 s"):
        open_run(recipe, name="small-10m", time="20m")
    with pytest.raises(PipelineError, match=r"small-10m has no plan; finish the run first: .* --name small-10m"):
        running.run_stage(open_run(recipe, name="small-10m"), "tune", HowOptions())
    write_json(new.clock, {"used": 40.0, "budget": 600.0, "rounds": 0})
    with pytest.raises(PipelineError, match=r"only enough for its first run: give --name small-10m-first instead of"):
        running.run_stage(open_run(recipe, name="small-10m"), "report", HowOptions())
    (short.root / "submissions").mkdir()
    (short.root / "submissions" / "small-10m-first.csv").touch()
    assert list(plan_lines(open_run(recipe, name="small-10m"))) == [
        "planned: 40 s of 10 min 0 s used",
        "submission so far: submissions/small-10m-first.csv, of the run small-10m-first",
        "the rest of the time was too short for a better training; the result is small-10m-first",
    ]
    assert next_command(open_run(recipe, time="10m")).endswith(f" run {recipe} --time 20m")


def test_white_space_in_a_time_is_not_in_the_name(short: Tiny) -> None:
    assert open_run(str(short.recipe_path), time=" 5\tmin\n").name == "small-5min"


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
