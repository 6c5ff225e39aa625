"""`run RECIPE --time 45m`: a short first run for an early submission, then the best training that fits into the rest.

Everything is a usual run: the first one is named <recipe>-45m-first, the main one <recipe>-45m. Each has a plan.json,
which its trainings follow. The same command continues an interrupted run with the time that is left of its budget.
"""

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.core import interruption
from pipeline.core.errors import PipelineError
from pipeline.options import HowOptions, RunOptions
from pipeline.stages import STAGES

if TYPE_CHECKING:
    from pipeline.core.engine import Engine
    from pipeline.core.plan import Costs, Plan
    from pipeline.core.run import Run
    from pipeline.plan.decide import Facts

BEFORE = STAGES[: STAGES.index("train")]
AFTER = STAGES[STAGES.index("train") + 1 :]
FIRST = "-first"
NOTED_EVERY = 10.0
"""Seconds between two notes of the time that is used."""


def run_in_time(recipe: str, options: RunOptions, how: HowOptions) -> None:
    """Runs a recipe so that its result exists after the time of `options.time`.

    Raises:
        PipelineError: the time is too short for any submission, or an option or the data is invalid.
    """
    from rich.markup import escape

    from pipeline import running, stages
    from pipeline.core import driver, events
    from pipeline.core.console import console, say
    from pipeline.core.files import shown
    from pipeline.notebook import ensure_sample

    opened = options.open(recipe)
    if not opened.recipe.trains:
        raise PipelineError(f"--time plans a training, and {opened.name} does not train: leave the option out.")
    engine, started = how.open_engine(), time.perf_counter()
    place = shown(opened.folder)
    console.print(f"[bold]{escape(opened.name)}[/bold]: planned for {options.time}; artefacts in {escape(place)}/")
    events.emit(events.RunStarted(opened.name, opened.competition.name, list(STAGES), place))
    ensure_sample(opened)
    interruption.work_began()
    chosen = tuple(stage for stage in STAGES if opened.competition.has_test or stage not in stages.ANSWER_FOR_TEST)
    running.check_training(opened, how.force, decodes=True)
    if how.force:
        _forget(options, recipe)
        opened = options.open(recipe)
    with _Clock(opened) as clock:
        for stage in BEFORE:
            driver.run_stage(opened, stage, how.force and stage in BEFORE, engine=engine)
        running.check_submission(opened)
        after = tuple(stage for stage in AFTER if stage in chosen)
        if not opened.plan.exists():
            first = _run_first(recipe, options, opened, clock, engine, after)
            if not _plan_main(opened, first, options, clock):
                say(f"  the rest of the time is too short for a better training; the result is {first.name}")
                running.conclude(first, how, time.perf_counter() - started, STAGES)
                return
        opened = options.open(recipe)
        _carry_out(opened, clock, engine, after)
    used = clock.used()
    say(f"  {_clock_text(used)} of {_clock_text(opened.budget or 0)} used ({used / (opened.budget or 1):.0%})")
    running.conclude(opened, how, time.perf_counter() - started, STAGES)
    _compare_with_first(opened, options, recipe)


class _Clock:
    """Notes in clock.json how much of the budget is used, so that a later process continues with what is left."""

    def __init__(self, run: "Run") -> None:
        from pipeline.core.plan import seconds_used

        self.path, self.budget = run.clock, run.budget or 0.0
        self.before, self.started = seconds_used(run.clock), time.monotonic()
        self.ended = threading.Event()

    def used(self) -> float:
        """Returns the seconds that the run has used, over all its processes."""
        return self.before + time.monotonic() - self.started

    def left(self) -> float:
        """Returns the seconds of the budget that are left, at least 0."""
        return max(0.0, self.budget - self.used())

    def __enter__(self) -> "_Clock":
        self._note()
        self.thread = threading.Thread(target=self._keep_noting, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()
        self._note()

    def _keep_noting(self) -> None:
        while not self.ended.wait(NOTED_EVERY):
            self._note()

    def _note(self) -> None:
        from pipeline.core.files import write_json

        write_json(self.path, {"used": round(self.used(), 1)})


# --- the first run ---


def _run_first(
    recipe: str, options: RunOptions, opened: "Run", clock: _Clock, engine: "Engine", after: tuple[str, ...]
) -> "Run":
    """Makes the first submission, and returns the run that made it."""
    from pipeline.core.console import say, show
    from pipeline.core.files import shown, write_json
    from pipeline.plan.decide import first_plan

    name = opened.name + FIRST
    plan_file = opened.competition_folder / name / "plan.json"
    if not plan_file.exists():
        from pipeline.core.run import Member
        from pipeline.plan.pilot import measure

        member = Member(opened.trained_folds()[0], opened.recipe.train.seeds[0])
        costs = measure(opened, member)
        batch = opened.recipe.train.batch_size * opened.recipe.train.accumulate
        say(
            f"  speed: {batch / costs.full:.1f} images/s in training, {batch / costs.half:.1f} at half the size, "
            f"{1 / costs.image:.0f} in prediction"
        )
        plan = first_plan(opened.recipe, _facts(opened, options, clock), costs)
        write_json(plan_file, plan.model_dump())
    first = replace(options, name=name).open(recipe)
    _carry_out(first, clock, engine, tuple(stage for stage in after if stage != "report"))
    if first.competition.has_test:
        show(f"  submission so far: {shown(first.submission)}, after {_clock_text(clock.used())}")
    return first


def _plan_main(opened: "Run", first: "Run", options: RunOptions, clock: _Clock) -> bool:
    """Writes the plan of the main run from the measured speed of the first one; returns whether there is time for
    it."""
    from pipeline.core.console import say
    from pipeline.core.files import write_json
    from pipeline.plan.decide import main_plan

    plan = main_plan(opened.recipe, _facts(opened, options, clock), _measured(first))
    if plan is None:
        return False
    write_json(opened.plan, plan.model_dump())
    for line in _told(plan, first, clock):
        say(line)
    return True


def _told(plan: "Plan", first: "Run", clock: _Clock) -> Iterator[str]:
    """Yields the lines that describe a plan and what the rest of the time is for."""
    from pipeline.core.files import shown
    from pipeline.core.plan import find_plan

    passes = sum(one.passes for one in (find_plan(first.folder) or plan).rounds)
    yield f"  plan, {_clock_text(plan.budget - clock.used())} left: {'; '.join(plan.reasons)} → {shown(first.folder.parent)}"
    for number, one in enumerate(plan.rounds, 1):
        what = f"fold{'s' * (len(one.folds) > 1)} {', '.join(map(str, one.folds))}"
        seeds = f", seeds {', '.join(map(str, one.seeds))}" if len(one.seeds) > 1 else ""
        yield (
            f"  {number}. {what}{seeds}: {one.trainings} training{'s' * (one.trainings > 1)} of {_clock_text(one.seconds)}, "
            f"{one.passes:.1f} passes over the images (so far {passes:.1f}); then {_clock_text(one.after)} up to the "
            "submission"
        )


# --- carrying a plan out ---


def _carry_out(run: "Run", clock: _Clock, engine: "Engine", after: tuple[str, ...]) -> None:
    """Runs the rounds of a run's plan that are not done, each with all stages up to a submission."""
    from pipeline.core.driver import run_stage
    from pipeline.core.plan import read_plan

    plan = read_plan(run.plan)
    for number, one in enumerate(plan.rounds):
        rest = plan.rounds[number:]
        seconds = clock.left() - sum(later.after for later in rest)
        if run.name.endswith(FIRST):  # the rest of the budget belongs to the main run
            seconds = min(seconds, one.seconds)
        share = one.training / sum(later.training for later in rest)
        until = time.time() + max(0.0, seconds) * share
        train = run.recipe.train.model_copy(update={"folds": one.folds, "seeds": one.seeds})
        of_round = replace(run, recipe=run.recipe.model_copy(update={"train": train}), until=until)
        run_stage(of_round, "train", engine=engine)
        for stage in after:
            run_stage(of_round, stage, engine=engine)


def _facts(run: "Run", options: RunOptions, clock: _Clock) -> "Facts":
    """Returns what the decisions depend on."""
    import torch

    from pipeline.core.engine import Needs
    from pipeline.core.launch import launched
    from pipeline.decode.table import read_table
    from pipeline.engines.local import LocalEngine
    from pipeline.networks.views import views
    from pipeline.plan.decide import Facts
    from pipeline.train.stage import rows_of

    fold = run.trained_folds()[0]
    rows = rows_of(run, fold)
    crops = (run.recipe.train.crops or run.recipe.image.crops_to_cover) if run.recipe.image.store else 1
    tests = len(read_table(run.test_table)) if run.competition.has_test else 0
    gpu = torch.cuda.is_available()
    train = run.recipe.train
    if gpu and not launched():
        together = LocalEngine().at_once(Needs(gpus=train.devices, per_gpu=train.parallel), 64)
    else:
        together = min(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    return Facts(
        budget=run.budget or 0.0, used=clock.used(), folds=tuple(run.trained_folds()),
        chosen=frozenset(text.partition("=")[0].strip() for text in options.changes), images=len(rows.train) * crops,
        held_out=len(rows.valid), tests=tests, views=len(views(run.recipe.predict.tta)), together=together,
        shared=not gpu,
    )  # fmt: skip


def _measured(first: "Run") -> "Costs":
    """Returns the costs that the first run has shown: of training as it went, of each stage from its manifests."""
    from pipeline.core.driver import states
    from pipeline.core.freshness import read_manifest
    from pipeline.core.plan import read_plan
    from pipeline.core.trainings import epochs_of

    costs = read_plan(first.plan).costs
    rows = epochs_of(first.fold_folder(first.trained_folds()[0]) / "history.json")
    halves = round(first.recipe.train.half_size * len(rows))
    for at_half, of_size in ((True, rows[:halves]), (False, rows[halves:])):
        steps = sum(row["batches"] for row in of_size) / first.recipe.train.accumulate
        seconds = sum(row["train_seconds"] for row in of_size)
        if steps > 4:
            costs = costs.model_copy(update={"half" if at_half else "full": seconds / steps})
    stages = {
        stage: sum(
            (read_manifest(state.step.manifest) or {"seconds": 0.0})["seconds"] for state in states(first, stage)
        )
        for stage in ("validate", "tune", "predict", "encode", "evaluate")
        if states(first, stage)
    }
    return costs.model_copy(update={"stages": stages})


def _compare_with_first(run: "Run", options: RunOptions, recipe: str) -> None:
    """Warns if the first, short run has the higher honest score."""
    from pipeline.core.console import warn
    from pipeline.core.results import read_scored
    from pipeline.core.written import if_sound
    from pipeline.masks.metrics import metric_of
    from pipeline.sweep.trial import honest

    first = replace(options, name=run.name + FIRST).open(recipe)
    results = [if_sound(read_scored, one.folder) for one in (first, run)]
    if None in results:
        return
    early, late = (honest(result) for result in results if result)
    better = early > late if metric_of(run.competition).higher_is_better else early < late
    if better:
        warn(f"[yellow]{first.name} has the better honest score, {early:.4f} (this run: {late:.4f})[/yellow]")


def _forget(options: RunOptions, recipe: str) -> None:
    """Removes the plans and the used time, so that everything is planned again."""
    from pipeline.core.run import root

    opened = options.open(recipe)
    for name in (opened.name, opened.name + FIRST):
        folder = root() / "work" / opened.competition.name / name
        for file in ("plan.json", "clock.json"):
            (folder / file).unlink(missing_ok=True)


def _clock_text(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
