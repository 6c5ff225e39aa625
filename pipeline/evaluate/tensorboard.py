"""Writes the scores of a test set and some of its predictions for TensorBoard, which shows them with the training
curves.

The records are those of torch's SummaryWriter, written without importing torch.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline.core.config.competition import Competition
from pipeline.core.files import writing
from pipeline.masks.geometry import IGNORE
from pipeline.masks.overlay import to_rgb8
from pipeline.masks.scale import scale_of

FILE = "events.out.tfevents.test"
PICTURES = "test/image_truth_probability_mask"
SIDE = 192
"""The largest side of each of the four panels, in pixels."""


def panels(
    image: np.ndarray, true: np.ndarray, probability: np.ndarray, predicted: np.ndarray, competition: Competition
) -> np.ndarray:
    """Returns an RGB picture (h, 4 w, 3) uint8 of four panels: image, true mask, probability and predicted mask.

    The classes of class maps have different grey values, with ignored pixels in black. In other masks, ignored pixels
    are grey.

    Args:
        image: (h, w, C) uint8, uint16 or float16.
        true: masks (C, h, w) of 0, 1 and 255 (ignored).
        probability: (C, h, w) as the competition stores them (scale.py).
        predicted: masks (C, h, w) of 0 and 1.
        competition: the competition, for its kind.
    """
    height, width = true.shape[1:]
    shrink = min(1.0, SIDE / max(height, width))
    size = max(1, round(width * shrink)), max(1, round(height * shrink))
    highest = 255 * scale_of(competition).probability(probability).max(0)
    grey = [_grey(true, competition), highest, _grey(predicted, competition)]
    planes = [np.repeat(plane.clip(0, 255).astype(np.uint8)[..., None], 3, 2) for plane in grey]
    shown = [cv2.resize(panel, size, interpolation=cv2.INTER_AREA) for panel in (to_rgb8(image), *planes)]
    return np.concatenate(shown, 1)


def write(path: Path, summary: dict[str, Any], batches: dict[str, list[float]], pictures: list[np.ndarray]) -> None:
    """Writes a file of records, atomically.

    Args:
        path: the file to write. TensorBoard only finds files whose names contain `tfevents`.
        summary: the result of `summarise` of the evaluate stage: `score`, and the mean and standard deviation of each
            figure over images and over batches.
        batches: the values of each figure, one per batch, in order.
        pictures: RGB pictures (h, w, 3) uint8, one per image.
    """
    from tensorboard.summary.writer.record_writer import RecordWriter  # slow to import

    with writing(path) as temporary, temporary.open("wb") as file:
        records = RecordWriter(file)
        for event in _events(summary, batches, pictures):
            records.write(event.SerializeToString())


def _events(summary: dict[str, Any], batches: dict[str, list[float]], pictures: list[np.ndarray]) -> Iterator[Any]:
    """Yields the format's version, means and standard deviations, then one batch per step and one picture per step."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    now = time.time()
    yield Event(wall_time=now, file_version="brain.Event:2")
    figures = {"test/score": summary["score"]}
    for where in (name for name in summary if name.startswith("over_")):
        for name, spread in summary[where].items():
            figures |= {f"test/{where}/{name}_{which}": value for which, value in spread.items()}

    def scalars(step: int, by_tag: dict[str, float]) -> Any:
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in by_tag.items()]
        return Event(wall_time=now, step=step, summary=Summary(value=values))

    yield scalars(0, figures)
    for step, of_batch in enumerate(zip(*batches.values(), strict=True)):
        yield scalars(step, dict(zip((f"test/batches/{name}" for name in batches), of_batch, strict=True)))
    for step, picture in enumerate(pictures):
        height, width = picture.shape[:2]
        png = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
        yield Event(wall_time=now, step=step, summary=Summary(value=[Summary.Value(tag=PICTURES, image=image)]))


def _grey(masks: np.ndarray, competition: Competition) -> np.ndarray:
    """Returns masks (C, h, w) of 0, 1 and 255 (ignored) as grey values (h, w), 0 to 255."""
    ignored = masks[0] == IGNORE
    if competition.kind == "multiclass":
        return np.where(ignored, 0, (masks == 1).argmax(0) * 255 / (len(masks) - 1))
    return np.where(ignored, 127, (masks == 1).any(0) * 255)
