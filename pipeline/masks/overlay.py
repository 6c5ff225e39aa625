"""Pictures of images with their masks and predictions."""

import base64
import textwrap

import cv2
import numpy as np

from pipeline.core.config.competition import Competition

# the colour-blind safe palette of Okabe and Ito (https://jfly.uni-koeln.de/color)
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
"""Colour-blind safe colours: blue, orange, and a near-white that differs from both."""
FRAME = (128, 128, 128)
"""The colour of the frame around a picture on a sheet, without which a white picture would be invisible."""
LETTERS, LINE = 0.5, 18
"""Font scale of captions on a sheet, and the height of a line in pixels."""


def overlay(image: np.ndarray, true: np.ndarray, predicted: np.ndarray, strength: float = 0.35) -> np.ndarray:
    """Returns an RGB picture (h, w, 3) uint8 of an image with its true mask in blue, its predicted mask in orange with
    a dashed outline, and their intersection in a pale colour.

    Args:
        image: (h, w, C) uint8, uint16 or float16.
        true: the true mask (h, w) bool.
        predicted: the predicted mask (h, w) bool.
        strength: opacity of the colours, 0 to 1.
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
    """Returns an RGB picture uint8 of an image with true masks, predicted masks or both. With one class, both are in
    one overlay; with several, they are side by side with one colour per class (see legend).

    Args:
        image: (h, w, C) uint8, uint16 or float16.
        true: masks (classes, h, w) of 0, 1 and 255; None: not known or not shown.
        predicted: masks (classes, h, w) of 0 and 1; None: not shown.
        competition: the competition, for its classes and kind.
    """
    shape = next((masks.shape[1:] for masks in (true, predicted) if masks is not None), image.shape[:2])
    if shape != image.shape[:2]:  # masks are submitted at another size
        image = cv2.resize(to_rgb8(image), shape[::-1], interpolation=cv2.INTER_AREA)
    if len(competition.classes) == 1:
        empty = np.zeros(image.shape[:2], bool)
        of_truth, of_prediction = (empty if masks is None else masks[0] == 1 for masks in (true, predicted))
        return overlay(image, of_truth, of_prediction)
    gap = np.full((image.shape[0], max(2, image.shape[1] // 60), 3), 255, np.uint8)
    shown = [coloured(image, masks, competition) for masks in (true, predicted) if masks is not None]
    return np.hstack([part for picture in shown for part in (gap, picture)][1:] or [to_rgb8(image)])


def coloured(image: np.ndarray, masks: np.ndarray, competition: Competition, strength: float = 0.5) -> np.ndarray:
    """Returns an RGB picture (h, w, 3) uint8 of masks (classes, h, w) over an image, with one colour per class."""
    picture = to_rgb8(image)
    for mask, colour in zip(masks, legend(competition).values(), strict=True):
        if colour is not None:
            area = mask == 1
            picture[area] = (1 - strength) * picture[area] + strength * np.array(colour)
    return picture


def with_legend(picture: np.ndarray, competition: Competition, width: int = 640) -> np.ndarray:
    """Returns an RGB picture at least `width` pixels wide, with a legend of the classes below it if there are
    several."""
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
    """Returns an RGB picture of tiles in rows.

    Args:
        tiles: each tile is a list of RGB pictures, which are shown side by side, and a caption below them.
        each: width of one picture in pixels.
        across: maximum number of pictures per row.
    """
    most = max(len(pictures) for pictures, _ in tiles)
    drawn = [_captioned(pictures, caption, each, most) for pictures, caption in tiles]
    height, columns = max(tile.shape[0] for tile in drawn), max(1, min(across // most, len(drawn)))
    drawn = [cv2.copyMakeBorder(tile, 0, height - len(tile), 0, 8, cv2.BORDER_CONSTANT, value=WHITE) for tile in drawn]
    drawn += [np.full_like(drawn[0], 255)] * (-len(drawn) % columns)
    return np.vstack([np.hstack(drawn[start : start + columns]) for start in range(0, len(drawn), columns)])


def scaled(picture: np.ndarray, width: int) -> np.ndarray:
    """Returns an RGB picture resized to a width of `width` pixels."""
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    interpolation = cv2.INTER_LINEAR if width > picture.shape[1] else cv2.INTER_AREA
    return cv2.resize(picture, (width, height), interpolation=interpolation)


def _captioned(pictures: list[np.ndarray], caption: str, each: int, most: int) -> np.ndarray:
    sized = [cv2.rectangle(scaled(picture, each), (0, 0), (each - 1, 10**6), FRAME) for picture in pictures]
    for picture in sized:
        picture[-1] = FRAME
    lines = _lines(caption.encode("ascii", "replace").decode(), most * (each + 4) - 4)
    top = max(map(len, sized))
    tile = np.full((top + LINE * len(lines) + 4, most * (each + 4), 3), 255, np.uint8)
    for number, picture in enumerate(sized):
        tile[: len(picture), number * (each + 4) : number * (each + 4) + each] = picture
    for number, text in enumerate(lines):
        place = (2, top + LINE * (number + 1) - 4)
        cv2.putText(tile, text, place, cv2.FONT_HERSHEY_SIMPLEX, LETTERS, (0, 0, 0), 1, cv2.LINE_AA)
    return tile


def _lines(text: str, width: int) -> list[str]:
    """Returns a caption as lines of at most `width` pixels, broken between words, or within a word that is too long."""
    fits = max(1, width // max(1, cv2.getTextSize("n", cv2.FONT_HERSHEY_SIMPLEX, LETTERS, 1)[0][0]))
    return textwrap.wrap(text, fits) or [""]


def legend(competition: Competition) -> dict[str, tuple[int, int, int] | None]:
    """Returns the colour of each class; None for the background of a multiclass competition."""
    colours: dict[str, tuple[int, int, int] | None] = dict.fromkeys(competition.classes)
    for number, name in enumerate(competition.foreground):
        colours[name] = CLASS_COLOURS[number % len(CLASS_COLOURS)]
    return colours


def to_rgb8(image: np.ndarray) -> np.ndarray:
    """Returns a copy of an image (h, w, C) uint8, uint16 or float16 as RGB (h, w, 3) uint8. If the image has two
    channels or more than four, only the first is shown, as grey."""
    image = image if image.shape[2] in (3, 4) else image[..., :1]
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    elif image.dtype.kind == "f":
        image = np.rint(image.astype(np.float32) * 255).astype(np.uint8)
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image[..., :3].copy()


def to_data_address(picture: np.ndarray, width: int = 360) -> str:
    """Returns an RGB picture, resized to a width of `width` pixels, as a data URL of a JPEG for HTML pages."""
    sized = cv2.cvtColor(scaled(picture, width), cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", sized, [cv2.IMWRITE_JPEG_QUALITY, 88])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
