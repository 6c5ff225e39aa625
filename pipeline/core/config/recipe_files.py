"""Finds the YAML file of a recipe, and the settings that a competition merges over it."""

from pathlib import Path
from typing import Any

from pipeline.core.config.competition import Competition
from pipeline.core.config.raw_layouts import FOLDER as COMPETITIONS
from pipeline.core.config.raw_layouts import load_competition
from pipeline.core.config.settings import find_yaml, merge, read_yaml
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_record, root, shown
from pipeline.core.version import program

FOLDER = Path(__file__).parents[2] / "recipes"
BASELINE = "baseline"
"""The recipe of competitions that have no recipe."""
AUTO, PORTFOLIO = "auto", "portfolio"
"""The name that stands for the recipe chosen for a competition, and the folder of the recipes to choose from."""


def recipe_file(name: str, competition: Competition | None = None) -> tuple[Path, dict[str, Any]]:
    """Returns the path of a recipe's YAML file, and the settings to merge over it.

    For the name or the path of a competition, these are the recipe `baseline` and the settings `baseline` of that
    competition; for `auto`, the recipe and the settings that were chosen for `competition`. For a recipe, there is
    nothing to merge.

    Args:
        name: name of a recipe or a competition, path of a YAML file of one of them, or `auto`.
        competition: with `auto`, the competition for which a recipe was chosen.

    Raises:
        PipelineError: neither a recipe nor a competition has this name, or no recipe was chosen yet.
    """
    if name == AUTO:
        return _chosen(competition)
    if name.endswith((".yaml", ".yml")):
        return (Path(name), {}) if not _is_competition(Path(name)) else _baseline(name)
    try:
        return find_yaml(name, FOLDER, "recipe"), {}
    except PipelineError as error:
        try:
            find_yaml(name, COMPETITIONS, "competition")
        except PipelineError:
            raise error from None
    return _baseline(name)


def choice_file(competition: Competition) -> Path:
    """Returns the file that holds the recipe and the settings that were chosen for a competition (auto/record.py)."""
    return root() / "work" / competition.name / "auto.json"


def _is_competition(path: Path) -> bool:
    """Returns whether a YAML file is that of a competition. A recipe names its competition or its base."""
    return path.is_file() and "classes" in (data := read_yaml(path)) and not {"competition", "base"} & data.keys()


def _baseline(name: str) -> tuple[Path, dict[str, Any]]:
    competition = load_competition(name)
    path, settings = _of_competition(competition, BASELINE, {})
    place = str(Path(name).absolute()) if name.endswith((".yaml", ".yml")) else name
    return path, {**settings, "name": competition.name, "competition": place}


def _chosen(competition: Competition | None) -> tuple[Path, dict[str, Any]]:
    if competition is None:
        raise PipelineError(f"{AUTO} chooses a recipe for a competition: add --competition NAME.")
    record = read_record(choice_file(competition))
    recipe, settings = record.get("recipe"), record.get("settings")
    if not isinstance(recipe, str) or not isinstance(settings, dict):
        raise PipelineError(
            f"no recipe was chosen for {competition.name} yet: `{program()} run {AUTO} --competition "
            f"{competition.name}` chooses one."
        )
    try:
        return _of_competition(competition, recipe, settings)
    except PipelineError as error:
        if "base" in competition.baseline:
            raise
        raise PipelineError(f"{shown(choice_file(competition))} (you can delete it to choose again): {error}") from None


def _of_competition(competition: Competition, recipe: str, settings: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Returns a recipe's path and the settings over it: the given ones, and over these the competition's `baseline`,
    whose `base` replaces the recipe."""
    baseline = {key: value for key, value in competition.baseline.items() if key != "base"}
    path = find_yaml(given_base(competition) or recipe, FOLDER, "recipe")
    sizes = [image_settings(values).get("size") for values in (baseline, settings)]
    if settings and sizes[0] not in (None, sizes[1]):
        settings = _without_size(settings)
    return path, merge(settings, baseline) | {"takes": None}


def given_base(competition: Competition) -> str | None:
    """Returns the recipe that `baseline` of a competition names; None if it names none.

    Raises:
        PipelineError: there is no such recipe.
    """
    base = competition.baseline.get("base")
    if base is None:
        return None
    find_yaml(str(base), FOLDER, "recipe")
    return str(base)


def image_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings under `image` of settings that are not validated yet; {} if there are none."""
    return _mapping(settings, "image")


def _mapping(settings: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Returns the mapping under nested keys; {} if it is missing or anything else than a mapping."""
    for key in keys:
        inner = settings.get(key)
        settings = inner if isinstance(inner, dict) else {}
    return settings


def _without_size(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns chosen settings without those that only suit the chosen image size, because the competition sets another
    size."""
    image = {key: value for key, value in _mapping(settings, "image").items() if key not in ("size", "fit", "position")}
    quick = {key: value for key, value in _mapping(settings, "quick").items() if key != "image"}
    small = {key: value for key, value in _mapping(settings, "quick", "image").items() if key == "size"}
    return settings | {"image": image | {"store": None}, "quick": quick | {"image": small | {"store": None}}}


def with_full_competition(data: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns a recipe's data with the path of its competition made absolute, if it names a path. It is relative to the
    recipe's folder, not to the working directory."""
    competition = str(data.get("competition", ""))
    if not competition.endswith((".yaml", ".yml")):
        return data
    return data | {"competition": str(path.absolute().parent / competition)}


def on_competition(data: dict[str, Any], competition: Competition, place: str, recipe: str) -> dict[str, Any]:
    """Returns a recipe's data with another competition; unchanged if it is the recipe's own.

    Args:
        data: the recipe's data.
        competition: the other competition.
        place: its name, or the path of its YAML file relative to the working directory.
        recipe: name of the recipe.
    """
    own = data.get("competition")
    if own is not None and recipe != AUTO and load_competition(str(own)).name == competition.name:
        return data
    place = str(Path(place).absolute()) if place.endswith((".yaml", ".yml")) else place
    quick = data.get("quick")
    if isinstance(quick, dict):  # how long the recipe takes is known for its own competition only
        data = data | {"quick": {key: value for key, value in quick.items() if key != "takes"}}
    return data | {"name": f"{competition.name}-{recipe}", "competition": place, "takes": None}
