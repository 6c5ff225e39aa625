"""Recipes of runs whose predictions were made elsewhere."""

from pathlib import Path

from pipeline.core.config.recipe import Recipe
from pipeline.core.config.settings import override, validate
from pipeline.core.errors import PipelineError


def recipe_of_arrays(name: str, competition: str | None, oof: str, test: str | None, assignments: list[str]) -> Recipe:
    """Returns the default recipe, with predictions made elsewhere; see run.open_run.

    Raises:
        PipelineError: no competition, a name that is a recipe's path, or a wrong setting.
    """
    if competition is None:
        raise PipelineError("--oof needs --competition: its name, or the path of its YAML.")
    if name.endswith((".yaml", ".yml")):
        raise PipelineError(
            f"{name} is a recipe: set `arrays: {{oof: …}}` in it, or give --oof with a plain name for the run."
        )
    if competition.endswith((".yaml", ".yml")):
        competition = str(Path(competition).absolute())
    data = {"name": name, "competition": competition, "arrays": {"oof": oof, "test": test}}
    return validate(Recipe, override(data, assignments), f"run {name}")


def with_arrays(recipe: Recipe, folder: Path) -> Recipe:
    """Returns the recipe with full paths of its arrays, and the size of their images.

    Args:
        recipe: one with arrays.
        folder: what their paths are relative to.

    Raises:
        PipelineError: an array is missing or is none.
    """
    from pipeline.core.external_arrays import image_size

    assert recipe.arrays
    paths = {key: str(folder / Path(path).expanduser()) for key, path in recipe.arrays.model_dump().items() if path}
    arrays = recipe.arrays.model_copy(update=paths)
    image = recipe.image.model_copy(update={"size": image_size(arrays), "store": None})
    return recipe.model_copy(update={"arrays": arrays, "image": image})
