"""Recipes of runs that use external predictions."""

from pathlib import Path

from pipeline.core.config.recipe import Recipe
from pipeline.core.config.settings import override, validate
from pipeline.core.errors import PipelineError


def recipe_of_arrays(name: str, competition: str | None, oof: str, test: str | None, assignments: list[str]) -> Recipe:
    """Returns the default recipe with external predictions; see run.open_run.

    Raises:
        PipelineError: there is no competition, `name` is the path of a recipe, or a setting is wrong.
    """
    if competition is None:
        raise PipelineError("--oof needs --competition: the name of a competition, or the path of its YAML.")
    if name.endswith((".yaml", ".yml")):
        raise PipelineError(
            f"{name} is the path of a recipe: set `arrays: {{oof: …}}` in it, or use --oof with a plain name for the "
            "run."
        )
    if competition.endswith((".yaml", ".yml")):
        competition = str(Path(competition).absolute())
    data = {"name": name, "competition": competition, "arrays": {"oof": oof, "test": test}}
    return validate(Recipe, override(data, assignments), f"run {name}")


def with_arrays(recipe: Recipe, folder: Path) -> Recipe:
    """Returns the recipe with full paths of its arrays, and with the arrays' rows × columns as image size.

    Args:
        recipe: a recipe with `arrays`.
        folder: the folder that the paths are relative to.

    Raises:
        PipelineError: a file is missing or does not hold an array of probabilities.
    """
    from pipeline.core.external_arrays import image_size

    assert recipe.arrays
    paths = {key: str(folder / Path(path).expanduser()) for key, path in recipe.arrays.model_dump().items() if path}
    arrays = recipe.arrays.model_copy(update=paths)
    image = recipe.image.model_copy(update={"size": image_size(arrays), "store": None})
    return recipe.model_copy(update={"arrays": arrays, "image": image})
