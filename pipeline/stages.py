"""The table of stages, in the order in which data flows, and the functions that depend on this order.

Heavy packages are imported inside the functions that need them, because the command line imports this module.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.core.engine import Engine
    from pipeline.core.run import Run

STAGE_HELP = {
    "decode": "Read and check every raw image and mask.",
    "clean": "List faults of the images and masks: duplicates, outliers, contradictions.",
    "split": "Split the training images into folds and audit the split for leaks.",
    "train": "Train one model per fold. An interrupted fold continues.",
    "validate": "Predict the held-out images of each fold.",
    "tune": "Choose views, thresholds and minimum areas on the held-out predictions.",
    "predict": "Predict the test images with the models and views that tune chose.",
    "encode": "Write and check the submission.",
    "evaluate": "Score the predictions of a test set whose true masks are known.",
    "report": "Write the HTML report of a run.",
}
"""Each stage (its code is pipeline/<stage>/stage.py) and its line in `--help`."""
STAGES = tuple(STAGE_HELP)
ANSWER_FOR_TEST = ("predict", "encode", "evaluate")
"""Stages whose result must always belong to the current test images."""
AFTER_TUNE = STAGES[STAGES.index("tune") + 1 :]
"""Stages that use or show the choices of tune."""


def require_test_set(run: "Run", *chosen: str) -> None:
    """Checks that the competition has a test set if one of the chosen stages needs it.

    Raises:
        PipelineError: the competition has no test set.
    """
    from pipeline.core.errors import PipelineError

    if not run.competition.has_test and (needing := [stage for stage in chosen if stage in ANSWER_FOR_TEST]):
        folder = f", or predict any folder of images: `{run.predict_command()}`" if run.predicts_folders else ""
        raise PipelineError(
            f"{needing[0]} needs a test set, but the competition {run.competition.name} has none (`test: null`). "
            f"Name a test set in the YAML{folder}."
        )


def run_through(run: "Run", stage: str, force: bool = False, engine: "Engine | None" = None) -> None:
    """Runs a stage, and before it every earlier stage that is not up to date; see `driver.run_stage`."""
    from pipeline.core.driver import require_test, run_stage

    require_test_set(run, stage)
    require_test(run, stage)
    for earlier in STAGES[: STAGES.index(stage)]:
        run_stage(run, earlier, mention=False, engine=engine)
    run_stage(run, stage, force, engine=engine)


def refresh_test(run: "Run", *chosen: str) -> None:
    """Decodes the test images again if a raw test file has changed.

    Needed when stages that must belong to the current test images run without decode. It reads only the raw test files.
    """
    from pipeline.core.driver import run_stage

    if "decode" not in chosen and not run.recipe.arrays and {*ANSWER_FOR_TEST} & {*chosen}:
        run_stage(run, "decode", mention=False, subset="test")


def check_tuned(run: "Run", *chosen: str) -> None:
    """Checks postprocess.json before stages that need it run without tune, so that a long predict does not start first.

    Raises:
        PipelineError: postprocess.json is damaged.
    """
    from pipeline.core.results import read_tuned

    if "tune" not in chosen and {*AFTER_TUNE} & {*chosen} and run.postprocess.exists():
        read_tuned(run)


def warn_of_stale(run: "Run", first: str) -> None:
    """Warns of every stage before `first` that is not up to date, because its old results are used."""
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
            if str(error) not in errors:  # a fault of the whole run shows at every stage: warn once
                warn(f"[yellow]cannot tell whether {stage} is up to date: {escape(str(error))}[/yellow]")
            errors.add(str(error))
            continue
        if waiting and all(reason.kind == "never" for state in waiting for reason in state.reasons):
            missing.append(stage)
        elif reasons:
            why = escape("; ".join(list(reasons)[:4]))
            warn(
                f"[yellow]{stage} is not up to date ({why}). This run starts at {first} and uses the old results of "
                f"{stage}; a run without --from brings them up to date[/yellow]"
            )
    if missing:
        warn(
            f"[yellow]stages before {first} that have not run yet: {', '.join(missing)}; a run without --from runs "
            "them[/yellow]"
        )
