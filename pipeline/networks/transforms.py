"""albumentations by name, with its settings checked and its draws made reproducible."""

import inspect
import random
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import albumentations
import cv2
import numpy as np
from albumentations.core.composition import BaseCompose
from albumentations.core.transforms_interface import BaseTransformInitSchema, BasicTransform, ImageOnlyTransform
from pydantic import BaseModel, Field, ValidationError

from pipeline.core.errors import PipelineError, did_you_mean
from pipeline.core.shortage import pass_on
from pipeline.masks.geometry import IGNORE

Entries = list[dict[str, dict[str, Any]]]
Transform: TypeAlias = BasicTransform | BaseCompose

GROUPS = ("OneOf", "SomeOf", "RandomOrder", "Sequential")
TRIES = 4
"""Draws that a transform is tried with: half of those of RandomRotate90 keep the size of any image."""


class Bilateral(ImageOnlyTransform):
    """Smooths what is alike and keeps edges (Tomasi and Manduchi 1998); albumentations has no such filter.

    For uint8, uint16 and float32 images of 1 or 3 channels. `sigma_color` is in units of an 8-bit image, whatever the
    image's dtype.
    """

    class InitSchema(BaseTransformInitSchema):
        """What albumentations checks the settings against."""

        diameter: int = Field(ge=1)
        sigma_color: float = Field(gt=0)
        sigma_space: float = Field(gt=0)

    def __init__(self, diameter: int = 5, sigma_color: float = 50.0, sigma_space: float = 5.0, p: float = 0.5) -> None:
        super().__init__(p=p)
        self.diameter, self.sigma_color, self.sigma_space = diameter, sigma_color, sigma_space

    def apply(self, img: np.ndarray, *args: Any, **params: Any) -> np.ndarray:
        """Returns the image (H, W, C) filtered, same shape and dtype."""
        span = {np.dtype(np.uint16): 257.0, np.dtype(np.float32): 1 / 255}.get(img.dtype, 1.0)
        # OpenCV filters no uint16, and cuts off the fractions of uint8; float32 holds the values of both
        found = cv2.bilateralFilter(img.astype(np.float32), self.diameter, self.sigma_color * span, self.sigma_space)
        rounded = found if img.dtype == np.float32 else np.rint(found)
        return rounded.astype(img.dtype, copy=False).reshape(img.shape)


OWN = {"Bilateral": Bilateral}


class Preprocess:
    """The transforms that every image goes through, in training and prediction, each image by the same draw."""

    def __init__(self, settings: Entries) -> None:
        """Builds the transforms; each is always applied, whatever its p.

        Raises:
            PipelineError: as build_all, and a transform that may move pixels, or a group that draws.
        """
        self.transforms = build_all(settings, "image.preprocess")
        for transform in self.transforms:
            if not isinstance(transform, ImageOnlyTransform):
                raise PipelineError(
                    f"image.preprocess: {type(transform).__name__} is not allowed: only transforms that leave every "
                    "pixel where it is, one after the other and without groups."
                )
            transform.p = 1.0

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Returns the image (H, W, C) transformed, same shape and dtype; without transforms, the image itself."""
        if self.transforms:
            seed_all(self.transforms, 0)
        for transform in self.transforms:
            image = transform(image=image)["image"]
        return image

    def check(self, image: np.ndarray) -> None:
        """Applies every transform to an image (H, W, C).

        Raises:
            PipelineError: a transform does not work on such an image, or changes its size or dtype.
        """
        for transform in self.transforms:
            try_transform(transform, {"image": image}, "image.preprocess")


class _GroupSettings(BaseModel):
    # albumentations checks none of these
    p: float = Field(1.0, ge=0, le=1)
    n: int = Field(1, ge=1)
    replace: bool = False


def seed_all(transforms: Iterable[Transform], seed: int) -> None:
    """Lets the transforms draw what belongs to a seed, all from one generator."""
    # one generator for all: set_random_seed gives each transform the same numbers, and two with the same p would only
    # ever come together
    numbers, choices = np.random.default_rng(seed), random.Random(seed)
    for transform in transforms:
        transform.set_random_state(numbers, choices)


def leaves(transforms: Iterable[Transform]) -> Iterator[BasicTransform]:
    """Yields the transforms that are no groups, those inside of groups too."""
    for transform in transforms:
        if isinstance(transform, BaseCompose):
            yield from leaves(transform)
        else:
            yield transform


def try_transform(transform: Transform, data: dict[str, np.ndarray], where: str) -> None:
    """Applies a transform to an image and, where there are any, masks of 0, 1 and 255.

    Raises:
        PipelineError: it does not work on them, changes a size or dtype, or blends masks.
    """
    image = data["image"]
    kind = f"{where}: {type(transform).__name__} does not work on {image.dtype} images of {image.shape[2]} channels"
    for seed in range(TRIES):
        seed_all([transform], seed)
        try:
            result = transform(force_apply=True, **{name: array.copy() for name, array in data.items()})
        except Exception as error:  # whatever a transform raises
            pass_on(error)
            raise PipelineError(f"{kind}: {' '.join(str(error).split())[:200]}") from None
        for name, before in data.items():
            after = result[name]
            if (after.shape, after.dtype) != (before.shape, before.dtype):
                made, of = (f"{array.dtype} {tuple(array.shape)}" for array in (after, before))
                raise PipelineError(f"{kind}: it makes {made} of {of}.")
            if name == "masks" and not np.isin(after, (0, 1, IGNORE)).all():
                raise PipelineError(f"{kind}: it blends their masks; leave mask_interpolation out.")


def build_all(entries: Any, where: str) -> list[Transform]:
    """Returns the transforms of a recipe's list; `where` is its key, for messages.

    Raises:
        PipelineError: an unknown transform, an unknown setting, or a value that albumentations refuses.
    """
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise PipelineError(f"{where}: expected a list of `Name: {{setting: value}}`, not {entries!r}.")
    return [_build(name, arguments, where) for entry in entries for name, arguments in entry.items()]


def _build(name: str, arguments: Any, where: str) -> Transform:
    kind, values = _named(name, where), arguments or {}
    if not isinstance(values, dict):
        raise PipelineError(f"{where}: expected settings of {name} as `{{setting: value}}`, not {values!r}.")
    known = [key for key in inspect.signature(kind).parameters if key not in ("self", "kwargs")]
    unknown = [str(key) for key in values if key not in known]
    if unknown:
        raise PipelineError(f"{where}: {name} has no setting {', '.join(unknown)}; it has {', '.join(known)}.")
    if name in GROUPS:
        values = values | {"transforms": _members(name, values.get("transforms"), where)}
    try:
        if name in GROUPS:
            _GroupSettings.model_validate(values)
        with warnings.catch_warnings():
            # of some values albumentations takes others, with no more than a warning
            warnings.filterwarnings("error", message=".*(adjusted|will be set to)", category=UserWarning)
            return kind(**values)
    except (ValueError, TypeError, UserWarning) as error:
        raise PipelineError(f"{where}: {name} refuses its settings: {_reason(error, values)}") from None


def _named(name: str, where: str) -> type[Transform]:
    found: Any = OWN.get(name) or getattr(albumentations, str(name), None)
    if name in GROUPS or _is_transform(found):
        return found
    known = [*OWN, *GROUPS, *(other for other in dir(albumentations) if _is_transform(getattr(albumentations, other)))]
    raise PipelineError(f"{where}: albumentations has no transform named `{name}`{did_you_mean(str(name), known)}")


def _is_transform(found: Any) -> bool:
    return inspect.isclass(found) and issubclass(found, BasicTransform)


def _members(name: str, entries: Any, where: str) -> list[Transform]:
    members = build_all(entries, f"{where}: {name}.transforms")
    # OneOf divides each p by their sum
    if not members or (name == "OneOf" and not any(member.p for member in members)):
        raise PipelineError(f"{where}: {name} needs transforms with a p above 0.")
    return members


def _reason(error: Exception, values: dict[str, Any]) -> str:
    cause = error if isinstance(error, ValidationError) else error.__cause__
    if not isinstance(cause, ValidationError):
        return " ".join(str(error).split())
    parts: dict[str, list[str]] = {}
    for one in cause.errors():
        field = str(one["loc"][0]) if one["loc"] else ""
        name = f"{field}={values[field]!r}: " if field in values else f"{field}: " if field else ""
        parts.setdefault(name, []).append(one["msg"].removeprefix("Value error, ").rstrip("."))
    # of a value that may be of several types, each type has its complaint
    return "; ".join(name + ", or ".join(dict.fromkeys(messages)) for name, messages in parts.items()) + "."
