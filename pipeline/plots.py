"""Pictures of images, masks and predictions."""

import base64

import cv2
import numpy as np

TRUE_COLOUR, PREDICTED_COLOUR, BOTH_COLOUR = (0, 200, 0), (230, 30, 30), (250, 220, 0)


def overlay(image: np.ndarray, true: np.ndarray, predicted: np.ndarray, strength: float = 0.35) -> np.ndarray:
    """Returns an RGB picture (h, w, 3) uint8: truth green, prediction red and dashed, both yellow.

    Args:
        image: (h, w, C) uint8 or uint16.
        true: (h, w) bool.
        predicted: (h, w) bool.
        strength: how much of the colour lies over the image, 0 to 1.
    """
    picture = to_rgb8(image)
    areas = ((true & ~predicted, TRUE_COLOUR), (predicted & ~true, PREDICTED_COLOUR), (true & predicted, BOTH_COLOUR))
    for area, colour in areas:
        picture[area] = (1 - strength) * picture[area] + strength * np.array(colour)
    width = max(1, round(min(picture.shape[:2]) / 200))
    outlines, _ = cv2.findContours(true.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, outlines, -1, TRUE_COLOUR, width)
    outlines, _ = cv2.findContours(predicted.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    dash = 4 * width
    for outline in outlines:
        for start in range(0, len(outline), 2 * dash):
            cv2.polylines(picture, [outline[start : start + dash]], False, PREDICTED_COLOUR, width)
    return picture


def to_rgb8(image: np.ndarray) -> np.ndarray:
    """Returns an image (h, w, C) uint8 or uint16 as RGB (h, w, 3) uint8, a copy."""
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image.copy()


def to_data_address(picture: np.ndarray, width: int = 360) -> str:
    """Returns an RGB picture, made `width` pixels wide, as a JPEG inside a data: address for a page."""
    height = round(picture.shape[0] * width / picture.shape[1])
    enlarges = width > picture.shape[1]
    sized = cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR if enlarges else cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", cv2.cvtColor(sized, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 88])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
