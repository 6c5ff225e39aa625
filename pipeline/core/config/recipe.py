"""What a recipe may say: one experiment on one competition."""

from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from pipeline.core.config.losses import LossSettings
from pipeline.core.config.places import PlainName, Side
from pipeline.core.config.raw_layouts import FOLDER as COMPETITIONS
from pipeline.core.config.raw_layouts import LAYOUTS, load_competition
from pipeline.core.config.settings import Settings, find_yaml, merge, override, read_yaml, validate
from pipeline.core.config.training import ModelSettings, TrainSettings
from pipeline.core.errors import PipelineError

FOLDER = Path(__file__).parents[2] / "recipes"
OF_THE_FILE = ("base", "quick", "name")
"""Keys of a whole recipe, which `quick` cannot change."""


class ImageSettings(Settings):
    """What the network sees."""

    size: tuple[Side, Side] = (128, 128)
    """Rows × columns."""
    store: tuple[Side, Side] | None = None
    """Rows × columns that images are stored at, where they are larger than what the network sees: training draws random
    crops of `size`, prediction blends overlapping tiles of it. null stores them at `size`."""
    fit: Literal["stretch", "pad"] = "stretch"
    """`stretch` resizes; `pad` keeps the pixels and adds a border around them."""
    border: Literal["reflect", "constant"] = "reflect"
    """pad: the border mirrors the image, or is black and belongs to no loss."""
    position: Literal["fixed", "random"] = "fixed"
    """pad: the image in the middle, or, in training, anywhere."""
    channels: int = Field(1, ge=1, le=32)
    """1 (grey), 3 (RGB), or as many as the competition's images have."""
    preprocess: list[dict[str, dict[str, Any]]] = []
    """albumentations transforms that every image goes through, in training and prediction, e.g. CLAHE or Bilateral."""
    normalize: Literal["imagenet", "unit", "dataset", "image", "encoder"] | None = None
    """`imagenet` subtracts ImageNet's mean and divides by its standard deviation; `encoder` takes those that the
    weights of `model.encoder` expect (ImageNet's where that is not known), `dataset` those of the fold's training
    images, `image` those of each image; `unit` leaves pixels in [0, 1]. null: `encoder` where `model.weights` names
    any, else `imagenet`."""

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
    """Out-of-fold (validate) and test (predict) probabilities, by the same function."""

    batch_size: int = Field(32, ge=1)
    """Images that go through the network together."""
    tta: Literal["none", "hflip", "flips", "d4"] = "none"
    """Views whose predictions are averaged: the image, and it mirrored (`hflip`), mirrored along both axes and turned
    by 180° (`flips`), or also turned by 90° (`d4`, all eight). Where tune finds no gain beyond noise on the
    out-of-fold images, the test images are predicted without them."""
    never: list[int | str] = []
    """Multiclass: classes that are never predicted, by number or name."""
    overlap: float = Field(0.25, ge=0, le=0.9)
    """How much of a tile's side neighbouring tiles share, where `image.store` is larger than `image.size`."""


TuneStep = Literal[
    "threshold", "area", "triplet", "presence", "expected", "rank", "watershed", "separator", "components", "bias",
    "never",
]  # fmt: skip


class TuneSettings(Settings):
    """Post-processing, chosen on out-of-fold predictions at native size."""

    method: Literal["search", "fixed"] = "search"
    """`search` tries the steps and keeps those that bring more than noise; `fixed` takes `threshold` and `min_area`
    (multiclass: no biases), test-time augmentation and model.instances (from 0.5 on) as they are told."""
    steps: list[TuneStep] = list(get_args(TuneStep))
    """What `search` may try, always in this order: the threshold; one of a minimum area, the triplet (an area at a
    higher threshold), the presence head's probability, the emptiness that pays in expectation, or that with a threshold
    for each image (`rank`); of a metric of instances, one way to separate touching objects: a `watershed` of the mask
    by its shape or its probabilities, or of the `separator` that the network gives with `model.instances`; connected
    components. Of a multiclass competition: one bias a class; never predicting a
    class."""
    confidence: float = Field(0.9, ge=0.5, lt=1)
    """A step is kept when at least this share of the bootstrap draws shows a gain; all of them together need 0.84, one
    standard error."""
    rows: Literal["raw", "cleaned"] = "raw"
    """Which images count: all but the broken ones, as the test set is not cleaned either, or those only that clean left
    as they are. The other score is given beside it."""
    threshold: float = Field(0.5, gt=0, le=1)
    """The probability from which a pixel counts; used by `fixed`."""
    min_area: int = Field(0, ge=0)
    """Masks of fewer native pixels become empty; used by `fixed`."""
    presence_prior: float | None = Field(None, gt=0, lt=1)
    """The share of the test images that have a mask, where it is known to differ from the training images': images are
    weighted so that they have it too, in every choice and score. null: as in training."""
    presence_neighbours: bool = False
    """Average the presence head's probability over near-duplicate images, of the training and of the test set."""


class ArraysSettings(Settings):
    """Predictions made elsewhere, instead of training."""

    oof: str
    """A .npy of out-of-fold probabilities (N, H, W) or (N, classes, H, W), float from 0 to 1 or uint8; beside it a .csv
    of the same name with the column image_id, and perhaps fold and presence_<class>."""
    test: str | None = None
    """The same of the test images, without folds."""


class Recipe(Settings):
    """One experiment, as its YAML describes it."""

    name: str
    """The YAML's file name; names the run."""
    competition: str
    """Name of a competition, or the path of its YAML, relative to the recipe's."""
    base: str | None = None
    """Another recipe, by its name or the path of its YAML, relative to this recipe's: what this recipe does not say is
    as it stands there, but for `name` and `takes`."""
    folds: PlainName | None = None
    """Another split than folds/<competition>.csv: folds/<competition>-<name>.csv."""
    image: ImageSettings = ImageSettings()
    model: ModelSettings = ModelSettings()
    loss: LossSettings = LossSettings()
    augment: list[dict[str, dict[str, Any]]] = []
    """albumentations transforms by name, in order, each with its settings."""
    train: TrainSettings = TrainSettings()
    predict: PredictSettings = PredictSettings()
    tune: TuneSettings = TuneSettings()
    ensemble: dict[PlainName, float | None] = {}
    """Instead of training: other runs on the same folds whose predictions are averaged, each with its weight; where all
    are null, the weights are fitted to the out-of-fold predictions."""
    arrays: ArraysSettings | None = None
    """Instead of training: predictions made elsewhere."""
    takes: str | None = None
    """How long all of it takes, and on what, for a person who is about to start it; of `quick` its own, or nothing."""
    quick: dict[str, Any] = {}
    """What `--quick` changes: the same pipeline in miniature."""

    @model_validator(mode="after")
    def _normalize_is_known(self) -> "Recipe":
        if self.image.normalize is None:  # here and not where it is used: it is part of what training was made from
            chosen = "imagenet" if self.model.weights == "none" else "encoder"
            object.__setattr__(self, "image", self.image.model_copy(update={"normalize": chosen}))
        return self

    @model_validator(mode="after")
    def _frozen_is_trained(self) -> "Recipe":
        model = self.model
        frozen = "freeze" if model.freeze != "none" else "freeze_norm" if model.freeze_norm else ""
        own_class = ":" in model.architecture  # it may load weights itself
        if frozen and model.weights == "none" and self.train.start_from is None and not own_class:
            raise ValueError(
                f"model.{frozen} is {getattr(model, frozen)}, and model.weights is none: random weights or statistics "
                f"would stay; give weights (or train.start_from), or leave model.{frozen} out"
            )
        return self

    @model_validator(mode="after")
    def _labels_of_masks_alone(self) -> "Recipe":
        if self.train.pseudo and self.model.separates:
            raise ValueError(
                f"train.pseudo labels masks, and nothing that separates objects, while model.instances is "
                f"{self.model.instances}: leave one of them out"
            )
        return self

    @field_validator("quick")
    @classmethod
    def _miniature_of_the_same(cls, value: dict[str, Any]) -> dict[str, Any]:
        if wrong := [key for key in OF_THE_FILE if key in value]:
            raise ValueError(f"`{wrong[0]}` belongs to the whole recipe: take it out of `quick`")
        return value

    @model_validator(mode="after")
    def _one_origin(self) -> "Recipe":
        if self.ensemble and self.arrays:
            raise ValueError("give `ensemble` or `arrays`, not both")
        given = [weight for weight in self.ensemble.values() if weight is not None]
        if len(self.ensemble) == 1 or (given and (len(given) < len(self.ensemble) or min(given) < 0 or not sum(given))):
            raise ValueError(
                "ensemble needs at least two runs, and a weight of 0 or more for each, not all 0; or null for all, "
                "to have them fitted"
            )
        return self

    @property
    def trains(self) -> bool:
        """Whether the run's predictions come from models of its own."""
        return not self.ensemble and self.arrays is None

    @field_validator("augment", mode="before")
    @classmethod
    def _none_is_empty(cls, value: Any) -> Any:
        return [] if value in (None, "none") else value


def _check_of_recipe(data: dict[str, Any], path: Path) -> None:
    """Raises PipelineError for a key that stands in a competition's YAML, as with `--set metric=dice`."""
    of_competition = {key for layout in LAYOUTS.values() for key in layout.model_fields} - Recipe.model_fields.keys()
    if wrong := sorted(of_competition & data.keys()):
        raise PipelineError(
            f"recipe {path.name}: `{wrong[0]}` is a key of competitions, not of recipes: write it into the YAML of the "
            f"competition ({data.get('competition', 'which the recipe names')})."
        )


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """What a recipe's YAML says, laid over what its `base` says; `above` are the recipes that it is the base of."""
    data = read_yaml(path)
    if not isinstance(data.get("base"), str):  # another type is refused with all other faults
        return data
    name, above = data["base"], (*above, path.resolve())
    folder = path.absolute().parent
    try:
        base = folder / name if name.endswith((".yaml", ".yml")) else find_yaml(name, FOLDER, "recipe")
        if base.resolve() in above:
            raise PipelineError(f"{name} is based on it: name another recipe.")
        found = _read(base, above)
    except PipelineError as error:
        raise PipelineError(f"recipe {path.name}, its `base`: {error}") from None
    inherited = {key: value for key, value in found.items() if key not in ("name", "takes", "base")}
    return merge(_with_full_paths(inherited, base.absolute().parent), data)


def _with_full_paths(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A recipe's data with full paths where they are relative to the folder of its YAML."""
    competition, arrays = str(data.get("competition", "")), data.get("arrays")
    if competition.endswith((".yaml", ".yml")):
        data = {**data, "competition": str(folder / competition)}
    if isinstance(arrays, dict):
        full = {key: str(folder / Path(file).expanduser()) for key, file in arrays.items() if isinstance(file, str)}
        data = {**data, "arrays": arrays | full}
    return data


def recipe_file(name: str) -> tuple[Path, dict[str, Any]]:
    """Returns the YAML of a recipe, and what is laid over it: nothing, or where no recipe has this name but a
    competition has, the recipe `baseline` and what makes it one for that competition.

    Raises:
        PipelineError: there is neither.
    """
    try:
        return find_yaml(name, FOLDER, "recipe"), {}
    except PipelineError as error:
        try:
            find_yaml(name, COMPETITIONS, "competition")
        except PipelineError:
            raise error from None
    more = load_competition(name).baseline
    return FOLDER / "baseline.yaml", {**more, "name": name, "competition": name, "takes": None}


def load_recipe(name: str, quick: bool = False, assignments: list[str] | None = None) -> Recipe:
    """Returns the recipe with this name (pipeline/recipes/<name>.yaml) or at this path; or `baseline` for the
    competition with this name.

    Args:
        name: a name, or the path of a YAML file.
        quick: lay the recipe's own `quick` section over it.
        assignments: `key=value` with dotted keys, laid over everything else.

    Raises:
        PipelineError: no such file, an unknown key or a wrong value.
    """
    path, changes = recipe_file(name)
    if any(one.partition("=")[0].strip() == "base" for one in assignments or []):
        raise PipelineError(
            f"--set base: the base of a recipe stands in its YAML; write a recipe with a `base` of its own, or run "
            f"that recipe instead of {path.stem}."
        )
    data = override(merge({"name": path.stem, **_read(path)}, changes), assignments or [])
    competition = str(data.get("competition", ""))
    if competition.endswith((".yaml", ".yml")):
        data["competition"] = str(path.absolute().parent / competition)  # beside the recipe, from wherever it is called
    _check_of_recipe(data, path)
    recipe = validate(Recipe, data, f"recipe {path.name}")
    # checked without --quick too: a slip there shows before somebody needs it
    miniature = override(merge({**data, "takes": None}, recipe.quick), assignments or [])
    in_miniature = validate(Recipe, miniature, f"recipe {path.name} with --quick")
    return in_miniature if quick else recipe
