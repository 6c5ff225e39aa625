"""albumentations by name, with its settings checked and its draws made reproducible."""

import inspect
from typing import Any

import albumentations
import numpy as np

from pipeline.errors import PipelineError


class Augmentation:
    """A recipe's transforms, applied to an image and its masks together."""

    def __init__(self, settings: list[dict[str, dict[str, Any]]]) -> None:
        """Builds the transforms.

        Raises:
            PipelineError: an unknown transform, an unknown setting, or a value that albumentations refuses.
        """
        transforms = [_build(name, arguments or {}) for entry in settings for name, arguments in entry.items()]
        self.compose = albumentations.Compose(transforms) if transforms else None

    def __call__(self, image: np.ndarray, masks: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the image (H, W, C) and masks (C, H, W) transformed by the draw that belongs to `seed`.

        albumentations repeats its draws in every worker and epoch unless it is seeded for every sample.
        """
        if self.compose is None:
            return image, masks
        self.compose.set_random_seed(seed)
        result = self.compose(image=image, masks=masks)
        return result["image"], result["masks"]

    def check(self, image: np.ndarray, masks: np.ndarray) -> None:
        """Applies every transform once to an image (H, W, C) and masks (C, H, W): many refuse uint16 or four channels.

        Raises:
            PipelineError: a transform does not work on such an image.
        """
        for transform in self.compose.transforms if self.compose else []:
            certain = albumentations.Compose([transform], p=1.0)
            before, transform.p = transform.p, 1.0
            try:
                certain(image=image, masks=masks)
            except Exception as error:  # whatever a transform raises
                kind = f"{image.dtype} images of {image.shape[2]} channels"
                reason = " ".join(str(error).split())[:200]
                raise PipelineError(f"augment: {type(transform).__name__} does not work on {kind}: {reason}") from None
            finally:
                transform.p = before


def _build(name: str, arguments: dict[str, Any]) -> albumentations.BasicTransform:
    transform = getattr(albumentations, name, None)
    if not (inspect.isclass(transform) and issubclass(transform, albumentations.BasicTransform)):
        raise PipelineError(f"augment: albumentations has no transform named `{name}`.")
    known = [key for key in inspect.signature(transform).parameters if key not in ("self", "kwargs")]
    unknown = [key for key in arguments if key not in known]
    if unknown:
        raise PipelineError(f"augment: {name} has no setting {', '.join(unknown)}; it has {', '.join(known)}.")
    try:
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
        return transform(**values)
    except (ValueError, TypeError) as error:
        raise PipelineError(f"augment: {name} refuses its settings: {' '.join(str(error).split())}") from None
