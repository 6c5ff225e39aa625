"""Builds albumentations transforms by name, with checked settings and reproducible random draws."""

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
"""The number of random draws with which a transform is tried. More than one, because RandomRotate90 keeps the size of
any image in half of its draws."""


class Bilateral(ImageOnlyTransform):
    """Bilateral filter, which smooths similar pixels and keeps edges (Tomasi and Manduchi 1998).

    It is not part of albumentations. It takes uint8, uint16 and float32 images of 1 or 3 channels. `sigma_color` is in
    units of an 8-bit image, whatever the image's dtype.
    """

    class InitSchema(BaseTransformInitSchema):
        """The schema with which albumentations checks the settings."""

        diameter: int = Field(ge=1)
        sigma_color: float = Field(gt=0)
        sigma_space: float = Field(gt=0)

    def __init__(self, diameter: int = 5, sigma_color: float = 50.0, sigma_space: float = 5.0, p: float = 0.5) -> None:
        super().__init__(p=p)
        self.diameter, self.sigma_color, self.sigma_space = diameter, sigma_color, sigma_space

    def apply(self, img: np.ndarray, *args: Any, **params: Any) -> np.ndarray:
        """Returns the image (H, W, C) filtered, same shape and dtype."""
        span = {np.dtype(np.uint16): 257.0, np.dtype(np.float32): 1 / 255}.get(img.dtype, 1.0)
        # OpenCV does not filter uint16 and truncates uint8 results; float32 holds the values of both
        smooth = cv2.bilateralFilter(img.astype(np.float32), self.diameter, self.sigma_color * span, self.sigma_space)
        rounded = smooth if img.dtype == np.float32 else np.rint(smooth)
        return rounded.astype(img.dtype, copy=False).reshape(img.shape)


OWN = {"Bilateral": Bilateral}


class Preprocess:
    """The transforms that are applied to every image in training and prediction, always with the same random draw."""

    def __init__(self, settings: Entries) -> None:
        """Builds the transforms. Each is always applied, whatever its p.

        Raises:
            PipelineError: as build_all; or a transform that may move pixels, or a group.
        """
        self.transforms = build_all(settings, "image.preprocess")
        for transform in self.transforms:
            if not isinstance(transform, ImageOnlyTransform):
                raise PipelineError(
                    f"image.preprocess: {type(transform).__name__} is not allowed: expected a plain list of transforms "
                    "that do not move pixels, without groups."
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
            PipelineError: a transform fails on such an image, or changes its size or dtype.
        """
        for transform in self.transforms:
            try_transform(transform, {"image": image}, "image.preprocess")


class _GroupSettings(BaseModel):
    # albumentations checks none of these
    p: float = Field(1.0, ge=0, le=1)
    n: int = Field(1, ge=1)
    replace: bool = False


def seed_all(transforms: Iterable[Transform], seed: int) -> None:
    """Seeds all transforms with one shared random generator."""
    # set_random_seed would give every transform the same numbers, and two transforms with the same p would always be
    # applied together
    numbers, choices = np.random.default_rng(seed), random.Random(seed)
    for transform in transforms:
        transform.set_random_state(numbers, choices)


def leaves(transforms: Iterable[Transform]) -> Iterator[BasicTransform]:
    """Yields all transforms that are not groups, including those inside groups."""
    for transform in transforms:
        if isinstance(transform, BaseCompose):
            yield from leaves(transform)
        else:
            yield transform


def try_transform(transform: Transform, data: dict[str, np.ndarray], where: str) -> None:
    """Applies a transform to an image and, if given, masks of 0, 1 and 255, to check that it works.

    Raises:
        PipelineError: the transform fails, changes a size or dtype, or interpolates masks.
    """
    image = data["image"]
    kind = f"{where}: {type(transform).__name__} does not work on {image.dtype} images of {image.shape[2]} channels"
    for seed in range(TRIES):
        seed_all([transform], seed)
        try:
            result = transform(force_apply=True, **{name: array.copy() for name, array in data.items()})
        except Exception as error:  # a transform may raise anything
            pass_on(error)
            raise PipelineError(f"{kind}: {' '.join(str(error).split())[:200]}") from None
        for name, before in data.items():
            after = result[name]
            if (after.shape, after.dtype) != (before.shape, before.dtype):
                result_kind, source_kind = (f"{array.dtype} {tuple(array.shape)}" for array in (after, before))
                raise PipelineError(f"{kind}: it turns {source_kind} into {result_kind}.")
            if name == "masks" and not np.isin(after, (0, 1, IGNORE)).all():
                raise PipelineError(f"{kind}: it interpolates their masks; remove mask_interpolation.")


def build_all(entries: Any, where: str) -> list[Transform]:
    """Returns the transforms of a recipe's list; `where` is the key of the list, for messages.

    Raises:
        PipelineError: an unknown transform, an unknown setting, or a value that albumentations does not accept.
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
            # albumentations replaces some invalid values by others and only warns
            warnings.filterwarnings("error", message=".*(adjusted|will be set to)", category=UserWarning)
            return kind(**values)
    except (ValueError, TypeError, UserWarning) as error:
        raise PipelineError(f"{where}: {name} does not accept its settings: {_reason(error, values)}") from None


def _named(name: str, where: str) -> type[Transform]:
    transform: Any = OWN.get(name) or getattr(albumentations, str(name), None)
    if name in GROUPS or _is_transform(transform):
        return transform
    known = [*OWN, *GROUPS, *(other for other in dir(albumentations) if _is_transform(getattr(albumentations, other)))]
    raise PipelineError(f"{where}: albumentations has no transform named `{name}`{did_you_mean(str(name), known)}")


def _is_transform(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, BasicTransform)


def _members(name: str, entries: Any, where: str) -> list[Transform]:
    members = build_all(entries, f"{where}: {name}.transforms")
    # OneOf divides each p by the sum of all
    if not members or (name == "OneOf" and not any(member.p for member in members)):
        raise PipelineError(f"{where}: {name} needs transforms with a p above 0.")
    return members


def _reason(error: Exception, values: dict[str, Any]) -> str:
    cause = error if isinstance(error, ValidationError) else error.__cause__
    if not isinstance(cause, ValidationError):
        return " ".join(str(error).split())
    parts: dict[str, list[str]] = {}
    for fault in cause.errors():
        field = str(fault["loc"][0]) if fault["loc"] else ""
        name = f"{field}={values[field]!r}: " if field in values else f"{field}: " if field else ""
        parts.setdefault(name, []).append(fault["msg"].removeprefix("Value error, ").rstrip("."))
    # if a value may have several types, pydantic reports one error per type
    return "; ".join(name + ", or ".join(dict.fromkeys(messages)) for name, messages in parts.items()) + "."
