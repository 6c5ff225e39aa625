"""What `run` and the commands of the stages share: which stages run, what is checked before, and what is said after.

Nothing heavy is imported before a function needs it: the command line starts with this module.
"""

import time
from typing import TYPE_CHECKING

import typer

from pipeline.core import interruption
from pipeline.core.errors import PipelineError, did_you_mean
from pipeline.options import HowOptions
from pipeline.stages import STAGES

if TYPE_CHECKING:
    from pipeline.core.run import Run


def chosen_stages(opened: "Run", first: str, last: str) -> tuple[tuple[str, ...], str]:
    """Returns the stages from the first to the last, and which one really is the last."""
    for stage in (first, last):
        if stage not in STAGES:
            meant = did_you_mean(stage, STAGES)
            raise PipelineError(f"there is no stage `{stage}`{meant} The stages are {', '.join(STAGES)}.")
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


def run_stage(opened: "Run", stage: str, how: HowOptions) -> None:
    """Runs one stage, with predictions made elsewhere what comes before it too."""
    from pipeline import stages
    from pipeline.core import driver, events
    from pipeline.core.files import shown

    stages.require_test_set(opened, stage)
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
    """Says what a run is worth, after encode alone or a whole run; ends with exit code 3 where --strict asked for that
    and the submission is not worth an upload."""
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


def check_training(opened: "Run", force: bool, decodes: bool) -> None:
    """Finds what would stop training before anything else is done: other settings, and weights above all. Where raw
    files are missing too, that is said first, and both at once."""
    from pipeline.core import driver
    from pipeline.decode.stage import raw_fault
    from pipeline.predictions import published
    from pipeline.train.stage import guard, preflight

    waiting = [state for state in driver.states(opened, "train") if state.reasons and not state.kept]
    if waiting and not force:
        guard(opened, waiting, ("settings",))  # other inputs may yet turn out the same
    if not (waiting or force):
        return
    try:
        if opened.competition.metric_file:
            published.load(opened.competition)
        preflight(opened)
    except PipelineError as error:
        raw = raw_fault(opened) if decodes and driver.unfinished(opened, "decode") else ""
        if not raw:
            raise
        raise PipelineError(f"{raw}\nBesides: {error}") from error


def check_submission(opened: "Run") -> None:
    """Finds before hours of training what would stop later stages: columns, ids and names that the test images do not
    have, and a published metric that cannot score the true masks.

    Raises:
        PipelineError: no submission can be written as the competition's YAML says, or the metric fails.
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
    """Scores the true masks of the training images by the competition's published metric."""
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
