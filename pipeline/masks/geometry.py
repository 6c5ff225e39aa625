"""Conversion between an image's own size and the network's size."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np

from pipeline.core.errors import PipelineError

if TYPE_CHECKING:
    from pipeline.core.config.recipe import ImageSettings

IGNORE = 255
"""The value of ignored pixels, which count in no loss, no area and no score."""


@dataclass(frozen=True)
class Geometry:
    """How an image of any size is fitted to the network's size."""

    size: tuple[int, int]
    """Rows × columns of the network's input."""
    fit: Literal["stretch", "pad"]
    """`stretch` resizes; `pad` centres the image and adds a border."""
    channels: int
    border: Literal["reflect", "constant"] = "reflect"
    """Only with `pad`: the border is mirrored, or it is 0 and ignored."""


def geometry_of(image: "ImageSettings") -> Geometry:
    """Returns the geometry of a recipe's image settings."""
    return Geometry(image.stored, image.fit, image.channels, image.border)


def image_to_network(image: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Returns an image (h, w, C) uint8, uint16 or float16 at network size (H, W, geometry.channels), with the same
    dtype.

    Raises:
        PipelineError: the fit is `pad` and the image is larger than the network's size, or its channels do not fit.
    """
    image = _with_channels(image, geometry.channels)
    if geometry.fit == "pad":
        fitted = with_border(image, _margins(image.shape[:2], geometry.size), geometry.border, 0)
    else:
        fitted = _resize(image, geometry.size)
    return fitted.reshape(*geometry.size, geometry.channels)


def mask_to_network(mask: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Returns masks (C, h, w) uint8 of 0, 1 and 255 (ignored) at network size (C, H, W). A pixel gets the value that
    covers at least half of it."""
    if geometry.fit == "pad":
        margins = _margins(mask.shape[1:], geometry.size)
        return np.stack([with_border(plane, margins, geometry.border, IGNORE) for plane in mask])
    fitted = np.empty((len(mask), *geometry.size), np.uint8)
    for plane, target in zip(mask, fitted, strict=True):
        target[:] = _share(plane == 1, geometry.size) >= 0.5
        if (ignored := plane == IGNORE).any():
            target[_share(ignored, geometry.size) >= 0.5] = IGNORE
    return fitted


def labels_to_network(planes: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Returns the one-hot masks (C, h, w) uint8 of a multiclass image as a class map (1, H, W) uint8; 255 is ignored.

    When shrinking, each pixel gets the class that covers the largest share of it. A pixel is ignored if at least half
    of it is.
    """
    ignored = planes[0] == IGNORE
    if geometry.fit == "pad" or planes.shape[1:] == geometry.size:
        labels = np.where(ignored, IGNORE, planes.argmax(0)).astype(np.uint8)
        return labels[None] if geometry.fit == "stretch" else mask_to_network(labels[None], geometry)
    shares = np.stack([_share(plane == 1, geometry.size) for plane in planes])
    labels = shares.argmax(0).astype(np.uint8)
    labels[_share(ignored, geometry.size) >= 0.5] = IGNORE
    return labels[None]


def instances_to_network(labels: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Returns label maps (C, h, w) int32 at network size (C, H, W), by the nearest pixel. A constant border is ignored
    (-1)."""
    if geometry.fit == "pad":
        margins = _margins(labels.shape[1:], geometry.size)
        return np.stack([with_border(plane, margins, geometry.border, -1) for plane in labels])
    return np.stack([cv2.resize(plane, geometry.size[::-1], interpolation=cv2.INTER_NEAREST_EXACT) for plane in labels])


def to_native(values: np.ndarray, geometry: Geometry, shape: tuple[int, int]) -> np.ndarray:
    """Returns float32 values (C, H, W) at network size resized to (C, h, w), the image's own `shape`."""
    if geometry.fit == "pad":
        top, _, left, _ = _margins(shape, geometry.size)
        return values[:, top : top + shape[0], left : left + shape[1]]
    return np.stack([cv2.resize(plane, shape[::-1], interpolation=cv2.INTER_LINEAR) for plane in values])


def with_border(image: np.ndarray, margins: tuple[int, int, int, int], border: str, value: int) -> np.ndarray:
    """Returns an image (h, w) or (h, w, C) with added margins (top, bottom, left, right) that mirror it or hold
    `value`."""
    kind = cv2.BORDER_REFLECT_101 if border == "reflect" else cv2.BORDER_CONSTANT
    if image.ndim == 3 and image.shape[2] > 4:
        return _by_fours(image, lambda part: with_border(part, margins, border, value))
    if image.dtype == np.float16:
        return with_border(image.astype(np.float32), margins, border, value).astype(np.float16)
    return cv2.copyMakeBorder(image, *margins, kind, value=[value] * 4)


def box_of(shape: tuple[int, int], geometry: Geometry) -> tuple[int, int, int, int]:
    """Returns the position of an image of this shape at network size: top, left, height, width."""
    if geometry.fit == "stretch":
        return 0, 0, *geometry.size
    top, _, left, _ = _margins(shape, geometry.size)
    return top, left, *shape


def _with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    if image.shape[2] == channels:
        return image
    if channels not in (1, 3):
        hint = (
            f"set `channels: {channels}` in the competition"
            if channels == 4
            else f"set image.channels={image.shape[2]}"
        )
        raise PipelineError(f"image.channels is {channels}, but an image has {image.shape[2]}: {hint}.")
    if image.shape[2] not in (1, 3, 4):
        raise PipelineError(
            f"image.channels is {channels}, but an image has {image.shape[2]}: set image.channels={image.shape[2]}."
        )
    if image.dtype == np.float16:
        return _with_channels(image.astype(np.float32), channels).astype(np.float16)
    if channels == 1:
        return cv2.cvtColor(np.ascontiguousarray(image[..., :3]), cv2.COLOR_RGB2GRAY)[..., None]
    return np.repeat(image[..., :1], 3, axis=2) if image.shape[2] == 1 else image[..., :3]


def _share(area: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns the share of each pixel (H, W) that an area (h, w) bool covers."""
    return _resize(area.astype(np.float32), size)


def _resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if image.ndim == 3 and image.shape[2] > 4:
        return _by_fours(image, lambda part: _resize(part, size))
    if image.dtype == np.float16:
        return _resize(image.astype(np.float32), size).astype(np.float16)
    shrinks = size[0] * size[1] < image.shape[0] * image.shape[1]
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _by_fours(image: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Returns the result of an OpenCV function, which supports up to four channels, for an image (h, w, C) with more
    channels."""
    parts = [image[..., first : first + 4] for first in range(0, image.shape[2], 4)]
    return np.dstack([change(np.ascontiguousarray(part)) for part in parts])


def _margins(shape: tuple[int, ...], size: tuple[int, int]) -> tuple[int, int, int, int]:
    rows, columns = size[0] - shape[0], size[1] - shape[1]
    if rows < 0 or columns < 0:
        raise PipelineError(
            f"image.fit is `pad`, but an image of {shape[0]}×{shape[1]} is larger than "
            f"{size[0]}×{size[1]}; enlarge image.size, set an image.store into which it fits (image.size is then a "
            "crop), or set image.fit=stretch."
        )
    return rows // 2, rows - rows // 2, columns // 2, columns - columns // 2


def masks_at(masks: np.ndarray, shape: tuple[int, int], how: Literal["area", "nearest"], exclusive: bool) -> np.ndarray:
    """Returns true masks (C, h, w) uint8 of 0, 1 and 255 (ignored) at another size.

    Args:
        masks: the masks.
        shape: rows × columns of the result.
        how: `area` makes a pixel 1 if at least half of its area is; `nearest` takes the nearest pixel.
        exclusive: whether each pixel is 1 in exactly one plane, which is then preserved.
    """
    if masks.shape[1:] == shape:
        return masks

    def resized(plane: np.ndarray, interpolation: int) -> np.ndarray:
        return cv2.resize(np.ascontiguousarray(plane), shape[::-1], interpolation=interpolation)

    nearest = np.stack([resized(plane, cv2.INTER_NEAREST) for plane in masks])
    if how == "nearest":
        return nearest
    shares = np.stack([resized((plane == 1).astype(np.float32), cv2.INTER_AREA) for plane in masks])
    drawn = (shares >= 0.5).astype(np.uint8)
    if exclusive:
        drawn = (shares.argmax(0) == np.arange(len(masks))[:, None, None]).astype(np.uint8)
    drawn[nearest == IGNORE] = IGNORE
    return drawn


def label_map(masks: np.ndarray) -> np.ndarray:
    """Returns the class map (h, w) uint8, 255 where ignored, of a multiclass image's masks (C, h, w)."""
    return np.where(masks[0] == IGNORE, IGNORE, masks.argmax(0)).astype(np.uint8)
