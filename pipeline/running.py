"""Code that `run` and the commands of single stages share: which stages run, checks before and messages after.

Heavy packages are imported inside the functions that need them, because the command line imports this module.
"""

import time
from collections.abc import Collection
from typing import TYPE_CHECKING

import typer

from pipeline.core import interruption
from pipeline.core.errors import PipelineError, did_you_mean
from pipeline.options import HowOptions
from pipeline.stages import STAGES

if TYPE_CHECKING:
    from pipeline.core.run import Run


def chosen_stages(opened: "Run", first: str, last: str) -> tuple[tuple[str, ...], str]:
    """Returns the stages to run, and the last of them.

    Without predictions for the test images, a run of all stages ends with tune.

    Raises:
        PipelineError: a name that is not a stage, `first` after `last`, or a stage that needs a missing test set.
    """
    for stage in (first, last):
        if stage not in STAGES:
            suggestion = did_you_mean(stage, STAGES)
            raise PipelineError(f"there is no stage `{stage}`{suggestion} The stages are {', '.join(STAGES)}.")
    from pipeline import stages

    arrays = opened.recipe.arrays
    with_test = opened.competition.has_test
    final = "tune" if with_test and arrays and not arrays.test and last == STAGES[-1] else last
    chosen = STAGES[STAGES.index(first) : STAGES.index(final) + 1]
    if chosen and not with_test:
        stages.require_test_set(opened, last)
        chosen = tuple(stage for stage in chosen if stage not in stages.ANSWER_FOR_TEST)
    if not chosen:
        raise PipelineError(f"--from {first} comes after --to {final}; the order is {', '.join(STAGES)}.")
    return chosen, final


def announce(opened: "Run", what: str, chosen: Collection[str]) -> None:
    """Prints what a run is about to do and where its artefacts are, and emits the event of its start.

    Args:
        opened: the run.
        what: the text that is printed after its name.
        chosen: the names of the stages.
    """
    from rich.markup import escape

    from pipeline.core import events
    from pipeline.core.console import console
    from pipeline.core.files import shown

    place = shown(opened.folder)
    console.print(f"[bold]{escape(opened.name)}[/bold]: {escape(what)}; artefacts in {escape(place)}/")
    events.emit(events.RunStarted(opened.name, opened.competition.name, list(chosen), place))


def check_name_of_plan(opened: "Run") -> None:
    """Checks that a run without a plan does not take the name of a planned run, which might run at the same time.

    Raises:
        PipelineError: it does.
    """
    from pipeline.core.run_checks import has_name_of_plan

    if has_name_of_plan(opened):
        raise PipelineError(
            f"{opened.name} is the name of a planned run, which is not planned yet: `{opened.command()}` plans and "
            "runs it. Give another --name to a run without a plan."
        )


def run_stage(opened: "Run", stage: str, how: HowOptions) -> None:
    """Runs one stage. In a run of external predictions, the stages before it run too."""
    from pipeline import stages
    from pipeline.core import driver, events
    from pipeline.core.files import shown
    from pipeline.core.run_checks import to_finish

    stages.require_test_set(opened, stage)
    if opened.budget and not opened.plan.exists():
        raise PipelineError(f"{opened.name} has no plan; {to_finish(opened)}.")
    if stage == "train":
        check_name_of_plan(opened)
    engine, started = how.open_engine(), time.perf_counter()
    interruption.work_began()
    events.emit(events.RunStarted(opened.name, opened.competition.name, [stage], shown(opened.folder)))
    if opened.recipe.arrays:
        stages.run_through(opened, stage, how.force, engine)
    else:
        stages.check_tuned(opened, stage)
        stages.refresh_test(opened, stage)
        stages.warn_of_stale(opened, stage)
        if stage == "train":
            check_training(opened, how.force, decodes=False)
        driver.run_stage(opened, stage, how.force, engine=engine)
    conclude(opened, how, time.perf_counter() - started, (stage,))


def conclude(opened: "Run", how: HowOptions, seconds: float, chosen: tuple[str, ...]) -> None:
    """Prints the summary after a whole run, or the verdict after encode alone.

    Raises:
        Exit: with code 3, if `--strict` was given and the verdict is `do not submit`.
    """
    from pipeline.core import events
    from pipeline.core.console import say_markup, show
    from pipeline.core.verdict import judge
    from pipeline.status import summary, tell, verdict_lines

    lines = summary(opened, seconds) if chosen == STAGES else verdict_lines(opened) if chosen == ("encode",) else ()
    for line in lines:
        (say_markup if events.enabled() else show)(line)
    if events.enabled() and {*chosen} & {*STAGES[STAGES.index("tune") :]}:
        tell(opened)
    judged = judge(opened) if how.strict else None
    if judged and judged.verdict == "do not submit":
        events.emit(events.Error("the verdict is `do not submit`", 3))
        raise typer.Exit(3)
    events.emit(events.RunFinished(opened.name, round(seconds, 3)))


def check_training(opened: "Run", force: bool, decodes: bool, predicts: bool = True) -> None:
    """Checks, before anything runs, whether training could start: changed settings, missing pretrained weights; and
    whether its networks could then predict.

    Args:
        opened: the run.
        force: whether finished training is overwritten.
        decodes: whether the raw files are read first.
        predicts: whether the networks predict on this machine after training.

    Raises:
        PipelineError: training or prediction would stop. If raw files are missing too, the message names them first.
    """
    from pipeline.core import driver
    from pipeline.decode.stage import raw_fault
    from pipeline.predictions import published
    from pipeline.train.stage import guard, preflight

    waiting = [state for state in driver.states(opened, "train") if state.reasons and not state.kept]
    if waiting and not force:
        guard(opened, waiting, ("settings",))  # changed inputs may turn out the same once earlier stages have run
    if not (waiting or force):
        return
    try:
        if opened.competition.metric_file:
            published.load(opened.competition)
        preflight(opened)
        if predicts and opened.recipe.trains and opened.recipe.predict.backend == "openvino":
            _require_openvino(opened)
    except PipelineError as error:
        raw = raw_fault(opened) if decodes and driver.unfinished(opened, "decode") else ""
        if not raw:
            raise
        raise PipelineError(f"{raw}\nAlso: {error}") from error


def _require_openvino(opened: "Run") -> None:
    from pipeline.networks import device, openvino_network

    openvino_network.require(device.detect(opened.recipe.train.precision))


def check_submission(opened: "Run") -> None:
    """Checks before training whether a submission can be written and the metric can be computed.

    It looks for columns, ids and names that the test images do not have, and scores the true masks with a published
    metric.

    Raises:
        PipelineError: the submission that the competition's YAML describes cannot be written, or the metric fails.
    """
    from pipeline.core import driver
    from pipeline.encode import mask_images, submission

    if opened.recipe.arrays or not driver.unfinished(opened, "train"):
        return
    want = submission.expected(opened.competition, opened.input, opened.competition_folder)
    if want.settings.format == "images":
        mask_images.members(want)
    if opened.competition.metric_file:
        _try_published(opened)


def _try_published(opened: "Run") -> None:
    """Scores the true masks of the training images with the competition's published metric."""
    from pipeline.decode import table
    from pipeline.predictions import published
    from pipeline.predictions.metric_tables import metric_tables

    images = table.read_table(opened.table)
    images = images[images["fault"] == ""]
    groups = images.get("group", images["image_id"]).astype(str).to_numpy()
    tables = metric_tables(images, groups, opened.competition)
    texts = [tables.true_texts(row) for _, row in images.iterrows()]
    solution, perfect = tables.solution(texts), tables.submission(texts)
    published.load(opened.competition).score(solution.frame, perfect.frame)
