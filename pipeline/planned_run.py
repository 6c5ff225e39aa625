"""`run RECIPE --time 45m`: a short first run for an early submission, then the best training that fits into the rest.

Everything is a usual run: the first one is named <recipe>-45m-first, the main one <recipe>-45m. Each has a plan.json,
which its trainings follow. The same command continues an interrupted run with the time that is left of its budget.

Heavy packages are imported inside the functions that need them, because the command line imports this module.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline import running
from pipeline.core import interruption
from pipeline.core.errors import PipelineError
from pipeline.core.launch import launched
from pipeline.core.moments import Moment
from pipeline.core.plan import FIRST
from pipeline.options import HowOptions, RunOptions
from pipeline.stages import STAGES

if TYPE_CHECKING:
    from pipeline.core.engine import Engine
    from pipeline.core.plan import Costs, Plan, Round
    from pipeline.core.run import Run
    from pipeline.plan.clock import Clock
    from pipeline.plan.decide import Facts

BEFORE = STAGES[: STAGES.index("train")]
AFTER = STAGES[STAGES.index("train") + 1 :]
FEW_PASSES = 3.0
STILL_MISSING, STILL_MISSING_LATER = (0.15, 0.65), (0.65, 1.0)
"""What a main run lacks to a perfect score, as a share of what its first run lacked: the smallest and the largest share
(benchmarks/RESULTS.md), after a first run with up to FEW_PASSES over the images and with more."""
MOST_AT_ONCE = 64
"""The largest number of trainings at the same time that a plan takes into account."""
SHORTEST_ROUND = 0.25
"""A later round is left out if its trainings would have less than this share of their planned time, because almost
untrained models would make the average worse."""


@dataclass(frozen=True)
class Job:
    """The command: which run, how, and how much time it has used."""

    recipe: str
    options: RunOptions
    how: HowOptions
    engine: "Engine"
    clock: "Clock"

    def open(self, name: str | None = None) -> "Run":
        """Returns the main run or the run of this name, with the settings of its plan if it has one."""
        return (replace(self.options, name=name) if name else self.options).open(self.recipe)


def run_in_time(recipe: str, options: RunOptions, how: HowOptions) -> None:
    """Runs a recipe so that its result exists after the time of `options.time`.

    Raises:
        PipelineError: the time is too short for any submission, or an option or the data is invalid.
    """
    from pipeline.core.lock import exclusive_lock
    from pipeline.notebook import ensure_sample
    from pipeline.plan.checks import check_chosen

    started = time.monotonic()
    if others := launched():
        raise PipelineError(f"--time cannot be used under {others.by}: start the command without it.")
    opened = options.open(recipe, follow_plan=not how.force)
    if not opened.recipe.trains:
        raise PipelineError(f"--time plans a training, and {opened.name} does not train: leave the option out.")
    check_chosen(opened, options.changed)
    engine = how.open_engine()
    running.announce(opened, f"planned for {options.time}", STAGES)
    ensure_sample(opened)
    interruption.work_began()
    ready = time.monotonic()
    with exclusive_lock(opened.folder / ".locks"):  # a second process waits: two would plan for the same cores
        _run(recipe, options, how, engine, started + time.monotonic() - ready)


def _run(recipe: str, options: RunOptions, how: HowOptions, engine: "Engine", started: float) -> None:
    """Does the work of `run_in_time`, after the checks of the options. The command began at `started`, without the time
    that it waited for another process."""
    from pipeline.core import driver
    from pipeline.core.console import exact_duration, say
    from pipeline.plan.checks import forget, require_plans
    from pipeline.plan.clock import Clock

    if how.force:  # the old trainings are removed when nothing prevents the new ones
        opened = options.open(recipe, follow_plan=False)
        running.check_training(opened, True, decodes=True)
        _prepare(opened, how, engine)
        forget(opened)
    opened = options.open(recipe)
    require_plans(opened)
    running.check_training(opened, False, decodes=True)
    with Clock(opened, started) as clock:
        job = Job(recipe, options, how, engine, clock)
        if not how.force:
            _prepare(opened, how, engine)
        resumed = opened.plan.exists()
        if not resumed and not _plan_main(job, opened, first := _run_first(job, opened)):
            clock.note(rounds=0)
            say(f"  the rest of the time is too short for a better training; the result is {first.name}")
            driver.run_stage(first, "report", engine=engine)
            say(_used(clock))
            running.conclude(first, how, time.monotonic() - started, STAGES)
            return
        opened = job.open()
        if not any(driver.unfinished(opened, stage) for stage in running.chosen_stages(opened, "train", STAGES[-1])[0]):
            clock.stop()
        elif resumed:
            say(f"  {exact_duration(clock.left)} of {exact_duration(clock.budget)} are left")
            if not opened.submission.exists() and opened.competition.has_test:
                _restore_first(job, opened)
        _carry_out(job, opened)
        opened = job.open()  # without the rounds that were left out
    say(_used(clock))
    running.conclude(opened, how, time.monotonic() - started, STAGES)
    _compare_with_first(job, opened)


def _used(clock: "Clock") -> str:
    """Returns the line that says how much of the time is used."""
    from pipeline.core.console import exact_duration

    return f"  {exact_duration(clock.used)} of {exact_duration(clock.budget)} used ({clock.used / clock.budget:.0%})"


def _prepare(opened: "Run", how: HowOptions, engine: "Engine") -> None:
    """Runs the stages before train, and checks whether a submission can be written."""
    from pipeline.core import driver

    for stage in BEFORE:
        driver.run_stage(opened, stage, how.force, engine=engine)
    if opened.competition.has_test:
        running.check_submission(opened)


# --- the two runs ---


def _run_first(job: Job, opened: "Run") -> "Run":
    """Makes the first submission, and returns the run that made it."""
    from pipeline.core import events
    from pipeline.core.console import exact_duration, say, show
    from pipeline.core.files import shown, write_json
    from pipeline.core.results import honest_score, read_scored
    from pipeline.core.run import Member
    from pipeline.plan.decide import first_plan
    from pipeline.status import tell

    plan_file = opened.competition_folder / (opened.name + FIRST) / opened.plan.name
    if not plan_file.exists():
        from pipeline.plan.pilot import measure
        from pipeline.train.stage import rows_of

        train = opened.recipe.train
        member = Member(opened.trained_folds()[0], train.seeds[0])
        facts, batch = _facts(job, opened), train.batch_size * train.accumulate
        costs = measure(opened, member, rows_of(opened, member.fold), facts.together if facts.shared else 1)
        say(
            f"  speed: {batch / costs.full:.1f} images/s in training, {batch / costs.half:.1f} at half the size, "
            f"{1 / costs.image:.0f} in prediction"
        )
        try:
            plan = first_plan(opened.recipe, replace(facts, used=job.clock.used), costs)
        except PipelineError:
            job.clock.forget()  # the same command may succeed now that the data are prepared
            raise
        write_json(plan_file, plan.model_dump())
    first = job.open(opened.name + FIRST)
    _carry_out(job, first, is_first=True)
    score = f"{first.competition.metric} {honest_score(read_scored(first.folder)):.4f}, honest"
    made = (
        f"submission so far: {shown(first.submission)} ({score})" if first.competition.has_test else f"so far: {score}"
    )
    (say if events.enabled() else show)(f"  {made}, after {exact_duration(job.clock.used)}")
    if events.enabled():
        tell(first)
    return first


def _restore_first(job: Job, opened: "Run") -> None:
    """Writes the submission of the first run again if it was deleted, because the main run has none yet."""
    first = job.open(opened.name + FIRST)
    if first.plan.exists() and not first.submission.exists():
        _carry_out(job, first, is_first=True)


def _plan_main(job: Job, opened: "Run", first: "Run") -> bool:
    """Writes the plan of the main run from the measured speed of the first one; returns whether there is time for
    it."""
    from pipeline.core.console import say
    from pipeline.core.files import write_json
    from pipeline.core.plan import read_plan
    from pipeline.core.results import honest_score, read_scored
    from pipeline.masks.metrics import metric_of
    from pipeline.plan.decide import main_plan

    plan = main_plan(opened.recipe, _facts(job, opened), _measured(first))
    if plan is None:
        return False
    write_json(opened.plan, plan.model_dump())
    for line in told(plan, read_plan(first.plan), job.clock.left):
        say(line)
    if metric_of(opened.competition).higher_is_better:
        score = honest_score(read_scored(first.folder))
        shares = STILL_MISSING if read_plan(first.plan).rounds[0].passes <= FEW_PASSES else STILL_MISSING_LATER
        low, high = (1 - share * (1 - score) for share in reversed(shares))
        say(
            f"  expected: {opened.competition.metric} {low:.2f} to {high:.2f}, honest, as on the data of "
            "benchmarks/RESULTS.md (Runs that plan themselves)"
        )
    return True


def told(plan: "Plan", first: "Plan", left: float) -> Iterator[str]:
    """Yields the lines that describe a plan, for which `left` seconds are left."""
    from pipeline.core.console import exact_duration

    yield f"  plan for the {exact_duration(left)} that are left: {'; '.join(plan.reasons)}"
    for number, one in enumerate(plan.rounds, 1):
        folds = f"fold{'s' * (len(one.folds) > 1)} {', '.join(map(str, one.folds))}"
        seeds = f", seeds {', '.join(map(str, one.seeds))}" if len(one.seeds) > 1 else ""
        added = "the other " if one.trainings < len(one.folds) * len(one.seeds) else ""
        trainings = f"{added}{one.trainings} training{'s' * (one.trainings > 1)} of {exact_duration(one.seconds)}"
        at_once = f", {one.at_once} at a time" if one.at_once > 1 else ""
        yield (
            f"  {number}. {folds}{seeds}: {trainings}{at_once}, {one.passes:.1f} passes over the images (the first "
            f"run: {first.rounds[0].passes:.1f}); then {exact_duration(one.after)} up to the submission"
        )


def _carry_out(job: Job, run: "Run", is_first: bool = False) -> None:
    """Runs the rounds of a run's plan that are not done, each with all stages up to a submission, and at the end the
    report, except of the first run."""
    from pipeline.core.console import say
    from pipeline.core.driver import run_stage, unfinished
    from pipeline.core.plan import find_plan

    chosen, _ = running.chosen_stages(run, "train", STAGES[-1])
    plan = find_plan(run.folder)
    assert plan is not None
    trained = [number for number, one in enumerate(plan.rounds) if not unfinished(_of_round(run, one), "train")]
    for number, one in enumerate(plan.rounds):
        if number < max(trained, default=0):  # its submission would replace that of a later round
            continue
        rest = plan.rounds[number:]
        seconds = job.clock.left - sum(later.after for later in rest)
        if is_first:  # the rest of the budget belongs to the main run
            seconds = min(seconds, one.seconds - _seconds_trained(run))
        to_do = [_seconds_to_do(run, plan, later) for later in range(number, len(plan.rounds))]
        seconds = max(0.0, seconds) * to_do[0] / (sum(to_do) or 1.0)
        if number and to_do[0] == one.training and seconds < SHORTEST_ROUND * one.training:
            say(f"  the rest of the time is too short for more trainings; the result is that of round {number}")
            job.clock.note(rounds=number)
            run_stage(_of_round(run, plan.rounds[number - 1]), "report", engine=job.engine)
            return
        of_round = replace(_of_round(run, one), until=Moment.after(seconds))
        for stage in chosen:
            if stage != "report" or (not is_first and number == len(plan.rounds) - 1):
                run_stage(of_round, stage, engine=job.engine)


def _seconds_to_do(run: "Run", plan: "Plan", number: int) -> float:
    """Returns the planned seconds of what is not trained yet of a round."""
    from pipeline.core.driver import unfinished
    from pipeline.core.trainings import epochs_of

    one, before = plan.rounds[number], plan.rounds[number - 1] if number else None
    shares = []
    for step in (state.step for state in unfinished(_of_round(run, one), "train")):
        if before is None or step.fold not in before.folds or step.seed not in before.seeds:
            epochs = (
                len(epochs_of(step.manifest.with_name("history.json")))
                if step.manifest.with_name("last.ckpt").exists()
                else 0
            )
            shares.append(max(0.0, 1 - epochs / run.recipe.train.epochs))
    return one.seconds * sum(max(shares[place : place + one.at_once]) for place in range(0, len(shares), one.at_once))


def _seconds_trained(first: "Run") -> float:
    """Returns how long the training of a first run has taken so far, if an earlier process began it."""
    from pipeline.core.trainings import epochs_of

    return sum(row["train_seconds"] for row in epochs_of(first.fold_folder(first.trained_folds()[0]) / "history.json"))


def _of_round(run: "Run", one: "Round") -> "Run":
    """Returns the run with the folds and seeds that are trained when a round ends."""
    train = run.recipe.train.model_copy(update={"folds": one.folds, "seeds": one.seeds})
    return replace(run, recipe=run.recipe.model_copy(update={"train": train}))


# --- what the decisions depend on ---


def _facts(job: Job, run: "Run") -> "Facts":
    """Returns what the decisions depend on, besides the recipe and the costs."""
    import torch

    from pipeline.core.engine import Needs, cores
    from pipeline.decode.table import read_table
    from pipeline.networks.views import views
    from pipeline.plan.decide import Facts
    from pipeline.train.stage import rows_of

    train, image = run.recipe.train, run.recipe.image
    rows = rows_of(run, run.trained_folds()[0])
    crops = (train.crops or image.crops_to_cover) if image.store else 1
    on_cores = job.how.engine == "local" and not torch.cuda.is_available()
    if on_cores and "train.parallel" in job.options.changed:
        together = train.parallel
    elif on_cores:
        together = min(2, cores())
    else:
        together = job.engine.at_once(Needs(gpus=train.devices, per_gpu=train.parallel), MOST_AT_ONCE)
    return Facts(
        budget=job.clock.budget, used=job.clock.used, folds=tuple(run.trained_folds()), chosen=job.options.changed,
        images=len(rows.train) * crops, held_out=len(rows.valid),
        tests=len(read_table(run.test_table)) if run.competition.has_test else 0,
        views=len(views(run.recipe.predict.tta)), together=together, shared=on_cores,
    )  # fmt: skip


def _measured(first: "Run") -> "Costs":
    """Returns the costs that the first run has shown: of its steps, and of each stage from its manifests."""
    from pipeline.core.driver import states
    from pipeline.core.freshness import read_manifest
    from pipeline.core.plan import read_plan
    from pipeline.core.trainings import epochs_of

    costs, train = read_plan(first.plan).costs, first.recipe.train
    rows = epochs_of(first.fold_folder(first.trained_folds()[0]) / "history.json")
    halves = round(train.half_size * len(rows))
    for size, of_size in (("half", rows[:halves]), ("full", rows[halves:])):
        steps = sum(row["batches"] for row in of_size) / train.accumulate
        if steps > 4:
            costs = costs.model_copy(update={size: sum(row["train_seconds"] for row in of_size) / steps})
    measured = {}
    for stage in AFTER[:-1]:
        records = [read_manifest(state.step.manifest) for state in states(first, stage)]
        if records and None not in records:
            measured[stage] = sum(record["seconds"] for record in records if record)
    return costs.model_copy(update={"stages": measured})


def _compare_with_first(job: Job, run: "Run") -> None:
    """Warns if the first, short run has the better honest score."""
    from pipeline.core.console import warn
    from pipeline.core.results import honest_score, read_scored
    from pipeline.core.written import if_sound
    from pipeline.masks.metrics import metric_of

    first = replace(run, name=run.name + FIRST)
    early, late = (if_sound(read_scored, one.folder) for one in (first, run))
    sign = metric_of(run.competition).sign
    if early and late and sign * honest_score(early) > sign * honest_score(late):
        warn(
            f"[yellow]the first run, {first.name}, has the better honest score: {honest_score(early):.4f}, this one "
            f"{honest_score(late):.4f}[/yellow]"
        )
