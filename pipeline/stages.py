"""The stages, in the order in which data flows: the one table of them, and what needs their order.

Nothing heavy is imported before a function needs it: the command line starts with this table.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.core.engine import Engine
    from pipeline.core.run import Run

STAGE_HELP = {
    "decode": "Read and check every raw image and mask.",
    "clean": "List what is wrong with the images and their masks.",
    "split": "Split the training images into folds, and audit them.",
    "train": "Train one model per fold; an interrupted fold goes on.",
    "validate": "Predict the images that each fold holds out.",
    "tune": "Choose views, thresholds and areas on the held-out predictions.",
    "predict": "Predict the test images, as tune chose.",
    "encode": "Write and check the submission.",
    "evaluate": "Score a test set whose truth is known.",
    "report": "Write one page to look at.",
}
"""Each stage, pipeline/<stage>/stage.py, and its line in `--help`."""
STAGES = tuple(STAGE_HELP)
ANSWER_FOR_TEST = ("predict", "encode", "evaluate")
"""Stages whose result must be of the test images that lie there now."""
AFTER_TUNE = STAGES[STAGES.index("tune") + 1 :]
"""Stages that use, or show, what tune chose."""


def require_test_set(run: "Run", *chosen: str) -> None:
    """Checks that the competition has a test set where stages that answer for it were asked for.

    Raises:
        PipelineError: it has none.
    """
    from pipeline.core.errors import PipelineError

    if not run.competition.has_test and (asked := [stage for stage in chosen if stage in ANSWER_FOR_TEST]):
        folder = f"`{run.predict_command()}` predicts any images, or " if run.predicts_folders else ""
        raise PipelineError(
            f"{asked[0]} needs a test set, and the competition {run.competition.name} has none (`test: null`): "
            f"{folder}name a test set in the YAML."
        )


def run_through(run: "Run", stage: str, force: bool = False, engine: "Engine | None" = None) -> None:
    """Runs what comes before a stage, as far as it is not up to date, and the stage, as run_stage does."""
    from pipeline.core.driver import require_test, run_stage

    require_test_set(run, stage)
    require_test(run, stage)
    for earlier in STAGES[: STAGES.index(stage)]:
        run_stage(run, earlier, mention=False, engine=engine)
    run_stage(run, stage, force, engine=engine)


def refresh_test(run: "Run", *chosen: str) -> None:
    """Decodes the test images again where a raw test file changed, before stages that answer for them, without decode,
    run. Nothing but the raw test files is needed."""
    from pipeline.core.driver import run_stage

    if "decode" not in chosen and not run.recipe.arrays and {*ANSWER_FOR_TEST} & {*chosen}:
        run_stage(run, "decode", mention=False, subset="test")


def check_tuned(run: "Run", *chosen: str) -> None:
    """Stops before stages that use what tune chose, without tune, run: predict would take its time first.

    Raises:
        PipelineError: postprocess.json is damaged.
    """
    from pipeline.core.results import read_tuned

    if "tune" not in chosen and {*AFTER_TUNE} & {*chosen} and run.postprocess.exists():
        read_tuned(run)


def warn_of_stale(run: "Run", first: str) -> None:
    """Warns of every stage before `first` that is not up to date: a run from there uses what it left all the same."""
    from rich.markup import escape

    from pipeline.core.console import warn
    from pipeline.core.driver import unfinished
    from pipeline.core.errors import PipelineError

    errors: set[str] = set()
    missing = []
    for stage in STAGES[: STAGES.index(first)]:
        try:
            waiting = [state for state in unfinished(run, stage) if stage == "decode" or state.step.subset != "test"]
            reasons = dict.fromkeys(reason.text for state in waiting for reason in state.reasons)
        except PipelineError as error:
            if str(error) not in errors:  # what is wrong with the run as a whole is wrong at every stage
                warn(f"[yellow]whether {stage} is up to date cannot be told: {escape(str(error))}[/yellow]")
            errors.add(str(error))
            continue
        if waiting and all(reason.kind == "never" for state in waiting for reason in state.reasons):
            missing.append(stage)
        elif reasons:
            why = escape("; ".join(list(reasons)[:4]))
            warn(
                f"[yellow]{stage} is not up to date ({why}): this starts at {first} and uses what {stage} left; a "
                "whole run brings it up to date[/yellow]"
            )
    if missing:
        warn(f"[yellow]not run yet, before {first}: {', '.join(missing)}; a whole run begins with them[/yellow]")
