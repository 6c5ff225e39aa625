"""Mixes two training images: CutMix, mixup, and pasting the pixels of a rare class from one image into the other.

Images are (H, W, C) uint8 or uint16; masks are (C, H, W) uint8 or float32 of the same height and width, with 255 for
ignored pixels. If the masks have different dtypes, the result has the wider one. No array is modified in place.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.core.config.training import MixSettings
from pipeline.core.errors import PipelineError
from pipeline.masks.geometry import IGNORE

Pair = tuple[np.ndarray, np.ndarray]
"""An image and its masks."""
NAMES = ("cutmix", "mixup", "paste")


def cutmix(
    image: np.ndarray,
    masks: np.ndarray,
    other: np.ndarray,
    other_masks: np.ndarray,
    alpha: float,
    random: np.random.Generator,
) -> Pair:
    """Returns the image and its masks with a rectangle of the other image at the same position (Yun et al. 2019).

    The rectangle has the image's proportions, and its share of the area is drawn from Beta(alpha, alpha). Its centre is
    a random pixel, and parts outside the image are cut off. Each pixel keeps its own label; labels are not weighted.
    """
    side = np.sqrt(random.beta(alpha, alpha))
    size = np.array(image.shape[:2])
    centre, half = random.integers(size), size * side / 2
    top, left = np.maximum(np.rint(centre - half), 0).astype(int)
    bottom, right = np.rint(centre + half).astype(int)  # slices end at the border
    box = (slice(top, bottom), slice(left, right))
    image, masks = image.copy(), _copy_masks(masks, other_masks)
    image[box], masks[:, *box] = other[box], other_masks[:, *box]
    return image, masks


def mixup(
    image: np.ndarray,
    masks: np.ndarray,
    other: np.ndarray,
    other_masks: np.ndarray,
    alpha: float,
    random: np.random.Generator,
) -> Pair:
    """Returns the weighted mean of two images, rounded, and of their masks, as float32 (Zhang et al. 2018).

    The weight is drawn from Beta(alpha, alpha). A pixel that either mask ignores is ignored. Masks hold values from 0
    to 1; class maps cannot be averaged.
    """
    weight = random.beta(alpha, alpha)
    mean = weight * image + (1 - weight) * other
    mean = (mean if image.dtype.kind == "f" else np.rint(mean)).astype(image.dtype)
    mean_masks = (weight * masks + (1 - weight) * other_masks).astype(np.float32)
    mean_masks[(masks == IGNORE) | (other_masks == IGNORE)] = IGNORE
    return mean, mean_masks


def pixels_of(masks: np.ndarray, number: int, kind: str) -> np.ndarray:
    """Returns which pixels (H, W) bool have a class, given by its value in class maps or by the index of its plane.

    In soft masks these are the pixels with at least 0.5.
    """
    if kind == "multiclass":
        return masks[0] == number
    return (masks[number] >= 0.5) & (masks[number] <= 1)


def paste(
    image: np.ndarray,
    masks: np.ndarray,
    other: np.ndarray,
    other_masks: np.ndarray,
    chosen: np.ndarray,
    random: np.random.Generator,
) -> Pair:
    """Returns the image and its masks with the `chosen` pixels (H, W) bool of the other image, shifted together.

    The shift is uniform over all that keep the pixels inside the image. A pasted pixel brings its labels of all planes.
    If no pixel is chosen, the image and masks are returned unchanged.
    """
    rows, columns = np.nonzero(chosen)
    if len(rows) == 0:
        return image, masks
    down = random.integers(-rows.min(), chosen.shape[0] - rows.max())
    right = random.integers(-columns.min(), chosen.shape[1] - columns.max())
    image, masks = image.copy(), _copy_masks(masks, other_masks)
    image[rows + down, columns + right] = other[rows, columns]
    masks[:, rows + down, columns + right] = other_masks[:, rows, columns]
    return image, masks


class Mixer:
    """Decides which images are mixed, how and with which others, and mixes them. A seed determines each decision."""

    def __init__(
        self, settings: MixSettings, kind: str, classes: int, paste_classes: Sequence[int], donors: np.ndarray
    ) -> None:
        """Takes the settings.

        Args:
            settings: the recipe's `train.mix`.
            kind: binary, multilabel or multiclass.
            classes: the number of classes, including the background of a multiclass competition.
            paste_classes: the numbers of the classes whose pixels are pasted.
            donors: positions in the dataset (N,) of the images that contain any of these classes.

        Raises:
            PipelineError: the probabilities sum to more than 1, mixup is set for class maps, a class does not exist, or
                there is nothing to paste.
        """
        self.settings, self.kind, self.paste_classes, self.donors = settings, kind, list(paste_classes), donors
        self.bounds = np.cumsum([getattr(settings, name) for name in NAMES])
        if self.bounds[-1] > 1 + 1e-9:
            raise PipelineError(
                f"train.mix: an image is mixed in at most one way, but the probabilities of {', '.join(NAMES)} sum to "
                f"{self.bounds[-1]:g}; expected at most 1."
            )
        if settings.mixup > 0 and kind == "multiclass":
            raise PipelineError("train.mix.mixup: the class maps of a multiclass competition have no mean; use cutmix.")
        if settings.paste > 0:
            self._check_paste(classes)

    @property
    def soft(self) -> bool:
        """Whether mixing makes masks soft, in which case all masks must be float32."""
        return self.settings.mixup > 0

    def partner(self, seed: int, count: int) -> tuple[str, int] | None:
        """Returns how to mix an image and the position of the other image; None if it is not mixed.

        Args:
            seed: determines the draw.
            count: the number of images in the dataset. `paste` draws from the donors only. The other image may be the
                image itself.
        """
        random = np.random.default_rng(seed)
        drawn = int(np.searchsorted(self.bounds, random.random(), side="right"))
        if drawn == len(NAMES):
            return None
        name = NAMES[drawn]
        return name, int(random.choice(self.donors) if name == "paste" else random.integers(count))

    def apply(self, name: str, first: Pair, second: Pair, seed: int) -> Pair:
        """Returns the first image and its masks, mixed with the second in the way that `partner` returned.

        `paste` pastes one random class among those that the second image contains. If it contains none, as is possible
        for a crop, nothing changes.
        """
        random = np.random.default_rng((seed, 1))  # other random numbers than those of `partner`
        if name == "paste":
            return paste(*first, *second, self._chosen(second[1], random), random)
        return (cutmix if name == "cutmix" else mixup)(*first, *second, self.settings.alpha, random)

    def _chosen(self, masks: np.ndarray, random: np.random.Generator) -> np.ndarray:
        planes = [pixels_of(masks, number, self.kind) for number in self.paste_classes]
        held = [pixels for pixels in planes if pixels.any()]
        return held[random.integers(len(held))] if held else planes[0]

    def _check_paste(self, classes: int) -> None:
        wrong = [number for number in self.paste_classes if not 0 <= number < classes]
        if wrong or not self.paste_classes:
            raise PipelineError(f"train.mix.paste_classes: expected classes from 0 to {classes - 1}, not {wrong}.")
        if len(self.donors) == 0:
            named = ", ".join(str(number) for number in self.paste_classes)
            raise PipelineError(f"train.mix.paste: no training image of the fold has a pixel of the classes {named}.")


def _copy_masks(masks: np.ndarray, other_masks: np.ndarray) -> np.ndarray:
    return masks.astype(np.result_type(masks, other_masks))
