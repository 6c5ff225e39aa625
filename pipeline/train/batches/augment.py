"""Augments training images with albumentations, with reproducible random draws."""

import albumentations
import numpy as np

from pipeline.masks.geometry import IGNORE
from pipeline.networks.transforms import Entries, build_all, leaves, seed_all, try_transform


class Augmentation:
    """The transforms of a recipe, applied to an image and its masks together.

    Masks are uint8, or float32 for soft labels, with 255 for ignored pixels. They are resampled with nearest neighbour,
    so that their values never mix. Pixels that a rotation brings in from outside are black in the image and background
    (0) in the masks, unless the transform has another `fill_mask` (255 is ignored). CoarseDropout does not change masks
    unless it has a `fill_mask`.
    """

    def __init__(self, settings: Entries) -> None:
        """Builds the transforms. The groups OneOf, SomeOf, RandomOrder and Sequential hold others as `transforms`.

        Raises:
            PipelineError: an unknown transform, an unknown setting, or a value that albumentations does not accept.
        """
        transforms = build_all(settings, "augment")
        self.compose = albumentations.Compose(transforms) if transforms else None

    def __call__(self, image: np.ndarray, masks: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the image (H, W, C) and masks (C, H, W), transformed with random draws that `seed` determines.

        albumentations is seeded for every sample, because otherwise it repeats its draws in every worker and epoch.
        """
        if self.compose is None:
            return image, masks
        seed_all([self.compose], seed)
        result = self.compose(image=image, masks=masks)
        return result["image"], result["masks"]

    def check(self, image: np.ndarray, masks: np.ndarray) -> None:
        """Applies every transform to an image (H, W, C) and to masks of the shape and dtype of `masks` with 0, 1 and
        255.

        Many transforms fail for uint16 or four channels.

        Raises:
            PipelineError: a transform fails on such an image, changes its size or dtype, or interpolates masks.
        """
        striped = np.resize(np.array([0, 1, IGNORE], masks.dtype), masks.shape)
        for transform in leaves(self.compose or []):
            try_transform(transform, {"image": image, "masks": striped}, "augment")
