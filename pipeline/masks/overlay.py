"""Pictures of images, masks and predictions."""

import base64
import textwrap

import cv2
import numpy as np

from pipeline.core.config.competition import Competition

# Okabe and Ito's palette, told apart by colour-blind eyes too (https://jfly.uni-koeln.de/color)
CLASS_COLOURS = [
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (213, 94, 0),
    (204, 121, 167),
    (240, 228, 66),
    (0, 114, 178),
]
WHITE = (255, 255, 255)
TRUE_COLOUR, PREDICTED_COLOUR, BOTH_COLOUR = (40, 130, 255), (255, 140, 0), (235, 235, 235)
"""Blue and orange, which differ for colour-blind eyes too, and nearly white, which neither can be taken for."""
FRAME = (128, 128, 128)
"""Around a picture on a sheet: a white one would vanish."""
LETTERS, LINE = 0.5, 18
"""Size of a sheet's captions, and the height of a line in pixels."""


def overlay(image: np.ndarray, true: np.ndarray, predicted: np.ndarray, strength: float = 0.35) -> np.ndarray:
    """Returns an RGB picture (h, w, 3) uint8: truth blue, prediction orange and dashed, both pale.

    Args:
        image: (h, w, C) uint8, uint16 or float16.
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


def drawn(
    image: np.ndarray, true: np.ndarray | None, predicted: np.ndarray | None, competition: Competition
) -> np.ndarray:
    """Returns an RGB picture uint8 of an image under its true masks, under predicted ones, or both: one overlay where
    there is one class, else side by side, every class in its colour (see legend).

    Args:
        image: (h, w, C) uint8, uint16 or float16.
        true: masks (classes, h, w) of 0, 1 and 255; None: not known, or not to be shown.
        predicted: masks (classes, h, w) of 0 and 1; None: not to be shown.
        competition: its classes and kind.
    """
    shape = next((masks.shape[1:] for masks in (true, predicted) if masks is not None), image.shape[:2])
    if shape != image.shape[:2]:  # masks of another size are submitted
        image = cv2.resize(to_rgb8(image), shape[::-1], interpolation=cv2.INTER_AREA)
    if len(competition.classes) == 1:
        none = np.zeros(image.shape[:2], bool)
        of_truth, of_prediction = (none if masks is None else masks[0] == 1 for masks in (true, predicted))
        return overlay(image, of_truth, of_prediction)
    gap = np.full((image.shape[0], max(2, image.shape[1] // 60), 3), 255, np.uint8)
    shown = [coloured(image, masks, competition) for masks in (true, predicted) if masks is not None]
    return np.hstack([one for picture in shown for one in (gap, picture)][1:] or [to_rgb8(image)])


def coloured(image: np.ndarray, masks: np.ndarray, competition: Competition, strength: float = 0.5) -> np.ndarray:
    """Returns an RGB picture (h, w, 3) uint8 of masks (classes, h, w) over an image, each class in its colour."""
    picture = to_rgb8(image)
    for mask, colour in zip(masks, legend(competition).values(), strict=True):
        if colour is not None:
            area = mask == 1
            picture[area] = (1 - strength) * picture[area] + strength * np.array(colour)
    return picture


def with_legend(picture: np.ndarray, competition: Competition, width: int = 640) -> np.ndarray:
    """Returns an RGB picture, at least `width` pixels wide, with the colours of several classes named below it."""
    if len(competition.classes) == 1:
        return picture
    scale = max(1, -(-width // picture.shape[1]))
    large = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    strip, column = np.full((24, large.shape[1], 3), 255, np.uint8), 6
    for name, colour in legend(competition).items():
        if colour is not None:
            cv2.rectangle(strip, (column, 6), (column + 12, 18), colour, -1)
            text = name.encode("ascii", "replace").decode()
            cv2.putText(strip, text, (column + 17, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
            column += 30 + cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.42, 1)[0][0]
    return np.vstack([large, strip])


def contact_sheet(tiles: list[tuple[list[np.ndarray], str]], each: int = 208, across: int = 8) -> np.ndarray:
    """Returns an RGB picture of tiles, each one or more RGB pictures side by side above a caption: `each` pixels wide,
    `across` pictures in a row."""
    most = max(len(pictures) for pictures, _ in tiles)
    drawn = [_captioned(pictures, caption, each, most) for pictures, caption in tiles]
    height, columns = max(tile.shape[0] for tile in drawn), max(1, min(across // most, len(drawn)))
    drawn = [cv2.copyMakeBorder(tile, 0, height - len(tile), 0, 8, cv2.BORDER_CONSTANT, value=WHITE) for tile in drawn]
    drawn += [np.full_like(drawn[0], 255)] * (-len(drawn) % columns)
    return np.vstack([np.hstack(drawn[start : start + columns]) for start in range(0, len(drawn), columns)])


def scaled(picture: np.ndarray, width: int) -> np.ndarray:
    """Returns an RGB picture made `width` pixels wide."""
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    interpolation = cv2.INTER_LINEAR if width > picture.shape[1] else cv2.INTER_AREA
    return cv2.resize(picture, (width, height), interpolation=interpolation)


def _captioned(pictures: list[np.ndarray], caption: str, each: int, most: int) -> np.ndarray:
    sized = [cv2.rectangle(scaled(one, each), (0, 0), (each - 1, 10**6), FRAME) for one in pictures]
    for one in sized:
        one[-1] = FRAME
    lines = _lines(caption.encode("ascii", "replace").decode(), most * (each + 4) - 4)
    top = max(map(len, sized))
    tile = np.full((top + LINE * len(lines) + 4, most * (each + 4), 3), 255, np.uint8)
    for number, one in enumerate(sized):
        tile[: len(one), number * (each + 4) : number * (each + 4) + each] = one
    for number, text in enumerate(lines):
        place = (2, top + LINE * (number + 1) - 4)
        cv2.putText(tile, text, place, cv2.FONT_HERSHEY_SIMPLEX, LETTERS, (0, 0, 0), 1, cv2.LINE_AA)
    return tile


def _lines(text: str, width: int) -> list[str]:
    """A caption as lines of at most so many pixels, broken between words, and within a word that is longer."""
    fits = max(1, width // max(1, cv2.getTextSize("n", cv2.FONT_HERSHEY_SIMPLEX, LETTERS, 1)[0][0]))
    return textwrap.wrap(text, fits) or [""]


def legend(competition: Competition) -> dict[str, tuple[int, int, int] | None]:
    """Returns the colour of every class; the background of a multiclass competition has none."""
    colours: dict[str, tuple[int, int, int] | None] = dict.fromkeys(competition.classes)
    for number, name in enumerate(competition.foreground):
        colours[name] = CLASS_COLOURS[number % len(CLASS_COLOURS)]
    return colours


def to_rgb8(image: np.ndarray) -> np.ndarray:
    """Returns an image (h, w, C) uint8, uint16 or float16 as RGB (h, w, 3) uint8, a copy; of more than four channels,
    or of two, the first as grey."""
    image = image if image.shape[2] in (3, 4) else image[..., :1]
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    elif image.dtype.kind == "f":
        image = np.rint(image.astype(np.float32) * 255).astype(np.uint8)
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image[..., :3].copy()


def to_data_address(picture: np.ndarray, width: int = 360) -> str:
    """Returns an RGB picture, made `width` pixels wide, as a JPEG inside a data: address for a page."""
    sized = cv2.cvtColor(scaled(picture, width), cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", sized, [cv2.IMWRITE_JPEG_QUALITY, 88])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
