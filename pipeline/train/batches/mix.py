"""Two training images made one: CutMix, mixup, and the pixels of a rare class pasted from one into the other.

Images are (H, W, C) uint8 or uint16, masks (C, H, W) uint8 or float32 of the same height and width, with 255 for
ignored pixels. Of two dtypes of masks the result has the wider one. No array is modified in place.
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
    """Returns the image and its masks with a rectangle of the other at the same place (Yun et al. 2019).

    The rectangle has the image's proportions and a share of its area drawn from Beta(alpha, alpha); it lies around any
    pixel, and what of it is outside the image is cut off. Each pixel keeps its own label: no labels are weighted.
    """
    side = np.sqrt(random.beta(alpha, alpha))
    size = np.array(image.shape[:2])
    centre, half = random.integers(size), size * side / 2
    top, left = np.maximum(np.rint(centre - half), 0).astype(int)
    bottom, right = np.rint(centre + half).astype(int)  # a slice ends at the border by itself
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
    """Returns the weighted mean of two images, rounded, and that of their masks, float32 (Zhang et al. 2018).

    The weight is drawn from Beta(alpha, alpha). A pixel that either mask ignores is ignored. Masks are 0, 1 or between;
    of class maps no mean can be made.
    """
    weight = random.beta(alpha, alpha)
    mean = weight * image + (1 - weight) * other
    mean = (mean if image.dtype.kind == "f" else np.rint(mean)).astype(image.dtype)
    mean_masks = (weight * masks + (1 - weight) * other_masks).astype(np.float32)
    mean_masks[(masks == IGNORE) | (other_masks == IGNORE)] = IGNORE
    return mean, mean_masks


def pixels_of(masks: np.ndarray, number: int, kind: str) -> np.ndarray:
    """Returns which pixels (H, W) bool have the class with this number: a class map's value, or a plane's index.

    Of soft masks, those that have it with at least 0.5.
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
    """Returns the image and its masks with the other's `chosen` pixels (H, W) bool, moved together.

    Any shift that keeps all of them inside the image is as likely as any other. A pasted pixel brings its label in all
    planes. Without a chosen pixel, returns what it was given.
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
    """Draws which images are mixed, how and with which others, and mixes them; a seed decides each draw."""

    def __init__(
        self, settings: MixSettings, kind: str, classes: int, paste_classes: Sequence[int], donors: np.ndarray
    ) -> None:
        """Takes the settings.

        Args:
            settings: the recipe's `train.mix`.
            kind: binary, multilabel or multiclass.
            classes: how many there are, background of a multiclass competition included.
            paste_classes: numbers of the classes whose pixels are pasted.
            donors: positions in the dataset (N,) of images that hold any of these classes.

        Raises:
            PipelineError: probabilities with a sum above 1, mixup of class maps, no class with such a number, or
                nothing to paste.
        """
        self.settings, self.kind, self.paste_classes, self.donors = settings, kind, list(paste_classes), donors
        self.bounds = np.cumsum([getattr(settings, name) for name in NAMES])
        if self.bounds[-1] > 1 + 1e-9:
            raise PipelineError(
                f"train.mix: an image is mixed in one way at most, and the probabilities of {', '.join(NAMES)} add up "
                f"to {self.bounds[-1]:g}; expected at most 1."
            )
        if settings.mixup > 0 and kind == "multiclass":
            raise PipelineError("train.mix.mixup: classes have no mean in a multiclass competition; use cutmix.")
        if settings.paste > 0:
            self._check_paste(classes)

    @property
    def soft(self) -> bool:
        """Whether some masks become soft; all masks of a run must then be float32."""
        return self.settings.mixup > 0

    def partner(self, seed: int, count: int) -> tuple[str, int] | None:
        """Returns how to mix the image that the seed belongs to and the position of the other one; None: not at all.

        Args:
            seed: decides the draw.
            count: how many images the dataset holds; of them, `paste` takes a donor. It may be the image itself.
        """
        random = np.random.default_rng(seed)
        drawn = int(np.searchsorted(self.bounds, random.random(), side="right"))
        if drawn == len(NAMES):
            return None
        name = NAMES[drawn]
        return name, int(random.choice(self.donors) if name == "paste" else random.integers(count))

    def apply(self, name: str, first: Pair, second: Pair, seed: int) -> Pair:
        """Returns the first image and its masks mixed with the second's, by a name and a seed of `partner`.

        `paste` pastes one class, any that the second image holds; if it holds none, as a crop may, nothing changes.
        """
        random = np.random.default_rng((seed, 1))  # other numbers than those that drew the name
        if name == "paste":
            return paste(*first, *second, self._chosen(second[1], random), random)
        return (cutmix if name == "cutmix" else mixup)(*first, *second, self.settings.alpha, random)

    def _chosen(self, masks: np.ndarray, random: np.random.Generator) -> np.ndarray:
        found = [pixels_of(masks, number, self.kind) for number in self.paste_classes]
        held = [pixels for pixels in found if pixels.any()]
        return held[random.integers(len(held))] if held else found[0]

    def _check_paste(self, classes: int) -> None:
        wrong = [number for number in self.paste_classes if not 0 <= number < classes]
        if wrong or not self.paste_classes:
            raise PipelineError(f"train.mix.paste_classes: expected classes from 0 to {classes - 1}, not {wrong}.")
        if len(self.donors) == 0:
            named = ", ".join(str(number) for number in self.paste_classes)
            raise PipelineError(f"train.mix.paste: no training image of the fold holds a pixel of the classes {named}.")


def _copy_masks(masks: np.ndarray, other_masks: np.ndarray) -> np.ndarray:
    return masks.astype(np.result_type(masks, other_masks))
