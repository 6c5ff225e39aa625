"""What tells whether two images look the same, and whether one shows anything at all: taken once, from native pixels.

- Block histograms: the grey values of every block of about 20×20 pixels in ten bins, the descriptor by which the
  best-known public code for the nerve competition finds contradictory frames
  (github.com/raghakot/ultrasound-nerve-segmentation).
- Thumbnails: 16×16 means, standardised, so that the product of two is their correlation.
"""

import cv2
import numpy as np

BLOCK, MOST_BLOCKS, BINS, SIDE = 20, 32, 10, 16


def block_grid(shape: tuple[int, int] | None) -> tuple[int, int]:
    """Returns rows × columns of blocks for images of a shape: about 20 pixels each, larger ones where there would be
    more than 32 a side; 16 × 16 for any size where the competition promises no shape."""
    if shape is None:
        return SIDE, SIDE
    rows, columns = (min(MOST_BLOCKS, max(1, round(side / BLOCK))) for side in shape)
    return rows, columns


def grey(image: np.ndarray) -> np.ndarray:
    """Returns an image (h, w, C) as grey values (h, w) float32 in [0, 1].

    uint8 is taken as it is; of uint16, which seldom fills its range, the range between the image's first and last
    hundredth of pixels.
    """
    mean = image.mean(axis=2, dtype=np.float32)
    if image.dtype == np.uint8:
        return mean / np.float32(255)
    low, high = np.percentile(mean, [1, 99])
    return np.clip((mean - low) / max(high - low, 1), 0, 1).astype(np.float32)


def block_numbers(shape: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """Returns the number of the block that each pixel of an image (h, w) belongs to, row by row (h, w) int64."""
    rows, columns = (np.arange(side) * blocks // side for side, blocks in zip(shape, grid, strict=True))
    return rows[:, None] * grid[1] + columns


def block_histograms(values: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Returns the share of a block's pixels in each bin, in 255ths (blocks · 10,) uint8, of grey values (h, w)."""
    blocks = block_numbers(values.shape[:2], grid)
    count = grid[0] * grid[1]
    bins = np.minimum((values * BINS).astype(np.int64), BINS - 1)
    histogram = np.bincount((blocks * BINS + bins).ravel(), minlength=count * BINS).reshape(count, BINS)
    return np.rint(255 * histogram / np.maximum(histogram.sum(1, keepdims=True), 1)).astype(np.uint8).ravel()


def thumbnail(values: np.ndarray) -> np.ndarray:
    """Returns grey values (h, w) as 16×16 means with mean 0 and length 1 (256,) float16; zeros where all are equal."""
    small = cv2.resize(values, (SIDE, SIDE), interpolation=cv2.INTER_AREA).ravel()
    small = small - small.mean()
    length = float(np.linalg.norm(small))
    return (small / length if length > 1e-4 else np.zeros_like(small)).astype(np.float16)


def entropy(values: np.ndarray) -> float:
    """Returns the entropy in bits of grey values (h, w) in 256 bins: 0 for one colour, 8 for uniform noise."""
    share = np.bincount((values * 255).astype(np.int64).ravel(), minlength=256) / values.size
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())


def smoothness(values: np.ndarray) -> float:
    """Returns how much neighbouring grey values (h, w) correlate, along rows or columns, whichever is more: about 0 for
    noise, 1 for a smooth picture or one of a single colour."""
    centred = values - values.mean()
    variance = float((centred**2).mean())
    if variance < 1e-8:
        return 1.0
    across, down = (centred[:, 1:] * centred[:, :-1]), (centred[1:] * centred[:-1])
    return max(float(part.mean()) / variance if part.size else 0.0 for part in (across, down))
