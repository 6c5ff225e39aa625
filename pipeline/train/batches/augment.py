"""The augmentation of training images by albumentations, with its draws made reproducible."""

import albumentations
import numpy as np

from pipeline.masks.geometry import IGNORE
from pipeline.networks.transforms import Entries, build_all, leaves, seed_all, try_transform


class Augmentation:
    """A recipe's transforms, applied to an image and its masks together.

    Masks are uint8, or float32 (soft labels), with 255 for ignored pixels; they move by nearest neighbour, so that
    their values never blend. What a rotation moves in from outside is background, 0, unless the transform's `fill_mask`
    says otherwise (255: ignored), and black in the image. CoarseDropout leaves masks alone unless it has a `fill_mask`.
    """

    def __init__(self, settings: Entries) -> None:
        """Builds the transforms; OneOf, SomeOf, RandomOrder and Sequential hold further ones as `transforms`.

        Raises:
            PipelineError: an unknown transform, an unknown setting, or a value that albumentations refuses.
        """
        transforms = build_all(settings, "augment")
        self.compose = albumentations.Compose(transforms) if transforms else None

    def __call__(self, image: np.ndarray, masks: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the image (H, W, C) and masks (C, H, W) transformed by the draw that belongs to `seed`.

        albumentations repeats its draws in every worker and epoch unless it is seeded for every sample.
        """
        if self.compose is None:
            return image, masks
        seed_all([self.compose], seed)
        result = self.compose(image=image, masks=masks)
        return result["image"], result["masks"]

    def check(self, image: np.ndarray, masks: np.ndarray) -> None:
        """Applies every transform to an image (H, W, C) and to masks (C, H, W) of this dtype that hold 0, 1 and 255.

        Many transforms refuse uint16 or four channels.

        Raises:
            PipelineError: a transform does not work on such an image, changes its size or dtype, or blends masks.
        """
        striped = np.resize(np.array([0, 1, IGNORE], masks.dtype), masks.shape)
        for transform in leaves(self.compose or []):
            try_transform(transform, {"image": image, "masks": striped}, "augment")
