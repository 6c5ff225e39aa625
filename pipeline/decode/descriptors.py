"""Descriptors of images, by which near-duplicates and images without content are found. They are computed once, from
the original pixels.

- Block histograms: histograms with ten bins of the grey values in blocks of about 20×20 pixels. The best-known public
  code for the nerve competition finds contradictory frames by them (github.com/raghakot/ultrasound-nerve-segmentation).
- Thumbnails: 16×16 means, standardised so that the scalar product of two thumbnails is their correlation.
"""

import cv2
import numpy as np

BLOCK, MOST_BLOCKS, BINS, SIDE = 20, 32, 10, 16


def block_grid(shape: tuple[int, int] | None) -> tuple[int, int]:
    """Returns the rows × columns of blocks for images of a shape. Blocks have about 20×20 pixels, or more if there
    would be more than 32 blocks per side. Without a fixed shape there are 16×16 blocks."""
    if shape is None:
        return SIDE, SIDE
    rows, columns = (min(MOST_BLOCKS, max(1, round(side / BLOCK))) for side in shape)
    return rows, columns


def grey(image: np.ndarray) -> np.ndarray:
    """Returns an image (h, w, C) as grey values (h, w) float32 in [0, 1].

    uint8 values are divided by 255. uint16 values, which seldom use their whole range, are scaled between the 1st and
    the 99th percentile of the image. Floats from 0 to 1 are only shifted, so that their 1st percentile is 0.
    """
    mean = image.mean(axis=2, dtype=np.float32)
    if image.dtype == np.uint8:
        return mean / np.float32(255)
    low, high = np.percentile(mean, [1, 99])
    return np.clip((mean - low) / max(high - low, 1), 0, 1).astype(np.float32)


def block_numbers(shape: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """Returns the number of each pixel's block (h, w) int64 for an image (h, w). Blocks are numbered row by row."""
    rows, columns = (np.arange(side) * blocks // side for side, blocks in zip(shape, grid, strict=True))
    return rows[:, None] * grid[1] + columns


def block_histograms(values: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Returns the block histograms (blocks · 10,) uint8 of grey values (h, w): the share of each block's pixels per
    bin, in 255ths."""
    blocks = block_numbers(values.shape[:2], grid)
    count = grid[0] * grid[1]
    bins = np.minimum((values * BINS).astype(np.int64), BINS - 1)
    histogram = np.bincount((blocks * BINS + bins).ravel(), minlength=count * BINS).reshape(count, BINS)
    return np.rint(255 * histogram / np.maximum(histogram.sum(1, keepdims=True), 1)).astype(np.uint8).ravel()


def thumbnail(values: np.ndarray) -> np.ndarray:
    """Returns the thumbnail (256,) float16 of grey values (h, w): 16×16 means, shifted to mean 0 and scaled to length
    1; zeros for constant images."""
    small = cv2.resize(values, (SIDE, SIDE), interpolation=cv2.INTER_AREA).ravel()
    small = small - small.mean()
    length = float(np.linalg.norm(small))
    return (small / length if length > 1e-4 else np.zeros_like(small)).astype(np.float16)


def entropy(values: np.ndarray) -> float:
    """Returns the entropy in bits of grey values (h, w) in 256 bins: 0 for a constant image, 8 for uniform noise."""
    share = np.bincount((values * 255).astype(np.int64).ravel(), minlength=256) / values.size
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())


def smoothness(values: np.ndarray) -> float:
    """Returns the correlation of neighbouring grey values (h, w), the larger one of that along rows and that along
    columns: about 0 for noise, and 1 for smooth or constant images."""
    centred = values - values.mean()
    variance = float((centred**2).mean())
    if variance < 1e-8:
        return 1.0
    across, down = (centred[:, 1:] * centred[:, :-1]), (centred[1:] * centred[:-1])
    return max(float(part.mean()) / variance if part.size else 0.0 for part in (across, down))
