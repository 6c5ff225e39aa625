"""Eight drawn images with masks, which every correct segmentation network overfits within seconds."""

import cv2
import numpy as np

COUNT = 8
"""Images that are drawn."""


def draw(size: tuple[int, int], channels: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns eight images and their masks.

    Every class is an ellipse of its own brightness in front of noise. A rectangle of the same brightness is background,
    so that brightness alone does not solve the task.

    Args:
        size: rows × columns, at least 32 each.
        channels: of the images.
        classes: one mask each.
        seed: of the drawing.

    Returns:
        images (8, channels, rows, columns) float32 with mean about 0, and masks (8, classes, rows, columns) uint8.
    """
    rng = np.random.default_rng(seed)
    images = rng.normal(0, 0.3, (COUNT, channels, *size)).astype(np.float32)
    masks = np.zeros((COUNT, classes, *size), np.uint8)
    for image, planes in zip(images, masks, strict=True):
        for number, plane in enumerate(planes):
            brightness = 1 + 1.5 * number / classes
            cv2.ellipse(plane, *_ellipse(rng, size), 0, 360, 1, -1)
            other = np.zeros(size, np.uint8)
            row, column = (int(rng.integers(0, side - side // 5)) for side in size)
            cv2.rectangle(other, (column, row), (column + size[1] // 8, row + size[0] // 8), 1, -1)
            image += brightness * np.maximum(plane, other)
            planes[:number][:, plane == 1] = 0  # the later class covers the earlier ones
        image -= image.mean()
    return images, masks


def _ellipse(rng: np.random.Generator, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int], float]:
    """Centre, half axes and angle of an ellipse inside the image."""
    rows, columns = size
    centre = int(rng.integers(columns // 4, columns - columns // 4)), int(rng.integers(rows // 4, rows - rows // 4))
    axes = max(3, int(columns * rng.uniform(0.12, 0.24))), max(3, int(rows * rng.uniform(0.12, 0.24)))
    return centre, axes, float(rng.uniform(0, 180))
