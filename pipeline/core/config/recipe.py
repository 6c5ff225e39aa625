"""The settings of a recipe: one experiment on one competition."""

from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from pipeline.core.config.competition import Competition
from pipeline.core.config.losses import LossSettings
from pipeline.core.config.places import PlainName, Side
from pipeline.core.config.raw_layouts import LAYOUTS, load_competition
from pipeline.core.config.recipe_files import AUTO, choice_file, on_competition, recipe_file, with_full_competition
from pipeline.core.config.settings import Settings, merge, override, read_yaml, validate
from pipeline.core.config.training import ModelSettings, TrainSettings
from pipeline.core.errors import PipelineError
from pipeline.core.files import shown

OF_THE_FILE = ("base", "quick", "name")
"""Keys that belong to the recipe as a whole and that `quick` cannot change."""


class ImageSettings(Settings):
    """The images that the network sees."""

    size: tuple[Side, Side] = (128, 128)
    """Rows × columns of the network's input."""
    store: tuple[Side, Side] | None = None
    """Rows × columns at which images are stored, if larger than `size`. Training then draws random crops of `size`, and
    prediction blends overlapping tiles of `size`. null: images are stored at `size`."""
    fit: Literal["stretch", "pad"] = "stretch"
    """`stretch` resizes the image; `pad` keeps its pixels and adds a border around them."""
    border: Literal["reflect", "constant"] = "reflect"
    """Only with `fit: pad`. `reflect` fills the border with the mirrored image; `constant` fills it with black, and the
    loss ignores it."""
    position: Literal["fixed", "random"] = "fixed"
    """Only with `fit: pad`. `fixed` places the image in the middle; `random` places it at a random position during
    training."""
    channels: int = Field(1, ge=1, le=32)
    """Number of input channels: 1 (grey), 3 (RGB), or as many as the competition's images have."""
    preprocess: list[dict[str, dict[str, Any]]] = []
    """albumentations transforms that are applied to every image, in training and in prediction, e.g. CLAHE or
    Bilateral."""
    normalize: Literal["imagenet", "unit", "dataset", "image", "encoder"] | None = None
    """Which mean is subtracted and by which standard deviation pixels are divided: ImageNet's (`imagenet`), those that
    the pretrained weights of `model.encoder` expect (`encoder`; ImageNet's if that is not known), those of the fold's
    training images (`dataset`), or those of each image (`image`). `unit` only scales pixels to [0, 1]. null: `encoder`
    if `model.weights` names pretrained weights, otherwise `imagenet`."""

    @model_validator(mode="after")
    def _store_is_not_smaller(self) -> "ImageSettings":
        if self.store and (self.store[0] < self.size[0] or self.store[1] < self.size[1]):
            raise ValueError(f"store {list(self.store)} must not be smaller than size {list(self.size)}")
        if self.position == "random" and (self.fit != "pad" or self.store):
            raise ValueError("image.position is random, which needs image.fit=pad and no image.store")
        return self

    @property
    def crops_to_cover(self) -> int:
        """Number of crops of `size` whose area adds up to that of a stored image, at least 1."""
        return max(1, round(self.stored[0] * self.stored[1] / (self.size[0] * self.size[1])))

    @property
    def stored(self) -> tuple[int, int]:
        """Rows × columns of the pixel arrays and of all predictions."""
        return self.store or self.size


class PredictSettings(Settings):
    """How out-of-fold probabilities (validate) and test probabilities (predict) are computed."""

    batch_size: int = Field(32, ge=1)
    """Number of images per forward pass."""
    tta: Literal["none", "hflip", "flips", "d4"] = "none"
    """Test-time augmentation: the views of an image whose predictions are averaged. `hflip`: the image and its
    horizontal mirror image. `flips`: both mirror images and the rotation by 180° as well. `d4`: all eight flips and
    rotations by 90°. If tune finds no gain beyond noise on the out-of-fold images, the test images are predicted
    without these views."""
    never: list[int | str] = []
    """Only for multiclass competitions: classes that are never predicted, by number or name."""
    overlap: float = Field(0.25, ge=0, le=0.9)
    """Overlap of neighbouring tiles, as a share of a tile's side. Only used if `image.store` is larger than
    `image.size`."""
    backend: Literal["torch", "openvino"] = "torch"
    """The library that computes the network. `openvino` (the extra `openvino`) is for CPUs. It uses the number format
    of `train.precision`, and is faster, most of all for encoders with depthwise convolutions such as EfficientNet. Its
    probabilities are compared with torch's before they are used."""


TuneStep = Literal[
    "threshold", "area", "triplet", "presence", "expected", "rank", "watershed", "separator", "components", "bias",
    "never",
]  # fmt: skip


class TuneSettings(Settings):
    """Post-processing, chosen on out-of-fold predictions at the images' own size."""

    method: Literal["search", "fixed"] = "search"
    """`search` tries the steps and keeps those whose gain exceeds noise. `fixed` chooses nothing: it uses `threshold`
    and `min_area` (in multiclass competitions, no class biases), the test-time augmentation of `predict.tta`, and the
    separator of `model.instances` at threshold 0.5."""
    steps: list[TuneStep] = list(get_args(TuneStep))
    """The steps that `search` may try. Their order is always the same. First the `threshold`. Then one rule for empty
    masks: a minimum `area`; the `triplet` (a minimum area at a higher threshold); the probability of the `presence`
    head; the decision for an empty mask that has the higher `expected` score; or that decision with a threshold per
    image (`rank`). If the metric counts instances, then one way to separate touching objects: a `watershed` of the mask
    by its shape or its probabilities, or one by the `separator` that the network predicts with `model.instances`. Then
    connected `components`. Multiclass competitions have other steps: one `bias` per class, and classes that are `never`
    predicted."""
    confidence: float = Field(0.9, ge=0.5, lt=1)
    """A step is kept if at least this share of the bootstrap samples shows a gain. All kept steps together need a share
    of 0.84, which corresponds to one standard error."""
    rows: Literal["raw", "cleaned"] = "raw"
    """Which images are scored. `raw`: all but the broken ones, because the test set is not cleaned either. `cleaned`:
    only those that clean left unchanged. The score on the other set of images is reported too."""
    threshold: float = Field(0.5, gt=0, le=1)
    """Pixels of at least this probability belong to the mask. Only used by `fixed`."""
    min_area: int = Field(0, ge=0)
    """Masks with fewer pixels, at the image's own size, become empty. Only used by `fixed`."""
    presence_prior: float | None = Field(None, gt=0, lt=1)
    """The share of test images that have a non-empty mask, if it is known to differ from the training images. Every
    choice and every score then weights the training images to have this share too. null: no weights."""
    presence_neighbours: bool = False
    """Whether the presence head's probability is averaged over near-duplicate images, in the training set and in the
    test set."""


class ArraysSettings(Settings):
    """External predictions, which replace training."""

    oof: str
    """A .npy file of out-of-fold probabilities, (N, H, W) or (N, classes, H, W), float from 0 to 1 or uint8 from 0 to
    255. A .csv file of the same name beside it has the column image_id, and optionally fold and presence_<class>."""
    test: str | None = None
    """The same for the test images, without the column fold."""


class Recipe(Settings):
    """One experiment, as its YAML file describes it."""

    name: str
    """Name of the run; by default the YAML file's name without its extension."""
    competition: str
    """Name of a competition, or the path of its YAML file, relative to the recipe's folder."""
    base: str | None = None
    """Another recipe, or a competition that has a `baseline`, by its name or by the path of its YAML file, relative to
    this recipe's folder. Every setting that this recipe leaves out is taken from the other recipe, except `name` and
    `takes`."""
    folds: PlainName | None = None
    """Name of a split: the recipe uses folds/<competition>-<name>.csv. null: the default split,
    folds/<competition>.csv."""
    image: ImageSettings = ImageSettings()
    model: ModelSettings = ModelSettings()
    loss: LossSettings = LossSettings()
    augment: list[dict[str, dict[str, Any]]] = []
    """Training augmentation: albumentations transforms by name, in this order, each with its arguments."""
    train: TrainSettings = TrainSettings()
    predict: PredictSettings = PredictSettings()
    tune: TuneSettings = TuneSettings()
    ensemble: dict[PlainName, float | None] = {}
    """Replaces training: other runs on the same folds whose predictions are averaged, each with its weight. If all
    weights are null, they are fitted to the out-of-fold predictions."""
    arrays: ArraysSettings | None = None
    """Replaces training: external predictions."""
    takes: str | None = None
    """How long the run takes, and on which hardware, as a text for a person who is about to start it. It is not used
    with `--quick`, unless `quick` has its own."""
    quick: dict[str, Any] = {}
    """The settings that `--quick` changes, to run the same pipeline in miniature."""

    @model_validator(mode="after")
    def _normalize_is_known(self) -> "Recipe":
        if self.image.normalize is None:  # resolved here, because training records it among its settings
            chosen = "imagenet" if self.model.weights == "none" else "encoder"
            object.__setattr__(self, "image", self.image.model_copy(update={"normalize": chosen}))
        return self

    @model_validator(mode="after")
    def _frozen_weights_are_pretrained(self) -> "Recipe":
        model = self.model
        frozen = "freeze" if model.freeze != "none" else "freeze_norm" if model.freeze_norm else ""
        own_class = ":" in model.architecture  # it may load weights itself
        if frozen and model.weights == "none" and self.train.start_from is None and not own_class:
            raise ValueError(
                f"model.{frozen} is {getattr(model, frozen)}, and model.weights is none: random weights or statistics "
                f"would never be trained. Set model.weights (or train.start_from), or leave model.{frozen} out"
            )
        return self

    @model_validator(mode="after")
    def _pseudo_labels_are_masks(self) -> "Recipe":
        if self.train.pseudo and self.model.separates:
            raise ValueError(
                f"train.pseudo labels masks only, and model.instances is {self.model.instances}, which needs "
                "separators of objects as well: leave one of the two out"
            )
        return self

    @field_validator("quick")
    @classmethod
    def _quick_keeps_the_recipe(cls, value: dict[str, Any]) -> dict[str, Any]:
        if wrong := [key for key in OF_THE_FILE if key in value]:
            raise ValueError(f"`{wrong[0]}` belongs to the recipe as a whole: remove it from `quick`")
        return value

    @model_validator(mode="after")
    def _one_source_of_predictions(self) -> "Recipe":
        if self.ensemble and self.arrays:
            raise ValueError("give `ensemble` or `arrays`, not both")
        weights = [weight for weight in self.ensemble.values() if weight is not None]
        if len(self.ensemble) == 1 or (
            weights and (len(weights) < len(self.ensemble) or min(weights) < 0 or not sum(weights))
        ):
            raise ValueError(
                "ensemble needs at least two runs. Their weights must be numbers of 0 or more, not all 0, or all null "
                "(then they are fitted)"
            )
        return self

    @property
    def trains(self) -> bool:
        """Whether the run trains its own models; False for ensembles and external predictions."""
        return not self.ensemble and self.arrays is None

    @field_validator("augment", mode="before")
    @classmethod
    def _none_is_empty(cls, value: Any) -> Any:
        return [] if value in (None, "none") else value


def _check_of_recipe(data: dict[str, Any], path: Path) -> None:
    """Raises PipelineError for a key that belongs into a competition's YAML, for instance `--set metric=dice`."""
    of_competition = {key for layout in LAYOUTS.values() for key in layout.model_fields} - Recipe.model_fields.keys()
    if wrong := sorted(of_competition & data.keys()):
        raise PipelineError(
            f"recipe {path.name}: `{wrong[0]}` is a setting of competitions, not of recipes: write it into the "
            f"competition's YAML ({data.get('competition', 'the one that the recipe names')})."
        )


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Returns a recipe's settings merged over those of its `base`; `above` are the recipes that lead to this one."""
    data = read_yaml(path)
    if not isinstance(data.get("base"), str):  # another type is reported together with all other faults
        return data
    name, above = data["base"], (*above, path.resolve())
    folder = path.absolute().parent
    try:
        base, changes = recipe_file(str(folder / name) if name.endswith((".yaml", ".yml")) else name)
        if base.resolve() in above:
            raise PipelineError(f"{name} is itself based on this recipe: name another recipe.")
        base_data = merge(_read(base, above), changes)
    except PipelineError as error:
        raise PipelineError(f"recipe {path.name}, its `base`: {error}") from None
    inherited = {key: value for key, value in base_data.items() if key not in ("name", "takes", "base")}
    return merge(_with_full_paths(inherited, base.absolute().parent), data)


def _with_full_paths(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Returns a recipe's data with paths made absolute that are relative to the folder of its YAML file."""
    competition, arrays = str(data.get("competition", "")), data.get("arrays")
    if competition.endswith((".yaml", ".yml")):
        data = {**data, "competition": str(folder / competition)}
    if isinstance(arrays, dict):
        full = {key: str(folder / Path(file).expanduser()) for key, file in arrays.items() if isinstance(file, str)}
        data = {**data, "arrays": arrays | full}
    return data


def load_recipe(
    name: str, quick: bool = False, assignments: list[str] | None = None, competition: str | None = None
) -> Recipe:
    """Returns the recipe with this name (pipeline/recipes/<name>.yaml) or at this path, or the recipe `baseline` for
    the competition with this name.

    Args:
        name: a name, or the path of a YAML file; `auto` stands for the recipe that was chosen for `competition`.
        quick: apply the recipe's own `quick` section.
        assignments: `key=value` with dotted keys, applied after everything else.
        competition: the competition to use instead of the recipe's own, by its name or path. The recipe's name then
            starts with that of the competition.

    Raises:
        PipelineError: the file does not exist, or has an unknown key or a wrong value.
    """
    given = load_competition(competition) if competition else None
    path, changes = recipe_file(name, given)
    if any(text.partition("=")[0].strip() == "base" for text in assignments or []):
        raise PipelineError(
            "--set base: the base of a recipe can only be set in its YAML. Write your own recipe with that `base`, or "
            f"run the base instead of {path.stem}."
        )
    data = merge({"name": path.stem, **_read(path)}, changes)
    data = with_full_competition(data, path)
    if given and competition:
        data = on_competition(data, given, competition, AUTO if name == AUTO else str(data["name"]))
    data = override(data, assignments or [])
    if "competition" not in data:
        raise PipelineError(
            f"recipe {path.name}: `competition` is missing; write it into the recipe, or add --competition NAME."
        )
    data = with_full_competition(data, path)
    _check_of_recipe(data, path)
    source = f"recipe {path.name}{_of_changes(name, changes, given)}"
    recipe = validate(Recipe, data, source)
    # validated without --quick too, so that a mistake in the section is found early
    miniature = override(merge({**data, "takes": None}, recipe.quick), assignments or [])
    in_miniature = validate(Recipe, miniature, f"{source} with --quick")
    return in_miniature if quick else recipe


def _of_changes(name: str, changes: dict[str, Any], competition: Competition | None) -> str:
    """Returns where the settings that are merged over a recipe come from, for error messages; "" if there are none."""
    if not changes:
        return ""
    if name == AUTO and competition:
        return f" with {shown(choice_file(competition))} and `baseline` of competition {competition.name}"
    return f" with `baseline` of competition {changes['name']}"
