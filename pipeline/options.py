"""Command-line options that several commands share, each declared once.

A command takes parameters such as `options: RunOptions` and `how: HowOptions`. The decorator `with_options` turns the
fields of these classes into Typer options.
"""

import inspect
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline import completion
from pipeline.core.errors import PipelineError
from pipeline.core.launch import launched

if TYPE_CHECKING:
    from pipeline.core.engine import Engine
    from pipeline.core.run import Run


def _enable_verbose(enabled: bool) -> None:
    if enabled:
        from pipeline.core.console import enable_verbose

        enable_verbose()


def _enable_quiet(enabled: bool) -> None:
    if enabled:
        from pipeline.core.console import enable_quiet

        enable_quiet()


def _enable_events(enabled: bool) -> None:
    if enabled:
        from pipeline.core.events import enable

        enable()


def _compare_contents(enabled: bool) -> None:
    if enabled:
        from pipeline.core.freshness import compare_contents

        compare_contents()


RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="Name of a recipe or competition, or path of its YAML file; auto: chosen by the data of --competition.",
        autocompletion=completion.recipes,
    ),
]
CompetitionName = Annotated[
    str,
    typer.Option(
        "--competition",
        help="Name of a competition, or path of its YAML file.",
        autocompletion=completion.competitions,
    ),
]
Quick = Annotated[
    bool, typer.Option("--quick", help="A small version of the run (fewer epochs and folds), named <recipe>-quick.")
]
Name = Annotated[str | None, typer.Option("--name", help="Name of the run and its artefacts; default: the recipe's.")]
Time = Annotated[
    str | None,
    typer.Option(
        "--time", metavar="45m", help="Plan the run, named <recipe>-45m, so that its best result is there by then."
    ),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one setting. Repeatable.", autocompletion=completion.settings
    ),
]
Folds = Annotated[
    str | None, typer.Option("--folds", metavar="0,2", help="Train only these folds: --set train.folds=[0,2].")
]
Oof = Annotated[
    str | None,
    typer.Option(
        "--oof", metavar="OOF.npy", help="External out-of-fold predictions. RECIPE is then only the run's name."
    ),
]
Test = Annotated[
    str | None, typer.Option("--test", metavar="TEST.npy", help="With --oof: external predictions for the test images.")
]
Where = Annotated[
    str | None,
    typer.Option(
        "--competition",
        help="Use the recipe (or the predictions of --oof) for this competition: its name, or path of its YAML file.",
        autocompletion=completion.competitions,
    ),
]
Strict = Annotated[
    bool,
    typer.Option("--strict", help="Exit with code 3 if the verdict is `do not submit`. All files are still written."),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        callback=_enable_verbose,
        expose_value=False,
        help="Also print why each step runs, how long it takes and how much memory it uses.",
    ),
]
Silent = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        callback=_enable_quiet,
        expose_value=False,
        help="Print only results, warnings and errors.",
    ),
]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json",
        callback=_enable_events,
        expose_value=False,
        help="Print events as JSON, one object per line; messages go to standard error (docs/events.md).",
    ),
]
Force = Annotated[
    bool, typer.Option("--force", help="Run again even if up to date, and even if finished training is overwritten.")
]
Verify = Annotated[
    bool,
    typer.Option(
        "--verify",
        callback=_compare_contents,
        expose_value=False,
        help="Compare files by their content, not only by size and modification time.",
    ),
]

Limit = Annotated[
    str | None,
    typer.Option(
        "--stop-after",
        metavar="8.5h",
        help="Stop between two epochs or stages before this much time has passed; the same command continues.",
    ),
]
Place = Annotated[
    str | None, typer.Option("--on", metavar="kaggle", help="Train on Kaggle's GPUs, then continue on this machine.")
]
Accelerator = Annotated[
    str, typer.Option("--accelerator", help="With --on kaggle: Kaggle's name of the GPU; the default is two T4s.")
]
Wait = Annotated[
    str | None,
    typer.Option(
        "--wait", metavar="30m", help="How long to wait for Kaggle; default: a while in a terminal, else not at all."
    ),
]

EngineName = Annotated[
    str, typer.Option("--engine", metavar="local|ray", help="Where to train and predict: this machine or Ray.")
]
RayAddress = Annotated[
    str | None,
    typer.Option("--ray-address", metavar="HOST:PORT", help="With --engine ray: address of a running cluster."),
]


@dataclass(frozen=True)
class RunOptions:
    """Options that select a run of a recipe."""

    quick: Quick = False
    name: Name = None
    assignments: Assignments = None
    folds: Folds = None
    competition: Where = None
    oof: Oof = None
    test: Test = None
    time: Time = None

    def open(self, recipe: str, follow_plan: bool = True) -> "Run":
        """Returns the run of a recipe that these options describe, with the settings of its plan if it has one and
        `follow_plan` is true.

        Raises:
            PipelineError: an option, the recipe or its competition is invalid.
        """
        from pipeline.core.config.recipe_files import AUTO
        from pipeline.core.run import open_run

        if recipe == AUTO and self.competition and self.oof is None:
            from pipeline.auto.record import ensure_choice
            from pipeline.notebook import ensure_sample, load_run

            if self.competition == "sample":
                ensure_sample(load_run("sample"))
            ensure_choice(self.competition)
        return open_run(
            recipe, self.quick, self.name, self.changes, self.competition, self.oof, self.test, self.time, follow_plan
        )

    def of_time(self, seconds: float) -> "RunOptions":
        """Returns these options with the time of the planned run that they name."""
        from pipeline.core.deadline import text_of

        return replace(self, time=text_of(seconds))

    @property
    def changes(self) -> list[str]:
        """The changes to the recipe's settings, one `key=value` each.

        Raises:
            PipelineError: --folds is not a list of numbers.
        """
        if self.folds is not None and not re.fullmatch(r"\d+(,\d+)*", self.folds):
            raise PipelineError(
                f"--folds {self.folds}: expected numbers separated by commas, for instance --folds 0,2."
            )
        chosen = [] if self.folds is None else [f"train.folds=[{self.folds}]"]
        return [*(self.assignments or []), *chosen]

    @property
    def changed(self) -> frozenset[str]:
        """The dotted keys of the settings that are changed."""
        return frozenset(text.partition("=")[0].strip() for text in self.changes)


@dataclass(frozen=True)
class HowOptions:
    """Options that say how stages are run. The last four take effect while the command line is parsed."""

    strict: Strict = False
    force: Force = False
    engine: EngineName = "local"
    ray_address: RayAddress = None
    verbose: Verbose = False
    silent: Silent = False
    as_json: AsJson = False
    verify: Verify = False

    def open_engine(self) -> "Engine":
        """Returns the engine that the options name.

        Raises:
            PipelineError: no engine has this name, or it cannot be started.
        """
        if self.engine not in ("local", "ray"):
            raise PipelineError(f"--engine {self.engine}: expected local or ray.")
        if self.engine == "local":
            from pipeline.core.engine import OneByOne
            from pipeline.engines.local import LocalEngine

            if self.ray_address is not None:
                raise PipelineError("--ray-address can only be used together with --engine ray.")
            return OneByOne() if launched() else LocalEngine()  # torchrun's processes train one fold together
        if others := launched():
            raise PipelineError(f"--engine ray cannot be used under {others.by}: start the command without it.")
        if self.ray_address == "":
            raise PipelineError(
                "--ray-address is empty: expected HOST:PORT; leave the option out to start a cluster on this machine."
            )
        from pipeline.engines.ray import RayEngine

        return RayEngine(self.ray_address)


@dataclass(frozen=True)
class WhereOptions:
    """Options that say where a run trains, and for how long."""

    limit: Limit = None
    place: Place = None
    accelerator: Accelerator = "NvidiaTeslaT4"
    wait: Wait = None

    def begin(self) -> None:
        """Starts the clock of `--stop-after` if everything runs on this machine.

        Raises:
            PipelineError: an option is invalid.
        """
        from pipeline.core import deadline

        if self.place not in (None, "kaggle"):
            raise PipelineError(f"--on {self.place}: expected kaggle; without --on everything runs on this machine.")
        seconds = None if self.limit is None else deadline.limit_of(self.limit, "--stop-after")
        if seconds is not None and self.place is None:
            deadline.set_limit(seconds)

    @property
    def patience(self) -> float | None:
        """The value of `--wait` in seconds; None if it is not given.

        Raises:
            PipelineError: the value is not a length of time.
        """
        return waiting(self.wait)


def waiting(wait: str | None) -> float | None:
    """Returns the value of `--wait` in seconds; None if it is not given.

    Raises:
        PipelineError: the value is not a length of time.
    """
    from pipeline.core.deadline import seconds_of

    return None if wait is None else seconds_of(wait, "--wait")


def with_options(*, without: Collection[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Returns a decorator that gives a command one Typer option per field of its options classes.

    Args:
        without: names of fields that this command does not offer; they keep their defaults.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters = inspect.signature(command).parameters.values()
        groups = {parameter.name: parameter.annotation for parameter in parameters if _is_group(parameter)}

        @wraps(command)
        def called_by_typer(**values: Any) -> None:
            for name, group in groups.items():
                given = {field.name: values.pop(field.name) for field in fields(group) if field.name in values}
                values[name] = group(**given)
            command(**values)

        shown = [option for parameter in parameters for option in _options(parameter) if option.name not in without]
        called_by_typer.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
        return called_by_typer

    return decorate


def _is_group(parameter: inspect.Parameter) -> bool:
    return is_dataclass(parameter.annotation)


def _options(parameter: inspect.Parameter) -> list[inspect.Parameter]:
    """The Typer options of a parameter: the parameter itself, or one per field of its options class."""
    if not _is_group(parameter):
        return [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)]
    return [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
        for field in fields(parameter.annotation)
    ]
