"""Shell completion: the names of recipes, competitions, stages, runs and settings that the Tab key offers.

Every Tab starts a new process that calls one of these functions. They therefore import no heavy package, and skip
files that cannot be read.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.core.errors import PipelineError
from pipeline.core.version import program
from pipeline.stages import STAGES


def require_command(arguments: list[str]) -> None:
    """Checks, if the arguments ask for shell completion, that the shell can complete this command.

    Raises:
        PipelineError: the command is `python -m pipeline`, for which the shell would complete `python`.
    """
    option = next((word for word in arguments if word in ("--install-completion", "--show-completion")), None)
    if option and program() != "segpipe":
        raise PipelineError(
            f"A shell can only complete commands that are one word, not `{program()}`: `pip install -e .` installs the "
            f"command `segpipe`; then run `segpipe {option}`."
        )


def recipes(incomplete: str) -> list[str]:
    """Returns the names of recipes, and of competitions, which have a recipe too, that begin with `incomplete`."""
    names = {*_names("recipes", incomplete), *_names("competitions", incomplete)}
    return sorted(names | {name for name in ("auto",) if name.startswith(incomplete)})


def competitions(incomplete: str) -> list[str]:
    """Returns the names of competitions that begin with `incomplete`."""
    return _names("competitions", incomplete)


def stages(incomplete: str) -> list[str]:
    """Returns the names of stages that begin with `incomplete`."""
    return [stage for stage in STAGES if stage.startswith(incomplete)]


def runs(incomplete: str) -> list[str]:
    """Returns the names of runs that have scores and begin with `incomplete`."""
    from pipeline.core.files import root

    names: set[str] = set()
    with suppress(OSError):
        names = {file.parent.name for file in (root() / "work").glob("*/*/postprocess.json")}
    return sorted(name for name in names if name.startswith(incomplete))


def settings(incomplete: str) -> list[str]:
    """Returns the recipe settings that begin with `incomplete`, each followed by `=`."""
    from pipeline.core.config.recipe import Recipe

    return [f"{key}=" for key in _keys(Recipe) if key.startswith(incomplete)]


def _keys(model: Any, prefix: str = "") -> Iterator[str]:
    """The dotted keys of all settings of a model."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
            yield from _keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def _names(folder: str, incomplete: str) -> list[str]:
    """The names of the YAML files in a folder of the package and in the folder of the same name under the root."""
    from pipeline.core.files import root

    names: set[str] = set()
    with suppress(OSError):
        places = (Path(__file__).parent / folder, root() / folder)
        names = {file.stem for place in places for file in place.glob("*.yaml")}
    return sorted(name for name in names if name.startswith(incomplete))
