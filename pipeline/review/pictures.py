"""Images at their original size as PNG files, and the layers over them: true mask, prediction, probability."""

import io
from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal

import cv2
import numpy as np
import pandas as pd
from PIL import Image

from pipeline.core.run import Run
from pipeline.decode import table
from pipeline.masks import overlay
from pipeline.masks.geometry import IGNORE
from pipeline.report import explorer, look

Layer = Literal["truth", "prediction", "probability"]
LAYERS: tuple[Layer, ...] = ("truth", "prediction", "probability")
FILL, LINE = 70, 255
"""Opacity of the inside and of the outline of a mask, 0 to 255."""
STRONGEST = 200
"""Opacity of a probability of 1."""


class Pictures:
    """Draws the training images of a run on request."""

    def __init__(self, run: Run, images: pd.DataFrame) -> None:
        """Creates the painter of a run from the rows of images.parquet, numbered from 0."""
        self.run, self.images = run, images
        self.read = look.opener(run)
        self.names = run.competition.foreground
        self.places = [run.competition.classes.index(name) for name in self.names]
        several = len(self.names) > 1
        known = overlay.legend(run.competition)
        self.colours = {
            "truth": [known[name] if several else overlay.TRUE_COLOUR for name in self.names],
            "prediction": [known[name] if several else overlay.PREDICTED_COLOUR for name in self.names],
        }

    @cached_property
    def predict(self) -> Callable[[str, tuple[int, int]], look.Predicted]:
        """The function that reads the prediction for an image; see `look.predictor`."""
        return look.predictor(self.run, "train")

    def image(self, number: int) -> bytes:
        """Returns an image at its original size as a PNG file."""
        return _png(overlay.to_rgb8(self.read(self.images.loc[number])))

    def layer(self, number: int, name: Layer) -> bytes:
        """Returns a transparent layer as a PNG file, at the size at which the image is scored.

        Raises:
            PipelineError: tune has not run, or predictions are missing.
            KeyError: the image has no held-out prediction.
        """
        row = self.images.loc[number]
        true = table.scored_mask(row, self.run.competition)
        if name == "truth":
            return _png(outlined(true[self.places] == 1, self.colours["truth"], ignored=true[0] == IGNORE))
        predicted = self.predict(str(row["image_id"]), (true.shape[1], true.shape[2]))
        if name == "prediction":
            return _png(outlined(predicted.masks[self.places] == 1, self.colours["prediction"], dashed=True))
        return _png(heat(predicted.probability[self.places], self.colours["prediction"]))

    @cached_property
    def _enlarge(self) -> Callable[[str], dict[str, Any] | None]:
        by_id = self.images.set_index("image_id", drop=False)
        read, measure = explorer.reader(self.run, by_id), explorer.measure_of(look.metric(self.run))
        return lambda image_id: explorer.enlarged(read, measure, image_id, scale=None)

    def enlarged(self, image_id: str) -> dict[str, Any] | None:
        """Returns the data of an image for the report's viewer, at full size; None if it cannot be read."""
        return self._enlarge(image_id)


def outlined(
    masks: np.ndarray, colours: list[Any], dashed: bool = False, ignored: np.ndarray | None = None
) -> np.ndarray:
    """Returns masks (C, H, W) bool as a layer (H, W, 4) uint8: each in its colour, pale inside, with an outline.

    Args:
        masks: the masks to draw.
        colours: one colour per mask.
        dashed: whether the outline is dashed.
        ignored: ignored pixels (H, W) bool, drawn in grey.
    """
    drawn = np.zeros((*masks.shape[1:], 4), np.uint8)
    if ignored is not None:
        drawn[ignored] = (*overlay.FRAME, FILL)
    width = max(1, round(min(masks.shape[1:]) / 200))
    dash = 4 * width
    for mask, colour in zip(masks, colours, strict=True):
        drawn[mask] = (*colour, FILL)
        outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        for outline in outlines:
            step = 2 * dash if dashed else max(1, len(outline))
            for start in range(0, len(outline), step):
                part = outline[start : start + (dash if dashed else step)]
                cv2.polylines(drawn, [part], not dashed, (*colour, LINE), width)
    return drawn


def heat(probability: np.ndarray, colours: list[Any]) -> np.ndarray:
    """Returns probabilities (C, H, W), uint8 (p·255) or float, as a layer (H, W, 4) uint8.

    Each pixel has the colour of its most probable class, and its opacity grows with the probability.
    """
    if probability.dtype != np.uint8:
        probability = np.rint(np.clip(probability, 0, 1) * 255).astype(np.uint8)
    strength = probability.max(0).astype(np.uint16) * STRONGEST // 255
    return np.dstack([np.array(colours, np.uint8)[probability.argmax(0)], strength.astype(np.uint8)])


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
