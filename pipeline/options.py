"""The options that several commands share, each declared once.

A command takes `options: RunOptions` and `how: HowOptions`; `with_options` shows their fields to Typer as options.
"""

import inspect
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline import completion
from pipeline.core.errors import PipelineError
from pipeline.core.launch import launched

if TYPE_CHECKING:
    from pipeline.core.engine import Engine
    from pipeline.core.run import Run


def _enable_verbose(asked: bool) -> None:
    if asked:
        from pipeline.core.console import enable_verbose

        enable_verbose()


def _enable_quiet(asked: bool) -> None:
    if asked:
        from pipeline.core.console import enable_quiet

        enable_quiet()


def _enable_events(asked: bool) -> None:
    if asked:
        from pipeline.core.events import enable

        enable()


def _compare_contents(asked: bool) -> None:
    if asked:
        from pipeline.core.freshness import compare_contents

        compare_contents()


RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="A recipe's name, or the path of its YAML.", autocompletion=completion.recipes
    ),
]
CompetitionName = Annotated[
    str,
    typer.Option(
        "--competition", help="A competition's name, or the path of its YAML.", autocompletion=completion.competitions
    ),
]
Quick = Annotated[bool, typer.Option("--quick", help="The same pipeline in miniature, as the run <recipe>-quick.")]
Name = Annotated[str | None, typer.Option("--name", help="Another name for the run and its artefacts.")]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a setting; repeatable.", autocompletion=completion.settings
    ),
]
Folds = Annotated[
    str | None, typer.Option("--folds", metavar="0,2", help="Only these folds: short for --set train.folds=[0,2].")
]
Oof = Annotated[
    str | None,
    typer.Option(
        "--oof", metavar="OOF.npy", help="Out-of-fold predictions made elsewhere; RECIPE is then only a name."
    ),
]
Test = Annotated[str | None, typer.Option("--test", metavar="TEST.npy", help="With --oof: those of the test images.")]
Where = Annotated[
    str | None,
    typer.Option(
        "--competition",
        help="With --oof: a competition's name, or the path of its YAML.",
        autocompletion=completion.competitions,
    ),
]
Strict = Annotated[
    bool,
    typer.Option("--strict", help="Exit with 3 where the verdict is `do not submit`; all is written all the same."),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        callback=_enable_verbose,
        expose_value=False,
        help="Say why, how long and with how much memory.",
    ),
]
Silent = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        callback=_enable_quiet,
        expose_value=False,
        help="Say nothing but results, warnings and errors.",
    ),
]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json",
        callback=_enable_events,
        expose_value=False,
        help="Print what happens as JSON, one object per line; messages go to standard error (docs/events.md).",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Do it again, even if it is up to date or throws training away.")]
Verify = Annotated[
    bool,
    typer.Option(
        "--verify",
        callback=_compare_contents,
        expose_value=False,
        help="Compare artefacts by content, not only by size and time.",
    ),
]

Limit = Annotated[
    str | None,
    typer.Option(
        "--time", metavar="8.5h", help="Stop between two epochs or stages before that much time is over; none: never."
    ),
]
Place = Annotated[str | None, typer.Option("--on", metavar="kaggle", help="Train on Kaggle's GPUs, then go on here.")]
Accelerator = Annotated[
    str, typer.Option("--accelerator", help="With --on kaggle: its name of the GPU; this one is two T4s.")
]
Wait = Annotated[
    str | None,
    typer.Option("--wait", metavar="30m", help="Wait so long for Kaggle; default: a while on a terminal, else not."),
]

EngineName = Annotated[
    str, typer.Option("--engine", metavar="local|ray", help="Where folds are trained and images predicted.")
]
RayAddress = Annotated[
    str | None, typer.Option("--ray-address", metavar="HOST:PORT", help="With --engine ray: a cluster that is running.")
]


@dataclass(frozen=True)
class RunOptions:
    """Which run of a recipe is meant."""

    quick: Quick = False
    name: Name = None
    assignments: Assignments = None
    folds: Folds = None
    competition: Where = None
    oof: Oof = None
    test: Test = None

    def open(self, recipe: str) -> "Run":
        """Returns the run of a recipe that these options describe.

        Raises:
            PipelineError: an option, the recipe or its competition is wrong.
        """
        from pipeline.core.run import open_run

        return open_run(recipe, self.quick, self.name, self.changes, self.competition, self.oof, self.test)

    @property
    def changes(self) -> list[str]:
        """What is changed of the recipe, `key=value` each.

        Raises:
            PipelineError: --folds is wrong.
        """
        if self.folds is not None and not re.fullmatch(r"\d+(,\d+)*", self.folds):
            raise PipelineError(f"--folds {self.folds}: expected numbers and commas, for instance --folds 0,2.")
        chosen = [] if self.folds is None else [f"train.folds=[{self.folds}]"]
        return [*(self.assignments or []), *chosen]


@dataclass(frozen=True)
class HowOptions:
    """How stages are run. The last four take effect as they are read."""

    strict: Strict = False
    force: Force = False
    engine: EngineName = "local"
    ray_address: RayAddress = None
    verbose: Verbose = False
    silent: Silent = False
    as_json: AsJson = False
    verify: Verify = False

    def open_engine(self) -> "Engine":
        """Returns the engine that was asked for.

        Raises:
            PipelineError: there is none of this name, or it cannot be had.
        """
        if self.engine not in ("local", "ray"):
            raise PipelineError(f"--engine {self.engine}: expected local or ray.")
        if self.engine == "local":
            from pipeline.core.engine import OneByOne
            from pipeline.engines.local import LocalEngine

            if self.ray_address is not None:
                raise PipelineError("--ray-address goes with --engine ray.")
            return OneByOne() if launched() else LocalEngine()  # torchrun's processes train one fold together
        if others := launched():
            raise PipelineError(f"--engine ray does not go together with {others.by}: start the command alone.")
        if self.ray_address == "":
            raise PipelineError("--ray-address is empty: expected HOST:PORT, or leave it out to start a cluster here.")
        from pipeline.engines.ray import RayEngine

        return RayEngine(self.ray_address)


@dataclass(frozen=True)
class WhereOptions:
    """Where a run trains, and for how long it works."""

    limit: Limit = None
    place: Place = None
    accelerator: Accelerator = "NvidiaTeslaT4"
    wait: Wait = None

    def begin(self) -> None:
        """Starts the clock of `--time`, where everything runs here.

        Raises:
            PipelineError: an option is wrong.
        """
        from pipeline.core import deadline

        if self.place not in (None, "kaggle"):
            raise PipelineError(f"--on {self.place}: expected kaggle; without it everything runs here.")
        seconds = None if self.limit is None else deadline.limit_of(self.limit)
        if seconds is not None and self.place is None:
            deadline.set_limit(seconds)

    @property
    def patience(self) -> float | None:
        """What `--wait` says, in seconds.

        Raises:
            PipelineError: it is no length of time.
        """
        return waiting(self.wait)


def waiting(wait: str | None) -> float | None:
    """Returns what `--wait` says in seconds; None where it is not given.

    Raises:
        PipelineError: it is no length of time.
    """
    from pipeline.core.deadline import seconds_of

    return None if wait is None else seconds_of(wait, "--wait")


def with_options(*, without: Collection[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Returns a decorator that shows a command to Typer with every field of its options classes as an option.

    Args:
        without: fields that are no options of this command and keep their defaults.
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
    """What Typer makes options of: a parameter itself, or the fields of its class."""
    if not _is_group(parameter):
        return [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)]
    return [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
        for field in fields(parameter.annotation)
    ]
