"""What a shell offers after the Tab key: names of recipes, competitions, stages, runs and settings.

Typer calls these functions in a process of their own for every Tab; nothing heavy is imported, and what cannot be read
is not offered.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.core.errors import PipelineError
from pipeline.core.version import program
from pipeline.stages import STAGES


def require_command(arguments: list[str]) -> None:
    """Checks that a shell can complete the command that was called, where that is what was asked for.

    Raises:
        PipelineError: it is `python -m pipeline`: a shell completes `python` itself.
    """
    asked = next((one for one in arguments if one in ("--install-completion", "--show-completion")), None)
    if asked and program() != "segpipe":
        raise PipelineError(
            f"A shell completes commands of one word, and this is `{program()}`: `pip install -e .` gives you the "
            f"command `segpipe`; then `segpipe {asked}`."
        )


def recipes(incomplete: str) -> list[str]:
    """Returns the names of recipes that begin so."""
    return _names("recipes", incomplete)


def competitions(incomplete: str) -> list[str]:
    """Returns the names of competitions that begin so."""
    return _names("competitions", incomplete)


def stages(incomplete: str) -> list[str]:
    """Returns the names of stages that begin so."""
    return [stage for stage in STAGES if stage.startswith(incomplete)]


def runs(incomplete: str) -> list[str]:
    """Returns the names of runs with scores that begin so."""
    from pipeline.core.files import root

    found: set[str] = set()
    with suppress(OSError):
        found = {file.parent.name for file in (root() / "work").glob("*/*/postprocess.json")}
    return sorted(name for name in found if name.startswith(incomplete))


def settings(incomplete: str) -> list[str]:
    """Returns the settings of recipes that begin so, each with the `=` that comes before its value."""
    from pipeline.core.config.recipe import Recipe

    return [f"{key}=" for key in _keys(Recipe) if key.startswith(incomplete)]


def _keys(model: Any, prefix: str = "") -> Iterator[str]:
    """The dotted keys of settings, section by section."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
            yield from _keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def _names(folder: str, incomplete: str) -> list[str]:
    """The stems of the YAML files of the package, and of the folder of the same name under the root."""
    from pipeline.core.files import root

    found: set[str] = set()
    with suppress(OSError):
        places = (Path(__file__).parent / folder, root() / folder)
        found = {file.stem for place in places for file in place.glob("*.yaml")}
    return sorted(name for name in found if name.startswith(incomplete))
