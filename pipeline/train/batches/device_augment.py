"""Applies a recipe's albumentations to whole batches on the device of the network: `train.augment_on: device`.

albumentations makes the random draws, and torch computes the pixels. The objects that the loader would use draw whether
a transform is applied to an image, and with which angle, factor or box, so the distribution is the same. The pixels of
all images of a batch are computed together, one transform after another, and are rounded or clipped after each
transform as albumentations does. Only the values of noise are drawn by torch.

kornia is not used, because its transforms draw differently (one deviation of noise, shifts by fractions of a pixel, all
from torch's global generator). With albumentations' draws, it would only add a wrapper around torch's grid_sample.
"""

import random
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.core.config.recipe import Recipe
from pipeline.core.errors import PipelineError
from pipeline.networks.transforms import Entries
from pipeline.train.batches.augment import Augmentation

Draws = Sequence[dict[str, Any]]
"""The drawn parameters of a transform, one dict per image that it is applied to."""
Moved = tuple[Tensor, Tensor]
"""Pixels (n, C, H, W) and masks (n, classes, H, W)."""

SYMMETRIES: dict[str, Callable[[Tensor], Tensor]] = {
    "e": lambda planes: planes,
    "r90": lambda planes: planes.rot90(1, (2, 3)),
    "r180": lambda planes: planes.flip((2, 3)),
    "r270": lambda planes: planes.rot90(3, (2, 3)),
    "v": lambda planes: planes.flip(2),
    "h": lambda planes: planes.flip(3),
    "t": lambda planes: planes.transpose(2, 3),
    "hvt": lambda planes: planes.flip((2, 3)).transpose(2, 3),
}
"""The symmetries of a square by albumentations' names, as functions of planes (n, C, H, W)."""
QUARTERS = ("e", "r90", "r180", "r270")
BORDERS = {
    cv2.BORDER_CONSTANT: "zeros",
    cv2.BORDER_REPLICATE: "border",
    cv2.BORDER_REFLECT: "reflection",
    cv2.BORDER_REFLECT_101: "reflection",
}
INTERPOLATIONS = {cv2.INTER_NEAREST: "nearest", cv2.INTER_LINEAR: "bilinear"}


class DeviceAugmentation:
    """The transforms of a recipe, applied to a batch of images and their masks together.

    Masks are resampled with nearest neighbour. Pixels from outside are filled as in `Augmentation`.
    """

    def __init__(self, settings: Entries, size: tuple[int, int]) -> None:
        """Takes the recipe's `augment` and the size of its images, rows × columns.

        Raises:
            PipelineError: as Augmentation; or a transform, or one of its settings, is not implemented for the device.
        """
        self.compose = Augmentation(settings).compose
        self.transforms: list[Any] = list(self.compose.transforms) if self.compose else []
        for transform in self.transforms:
            name = type(transform).__name__
            missing = EQUALS[name].missing(transform, size) if name in EQUALS else ""
            if name not in EQUALS or missing:
                raise PipelineError(
                    f"augment: {name}{missing and f' with {missing}'} is not implemented for train.augment_on=device; "
                    f"expected only {', '.join(EQUALS)}, or set train.augment_on=loader."
                )

    def __call__(self, pixels: Tensor, masks: Tensor, seed: int) -> Moved:
        """Returns a batch's pixels and masks, same shapes and dtypes, transformed with draws that `seed` determines.

        Args:
            pixels: (N, C, H, W) uint8, int32 that holds uint16, or float32 from 0 to 1.
            masks: (N, classes, H, W) uint8 or float32 on the same device, 255 for ignored pixels.
            seed: determines all draws, made for one image after another.
        """
        draws = self.draw(len(pixels), (*pixels.shape[2:], pixels.shape[1]), seed)
        generator = torch.Generator(pixels.device).manual_seed(seed)
        with torch.autocast(pixels.device.type, enabled=False):
            for transform, drawn in zip(self.transforms, draws, strict=True):
                pixels, masks = _apply(transform, drawn, pixels, masks, generator)
        return pixels, masks

    def draw(self, count: int, shape: tuple[int, ...], seed: int) -> list[list[dict[str, Any] | None]]:
        """Returns albumentations' draws for `count` images of a shape (H, W, C): one list per transform, with one entry
        per image, which is None if the transform is not applied."""
        if self.compose is None:
            return []
        self.compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        images = [[_draw(transform, shape) for transform in self.transforms] for _ in range(count)]
        return [list(drawn) for drawn in zip(*images, strict=True)]


def device_augmentation(recipe: Recipe) -> DeviceAugmentation | None:
    """Returns the augmentation that a recipe applies on the device; None if the loader applies it.

    Raises:
        PipelineError: as DeviceAugmentation.
    """
    if recipe.train.augment_on == "loader":
        return None
    return DeviceAugmentation(recipe.augment, recipe.image.size)


# --- draws -----------------------------------------------------------------------------------------------------------


def _draw(transform: Any, shape: tuple[int, ...]) -> dict[str, Any] | None:
    if not transform.should_apply():
        return None
    if draw := EQUALS[type(transform).__name__].draw:
        return draw(transform)
    drawn = {**transform.get_params(), "shape": shape}
    return drawn | transform.get_params_dependent_on_data(drawn, {})


def _draw_contrast(transform: Any) -> dict[str, Any]:
    # in the order of albumentations' own function, which is not called because it needs the image
    uniform = transform.py_random.uniform
    return {"alpha": 1 + uniform(*transform.contrast_limit), "beta": uniform(*transform.brightness_limit)}


def _draw_noise(transform: Any) -> dict[str, Any]:
    uniform = transform.py_random.uniform
    return {"std": uniform(*transform.std_range), "mean": uniform(*transform.mean_range)}


# --- one transform ---------------------------------------------------------------------------------------------------


def _apply(
    transform: Any, drawn: Sequence[dict[str, Any] | None], pixels: Tensor, masks: Tensor, generator: torch.Generator
) -> Moved:
    draws = [draw for draw in drawn if draw is not None]
    apply = EQUALS[type(transform).__name__].apply
    if not draws:
        return pixels, masks
    if len(draws) == len(drawn):
        return apply(transform, draws, pixels, masks, generator)
    index = _sent([number for number, draw in enumerate(drawn) if draw is not None], pixels)
    before = masks[index]
    changed, moved = apply(transform, draws, pixels[index], before, generator)
    return pixels.index_copy(0, index, changed), masks if moved is before else masks.index_copy(0, index, moved)


def _turn(transform: Any, draws: Draws, pixels: Tensor, masks: Tensor, generator: torch.Generator) -> Moved:
    fixed = {"HorizontalFlip": "h", "VerticalFlip": "v", "Transpose": "t"}.get(type(transform).__name__)
    elements = [fixed or draw.get("group_element") or QUARTERS[draw["factor"]] for draw in draws]
    for element in sorted(set(elements)):
        turned = SYMMETRIES[element]
        if len(set(elements)) == 1:
            return turned(pixels), turned(masks)
        index = _sent([number for number, other in enumerate(elements) if other == element], pixels)
        pixels, masks = (planes.index_copy(0, index, turned(planes[index])) for planes in (pixels, masks))
    return pixels, masks


def _warp(transform: Any, draws: Draws, pixels: Tensor, masks: Tensor, generator: torch.Generator) -> Moved:
    inverse = np.linalg.inv([draw["matrix"] for draw in draws])
    border, mode = transform.border_mode, INTERPOLATIONS[transform.interpolation]
    grid = _grid(_sent(inverse, pixels), pixels.shape[2:], border == cv2.BORDER_REFLECT_101)
    changed = _sample(pixels, grid, mode, border, transform.fill)
    return _whole(_rounded(changed, pixels), pixels), _sample(masks, grid, "nearest", border, transform.fill_mask).to(
        masks.dtype
    )


def _change_contrast(transform: Any, draws: Draws, pixels: Tensor, masks: Tensor, generator: torch.Generator) -> Moved:
    values, largest = pixels.float(), _largest(pixels)
    alpha, beta = _column(draws, "alpha", pixels), _column(draws, "beta", pixels)
    beta = beta * (largest if transform.brightness_by_max else values.mean((1, 2, 3), keepdim=True))
    if transform.ensure_safe_range:
        beta = torch.where(alpha > 0, beta.clamp(0, largest), beta.clamp(max=largest))
        alpha = torch.where(alpha > 0, alpha.minimum(1 - beta / largest), alpha.maximum(-beta / largest))
    return _whole(values * alpha + beta, pixels), masks


def _change_gamma(transform: Any, draws: Draws, pixels: Tensor, masks: Tensor, generator: torch.Generator) -> Moved:
    largest = _largest(pixels)
    return _whole((pixels / largest) ** _column(draws, "gamma", pixels) * largest, pixels), masks


def _add_noise(transform: Any, draws: Draws, pixels: Tensor, masks: Tensor, generator: torch.Generator) -> Moved:
    planes = pixels if transform.per_channel else pixels[:, :1]
    noise = torch.randn(planes.shape, generator=generator, device=pixels.device)
    noise = noise * _column(draws, "std", pixels) + _column(draws, "mean", pixels)
    return _whole(pixels + noise * _largest(pixels), pixels), masks


def _blur(transform: Any, draws: Draws, pixels: Tensor, masks: Tensor, generator: torch.Generator) -> Moved:
    longest = max(len(draw["kernel"]) for draw in draws)
    kernels = _sent([np.pad(draw["kernel"], (longest - len(draw["kernel"])) // 2) for draw in draws], pixels)
    values = pixels.float()
    for dimension in (2, 3):
        half, length = longest // 2, values.shape[dimension]
        # mirrored as often as needed, as in OpenCV
        place = torch.arange(-half, length + half, device=pixels.device).remainder(max(2 * length - 2, 1))
        padded = values.index_select(dimension, place.minimum(2 * length - 2 - place))
        taps = (kernels[:, tap].view(-1, 1, 1, 1) * padded.narrow(dimension, tap, length) for tap in range(longest))
        values = reduce(torch.add, taps)
    return _whole(values.round(), pixels), masks


def _drop(transform: Any, draws: Draws, pixels: Tensor, masks: Tensor, generator: torch.Generator) -> Moved:
    most = max(len(draw["holes"]) for draw in draws)
    boxes = _sent([np.pad(draw["holes"], ((0, most - len(draw["holes"])), (0, 0))) for draw in draws], pixels)
    left, top, right, bottom = boxes.unsqueeze(3).unbind(2)  # (n, holes, 1)
    rows, columns = (torch.arange(side, device=pixels.device) for side in pixels.shape[2:])
    down, across = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    inside = (down.unsqueeze(3) & across.unsqueeze(2)).any(1, keepdim=True)
    if transform.fill_mask is not None:
        masks = masks.masked_fill(inside, transform.fill_mask)
    return pixels.masked_fill(inside, transform.fill), masks


class Equal(NamedTuple):
    """The implementation of a transform of albumentations on the device."""

    apply: Callable[[Any, Draws, Tensor, Tensor, torch.Generator], Moved]
    missing: Callable[[Any, tuple[int, int]], str] = lambda transform, size: ""
    """Returns a setting that is not implemented for images of a size, rows × columns; "" if all are."""
    draw: Callable[[Any], dict[str, Any]] | None = None
    """Makes the draws in place of albumentations' own function."""


def _missing_turn(transform: Any, size: tuple[int, int]) -> str:
    return "" if size[0] == size[1] else f"images of {size[0]}×{size[1]}, which are not square,"


def _missing_warp(transform: Any, size: tuple[int, int]) -> str:
    allowed = {
        "crop_border": (False,),
        "fit_output": (False,),
        "interpolation": tuple(INTERPOLATIONS),
        "mask_interpolation": (cv2.INTER_NEAREST,),
        "border_mode": tuple(BORDERS),
    }
    wrong = [name for name, values in allowed.items() if getattr(transform, name, values[0]) not in values]
    return _setting(transform, wrong[0]) if wrong else _missing_fill(transform, size)


def _missing_noise(transform: Any, size: tuple[int, int]) -> str:
    return "" if transform.noise_scale_factor == 1 else _setting(transform, "noise_scale_factor")


def _missing_fill(transform: Any, size: tuple[int, int]) -> str:
    wrong = [name for name in ("fill", "fill_mask") if isinstance(getattr(transform, name), str | tuple | list)]
    return _setting(transform, wrong[0]) if wrong else ""


def _setting(transform: Any, name: str) -> str:
    return f"{name}={getattr(transform, name)!r}"


EQUALS = {
    "HorizontalFlip": Equal(_turn),
    "VerticalFlip": Equal(_turn),
    "Transpose": Equal(_turn, _missing_turn),
    "RandomRotate90": Equal(_turn, _missing_turn),
    "D4": Equal(_turn, _missing_turn),
    "Rotate": Equal(_warp, _missing_warp),
    "Affine": Equal(_warp, _missing_warp),
    "RandomBrightnessContrast": Equal(_change_contrast, draw=_draw_contrast),
    "RandomGamma": Equal(_change_gamma),
    "GaussNoise": Equal(_add_noise, _missing_noise, _draw_noise),
    "GaussianBlur": Equal(_blur),
    "CoarseDropout": Equal(_drop, _missing_fill),
}

# --- details ---------------------------------------------------------------------------------------------------------


def _sent(values: Any, like: Tensor) -> Tensor:
    """Returns numbers as a tensor on the device of `like`, floats as float32, without waiting for a GPU."""
    array = np.asarray(values)
    tensor = torch.from_numpy(array.astype(np.float32) if array.dtype.kind == "f" else array)
    pinned = tensor.pin_memory() if like.device.type == "cuda" else tensor
    return pinned.to(like.device, non_blocking=True)


def _column(draws: Draws, name: str, like: Tensor) -> Tensor:
    """Returns a drawn number of each image as (n, 1, 1, 1) float32."""
    return _sent([float(draw[name]) for draw in draws], like).view(-1, 1, 1, 1)


def _largest(pixels: Tensor) -> int:
    return 1 if pixels.is_floating_point() else 255 if pixels.dtype == torch.uint8 else 65535


def _rounded(values: Tensor, like: Tensor) -> Tensor:
    return values if like.is_floating_point() else values.round()


def _whole(values: Tensor, like: Tensor) -> Tensor:
    """Returns values clipped to the range of the pixels and cast to their dtype, as albumentations does."""
    return values.clamp(0, _largest(like)).to(like.dtype)


def _grid(inverse: Tensor, size: Sequence[int], corners: bool) -> Tensor:
    """Returns the source of each pixel under matrices (n, 3, 3): x and y (n, H, W, 2) in grid_sample's units."""
    rows, columns = (torch.arange(side, device=inverse.device, dtype=torch.float32) for side in size)
    coordinates = []
    for axis, side in enumerate(reversed(size)):
        across, down, start = inverse[:, axis, :, None, None].unbind(1)  # each (n, 1, 1)
        # not a matrix product, for which a GPU may round the factors to eleven bits
        place = across * columns + down * rows.unsqueeze(1) + start
        coordinates.append(2 * place / max(side - 1, 1) - 1 if corners else (2 * place + 1) / side - 1)
    return torch.stack(coordinates, 3)


def _sample(planes: Tensor, grid: Tensor, mode: str, border: int, fill: float) -> Tensor:
    """Returns planes (n, C, H, W) sampled at a grid (n, H, W, 2), as float32."""
    corners = border == cv2.BORDER_REFLECT_101
    sampled = functional.grid_sample(planes.float(), grid, mode, BORDERS[border], corners)
    if border == cv2.BORDER_CONSTANT and fill:
        inside = functional.grid_sample(torch.ones_like(planes[:, :1], dtype=torch.float32), grid, mode, "zeros", False)
        sampled += fill * (1 - inside)
    return sampled
