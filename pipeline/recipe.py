"""What a recipe may say: one experiment on one competition."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.settings import Settings, find_yaml, merge, override, read_yaml, validate
from pipeline.train_settings import LossSettings, ModelSettings, TrainSettings

FOLDER = Path(__file__).parent / "recipes"


class ImageSettings(Settings):
    """What the network sees."""

    size: tuple[int, int] = (128, 128)
    """Rows × columns."""
    store: tuple[int, int] | None = None
    """Rows × columns that images are stored at, where they are larger than what the network sees: training draws random
    crops of `size`, prediction blends overlapping tiles of it. null stores them at `size`."""
    fit: Literal["stretch", "pad"] = "stretch"
    """`stretch` resizes; `pad` keeps the pixels and adds a border around them."""
    border: Literal["reflect", "constant"] = "reflect"
    """pad: the border mirrors the image, or is black and belongs to no loss."""
    position: Literal["fixed", "random"] = "fixed"
    """pad: the image in the middle, or, in training, anywhere."""
    channels: Literal[1, 3, 4] = 1
    preprocess: list[dict[str, dict[str, Any]]] = []
    """albumentations transforms that every image goes through, in training and prediction, e.g. CLAHE or Bilateral."""
    normalize: Literal["imagenet", "unit", "dataset", "image"] = "imagenet"
    """`imagenet` subtracts ImageNet's mean and divides by its standard deviation; `dataset` takes those of the fold's
    training images, `image` those of each image; `unit` leaves pixels in [0, 1]."""

    @model_validator(mode="after")
    def _store_holds_size(self) -> "ImageSettings":
        if self.store and (self.store[0] < self.size[0] or self.store[1] < self.size[1]):
            raise ValueError(f"store {list(self.store)} must not be smaller than size {list(self.size)}")
        if self.position == "random" and (self.fit != "pad" or self.store):
            raise ValueError("image.position is random, which needs image.fit=pad and no image.store")
        return self

    @property
    def crops_to_cover(self) -> int:
        """How many pieces of `size` have the area of what is stored."""
        return max(1, round(self.stored[0] * self.stored[1] / (self.size[0] * self.size[1])))

    @property
    def stored(self) -> tuple[int, int]:
        """Rows × columns of the pixel arrays and of all predictions."""
        return self.store or self.size


class PredictSettings(Settings):
    """Out-of-fold and test probabilities, by the same function."""

    batch_size: int = Field(32, ge=1)
    tta: list[Literal["hflip", "vflip"]] = []
    """Flips whose predictions are averaged with the plain one."""
    never: list[int | str] = []
    """Multiclass: classes that are never predicted, by number or name."""
    overlap: float = Field(0.25, ge=0, le=0.9)
    """How much of a tile's side neighbouring tiles share, where `image.store` is larger than `image.size`."""


class TuneSettings(Settings):
    """Post-processing, chosen on out-of-fold predictions at native size."""

    method: Literal["search", "fixed"] = "search"
    """`search` finds thresholds and minimum areas, or one bias a class of a multiclass competition; `fixed` takes
    `threshold` and `min_area` as they are, and no biases."""
    rows: Literal["raw", "cleaned"] = "raw"
    """Which images count: all but the broken ones, as the test set is not cleaned either, or those only that clean left
    as they are. The other score is given beside it."""
    threshold: float = Field(0.5, gt=0, le=1)
    """The probability from which a pixel counts; used by `fixed`."""
    min_area: int = Field(0, ge=0)
    """Masks of fewer native pixels become empty; used by `fixed`."""
    min_areas: int = Field(40, ge=1)
    """How many minimum areas `search` tries."""


class Recipe(Settings):
    """One experiment, as its YAML describes it."""

    name: str
    """The YAML's file name; names the run."""
    competition: str
    """Name of a competition, or the path of its YAML, relative to the recipe's."""
    folds: str | None = None
    """Another split than folds/<competition>.csv: folds/<competition>-<name>.csv."""
    image: ImageSettings = ImageSettings()
    model: ModelSettings = ModelSettings()
    loss: LossSettings = LossSettings()
    augment: list[dict[str, dict[str, Any]]] = []
    """albumentations transforms by name, in order, each with its settings."""
    train: TrainSettings = TrainSettings()
    predict: PredictSettings = PredictSettings()
    tune: TuneSettings = TuneSettings()
    quick: dict[str, Any] = {}
    """What `--quick` changes: the same pipeline in miniature."""

    @field_validator("augment", mode="before")
    @classmethod
    def _none_is_empty(cls, value: Any) -> Any:
        return [] if value in (None, "none") else value


def load_recipe(name: str, quick: bool = False, assignments: list[str] | None = None) -> Recipe:
    """Returns the recipe with this name (pipeline/recipes/<name>.yaml) or at this path.

    Args:
        name: a name, or the path of a YAML file.
        quick: lay the recipe's own `quick` section over it.
        assignments: `key=value` with dotted keys, laid over everything else.

    Raises:
        PipelineError: no such file, an unknown key or a wrong value.
    """
    path = find_yaml(name, FOLDER, "recipe")
    data = override({"name": path.stem, **read_yaml(path)}, assignments or [])
    competition = str(data.get("competition", ""))
    if competition.endswith((".yaml", ".yml")):
        data["competition"] = str(path.absolute().parent / competition)  # beside the recipe, from wherever it is called
    recipe = validate(Recipe, data, f"recipe {path.name}")
    # checked without --quick too: a slip there shows before somebody needs it
    miniature = override(merge(data, recipe.quick), assignments or [])
    in_miniature = validate(Recipe, miniature, f"recipe {path.name} with --quick")
    return in_miniature if quick else recipe
