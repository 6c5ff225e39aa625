"""Checks of a run and its options that need no files but those of the run itself, and the options that open it."""

from functools import reduce
from typing import TYPE_CHECKING, Any

from pipeline.core import deadline
from pipeline.core.config.places import name_fault
from pipeline.core.config.raw_layouts import RleCsv
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_record, shown
from pipeline.core.plan import FIRST, PLANNED, Plan, find_clock

if TYPE_CHECKING:
    from pipeline.core.config.recipe import Recipe
    from pipeline.core.run import Run

LONGEST_TIME = 1000.0
"""The largest budget of a planned run, in hours."""
REMEDY = "Leave the option out, give the run another --name, or plan and train again with --force."


def check_run(run: "Run") -> None:
    """Checks that the settings of a run fit together and to its competition.

    Raises:
        PipelineError: they do not, or the run's submission belongs to another competition.
    """
    _check_submission(run)
    _ = run.never  # raises an error now if a class is unknown
    recipe = run.recipe
    if recipe.trains:
        weights, reason = recipe.model.weights, run.competition.forbids_pretrained
        if reason and weights != "none":
            raise PipelineError(f"model.weights is {weights}, but {reason}: set model.weights=none.")
        recipe.loss.terms(run.competition.kind, recipe.model.presence, recipe.model.separates)
        _check_instances(run)


def budget_of(time: str, quick: bool, oof: str | None, assignments: list[str]) -> float:
    """Returns the seconds of `--time`.

    Raises:
        PipelineError: the text is not a duration, or another option contradicts it.
    """
    if other := "--quick" if quick else "--oof" if oof else "":
        raise PipelineError(f"--time plans a training, and {other} does not fit to it: leave one of the two out.")
    if fixed := [key for text in assignments if (key := text.partition("=")[0].strip()) in PLANNED]:
        raise PipelineError(
            f"--time plans {fixed[0]} itself: leave --set {fixed[0]} out, or use --stop-after, which runs the recipe "
            "as it is and stops before the time is over."
        )
    seconds = deadline.budget_of(time)
    if seconds > LONGEST_TIME * 3600:
        raise PipelineError(f"--time {time}: expected at most {LONGEST_TIME:.0f}h.")
    return seconds


def check_plan(
    name: str, plan: Plan, budget: float | None, recipes: tuple["Recipe", "Recipe"], assignments: list[str]
) -> None:
    """Checks that the options of a command do not contradict the plan of a run.

    Args:
        name: the name of the run. A first run is not checked, because its plan overrides options.
        plan: the plan of the run.
        budget: the seconds of `--time`; None if the option was not given.
        recipes: the recipe with the options, and the same with the settings of the plan.
        assignments: the changed settings, one `key=value` each.

    Raises:
        PipelineError: the plan was made for another time, or for other values of these settings.
    """
    check_budget(name, plan.budget, budget)
    if name.endswith(FIRST):
        return
    keys = [text.partition("=")[0].strip() for text in assignments]
    for key in (key for key in keys if key in plan.settings):
        asked, planned = (reduce(getattr, key.split("."), recipe) for recipe in recipes)
        if asked is not None and _as_set(asked) != _as_set(planned):
            raise PipelineError(f"{name} is planned with {key}={planned}, and this command sets {asked}. {REMEDY}")


def to_finish(run: "Run") -> str:
    """Returns what to do about results that a run does not have yet."""
    clock = find_clock(run.folder)
    if clock and clock.only_first:
        return f"the time was only enough for its first run: give --name {run.name}{FIRST} instead of --time"
    return f"finish the run first: {run.command()}"


def check_budget(name: str, planned: float, given: float | None) -> None:
    """Checks that the seconds of `--time`, if they are given, are those that a run was planned or begun with.

    Raises:
        PipelineError: they are others.
    """
    if given not in (None, planned):
        raise PipelineError(f"{name} is planned for {planned:g} s, and --time gives {given:g} s. {REMEDY}")


def has_name_of_plan(run: "Run") -> bool:
    """Returns whether `--time` would give a new run this name, such as <recipe>-45m, if nothing is trained under it."""
    time = run.name.removeprefix(f"{run.recipe.name}-")
    new = run.budget is None and not (run.folder / "recipe.yaml").exists()
    return new and time != run.name and deadline.is_duration(time)


def words_of(run: "Run", renamed: bool) -> list[str]:
    """Returns the arguments of the command line that open a run, by default without its name if it is `renamed`."""
    recipe = run.recipe.name
    own_name = ["--quick"] if run.name == f"{recipe}-quick" else ["--name", run.name]
    words = list(run.options or (recipe, *([] if renamed or run.name == recipe else own_name)))
    if has_name_of_plan(run) and "--name" in words:
        place = words.index("--name")
        words[place : place + 2] = ["--time", run.name.removeprefix(f"{recipe}-")]
    return words


def _as_set(value: Any) -> Any:
    return set(value) if isinstance(value, list) else value


def _check_instances(run: "Run") -> None:
    """Checks that touching objects can be separated in this competition, if the recipe asks for it."""
    competition, instances = run.competition, run.recipe.model.instances
    if instances == "none":
        return
    windows = isinstance(competition, RleCsv) and competition.windows
    if competition.kind == "multiclass" or windows:
        what = (
            "cut into windows, whose edges cut objects" if windows else "labelled with one class per pixel (multiclass)"
        )
        raise PipelineError(
            f"model.instances is {instances}, and the images of {competition.name} are {what}; separators need binary "
            "or multilabel masks of whole images: set model.instances=none."
        )


def check_name(name: str) -> str:
    """Returns the name of a run unchanged if it is valid.

    Raises:
        PipelineError: the name is not a plain file name, or is reserved.
    """
    if " " in name or name_fault(name):
        raise PipelineError(f"--name {name[:130]!r}: expected a plain file name without spaces or slashes.")
    if name in ("outliers", "raw") or name.startswith("pixels_"):
        raise PipelineError(
            f"--name {name!r}: this name is reserved, because the pipeline uses it for a folder beside those of runs; "
            "choose another name."
        )
    return name


def _check_submission(run: "Run") -> None:
    """Checks that an existing submission of this name does not belong to another competition."""
    competition = read_record(run.record).get("competition")
    of = competition.get("name") if isinstance(competition, dict) else None
    if of not in (None, run.competition.name):
        raise PipelineError(
            f"{shown(run.submission)} is a submission to {of}, and {run.name} is a run of {run.competition.name}: give "
            "this run another --name."
        )
