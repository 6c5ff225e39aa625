"""Pictures encoded as text for an HTML page: WebP for display, PNG with 16 levels for values that the script reads."""

import base64
import io
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from pipeline.masks.overlay import BOTH_COLOUR, PREDICTED_COLOUR, TRUE_COLOUR

LEVELS = 16
"""Number of levels of a probability in the page: the threshold moves in steps of 16 (of 255)."""
ACROSS = 16
"""Number of stamps (thumbnails) in each row and each column of a sheet."""
GROUND = 128


def webp(picture: np.ndarray, quality: int) -> str:
    """Returns an RGB picture (H, W, 3) uint8 as a base64-encoded WebP file."""
    _, data = cv2.imencode(".webp", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_WEBP_QUALITY, quality])
    return base64.b64encode(data.tobytes()).decode()


def planes_png(planes: np.ndarray) -> str:
    """Returns planes (C, H, W) uint8 of values 0 to 15 as a base64-encoded PNG with four bits per pixel.

    The planes are stacked from top to bottom; the grey value is 17 times the value.
    """
    stacked = Image.fromarray(np.ascontiguousarray(planes.reshape(-1, planes.shape[2])), "P")
    stacked.putpalette([17 * level for level in range(LEVELS) for _ in range(3)])
    buffer = io.BytesIO()
    stacked.save(buffer, "PNG", bits=4, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def within(shape: tuple[int, int], side: int) -> tuple[int, int]:
    """Returns a shape (rows, columns) scaled down, never up, so that neither side is longer than `side`."""
    scale = min(1.0, side / max(shape))
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def resized(picture: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Returns a picture or plane at another size: area interpolation when shrinking, nearest neighbour otherwise."""
    if picture.shape[:2] == shape:
        return picture
    shrinks = shape[0] <= picture.shape[0] and shape[1] <= picture.shape[1]
    return cv2.resize(picture, shape[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST)


def stamp(picture: np.ndarray, true: np.ndarray, predicted: np.ndarray, cell: tuple[int, int]) -> np.ndarray:
    """Returns a thumbnail (H, W, 3) uint8 of an image with its masks.

    Pixels only in the true mask are blue, pixels only in the predicted mask are orange, and the intersection has a pale
    outline. Areas are filled because WebP compression blurs the colour of thin lines.

    Args:
        picture: RGB (H, W, 3) uint8.
        true: true mask, (H, W) bool.
        predicted: predicted mask, (H, W) bool.
        cell: rows and columns of the thumbnail; a picture with another aspect ratio gets a grey border.
    """
    scale = min(cell[0] / picture.shape[0], cell[1] / picture.shape[1])
    shape = tuple(max(1, min(most, round(side * scale))) for side, most in zip(picture.shape, cell, strict=False))
    small = cv2.resize(picture, shape[::-1], interpolation=cv2.INTER_AREA)
    truth, guess = (_shrunk(mask, small.shape[:2]) for mask in (true, predicted))
    for area, colour in ((truth & ~guess, TRUE_COLOUR), (guess & ~truth, PREDICTED_COLOUR)):
        small[area] = 0.35 * small[area] + 0.65 * np.array(colour)
    both = (truth & guess).astype(np.uint8)
    edge = (both > 0) & (cv2.erode(both, np.ones((3, 3), np.uint8), borderValue=0) == 0)
    small[edge] = 0.3 * small[edge] + 0.7 * np.array(BOTH_COLOUR)
    framed = np.full((*cell, 3), GROUND, np.uint8)
    top, left = (cell[0] - shape[0]) // 2, (cell[1] - shape[1]) // 2
    framed[top : top + shape[0], left : left + shape[1]] = small
    return framed


def _shrunk(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A mask (H, W) bool scaled down; a mask too small for that keeps the pixel that it covers most."""
    part = cv2.resize(mask.astype(np.float32), (shape[1], shape[0]), interpolation=cv2.INTER_AREA)
    return (part > 0) & (part >= min(0.5, float(part.max())))


def sheets(stamps: Sequence[np.ndarray], quality: int) -> list[str]:
    """Returns stamps (H, W, 3) of one size as sheets of ACROSS × ACROSS stamps, each a base64-encoded WebP file."""
    sheets = []
    for start in range(0, len(stamps), ACROSS**2):
        part = list(stamps[start : start + ACROSS**2])
        part += [np.full_like(part[0], GROUND)] * (-len(part) % ACROSS)
        rows = [np.hstack(part[place : place + ACROSS]) for place in range(0, len(part), ACROSS)]
        sheets.append(webp(np.vstack(rows), quality))
    return sheets
